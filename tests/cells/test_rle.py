from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sartorius_infer.cells import rle
from sartorius_infer.cells.rle import (
    areas,
    areas_and_boxes,
    coco_pixels,
    crop_runs,
    cross_pixels,
    decode,
    decode_coco,
    decode_coco_columns,
    decode_label_map,
    decode_mask,
    encode_coco,
    encode_coco_masks,
    encode_label_map,
    mask_areas_and_boxes,
    run_pixels,
    shared_pixels,
    split_label_map,
)
from sartorius_infer.types import Bool, Int32

LABELS = 5


def label_map(rows: Sequence[Sequence[int]]) -> Int32:
    return np.array(rows, np.int32)


def ellipses(n: int, size_hw: tuple[int, int] = (520, 704), seed: int = 0) -> Int32:
    """A map like the competition's: n ellipses, later ones on top."""
    rng = np.random.default_rng(seed)
    made = np.zeros(size_hw, np.int32)
    for label in range(1, n + 1):
        y, x = rng.integers(0, size_hw)
        b, a = rng.uniform(3, 14, 2)
        top, left = max(0, y - 14), max(0, x - 14)
        crop = made[top : y + 15, left : x + 15]
        rows, columns = np.ogrid[top : top + crop.shape[0], left : left + crop.shape[1]]
        crop[((rows - y) / b) ** 2 + ((columns - x) / a) ** 2 <= 1] = label
    return made


CASES: dict[str, tuple[Int32, int]] = {
    "no labels": (np.zeros((3, 4), np.int32), 0),
    "no pixels": (np.zeros((0, 4), np.int32), 2),
    "one background pixel": (label_map([[0]]), 1),
    "one mask pixel": (label_map([[1]]), 1),
    "one pixel, another label": (label_map([[2]]), 3),
    "one label everywhere": (np.ones((4, 5), np.int32), 1),
    "all labels absent": (np.zeros((2, 2), np.int32), 3),
    "first and last absent": (label_map([[2, 2], [3, 0]]), 4),
    "runs wrap the row's end": (label_map([[0, 1, 1], [1, 2, 2], [2, 0, 1]]), 2),
    "runs wrap the column's end": (label_map([[0, 1, 2], [1, 2, 0], [1, 2, 1]]), 2),
    "one row": (label_map([[1, 0, 1, 1, 2, 0, 3]]), 3),
    "one column": (label_map([[1], [0], [1], [2]]), 2),
    "checkerboard": (np.indices((6, 7)).sum(axis=0, dtype=np.int32) % 2 + 1, 2),
    "a view with strides": (np.arange(48, dtype=np.int32).reshape(6, 8)[::2, ::-2] % 4, 3),
    "long gaps": (np.pad(label_map([[1, 0, 2]]), ((90, 3), (400, 900))), 2),
    "cells": (ellipses(80, (120, 150)), 90),
}
each_case = pytest.mark.parametrize(("labels", "n"), CASES.values(), ids=CASES)
label_maps = arrays(
    np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, LABELS)
)


def slow_rle(mask: Bool) -> str:
    """The competition's string, pixel by pixel."""
    runs: list[list[int]] = []
    before = False
    for position, inside in enumerate(mask.ravel().tolist(), start=1):
        if inside and not before:
            runs.append([position, 0])
        if inside:
            runs[-1][1] += 1
        before = inside
    return " ".join(f"{start} {length}" for start, length in runs)


def slow_box(mask: Bool) -> list[int]:
    rows, columns = mask.nonzero()
    if len(rows) == 0:
        return [0, 0, 0, 0]
    left, top = columns.min(), rows.min()
    return [int(side) for side in (left, top, columns.max() - left + 1, rows.max() - top + 1)]


def assert_as_pycocotools(labels: Int32, n: int) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    written = encode_coco(labels, n)
    assert len(written) == n
    for label, mine in enumerate(written, start=1):
        expected = coco.encode(np.asfortranarray(labels == label, np.uint8))
        assert mine == {"size": expected["size"], "counts": expected["counts"].decode()}


def test_strings_count_from_one_and_run_along_rows() -> None:
    assert encode_label_map(label_map([[0, 1, 1], [1, 0, 3]]), 3) == ["2 3", "", "6 1"]


@each_case
def test_fast_encoder_equals_the_slow_one(labels: Int32, n: int) -> None:
    assert encode_label_map(labels, n) == [slow_rle(labels == k) for k in range(1, n + 1)]


