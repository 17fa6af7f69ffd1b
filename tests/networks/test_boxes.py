"""What several families do with boxes, each step beside a slow one and under the laws that it must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from box_factories import boxes_of, random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from sartorius_infer.errors import PredictionError
from sartorius_infer.networks.boxes import clip, finite_rows, is_longer


@given(st.integers(0, 10_000), st.integers(1, 120), st.integers(1, 120))
@settings(max_examples=40)
def test_clipped_boxes_lie_inside_and_stay_there(seed: int, height: int, width: int) -> None:
    boxes = random_boxes(seed, 20)
    before = boxes.clone()
    found = clip(boxes, (height, width))
    assert torch.equal(boxes, before)
    limit = torch.tensor([width, height, width, height])
    assert ((found >= 0) & (found <= limit)).all()
    expected = [
        [min(max(v, 0), m) for v, m in zip(box, limit.tolist(), strict=True)] for box in boxes.tolist()
    ]
    assert torch.equal(found, boxes_of(expected))
    assert torch.equal(clip(found, (height, width)), found)


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 4), (5, 0, 4), (4,), (2, 3, 4), (2, 3, 5, 4)])
def test_boxes_of_any_shape_are_clipped(shape: tuple[int, ...]) -> None:
    boxes = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50
    rows = [clip(box[None], (20, 30))[0] for box in boxes.reshape(-1, 4)]
    found = clip(boxes, (20, 30))
    assert found.shape == shape
    assert torch.equal(found, torch.stack(rows).reshape(shape) if rows else boxes)


@pytest.mark.parametrize("least", [0.0, 1.0, 12.0])
def test_boxes_stay_whose_sides_are_both_longer(least: float) -> None:
    above = float(np.nextafter(np.float32(least), np.float32(100)))
    sides = [(least, 50), (50, least), (least, least), (above, 50), (50, above), (above, above)]
    found = is_longer(boxes_of([[0, 0, width, height] for width, height in sides]), least)
    assert found.tolist() == [False, False, False, True, True, True]


def test_boxes_turned_inside_out_are_not_longer() -> None:
    assert is_longer(boxes_of([[5, 5, 3, 9], [5, 9, 9, 5], [9, 9, 5, 5]]), 0.0).tolist() == [False] * 3


@given(st.integers(0, 10_000), st.floats(0, 100))
@settings(max_examples=30)
def test_longer_is_what_the_loop_says(seed: int, least: float) -> None:
    boxes = random_boxes(seed, 30)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert is_longer(boxes, least).tolist() == [bool(w > least and h > least) for w, h in sides]


def test_no_boxes_are_longer() -> None:
    assert is_longer(torch.zeros(0, 4), 0.0).tolist() == []


def test_rows_that_are_finite() -> None:
    boxes = torch.tensor([[0.0, 1, 2, 3], [0, torch.inf, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]])
    scores = torch.tensor([[0.5], [0.5], [torch.nan], [0.1]])
    assert finite_rows("boxes", boxes, scores).tolist() == [True, False, False, True]
    assert finite_rows("boxes", boxes[:0], scores[:0]).tolist() == []
    with pytest.raises(PredictionError, match=r"boxes: expected finite values, .* in all 2"):
        finite_rows("boxes", boxes[1:3], scores[1:3])
