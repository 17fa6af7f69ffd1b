from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import SARTORIUS

from sartorius_infer.cells.rle import encode_coco, run_pixels
from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.truth import (
    TrueImage,
    read_coco,
    read_label_maps,
    read_train_csv,
    read_truth,
    require_known,
)
from sartorius_infer.types import Bool

HEAD = "id,annotation,width,height,cell_type\n"

real = pytest.mark.skipif(not SARTORIUS.is_dir(), reason="the competition's data is not beside this checkout")


def csv(folder: Path, *rows: str) -> Path:
    path = folder / "train.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return path


def dense(image: TrueImage) -> list[Bool]:
    masks = []
    for starts, lengths in image.masks:
        mask = np.zeros(image.size_hw, np.bool_)
        mask.ravel()[run_pixels(starts, lengths)] = True
        masks.append(mask)
    return masks


def pixels(image: TrueImage) -> list[list[int]]:
    """The flat indices of each cell."""
    return [np.flatnonzero(mask).tolist() for mask in dense(image)]


def refused(path: Path, said: str) -> None:
    """Reading raises one line that begins with the file."""
    with pytest.raises(TruthError, match=f"^{re.escape(f'{path}: ')}{said}$") as caught:
        read_truth(path)
    assert "\n" not in str(caught.value)


def test_each_row_is_a_cell_of_its_image(tmp_path: Path) -> None:
    path = csv(tmp_path, "b,1 2 5 1,4,3,cort", "a,12 1,4,3,astro", "b,2 3,4,3,cort", "b,1 2 5 1,4,3,cort")
    truth = read_truth(path)
    assert list(truth) == ["a", "b"]
    assert [(t.id, t.size_hw, t.cell_type) for t in truth.values()] == [
        ("a", (3, 4), "astro"),
        ("b", (3, 4), "cort"),
    ]
    assert pixels(truth["a"]) == [[11]]
    assert pixels(truth["b"]) == [[0, 1, 4], [1, 2, 3], [0, 1, 4]]  # they overlap, and repeat


def test_an_image_without_cells_has_a_row_without_annotation(tmp_path: Path) -> None:
    truth = read_train_csv(csv(tmp_path, "a,,4,3,cort", "b, ,4,3,"))
    assert truth["a"].masks == truth["b"].masks == ()
    assert truth["b"].cell_type == ""


def test_no_rows_are_no_images(tmp_path: Path) -> None:
    assert read_train_csv(csv(tmp_path)) == {}


def test_ids_stay_text_and_further_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("plate,id,annotation,width,height,cell_type\n1,0012,1 1,4,3,NA\n1,1e5,2 1,4,3,null\n")
    truth = read_train_csv(path)
    assert {t.id: t.cell_type for t in truth.values()} == {"0012": "NA", "1e5": "null"}


