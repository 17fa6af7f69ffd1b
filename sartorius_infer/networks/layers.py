"""Layers that networks of several families are built of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d

from sartorius_infer.manifest.parts import Norm

MakeNorm = Callable[[int], nn.Module]


RESNET_LAYERS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}


MOBILENET_EPS = 1e-3


def norm_eps(norm: Norm, body: str = "") -> float:
    """The eps of a norm: its own, else that which torchvision gives it, in the body of that name."""
    if norm.eps is not None:
        return norm.eps
    if norm.kind == "layer":
        return 1e-6
    return MOBILENET_EPS if norm.kind == "batch" and body.startswith("mobilenet") else 1e-5


def make_norm(norm: Norm, body: str = "") -> MakeNorm | None:
    """A constructor of the layer that `norm` describes, from its channels; None for no norm."""
    eps = norm_eps(norm, body)
    if norm.kind == "frozen":
        return partial(FrozenBatchNorm2d, eps=eps)
    if norm.kind == "batch":
        return partial(nn.BatchNorm2d, eps=eps)
    if norm.kind == "group":
        return partial(nn.GroupNorm, norm.groups, eps=eps)
    if norm.kind == "layer":
        return partial(LayerNorm2d, eps=eps)
    return None


def norm_layer(norm: Norm, channels: int) -> nn.Module | None:
    """The layer that `norm` describes; frozen and batch norm are the same once nothing is trained."""
    if norm.kind == "frozen":
        norm = norm.model_copy(update={"kind": "batch"})
    make = make_norm(norm)
    return None if make is None else make(channels)


class Conv(nn.Conv2d):
    """A convolution that keeps the size up to its stride, with the norm after it as a child of its own."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: Norm, *, stride: int = 1,
                 groups: int = 1, dilation: int = 1, bias: bool | None = None) -> None:  # fmt: skip
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride,
            kernel // 2 * dilation,
            dilation,
            groups,
            bias=norm.kind == "none" if bias is None else bias,
        )
        self.norm = norm_layer(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


def numbered_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of children `convN` and `bnN`, for each number that both have."""
    names = [name for name, child in module._modules.items() if child is not None]
    pairs = [(name, f"bn{name.removeprefix('conv')}") for name in names if name.startswith("conv")]
    return [(conv, norm) for conv, norm in pairs if norm in names]


class NormedBlock(nn.Module):
    """A module that tells which norms take what a convolution gives, so that the two may become one."""

    def norm_pairs(self) -> list[tuple[str, str]]:
        """Names of convolutions, and of the norms that alone take their outputs; dotted for grandchildren."""
        return numbered_pairs(self)
