from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_factories import saved, tiff
from PIL import Image
from truths import label_map, pixels, refused

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.label_maps import read_label_maps
from sartorius_infer.evaluate.truth import read_truth
from sartorius_infer.images.find import find_images


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.TIFF"])
def test_label_maps_number_their_cells_as_they_like(tmp_path: Path, name: str) -> None:
    label_map(tmp_path / name, [[0, 9, 9], [300, 0, 9]])
    (tmp_path / "notes.txt").write_text("not a map")
    truth = read_truth(tmp_path)
    assert list(truth) == ["a"]
    assert (truth["a"].size_hw, truth["a"].cell_type) == ((2, 3), "")
    assert pixels(truth["a"]) == [[1, 2, 5], [3]]


@pytest.mark.parametrize("kind", ["uint8", "int32", "float32"])
def test_label_maps_of_every_kind(tmp_path: Path, kind: str) -> None:
    label_map(tmp_path / "a.tif", [[2, 1], [2, 2]], kind)  # no background
    label_map(tmp_path / "b.tif", [[0, 0], [0, 0]], kind)
    truth = read_label_maps(tmp_path)
    assert pixels(truth["a"]) == [[1], [0, 2, 3]]
    assert truth["b"].masks == ()


def test_label_maps_of_each_class(tmp_path: Path) -> None:
    label_map(tmp_path / "a" / "class1.tif", [[0, 0], [0, 0]])
    label_map(tmp_path / "a" / "class2.tif", [[1, 0], [0, 2]])
    label_map(tmp_path / "b" / "class1.tif", [[1, 1], [0, 0]])
    label_map(tmp_path / "b" / "class2.tif", [[1, 0], [0, 0]])
    truth = read_label_maps(tmp_path)
    assert {t.id: t.cell_type for t in truth.values()} == {"a": "class2", "b": ""}
    assert pixels(truth["a"]) == [[0], [3]]
    assert pixels(truth["b"]) == [[0, 1], [0]]  # of two classes they may overlap


def test_bad_label_maps_are_named(tmp_path: Path) -> None:
    refused(tmp_path, r"expected label maps \(.tif, .tiff, .png\), found none")
    path = tmp_path / "a.tif"
    for content, found in (
        ([[-1, 0]], "-1"),
        ([[0.5, 1.0]], "the fraction 0.5"),
        ([[float("nan"), 0.0]], "NaN"),
    ):
        label_map(path, content, "float32")  # type: ignore[arg-type]
        with pytest.raises(
            TruthError, match=rf"{path}: expected whole numbers from 0, found {found} \(float32"
        ):
            read_label_maps(tmp_path)
    Image.new("RGB", (2, 2), (1, 2, 3)).save(path)
    with pytest.raises(TruthError, match=r"a.tif: expected a number for each pixel, found 3 channels"):
        read_label_maps(tmp_path)
    page = Image.new("L", (2, 2))
    page.save(path, save_all=True, append_images=[page, page])
    with pytest.raises(TruthError, match=r"a.tif: expected one picture, found 3 pages"):
        read_label_maps(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TruthError, match=r"a.tif: expected a whole image, found 20 bytes"):
        read_label_maps(tmp_path)


def test_two_truths_of_an_image_and_two_sizes_are_named(tmp_path: Path) -> None:
    label_map(tmp_path / "a" / "class1.tif", [[1]])
    label_map(tmp_path / "a" / "class2.tif", [[1, 1]])
    with pytest.raises(TruthError, match=r"a: expected label maps of one size, found 1 x 1, 1 x 2"):
        read_label_maps(tmp_path)
    label_map(tmp_path / "a" / "class2.tif", [[1]])
    label_map(tmp_path / "a.png", [[1]])
    with pytest.raises(TruthError, match=r"a.png: expected one truth of each image, found two of a"):
        read_label_maps(tmp_path)


def test_two_label_maps_of_a_class_and_infinite_labels_are_named(tmp_path: Path) -> None:
    label_map(tmp_path / "a" / "class1.png", [[1]])
    label_map(tmp_path / "a" / "class1.tif", [[0]])
    with pytest.raises(TruthError, match=r"class1.tif: expected one label map of each class, found two"):
        read_label_maps(tmp_path)
    (tmp_path / "a" / "class1.png").unlink()
    label_map(tmp_path / "a" / "class1.tif", [[float("inf")]], "float32")  # type: ignore[list-item]
    with pytest.raises(TruthError, match=r"class1.tif: expected whole numbers from 0, found infinity"):
        read_label_maps(tmp_path)


