"""Suppression of groups, hard and soft, beside the loop that says what it means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sartorius_infer.manifest.mmdet import MmdetNms
from sartorius_infer.networks.mmdet.nms import suppress

Found = tuple[list[int], list[float]]


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inter / (sum(areas) - inter)


def slow(boxes: Tensor, scores: Tensor, group: Tensor, rule: MmdetNms) -> Found:
    """One box after another, each against all that are left."""
    rows, left = boxes.double().tolist(), dict(enumerate(scores.double().tolist()))
    together = rule.class_agnostic and len(rows) < rule.split
    kept: Found = ([], [])
    while left:
        best = max(left, key=lambda row: (left[row], -row))
        score = left.pop(best)
        kept[0].append(best)
        kept[1].append(score)
        for row in list(left):
            if not together and group[row] != group[best]:
                continue
            overlap = iou(rows[best], rows[row])
            if rule.kind == "nms":
                if overlap > rule.iou:
                    del left[row]
                continue
            if rule.method == "gaussian":
                left[row] *= math.exp(-(overlap**2) / rule.sigma)
            elif overlap >= rule.iou:
                left[row] *= 1 - overlap if rule.method == "linear" else 0.0
            if left[row] < rule.min_score:
                del left[row]
    return kept


def crowd(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of 10 to 30 pixels, many over each other; scores that differ; three groups."""
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + draw.uniform(10, 30, (count, 2))], axis=1)
    scores = draw.permutation(count) / count * 0.9 + 0.05
    groups = torch.from_numpy(draw.integers(0, 3, count))
    return torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), groups


RULES: list[dict[str, Any]] = [
    {},
    {"iou": 0.2},
    {"class_agnostic": True},
    {"class_agnostic": True, "split": 40},
    {"kind": "soft_nms", "iou": 0.3},
    {"kind": "soft_nms", "iou": 0.3, "method": "naive"},
    {"kind": "soft_nms", "method": "gaussian", "sigma": 0.4, "min_score": 0.1},
    {"kind": "soft_nms", "iou": 0.3, "class_agnostic": True, "min_score": 0.2},
]


@pytest.mark.parametrize("options", RULES, ids=str)
@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_what_stays_is_what_the_loop_leaves(options: dict[str, Any], seed: int) -> None:
    rule, (boxes, scores, groups) = MmdetNms(**options), crowd(seed, 60)
    rows, left = suppress(boxes, scores, groups, rule)
    expected_rows, expected_left = slow(boxes, scores, groups, rule)
    assert rows.dtype == torch.int64
    assert sorted(rows.tolist()) == sorted(expected_rows)
    by_row = dict(zip(expected_rows, expected_left, strict=True))
    assert left.tolist() == pytest.approx([by_row[row] for row in rows.tolist()], abs=1e-5)
    assert left.tolist() == sorted(left.tolist(), reverse=True)


def test_every_rule_decides_otherwise_here() -> None:
    boxes, scores, groups = crowd(3, 60)
    found = [tuple(suppress(boxes, scores, groups, MmdetNms(**options))[1].tolist()) for options in RULES]
    assert len(set(found)) == len(RULES) - 1  # split in groups it is not agnostic any more
    assert found[0] == found[3]


def test_split_and_agnostic_is_by_groups() -> None:
    boxes, scores, groups = crowd(5, 60)
    by_group = suppress(boxes, scores, groups, MmdetNms())[0]
    split = suppress(boxes, scores, groups, MmdetNms(class_agnostic=True, split=60))[0]
    agnostic = suppress(boxes, scores, groups, MmdetNms(class_agnostic=True, split=61))[0]
    assert torch.equal(by_group, split)
    assert len(agnostic) < len(by_group)


def test_of_equal_scores_the_first_comes_first() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10]])
    rows, _ = suppress(boxes, torch.full((3,), 0.5), torch.tensor([2, 0, 1]), MmdetNms())
    assert rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("options", RULES[:5], ids=str)
def test_nothing_leaves_nothing(options: dict[str, Any]) -> None:
    none = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    rows, left = suppress(*none, MmdetNms(**options))
    assert (rows.tolist(), left.tolist()) == ([], [])
