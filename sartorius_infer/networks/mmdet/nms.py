"""Suppression of boxes as MMCV does it: group by group, each group's boxes moved away from all others'.

Sources: MMCV 2.1 (https://github.com/open-mmlab/mmcv), `ops/nms.py`; soft suppression: Bodla et al.,
Soft-NMS, 2017 (arXiv 1704.04503).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as hard_nms

from sartorius_infer.manifest.mmdet import MmdetNms


def suppress(boxes: Tensor, scores: Tensor, group: Tensor, rule: MmdetNms) -> tuple[Tensor, Tensor]:
    """Rows that stay, int64 (K,), best first, and their scores (K,), of boxes (N, 4), scores and groups (N,).

    Overlaps are those of boxes moved by their group, whose last bits a float32 loses: so does MMCV.
    """
    if not len(boxes):
        return group.new_zeros(0), scores
    apart = boxes
    if not rule.class_agnostic:
        apart = boxes + (group.to(boxes) * (boxes.max() + 1))[:, None]
    if rule.class_agnostic and len(boxes) < rule.split:
        rows, left = _suppress_one(boxes, scores, rule)
    else:
        groups = [torch.nonzero(group == g)[:, 0] for g in torch.unique(group)]
        found = [(some, *_suppress_one(apart[some], scores[some], rule)) for some in groups]
        rows = torch.cat([some[kept] for some, kept, _ in found])
        left = torch.cat([score for _, _, score in found])
        by_place = rows.argsort()  # so that of equal scores the first row is the first
        rows, left = rows[by_place], left[by_place]
    order = left.argsort(descending=True, stable=True)
    return rows[order], left[order]


def _suppress_one(boxes: Tensor, scores: Tensor, rule: MmdetNms) -> tuple[Tensor, Tensor]:
    """Rows that stay of boxes that all compete, and their scores."""
    if rule.kind == "soft_nms":
        return _soften(boxes, scores, rule)
    kept = hard_nms(boxes, scores, rule.iou)
    return kept, scores[kept]


def _soften(boxes: Tensor, scores: Tensor, rule: MmdetNms) -> tuple[Tensor, Tensor]:
    """Soft suppression: the best box that is left takes score from all others, by their overlap with it.

    What falls under `min_score` is dropped when it is looked at, so never the best of all.
    """
    left, alive = scores.clone(), torch.ones_like(scores, dtype=torch.bool)
    order: list[Tensor] = []
    while bool(alive.any()):
        best = torch.where(alive, left, -torch.inf).argmax()
        order.append(best)
        alive[best] = False
        iou = box_iou(boxes[best][None], boxes)[0].nan_to_num(0.0)
        left = torch.where(alive, left * _worth(iou, rule), left)
        alive &= left >= rule.min_score
    rows = torch.stack(order)
    return rows, left[rows]


def _worth(iou: Tensor, rule: MmdetNms) -> Tensor:
    """What boxes of an overlap (N,) with a better one keep of their score, (N,)."""
    if rule.method == "gaussian":
        return torch.exp(-(iou * iou) / rule.sigma)
    less = 1 - iou if rule.method == "linear" else torch.zeros_like(iou)
    return torch.where(iou >= rule.iou, less, torch.ones_like(iou))
