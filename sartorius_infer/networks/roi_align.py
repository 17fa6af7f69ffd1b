"""RoIAlign over a pyramid (He et al., Mask R-CNN, 2017, arXiv 1703.06870), on all cores of a CPU.

Torchvision's kernel for CPUs walks through RoIs, channels and samples on one core. Here the pyramid's
pixels, channels last, are the rows of one table, each bin of a RoI is a bag of rows with bilinear
weights, and torch's embedding_bag sums the bags on all cores with vector instructions. Samples stand
where torchvision's stand; sums differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.ops import roi_align

ROWS_AT_ONCE = 1 << 22
"""Rows that are summed in one call: 32 MiB of their numbers and weights."""


@dataclass(frozen=True, eq=False)
class Rois:
    """K boxes on the maps of a pyramid.

    maps    of each level, float32 or bfloat16 (B, C, h, w)
    scales  of each level, its pixels per pixel of the boxes
    levels  int64 (K,), which of `maps` each box lies on; beyond them its features are 0
    boxes   for each image float32 (N, 4) xyxy
    """

    maps: Sequence[Tensor]
    scales: Sequence[float]
    levels: Tensor
    boxes: Sequence[Tensor]

    @cached_property
    def every(self) -> Tensor:
        """The boxes of all images, float32 (K, 4)."""
        return torch.cat(list(self.boxes))

    @cached_property
    def images(self) -> Tensor:
        """The number of the image that each box belongs to, int64 (K,)."""
        return torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(self.boxes)])


def pool_rois(rois: Rois, size: int, sampling_ratio: int, aligned: bool = False) -> Tensor:
    """RoI features (K, C, size, size), of the maps' dtype.

    sampling_ratio  samples per bin and axis; 0 takes one per pixel of the map
    aligned         pixel centres lie at half coordinates (ROIAlignV2)
    """
    features = rois.maps[0]
    fast = features.device.type == "cpu" and features.dtype in (torch.float32, torch.bfloat16)
    return (by_sums if fast else by_kernel)(rois, size, sampling_ratio, aligned)


def by_kernel(rois: Rois, size: int, sampling_ratio: int, aligned: bool = False) -> Tensor:
    """`pool_rois` by torchvision's kernel, level after level, on any device."""
    pooled = rois.maps[0].new_zeros((len(rois.every), rois.maps[0].shape[1], size, size))
    rows = torch.cat((rois.images[:, None].to(rois.every.dtype), rois.every), dim=1)
    for level, (features, scale) in enumerate(zip(rois.maps, rois.scales, strict=True)):
        here = torch.nonzero(rois.levels == level)[:, 0]
        pooled[here] = roi_align(features, rows[here], size, scale, sampling_ratio, aligned)
    return pooled


def by_sums(rois: Rois, size: int, sampling_ratio: int, aligned: bool = False) -> Tensor:
    """`pool_rois` by weighted sums in float32, on a CPU; the result lies channels last."""
    pooled = rois.maps[0].new_zeros((len(rois.every), size, size, rois.maps[0].shape[1]))
    there = torch.nonzero((rois.levels >= 0) & (rois.levels < len(rois.maps)))[:, 0]
    table = _Table(rois, there)
    for some, sums in _weighted_sums(table, size, sampling_ratio, aligned):
        pooled[there[some]] = sums.to(pooled.dtype)
    return pooled.permute(0, 3, 1, 2)


class _Table:
    """The pixels of all maps as rows float32 (P, C), and K boxes on them.

    boxes float32 (K, 4) are in pixels of their maps; first int64 (K,) is the row of each one's map's first
    pixel, hw float32 (K, 2) that map's size.
    """

    def __init__(self, rois: Rois, there: Tensor) -> None:
        batch, channels = rois.maps[0].shape[:2]
        sizes = torch.tensor([m.shape[-2:] for m in rois.maps])
        pixels = sizes.prod(dim=1)
        ends = (pixels * batch).cumsum(0)
        self.rows = rois.maps[0].new_empty((int(ends[-1]), channels), dtype=torch.float32)
        for level, rows in zip(rois.maps, torch.tensor_split(self.rows, ends[:-1]), strict=True):
            rows.view(level.permute(0, 2, 3, 1).shape).copy_(level.permute(0, 2, 3, 1))
        levels = rois.levels[there]
        self.first = (ends - pixels * batch)[levels] + rois.images[there] * pixels[levels]
        self.hw = sizes[levels].float()
        self.boxes = rois.every[there] * torch.tensor(rois.scales)[levels, None]


def _weighted_sums(
    table: _Table, size: int, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of the boxes and their features (n, size, size, C); those without samples do not come."""
    corners = table.boxes - (0.5 if aligned else 0.0)
    low, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    samples = torch.full_like(extent, sampling_ratio) if sampling_ratio else (extent / size).ceil()
    for (across, down), some in _alike(samples.long(), size):
        x, x_weights = _samples(low[some, 0], extent[some, 0], table.hw[some, 1], size, across)
        y, y_weights = _samples(low[some, 1], extent[some, 1], table.hw[some, 0], size, down)
        starts = table.first[some, None, None] + y * table.hw[some, 1, None, None].long()
        rows = starts[:, :, None, :, None] + x[:, None, :, None, :]
        weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :] / (across * down)
        bags = len(some) * size * size, 4 * across * down
        sums = F.embedding_bag(
            rows.reshape(bags), table.rows, per_sample_weights=weights.reshape(bags), mode="sum"
        )
        yield some, sums.view(len(some), size, size, -1)


def _alike(samples: Tensor, size: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """RoIs with as many samples a bin (across, down), not too many at once; those with none are left out."""
    kinds, kind = torch.unique(samples, dim=0, return_inverse=True)
    for number, (across, down) in enumerate(kinds.tolist()):
        if across > 0 and down > 0:
            most = max(1, ROWS_AT_ONCE // (size * size * 4 * across * down))
            for some in torch.split(torch.nonzero(kind == number)[:, 0], most):
                yield (across, down), some


def _samples(low: Tensor, extent: Tensor, limit: Tensor, size: int, per_bin: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the two pixels beside each sample and their weights, each (K, size, 2 * per_bin).

    low, extent, limit: float32 (K,), where a RoI begins, how long it is, and how long its map is. The
    order of operations is torchvision's, so that samples fall on the same side of a pixel.
    """
    step = (extent / size)[:, None, None]
    bins = torch.arange(size, dtype=torch.float32)[:, None]
    inside = torch.arange(per_bin, dtype=torch.float32) + 0.5
    place = low[:, None, None] + bins * step + inside * step / per_bin
    limit = limit[:, None, None]
    seen = (place >= -1.0) & (place <= limit)
    place = torch.minimum(place.clamp(min=0.0), limit - 1)
    before = place.floor()
    after = torch.minimum(before + 1, limit - 1)
    fraction = place - before
    weights = torch.stack((1 - fraction, fraction), dim=-1) * seen[..., None]
    return torch.stack((before, after), dim=-1).flatten(2).long(), weights.flatten(2)
