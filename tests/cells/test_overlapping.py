"""Cells that may share pixels: their COCO results, and how they look from above."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from factories import CLASSES, drawn_prediction, empty_prediction, make_instances, make_prediction
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from sartorius_infer.cells.claim import build_overlapping
from sartorius_infer.cells.overlapping import OverlappingCells
from sartorius_infer.cells.rle import run_pixels, split_label_map
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.types import Bool


def overlapping(masks: list[Bool], size_hw: tuple[int, int] = (4, 5)) -> OverlappingCells:
    """One cell of each mask, of falling scores, of all classes in turn."""
    order = np.arange(len(masks))
    runs = tuple(split_label_map(mask.astype(np.int32), 1)[0] for mask in masks)
    scores = (np.float32(0.9) / (1 + order)).astype(np.float32)
    return OverlappingCells("image", size_hw, runs, scores, order % 3 + 1, CLASSES)


@given(st.lists(arrays(np.bool_, (4, 5)), max_size=5))
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_results_are_what_pycocotools_measures(masks: list[Bool]) -> None:
    cells = overlapping(masks)
    entries = cells.to_coco(7)
    there = [i for i, mask in enumerate(masks) if mask.any()]
    assert [entry["category_id"] for entry in entries] == [i % 3 + 1 for i in there]
    assert [np.float32(entry["score"]) for entry in entries] == [cells.scores[i] for i in there]
    for i, entry in zip(there, entries, strict=True):
        packed = entry["segmentation"]
        np.testing.assert_array_equal(coco_mask.decode(packed), masks[i])
        assert (entry["image_id"], entry["area"]) == (7, coco_mask.area(packed))
        assert entry["bbox"] == coco_mask.toBbox(packed).tolist()


@given(st.lists(arrays(np.bool_, (4, 5)), max_size=5))
def test_from_above_the_surest_is_on_top(masks: list[Bool]) -> None:
    flat = overlapping(masks).flattened()
    expected = np.zeros((4, 5), np.int32)
    for number, mask in enumerate(masks, start=1):
        expected[mask & (expected == 0)] = number
    np.testing.assert_array_equal(flat.label_map, expected)
    assert len(flat) == len(masks)


def test_cells_that_share_no_pixel_are_written_as_instances_are() -> None:
    labels = np.array([[1, 1, 0, 2, 2], [0, 1, 0, 2, 0], [3, 3, 3, 3, 0], [0, 0, 0, 0, 0]])
    instances = make_instances(labels)
    assert overlapping([labels == k for k in (1, 2, 3)]).to_coco() == instances.to_coco()


def test_both_keep_what_they_share_and_every_part() -> None:
    prediction = drawn_prediction("##.. ##.. .... ...#", "#### #... .... ....")
    cells = build_overlapping(prediction, Rules(overlap_survival=1.0), CLASSES)
    assert [run_pixels(*mask).tolist() for mask in cells.masks] == [[0, 1, 4, 5, 15], [0, 1, 2, 3, 4]]


def test_holes_are_filled_and_areas_judged_with_them() -> None:
    prediction = drawn_prediction("###. #.#. ###. ....")
    rules = Rules(per_class={"shsy5y": ClassRule(min_area=9)})
    assert len(build_overlapping(prediction, rules, CLASSES)) == 0
    (filled,) = build_overlapping(
        prediction, rules.model_copy(update={"fill_holes": True}), CLASSES
    ).to_coco()
    assert filled["area"] == 9


def test_no_cells() -> None:
    cells = build_overlapping(empty_prediction((3, 4)), Rules(), CLASSES)
    assert (len(cells), cells.to_coco(), len(cells.flattened())) == (0, [], 0)


def test_as_many_cells_as_large_as_the_image_take_no_array_of_all() -> None:
    count, size_hw = 100, (400, 500)
    boxes = np.tile([[0, 0, 500, 400]], (count, 1))
    prediction = make_prediction(np.ones((count, 28, 28)), boxes, [0.9] * count, [1] * count, size_hw)
    tracemalloc.start()
    try:
        cells = build_overlapping(prediction, Rules(), CLASSES)
        assert len(cells.to_coco()) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * 400 * 500 * 4


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [([0.5], [1, 1], "scores"), ([0.5, 0.5], [1], "labels"), ([0.5, 0.5], [1, 4], "labels: expected 1..3")],
)
def test_shapes_and_ranges_are_checked(scores: list[float], labels: list[int], reason: str) -> None:
    mask = (np.array([0]), np.array([1]))
    with pytest.raises(ValueError, match=reason):
        OverlappingCells(
            "image", (2, 2), (mask, mask), np.array(scores, np.float32), np.array(labels), CLASSES
        )