def test_a_compressed_file_is_read_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "train.csv.gz"
    whole = gzip.compress((HEAD + "".join(f"i{n},{n + 1} 1,40,30,cort\n" for n in range(500))).encode())
    path.write_bytes(whole)
    assert len(read_truth(path)) == 500
    for damaged in (whole[: len(whole) // 2], whole[:40] + bytes(20) + whole[60:], b"plain"):
        path.write_bytes(damaged)
        refused(path, "expected a CSV file, found .+")


SIZE = "expected a size in whole pixels, found .+"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a,1 1,4"], SIZE),
        (["a,1 1,,3,x"], SIZE),
        (["a,1 1,wide,3,x"], SIZE),
        (["a,1 1,4.5,3,x"], SIZE),
        (["a,,0,3,x"], SIZE),
        (["a,,-4,-3,x"], SIZE),
        (["a,1 1,4,3,x", "a,2 1,4,5,x"], "expected one size and cell type, found 2"),
        (["a,1 1,4,3,x", "a,2 1,4,3,y"], "expected one size and cell type, found 2"),
        (["a,1 2 3,4,3,x"], r"expected start length pairs, found an odd number of values \(3\)"),
        (["a,0 1,4,3,x"], r"pair 1 \(0 1\): the start is below 1"),
        (["a,12 2,4,3,x"], r"pair 1 \(12 2\): it ends past pixel 12, the last of 3 x 4"),
        (["a,one,4,3,x"], "expected integers .+, found 'one'"),
    ],
)
def test_bad_rows_name_their_image(tmp_path: Path, rows: list[str], said: str) -> None:
    refused(csv(tmp_path, "0,1 1,4,3,x", *rows), f"a: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a CSV file, found .+"),
        (b"\xff\xfe\x00", "expected a CSV file, found .+"),
        (b'id,annotation,width,height,cell_type\na,"1 2', "expected a CSV file, found .+"),
        (b"id,rle\na,1 2\n", "expected columns id, .+, found no annotation, width, height, cell_type"),
        (HEAD.encode() + b"a,1 2,4,3,x,more\n", "expected 5 fields in line 2, found more"),
        (HEAD.encode() + b"a,1 2,4,3,x\na,1 2,4,3,x,more\n", "expected a CSV file, found .*line 3.*"),
        (HEAD.encode() + b"a,1 2,4,3,x\n,1 2,4,3,x\n", "expected an id in each row, found none in line 3"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    refused(path, said)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "train.csv", "expected a CSV file, found .+")


def test_unknown_images_are_named_a_few_of_them(tmp_path: Path) -> None:
    truth = read_train_csv(csv(tmp_path, "a,1 1,4,3,x"))
    require_known(truth, ["a"], tmp_path)
    require_known({}, [], tmp_path)
    with pytest.raises(TruthError, match=r"expected truth of every image, found none of b, c, d, e, f$"):
        require_known(truth, list("abcdefgh"), tmp_path)


@real
def test_the_competitions_annotations() -> None:
    """28 images as shared/README.md counts them; every true cell is whole and within its image."""
    truth = read_truth(SARTORIUS / "train.csv")
    kinds = {name: [t for t in truth.values() if t.cell_type == name] for name in ("cort", "astro", "shsy5y")}
    assert {name: len(images) for name, images in kinds.items()} == {"cort": 18, "astro": 8, "shsy5y": 2}
    cells = {name: sum(len(t.masks) for t in images) for name, images in kinds.items()}
    assert (cells["cort"], cells["astro"]) == (584, 559)
    assert {t.size_hw for t in truth.values()} == {(520, 704)}
    assert all(len(starts) and lengths.min() > 0 for t in truth.values() for starts, lengths in t.masks)
    assert set(truth) == {path.stem for path in (SARTORIUS / "images").glob("*.png")} - set(
        read_truth(SARTORIUS / "train_approximate.csv")
    )


def coco(folder: Path, cells: list[dict[str, Any]], **more: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "plate/a.tif", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "shsy5y"}, {"id": 2, "name": "cort"}],
        "annotations": [{"image_id": 7, "category_id": 1, **cell} for cell in cells],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content | more))
    return path


