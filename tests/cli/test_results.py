"""COCO results by the command line: integer ids, zips, overlaps, and the check of what anybody wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest
from commands import sartorius
from places import ROOT
from pycocotools import mask as coco_mask
from tiny import write_image, write_tiny

from sartorius_infer.cli.main import main
from sartorius_infer.output.writers import NAME_IN_ZIP

CASE = ROOT.parent / "shared" / "cases" / "hw3_out"
SIZES = {"image0": (64, 96), "image1": (50, 70), "image2": (64, 96)}
Entry = dict[str, Any]
Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, three images of two sizes, and lists of their ids."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny(folder / "weights")
    for seed, (name, size_hw) in enumerate(SIZES.items()):
        write_image(folder / "images" / f"{name}.png", size_hw, seed)
    entries = [{"file_name": f"test\\{name}.tif", "id": 10 + k} for k, name in enumerate(SIZES)]
    (folder / "ids.json").write_text(json.dumps(entries), encoding="utf-8-sig")
    extra = [*entries, {"file_name": "image9.tif", "id": 77}]
    categories = [{"id": k, "name": name} for k, name in enumerate("abc", start=1)]
    (folder / "coco.json").write_text(json.dumps({"images": extra, "categories": categories}))
    (folder / "short.json").write_text(json.dumps(entries[:1]))
    (folder / "sample.csv").write_text("id,predicted\nimage2,\nimage0,\n")
    return folder


def run(world: Path, *words: str | Path) -> int:
    """The command line in this process: each new one imports torch."""
    return main(
        [*map(str, ["--weights", world / "weights" / "weights_manifest.json", "--images", world / "images"])]
        + [str(word) for word in words]
    )


def entries_of(path: Path) -> list[Entry]:
    text = ZipFile(path).read(NAME_IN_ZIP) if path.suffix == ".zip" else path.read_bytes()
    found: list[Entry] = json.loads(text)
    return found


def test_a_hand_in_is_written_and_checked(world: Path, tmp_path: Path) -> None:
    """As a process, the way people type it."""
    out, ids = tmp_path / "results.zip", world / "ids.json"
    images = ["--images", world / "images", "--image-ids", ids]
    for words in (
        ["--weights", world / "weights" / "weights_manifest.json", *images, "--out", out],
        ["check", "--submission", out, *images],
    ):
        done = sartorius(*words)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{out}: no problems"
    entries = entries_of(out)
    assert {entry["image_id"] for entry in entries} == {10, 11, 12}
    assert {type(entry["image_id"]) for entry in entries} == {int}
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3}
    sizes = {10 + k: [*size_hw] for k, size_hw in enumerate(SIZES.values())}
    for entry in entries:
        assert entry["segmentation"]["size"] == sizes[entry["image_id"]]
        assert coco_mask.area(entry["segmentation"]) == entry["area"] > 0


def test_what_is_written_is_the_same_whatever_it_is_written_in(world: Path, tmp_path: Path) -> None:
    ids = ["--image-ids", world / "ids.json"]
    for name in ("r.json", "r.zip", "again.zip"):
        assert run(world, "--out", tmp_path / name, *ids) == 0
    assert run(world, "--out", tmp_path / "names.json") == 0
    assert entries_of(tmp_path / "r.zip") == entries_of(tmp_path / "r.json")
    assert (tmp_path / "r.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    numbers = {name: 10 + k for k, name in enumerate(SIZES)}
    named = [e | {"image_id": numbers[e["image_id"]]} for e in entries_of(tmp_path / "names.json")]
    assert named == entries_of(tmp_path / "r.json")


def test_images_that_a_list_lacks_are_named_before_networks_run(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sartorius_infer.cli.predict._ensemble", lambda *_: pytest.fail("loaded"))
    ids = world / "short.json"
    assert run(world, "--out", tmp_path / "r.json", "--image-ids", ids) == 1
    assert capfd.readouterr().err == (
        f"error: {ids}: expected an id of each image, found none of image1, image2\n"
    )
    assert not (tmp_path / "r.json").exists()
    assert run(world, "--out", tmp_path / "r.json", "--image-ids", world / "absent.json") == 1
    assert "absent.json: expected a JSON list of image ids, found none to read" in capfd.readouterr().err


def test_what_a_list_has_beside_them_is_said(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--image-ids", world / "coco.json", "--sample-submission", world / "sample.csv"]
    assert run(world, "--out", tmp_path / "r.json", *words) == 0
    told = capfd.readouterr().out
    assert "no image  2\n  test/image1.tif, id 11: in the list of ids alone\n  image9.tif, id 77: " in told
    assert [*dict.fromkeys(e["image_id"] for e in entries_of(tmp_path / "r.json"))] == [12, 10]


@pytest.mark.parametrize(
    "words",
    [["--overlaps", "keep"], ["--image-ids", "ids.json"], ["--overlaps", "keep", "--format", "kaggle"]],
)
def test_what_means_nothing_in_kaggle_s_format_is_a_matter_of_usage(
    world: Path, words: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(world, "--out", tmp_path / "s.csv", *words)
    assert ended.value.code == 2
    assert f"{words[0]}" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_overlaps_are_kept_and_only_said(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "keep.json"
    assert run(world, "--out", out, "--overlaps", "keep", "--overlays", tmp_path / "pictures") == 0
    assert "overlaps  kept: cells may share pixels" in capfd.readouterr().err
    assert run(world, "--out", tmp_path / "cut.json") == 0
    assert len(entries_of(out)) >= len(entries_of(tmp_path / "cut.json")) > 0
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {f"{name}.png" for name in SIZES}
    own = [e for e in entries_of(out) if e["image_id"] == "image0"]
    drawn = np.sum([coco_mask.decode(e["segmentation"]) for e in own], axis=0)
    assert drawn.max() > 1
    capfd.readouterr()
    assert main(["check", "--submission", str(out), "--images", str(world / "images")]) == 0
    assert " of cells share pixels, in " in capfd.readouterr().out


# What the check finds.


def entry_of(mask: np.ndarray[Any, Any] | None = None, **changed: Any) -> Entry:
    """A sound entry of image 10, with other values, or without those that are None."""
    if mask is None:
        mask = np.zeros((64, 96), np.uint8)
        mask[10:14, 20:26] = 1
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    entry = {
        "image_id": 10,
        "category_id": 1,
        "segmentation": {"size": [*mask.shape], "counts": packed["counts"].decode()},
        "bbox": coco_mask.toBbox(packed).tolist(),
        "score": 0.5,
    }
    return {key: value for key, value in (entry | changed).items() if value is not None}


def rle(**changed: Any) -> Entry:
    segmentation: Entry = entry_of()["segmentation"]
    return segmentation | changed


EMPTY = {"size": [64, 96], "counts": coco_mask.encode(np.zeros((64, 96), np.uint8, "F"))["counts"].decode()}
TALLER = coco_mask.encode(np.ones((65, 96), np.uint8, "F"))["counts"].decode()

FOUND: dict[str, tuple[Any, str]] = {
    "no object": (7, "expected an object, found int"),
    "no image": (entry_of(image_id=None), "expected an image_id, a number or a text, found none"),
    "an unknown image": (entry_of(image_id=77), "77: unknown id: not in the list of ids or the images"),
    "a text": (
        entry_of(image_id="image0"),
        "image0: expected an image_id of the list of ids, a whole number, found 'image0'",
    ),
    "a number as text": (entry_of(image_id="10"), "expected an image_id of the list of ids, a whole number"),
    "half a number": (entry_of(image_id=10.5), "expected an image_id, a number or a text, found 10.5"),
    "true": (entry_of(image_id=True), "expected an image_id, a number or a text, found True"),
    "category 0": (entry_of(category_id=0), "10: expected a category_id from 1, found 0"),
    "no category": (entry_of(category_id=None), "expected a category_id from 1, found none"),
    "category by name": (entry_of(category_id="a"), "expected a category_id from 1, found 'a'"),
    "no score": (entry_of(score=None), "expected a score in [0, 1], found none"),
    "a score over 1": (entry_of(score=1.5), "expected a score in [0, 1], found 1.5"),
    "a score below 0": (entry_of(score=-0.1), "expected a score in [0, 1], found -0.1"),
    "no number as score": (entry_of(score=math.nan), "expected a score in [0, 1], found nan"),
    "score as text": (entry_of(score="0.5"), "expected a score in [0, 1], found '0.5'"),
    "no mask": (
        entry_of(segmentation=None),
        "expected a segmentation of size and counts, compressed, found none",
    ),
    "polygons": (entry_of(segmentation=[[0, 0, 5, 0, 5, 5]]), "compressed, found polygons"),
    "uncompressed": (entry_of(segmentation=rle(counts=[1, 2])), "counts, a text, found uncompressed ones"),
    "no counts": (entry_of(segmentation={"size": [64, 96]}), "compressed counts, a text, found none"),
    "no size": (entry_of(segmentation=rle(size=None)), "expected a size of [height, width], found none"),
    "half a size": (entry_of(segmentation=rle(size=[64])), "expected a size of [height, width], found [64]"),
    "width first": (
        entry_of(segmentation=rle(size=[96, 64])),
        "expected an RLE of 64 x 96 pixels, found 96 x 64",
    ),
    "too large": (entry_of(segmentation=rle(size=[1 << 40, 1 << 40])), "expected a size of [height, width]"),
    "cut off": (entry_of(segmentation=rle(counts="X")), "found other characters, or its end inside a number"),
    "too short": (entry_of(segmentation=rle(counts="33")), "expected counts of 64 x 96 pixels, found 6"),
    "out of bounds": (entry_of(segmentation=rle(counts=TALLER)), "counts from 0 to 6144, found 6240"),
    "empty": (entry_of(segmentation=EMPTY, bbox=None), "expected a mask with pixels, found an empty one"),
    "corners": (
        entry_of(bbox=[20, 10, 26, 14]),
        "expected a bbox [x, y, width, height] around [20, 10, 6, 4], found [20, 10, 26, 14]",
    ),
    "rows first": (entry_of(bbox=[10, 20, 4, 6]), "around [20, 10, 6, 4], found [10, 20, 4, 6]"),
    "a box without a number": (entry_of(bbox=[1, 2, 3, "4"]), "expected a bbox [x, y, width, height], found"),
    "a box of nothing": (entry_of(bbox=[math.nan, 10, 6, 4]), "expected a bbox [x, y, width, height]"),
    "a box far away": (entry_of(bbox=[10**400, 1.5, 6, 4]), "expected a bbox [x, y, width, height], found"),
}  # fmt: skip


@pytest.fixture
def check(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Check:
    def checked(entries: Any, *more: str | Path, zipped: bool = False) -> tuple[int, list[str]]:
        path = tmp_path / ("checked.zip" if zipped else "checked.json")
        if zipped:
            with ZipFile(path, "w") as archive:
                archive.writestr("any name.json", json.dumps(entries))
        else:
            path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        words = ["check", "--submission", path, *more]
        code = main([str(word) for word in words])
        told = capfd.readouterr().out.splitlines()
        return code, [line for line in told if not line.startswith("note: 1 image without cells")]

    return checked


@pytest.mark.parametrize("zipped", [False, True], ids=["json", "zip"])
@pytest.mark.parametrize(("entry", "expected"), FOUND.values(), ids=FOUND)
def test_the_check_finds(world: Path, check: Check, entry: Any, expected: str, zipped: bool) -> None:
    ids = ["--image-ids", world / "ids.json", "--images", world / "images"]
    code, told = check([entry_of(), entry], *ids, zipped=zipped)
    assert code == 1
    assert told[-1].endswith(": 1 problem")
    assert told[-2].startswith("entry 2: ")
    assert expected in told[-2]


def test_what_is_sound_has_no_problem(world: Path, check: Check) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[12:20, 22:30] = 1
    entries = [
        entry_of(),
        entry_of(score=1, category_id=3.0, image_id=10.0, bbox=[]),
        entry_of(score=0, bbox=[19.4, 9.6, 6.9, 4.9]),
        entry_of(mask, bbox=[21.5, 11.2, 10.1, 9]),
        entry_of(bbox=None),
    ]
    code, told = check(entries, "--image-ids", world / "ids.json", "--images", world / "images")
    assert code == 0
    assert told[:-1] == [
        "note: 5 cells by category_id: 1: 4, 3: 1",
        "note: 2 images without cells: image1, image2",
        "note: 1 pair of cells share pixels, in 1 image",
        "note: 3 cells with the mask of another one of the image",
        "note: 1 bbox not drawn around the mask itself",
    ]
    assert check([])[0] == 0


def test_categories_are_those_of_a_coco_file(world: Path, check: Check) -> None:
    code, told = check([entry_of(category_id=4)], "--image-ids", world / "coco.json")
    assert (code, told[-2]) == (1, "entry 1: 10: expected a category_id of 1, 2, 3, found 4")


def test_without_a_list_ids_are_names(world: Path, check: Check) -> None:
    images = ["--images", world / "images"]
    assert check([entry_of(image_id="image0")], *images)[0] == 0
    code, told = check([entry_of(image_id=10)], *images)
    assert (code, told[-2]) == (
        1,
        "entry 1: 10: unknown id: not in the images; --image-ids tells what numbers mean",
    )
    code, told = check([entry_of(image_id="image1")], *images)
    assert (code, told[-2]) == (1, "entry 1: image1: expected an RLE of 50 x 70 pixels, found 64 x 96")
    code, told = check([entry_of(image_id="image1")], "--sample-submission", world / "sample.csv")
    assert (code, told[-2]) == (1, "entry 1: image1: unknown id: not in the sample submission")


def test_without_anything_the_entries_must_agree(check: Check) -> None:
    small = np.ones((3, 4), np.uint8)
    code, told = check([entry_of(), entry_of(small, image_id=11), entry_of(small)])
    assert code == 1
    assert told[-2] == "entry 3: 10: expected an RLE of 64 x 96 pixels, found 3 x 4"


def test_a_list_that_tells_sizes_is_enough(tmp_path: Path, check: Check) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text('[{"file_name": "a.tif", "id": 10, "height": 96, "width": 64}]')
    code, told = check([entry_of()], "--image-ids", ids)
    assert (code, told[-2]) == (1, "entry 1: 10: expected an RLE of 96 x 64 pixels, found 64 x 96")


UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "no list": ("r.json", b'{"annotations": []}', "expected COCO results, a list, found dict"),
    "no JSON": ("r.json", b"[", "expected COCO results, found JSONDecodeError: "),
    "deep": ("r.json", b"[" * 100_000, "expected COCO results, found RecursionError: "),
    "a long number": ("r.json", b"[" + b"9" * 5000 + b"]", "expected COCO results, found ValueError: "),
    "no text": ("r.json", b"[\xff]", "expected COCO results, found UnicodeDecodeError: "),
    "no zip": ("r.zip", b"[]", "expected COCO results, found BadZipFile: "),
}


@pytest.mark.parametrize(("name", "content", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_unreadable_is_one_line(
    tmp_path: Path, name: str, content: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert main(["check", "--submission", str(path)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: {reason}")


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (["a.json", "b.json"], "expected one JSON in the zip, found a.json, b.json"),
        (["a.csv", "__MACOSX/._a.json"], "expected one JSON in the zip, found none"),
        (["sub/a.json", "__MACOSX/sub/._a.json", "readme.txt"], ""),
    ],
)
def test_a_zip_holds_one_json(
    tmp_path: Path, inside: list[str], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.zip"
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for name in inside:
            archive.writestr(name, "[]" if "._" not in name else "\0")
    assert main(["check", "--submission", str(path)]) == bool(reason)
    assert reason in capfd.readouterr().err


def test_a_list_of_ids_says_nothing_of_a_csv(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--submission", str(world / "sample.csv"), "--image-ids", str(world / "ids.json")])
    assert ended.value.code == 2
    assert "--image-ids is for COCO results" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not CASE.is_dir(), reason="the cases are not there")
def test_the_course_s_hand_in(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = write_tiny(tmp_path / "weights")
    out, ids = tmp_path / "results.zip", CASE / "test_image_name_to_ids.json"
    known = ["--images", str(CASE / "test_release"), "--image-ids", str(ids)]
    assert main(["--weights", str(weights), *known, "--out", str(out)]) == 0
    assert main(["check", "--submission", str(out), *known]) == 0
    assert {type(entry["image_id"]) for entry in entries_of(out)} == {int}
    capfd.readouterr()
    assert main(["check", "--submission", str(CASE / "test-results.json"), *known]) == 1
    assert capfd.readouterr().out.splitlines()[-1].endswith(": 66 problems")
