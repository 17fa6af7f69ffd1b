from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from truths import SIZE, SQUARE, SQUARE_PIXELS, coco, pixels, refused

from sartorius_infer.cells.rle import encode_coco
from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.coco_truth import read_coco
from sartorius_infer.evaluate.true_image import truth_notes
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


TWICE = [{"id": i, "file_name": f"a.{s}", "height": 6, "width": 8} for i, s in ((7, "tif"), (8, "png"))]


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


OTHER = {"segmentation": [[5, 4, 7, 4, 7, 6, 5, 6]]}
WITHOUT_MASK: list[Any] = [
    None, "", [], [[]], [None], {}, [[1, 1]], [[1, 1, 4, 4]], [1, 1, 4, 4], [[1, 1], [], [2, 2, 3, 3]],
    [[1, 1, 1.1, 1, 1.1, 1.1]], {"size": [6, 8], "counts": [48]},
]  # fmt: skip


@pytest.mark.parametrize("segmentation", WITHOUT_MASK, ids=repr)
def test_an_annotation_without_a_mask_is_counted(tmp_path: Path, segmentation: Any) -> None:
    """Wherever it stands, and said."""
    blank = {"segmentation": segmentation}
    for cells in ([blank, SQUARE], [SQUARE, blank], [{}, SQUARE, blank]):
        truth = read_coco(coco(tmp_path, cells))
        assert pixels(truth["a"]) == [SQUARE_PIXELS]
        assert truth["a"].empty == len(cells) - 1
        assert truth["a"].cell_type == "shsy5y"
        assert [*truth_notes(truth)] == [f"{len(cells) - 1} annotated cells without a pixel, left out: a"]


def test_parts_without_an_inside_are_left_out_of_a_cell(tmp_path: Path) -> None:
    parts = {"segmentation": [[0, 0, 5, 5], *SQUARE["segmentation"], [7, 5], []]}
    flat = {"segmentation": SQUARE["segmentation"][0]}
    truth = read_coco(coco(tmp_path, [parts, flat]))
    assert pixels(truth["a"]) == [SQUARE_PIXELS] * 2
    assert truth["a"].empty == 0


@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0", False, "false", "False", None, ""])
def test_no_crowd_however_it_is_written(tmp_path: Path, value: Any) -> None:
    truth = read_coco(coco(tmp_path, [{"iscrowd": value, **SQUARE}]))
    assert pixels(truth["a"]) == [SQUARE_PIXELS]


@pytest.mark.parametrize("value", [1, 1.0, "1", True, "true"])
def test_a_crowd_however_it_is_written_is_kept_apart(tmp_path: Path, value: Any) -> None:
    truth = read_coco(coco(tmp_path, [{"iscrowd": value, **SQUARE}, OTHER]))
    assert len(truth["a"].masks) == 1
    assert truth["a"].coco is not None
    assert [region.is_crowd for region in truth["a"].coco.regions] == [True, False]
    assert [*truth_notes(truth)] == ["1 crowd regions, which are no cells: a"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({**SQUARE, "iscrowd": "maybe"}, "expected iscrowd 0 or 1, found 'maybe'"),
        ({**SQUARE, "iscrowd": 2}, "expected iscrowd 0 or 1, found 2"),
        ({**SQUARE, "category_id": [1]}, r"expected an id, a number or a text, found \[1\]"),
        ({"segmentation": 7}, "expected polygons or an RLE, found int"),
        ({"segmentation": [[1, 1, float("nan"), 1, 4, 3]]}, "expected corners near the image, .+"),
        ({"segmentation": [[1, 1, 1e9, 1, 4, 3]]}, "expected corners near the image, .+"),
        ({"segmentation": [[0, 0, 1e6, 1e6] * 9]}, "expected corners near the image, .+"),
        ({"segmentation": [["a", 1, 4, 1, 4, 3]]}, "could not convert string .+"),
        ({"segmentation": {"counts": [7, 2]}}, "expected polygons or an RLE, found KeyError: 'size'"),
        ({"segmentation": {"counts": [99], "size": [6, 8]}}, "expected counts from 0 to 48, found 99"),
        ({"segmentation": {"counts": [7, -2], "size": [6, 8]}}, "expected counts from 0 to 48, found -2"),
        ({"segmentation": {"counts": "~~~~", "size": [6, 8]}}, "expected COCO's RLE text, .+"),
    ],
)
def test_what_cannot_be_read_names_image_and_annotation(
    tmp_path: Path, cell: dict[str, Any], said: str
) -> None:
    refused(coco(tmp_path, [SQUARE, {"id": 31, **cell}]), f"a: annotation 31: {said}")


def test_whole_numbers_however_they_are_written(tmp_path: Path) -> None:
    columns = {"counts": [7.0, "2", 4, 2, 4, 2, 27], "size": ["6", 8.0]}
    images = [{"id": "7", "file_name": "a.tif", "height": 6.0, "width": "8.0"}]
    cells = [{"image_id": 7.0, "category_id": "1.0", "segmentation": columns}]
    (image,) = read_coco(coco(tmp_path, cells, images=images)).values()
    assert (image.size_hw, image.cell_type, pixels(image)) == ((6, 8), "shsy5y", [SQUARE_PIXELS])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_any_unicode_with_a_mark(tmp_path: Path, encoding: str) -> None:
    path = coco(tmp_path, [SQUARE])
    path.write_bytes(path.read_text().encode(encoding))
    assert pixels(read_coco(path)["a"]) == [SQUARE_PIXELS]


