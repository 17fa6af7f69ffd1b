"""Images as the commands find them: folders within, odd names, what is no image; real processes."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import sartorius
from image_factories import by_cv2, tiff
from places import CASES
from tiny import write_image, write_tiny

COMPOSED, DECOMPOSED = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def ids(path: Path) -> list[str]:
    """The ids of a submission or of results, each once, in their order."""
    if path.suffix == ".json":
        return list(
            dict.fromkeys(entry["image_id"] for entry in json.loads(path.read_text(encoding="utf-8")))
        )
    with path.open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(row["id"] for row in csv.DictReader(file)))


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_folders_within_and_files_of_one_name(tiny: Path, tmp_path: Path, suffix: str) -> None:
    images = tmp_path / "data"
    for index, name in enumerate(("b/image.png", "a/image.png", "a/.cache/image.png", "other.png")):
        write_image(images / name, seed=index)
    out, expected = tmp_path / f"out{suffix}", ["a_image", "b_image", "other"]
    saved, drawn = tmp_path / "saved", tmp_path / "drawn"
    code, _, stderr = sartorius(
        "--weights", tiny, "--images", images, "--recursive", "--out", out,
        "--save-predictions", saved, "--overlays", drawn,
    )  # fmt: skip
    assert (code, ids(out)) == (0, expected), stderr
    for folder in (saved, drawn):
        assert sorted(path.stem for path in folder.iterdir()) == expected
    if suffix == ".csv":
        found = sartorius("check", "--submission", out, "--images", images, "--recursive")
        assert found == (0, f"{out}: no problems\n", "")
        code, _, stderr = sartorius(
            "show", "--predictions", saved, "--weights", tiny, "--images", images, "--recursive",
            "--out", tmp_path / "page.html",
        )  # fmt: skip
        assert code == 0, stderr


def test_names_that_are_no_text_and_letters_in_two_forms(tiny: Path, tmp_path: Path) -> None:
    images = tmp_path / "data"
    write_image(images / f"{DECOMPOSED}.png")
    bad = images / os.fsdecode(b"caf\xe9.png")
    bad.write_bytes((images / f"{DECOMPOSED}.png").read_bytes())
    os.mkfifo(images / "pipe.png")
    (images / "notes.txt").write_text("")
    for suffix, expected in ((".csv", [r"caf\udce9", COMPOSED]), (".json", [COMPOSED])):
        out = tmp_path / f"out{suffix}"
        code, stdout, stderr = sartorius(
            "--weights", tiny, "--images", images, "--out", out,
            "--save-predictions", tmp_path / "saved", "--overlays", tmp_path / "drawn", "--resume",
        )  # fmt: skip
        assert (code, ids(out)) == (3, expected)
        assert r"failed    1" in stdout
        assert r"caf\udce9.png: expected a file name in UTF-8, found other bytes; rename the file" in stdout
        assert "passed over what is no image" in stderr
        assert ".txt 1, pipe 1" in stderr
    assert [path.name for path in (tmp_path / "saved").iterdir()] == [f"{COMPOSED}.npz"]
    bad.unlink()
    for name in (COMPOSED, DECOMPOSED):
        sample, out = tmp_path / "sample.csv", tmp_path / "out.csv"
        sample.write_text(f"id,predicted\n{name},\n", encoding="utf-8")
        words = ("--images", images, "--sample-submission", sample)
        assert sartorius("--weights", tiny, *words, "--out", out)[0] == 0
        assert ids(out) == [name]
        assert sartorius("check", "--submission", out, *words)[0] == 0
        assert unicodedata.normalize("NFC", name) == COMPOSED


def test_an_image_whose_name_is_no_text_stops_a_run_that_stops_on_errors(tiny: Path, tmp_path: Path) -> None:
    bad = tmp_path / "data" / os.fsdecode(b"caf\xe9.png")
    bad.parent.mkdir()
    bad.write_bytes(by_cv2(".png")(np.zeros((64, 96), np.uint8)))
    out = tmp_path / "out.csv"
    code, _, stderr = sartorius("--weights", tiny, "--images", bad.parent, "--out", out, "--on-error", "stop")
    assert code == 1
    assert r"caf\udce9.png: expected a file name in UTF-8" in stderr.splitlines()[-1]
    assert not out.exists()


def test_a_stack_is_an_image_a_page(tiny: Path, tmp_path: Path) -> None:
    """In rows, label maps and pictures, and for `check`."""
    pixels = np.concatenate([cv2.imread(str(write_image(tmp_path / "x.png", seed=k)), 0) for k in range(4)])
    data = tiff(
        pixels[:64].astype(np.uint16),
        compress=lambda plane: pixels.astype(np.uint16).tobytes(),
        t259=1,
        t279=64 * 96 * 2,
        t270=b"ImageJ=1\nimages=4\nchannels=2\nframes=2\n",
    )
    (tmp_path / "stack.tif").write_bytes(data)
    for choice, numbers in ((["--pages", "1:3"], [1, 2]), (["--channel", "1"], [1, 3])):
        out, images = tmp_path / "out.csv", ["--images", tmp_path / "stack.tif", *choice]
        code, _, stderr = sartorius(
            "--weights", tiny, *images, "--out", out, "--labels", tmp_path / choice[0]
        )
        assert code == 0, stderr
        assert "WARNING: passed over pages of TIFF files: " in stderr
        assert ids(out) == [f"stack_p{number:03}" for number in numbers]
        found = sorted(path.stem for path in (tmp_path / choice[0]).iterdir())
        assert found == ids(out)
        assert sartorius("check", "--submission", out, *images)[:2] == (0, f"{out}: no problems\n")


@pytest.mark.parametrize("words", [["--pages", "x"], ["--pages", ":"], ["--channel", "-1"]])
def test_pages_and_channels_that_are_none_are_a_matter_of_usage(tmp_path: Path, words: list[str]) -> None:
    code, _, stderr = sartorius("--images", tmp_path, *words)
    assert (code, stderr.splitlines()[-1].startswith("python -m sartorius_infer: error: ")) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_one_bright_pixel_changes_no_cell(tmp_path: Path) -> None:
    """By the default checkpoint; as the pixel is white now, so are cells that touch it compared too."""
    outs = [tmp_path / f"{name}.csv" for name in ("plain", "edge")]
    for out in outs:
        images = CASES / "hotpixel" / out.stem
        code, _, stderr = sartorius("--images", images, "--out", out, "--precision", "fp32")
        assert code == 0, stderr
    plain, edge = (out.read_text(encoding="utf-8").splitlines() for out in outs)
    assert len(plain) == len(edge) > 100
    assert len(set(plain) & set(edge)) >= len(plain) - 3
