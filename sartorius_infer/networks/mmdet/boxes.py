"""The arithmetic of boxes as MMDetection does it: anchors, deltas, pyramid levels, RoIAlign.

It differs from torchvision's and Detectron2's in details that each move results: anchors are multiples of
a base size, neither rounded nor of a size of their own; sides change by a limited factor both ways.
Source: MMDetection 3.3 and 2.28 (https://github.com/open-mmlab/mmdetection), the anchor generator, the
DeltaXYWH coder and the RoI extractor of single levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sartorius_infer.manifest.mmdet import MmdetAnchors, MmdetCoder, MmdetPool
from sartorius_infer.networks import roi_align
from sartorius_infer.networks.boxes import LOG_SCALE_LIMIT, clip

Size = tuple[int, int]


def grid_anchors(grid_hw: Size, level: int, anchors: MmdetAnchors, device: torch.device) -> Tensor:
    """Anchors of one level, float32 (h * w * A, 4), rows before columns."""
    stride = anchors.strides[level]
    base = anchors.base_sizes[level] if anchors.base_sizes else float(stride)
    scales, ratios = torch.tensor(anchors.scales), torch.tensor(anchors.ratios)
    tall = ratios.sqrt()
    wide = 1 / tall
    if anchors.scale_major:
        widths, heights = (base * side[:, None] * scales for side in (wide, tall))
    else:
        widths, heights = (base * scales[:, None] * side for side in (wide, tall))
    halves = 0.5 * torch.stack((widths.flatten(), heights.flatten()), dim=1)  # (A, 2)
    centre = anchors.center_offset * base
    cell = torch.cat((centre - halves, centre + halves), dim=1).to(device)
    height, width = (torch.arange(n, dtype=torch.float32, device=device) * stride for n in grid_hw)
    y, x = torch.meshgrid(height, width, indexing="ij")
    corners = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (corners + cell).reshape(-1, 4)


def apply_deltas(deltas: Tensor, boxes: Tensor, coder: MmdetCoder, size_hw: Size) -> Tensor:
    """Boxes (N, k, 4) in an image of `size_hw` that deltas (N, 4 k) make of boxes (N, 4)."""
    steps = deltas.reshape(len(boxes), deltas.shape[1] // 4, 4) * deltas.new_tensor(coder.stds)
    steps = steps + deltas.new_tensor(coder.means)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:]) * 0.5  # (N, 1, 2)
    sides = boxes[:, None, 2:] - boxes[:, None, :2]
    centres = centres + sides * steps[..., :2]
    sides = sides * steps[..., 2:].clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT).exp()
    moved = torch.cat((centres - sides * 0.5, centres + sides * 0.5), dim=-1)
    return clip(moved, size_hw) if coder.clip else moved


def pyramid_level(boxes: Tensor, finest: float, levels: int) -> Tensor:
    """Which of `levels` maps each of boxes (N, 4) is pooled from, int64 (N,)."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.floor(torch.log2(sides / finest + 1e-6)).clamp(0, levels - 1).to(torch.int64)


def pool_rois(maps: Sequence[Tensor], boxes: Sequence[Tensor], pool: MmdetPool) -> Tensor:
    """RoI features (N, C, size, size) of every image's boxes (network pixels), in their order.

    maps: finest first, (B, C, h, w), of which the first ones, as many as `pool` has strides, take part.
    """
    count = len(pool.strides)
    rois = roi_align.Rois(
        maps=maps[:count],
        scales=[1 / stride for stride in pool.strides],
        levels=pyramid_level(torch.cat(list(boxes)), pool.finest, count),
        boxes=boxes,
    )
    return roi_align.pool_rois(rois, pool.size, pool.sampling_ratio, pool.aligned)
