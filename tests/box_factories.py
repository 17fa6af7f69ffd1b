"""Boxes as networks have them, float32 tensors (N, 4) xyxy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def boxes_of(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def random_boxes(seed: int, count: int, side: float = 100.0) -> Tensor:
    """Boxes (count, 4), many of them partly outside a square of `side`."""
    draw = torch.Generator().manual_seed(seed)
    corner = (torch.rand((count, 2), generator=draw) * 1.4 - 0.2) * side
    return torch.cat([corner, corner + torch.rand((count, 2), generator=draw) * side], dim=1)
