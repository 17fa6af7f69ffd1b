"""Members' predictions combined without a network: against a plain reading, and by its laws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import empty_prediction, make_prediction, random_boxes, random_prediction
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny import tiny_model, write_tiny

from sartorius_infer.ensemble.fuse import Boxes, fuse
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.tuning.members import combine, resample
from sartorius_infer.types import CellImage, Float32, Prediction

SIZE_HW = (40, 52)
FIELDS = ("boxes", "scores", "labels", "masks")

seeds = st.integers(0, 2**32 - 1)
weights = st.floats(0.05, 20)
fusions = st.builds(
    Fusion,
    method=st.sampled_from(["wbf", "nms", "soft_nms", "nmw"]),
    iou=st.sampled_from([0.0, 0.3, 0.6, 0.9]),
)
some = settings(max_examples=60, deadline=None)


def members_of(seed: int, count: int, sides: Sequence[int] = (7, 5, 9)) -> list[Prediction]:
    """Networks that see the same few cells, each a little differently, with mask grids of their own."""
    rng = np.random.default_rng(seed)
    cells = int(rng.integers(0, 12))
    boxes, labels = random_boxes(rng, cells, SIZE_HW, (6, 25)), rng.integers(1, 4, cells)
    found = []
    for index in range(count):
        seen = rng.random(cells) < 0.8
        own = (boxes + rng.normal(0, 1.5, boxes.shape))[seen].clip(0, (SIZE_HW[1], SIZE_HW[0]) * 2)
        keep = (own[:, 2:] - own[:, :2] > 1).all(axis=1)
        n, side = int(keep.sum()), sides[index % len(sides)]
        scores = -np.sort(-rng.uniform(0.1, 1, n))
        found.append(
            make_prediction(rng.random((n, side, side)), own[keep], scores, labels[seen][keep], SIZE_HW)
        )
    return found


def assert_same(one: Prediction, other: Prediction, masks: float = 0.0) -> None:
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.shape == b.shape and a.dtype == b.dtype, name
        np.testing.assert_allclose(a, b, atol=masks if name == "masks" else 1e-4 * bool(masks), rtol=0)


# The reference: one cell, one member and one square after the other.


def reference_iou(a: Float32, b: Float32) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).astype(float)
    union = (a[2:] - a[:2]).astype(float).prod() + (b[2:] - b[:2]).astype(float).prod() - sides.prod()
    return float(sides.prod() / union) if union > 0 else 0.0


def reference_at(mask: NDArray[np.floating], y: float, x: float) -> float:
    """Bilinear at a place in squares, whose centres are at 0, 1, ..; outside as at the border."""
    side = len(mask)
    y, x = min(max(y, 0.0), side - 1.0), min(max(x, 0.0), side - 1.0)
    top, left = min(int(y), side - 2), min(int(x), side - 2)
    down, across = y - top, x - left
    upper = (1 - across) * mask[top, left] + across * mask[top, left + 1]
    lower = (1 - across) * mask[top + 1, left] + across * mask[top + 1, left + 1]
    return float((1 - down) * upper + down * lower)


def reference_resampled(
    mask: NDArray[np.floating], box: Float32, target: Float32, side: int
) -> NDArray[np.floating]:
    old = len(mask)
    result = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y = target[1] + float(target[3] - target[1]) * (row + 0.5) / side
            x = target[0] + float(target[2] - target[0]) * (column + 0.5) / side
            place = [
                (p - low) / (high - low) * old - 0.5
                for p, low, high in ((y, box[1], box[3]), (x, box[0], box[2]))
            ]
            result[row, column] = reference_at(mask.astype(float), *place)
    return result


def reference_mask(
    members: Sequence[Prediction], votes: Sequence[float], box: Float32, label: int, iou: float
) -> NDArray[np.floating]:
    side = max(member.masks.shape[-1] for member in members)
    closest = []
    for member in members:
        own = [(reference_iou(box, b), -i) for i, b in enumerate(member.boxes) if member.labels[i] == label]
        closest.append(max(own, default=None))
    top = max(found[0] for found in closest if found is not None)
    total, weight = np.zeros((side, side)), 0.0
    for member, vote, found in zip(members, votes, closest, strict=True):
        if found is not None and (found[0] > iou or found[0] == top):
            total += vote * reference_resampled(member.masks[-found[1]], member.boxes[-found[1]], box, side)
            weight += vote
    return total / weight


@settings(max_examples=20, deadline=None)
@given(seeds, st.tuples(weights, weights, weights), fusions)
def test_as_the_reference(seed: int, votes: tuple[float, ...], fusion: Fusion) -> None:
    members = members_of(seed, 3)
    found = combine(members, votes, fusion)
    boxes = [Boxes(m.boxes, m.scores, m.labels, vote) for m, vote in zip(members, votes, strict=True)]
    fused = fuse(boxes, SIZE_HW, fusion)
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(fused, name))
    assert found.masks.shape == (len(fused), 9, 9) and found.masks.dtype == np.float16
    for box, label, mask in zip(found.boxes, found.labels, found.masks, strict=True):
        np.testing.assert_allclose(mask, reference_mask(members, votes, box, label, fusion.iou), atol=2e-3)


# Laws.


@some
@given(seeds, weights, fusions, st.integers(0, 2))
def test_a_member_alone_passes_unchanged(seed: int, weight: float, fusion: Fusion, place: int) -> None:
    members = [random_prediction(np.random.default_rng(seed + i), 8, SIZE_HW) for i in range(3)]
    votes = [weight if i == place else 0.0 for i in range(3)]
    assert combine(members, votes, fusion) is members[place]
    assert combine([members[0]], [weight], fusion) is members[0]


@some
@given(seeds, weights, weights, fusions, st.integers(0, 2))
def test_a_weight_of_zero_is_a_member_that_is_not_there(
    seed: int, one: float, other: float, fusion: Fusion, place: int
) -> None:
    members, votes = members_of(seed, 3), [one, other]
    votes.insert(place, 0.0)
    there = [m for i, m in enumerate(members) if i != place]
    assert_same(combine(members, votes, fusion), combine(there, [one, other], fusion))


@some
@given(seeds, st.integers(2, 4), weights)
def test_equal_members_give_themselves(seed: int, count: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    # Far apart, so that what fuses is copies alone.
    corners = np.array([[x, y] for x in (1, 20, 38) for y in (2, 22)])
    boxes = np.concatenate([corners, corners + rng.uniform(4, 12, corners.shape)], axis=1)
    scores, labels = -np.sort(-rng.uniform(0.1, 1, 6)), rng.integers(1, 4, 6)
    member = make_prediction(rng.random((6, 7, 7)), boxes, scores, labels, SIZE_HW)
    found = combine([member] * count, [weight] * count, Fusion())
    assert_same(found, member, masks=1e-3)


@some
@given(seeds, st.tuples(weights, weights, weights), st.permutations(range(3)))
def test_the_order_of_members_does_not_matter(seed: int, votes: tuple[float, ...], order: list[int]) -> None:
    members = members_of(seed, 3)
    moved = combine([members[i] for i in order], [votes[i] for i in order], Fusion())
    assert_same(moved, combine(members, votes, Fusion()), masks=2e-3)


@some
@given(seeds, weights, st.sampled_from([1e-100, 1e-3, 1e3, 1e100]), fusions)
def test_only_the_ratio_of_weights_counts(seed: int, vote: float, scale: float, fusion: Fusion) -> None:
    members = members_of(seed, 2)
    scaled = combine(members, [vote * scale, scale], fusion)
    assert_same(scaled, combine(members, [vote, 1.0], fusion), masks=1e-3)


@some
@given(seeds, fusions)
def test_masks_are_probabilities(seed: int, fusion: Fusion) -> None:
    masks = combine(members_of(seed, 3), [1, 2, 3], fusion).masks
    assert ((masks >= 0) & (masks <= 1)).all()


def test_boxes_and_scores_are_those_of_the_networks_together(tmp_path: Path) -> None:
    """Only masks are approximated: of one view, all else is what the two passes give."""
    manifest = write_tiny(tmp_path)
    save_file(tiny_model(1).state_dict(), tmp_path / "other.safetensors")
    content = json.loads(manifest.read_text())
    content["models"].append(content["models"][0] | {"name": "b", "file": "other.safetensors", "weight": 2.0})
    manifest.write_text(json.dumps(content))
    ensemble = load_ensemble([manifest], torch.device("cpu"))
    image = CellImage("image", np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8))
    (together,) = predict(ensemble, [image])
    alone = [predict(replace(ensemble, members=(m,)), [image])[0] for m in ensemble.members]
    found = combine(alone, [1.0, 2.0], ensemble.manifest.fusion)
    assert len(found) > max(map(len, alone)) > 3
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(together, name))
    assert found.masks.shape == together.masks.shape


# Single cells.


def cell(box: Sequence[float], fill: float, score: float = 0.8, label: int = 1) -> Prediction:
    return make_prediction(np.full((1, 4, 4), fill), [box], [score], [label], SIZE_HW)


def test_masks_are_the_weighted_mean() -> None:
    one, other = cell((0, 0, 10, 10), 0.2), cell((0, 0, 10, 10), 1.0)
    np.testing.assert_allclose(combine([one, other], [3, 1], Fusion()).masks, 0.4, atol=1e-3)


def test_who_sees_no_such_cell_has_no_say() -> None:
    seen = cell((0, 0, 10, 10), 0.2)
    for other in (cell((20, 20, 30, 30), 1.0), cell((0, 0, 10, 10), 1.0, label=2), empty_prediction(SIZE_HW)):
        found = combine([seen, other], [1, 1], Fusion())
        mine = (found.labels == 1) & (found.boxes[:, 0] < 15)
        np.testing.assert_allclose(found.masks[mine], 0.2, atol=1e-3)


def test_the_closest_has_a_say_however_far_it_is() -> None:
    found = combine([cell((0, 0, 10, 10), 0.2), cell((5, 0, 15, 10), 1.0)], [1, 1], Fusion(iou=0.3))
    assert len(found) == 1
    np.testing.assert_allclose(found.masks, 0.6, atol=1e-3)
    far = combine([cell((0, 0, 10, 10), 0.2), cell((9, 0, 19, 10), 1.0)], [3, 1], Fusion(iou=0.05))
    assert len(far) == 1
    np.testing.assert_allclose(far.boxes, [[2.25, 0, 12.25, 10]], atol=1e-4)
    both = combine([cell((0, 0, 10, 10), 0.2), cell((4, 0, 14, 10), 1.0)], [9, 1], Fusion(iou=0.42))
    np.testing.assert_allclose(both.masks, 0.28, atol=1e-3)


def test_nobody_sees_anything() -> None:
    found = combine([empty_prediction(SIZE_HW)] * 3, [1, 1, 1], Fusion())
    assert len(found) == 0 and found.masks.shape == (0, 28, 28)


@pytest.mark.parametrize("votes", [(), (1.0,), (1.0, 1.0, 1.0), (0.0, 0.0), (1.0, -1.0), (np.nan, np.nan)])
def test_weights_are_checked(votes: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected a weight for each of 2 members"):
        combine([empty_prediction(SIZE_HW)] * 2, votes, Fusion())


def test_resampling_into_the_same_box_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 50, SIZE_HW, (0.3, 30))
    masks = rng.random((50, 28, 28)).astype(np.float16)
    np.testing.assert_array_equal(resample(masks, boxes, boxes, 28).astype(np.float16), masks)
    assert resample(masks[:0], boxes[:0], boxes[:0], 14).shape == (0, 14, 14)


def test_a_flat_box_resamples_to_numbers() -> None:
    boxes = np.array([[3, 3, 3, 9]], np.float32)
    resampled = resample(np.ones((1, 4, 4), np.float16), boxes, boxes + 1, 4)
    np.testing.assert_array_equal(resampled, 1)