@given(label_maps)
def test_fast_encoder_equals_the_slow_one_on_any_map(labels: Int32) -> None:
    assert encode_label_map(labels, LABELS) == [slow_rle(labels == k) for k in range(1, LABELS + 1)]


@each_case
def test_a_label_map_survives_the_round_trip(labels: Int32, n: int) -> None:
    back = decode_label_map(encode_label_map(labels, n), (labels.shape[0], labels.shape[1]))
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, labels)


@given(label_maps)
def test_encoded_masks_are_disjoint_and_cover_the_map(labels: Int32) -> None:
    rles = encode_label_map(labels, LABELS)
    masks = [decode_mask(text, (labels.shape[0], labels.shape[1])) for text in rles]
    np.testing.assert_array_equal(np.sum(masks, axis=0), labels > 0)
    for label, mask in enumerate(masks, start=1):
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, labels == label)


@pytest.mark.parametrize("encode", [encode_label_map, encode_coco, areas_and_boxes])
@pytest.mark.parametrize("stranger", [-1, 3])
def test_a_label_outside_the_range_is_an_error(encode: object, stranger: int) -> None:
    assert callable(encode)
    low, high = min(stranger, 1), max(stranger, 1)
    with pytest.raises(ValueError, match=rf"^expected labels 0\.\.2, found {low}\.\.{high}$"):
        encode(label_map([[1, stranger]]), 2)


def test_coco_counts_run_along_columns() -> None:
    labels = label_map([[0, 1, 1], [1, 0, 3]])
    assert encode_coco(labels, 3) == [
        {"size": [2, 3], "counts": "121O0"},
        {"size": [2, 3], "counts": "6"},
        {"size": [2, 3], "counts": "51"},
    ]


@each_case
def test_coco_equals_pycocotools(labels: Int32, n: int) -> None:
    assert_as_pycocotools(labels, n)


@given(label_maps)
def test_coco_equals_pycocotools_on_any_map(labels: Int32) -> None:
    assert_as_pycocotools(labels, LABELS)


def test_coco_equals_pycocotools_on_a_full_image() -> None:
    assert_as_pycocotools(ellipses(300), 310)


def assert_decodes(labels: Int32, n: int) -> None:
    for packed, mask in zip(encode_coco(labels, n), split_label_map(labels, n), strict=True):
        found = decode_coco(packed["counts"], labels.shape)
        assert [part.tolist() for part in found] == [part.tolist() for part in mask]


@each_case
def test_decode_coco_is_the_inverse(labels: Int32, n: int) -> None:
    assert_decodes(labels, n)


@given(label_maps)
def test_decode_coco_is_the_inverse_on_any_map(labels: Int32) -> None:
    assert_decodes(labels, LABELS)


def test_decode_coco_on_a_full_image() -> None:
    assert_decodes(ellipses(300), 310)


def test_decode_coco_of_numbers_and_of_an_end_that_is_missing() -> None:
    for counts in ([1, 2, 3], [1, 2], [1, 2, 0, 0, 3]):
        assert [part.tolist() for part in decode_coco(counts, (2, 3))] == [[1, 3], [1, 1]]
    assert [part.tolist() for part in decode_coco([], (2, 3))] == [[], []]
    assert [part.tolist() for part in decode_coco("", (0, 3))] == [[], []]


@pytest.mark.parametrize("counts", ["~", "a", "é", "P" * 9 + "0", "0l", "7", [7], [3, 4], [-1, 2], [2, -1]])
def test_decode_coco_refuses_what_pycocotools_writes_past_its_memory_for(counts: str | list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        decode_coco(counts, (2, 3))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20))
def test_decode_coco_of_any_text_is_a_mask_or_an_error(text: str) -> None:
    try:
        starts, lengths = decode_coco(text, (5, 7))
    except ValueError:
        return
    assert lengths.sum() <= 35
    assert (starts >= 0).all()
    assert (starts + lengths <= 35).all()


@each_case
def test_areas_and_boxes(labels: Int32, n: int) -> None:
    areas, boxes = areas_and_boxes(labels, n)
    assert areas.dtype == boxes.dtype == np.int64
    assert areas.tolist() == [np.count_nonzero(labels == k) for k in range(1, n + 1)]
    assert boxes.tolist() == [slow_box(labels == k) for k in range(1, n + 1)]
    assert boxes.shape == (n, 4)


@given(label_maps)
def test_boxes_on_any_map(labels: Int32) -> None:
    boxes = areas_and_boxes(labels, LABELS)[1].tolist()
    assert boxes == [slow_box(labels == k) for k in range(1, LABELS + 1)]


