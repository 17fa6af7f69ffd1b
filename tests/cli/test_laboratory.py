"""What laboratories take home, by the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import roifile
import tifffile
from commands import sartorius
from tiny import write_image, write_tiny

from sartorius_infer.cells.rle import run_pixels
from sartorius_infer.cli.main import main
from sartorius_infer.evaluate.submissions import read_cells

SIZES = {"a": (64, 96), "b": (50, 70), "c": (64, 96)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, three images of two sizes, and one that is cut short."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny(folder / "weights")
    for seed, (name, size_hw) in enumerate(SIZES.items()):
        write_image(folder / "images" / f"{name}.png", size_hw, seed)
    whole = (folder / "images" / "a.png").read_bytes()
    (folder / "images" / "z_broken.png").write_bytes(whole[:200])
    return folder


def words(world: Path, out: Path, *more: object) -> list[object]:
    basic = ["--weights", world / "weights" / "weights_manifest.json", "--images", world / "images"]
    return [*basic, "--out", out / "s.csv", *more]


def outputs(out: Path) -> list[object]:
    return ["--labels", out / "labels", "--rois", out / "rois", "--table", out / "t" / "cells.csv"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_labels_regions_tables_and_rows_tell_of_the_same_cells(world: Path, tmp_path: Path) -> None:
    code, said, stderr = sartorius(*words(world, tmp_path, *outputs(tmp_path), "--pixel-size", 2))
    assert code == 3, stderr
    cells = pd.read_csv(tmp_path / "t" / "cells.csv")
    images = pd.read_csv(tmp_path / "t" / "cells_images.csv").set_index("image")
    assert list(images.index) == [*SIZES, "z_broken"]
    assert images["error"].notna().tolist() == [False, False, False, True]
    rows = read_cells(tmp_path / "s.csv", SIZES | {"z_broken": (1, 1)})
    for name, size_hw in SIZES.items():
        own, label_map = cells[cells["image"] == name], tifffile.imread(tmp_path / "labels" / f"{name}.tif")
        assert label_map.shape == size_hw
        assert own["label"].tolist() == sorted(set(np.unique(label_map)) - {0}) != []
        areas = np.bincount(label_map.ravel())[own["label"]]
        assert own["area_um2"].tolist() == (areas * 4).tolist()
        assert images.loc[name, ["cells", "area_um2"]].tolist() == [len(own), areas.sum() * 4]
        assert [roi.name for roi in roifile.roiread(tmp_path / "rois" / f"{name}.zip")] == [
            str(label) for label in own["label"]
        ]
        assert own["score"].is_monotonic_decreasing
        for label, cell in zip(own["label"], rows[name], strict=True):
            pixels = np.zeros(size_hw, bool)
            pixels.ravel()[run_pixels(*cell.mask)] = True
            np.testing.assert_array_equal(pixels, label_map == label)
    assert sorted(path.stem for path in (tmp_path / "labels").iterdir()) == list(SIZES)
    for place in ("cells.csv", "cells_images.csv"):
        assert f"          {tmp_path / 't' / place}\n" in said


def test_a_journal_changes_no_byte(world: Path, tmp_path: Path) -> None:
    for name, more in (("plain", ()), ("resumed", ("--resume",))):
        assert main([*map(str, words(world, tmp_path / name, *outputs(tmp_path / name))), *more]) == 3
    assert contents(tmp_path / "plain") == contents(tmp_path / "resumed")
    assert len(contents(tmp_path / "plain")) == 1 + 3 + 3 + 2


MISSING = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("tifffile", "roifile", "skimage"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name in ("tifffile", "roifile", "skimage") else found(name, package)
)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def without_the_extra(tmp_path: Path) -> dict[str, str]:
    """An environment in which its packages cannot be found."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "sitecustomize.py").write_text(MISSING)
    return {"PYTHONPATH": str(tmp_path / "absent")}


@pytest.mark.parametrize(
    ("option", "package"), [("--labels", "tifffile"), ("--rois", "roifile"), ("--table", "scikit-image")]
)
def test_without_the_extra_it_says_what_to_install_before_networks_are_loaded(
    tmp_path: Path, without_the_extra: dict[str, str], option: str, package: str
) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "weights_manifest.json").write_text("no manifest at all")
    code, said, stderr = sartorius(
        "--weights", tmp_path, "--images", tmp_path / "images", "--out", tmp_path / "s.csv",
        option, tmp_path / "t.csv", env=without_the_extra,
    )  # fmt: skip
    assert (code, said) == (1, "")
    assert stderr == (
        f"error: {option}: expected the package {package}, found none; pip install {package}, or "
        "tifffile roifile scikit-image for all of the extra [lab]\n"
    )


def test_a_run_that_asks_for_none_of_it_needs_no_extra(
    world: Path, tmp_path: Path, without_the_extra: dict[str, str]
) -> None:
    code, _, stderr = sartorius(*words(world, tmp_path), env=without_the_extra)
    assert code == 3, stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pixel-size", "1.2"], "--pixel-size: expected --table FILE.csv, which it is for"),
        (["--pixel-size", "0"], "expected micrometres, a number over 0, found '0'"),
        (["--pixel-size", "x"], "expected micrometres, a number over 0, found 'x'"),
        (["--classes", "a,b"], "expected one name for all cells, such as cell, found 'a,b'"),
        (
            ["--classes", "cell", "--save-predictions", "p"],
            "--classes: saved predictions are of the manifest's classes; save them without it",
        ),
        (["--table", "t.xlsx"], "expected --table to end in .csv, found t.xlsx"),
        (
            ["--out", "r.json", "--overlaps", "keep", "--labels", "l"],
            "--labels: cells must not share pixels there; expected --overlaps cut",
        ),
    ],
)
def test_what_does_not_go_together_is_a_matter_of_usage(
    world: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    code, _, stderr = sartorius(*words(world, tmp_path), *more, cwd=tmp_path)
    assert code == 2
    assert stderr.splitlines()[-1].endswith(said)


def test_one_class_for_every_cell(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["--classes", "cell", "--table", str(tmp_path / "t.csv"), "--score", "cell=0.1"]
    assert main([*map(str, words(world, tmp_path)), *more]) == 3
    said, told = capfd.readouterr()
    assert "classes   all are cell: no consensus; score and mask threshold are the mean of the " in told
    assert "score (--score)" in told
    cells = pd.read_csv(tmp_path / "t.csv")
    assert set(cells["class"]) == {"cell"}
    assert f"cells     {len(cells)} (cell {len(cells)})\n" in said
