"""Many box sets of one image -> one.

Sources: weighted boxes fusion, Solovyev et al., arXiv:1910.13302 (`wbf`); soft-NMS, Bodla et al.,
arXiv:1704.04503, and non-maximum weighted, Zhou et al., ICCVW 2017, by ensemble-boxes; this room guards
what it does with unusual input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.cells.claim import leading_label
from sartorius_infer.types import Bool, Float32, Int64

if TYPE_CHECKING:
    from sartorius_infer.manifest.manifest import Fusion

FAINTEST = 1e-30
"""A score times its relative weight up to this counts as 0: clusters are summed in float32."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The detections of one network in one view, in image pixels.

    boxes float32 (N, 4) xyxy; scores float32 (N,) in [0, 1]; labels int64 (N,) 1..K, 0 for no class;
    `weight` is the member's vote.
    """

    boxes: Float32
    scores: Float32
    labels: Int64
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Fused:
    """One box set: as `Boxes`, best first."""

    boxes: Float32
    scores: Float32
    labels: Int64

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: Bool | Int64) -> Fused:
        return Fused(self.boxes[keep], self.scores[keep], self.labels[keep])


def fuse(members: Sequence[Boxes], size_hw: tuple[int, int], fusion: Fusion, whole: bool = True) -> Fused:
    """The box sets of all networks and views as one.

    A single set passes unchanged: its own NMS has spoken. Among several, boxes with a score of 0 or
    no area in the image have no say, and only the ratios of the weights count. Scores stay in [0, 1].
    Boxes of no class take that of the surest box of another network that they overlap as much as boxes of
    one cell do, else the image's leading class, so that they change no vote about it; the first class where
    nobody tells any. Where this is not the `whole` image, they have no class yet.
    """
    # Relative to the greatest, no weight overflows, and methods that only choose keep their scale.
    top = max((member.weight for member in members), default=1.0)
    members = [replace(member, weight=member.weight / top) for member in members]
    members = _with_classes(members, fusion.iou, whole)
    if len(members) == 1:
        boxes, scores, labels = members[0].boxes, members[0].scores, members[0].labels
    else:
        boxes, scores, labels = _fuse_by_class(members, size_hw, fusion)
    order = np.argsort(-scores, kind="stable")
    return Fused(boxes[order], scores[order], labels[order])


def leading_class(scores: Float32, labels: Int64) -> int:
    """The class that leads in an image, by its boxes' scores and labels (N,); the first where it has none."""
    return leading_label(scores, labels, np.zeros(labels.max(initial=1), np.float32), "surest") or 1


def _with_classes(members: Sequence[Boxes], iou: float, whole: bool) -> list[Boxes]:
    """The same, but every box of a class, as far as this is the whole image or another box tells."""
    if all((member.labels > 0).all() for member in members):
        return list(members)
    known = [member.labels > 0 for member in members]
    boxes = np.concatenate([m.boxes[k] for m, k in zip(members, known, strict=True)])
    scores = np.concatenate([m.scores[k] * np.float32(m.weight) for m, k in zip(members, known, strict=True)])
    labels = np.concatenate([m.labels[k] for m, k in zip(members, known, strict=True)])
    lead = leading_class(scores, labels) if whole else 0
    # One more column, which overlaps everything and is the least sure, leads where nothing else overlaps.
    sureness, classes = np.append(scores, -1), np.append(labels, lead)
    named = []
    for member, told in zip(members, known, strict=True):
        near = np.pad(box_iou(member.boxes[~told], boxes) >= iou, ((0, 0), (0, 1)), constant_values=True)
        own = member.labels.copy()
        own[~told] = classes[np.where(near, sureness, -2).argmax(axis=1)]
        named.append(replace(member, labels=own))
    return named


def _fuse_by_class(
    members: Sequence[Boxes], size_hw: tuple[int, int], fusion: Fusion
) -> tuple[Float32, Float32, Int64]:
    """Each class by itself, on boxes scaled to [0, 1] as the methods want them."""
    scale = np.array([size_hw[1], size_hw[0]] * 2, dtype=np.float64)
    parts = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))]
    weights = [member.weight for member in members]
    for label in sorted({int(label) for member in members for label in member.labels}):
        chosen = _strongest([_of_class(m, label, scale, fusion) for m in members], fusion.max_boxes)
        if any(len(some) for _, some in chosen):
            fused, confidence = _METHODS[fusion.method](chosen, weights, fusion)
            parts.append((fused, confidence, np.full(len(confidence), label)))
    boxes: Float32 = (np.clip(np.concatenate([p[0] for p in parts]), 0, 1) * scale).astype(np.float32)
    scores: Float32 = np.clip(np.concatenate([p[1] for p in parts]), 0, 1).astype(np.float32)
    labels: Int64 = np.concatenate([p[2] for p in parts]).astype(np.int64)
    return boxes, scores, labels


