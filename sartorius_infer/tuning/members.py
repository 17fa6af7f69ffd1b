"""What several networks saw in one image, each by itself -> what they see together, without running them.

The ensemble of `passes` fuses boxes first and then asks every mask head about the fused boxes. Here the
mask heads have spoken already, each about its own network's boxes: their masks are carried over into the
fused boxes. That is an approximation, close where the members agree on a cell's box.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sartorius_infer.ensemble.fuse import Boxes, Fused, box_iou, fuse
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.types import Bool, Float16, Float32, Int64, Prediction


def combine(members: Sequence[Prediction], weights: Sequence[float], fusion: Fusion) -> Prediction:
    """The members' predictions of one image as one, with `weights` of any scale, 0 for an absent member.

    Boxes, scores and labels are `fuse`'s. The mask of a fused box is the weighted mean of one mask of
    each member: that of its cell of the same class that overlaps the box most, resampled from its own
    box. Members without a cell that overlaps by more than `fusion.iou` have no say, the closest one
    always has. The finest of the members' mask grids sets the size. A member alone passes unchanged.

    Approximates `passes.predict` of the members together, whose mask heads see the fused boxes
    themselves, and in which each view is a voice of its own. Raises ValueError unless there is a weight
    for each member, none below 0 or infinite, and one above.
    """
    sound = all(0 <= weight < np.inf for weight in weights) and any(weight > 0 for weight in weights)
    if len(weights) != len(members) or not sound:
        raise ValueError(f"expected a weight for each of {len(members)} members, found {tuple(weights)}")
    there = [(member, weight) for member, weight in zip(members, weights, strict=True) if weight > 0]
    first = there[0][0]
    if len(there) == 1:
        return first
    boxes = [Boxes(member.boxes, member.scores, member.labels, weight) for member, weight in there]
    fused = fuse(boxes, first.size_hw, fusion)
    masks = _mean_masks([m for m, _ in there], [w for _, w in there], fused, fusion.iou)
    return Prediction(first.image_id, first.size_hw, fused.boxes, fused.scores, fused.labels, masks)


def _mean_masks(members: Sequence[Prediction], weights: Sequence[float], fused: Fused, iou: float) -> Float16:
    """Weighted mean (N, M, M) of the members' masks for each fused box."""
    chosen, overlaps = zip(*(_closest(member, fused) for member in members), strict=True)
    says = _says(np.stack(overlaps), iou)
    side = max(member.masks.shape[-1] for member in members)
    total = np.zeros((len(fused), side, side), np.float32)
    for member, weight, index, say in zip(members, weights, chosen, says, strict=True):
        mine = member[index[say]]
        total[say] += np.float32(weight / max(weights)) * resample(
            mine.masks, mine.boxes, fused.boxes[say], side
        )
    votes = (says * (np.array(weights) / max(weights))[:, None]).sum(axis=0)
    mean: Float16 = (total / votes[:, None, None]).astype(np.float16)
    return mean


def _closest(member: Prediction, fused: Fused) -> tuple[Int64, Float32]:
    """For each fused box the member's cell of its class that overlaps it most, and by what IoU; (N,) each."""
    if len(member) == 0:
        return np.zeros(len(fused), np.int64), np.full(len(fused), -1, np.float32)
    overlaps = box_iou(fused.boxes, member.boxes)  # (N, n)
    overlaps[fused.labels[:, None] != member.labels] = -1
    index = overlaps.argmax(axis=1)
    return index, overlaps[np.arange(len(index)), index]


def _says(overlaps: Float32, iou: float) -> Bool:
    """Whose mask counts: bool (members, N); averaging may move a fused box away from all its parts."""
    closest = overlaps.max(axis=0, initial=-1)
    return np.asarray((overlaps >= 0) & ((overlaps > iou) | (overlaps == closest)))


def resample(masks: Float16, boxes: Float32, targets: Float32, side: int) -> Float32:
    """Masks (N, M, M), each on a grid that spans its box, on grids (N, side, side) that span the targets.

    Bilinear between the centres of the grid's squares; beyond the outermost its values go on, which
    comes closer to what a mask head says of the larger box than zeros do. Boxes and targets (N, 4)
    xyxy; where they are the same and `side` is M, so are the masks.
    """
    down = _weights(boxes[:, 1::2], targets[:, 1::2], masks.shape[-1], side)
    across = _weights(boxes[:, 0::2], targets[:, 0::2], masks.shape[-1], side)
    resampled: Float32 = down @ masks.astype(np.float32) @ across.transpose(0, 2, 1)
    return resampled


def _weights(spans: Float32, targets: Float32, old: int, new: int) -> Float32:
    """Along one axis the share (N, new, old) of each old square in each new one; spans (N, 2)."""
    low, length = spans[:, :1].astype(np.float64), np.diff(spans.astype(np.float64))
    centres = targets[:, :1] + np.diff(targets.astype(np.float64)) * ((np.arange(new) + 0.5) / new)
    scale = np.divide(old, length, out=np.zeros_like(length), where=length > 0)
    positions = np.clip((centres - low) * scale - 0.5, 0, old - 1).astype(np.float32)
    distances = np.abs(positions[:, :, None] - np.arange(old, dtype=np.float32))
    weights: Float32 = np.maximum(1 - distances, 0)
    return weights