def test_decode_counts_from_zero() -> None:
    starts, lengths = decode("2 3  12 1 ", (3, 4))
    assert starts.dtype == lengths.dtype == np.int64
    assert (starts.tolist(), lengths.tolist()) == ([1, 11], [3, 1])


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_string_is_an_empty_mask(text: str) -> None:
    starts, lengths = decode(text, (3, 4))
    assert len(starts) == len(lengths) == 0
    assert not decode_mask(text, (3, 4)).any()


def test_runs_that_touch_are_accepted() -> None:
    assert decode_mask("1 2 3 10", (3, 4)).all()


BAD = {
    "1 a": "expected integers of at most 18 digits, found 'a'",
    "1.0 2": "expected integers of at most 18 digits, found '1.0'",
    "1_0 2": "expected integers of at most 18 digits, found '1_0'",
    "+1 2": "expected integers of at most 18 digits, found '+1'",
    "\uff11 2": "expected integers of at most 18 digits, found '\uff11'",
    "1 " + "9" * 40: f"expected integers of at most 18 digits, found '{'9' * 30}'",
    "1 2 3": "expected start length pairs, found an odd number of values (3)",
    "0 1": "pair 1 (0 1): the start is below 1",
    "-3 1": "pair 1 (-3 1): the start is below 1",
    "1 0": "pair 1 (1 0): the length is below 1",
    "1 1 3 -1": "pair 2 (3 -1): the length is below 1",
    "5 1 1 1": "pair 2 (1 1): the start is before the previous pair's",
    "1 3 3 1": "pair 2 (3 1): the start is inside the previous pair",
    "1 3 1 3": "pair 2 (1 3): the start is inside the previous pair",
    "12 2": "pair 1 (12 2): it ends past pixel 12, the last of 3 x 4",
    "13 1": "pair 1 (13 1): it ends past pixel 12, the last of 3 x 4",
    "1 " + "9" * 18: f"pair 1 (1 {'9' * 18}): it ends past pixel 12, the last of 3 x 4",
    "0 1 8 9 4 0": (
        "pair 1 (0 1): the start is below 1; pair 3 (4 0): the length is below 1; "
        "pair 3 (4 0): the start is before the previous pair's; "
        "pair 2 (8 9): it ends past pixel 12, the last of 3 x 4"
    ),
}


@pytest.mark.parametrize(("text", "reason"), BAD.items(), ids=range(len(BAD)))
def test_malformed_strings_give_every_reason(text: str, reason: str) -> None:
    for decoder in (decode, decode_mask):
        with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
            decoder(text, (3, 4))


@given(st.text("0123456789  \t-+_.\uff11x", max_size=50) | st.text("0123456789 "))
def test_integers_are_those_of_the_words(text: str) -> None:
    words = text.split()
    try:
        found = rle._integers(text)
    except ValueError:
        assert any(not re.fullmatch("-?[0-9]{1,18}", word) for word in words)
    else:
        assert (found.dtype, found.tolist()) == (np.int64, [int(word) for word in words])


@given(st.lists(st.integers(-1, 14), max_size=6))
def test_decode_accepts_exactly_what_its_rules_allow(numbers: list[int]) -> None:
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    pixels = [pixel for start, length in pairs for pixel in range(start, start + length)]
    good = (
        len(numbers) % 2 == 0
        and all(length >= 1 for _, length in pairs)
        and pixels == sorted(set(pixels))
        and set(pixels) <= set(range(1, 13))
    )
    try:
        starts, lengths = decode(" ".join(map(str, numbers)), (3, 4))
    except ValueError:
        assert not good
    else:
        assert good
        assert list(zip(starts + 1, lengths, strict=True)) == pairs


