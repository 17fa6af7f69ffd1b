"""Cellpose's residual U-Net, its modules named as its checkpoints name them.

Source: Stringer et al., Nature Methods 18 (2021), "Cellpose: a generalist algorithm for cellular
segmentation", and the keys and shapes of its files. A block is four norm-ReLU-convolution layers with two
shortcuts; the style, the mean of the deepest map over its length, enters each upward block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sartorius_infer.errors import CheckpointError
from sartorius_infer.networks.layers import NormedBlock

CHANNELS = 2
"""The image and, for a cell's nucleus, a second channel."""

OUTPUTS = 3
"""Flow down, flow right, the cell's logit."""

_WIDTH = re.compile(r"downsample\.down\.res_down_(\d+)\.conv\.conv_0\.2\.weight")


def _layer(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Norm, ReLU, convolution that keeps the size."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv)


def _shortcut(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 1))


class _Down(NormedBlock):
    """(B, inputs, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = {f"conv_{i}": _layer(outputs if i else inputs, outputs) for i in range(4)}
        self.conv = nn.ModuleDict(layers)
        self.proj = _shortcut(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x) + self.conv["conv_1"](self.conv["conv_0"](x))
        x = x + self.conv["conv_3"](self.conv["conv_2"](x))
        return x

    def norm_pairs(self) -> list[tuple[str, str]]:
        """The second layer of each pair begins with a norm of what the first gives."""
        return [("conv.conv_0.2", "conv.conv_1.0"), ("conv.conv_2.2", "conv.conv_3.0")]


class _Styled(nn.Module):
    """A layer on a map that a linear function of the style was added to."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.conv = _layer(channels, channels)
        self.full = nn.Linear(style, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.conv(x + self.full(style)[:, :, None, None])
        return x


class _Up(nn.Module):
    """(B, inputs, h, w), the downward map (B, outputs, h, w) and style (B, S) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"conv_0": _layer(inputs, outputs)}
        layers |= {f"conv_{i}": _Styled(outputs, style) for i in (1, 2, 3)}
        self.conv = nn.ModuleDict(layers)
        self.proj = _shortcut(inputs, outputs)

    def forward(self, x: Tensor, beside: Tensor, style: Tensor) -> Tensor:
        x = self.proj(x) + self.conv["conv_1"](self.conv["conv_0"](x) + beside, style)
        x = x + self.conv["conv_3"](self.conv["conv_2"](x, style), style)
        return x


def _side(name: str, blocks: Sequence[nn.Module]) -> nn.ModuleDict:
    """One side of the U under the names that checkpoints have for it."""
    return nn.ModuleDict({name: nn.ModuleDict({f"res_{name}_{i}": b for i, b in enumerate(blocks)})})


def _blocks(side: nn.ModuleDict) -> list[nn.Module]:
    (blocks,) = side.values()
    return list(blocks.children())


class UNet(nn.Module):
    """`widths` are the channels of each depth, from the finest; sizes are multiples of 2^(depths - 1)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        style = widths[-1]
        downs = [_Down(a, b) for a, b in pairwise((CHANNELS, *widths))]
        ups = [_Up(b, a, style) for a, b in pairwise((*widths, style))]
        self.downsample = _side("down", downs)
        self.upsample = _side("up", ups)
        self.output = _layer(widths[0], OUTPUTS, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2, h, w) -> flows and logit (B, 3, h, w) and the style (B, widths[-1])."""
        maps: list[Tensor] = []
        for block in _blocks(self.downsample):
            x = block(F.max_pool2d(maps[-1], 2) if maps else x)
            maps.append(x)
        style = x.mean(dim=(2, 3))
        style = style / style.norm(dim=1, keepdim=True)
        ups = _blocks(self.upsample)
        for depth in reversed(range(len(ups))):
            x = F.interpolate(x, scale_factor=2.0) if depth < len(ups) - 1 else x
            x = ups[depth](x, maps[depth], style)
        return self.output(x), style


def widths_of(state: Mapping[str, Tensor], file: str) -> tuple[int, ...]:
    """The channels of each depth, by the shapes of the downward blocks; raises CheckpointError."""
    found = {int(m[1]): t for key, t in state.items() if (m := _WIDTH.fullmatch(key)) and t.ndim == 4}
    if sorted(found) != list(range(len(found))) or not found:
        raise CheckpointError(f"{file}: expected Cellpose's blocks res_down_0, 1, ..., found {sorted(found)}")
    return tuple(int(found[i].shape[0]) for i in range(len(found)))
