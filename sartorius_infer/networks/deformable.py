"""Deformable convolutions: the taps of a kernel stand where another convolution moves them.

Sources: Dai et al., Deformable Convolutional Networks, 2017 (arXiv 1703.06211); modulated, each tap with a
weight of its own: Zhu et al., Deformable ConvNets v2, 2019 (arXiv 1811.11168). Samples are torchvision's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from sartorius_infer.networks.layers import Conv


class OffsetConv(nn.Conv2d):
    """Where the taps of a convolution of the same kernel, stride, padding and dilation stand.

    It computes in float32 whatever the network does: its outputs are pixels, and half precision would
    move a tap of a few pixels by a tenth of one.
    """

    def __init__(self, inputs: int, *, deformable_groups: int, modulated: bool, kernel: int = 3,
                 stride: int = 1, dilation: int = 1, groups: int = 1) -> None:  # fmt: skip
        super().__init__(
            inputs,
            deformable_groups * kernel**2 * (3 if modulated else 2),
            kernel,
            stride,
            kernel // 2 * dilation,
            dilation,
            groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> float32 (B, 2 G k k or 3 G k k, h / stride, w / stride).

        For each deformable group and tap, rows before columns, the pair (down, right) in pixels; then, where
        taps are modulated, the logit of each one's weight.
        """
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(_at_least_single(x))


def deform(conv: nn.Conv2d, x: Tensor, moves: Tensor, modulated: bool) -> Tensor:
    """What `conv` gives of x (B, C, H, W) with its taps moved as `OffsetConv` says, in x's dtype."""
    offsets, weights = moves, None
    if modulated:
        cut = moves.shape[1] // 3 * 2
        offsets, weights = moves[:, :cut], moves[:, cut:].sigmoid()
    geometry: Any = conv.stride, conv.padding, conv.dilation
    nowhere = offsets.isnan()  # torchvision would read there, outside of the map's memory
    offsets = offsets.masked_fill(nowhere, 0)
    with torch.autocast(x.device.type, enabled=False):
        precise = _at_least_single(x)
        out: Tensor = deform_conv2d(precise, offsets, conv.weight, conv.bias, *geometry, weights)
    return out.masked_fill(nowhere.any(dim=1, keepdim=True), torch.nan).to(x.dtype)


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DeformableConv(Conv):
    """A convolution, and the norm after it, whose taps somebody else moves."""

    def __init__(self, *args: Any, modulated: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.modulated = modulated

    def forward(self, x: Tensor, moves: Tensor) -> Tensor:  # type: ignore[override]
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride); `moves` as `OffsetConv` gives them."""
        out = deform(self, x, moves, self.modulated)
        return out if self.norm is None else self.norm(out)


class DeformableConv3x3(nn.Conv2d):
    """A 3 x 3 convolution without bias and, as its child `conv_offset`, the one that moves its taps."""

    def __init__(self, inputs: int, outputs: int, *, deformable_groups: int, modulated: bool, stride: int = 1,
                 dilation: int = 1, groups: int = 1) -> None:  # fmt: skip
        super().__init__(inputs, outputs, 3, stride, dilation, dilation, groups, bias=False)
        self.modulated = modulated
        self.conv_offset = OffsetConv(
            inputs,
            deformable_groups=deformable_groups,
            modulated=modulated,
            stride=stride,
            dilation=dilation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        return deform(self, x, self.conv_offset(x), self.modulated)
