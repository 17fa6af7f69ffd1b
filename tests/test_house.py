"""The house: folders by stage, imports that point down, rooms without torch, and names at the front door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "sartorius_infer"

STOREYS = [
    "cli", "show", "tuning", "kaggle", "run", "evaluate", "ensemble", "output", "networks", "cells",
    "laboratory", "competition", "checkpoints", "manifest", "images", "streams", "machine_code", "files",
    "types", "errors", "version",
]  # fmt: skip
"""The folders and files of the package, from the top: each may import what stands below it."""

TRUTH, SUBMISSION = "train.csv", "submission.csv"

FAMILIES = ("torchvision", "detectron2", "mmdet", "cellpose")

WITHOUT_TORCH = [
    "manifest.manifest", "manifest.rules", "manifest.overrides", "manifest.writing", "competition",
    "evaluate.truth", "evaluate.scoring", "evaluate.metric", "evaluate.coco_score", "evaluate.submissions",
    "show.report", "show.entries", "show.candidates", "show.matches", "tuning.choices",
    "tuning.search", "tuning.curves",
    "output.submission", "output.check", "output.coco_check", "output.writers", "output.predictions",
    "output.render", "output.tables",
    "cells.claim", "ensemble.weights",
    "kaggle", "cli.main", "run.journal",
]  # fmt: skip


def rooms() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "default" not in path.parts)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The package's own modules that a room names, wherever in it, those for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sartorius_infer"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("sartorius_infer"))


def storey(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_the_folders_are_the_plan_s() -> None:
    found = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert found - {"__init__", "__main__"} == set(STOREYS)


@pytest.mark.parametrize("room", rooms(), ids=name_of)
def test_imports_point_down(room: Path) -> None:
    own = storey(name_of(room))
    if own in ("", "__main__"):  # the front door opens every room
        return
    for module in imports(room):
        other = storey(module)
        assert STOREYS.index(own) <= STOREYS.index(other), f"{name_of(room)} imports {module}"


def test_there_are_no_circles() -> None:
    """Of rooms within one folder; between folders imports that point down leave none."""
    names = {name_of(path) for path in rooms()}
    known = {
        name_of(path): {m if m in names else m.rpartition(".")[0] for m in imports(path)} for path in rooms()
    }
    known.pop("sartorius_infer")
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(known.get(name, set()) - {name, "sartorius_infer.networks"}):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(known):
        visit(name, ())


@pytest.mark.parametrize("room", rooms(), ids=name_of)
def test_no_room_outside_networks_and_manifest_names_a_family(room: Path) -> None:
    if storey(name_of(room)) in ("networks", "manifest"):
        return
    for module in imports(room):
        assert not set(module.split(".")) & set(FAMILIES), f"{name_of(room)} imports {module}"
    for node in ast.walk(ast.parse(room.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in FAMILIES, f"{name_of(room)} asks for .{node.attr}"


def test_tests_mirror_the_rooms() -> None:
    tests = ROOT / "tests"
    for folder in (path for path in PACKAGE.rglob("*") if (path / "__init__.py").is_file()):
        assert (tests / folder.relative_to(PACKAGE)).is_dir(), folder


def in_a_new_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_scored(folder: Path) -> None:
    """A truth of two cells, and a submission with one of them."""
    (folder / TRUTH).write_text(
        "id,annotation,width,height,cell_type\na,1 4,4,4,cort\na,9 4,4,4,cort\n", encoding="utf-8"
    )
    (folder / SUBMISSION).write_text("id,predicted\na,1 4\n", encoding="utf-8")


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_without_torch(room: str) -> None:
    in_a_new_process(
        f"import sys, sartorius_infer.{room}; assert not {{'torch', 'numba'}} & set(sys.modules)"
    )


def test_reading_a_manifest_and_scoring_a_file_leaves_torch_out(tmp_path: Path) -> None:
    write_scored(tmp_path)
    in_a_new_process(
        "import sys\nfrom sartorius_infer import read_found, read_truth, score\n"
        "from sartorius_infer.manifest.manifest import load_manifest\nfrom pathlib import Path\n"
        "load_manifest(Path('weights_manifest.json'))\n"
        f"truth = read_truth({str(tmp_path / TRUTH)!r})\n"
        f"assert score(truth, read_found({str(tmp_path / SUBMISSION)!r}, truth)).mean == 0.5\n"
        "assert 'torch' not in sys.modules"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["import", "--help"],
        ["score", "--truth", TRUTH, "--submission", SUBMISSION],
        ["check", "--submission", SUBMISSION],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_run_no_network_load_little(words: list[str], tmp_path: Path) -> None:
    """Neither torch nor anything else that costs as much as the rest together."""
    write_scored(tmp_path)
    words = [str(tmp_path / word) if word in (TRUTH, SUBMISSION) else word for word in words]
    said = in_a_new_process(
        "import sys\nfrom sartorius_infer.cli.main import main\n"
        f"try: ended = main({words!r})\nexcept SystemExit as end: ended = end.code\nassert ended == 0\n"
        "assert not {'torch', 'numba', 'scipy', 'cv2', 'pydantic', 'matplotlib'} & set(sys.modules)"
    )
    assert said


def test_public_names_are_what_they_are_before_and_after_their_modules() -> None:
    """By identity, twice in one process: no name is a module's, so no import can put another in its place."""
    in_a_new_process(
        "import importlib, types, sartorius_infer as s\n"
        "names = [n for n in s.__all__ if n != '__version__']\n"
        "first = {n: getattr(s, n) for n in names}\n"
        "for n in names:\n"
        "    home = importlib.import_module('sartorius_infer.' + s._HOMES[n])\n"
        "    assert first[n] is getattr(home, n), n\n"
        "    assert not isinstance(first[n], types.ModuleType), n\n"
        "import pkgutil\n"
        "for found in pkgutil.walk_packages(s.__path__, 'sartorius_infer.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "for n in names: assert getattr(s, n) is first[n], n\n"
        "assert set(s.__all__) <= set(dir(s)) and not {'import_module', 'Any', 'TYPE_CHECKING'} & set(dir(s))"
    )


def test_public_names_are_what_they_are_when_their_modules_come_first() -> None:
    in_a_new_process(
        "import importlib, pkgutil, types, sartorius_infer as s\n"
        "for found in pkgutil.walk_packages(s.__path__, 'sartorius_infer.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "for n in s.__all__:\n"
        "    assert not isinstance(getattr(s, n), types.ModuleType), n\n"
        "from sartorius_infer import report\nassert callable(report)"
    )


def test_help_shows_the_door_first() -> None:
    said = in_a_new_process("import sartorius_infer; help(sartorius_infer)")
    assert said.index("load_ensemble(") < said.index("ensemble.segment(") < 1500
