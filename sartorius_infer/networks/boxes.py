"""What networks of several families do with boxes, float32 (..., 4) xyxy, and with what is no number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sartorius_infer.errors import PredictionError

LOG_SCALE_LIMIT = math.log(1000.0 / 16)
"""A delta never makes a side longer than 62.5 times its anchor's."""


def clip(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) with every corner inside an image of `size_hw`."""
    height, width = size_hw
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def is_longer(boxes: Tensor, least: float) -> Tensor:
    """Whether both sides of boxes (N, 4) are longer than `least`, bool (N,)."""
    return ((boxes[:, 2:] - boxes[:, :2]) > least).all(dim=1)


def finite_rows(what: str, *rows: Tensor) -> Tensor:
    """Which rows of tensors (N, ...) are finite, bool (N,); PredictionError where none of many is.

    Where training code drops the others without a word: one overflow is noise, nothing but NaN a broken
    network.
    """
    finite = torch.stack([torch.isfinite(r).all(dim=1) for r in rows]).all(dim=0)
    if len(finite) and not bool(finite.any()):
        raise PredictionError(f"{what}: expected finite values, found NaN or infinity in all {len(finite)}")
    return finite
