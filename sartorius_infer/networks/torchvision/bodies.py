"""Backbones by name, built from torchvision's classes without downloading anything."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.manifest.torchvision import NetworkParts
from sartorius_infer.networks.layers import RESNET_LAYERS, MakeNorm, make_norm
from sartorius_infer.networks.skeleton import skeleton


@dataclass(frozen=True)
class Body:
    """A feature extractor: the module, and the child name and channels of each stage, finest first."""

    module: nn.Module
    stage_names: tuple[str, ...]
    stage_channels: tuple[int, ...]
    channels_last: bool = False


def make_body(name: str, norm: Norm) -> Body:
    """The body called `name` (see `parts.BODY_PATTERN`); ConvNeXt and Swin bring a norm of their own."""
    if name.startswith("convnext"):
        return _staged(getattr(torchvision.models, name)(weights=None).features)
    if name.startswith("swin"):
        return _staged(getattr(torchvision.models, name)(weights=None).features, channels_last=True)
    if name.startswith("mobilenet"):
        return _mobilenet(make_norm(norm, name))
    return _resnet(name, make_norm(norm))


def _resnet(name: str, norm_layer: MakeNorm | None) -> Body:
    depth, groups, width = resnet_shape(name)
    block: type[BasicBlock | Bottleneck] = BasicBlock if depth < 50 else Bottleneck
    module = ResNet(
        block, list(RESNET_LAYERS[depth]), groups=groups, width_per_group=width, norm_layer=norm_layer
    )
    channels = tuple(planes * block.expansion for planes in (64, 128, 256, 512))
    return Body(module, ("layer1", "layer2", "layer3", "layer4"), channels)


def resnet_shape(name: str) -> tuple[int, int, int]:
    """Depth, groups and width per group: "resnext101_64x4d" is (101, 64, 4)."""
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    if name.startswith("wide_resnet"):
        return numbers[0], 1, 64 * numbers[1]
    return (numbers[0], numbers[1], numbers[2]) if name.startswith("resnext") else (numbers[0], 1, 64)


def _staged(features: nn.Sequential, channels_last: bool = False) -> Body:
    """A ConvNeXt or Swin: stages at the odd children of `features`, downsampling at the even ones."""
    names = ("1", "3", "5", "7")
    last_of = [list(features[int(name)].parameters())[-1] for name in names]
    channels = tuple(int(p.shape[0]) for p in last_of)
    return Body(features, names, channels, channels_last)


def _mobilenet(norm_layer: MakeNorm | None) -> Body:
    features = torchvision.models.mobilenet_v3_large(weights=None, norm_layer=norm_layer).features
    strided = [i for i, child in enumerate(features) if getattr(child, "_is_cn", False)]
    stages = [0, *strided, len(features) - 1]
    channels = tuple(int(features[i].out_channels) for i in stages)
    return Body(features, tuple(str(i) for i in stages), channels)


class ChannelsLastPyramid(BackboneWithFPN):  # type: ignore[misc]
    """A pyramid on a body whose stages put out (B, H, W, C), as torchvision's Swin does."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by level name, (B, C, h, w), of images (B, 3, H, W)."""
        stages = {name: maps.permute(0, 3, 1, 2).contiguous() for name, maps in self.body(x).items()}
        pyramid: dict[str, Tensor] = self.fpn(stages)
        return pyramid


class NoExtraLevel(ExtraFPNBlock):  # type: ignore[misc]
    """Leaves the pyramid as it is; torchvision adds a pooled level unless it is given a block."""

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The pyramid's own levels and names."""
        return results, names


def make_backbone(parts: NetworkParts) -> BackboneWithFPN:
    """The body with its feature pyramid; levels are named "0", "1", ... and "pool"."""
    body = make_body(parts.body, parts.body_norm)
    chosen = [stage - 1 for stage in parts.stages]
    kind = ChannelsLastPyramid if body.channels_last else BackboneWithFPN
    return kind(
        body.module,
        return_layers={body.stage_names[s]: str(level) for level, s in enumerate(chosen)},
        in_channels_list=[body.stage_channels[s] for s in chosen],
        out_channels=parts.fpn.channels,
        extra_blocks=LastLevelMaxPool() if parts.fpn.extra == "pool" else NoExtraLevel(),
        norm_layer=make_norm(parts.fpn.norm),
    )


def stage_channels(name: str) -> tuple[int, ...]:
    """Channels of each stage of the body called `name`, finest first."""
    with skeleton():
        return make_body(name, Norm(kind="batch")).stage_channels
