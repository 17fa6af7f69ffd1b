"""The bodies of Detectron2's networks and of its ResNeSt forks': children carry their names.

Sources: Detectron2 0.6 (https://github.com/facebookresearch/detectron2), `modeling/backbone/resnet.py`;
https://github.com/zhanghang1989/detectron2-ResNeSt, `modeling/backbone/resnet.py` and `splat.py`.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.detectron2 import Detectron2Body
from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.deformable import DeformableConv, OffsetConv
from sartorius_infer.networks.layers import RESNET_LAYERS, Conv
from sartorius_infer.networks.split_attention import SplitAttention

NO_NORM = Norm()


class Stem(nn.Module):
    """Convolution of stride 2 and max pooling of stride 2."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv(3, channels, 7, norm, stride=2, bias=False)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, H / 4, W / 4)."""
        pooled: Tensor = self.pool(F.relu(self.conv1(x)))
        return pooled


class DeepStem(nn.Module):
    """Three convolutions, the first of stride 2, and max pooling of stride 2."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1_1 = Conv(3, channels // 2, 3, norm, stride=2, bias=False)
        self.conv1_2 = Conv(channels // 2, channels // 2, 3, norm, bias=False)
        self.conv1_3 = Conv(channels // 2, channels, 3, norm, bias=False)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, H / 4, W / 4)."""
        for conv in (self.conv1_1, self.conv1_2, self.conv1_3):
            x = F.relu(conv(x))
        pooled: Tensor = self.pool(x)
        return pooled


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, for ResNet-18 and 34."""

    def __init__(self, inputs: int, outputs: int, stride: int, body: Detectron2Body) -> None:
        super().__init__()
        norm = body.norm
        self.shortcut = (
            Conv(inputs, outputs, 1, norm, stride=stride, bias=False) if inputs != outputs else None
        )
        self.conv1 = Conv(inputs, outputs, 3, norm, stride=stride, bias=False)
        self.conv2 = Conv(outputs, outputs, 3, norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        out = self.conv2(F.relu(self.conv1(x)))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 (grouped in a ResNeXt, perhaps deformable), 1 x 1 and a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        inner: int,
        stride: int,
        body: Detectron2Body,
        offset_groups: int,
        deformable: bool,
    ) -> None:
        super().__init__()
        norm = body.norm
        first, second = (stride, 1) if body.stride_in_1x1 else (1, stride)
        self.shortcut = (
            Conv(inputs, outputs, 1, norm, stride=stride, bias=False) if inputs != outputs else None
        )
        self.conv1 = Conv(inputs, inner, 1, norm, stride=first, bias=False)
        self.conv2_offset = _offsets(inner, second, body, offset_groups) if deformable else None
        self.conv2 = _conv3x3(inner, inner, norm, body, deformable, stride=second, groups=body.groups)
        self.conv3 = Conv(inner, outputs, 1, norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        inner = F.relu(self.conv1(x))
        moves = () if self.conv2_offset is None else (self.conv2_offset(inner),)
        out = self.conv3(F.relu(self.conv2(inner, *moves)))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class SplitBlock(nn.Module):
    """1 x 1, split attention on a 3 x 3, 1 x 1 and a shortcut; both ways halve by averaging."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        inner: int,
        stride: int,
        body: Detectron2Body,
        offset_groups: int,
        deformable: bool,
    ) -> None:
        super().__init__()
        norm, wide = body.norm, inner * body.radix
        # The average of the way through counts the padding around the map, that of the shortcut has none.
        self.halve = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.shortcut_pool = nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.shortcut = Conv(inputs, outputs, 1, norm, bias=False) if inputs != outputs else None
        self.conv1 = Conv(inputs, inner, 1, norm, bias=False)
        self.conv2_offset = _offsets(inner, 1, body, offset_groups) if deformable else None
        conv = _conv3x3(inner, wide, NO_NORM, body, deformable, groups=body.radix)
        self.conv2 = SplitAttention(conv, inner, body.radix, 1, norm)
        self.conv3 = Conv(inner, outputs, 1, norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        inner = F.relu(self.conv1(x))
        moves = () if self.conv2_offset is None else (self.conv2_offset(inner),)
        out = self.conv3(self.halve(self.conv2(inner, *moves)))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(self.shortcut_pool(x))))


def _conv3x3(
    inputs: int,
    outputs: int,
    norm: Norm,
    body: Detectron2Body,
    deformable: bool,
    *,
    stride: int = 1,
    groups: int,
) -> Conv:
    if deformable:
        return DeformableConv(inputs, outputs, 3, norm, stride=stride, groups=groups, bias=False,
                              modulated=body.modulated)  # fmt: skip
    return Conv(inputs, outputs, 3, norm, stride=stride, groups=groups, bias=False)


def _offsets(inner: int, stride: int, body: Detectron2Body, groups: int) -> OffsetConv:
    return OffsetConv(
        inner,
        deformable_groups=body.deformable_groups,
        modulated=body.modulated,
        stride=stride,
        groups=groups,
    )


class ResNet(nn.Module):
    """Stem and the stages res2 to res5.

    offset_groups  groups of the convolutions that move taps: 1 in Detectron2, in its ResNeSt fork as many as
                   of taps that move together
    """

    def __init__(self, body: Detectron2Body, offset_groups: int = 1) -> None:
        super().__init__()
        self.body, self.offset_groups = body, offset_groups
        inputs = body.stem_channels
        if body.radix > 1:
            inputs = 64 if body.depth == 50 else 128
            self.stem: nn.Module = DeepStem(inputs, body.norm)
        else:
            self.stem = Stem(inputs, body.norm)
        outputs, inner = body.res2_channels, body.groups * body.width_per_group
        for stage, blocks in enumerate(RESNET_LAYERS[body.depth], start=2):
            layers: list[nn.Module] = []
            for index in range(blocks):
                stride = 2 if index == 0 and stage > 2 else 1  # res2 keeps the stem's stride
                layers.append(self._block(stage, inputs, outputs, inner, stride))
                inputs = outputs
            self.add_module(f"res{stage}", nn.Sequential(*layers))
            outputs, inner = outputs * 2, inner * 2

    def _block(self, stage: int, inputs: int, outputs: int, inner: int, stride: int) -> nn.Module:
        body, deformable = self.body, stage in self.body.deformable
        if body.depth < 50:
            return BasicBlock(inputs, outputs, stride, body)
        kind = SplitBlock if body.radix > 1 else BottleneckBlock
        return kind(inputs, outputs, inner, stride, body, self.offset_groups, deformable)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Stage -> (B, C, h, w) of images (B, 3, H, W)."""
        x = self.stem(x)
        stages = {}
        for stage in range(2, 6):
            x = self.get_submodule(f"res{stage}")(x)
            stages[stage] = x
        return stages
