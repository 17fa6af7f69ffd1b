"""A network in the form that a CPU runs fastest: the same function, other arithmetic.

Norms become part of the convolutions before them, weights lie channels last, wide 3 x 3 convolutions
run by Winograd's algorithm, and the stem's pooling compares vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from sartorius_infer.networks.cpu import winograd
from sartorius_infer.networks.cpu.winograd import FEWEST_CHANNELS, WinogradConv2d
from sartorius_infer.networks.deformable import DeformableConv, DeformableConv3x3
from sartorius_infer.networks.layers import Conv, NormedBlock, numbered_pairs

_PLAIN = (nn.Conv2d, Conv)
"""Convolutions that do nothing else; a subclass of a plugin's may."""

_LINEAR = (*_PLAIN, DeformableConv, DeformableConv3x3)
"""Convolutions whose outputs are scaled by scaling their weights."""


_HALVED = (*_PLAIN, nn.ConvTranspose2d, nn.Linear)
"""What autocast computes in half precision and nothing else looks at."""


def quicken(model: nn.Module) -> None:
    """Change a float32 model in eval mode, in place; outputs differ by rounding alone."""
    fold_norms(model)
    use_winograd(model)
    model.to(memory_format=torch.channels_last)


def halve(model: nn.Module) -> None:
    """Change a float32 model in eval mode, in place, for bfloat16 under autocast.

    Weights are rounded once, after the norms entered them, instead of at every call.
    """
    fold_norms(model)
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if type(module) in _HALVED:
            for name, values in module._parameters.items():
                if values is not None:
                    module._parameters[name] = nn.Parameter(values.bfloat16(), requires_grad=False)


def fold_norms(model: nn.Module) -> None:
    """Multiply each batch norm with fixed statistics into the convolution that feeds it alone."""
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for parent in model.modules():
        for conv, name in list(_pairs(parent)):
            norm: Any = parent.get_submodule(name)
            fixed = isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d) and norm.running_var is not None
            if fixed and uses[id(conv)] == 1:
                statistics: tuple[Any, ...] = (
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
                parent.set_submodule(name, nn.Identity())


def _pairs(parent: nn.Module) -> Iterator[tuple[nn.Conv2d, str]]:
    """Convolutions whose output goes to a module within `parent`, with that module's name.

    They are neighbours in a sequence, `convN` and `bnN` of torchvision's residual networks, what a block of
    ours tells, or a norm that the convolution itself holds, as Detectron2's does.
    """
    children = {name: child for name, child in parent._modules.items() if child is not None}
    pairs: list[tuple[str, str]] = []
    if isinstance(parent, Conv) and type(parent) in (Conv, DeformableConv) and "norm" in children:
        yield parent, "norm"
    elif isinstance(parent, nn.Sequential):
        pairs = list(pairwise(children))
    elif isinstance(parent, BasicBlock | Bottleneck | IntermediateLayerGetter):
        pairs = numbered_pairs(parent)
    elif isinstance(parent, NormedBlock):
        pairs = parent.norm_pairs()
    for first, second in pairs:
        conv = parent.get_submodule(first)
        if isinstance(conv, nn.Conv2d) and type(conv) in _LINEAR:
            yield conv, second


class StemPool(nn.Module):
    """Max pooling of 3 x 3, stride 2 and padding 1: greatest of rows, then of columns, by vectors.

    Torch's own compares number by number unless channels lie last, at a third of the speed.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)), equal to torch's in every bit."""
        if x.is_contiguous(memory_format=torch.channels_last):
            return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        return _of_rows(_of_rows(x).mT).mT


def _of_rows(x: Tensor) -> Tensor:
    """The greatest of each even row and its neighbours: (B, C, H, W) -> (B, C, ceil(H / 2), W)."""
    greatest, odd = x[:, :, ::2].clone(), x[:, :, 1::2]
    below, above = odd.shape[2], greatest.shape[2] - 1
    torch.maximum(greatest[:, :, :below], odd, out=greatest[:, :, :below])
    torch.maximum(greatest[:, :, 1:], odd[:, :, :above], out=greatest[:, :, 1:])
    return greatest


def use_stem_pool(model: nn.Module) -> None:
    """Replace every max pooling that it can stand for."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.MaxPool2d and _is_stem_pool(child):
                setattr(parent, name, StemPool())


def _is_stem_pool(pool: nn.MaxPool2d) -> bool:
    shape = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return shape == (3, 2, 1, 1) and not (pool.ceil_mode or pool.return_indices)


def use_winograd(model: nn.Module) -> None:
    """Replace every 3 x 3 convolution that is wide enough to gain, on a processor that does."""
    if not winograd.pays():
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and _gains(child):
                setattr(parent, name, WinogradConv2d(child.weight, child.bias))


def _gains(conv: nn.Conv2d) -> bool:
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return (
        type(conv) in _PLAIN
        and shape == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (conv.groups, conv.padding_mode) == (1, "zeros")
        and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
        and all(isinstance(child, nn.Identity) for child in conv.children())  # or a norm that stayed
    )
