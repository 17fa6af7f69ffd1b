"""What users run today, written as they write it: the opponents of every ratio.

None of it calls the kit. Images are uint8 (H, W), masks full canvases, rows "start length" strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
Canvas = NDArray[np.bool_]
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes of the four flips."""


def as_tensor(pixels: NDArray[np.uint8], device: torch.device = CPU) -> Tensor:
    """Float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([pixels] * 3)).float().to(device) / 255


@torch.no_grad()
def notebook(
    model: Any,
    pixels: NDArray[np.uint8],
    floors: Sequence[float],
    min_area: int,
    device: torch.device = CPU,
) -> list[str]:
    """The usual notebook: one image at a time through `model(images)`, then loops over canvases.

    floors: a score threshold for each label, by label - 1.
    """
    seen = model([as_tensor(pixels, device)])[0]
    return rows(seen["masks"], seen["scores"], seen["labels"], floors, min_area)


def rows(masks: Tensor, scores: Tensor, labels: Tensor, floors: Sequence[float], min_area: int) -> list[str]:
    """From soft masks on full canvases (N, 1, H, W), best first, to run lengths."""
    canvases = [
        mask[0].cpu().numpy() > 0.5
        for mask, score, label in zip(masks, scores, labels, strict=True)
        if float(score) >= floors[int(label) - 1]
    ]
    return [scan(canvas) for canvas in disjoint(canvases) if canvas.sum() >= max(1, min_area)]


@torch.no_grad()
def notebook_ensemble(
    models: Sequence[Any],
    pixels: NDArray[np.uint8],
    floors: Sequence[float],
    min_area: int,
    flips: Sequence[tuple[int, ...]] = FLIPS,
    device: torch.device = CPU,
) -> list[str]:
    """Every network whole in every flip, all their masks pooled, then NMS between masks and the loops."""
    image = as_tensor(pixels, device)
    pooled: list[tuple[float, Canvas]] = []
    for model in models:
        for axes in flips:
            seen = model([image.flip(axes) if axes else image])[0]
            masks = seen["masks"].flip(axes) if axes else seen["masks"]
            for mask, score, label in zip(masks, seen["scores"], seen["labels"], strict=True):
                if float(score) >= floors[int(label) - 1]:
                    pooled.append((float(score), mask[0].cpu().numpy() > 0.5))
    pooled.sort(key=lambda cell: -cell[0])
    canvases = disjoint(mask_nms([canvas for _, canvas in pooled], 0.5))
    return [scan(canvas) for canvas in canvases if canvas.sum() >= max(1, min_area)]


def mask_nms(canvases: Sequence[Canvas], most: float) -> list[Canvas]:
    """Those, best first, whose IoU with no better one exceeds `most`; one pair of canvases at a time."""
    kept: list[Canvas] = []
    for canvas in canvases:
        if all(_iou(canvas, other) <= most for other in kept):
            kept.append(canvas)
    return kept


def _iou(one: Canvas, other: Canvas) -> float:
    union = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / union) if union else 0.0


def disjoint(canvases: Sequence[Canvas]) -> list[Canvas]:
    """Each without the pixels of all before it."""
    kept: list[Canvas] = []
    for canvas in canvases:
        own = canvas.copy()
        for other in kept:
            both = np.logical_and(own, other)
            if both.sum() > 0:
                own[both] = False
        kept.append(own)
    return kept


def scan(canvas: Canvas) -> str:
    """One mask's row: the whole canvas is read for its runs."""
    padded = np.concatenate([[0], canvas.ravel().astype(np.int8), [0]])
    changes = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    changes[1::2] -= changes[::2]
    return " ".join(str(number) for number in changes)