def test_decode_label_map_without_masks_is_background() -> None:
    assert decode_label_map([], (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_decode_label_map_refuses_overlap() -> None:
    with pytest.raises(ValueError, match=r"^labels 1 and 3 share 2 pixel\(s\)$"):
        decode_label_map(["1 3", "6 1", "2 4"], (3, 4))


@pytest.mark.parametrize("at_once", [1, 2, 1 << 20])
@given(masks=st.lists(arrays(np.bool_, (4, 5)), max_size=6))
def test_shared_pixels_equal_those_of_each_two_masks(masks: list[Bool], at_once: int) -> None:
    runs = [decode(slow_rle(mask), (4, 5)) for mask in masks]
    expected = [
        (i, j, int((masks[i] & masks[j]).sum()))
        for i, j in combinations(range(len(masks)), 2)
        if (masks[i] & masks[j]).any()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle, "_PAIRS_AT_ONCE", at_once)
        assert shared_pixels(runs) == expected


@pytest.mark.parametrize("at_once", [2, 1 << 20])
@settings(max_examples=50)
@given(
    one=st.lists(arrays(np.bool_, (4, 5)), max_size=5), other=st.lists(arrays(np.bool_, (4, 5)), max_size=5)
)
def test_cross_pixels_equal_those_of_each_mask_with_each_other(
    one: list[Bool], other: list[Bool], at_once: int
) -> None:
    dense = np.array([[int((a & b).sum()) for b in other] for a in one], np.int64).reshape(
        len(one), len(other)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle, "_PAIRS_AT_ONCE", at_once)
        found = cross_pixels(*([decode(slow_rle(mask), (4, 5)) for mask in masks] for masks in (one, other)))
    assert [part.dtype for part in found] == [np.int64] * 3
    rows, columns = dense.nonzero()
    assert [part.tolist() for part in found] == [x.tolist() for x in (rows, columns, dense[rows, columns])]


@settings(max_examples=50)
@given(st.lists(arrays(np.bool_, (4, 5)), max_size=6))
def test_areas_are_pixels(masks: list[Bool]) -> None:
    found = areas([decode(slow_rle(mask), (4, 5)) for mask in masks])
    assert (found.dtype, found.tolist()) == (np.int64, [int(mask.sum()) for mask in masks])


def test_pixels_are_shared_beyond_where_numbers_can_be_packed() -> None:
    far = 10**18
    one = [(np.array([far, far + 20]), np.array([10, 5])), (np.array([3]), np.array([2]))]
    other = [(np.array([4, far + 8]), np.array([9, 14]))]
    found = cross_pixels(one * 5, other * 2)
    assert [part.tolist() for part in found] == [
        [i for i in range(10) for _ in range(2)],
        [0, 1] * 10,
        [4 if i % 2 == 0 else 1 for i in range(10) for _ in range(2)],
    ]
    assert shared_pixels([one[0], other[0]]) == [(0, 1, 4)]


several = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda size_hw: st.tuples(st.just(size_hw), st.lists(arrays(np.bool_, size_hw), max_size=4))
)


@given(several)
def test_masks_that_may_share_pixels_are_written_as_each_by_itself(
    drawn: tuple[tuple[int, int], list[Bool]],
) -> None:
    size_hw, masks = drawn
    runs = [decode(slow_rle(mask), size_hw) for mask in masks]
    alone = [encode_coco(mask.astype(np.int32), 1)[0] for mask in masks]
    assert encode_coco_masks(runs, size_hw) == alone
    areas, boxes = mask_areas_and_boxes(runs, size_hw[1])
    assert areas.tolist() == [np.count_nonzero(mask) for mask in masks]
    assert boxes.tolist() == [slow_box(mask) for mask in masks]


@given(several, st.data())
def test_the_runs_of_a_crop_are_those_of_its_pixels(
    drawn: tuple[tuple[int, int], list[Bool]], data: st.DataObject
) -> None:
    (height, width), masks = drawn
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    for mask in masks:
        full = np.zeros_like(mask)
        crop = full[y0:, x0:] = mask[y0:, x0:]
        expected = decode(slow_rle(full), (height, width))
        for mine, other in zip(crop_runs(crop, y0, x0, width), expected, strict=True):
            np.testing.assert_array_equal(mine, other)


@given(label_maps)
def test_columns_of_coco_s_text_are_the_transposed_mask_s_runs(labels: Int32) -> None:
    height, width = labels.shape
    for label, written in enumerate(encode_coco(labels, LABELS), start=1):
        flat = np.zeros(labels.size, np.bool_)
        flat[run_pixels(*decode_coco_columns(written["counts"], (height, width)))] = True
        np.testing.assert_array_equal(flat.reshape(width, height).T, labels == label)
        assert coco_pixels(written["counts"]) == labels.size


def test_columns_of_an_image_of_any_size_are_not_drawn() -> None:
    counts, size_hw = encode_coco(np.zeros((1, 1), np.int32), 1)[0]["counts"], (1 << 20, 1 << 20)
    assert [len(part) for part in decode_coco_columns(counts, size_hw)] == [0, 0]
    assert [part.tolist() for part in decode_coco_columns([5, 2, 0, 1, 3, 0], size_hw)] == [[5, 7], [2, 1]]
    assert coco_pixels(counts) == 1
