"""Masks of cells on square grids that span their boxes: the mean of several, on grids of any sides."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sartorius_infer.types import Float16

SIDE = 28
"""Of the grid where there is no mask to tell, and the least that memory may leave."""


class WeightedMean:
    """Weighted mean of RoI masks per image; the network with the finest grid sets the size."""

    def __init__(self, rows: int) -> None:
        self._sums: list[dict[int, Tensor]] = [{} for _ in range(rows)]
        self._weights: list[list[Tensor]] = [[] for _ in range(rows)]

    def add(self, row: int, masks: Tensor, weights: Tensor) -> None:
        """masks float32 (N, M, M); weights float32 (N,), 0 where this network has no say."""
        sums, side = self._sums[row], masks.shape[-1]
        term = masks * weights[:, None, None]
        sums[side] = sums[side] + term if side in sums else term
        self._weights[row].append(weights)

    def result(self, row: int) -> Float16:
        """Float16 (N, M, M)."""
        sums = self._sums[row]
        total = torch.stack([to_side(masks, max(sums)) for masks in sums.values()]).sum(0)
        mean = total / torch.stack(self._weights[row]).sum(0)[:, None, None]
        halves: Float16 = mean.half().cpu().numpy()
        return halves


def to_side(masks: Tensor, side: int) -> Tensor:
    """(N, M, M) resampled to (N, side, side)."""
    if masks.shape[-1] == side or len(masks) == 0:
        return masks if masks.shape[-1] == side else masks.new_zeros((0, side, side))
    return F.interpolate(masks[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def halves_to_side(masks: Float16, side: int) -> Float16:
    """Float16 (N, M, M) resampled to (N, side, side)."""
    if masks.shape[-1] == side:
        return masks
    resampled: Float16 = to_side(torch.from_numpy(masks).float(), side).half().numpy()
    return resampled


def side_within(side: int, masks: int, values: int) -> int:
    """The side of the finest grid, up to `side`, on which so many masks have no more than `values` in all.

    Never under `SIDE`, where the grid asked for is not.
    """
    return min(side, max(SIDE, math.isqrt(values // max(1, masks))))
