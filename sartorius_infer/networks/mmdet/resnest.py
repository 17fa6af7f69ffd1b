"""ResNeSt under MMDetection's names.

Source: Zhang et al., ResNeSt: Split-Attention Networks, 2020 (arXiv 2004.08955).
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.mmdet_bodies import MmdetResNeSt
from sartorius_infer.networks.layers import RESNET_LAYERS
from sartorius_infer.networks.mmdet.resnet import (
    EXPANSION,
    Place,
    Plan,
    ResidualBlock,
    ResidualBody,
    conv3x3,
    strides,
)
from sartorius_infer.networks.split_attention import SplitAttention


class AttentiveBottleneck(ResidualBlock):
    """1 x 1, split attention over 3 x 3 convolutions, 1 x 1."""

    def __init__(self, body: MmdetResNeSt, place: Place, downsample: nn.Module | None) -> None:
        super().__init__(body.norm, downsample)
        width = body.width(place.planes)
        first, second = strides(body, place)
        averages = body.avg_down_stride and second > 1
        conv = conv3x3(width, width * body.radix, place, 1 if averages else second, body.groups * body.radix)
        self.add(1, nn.Conv2d(place.inputs, width, 1, first, bias=False))
        self.conv2 = SplitAttention(conv, width, body.radix, body.groups, body.norm, norm_name=self.norm_name)
        self.avd_layer = nn.AvgPool2d(3, second, padding=1) if averages else nn.Identity()
        self.add(3, nn.Conv2d(width, place.planes * EXPANSION, 1, bias=False))

    def residual(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 4 planes, h / stride, w / stride)."""
        return self.normed(3, self.avd_layer(self.conv2(F.relu(self.normed(1, x)))))


class ResNeSt(ResidualBody):
    """With a deep stem and shortcuts that average."""

    def __init__(self, body: MmdetResNeSt) -> None:
        super().__init__(body, Plan(RESNET_LAYERS[body.depth], AttentiveBottleneck))
