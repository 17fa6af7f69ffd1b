"""Runs of large images: tiles count for progress, time and the journal; a killed run goes on from them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from logged import BROKEN, PLUGIN, run_here, seen, words_of, write_numbered, write_weights

from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.parts import Part
from sartorius_infer.ensemble.tiles import tiling
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.networks import registry
from sartorius_infer.networks.plugins import load_plugin
from sartorius_infer.output.check import check_submission
from sartorius_infer.run import pipeline
from sartorius_infer.run.budget import Budget
from sartorius_infer.run.jobs import Job, plan_batches
from sartorius_infer.run.parts import read_parts, save_part

LARGE, SMALL, TILE_HW = (200, 250), (24, 40), (64, 84)
TILES = len(tiling(LARGE, TILE_HW))
TILED = ("--tile", "64x84")


def part(tile: int, count: int = 2) -> Part:
    rng = np.random.default_rng(tile)
    return Part(
        tile,
        rng.random((count, 4), np.float32),
        rng.random(count, np.float32),
        rng.integers(0, 4, count),
        rng.random((count, 28, 28)).astype(np.float16),
        rng.random(3, np.float32),
        rng.integers(0, 4, 3),
    )


@pytest.mark.parametrize("count", [0, 2])
def test_parts_come_back_as_they_were(tmp_path: Path, count: int) -> None:
    assert read_parts(tmp_path / "none") == {}
    for tile in (0, 11):
        save_part(tmp_path / "tiles", part(tile, count))
    found = read_parts(tmp_path / "tiles")
    assert sorted(found) == [0, 11]
    for tile, read in found.items():
        for name, value in vars(part(tile, count)).items():
            np.testing.assert_array_equal(getattr(read, name), value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_part_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    save_part(tmp_path, part(3))
    file = tmp_path / "3.npz"
    whole = file.read_bytes()
    middle = whole.index(part(3).masks.tobytes()) + 100
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    if damage == "other":
        np.savez(file, something=np.zeros(3))
    else:
        file.write_bytes({"cut": whole[:-50], "flipped": flipped, "empty": b""}[damage])
    save_part(tmp_path, part(4))
    assert sorted(read_parts(tmp_path)) == [4]


def test_an_image_in_tiles_is_alone_in_its_batch() -> None:
    jobs = [Job(str(i), None, tiles) for i, tiles in enumerate([1, 1, 1, 20, 4, 1, 1])]
    batches = plan_batches(jobs, 2)
    assert [[job.id for job in batch.jobs] for batch in batches] == [
        ["0", "1"], ["2"], ["3"], ["4"], ["5", "6"],
    ]  # fmt: skip
    assert [batch.number for batch in batches] == list(range(5))
    assert plan_batches([], 2) == []


class Scene:
    """A small image, a large one, and another small one."""

    def __init__(self, folder: Path, numbers: Sequence[int] = (1, 2, 3), **weights: Any) -> None:
        self.folder, self.out, self.log = folder, folder / "s.csv", folder / "log"
        self.weights = write_weights(folder / "w", **weights)
        self.images = write_numbered(folder / "images", numbers, [SMALL, LARGE, SMALL])

    def run(self, *more: str, out: Path | None = None) -> int:
        """The log tells of this run alone."""
        self.log.unlink(missing_ok=True)
        words = words_of(self.weights, self.images, out or self.out, *TILED, *more)
        return run_here(words, self.log)

    def undisturbed(self, *more: str) -> bytes:
        out = self.folder / "undisturbed.csv"
        assert self.run(*more, out=out) == 0
        return out.read_bytes()

    @property
    def journal(self) -> Path:
        return self.folder / "s.csv.journal"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


class Killed(BaseException):
    """Ends a run where it stands."""


@pytest.mark.parametrize(("batch", "finished", "again"), [("1", 5, 5), ("4", 8, 8), ("4", 9, 8)])
def test_a_killed_run_goes_on_inside_its_image(scene: Scene, batch: str, finished: int, again: int) -> None:
    """Tiles that entered the networks together do so again, unless all of them are finished."""
    whole = scene.undisturbed("--batch-size", batch)
    assert len(seen(scene.log)) == 2 + TILES
    kept = []

    def until(folder: Path, part: Part) -> None:
        if len(kept) == finished:
            raise Killed
        save_part(folder, part)
        kept.append(part.tile)

    with mock.patch.object(pipeline, "save_part", until), pytest.raises(Killed):
        scene.run("--batch-size", batch, "--resume")
    (folder,) = scene.journal.glob("*.tiles")
    assert sorted(read_parts(folder)) == list(range(finished))
    assert scene.run("--batch-size", batch, "--resume") == 0
    assert scene.out.read_bytes() == whole
    assert len(seen(scene.log)) <= 2 + TILES - again
    assert not scene.journal.exists()


def test_other_tiles_are_another_run(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(pipeline, "save_part", side_effect=Killed), pytest.raises(Killed):
        scene.run("--resume")
    assert scene.run("--resume", "--magnification", "2") == 1
    assert "it differs in tiles" in capsys.readouterr().err


def test_a_tile_that_fails_fails_its_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene(tmp_path, (1, BROKEN, 3))
    assert scene.run("--batch-size", "3") == 3
    assert "image001: image001: tile 1: broken" in capsys.readouterr().out
    with scene.out.open() as file:
        assert {row["id"] for row in csv.DictReader(file) if not row["predicted"]} == {"image001"}


def test_when_time_is_up_the_tiles_seen_so_far_count(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    remaining: list[int] = []

    def choose(budget: Budget, ensemble: Ensemble, left: int) -> Ensemble | None:
        remaining.append(left)
        return ensemble if len(remaining) <= 8 else None

    with mock.patch.object(Budget, "choose", choose):
        assert scene.run("--time-limit", "9h") == 3
    assert remaining == [TILES + 2 - i for i in range(9)] + [1]
    said = capsys.readouterr()
    assert f"image001: seen in 7 of {TILES} tiles: the time limit was reached" in said.out
    assert "image002: not predicted: the time limit was reached" in said.out
    assert f"{TILES + 2}/{TILES + 2}" in said.err
    with scene.out.open() as file:
        rows = [row["id"] for row in csv.DictReader(file) if row["predicted"]]
    assert rows.count("image001") > 3 and "image002" not in rows
    sizes = {"image000": SMALL, "image001": LARGE, "image002": SMALL}
    assert check_submission(scene.out, sizes) == []


def test_it_says_what_is_seen_in_tiles_and_counts_them(
    scene: Scene, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = f"seen in tiles of 64 x 84 pixels, unless by --tile off: image001 (in {TILES})"
    assert scene.run() == 0
    assert caplog.messages == [said]
    assert f"{TILES + 2}/{TILES + 2}" in capsys.readouterr().err
    assert scene.run("--tile", "off") == 0
    assert caplog.messages == [said]
    assert "3/3" in capsys.readouterr().err


def test_the_command_gives_what_python_gives(scene: Scene) -> None:
    whole = scene.undisturbed()
    with mock.patch.object(registry, "_FAMILIES", dict(registry._FAMILIES)):
        load_plugin(PLUGIN)
        ensemble = load_ensemble(scene.weights, "cpu", tile=TILE_HW)
    found = ensemble.segment([read_image(file) for file in find_images([scene.images])])
    rows = [f"{cells.image_id},{rle}" for cells in found for rle in cells.rle()]
    assert whole.decode().splitlines() == ["id,predicted", *rows]


@pytest.mark.parametrize(
    "words", [("--tile", "auto2"), ("--tile", "10x10"), ("--magnification", "0"), ("--magnification", "nan")]
)
def test_what_is_no_tile_or_magnification(
    scene: Scene, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert scene.run(*words) == 1
    assert f"{words[0][2:]}: expected" in capsys.readouterr().err
