"""The notebook's cells, run in order by a plain process: whatever is mounted, a valid submission is there."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from kits import own_wheel, pack_quickly, read_json, wheels_from_here
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from places import ROOT
from tiny import loose_rules, write_image, write_tiny

from kit.dataset import CONTENTS, KIND, Metadata, build
from kit.wheels import read_image
from sartorius_infer.output.check import check_submission
from sartorius_infer.output.submission import read_submission

NOTEBOOK = ROOT / "kernel" / "sartorius_infer.ipynb"
LAYOUTS = {
    "flat": ("sartorius-kit", "sartorius-cell-instance-segmentation"),
    "by kind": ("datasets/someone/sartorius-kit", "competitions/sartorius-cell-instance-segmentation"),
    "mixed": ("sartorius-kit", "competitions/sartorius-cell-instance-segmentation"),
}
IDS = ("c", "a", "b")
SIZE_HW = (64, 96)
BLANK = "id,predicted\nc,\na,\nb,\n"

DRIVER = """
import json, sys
names = {"__name__": "__main__"}
for number, source in enumerate(json.loads(sys.stdin.read())):
    exec(compile(source, f"cell {number}", "exec"), names)
"""


def sources(inputs: Path) -> list[str]:
    """The code of each cell, with the mounted folder elsewhere."""
    cells = read_json(NOTEBOOK)["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum(text.count('"/kaggle/input"') for text in texts) == 1
    return [text.replace("/kaggle/input", str(inputs)) for text in texts]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    with pytest.MonkeyPatch.context() as patch:
        pack_quickly(patch, wheels_from_here(folder / "wheels"))
        about = Metadata("someone/sartorius-kit", "sartorius kit", "other")
        return build(write_tiny(folder / "trained"), folder / "dataset", about, read_image()).folder


def mount(inputs: Path, layout: str, kit: Path | None) -> Path:
    """The competition and a dataset as Kaggle mounts them, beside datasets of others."""
    kit_place, competition = LAYOUTS[layout]
    if kit is not None:
        shutil.copytree(kit, inputs / kit_place)
    for name, text in (("a-list", "[1]"), ("text", "CONTENTS"), ("another-kind", '{"kind": "cake"}')):
        (inputs / name).mkdir(parents=True)
        (inputs / name / CONTENTS).write_text(text)
    folder = inputs / competition
    for seed, image_id in enumerate(IDS):
        write_image(folder / "test" / f"{image_id}.png", SIZE_HW, seed)
    (folder / "sample_submission.csv").write_text("id,predicted\n" + "".join(f"{i},1 1\n" for i in IDS * 2))
    return folder


def run(inputs: Path, working: Path, options: str = "", rules: str = "None") -> str:
    """What the notebook prints with these settings; its wheels are installed into a folder of their own."""
    settings, *rest = sources(inputs)
    settings = settings.replace("\nOPTIONS = {", f"\nOPTIONS = {{{options}")
    settings = settings.replace("\nRULES = None", f"\nRULES = {rules}")
    site = working.parent / "site"
    for folder in (working, site):
        folder.mkdir(parents=True)
    environment = {**os.environ, "PIP_TARGET": str(site), "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps([settings, *rest]), cwd=working, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert check_submission(working / "submission.csv", dict.fromkeys(IDS, SIZE_HW), IDS) == []
    return done.stdout


def cells(working: Path) -> int:
    return sum(bool(row.predicted) for row in read_submission(working / "submission.csv"))


def test_the_notebook_is_valid_and_was_never_run() -> None:
    notebook: Any = nbformat.reads(NOTEBOOK.read_text(), as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 6
    assert code[0].source.startswith("# Settings.")
    for cell in code:
        ast.parse(cell.source)
        assert (cell.outputs, cell.execution_count) == ([], None)
    assert KIND in NOTEBOOK.read_text()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("folders", [False, True])
def test_the_kit_and_the_competition_are_found_wherever_they_are_mounted(
    layout: str,
    folders: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first two cells, pip pretended: a blank submission, and which wheels would be installed."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "kit"
    wheels = made / "wheels" if folders else made
    wheels.mkdir(parents=True)
    for name in (own_wheel()[0], "ensemble_boxes-1.0.9-py3-none-any.whl"):
        (wheels / name).touch()
    (made / CONTENTS).write_text(json.dumps({"kind": KIND}))
    mount(tmp_path / "input", layout, made)
    _, find, install, *_ = sources(tmp_path / "input")
    names: dict[str, Any] = {}
    exec(find, names)
    assert Path("submission.csv").read_text() == BLANK
    asked: list[list[str]] = []
    names["subprocess"] = SimpleNamespace(run=lambda words, check: asked.append(words))
    exec(install, names)
    place = tmp_path / "input" / LAYOUTS[layout][0]
    assert names["kit"] == place
    (words,) = asked
    assert words[1:7] == ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    assert words[7:] == [
        "--find-links",
        str(place / wheels.relative_to(made)),
        "ensemble_boxes",
        "sartorius_infer",
    ]
    assert "Traceback" not in capsys.readouterr().err


def test_without_a_kit_the_submission_is_blank_and_that_is_loud(tmp_path: Path) -> None:
    mount(tmp_path / "input", "mixed", None)
    printed = run(tmp_path / "input", tmp_path / "working")
    assert (tmp_path / "working" / "submission.csv").read_text() == BLANK
    assert "3 images of " in printed
    assert f"{'!' * 78}\nSOMETHING WENT WRONG: the submission may be blank\n{'!' * 78}" in printed
    assert printed.endswith("\nnext: see above what went wrong, mend it, run all again\n")


def test_without_the_competition_there_is_one_line_and_nothing_more(tmp_path: Path) -> None:
    """In a real kernel: the first cell that looks ends the run, and no traceback buries what it says."""
    (tmp_path / "input" / "sartorius-kit").mkdir(parents=True)
    notebook: Any = nbformat.reads(NOTEBOOK.read_text(), as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, source in zip(code, sources(tmp_path / "input"), strict=True):
        cell.source = source
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(CellExecutionError, match="No competition is attached"):
        client.execute()
    (shown,) = code[1].outputs
    assert [len(cell.outputs) for cell in code] == [0, 1, 0, 0, 0, 0]
    (line,) = shown["traceback"]
    assert line.startswith("No competition is attached: Add Input, ")
    assert "\n" not in line
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.slow
def test_with_a_good_kit_there_are_cells_and_no_complaint(kit: Path, tmp_path: Path) -> None:
    mount(tmp_path / "input", "by kind", kit)
    printed = run(tmp_path / "input", tmp_path / "working")
    assert cells(tmp_path / "working") > 10
    assert "installed ensemble_boxes, sartorius_infer after" in printed
    assert f"submission.csv: 3 images, {cells(tmp_path / 'working')} cells\n" in printed
    assert "submission.csv: no problems" in printed
    assert "CompletedProcess" not in printed
    assert printed.splitlines()[-1].startswith("next: Save Version (Save & Run All), then ")
    assert "Traceback" not in printed
    assert "WRONG" not in printed
    assert (tmp_path / "site" / "sartorius_infer" / "kaggle.py").is_file()
    assert [path.name for path in (tmp_path / "working").iterdir()] == ["submission.csv"]


@pytest.mark.slow
def test_settings_are_handed_to_the_command(tmp_path: Path, kit: Path) -> None:
    mount(tmp_path / "input", "flat", kit)
    all_cells = run(tmp_path / "input", tmp_path / "a" / "working")
    assert "--score" not in all_cells
    few = run(tmp_path / "input", tmp_path / "b" / "working", '"--score": "a=1,b=1,c=1", "--edge": "drop",')
    assert cells(tmp_path / "b" / "working") == 0 < cells(tmp_path / "a" / "working")
    assert "SOMETHING WENT WRONG" not in few
    assert few.endswith("\nnext: no image has a cell: try lower thresholds in the settings, run all again\n")
    (tmp_path / "input" / "my-rules").mkdir()
    (tmp_path / "input" / "my-rules" / "rules.json").write_text(json.dumps(loose_rules(0.3)))
    some = run(tmp_path / "input", tmp_path / "d" / "working", rules='"my-rules/rules.json"')
    assert 0 < cells(tmp_path / "d" / "working") < cells(tmp_path / "a" / "working")
    assert "from --rules rules.json" in some
    bad = run(tmp_path / "input", tmp_path / "c" / "working", '"--score": "a",')
    assert "the options --score a were refused; see the output above" in bad


@pytest.mark.slow
def test_with_weights_that_are_cut_off_the_submission_is_blank_and_that_is_loud(
    kit: Path, tmp_path: Path
) -> None:
    mount(tmp_path / "input", "flat", kit)
    weights = tmp_path / "input" / "sartorius-kit" / "tiny.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    printed = run(tmp_path / "input", tmp_path / "working")
    assert (tmp_path / "working" / "submission.csv").read_text() == BLANK
    assert "!! SOMETHING WENT WRONG" in printed
    assert "tiny.safetensors: $.models[0].bytes: expected" in printed
    assert "!! the run did not end: 0 images were finished, the others are blank" in printed


@pytest.mark.slow
def test_with_a_wheel_that_is_cut_off_the_submission_is_valid_and_that_is_told(
    kit: Path, tmp_path: Path
) -> None:
    """It has cells where the package is installed already, as on a developer's machine."""
    mount(tmp_path / "input", "flat", kit)
    wheel = tmp_path / "input" / "sartorius-kit" / own_wheel()[0]
    wheel.write_bytes(wheel.read_bytes()[:1000])
    printed = run(tmp_path / "input", tmp_path / "working")
    assert "CalledProcessError" in printed
    assert cells(tmp_path / "working") or "SOMETHING WENT WRONG: the submission may be blank" in printed
