"""Weighted boxes fusion as machine code against ensemble-boxes, its authors' own: the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from ensemble_boxes import weighted_boxes_fusion as authors
from hypothesis import given, settings
from hypothesis import strategies as st

from sartorius_infer.ensemble.wbf import weighted_boxes_fusion
from sartorius_infer.types import Float64

Sets = tuple[list[Float64], list[Float64]]


def seen_cells(seed: int, members: int, cells: int, ties: bool) -> Sets:
    """What several members see of the same cells, each most of them and a little aside."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.random((cells, 2)), rng.uniform(0.01, 0.1, (cells, 2))
    boxes, scores = [], []
    for _ in range(members):
        there = rng.random(cells) < 0.8
        some = np.hstack([corners, corners + sides])[there] + rng.normal(0, 0.005, (there.sum(), 4))
        some = np.clip(some, 0, 1)
        boxes.append(some[(some[:, 2:] > some[:, :2]).all(axis=1)])
        n = len(boxes[-1])
        scores.append(rng.choice([0.2, 0.5, 0.9], n) if ties else rng.uniform(0.05, 1, n))
    return boxes, scores


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 80), st.booleans(), st.data())
@pytest.mark.parametrize("conf_type", ["avg", "max", "box_and_model_avg", "absent_model_aware_avg"])
def test_the_authors_find_the_same(
    conf_type: str, seed: int, members: int, cells: int, ties: bool, data: st.DataObject
) -> None:
    boxes, scores = seen_cells(seed, members, cells, ties)
    weights = data.draw(st.lists(st.sampled_from([0.25, 0.3, 1.0]), min_size=members, max_size=members))
    iou = data.draw(st.sampled_from([0.3, 0.55, 0.7]))
    if not any(map(len, scores)):
        return
    found, confidence = weighted_boxes_fusion(boxes, scores, weights, iou, conf_type)
    labels = [np.zeros(len(each)) for each in scores]
    true, sure, _ = authors(boxes, scores, labels, weights=weights, iou_thr=iou, conf_type=conf_type)
    if conf_type in ("avg", "max"):
        assert np.array_equal(found, true) and np.array_equal(confidence, sure)
    else:  # they add up weights in another order, and equal scores may change places
        np.testing.assert_allclose(confidence, sure, rtol=1e-14)
        assert {*map(tuple, found)} == {*map(tuple, true)}
