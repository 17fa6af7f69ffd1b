"""The arithmetic of boxes as Detectron2 does it: anchors, deltas, clipping, pyramid levels, RoIAlign.

It differs from torchvision's in details that each move results: anchors are not rounded and stand on
fixed strides, size before ratio; nothing is dropped for being small; RoIAlign is aligned.
Source: Detectron2 0.6 (https://github.com/facebookresearch/detectron2), `modeling/anchor_generator.py`,
`box_regression.py`, `poolers.py`, `structures/boxes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sartorius_infer.manifest.detectron2 import Detectron2Pool
from sartorius_infer.networks import roi_align
from sartorius_infer.networks.boxes import LOG_SCALE_LIMIT

CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4


def grid_anchors(
    grid_hw: tuple[int, int],
    stride: int,
    sizes: Sequence[float],
    ratios: Sequence[float],
    offset: float,
    device: torch.device,
) -> Tensor:
    """Anchors of one level, float32 (h * w * len(sizes) * len(ratios), 4), rows before columns.

    At each position sizes come first, then ratios (height / width).
    """
    cells = [
        (-w / 2, -h / 2, w / 2, h / 2)
        for size in sizes
        for ratio in ratios
        for w in [math.sqrt(size**2 / ratio)]
        for h in [ratio * w]
    ]
    cell = torch.tensor(cells, dtype=torch.float32, device=device)
    height, width = (
        torch.arange(n, dtype=torch.float32, device=device) * stride + offset * stride for n in grid_hw
    )
    y, x = torch.meshgrid(height, width, indexing="ij")
    centres = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (centres + cell).reshape(-1, 4)


def apply_deltas(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes (N, 4 k) that deltas (N, 4 k), k of them for each box, make of boxes (N, 4)."""
    sizes = boxes[:, 2:] - boxes[:, :2]  # (N, 2): width, height
    centres = boxes[:, :2] + 0.5 * sizes
    dx, dy, dw, dh = (
        deltas.reshape(len(boxes), deltas.shape[1] // 4, 4) / deltas.new_tensor(weights)
    ).unbind(-1)  # each (N, k)
    x = dx * sizes[:, 0:1] + centres[:, 0:1]
    y = dy * sizes[:, 1:2] + centres[:, 1:2]
    w = dw.clamp(max=LOG_SCALE_LIMIT).exp() * sizes[:, 0:1]
    h = dh.clamp(max=LOG_SCALE_LIMIT).exp() * sizes[:, 1:2]
    corners = (x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h)
    return torch.stack(corners, dim=-1).reshape(deltas.shape)


def pyramid_level(boxes: Tensor, levels: Sequence[int]) -> Tensor:
    """The level of the pyramid (2 is a stride of 4) that each of boxes (N, 4) is pooled from, int64 (N,).

    Eqn. (1) of Lin et al., Feature Pyramid Networks for Object Detection, 2017.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(CANONICAL_LEVEL + torch.log2(areas.sqrt() / CANONICAL_SIZE + 1e-8))
    return level.clamp(levels[0], levels[-1]).to(torch.int64)


def pool_rois(
    maps: Mapping[str, Tensor], levels: Sequence[int], boxes: Sequence[Tensor], pool: Detectron2Pool
) -> Tensor:
    """RoI features (N, C, size, size) of every image's boxes (network pixels), in their order.

    maps: level "p2", "p3", ... -> (B, C, h, w), of which `levels` take part.
    """
    rois = roi_align.Rois(
        maps=[maps[f"p{level}"] for level in levels],
        scales=[0.5**level for level in levels],
        levels=pyramid_level(torch.cat(list(boxes)), levels) - levels[0],
        boxes=boxes,
    )
    return roi_align.pool_rois(rois, pool.size, pool.sampling_ratio, pool.aligned)
