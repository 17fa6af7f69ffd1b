from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from truths import label_map, pixels, refused

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.label_maps import read_label_maps
from sartorius_infer.evaluate.truth import read_truth


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