Unit = tuple[NDArray[np.float64], NDArray[np.float64]]


def _of_class(member: Boxes, label: int, scale: NDArray[np.float64], fusion: Fusion) -> Unit:
    """Boxes and scores of one class that can take part, boxes in [0, 1]."""
    boxes = np.clip(member.boxes.astype(np.float64) / scale, 0, 1)
    scores = member.scores.astype(np.float64)
    keep = (member.labels == label) & (member.scores >= fusion.skip_score)
    keep &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (scores * member.weight > FAINTEST)
    return boxes[keep], scores[keep]


def _strongest(sets: list[Unit], limit: int) -> list[Unit]:
    """All sets cut at the score of the `limit`-th best box: matching every pair is quadratic."""
    scores = np.concatenate([s for _, s in sets])
    if len(scores) <= limit:
        return sets
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    keeps = np.split(rank < limit, np.cumsum([len(s) for _, s in sets])[:-1])
    return [(boxes[keep], scores[keep]) for (boxes, scores), keep in zip(sets, keeps, strict=True)]


def _wbf(sets: list[Unit], weights: list[float], fusion: Fusion) -> Unit:
    from sartorius_infer.ensemble.wbf import weighted_boxes_fusion

    boxes, scores = zip(*sets, strict=True)
    return weighted_boxes_fusion(boxes, scores, weights, fusion.iou, fusion.conf_type)


def _nms(sets: list[Unit], weights: list[float], fusion: Fusion) -> Unit:
    from ensemble_boxes import nms

    boxes, scores, _ = nms(*_as_lists(_weighted(sets, weights)), iou_thr=fusion.iou)
    return boxes, scores


def _soft_nms(sets: list[Unit], weights: list[float], fusion: Fusion) -> Unit:
    from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

    pairs = _weighted(sets, weights)
    boxes, scores = np.concatenate([b for b, _ in pairs]), np.concatenate([s for _, s in pairs])
    # The library's own soft_nms returns the scores from before they decayed; its inner routine
    # leaves the decayed ones, in the order of the boxes that it keeps, in the array it is given.
    decayed = scores.copy()
    keep = cpu_soft_nms_float(boxes.copy(), decayed, fusion.iou, fusion.sigma, fusion.soft_score, 2)
    return boxes[keep], decayed[decayed > fusion.soft_score]


def _nmw(sets: list[Unit], weights: list[float], fusion: Fusion) -> Unit:
    from ensemble_boxes import non_maximum_weighted

    boxes, scores, _ = non_maximum_weighted(*_as_lists(sets), weights=weights, iou_thr=fusion.iou)
    return boxes, scores


# What fuses is imported where it is used: numba takes seconds to load, which one network without views
# need not wait.
_METHODS = {"wbf": _wbf, "nms": _nms, "soft_nms": _soft_nms, "nmw": _nmw}


def _as_lists(sets: list[Unit]) -> tuple[list[object], list[object], list[object]]:
    """Boxes, scores and labels per member, with one label for all."""
    return [b for b, _ in sets], [s for _, s in sets], [np.zeros(len(s)) for _, s in sets]


def _weighted(sets: list[Unit], weights: list[float]) -> list[Unit]:
    """Scores times their member's weight, of which the greatest is 1."""
    return [(boxes, scores * weight) for (boxes, scores), weight in zip(sets, weights, strict=True)]


def box_iou(a: Float32, b: Float32) -> Float32:
    """Intersection over union of every pair of xyxy boxes, float32 (N, M); 0 where both are empty."""
    ax0, ay0, ax1, ay1 = a.T[:, :, None]  # (N, 1) each
    bx0, by0, bx1, by1 = b.T[:, None]  # (1, M) each
    inter = _area(np.maximum(ax0, bx0), np.maximum(ay0, by0), np.minimum(ax1, bx1), np.minimum(ay1, by1))
    union = _area(ax0, ay0, ax1, ay1) + _area(bx0, by0, bx1, by1) - inter
    result: Float32 = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return result


def _area(x0: Float32, y0: Float32, x1: Float32, y1: Float32) -> Float32:
    area: Float32 = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
    return area
