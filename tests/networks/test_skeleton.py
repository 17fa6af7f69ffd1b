"""What starting up leaves out: initial weights, and torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import write_image, write_tiny
from torch import nn

from sartorius_infer.networks.skeleton import skeleton


def test_a_skeleton_has_shapes_and_no_storage() -> None:
    with skeleton():
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model[0].weight.shape == (8, 3, 3, 3)


def test_other_tensors_are_filled_as_ever() -> None:
    with skeleton():
        real = nn.init.constant_(torch.empty(3, device="cpu"), 2.0)
        real[1:].fill_(5.0)
    assert real.tolist() == [2.0, 5.0, 5.0]


def in_a_new_process(code: str) -> None:
    """Run it; its assertions must hold."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


HEAVY = "set(sys.modules) & {'torch._dynamo', 'torch._inductor', 'sympy', 'scipy', 'pandas', 'matplotlib'}"


def test_a_first_prediction_does_without_compiler_and_tables(tmp_path: Path) -> None:
    manifest, image = write_tiny(tmp_path / "w"), write_image(tmp_path / "i.png")
    words = ["--weights", str(manifest), "--images", str(image), "--out", str(tmp_path / "s.csv")]
    words += ["--device", "cpu"]
    in_a_new_process(
        f"import sys\nfrom sartorius_infer.cli.main import main\nassert main({words!r}) == 0\n"
        f"heavy = {HEAVY}\nassert not heavy, heavy"
    )


def test_garbage_is_not_looked_for_while_torch_is_imported(tmp_path: Path) -> None:
    """The first collection comes after it, the process is as it was then, and a second run adds nothing."""
    manifest, image = write_tiny(tmp_path / "w"), write_image(tmp_path / "i.png")
    words = ["--weights", str(manifest), "--images", str(image), "--out", str(tmp_path / "s.csv")]
    in_a_new_process(
        "import gc, sys\nfrom sartorius_infer.cli.main import main\n"
        "gc.collect()\n"
        "seen = []\n"
        "gc.callbacks.append(lambda *_: seen.append('torch' in sys.modules and "
        "'sartorius_infer.output.render' not in "
        "sys.modules))\n"
        f"assert main({words!r}) == 0\n"
        "kept = gc.get_freeze_count()\n"
        "assert not any(seen) and gc.isenabled() and kept > 100_000\n"
        f"assert main({words!r}) == 0\n"
        "assert gc.get_freeze_count() <= kept"
    )


@pytest.mark.slow
def test_the_compiler_is_whole_when_it_is_asked_for() -> None:
    in_a_new_process(
        "import sys\nimport sartorius_infer.networks\nassert 'torch._dynamo' not in sys.modules\n"
        "from torchvision.ops import roi_align\nimport torch\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "from torch._dynamo.utils import is_compile_supported as own\n"
        "assert is_compile_supported('cpu') == own('cpu')\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2"
    )


def test_a_torchvision_that_wants_more_is_imported_as_it_is(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import ops\nimport torch\ntorch._dynamo.config\n")
    (package / "ops.py").write_text("")
    in_a_new_process(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport torch\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('light', {str(light())!r})\n"
        "light = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(light)\n"
        "import torchvision, torch._dynamo.config\n"
        "assert torchvision.ops.__name__ == 'torchvision.ops'"
    )


def light() -> Path:
    """The file that imports torchvision."""
    import sartorius_infer.networks.light_import as room

    return Path(room.__file__)