SQUARE = {"segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}
SQUARE_PIXELS = [9, 10, 11, 17, 18, 19]


def test_coco_polygons_and_both_kinds_of_rle(tmp_path: Path) -> None:
    columns = {"counts": [7, 2, 4, 2, 4, 2, 27], "size": [6, 8]}
    square = np.zeros((6, 8), np.int32)
    square[1:3, 1:4] = 1
    (packed,) = encode_coco(square, 1)
    truth = read_truth(coco(tmp_path, [SQUARE, {"segmentation": columns}, {"segmentation": packed}]))
    assert list(truth) == ["a"]
    assert truth["a"].size_hw == (6, 8)
    assert truth["a"].cell_type == "shsy5y"
    assert pixels(truth["a"]) == [SQUARE_PIXELS] * 3


def test_coco_parts_of_a_cell_are_one_and_crowds_none(tmp_path: Path) -> None:
    parts = {"segmentation": [*SQUARE["segmentation"], [6, 4, 8, 4, 8, 6, 6, 6]], "category_id": 2}
    sliver = {"segmentation": [[1, 1, 1.1, 1, 1.1, 1.1]]}
    truth = read_coco(coco(tmp_path, [parts, SQUARE, {"iscrowd": 1, **SQUARE}, sliver]))
    assert pixels(truth["a"]) == [sorted([*SQUARE_PIXELS, 38, 39, 46, 47]), SQUARE_PIXELS]
    assert truth["a"].cell_type == ""  # two types


def test_coco_images_without_cells(tmp_path: Path) -> None:
    truth = read_coco(coco(tmp_path, []))
    assert (truth["a"].masks, truth["a"].cell_type) == ((), "")
    assert read_coco(coco(tmp_path, [], images=[])) == {}


TWICE = [{"id": i, "file_name": f"{i}/a.tif", "height": 6, "width": 8} for i in (7, 8)]


@pytest.mark.parametrize(
    ("annotations", "more", "said"),
    [
        (
            [{"segmentation": {"counts": [48], "size": [8, 6]}}],
            {},
            r"expected COCO's JSON, .*an RLE of 6 x 8 pixels, found 8 x 6",
        ),
        (
            [{"segmentation": {"counts": "`1", "size": [8, 6]}}],
            {},
            r"expected COCO's JSON, .*an RLE of 6 x 8 pixels, found 8 x 6",
        ),
        ([{"segmentation": [[1, 1]]}], {}, "expected COCO's JSON, found .+"),
        ([{}], {}, "expected COCO's JSON, found KeyError: 'segmentation'"),
        ([{**SQUARE, "image_id": 9}], {}, "expected annotations of its images, found some of 9"),
        ([], {"images": [{"id": 7, "file_name": "a.tif"}]}, "expected COCO's JSON, found KeyError: 'height'"),
        ([], {"images": [{**TWICE[0], "width": 0}]}, f"a: {SIZE}"),
        ([], {"images": TWICE}, "expected one truth of each image, found two of a"),
        ([], {"annotations": None}, "expected COCO's JSON, found TypeError: .+"),
    ],
)
def test_bad_coco_is_named(
    tmp_path: Path, annotations: list[dict[str, Any]], more: dict[str, Any], said: str
) -> None:
    refused(coco(tmp_path, annotations, **more), said)


@pytest.mark.parametrize("text", ["", "[]", "{", '"images"'])
def test_json_that_is_no_coco_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(text)
    refused(path, "expected COCO's JSON, found .+")


def label_map(path: Path, labels: list[list[int]], kind: str = "uint16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(labels, kind)).save(path)
    return path


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
    for content in ([[-1, 0]], [[0.5, 1.0]], [[float("nan"), 0.0]]):
        label_map(path, content, "float32")  # type: ignore[arg-type]
        with pytest.raises(
            TruthError, match=rf"{path}: expected whole numbers \(H, W\) from 0, found float32"
        ):
            read_label_maps(tmp_path)
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(TruthError, match=r"a.tif: expected whole numbers .* found uint8 \(2, 2, 3\)"):
        read_label_maps(tmp_path)
    page = Image.new("L", (2, 2))
    page.save(path, save_all=True, append_images=[page, page])
    with pytest.raises(TruthError, match=r"a.tif: expected a label map, found a stack of 3"):
        read_label_maps(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TruthError, match=r"a.tif: expected a label map, found "):
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


def test_two_label_maps_of_a_class_and_labels_beyond_counting_are_named(tmp_path: Path) -> None:
    label_map(tmp_path / "a" / "class1.png", [[1]])
    label_map(tmp_path / "a" / "class1.tif", [[0]])
    with pytest.raises(TruthError, match=r"class1.tif: expected one label map of each class, found two"):
        read_label_maps(tmp_path)
    (tmp_path / "a" / "class1.png").unlink()
    for label in (float("inf"), 2.0**31):
        label_map(tmp_path / "a" / "class1.tif", [[label]], "float32")  # type: ignore[list-item]
        with pytest.raises(TruthError, match=r"class1.tif: expected whole numbers"):
            read_label_maps(tmp_path)
