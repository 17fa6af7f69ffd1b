"""Layers as MMDetection and MMCV have them, slow and plain, on a state dict that they may themselves fill.

A layer says which weights it wants, by their keys and shapes. Where they are missing and `draw` is given, it
draws them so that its outputs are spread: one run through a network gives all of its keys and weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from detectron2_bodies_oracle import deformed
from torch import Tensor

State = dict[str, Tensor]
Config = dict[str, Any]

EPS = 1e-5
BRANCH, DEFORMABLE_BRANCH = 0.2, 0.1
"""Size of what a residual block adds to its shortcut: larger ones make rounding grow with the depth, much
faster so where deformable convolutions move their samples by it."""
LOOK = 0.8
"""Spread in pixels of how far deformable convolutions look away."""
ABBREVIATIONS = {"BN": "bn", "SyncBN": "bn", "GN": "gn", "LN": "ln"}


def abbreviated(norm: Config) -> str:
    """What a norm is called in keys."""
    return ABBREVIATIONS[norm["type"]]


@dataclass(frozen=True)
class Net:
    """Weights, and what draws those that are missing."""

    state: State
    draw: torch.Generator | None = None

    def missing(self, key: str) -> bool:
        return self.draw is not None and key not in self.state

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.draw)

    def vector(self, key: str, *shape: int, mean: float = 0.0, spread: float = 0.3) -> Tensor:
        """A weight that is no filter: drawn around `mean`."""
        if self.missing(key):
            self.state[key] = mean + spread * self.random(*shape)
        assert self.state[key].shape == shape, f"{key}: {tuple(self.state[key].shape)}, not {shape}"
        return self.state[key]

    def filters(self, key: str, *shape: int) -> Tensor:
        """Weights of a convolution or of a linear layer: those of each output sum up to 0."""
        if self.missing(key):
            values = self.random(*shape)
            inputs = list(range(1, len(shape)))
            values = values - values.mean(inputs, keepdim=True) if math.prod(shape[1:]) > 1 else values
            self.state[key] = values * math.sqrt(2 / math.prod(shape[1:]))
        assert self.state[key].shape == shape, f"{key}: {tuple(self.state[key].shape)}, not {shape}"
        return self.state[key]

    def settle(self, key: str, out: Tensor, spread: float, shift: Tensor | None, axis: int) -> None:
        """Scales a new layer, and gives it a bias, by what it puts out without one."""
        std, mean = spread_and_mean(out, axis)
        scale = spread / std
        weight = self.state[f"{key}.weight"]
        self.state[f"{key}.weight"] = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        self.state[f"{key}.bias"] = -mean * scale + (0 if shift is None else shift)

    def conv(
        self,
        key: str,
        x: Tensor,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
        spread: float = 1.0,
    ) -> Tensor:
        around = size // 2 * dilation if padding is None else padding
        weight = self.filters(f"{key}.weight", outputs, x.shape[1] // groups, size, size)
        if bias and self.missing(f"{key}.bias"):
            out = F.conv2d(x, weight, None, stride, around, dilation, groups)
            self.settle(key, out, spread, None, 1)
            weight = self.state[f"{key}.weight"]
        offset = self.vector(f"{key}.bias", outputs) if bias else None
        return F.conv2d(x, weight, offset, stride, around, dilation, groups)

    def linear(
        self,
        key: str,
        x: Tensor,
        outputs: int,
        *,
        bias: bool = True,
        spread: float = 1.0,
        shift: Tensor | None = None,
    ) -> Tensor:
        weight = self.filters(f"{key}.weight", outputs, x.shape[-1])
        if bias and self.missing(f"{key}.bias"):
            self.settle(key, F.linear(x, weight), spread, shift, -1)
            weight = self.state[f"{key}.weight"]
        return F.linear(x, weight, self.vector(f"{key}.bias", outputs) if bias else None)

    def norm(self, key: str, x: Tensor, norm: Config, gain: float = 1.0) -> Tensor:
        """x (N, C, *) normed; a running variance lies between 1e-5 and 1e-2, so that epsilon matters."""
        channels, eps = x.shape[1], norm.get("eps", EPS)
        batch = norm["type"] in ("BN", "SyncBN")
        if batch and self.missing(f"{key}.running_var"):
            self._pretend(key, x, gain)
        weight = self.vector(f"{key}.weight", channels, mean=gain, spread=0.2 * gain)
        bias = self.vector(f"{key}.bias", channels, spread=0.3 * gain)
        if norm["type"] == "GN":
            return F.group_norm(x, norm["num_groups"], weight, bias, eps)
        assert batch, norm
        mean, variance = (self.vector(f"{key}.running_{name}", channels) for name in ("mean", "var"))
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    def _pretend(self, key: str, x: Tensor, gain: float) -> None:
        std, mean = spread_and_mean(x, 1)
        variance = 10 ** (-5 + 3 * torch.rand(len(mean), generator=self.draw))
        self.state[f"{key}.running_mean"] = mean + 0.3 * std * self.random(len(mean))
        self.state[f"{key}.running_var"] = variance
        drawn = gain * (1 + 0.2 * self.random(len(mean)))
        self.state[f"{key}.weight"] = drawn * (variance + EPS).sqrt() / std
        self.state[f"{key}.num_batches_tracked"] = torch.tensor(9999)

    def layer_norm(self, key: str, x: Tensor, eps: float = EPS) -> Tensor:
        """x (*, C) normed over its channels."""
        weight = self.vector(f"{key}.weight", x.shape[-1], mean=1.0, spread=0.2)
        return F.layer_norm(x, x.shape[-1:], weight, self.vector(f"{key}.bias", x.shape[-1]), eps)

    def conv_module(
        self, key: str, x: Tensor, outputs: int, size: int, norm: Config | None, stride: int = 1
    ) -> Tensor:
        """MMCV's ConvModule without its activation: a norm takes the place of the bias."""
        out = self.conv(f"{key}.conv", x, outputs, size, stride, bias=norm is None)
        return out if norm is None else self.norm(f"{key}.{abbreviated(norm)}", out, norm)

    def spatial(
        self,
        key: str,
        x: Tensor,
        outputs: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        dcn: Config | None = None,
    ) -> Tensor:
        """A 3 x 3 convolution without bias, deformable by MMCV's DCN or DCNv2 if `dcn` says so."""
        if dcn is None or dcn.get("fallback_on_stride", False):
            return self.conv(key, x, outputs, 3, stride, dilation=dilation, groups=groups)
        weight = self.filters(f"{key}.weight", outputs, x.shape[1] // groups, 3, 3)
        deformable = dcn.get("deform_groups", 1)
        modulated = dcn["type"] == "DCNv2"
        said = self.conv(
            f"{key}.conv_offset",
            x,
            (27 if modulated else 18) * deformable,
            3,
            stride,
            dilation=dilation,
            bias=True,
            spread=LOOK,
        )
        masks = said[:, 18 * deformable :].sigmoid() if modulated else None
        return deformed(x, weight, said[:, : 18 * deformable], masks, stride, dilation)


def spread_and_mean(out: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Of each output along `axis`; of all together where there is one value of each, as in attention."""
    values = out.transpose(0, axis).flatten(1) if axis == 1 else out.flatten(0, -2).T
    values = values if values.shape[1] > 1 else values.T.expand(len(values), -1)
    return values.std(1).clamp(min=1e-4), values.mean(1)


def merged(*configs: Mapping[str, Any]) -> Config:
    """The last one's values over those before, section by section."""
    result: Config = {}
    for config in configs:
        for key, value in config.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def each(value: Any, count: int) -> Sequence[Any]:
    """A list as it is, anything else `count` times: what stages of a cascade share."""
    return value if isinstance(value, list | tuple) else [value] * count
