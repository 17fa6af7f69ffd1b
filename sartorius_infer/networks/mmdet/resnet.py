"""ResNet, ResNetV1d and ResNeXt under MMDetection's names, and what its other residual bodies share.

Sources: He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv 1512.03385); Xie et al.,
Aggregated Residual Transformations, 2016 (arXiv 1611.05431); the deep stem and the shortcuts that average:
He et al., Bag of Tricks for Image Classification, 2018 (arXiv 1812.01187).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul
from typing import Any, cast

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.mmdet_bodies import Deformable, MmdetRes2Net, MmdetResNeSt, MmdetResNet
from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.deformable import DeformableConv3x3
from sartorius_infer.networks.layers import RESNET_LAYERS, NormedBlock, norm_layer


@dataclass(frozen=True)
class Place:
    """Where a block stands: its inputs, its stage's inner channels, stride and dilation.

    `first` says whether it is its stage's first, `deformable` how its 3 x 3 convolutions deform.
    """

    inputs: int
    planes: int
    stride: int
    dilation: int
    first: bool
    deformable: Deformable | None


def layer_of(norm: Norm, channels: int) -> nn.Module:
    """The norm's layer; these bodies have one everywhere."""
    return cast(nn.Module, norm_layer(norm, channels))


class NumberedBlock(NormedBlock):
    """Children conv1, conv2, ... with a norm each: bn1, bn2, ..., or gn1, gn2, ... where it is by groups."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.norm_name = "gn" if norm.kind == "group" else "bn"

    def add(self, number: int, conv: nn.Conv2d) -> None:
        """A convolution and its norm as children."""
        self.add_module(f"conv{number}", conv)
        self.add_module(f"{self.norm_name}{number}", layer_of(self.norm, conv.out_channels))

    def normed(self, number: int, x: Tensor) -> Tensor:
        """What convolution and norm of that number give."""
        normed: Tensor = getattr(self, f"{self.norm_name}{number}")(getattr(self, f"conv{number}")(x))
        return normed


class ResidualBlock(NumberedBlock):
    """`residual` and a shortcut, which is `downsample` where it changes the shape."""

    def __init__(self, norm: Norm, downsample: nn.Module | None) -> None:
        super().__init__(norm)
        self.downsample = downsample

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        return F.relu(self.residual(x) + (x if self.downsample is None else self.downsample(x)))


def conv3x3(inputs: int, outputs: int, place: Place, stride: int, groups: int = 1) -> nn.Conv2d:
    """A block's 3 x 3 convolution, deformable where the block stands in such a stage."""
    shape: dict[str, Any] = {"stride": stride, "dilation": place.dilation, "groups": groups}
    deformable = place.deformable
    if deformable is None:
        return nn.Conv2d(inputs, outputs, 3, padding=place.dilation, bias=False, **shape)
    return DeformableConv3x3(
        inputs, outputs, deformable_groups=deformable.groups, modulated=deformable.modulated, **shape
    )


class BasicBlock(ResidualBlock):
    """Two 3 x 3 convolutions, of which the first alone is dilated, for ResNet-18 and 34."""

    def __init__(self, body: MmdetResNet, place: Place, downsample: nn.Module | None) -> None:
        super().__init__(body.norm, downsample)
        self.add(1, conv3x3(place.inputs, place.planes, place, place.stride))
        self.add(2, nn.Conv2d(place.planes, place.planes, 3, padding=1, bias=False))

    def residual(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, planes, h / stride, w / stride)."""
        return self.normed(2, F.relu(self.normed(1, x)))


class Bottleneck(ResidualBlock):
    """1 x 1, 3 x 3 (grouped in a ResNeXt), 1 x 1."""

    def __init__(self, body: MmdetResNet, place: Place, downsample: nn.Module | None) -> None:
        super().__init__(body.norm, downsample)
        width = body.width(place.planes)
        first, second = strides(body, place)
        self.add(1, nn.Conv2d(place.inputs, width, 1, first, bias=False))
        self.add(2, conv3x3(width, width, place, second, body.groups))
        self.add(3, nn.Conv2d(width, place.planes * EXPANSION, 1, bias=False))

    def residual(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 4 planes, h / stride, w / stride)."""
        return self.normed(3, F.relu(self.normed(2, F.relu(self.normed(1, x)))))