@pytest.mark.parametrize("name", ["a.tif", "p\\q\\a.tif", "C:\\p\\a.tif", "p/q\\a.tif", "./a.tif"])
def test_either_slash_parts_folders(tmp_path: Path, name: str) -> None:
    images = [{"id": 7, "file_name": name, "height": 6, "width": 8}]
    assert [*read_coco(coco(tmp_path, [SQUARE], images=images))] == ["a"]


def test_mappings_in_the_place_of_lists(tmp_path: Path) -> None:
    """As LIVECell's annotations are."""
    images = {"7": {"id": 7, "file_name": "a.tif", "height": 6, "width": 8}}
    cell = {"image_id": 7, "category_id": 1, **SQUARE}
    truth = read_coco(coco(tmp_path, [], images=images, annotations={"31": cell}))
    assert pixels(truth["a"]) == [SQUARE_PIXELS]
    refused(coco(tmp_path, [], annotations={"31": {**cell, "iscrowd": 9}}), "a: annotation 31: .+")
    refused(coco(tmp_path, [], annotations={"31": 5}), ".+ entry 31: expected a mapping, found int")


UNDER_TWO = [{"id": i, "file_name": "a.tif", "height": 6, "width": 8} for i in (7, 8)]


@pytest.mark.parametrize(
    ("first", "second", "cells", "repeated"),
    [
        ([SQUARE, OTHER], [], 2, 0),
        ([], [SQUARE, OTHER], 2, 0),
        ([SQUARE], [OTHER], 2, 0),
        ([SQUARE, OTHER], [SQUARE, OTHER], 2, 2),
        ([SQUARE, OTHER], [SQUARE], 2, 1),
        ([SQUARE], [SQUARE, OTHER], 1, 2),
        ([], [], 0, 0),
    ],
)
def test_a_file_under_two_ids_is_read_once_and_said(
    tmp_path: Path, first: list[Any], second: list[Any], cells: int, repeated: int
) -> None:
    told = [c | {"image_id": 7} for c in first] + [c | {"image_id": 8} for c in second]
    truth = read_coco(coco(tmp_path, told, images=UNDER_TWO))
    assert len(truth["a"].masks) == cells
    assert truth["a"].coco is not None
    assert truth["a"].coco.ids == (7, 8)
    notes = ["1 further ids of a file that is listed before: a"]
    notes += [f"{repeated} cells of a file's second annotation, left out: a"] * bool(repeated)
    assert [*truth_notes(truth)] == notes


def test_an_id_of_two_files_and_two_sizes_of_one_are_named(tmp_path: Path) -> None:
    two = [UNDER_TWO[0], {**UNDER_TWO[0], "file_name": "b.tif"}]
    refused(coco(tmp_path, [], images=two), "expected an id for each image, found 7 twice")
    assert [*read_coco(coco(tmp_path, [SQUARE], images=[UNDER_TWO[0]] * 2))] == ["a"]
    sizes = [UNDER_TWO[0], {**UNDER_TWO[1], "height": 5}]
    refused(coco(tmp_path, [], images=sizes), "a: expected one size, found 2")


def test_a_size_that_only_an_rle_tells(tmp_path: Path) -> None:
    columns = {"segmentation": {"counts": [7, 2, 4, 2, 4, 2, 27], "size": [6, 8]}}
    path = coco(tmp_path, [columns], images=[{"id": 7, "file_name": "a.tif"}])
    assert read_coco(path)["a"].size_hw == (6, 8)


def test_areas_are_the_file_s(tmp_path: Path) -> None:
    cells = [{**SQUARE, "area": 6.5}, SQUARE, {**SQUARE, "area": [1]}]
    image = read_coco(coco(tmp_path, cells))["a"]
    assert image.coco is not None
    assert [region.area for region in image.coco.regions] == [6.5, 6, 6]


def _places(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [place, *(deeper for key in keys for deeper in _places(content[key], (*place, key)))]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
EVERY_KIND = (
    {"images": UNDER_TWO, "categories": [{"id": 1, "name": "x"}], "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 6, **SQUARE},
        {"id": 2, "image_id": 8, "category_id": 1, "segmentation": {"counts": "71O", "size": [6, 8]}},
        {"id": 3, "image_id": 8, "category_id": 1, "segmentation": {"counts": [7, 2, 39], "size": [6, 8]}},
    ]}
)  # fmt: skip


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_stands_in_a_place_is_read_or_named(tmp_path: Path, data: st.DataObject) -> None:
    content = json.loads(json.dumps(EVERY_KIND))
    *where, last = data.draw(st.sampled_from([p for p in _places(content) if p]))
    inner = content
    for key in where:
        inner = inner[key]
    inner[last] = data.draw(JUNK)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    try:
        read_truth(path)
    except TruthError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
