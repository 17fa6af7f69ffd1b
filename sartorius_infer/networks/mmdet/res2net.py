"""Res2Net under MMDetection's names.

Source: Gao et al., Res2Net: A New Multi-scale Backbone Architecture, 2019 (arXiv 1904.01169); the deep stem
and the shortcuts that average are those of its "v1b".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.mmdet_bodies import MmdetRes2Net
from sartorius_infer.networks.layers import RESNET_LAYERS
from sartorius_infer.networks.mmdet.resnet import (
    EXPANSION,
    Place,
    Plan,
    ResidualBlock,
    ResidualBody,
    conv3x3,
    layer_of,
    strides,
)


class Bottle2neck(ResidualBlock):
    """1 x 1, then a 3 x 3 for each part of the channels but the last, then 1 x 1.

    A part's convolution sees the part and what the one before it gave; in a stage's first block the part
    alone. The last part passes, averaged where the block strides.
    """

    def __init__(self, body: MmdetRes2Net, place: Place, downsample: nn.Module | None) -> None:
        super().__init__(body.norm, downsample)
        self.width = body.width(place.planes)
        self.first = place.first
        stride, inner = strides(body, place)
        self.add(1, nn.Conv2d(place.inputs, self.width * body.scales, 1, stride, bias=False))
        self.add(3, nn.Conv2d(self.width * body.scales, place.planes * EXPANSION, 1, bias=False))
        parts = range(body.scales - 1)
        self.convs = nn.ModuleList(conv3x3(self.width, self.width, place, inner) for _ in parts)
        self.bns = nn.ModuleList(layer_of(body.norm, self.width) for _ in parts)
        self.pool = nn.AvgPool2d(3, inner, padding=1) if inner > 1 else nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 4 planes, h / stride, w / stride)."""
        parts = torch.split(F.relu(self.normed(1, x)), self.width, dim=1)
        given: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns, strict=False):  # the last part is left
            seen = part if self.first or not given else part + given[-1]
            given.append(F.relu(norm(conv(seen))))
        return self.normed(3, torch.cat([*given, self.pool(parts[-1])], dim=1))

    def norm_pairs(self) -> list[tuple[str, str]]:
        """Of the parts too."""
        parts = [(f"convs.{index}", f"bns.{index}") for index in range(len(self.convs))]
        return super().norm_pairs() + parts


class Res2Net(ResidualBody):
    """With a deep stem and shortcuts that average."""

    def __init__(self, body: MmdetRes2Net) -> None:
        super().__init__(body, Plan(RESNET_LAYERS[body.depth], Bottle2neck))