EXPANSION = 4
"""Outputs of a bottleneck block for each of its stage's inner channels."""


def strides(body: MmdetResNet | MmdetRes2Net | MmdetResNeSt, place: Place) -> tuple[int, int]:
    """Strides of a bottleneck block's first convolution and of its 3 x 3."""
    return (place.stride, 1) if body.stride_in_1x1 else (1, place.stride)


def deep_stem(channels: int, stride: int, norm: Norm) -> nn.Sequential:
    """Three 3 x 3 convolutions, each with norm and ReLU, the first of the stem's stride."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, channels // 2, channels // 2, channels)):
        conv = nn.Conv2d(inputs, outputs, 3, stride if not layers else 1, 1, bias=False)
        layers += [conv, layer_of(norm, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def downsampling(body: Any, place: Place, outputs: int, avg_down: bool) -> nn.Sequential | None:
    """The shortcut of a stage's first block where sizes or channels change: 1 x 1 convolution and norm.

    With `avg_down` the image is averaged first, whole or not, and over what there is of it.
    """
    if not place.first or (place.stride == 1 and place.inputs == outputs):
        return None
    stride = 1 if avg_down else place.stride
    layers: list[nn.Module] = [nn.Conv2d(place.inputs, outputs, 1, stride, bias=False)]
    layers.append(layer_of(body.norm, outputs))
    if avg_down:
        layers.insert(0, nn.AvgPool2d(place.stride, place.stride, ceil_mode=True, count_include_pad=False))
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Plan:
    """What residual bodies differ in: blocks of each stage and their kind, outputs for each inner channel."""

    blocks: tuple[int, ...]
    block: Callable[[Any, Place, nn.Module | None], nn.Module]
    expansion: int = EXPANSION
    deep_stem: bool = True
    avg_down: bool = True


class ResidualBody(NumberedBlock):
    """Stem and the stages layer1, layer2, ...

    channels, strides  of each map that it puts out
    """

    def __init__(self, body: MmdetResNet | MmdetRes2Net | MmdetResNeSt, plan: Plan) -> None:
        super().__init__(body.norm)
        self.out_indices = body.out_indices
        if plan.deep_stem:
            self.stem = deep_stem(body.stem_channels, body.stem_stride, body.norm)
        else:
            self.add(1, nn.Conv2d(3, body.stem_channels, 7, body.stem_stride, 3, bias=False))
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        inputs = body.stem_channels
        for stage in range(len(body.strides)):
            self.add_module(f"layer{stage + 1}", _stage(body, plan, stage, inputs))
            inputs = (body.base_channels << stage) * plan.expansion
        reached = list(accumulate(body.strides, mul, initial=2 * body.stem_stride))[1:]
        self.channels = tuple((body.base_channels << s) * plan.expansion for s in body.out_indices)
        self.strides = tuple(reached[s] for s in body.out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w) of each stage in `out_indices`, finest first, of images (B, 3, H, W)."""
        x = self.maxpool(self.stem(images) if hasattr(self, "stem") else F.relu(self.normed(1, images)))
        maps = []
        for stage in range(self.out_indices[-1] + 1):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            if stage in self.out_indices:
                maps.append(x)
        return tuple(maps)


def _stage(body: MmdetResNet | MmdetRes2Net | MmdetResNeSt, plan: Plan, stage: int, inputs: int) -> nn.Module:
    deformable = body.deformable
    if deformable is not None and stage not in deformable.stages:
        deformable = None
    planes, dilation = body.base_channels << stage, body.dilations[stage]
    outputs, layers = planes * plan.expansion, nn.Sequential()
    for index in range(plan.blocks[stage]):
        stride = body.strides[stage] if index == 0 else 1
        place = Place(inputs, planes, stride, dilation, index == 0, deformable)
        layers.append(plan.block(body, place, downsampling(body, place, outputs, plan.avg_down)))
        inputs = outputs
    return layers


class ResNet(ResidualBody):
    """Of basic blocks up to 34 layers, else of bottlenecks."""

    def __init__(self, body: MmdetResNet) -> None:
        basic = body.depth < 50
        block, expansion = (BasicBlock, 1) if basic else (Bottleneck, EXPANSION)
        plan = Plan(RESNET_LAYERS[body.depth], block, expansion, body.deep_stem, body.avg_down)
        super().__init__(body, plan)
