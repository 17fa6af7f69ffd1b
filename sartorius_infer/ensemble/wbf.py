"""Weighted boxes fusion as machine code: what ensemble-boxes answers, in a thirtieth of its time.

Source: Solovyev et al., arXiv:1910.13302. Its rounding is ensemble-boxes' own, so that boxes and scores are
the same bits: a cluster's sums are float32, a box that is alone stays float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sartorius_infer.machine_code import machine_code
from sartorius_infer.types import Float64, Int64


def weighted_boxes_fusion(
    boxes: Sequence[Float64], scores: Sequence[Float64], weights: Sequence[float], iou: float, conf_type: str
) -> tuple[Float64, Float64]:
    """The boxes of all members as one set, best first: boxes float64 (N, 4), scores float64 (N,).

    Of each member boxes (n, 4) xyxy in [0, 1] of some area, scores (n,) above 0 and its weight. Boxes whose
    IoU with a cluster's mean is above `iou` join the one where it is highest. `conf_type` is avg, max,
    box_and_model_avg or absent_model_aware_avg: how the score of a cluster follows from those of its boxes.
    """
    sizes = [len(each) for each in scores]
    members = np.repeat(np.arange(len(sizes)), sizes)
    votes = np.array(weights, np.float64)
    flat = np.concatenate(scores) * votes[members]
    order = flat.argsort()[::-1]
    flat, members = flat[order], members[order]
    owners, means, sums, tops, shares = _cluster(
        np.concatenate(boxes)[order], flat, votes[members], np.float64(iou)
    )
    counts = np.bincount(owners, minlength=len(means))
    alone = counts == 1
    score = tops if conf_type == "max" else sums / counts
    score, shares = (np.where(alone, each, each.astype(np.float32)) for each in (score, shares))
    score = _rescaled(score, counts, shares, owners, members, votes, conf_type)
    best = score.argsort()[::-1]
    return means[best], score[best]


def _rescaled(
    score: Float64,
    counts: Int64,
    shares: Float64,
    owners: Int64,
    members: Int64,
    votes: Float64,
    conf_type: str,
) -> Float64:
    """Scores (K,) of clusters by how many members agree; `shares` (K,) sums the weights of their boxes."""
    if conf_type == "max":
        return np.asarray(score / votes.max())
    if conf_type == "avg":
        return np.asarray(score * np.minimum(len(votes), counts) / votes.sum())
    there = np.zeros((len(counts), len(votes)), bool)
    there[owners, members] = True
    if conf_type == "box_and_model_avg":
        return np.asarray(score * counts / shares * (there @ votes) / votes.sum())
    return np.asarray(score * counts / (shares + ~there @ votes))


@machine_code
def _cluster(
    boxes: Float64, scores: Float64, weights: Float64, iou: float
) -> tuple[Int64, Float64, Float64, Float64, Float64]:
    """Boxes (N, 4), best first, into K clusters.

    The cluster of each box, int64 (N,); of each cluster its mean box, float64 (K, 4), and the sum of its
    scores, the greatest of them and the sum of its weights, float64 (K,) each.
    """
    number = len(boxes)
    owners = np.zeros(number, np.int64)
    means, totals = np.zeros((number, 4)), np.zeros((number, 4), np.float32)
    areas, sums, tops, shares = np.zeros(number), np.zeros(number), np.zeros(number), np.zeros(number)
    count = 0
    for i in range(number):
        x0, y0, x1, y1 = boxes[i]
        area = (x1 - x0) * (y1 - y0)
        best, owner = iou, count
        for k in range(count):
            width = min(means[k, 2], x1) - max(means[k, 0], x0)
            height = min(means[k, 3], y1) - max(means[k, 1], y0)
            if width > 0 and height > 0:
                shared = width * height
                overlap = shared / (areas[k] + area - shared)
                if overlap > best:
                    best, owner = overlap, k
        owners[i] = owner
        for side in range(4):
            totals[owner, side] = np.float32(totals[owner, side] + scores[i] * boxes[i, side])
        sums[owner] += scores[i]
        shares[owner] += weights[i]
        if owner == count:
            count += 1
            tops[owner] = scores[i]
            means[owner] = boxes[i]
        else:
            for side in range(4):
                means[owner, side] = np.float32(totals[owner, side] / sums[owner])
        areas[owner] = (means[owner, 2] - means[owner, 0]) * (means[owner, 3] - means[owner, 1])
    return owners, means[:count], sums[:count], tops[:count], shares[:count]
