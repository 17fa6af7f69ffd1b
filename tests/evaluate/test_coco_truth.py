from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from truths import SIZE, SQUARE, SQUARE_PIXELS, coco, pixels, refused

from sartorius_infer.cells.rle import encode_coco
from sartorius_infer.evaluate.coco_truth import read_coco
from sartorius_infer.evaluate.truth import read_truth


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
            r"a: annotation 1: expected an RLE of 6 x 8 pixels, found 8 x 6",
        ),
        (
            [{"segmentation": {"counts": "`1", "size": [8, 6]}}],
            {},
            r"a: annotation 1: expected an RLE of 6 x 8 pixels, found 8 x 6",
        ),
        ([{"segmentation": [[1, 1, 2]]}], {}, "a: annotation 1: expected x and y of each corner .+"),
        ([{**SQUARE, "image_id": None}], {}, "expected COCO's JSON, .*annotation 1: image_id: .+ found None"),
        ([{**SQUARE, "image_id": 9}], {}, "expected annotations of its images, found some of 9"),
        ([], {"images": [{"id": 7, "file_name": "a.tif"}]}, f"a: {SIZE}"),
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