def test_hidden_files_and_litter_are_skipped_in_every_folder(tmp_path: Path) -> None:
    label_map(tmp_path / "a.tif", [[0, 1]])
    label_map(tmp_path / "b" / "class1.tif", [[0, 1]])
    label_map(tmp_path / "c" / "masks" / "1.png", [[0, 1]])
    label_map(tmp_path / "c" / "images" / "c.png", [[0, 1]])
    for folder in (tmp_path, tmp_path / "b", tmp_path / "c" / "masks", tmp_path / "__MACOSX" / "a"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("._a.tif", ".DS_Store", "Thumbs.db", "desktop.ini", ".a.png"):
            (folder / name).write_bytes(b"\0")
    label_map(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png", [[0, 1]])
    assert {t.id: len(t.masks) for t in read_truth(tmp_path).values()} == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("name", ["image.tif", "image.png", "Image.TIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_image_beside_its_label_maps_is_none(tmp_path: Path, name: str, mode: str) -> None:
    label_map(tmp_path / "a" / "class1.tif", [[0, 1]])
    label_map(tmp_path / "b" / "astro.tif", [[0, 1]])
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new(mode, (2, 1), "gray").save(tmp_path / folder / name)
    (tmp_path / "a" / "overview.png").write_bytes(b"no picture")
    truth = read_truth(tmp_path)
    assert {t.id: t.cell_type for t in truth.values()} == {"a": "class1", "b": "astro"}


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_cellpose_s_names(tmp_path: Path, suffix: str) -> None:
    """Beside which the images themselves lie."""
    label_map(tmp_path / f"plate_1_cp_masks{suffix}", [[0, 2], [1, 1]])
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / f"plate_1{suffix}")
    truth = read_truth(tmp_path)
    assert [*truth] == ["plate_1"]
    assert pixels(truth["plate_1"]) == [[2, 3], [1]]


def nucleus(folder: Path, image_id: str, *masks: list[list[int]]) -> None:
    (folder / image_id / "masks").mkdir(parents=True)
    for number, mask in enumerate(masks):
        label_map(folder / image_id / "masks" / f"{number}f3a.png", mask, "uint8")
    (folder / image_id / "images").mkdir()
    Image.new("RGBA", (2, 2)).save(folder / image_id / "images" / f"{image_id}.png")


def test_a_file_for_each_nucleus(tmp_path: Path) -> None:
    nucleus(tmp_path, "a", [[0, 255], [0, 0]], [[0, 0], [255, 255]], [[0, 0], [0, 0]])
    nucleus(tmp_path, "b")
    truth = read_truth(tmp_path)
    assert sorted(pixels(truth["a"])) == [[1], [2, 3]]
    assert (truth["a"].empty, truth["b"].masks, truth["b"].size_hw) == (1, (), (2, 2))
    assert [*read_truth(tmp_path / "a")] == ["a"]
    label_map(tmp_path / "a" / "masks" / "x.png", [[1, 2], [0, 0]], "uint8")
    with pytest.raises(TruthError, match=r"x\.png: expected one nucleus a file, 0 around it, found 3 values"):
        read_truth(tmp_path)
    (tmp_path / "a" / "masks" / "x.png").unlink()
    (tmp_path / "b" / "images" / "b.png").unlink()
    with pytest.raises(TruthError, match=r"expected nuclei in masks/, or images/b, found neither"):
        read_truth(tmp_path)


def test_label_maps_in_a_folder_beside_the_images(tmp_path: Path) -> None:
    for name in ("masks", "labels"):
        label_map(tmp_path / name / name / "a.tif", [[0, 1]])
        label_map(tmp_path / name / "images" / "a.tif", [[0, 7]])
        assert [*read_truth(tmp_path / name)] == ["a"]


def test_gray_saved_as_colour_is_gray(tmp_path: Path) -> None:
    gray = Image.fromarray(np.array([[0, 3], [3, 9]], np.uint8))
    for mode in ("RGB", "RGBA", "LA"):
        gray.convert(mode).save(tmp_path / f"{mode}.png")
    truth = read_truth(tmp_path)
    assert all(pixels(image) == [[1, 2], [3]] for image in truth.values())


def test_one_cell_in_one_bit_whatever_0_stands_for(tmp_path: Path) -> None:
    """As programs write a boolean mask: one bit, 0 said to be white."""
    cell = np.zeros((5, 9), np.uint8)
    cell[1:3, 2:6] = 1
    for photometric in (0, 1):
        path = tmp_path / f"{photometric}.tif"
        path.write_bytes(tiff(np.packbits(cell, axis=1), t256=9, t258=1, t262=photometric))
    truth = read_truth(tmp_path)
    assert pixels(truth["0"]) == pixels(truth["1"]) == [np.flatnonzero(cell).tolist()]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_named(tmp_path: Path, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["tif", "png"]))
    labels = np.arange(40, dtype=np.uint16).reshape(5, 8)
    content = bytearray(tiff(labels) if form == "tif" else saved(Image.fromarray(labels), "PNG"))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"a.{form}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_truth(tmp_path)
    except TruthError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
    path.unlink()


@pytest.mark.parametrize("end", ["_masks", "_cp_masks"])
def test_label_maps_that_are_called_after_their_images(tmp_path: Path, end: str) -> None:
    """Beside images of any kind, or by themselves, in the folder, below it, or in `masks/`."""
    label_map(tmp_path / "plate" / f"a{end}.tif", [[1, 2]])
    for beside in (False, True):
        if beside:
            label_map(tmp_path / "plate" / "a.png", [[9, 9]], "uint8")
            (tmp_path / "plate" / "b.jpg").write_bytes(b"never opened")
        for folder in (tmp_path / "plate", tmp_path):
            truth = read_label_maps(folder)
            assert {name: (t.cell_type, pixels(t)) for name, t in truth.items()} == {"a": ("", [[0], [1]])}
    label_map(tmp_path / "plate" / "masks" / f"c{end}.png", [[1]])
    assert [*read_label_maps(tmp_path / "plate")] == ["c"]


def test_names_that_end_so_without_an_image_are_names(tmp_path: Path) -> None:
    label_map(tmp_path / "a_masks.tif", [[1]])
    label_map(tmp_path / "b.tif", [[1]])
    assert [*read_label_maps(tmp_path)] == ["a_masks", "b"]
    label_map(tmp_path / "a.tif", [[7]])
    assert [*read_label_maps(tmp_path)] == ["a"]


def test_a_map_of_the_image_in_a_folder_of_its_own(tmp_path: Path) -> None:
    label_map(tmp_path / "a" / "image.tif", [[7]])
    label_map(tmp_path / "a" / "image_masks.tif", [[1]])
    truth = read_label_maps(tmp_path)
    assert [(t.id, t.cell_type, len(t.masks)) for t in truth.values()] == [("a", "", 1)]


def test_the_folder_of_one_image_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "a"
    label_map(own / "class1.tif", [[1, 0]])
    label_map(own / "class2.tif", [[0, 1]])
    assert [*read_label_maps(own)] == ["class1", "class2"]
    label_map(own / "image.tif", [[7, 7]])
    expected = {"a": ("class1", "class2")}
    assert {name: t.types for name, t in read_label_maps(own).items()} == expected
    assert {name: t.types for name, t in read_label_maps(tmp_path).items()} == expected
    (tmp_path / "link").symlink_to(own)
    assert [*read_label_maps(tmp_path / "link")] == ["link"]
    monkeypatch.chdir(own)
    assert [*read_label_maps(Path())] == ["a"]


def test_label_maps_of_one_stem_in_two_folders_are_called_as_images_are(tmp_path: Path) -> None:
    for name in ("p/x", "q/x", "q/y"):
        label_map(tmp_path / f"{name}_masks.tif", [[1]])
        label_map(tmp_path / f"{name}.tif", [[9]])
    expected = ["p_x", "q_x", "y"]
    assert [*read_label_maps(tmp_path)] == [file.id for file in find_images(tmp_path, True)] == expected
    label_map(tmp_path / "p" / "x_cp_masks.tif", [[1]])
    label_map(tmp_path / "p_x_masks.tif", [[1]])
    with pytest.raises(
        TruthError, match=r"p_x_masks\.tif: expected one truth of each image, found two of p_x"
    ):
        read_label_maps(tmp_path)
