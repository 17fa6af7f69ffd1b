"""ConvNeXt and ConvNeXt V2 under the names of MMPretrain and MMClassification, from which they are taken.

Sources: Liu et al., A ConvNet for the 2020s, 2022 (arXiv 2201.03545); Woo et al., ConvNeXt V2, 2023
(arXiv 2301.00808).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.mmdet_bodies import MmdetConvNext
from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.mmdet.resnet import layer_of


class GlobalResponseNorm(nn.Module):
    """Adds to each channel itself times its length over the image, as a share of the mean channel's."""

    EPS = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C), channels last, as it came."""
        length = x.norm(dim=(1, 2), keepdim=True)
        share = length / (length.mean(dim=-1, keepdim=True) + self.EPS)
        out: Tensor = self.gamma * (x * share) + self.beta + x
        return out


class Block(nn.Module):
    """7 x 7 of each channel by itself, layer norm, four times as many channels and back, and a shortcut."""

    def __init__(self, body: MmdetConvNext, channels: int, norm: Norm) -> None:
        super().__init__()
        inner = 4 * channels
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = layer_of(norm, channels)
        self.pointwise_conv1 = _pointwise(channels, inner, body.linear_pointwise)
        self.grn = GlobalResponseNorm(inner) if body.global_norm else nn.Identity()
        self.pointwise_conv2 = _pointwise(inner, channels, body.linear_pointwise)
        self.gamma = nn.Parameter(torch.ones(channels)) if body.layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        out = self.norm(self.depthwise_conv(x)).permute(0, 2, 3, 1)
        out = self.grn(F.gelu(_over_channels(self.pointwise_conv1, out)))
        out = _over_channels(self.pointwise_conv2, out)
        if self.gamma is not None:
            out = self.gamma * out
        return x + out.permute(0, 3, 1, 2)


def _pointwise(inputs: int, outputs: int, linear: bool) -> nn.Linear | nn.Conv2d:
    return nn.Linear(inputs, outputs) if linear else nn.Conv2d(inputs, outputs, 1)


def _over_channels(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Of x (B, h, w, C); a 1 x 1 convolution is a linear layer whose weight has two more dimensions."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


class ConvNext(nn.Module):
    """Stages, what stands before each, and a norm for each map that it puts out.

    channels, strides  of each of those maps
    """

    def __init__(self, body: MmdetConvNext) -> None:
        super().__init__()
        norm = Norm(kind="layer", eps=body.eps)
        self.out_indices = body.out_indices
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for stage, (depth, channels) in enumerate(zip(body.depths, body.channels, strict=True)):
            if stage == 0:
                side = body.stem_patch_size
                layers = [nn.Conv2d(3, channels, side, side), layer_of(norm, channels)]
            else:
                before = body.channels[stage - 1]
                layers = [layer_of(norm, before), nn.Conv2d(before, channels, 2, 2)]
            self.downsample_layers.append(nn.Sequential(*layers))
            self.stages.append(nn.Sequential(*(Block(body, channels, norm) for _ in range(depth))))
        for stage in body.out_indices:
            self.add_module(f"norm{stage}", layer_of(norm, body.channels[stage]))
        self.channels = tuple(body.channels[stage] for stage in body.out_indices)
        self.strides = tuple(body.stem_patch_size << stage for stage in body.out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w) of each stage in `out_indices`, finest first, of images (B, 3, H, W)."""
        x, maps = images, []
        for stage in range(self.out_indices[-1] + 1):
            x = self.stages[stage](self.downsample_layers[stage](x))
            if stage in self.out_indices:
                maps.append(self.get_submodule(f"norm{stage}")(x))
        return tuple(maps)
