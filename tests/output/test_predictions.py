"""Predictions on disk: what is written is what is read, and what is read is checked."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import empty_prediction, random_prediction
from hypothesis import given, settings
from hypothesis import strategies as st

from sartorius_infer.errors import PredictionError
from sartorius_infer.output.predictions import (
    load_members,
    load_prediction,
    match_folders,
    require_classes,
    save_prediction,
    saved_files,
)
from sartorius_infer.types import Prediction

ARRAYS = {
    "boxes": np.float32,
    "scores": np.float32,
    "labels": np.int64,
    "masks": np.float16,
    "size_hw": np.int64,
}


def some(count: int = 5, seed: int = 0) -> Prediction:
    return random_prediction(np.random.default_rng(seed), count, (30, 40))


def same(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions are equal in every field, dtypes included."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Prediction)]
    return all(
        first.dtype == second.dtype and np.array_equal(first, second)
        if isinstance(first, np.ndarray)
        else first == second
        for first, second in pairs
    )


def rewritten(folder: Path, **changed: Any) -> Path:
    """A file of a sound prediction in which some arrays are others, or, if None, missing."""
    path = save_prediction(folder, some())
    with np.load(path) as archive:
        arrays = dict(archive) | changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def error_of(path: Path) -> str:
    with pytest.raises(PredictionError) as caught:
        load_prediction(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@given(st.integers(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_round_trip(count: int, seed: int) -> None:
    prediction = some(count, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = save_prediction(Path(folder), prediction)
        assert path == Path(folder, "image.npz")
        assert same(load_prediction(path), prediction)


def test_the_file_holds_exactly_these_arrays(tmp_path: Path) -> None:
    prediction = empty_prediction((3, 4))
    for one in (some(), prediction):
        with np.load(save_prediction(tmp_path / "new" / "folder", one)) as archive:
            assert {name: archive[name].dtype.type for name in archive.files} == ARRAYS
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["image.npz"]


def test_no_cells(tmp_path: Path) -> None:
    path = save_prediction(tmp_path, empty_prediction((3, 4)))
    read = load_prediction(path)
    assert len(read) == 0
    assert read.size_hw == (3, 4)


def test_ids_with_points(tmp_path: Path) -> None:
    prediction = some()
    dotted = Prediction("a.b c", *(getattr(prediction, field.name) for field in fields(Prediction)[1:]))
    assert load_prediction(save_prediction(tmp_path, dotted)).image_id == "a.b c"


@pytest.mark.parametrize("extra", [np.zeros((5, 3), np.float32), np.array([{}])], ids=["numbers", "objects"])
def test_arrays_of_other_names_are_ignored(tmp_path: Path, extra: Any) -> None:
    """Such as the `evidence` that some files hold."""
    assert same(load_prediction(rewritten(tmp_path, evidence=extra, other=extra)), some())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"boxes": None},
            "expected arrays boxes, scores, labels, masks, size_hw, found labels, masks, scores,",
        ),
        ({"boxes": np.zeros((5, 4))}, "expected boxes float32 of 2 axes, found float64 (5, 4)"),
        ({"boxes": np.zeros((5, 5), np.float32)}, "boxes: expected float32 (5, 4), found float32 (5, 5)"),
        ({"boxes": np.full((5, 4), np.inf, np.float32)}, "expected boxes to be finite values, found inf"),
        ({"scores": np.zeros((), np.float32)}, "expected scores float32 of 1 axes, found float32 ()"),
        ({"scores": np.zeros(4, np.float32)}, "boxes: expected float32 (4, 4), found float32 (5, 4)"),
        ({"scores": np.full(5, np.nan, np.float32)}, "expected scores to be values in [0, 1], found nan"),
        ({"labels": np.ones(5, np.int32)}, "expected labels int64 of 1 axes, found int32 (5,)"),
        ({"labels": np.zeros(5, np.int64)}, "expected labels to be values from 1, found 0"),
        ({"labels": np.full(5, -1)}, "expected labels to be values from 1, found -1"),
        ({"masks": np.zeros((5, 7, 8), np.float16)}, "masks: expected float16 (5, 8, 8), found"),
        ({"masks": np.full((5, 7, 7), 2, np.float16)}, "expected masks to be values in [0, 1], found 2.0"),
        ({"masks": np.zeros((5, 7, 7), np.float32)}, "expected masks float16 of 3 axes, found float32"),
        ({"size_hw": np.array([3, 4, 1])}, "expected size_hw to be 2 positive numbers, found [3, 4, 1]"),
        ({"size_hw": np.array([0, 4])}, "expected size_hw to be 2 positive numbers, found [0, 4]"),
        ({"boxes": np.array([{}])}, "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_no_prediction(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    assert message in error_of(rewritten(tmp_path, **changed))


def test_the_rounding_of_a_mean_is_no_error(tmp_path: Path) -> None:
    scores = np.full(5, np.nextafter(np.float32(1), np.float32(2)))
    assert len(load_prediction(rewritten(tmp_path, scores=scores))) == 5


def test_arrays_that_unpack_to_far_more_than_they_are_are_refused(tmp_path: Path) -> None:
    arrays = {
        name: np.zeros(1 << 20, np.float32) for name in ("boxes", "scores", "labels", "masks", "size_hw")
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(
        PredictionError, match=r"expected arrays as they are saved, found boxes\.npy of .* unpack to"
    ):
        load_prediction(tmp_path / "a.npz")


@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, fraction: float) -> None:
    path = save_prediction(tmp_path, some(50))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    assert "expected a whole .npz file, found a damaged one" in error_of(path)


def test_flipped_bits(tmp_path: Path) -> None:
    path = save_prediction(tmp_path, some(50))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    assert "damaged" in error_of(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.npz") == "cannot be read: No such file or directory"
    assert error_of(tmp_path) == "cannot be read: Is a directory"
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert error_of(tmp_path / "one.npy") == "expected a .npz file, found a single array"
    np.savez(tmp_path / "empty.npz")
    assert error_of(tmp_path / "empty.npz").endswith("found none")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        PredictionError, match=r"image\.npz: cannot be written: (File exists|Not a directory)"
    ):
        save_prediction(tmp_path / "file", some())
    (tmp_path / "image.npz").mkdir()
    with pytest.raises(PredictionError, match="cannot be written"):
        save_prediction(tmp_path, some())


# Several members, each in a folder of its own.


def save_members(folder: Path, **images: str) -> list[Path]:
    for name, ids in images.items():
        for image_id in ids:
            save_prediction(folder / name, replace(empty_prediction((4, 5 + len(name))), image_id=image_id))
    return [folder / name for name in images]


def test_members_come_image_by_image(tmp_path: Path) -> None:
    found = load_members(save_members(tmp_path, m="bca", other="abc"))
    assert [[p.image_id for p in members] for members in found] == [["a"] * 2, ["b"] * 2, ["c"] * 2]
    assert {tuple(p.size_hw[1] for p in members) for members in found} == {(6, 10)}
    assert load_members([]) == []


def test_a_member_that_lacks_an_image_is_named(tmp_path: Path) -> None:
    folders = save_members(tmp_path, m="abc", other="a")
    with pytest.raises(PredictionError, match=r"other: expected b\.npz.*2 of 3"):
        load_members(folders)
    with pytest.raises(PredictionError, match=r"nowhere: expected saved predictions .*found none"):
        load_members([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("x/a x/b x/c", "x/a x/b x/c"),
        ("x/c x/a x/b", "x/a x/b x/c"),
        ("x/1 x/2 x/3", "x/1 x/2 x/3"),
        ("x/1 x/a x/3", "x/a x/1 x/3"),
        ("x/c x/1 x/2", "x/1 x/2 x/c"),
    ],
)
def test_folders_go_to_networks_by_name_then_by_order(folders: str, expected: str) -> None:
    found = match_folders([Path(folder) for folder in folders.split()], ("a", "b", "c"))
    assert found == [Path(folder) for folder in expected.split()]


def test_folders_that_fit_no_networks() -> None:
    for folders, said in (
        ("1 2 3", r"each of 2 networks \(a, b\), found 3"),
        ("1 ./1", "each folder once"),
        ("x/a y/a", "one folder for 'a', found two"),
    ):
        with pytest.raises(PredictionError, match=said):
            match_folders([Path(folder) for folder in folders.split()], ("a", "b"))
    assert match_folders([], []) == []


def test_a_link_to_a_folder_goes_by_its_own_name(tmp_path: Path) -> None:
    for name, target in (("one", "x"), ("two", "y")):
        (tmp_path / target).mkdir()
        (tmp_path / name).symlink_to(tmp_path / target)
    one, two = tmp_path / "one", tmp_path / "two"
    assert match_folders([two, one], ("one", "two")) == [one, two]
    with pytest.raises(PredictionError, match="each folder once"):
        match_folders([one, tmp_path / "x"], ("one", "two"))


def test_saved_files_are_a_folders_own_or_those_of_its_folds(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"expected saved predictions \(\.npz\), found none"):
        saved_files(tmp_path)
    (tmp_path / "empty").mkdir()
    for fold, name in (("one", "b"), ("two", "a"), ("one", "c")):
        save_prediction(tmp_path / fold, replace(some(1), image_id=name))
    files = {"two/a.npz": "two", "one/b.npz": "one", "one/c.npz": "one"}
    assert list(saved_files(tmp_path).items()) == [(tmp_path / k, v) for k, v in files.items()]
    assert saved_files(tmp_path / "two") == {tmp_path / "two" / "a.npz": ""}
    save_prediction(tmp_path / "two", replace(some(1), image_id="c"))
    with pytest.raises(PredictionError, match="each image in one fold, found c in one and two"):
        saved_files(tmp_path)
    save_prediction(tmp_path, replace(some(1), image_id="d"))
    assert saved_files(tmp_path) == {tmp_path / "d.npz": ""}, "what lies deeper is no business of its own"


def test_other_classes_than_the_manifests_are_named(tmp_path: Path) -> None:
    seen = replace(some(2), labels=np.array([1, 3]))
    require_classes(seen, 3, tmp_path)
    require_classes(seen[np.zeros(2, bool)], 0, tmp_path)
    with pytest.raises(
        PredictionError, match=r"image: expected labels of the manifest's classes, 1\.\.2, found 3"
    ):
        require_classes(seen, 2, tmp_path)
