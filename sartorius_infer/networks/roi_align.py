"""RoIAlign over a pyramid (He et al., Mask R-CNN, 2017, arXiv 1703.06870), on all cores of a CPU.

Torchvision's kernel for CPUs walks through RoIs, channels and samples on one core. Here the pyramid's
pixels, channels last, are the rows of one table, each bin of a RoI is a bag of rows with bilinear
weights, and torch's embedding_bag sums the bags on all cores with vector instructions. Samples stand
where torchvision's stand; sums differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.ops import roi_align

ROWS_AT_ONCE = 1 << 22
"""Rows that are summed in one call: 32 MiB of their numbers and weights."""


def pool_rois(
    maps: Sequence[Tensor],
    scales: Sequence[float],
    levels: Tensor,
    boxes: Sequence[Tensor],
    size: int,
    sampling_ratio: int,
    aligned: bool = False,
) -> Tensor:
    """RoI features float32 (K, C, size, size) of every image's boxes, in their order.

    maps            of each level, float32 (B, C, h, w)
    scales          of each level, its pixels per pixel of the boxes
    levels          int64 (K,), which of `maps` each box is pooled from; beyond them its features are 0
    boxes           for each image float32 (N, 4) xyxy
    sampling_ratio  samples per bin and axis; 0 takes one per pixel of the map
    aligned         pixel centres lie at half coordinates (ROIAlignV2)
    """
    every = torch.cat(list(boxes))
    images = torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(boxes)])
    if every.device.type == "cpu" and maps[0].dtype == torch.float32:
        pooled = maps[0].new_zeros((len(every), size, size, maps[0].shape[1]))
        there = torch.nonzero((levels >= 0) & (levels < len(maps)))[:, 0]
        table = _Table(maps, scales, levels[there], images[there])
        for some, sums in _weighted_sums(table, every[there], size, sampling_ratio, aligned):
            pooled[there[some]] = sums
        return pooled.permute(0, 3, 1, 2)
    pooled = maps[0].new_zeros((len(every), maps[0].shape[1], size, size))
    rois = torch.cat((images[:, None].to(every.dtype), every), dim=1)
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        here = torch.nonzero(levels == level)[:, 0]
        pooled[here] = roi_align(features, rois[here], size, scale, sampling_ratio, aligned)
    return pooled


class _Table:
    """The pixels of all maps as rows (P, C), and where in it the map of each of K RoIs lies.

    first int64 (K,) is the row of the map's first pixel, hw float32 (K, 2) its size, scale (K,) its pixels
    per pixel of the boxes.
    """

    def __init__(
        self, maps: Sequence[Tensor], scales: Sequence[float], levels: Tensor, images: Tensor
    ) -> None:
        sizes = torch.tensor([m.shape[-2:] for m in maps])
        pixels = sizes.prod(dim=1)
        ends = (pixels * len(maps[0])).cumsum(0)
        before = ends - pixels * len(maps[0])
        self.rows = maps[0].new_empty((int(ends[-1]), maps[0].shape[1]))
        for level, rows in zip(maps, torch.tensor_split(self.rows, ends[:-1]), strict=True):
            rows.view(level.permute(0, 2, 3, 1).shape).copy_(level.permute(0, 2, 3, 1))
        self.first = before[levels] + images * pixels[levels]
        self.hw = sizes[levels].float()
        self.scale = torch.tensor(scales)[levels]


def _weighted_sums(
    table: _Table, boxes: Tensor, size: int, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of the boxes and their features (n, size, size, C); those without samples do not come."""
    corners = boxes * table.scale[:, None] - (0.5 if aligned else 0.0)
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
