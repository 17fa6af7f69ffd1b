"""What tests of MMDetection's bodies share: small images, settled modules, and norms written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from sartorius_infer.manifest.parts import Norm

State = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)

COUNTER = "num_batches_tracked"


def images(count: int, height: int, width: int, seed: int = 7) -> Tensor:
    """Noise as a network sees images, (count, 3, height, width)."""
    return torch.randn((count, 3, height, width), generator=torch.Generator().manual_seed(seed))


def settled(module: Module, seed: int = 3) -> Module:
    """In eval mode, with values that no layer starts from: norms and offsets that do something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
            elif tensor.dim() < 2:
                centre = 1.0 if name.endswith("weight") else 0.0
                tensor.copy_(centre + 0.2 * torch.randn(tensor.shape, generator=draw))
            else:
                spread = (1.5 / tensor[0].numel()) ** 0.5
                tensor.copy_(spread * torch.randn(tensor.shape, generator=draw))
    return module.eval()


def state_of(module: nn.Module) -> State:
    return dict(module.state_dict())


def shapes(module: nn.Module, counters: bool = False) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a module, if asked with those of what counts batches in training."""
    state = module.state_dict()
    return {k: tuple(t.shape) for k, t in state.items() if counters or not k.endswith(COUNTER)}


def norm(state: State, name: str, kind: Norm, x: Tensor) -> Tensor:
    """The norm `name` of x (B, C, h, w)."""
    weight, bias, eps = state[f"{name}.weight"], state[f"{name}.bias"], 1e-5 if kind.eps is None else kind.eps
    if kind.kind == "group":
        return F.group_norm(x, kind.groups, weight, bias, eps)
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def compare(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """As many maps, equal but for rounding in their precision, as a share of each map's greatest value."""
    for level, other in zip(found, expected, strict=True):
        share = 1e-12 if level.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(level, other, rtol=0, atol=share * float(other.abs().max()))


# Residual bodies written down: what a state dict of MMDetection's names and the settings give.

PlainResidual = Callable[[State, str, Any, int, int, Tensor], Tensor]
"""What a block adds to its shortcut: of its state, name, settings, stage, stride and input."""


def plain_body(
    state: State, body: Any, residual: PlainResidual, x: Tensor, *, deep_stem: bool, avg_down: bool
) -> list[Tensor]:
    x = F.max_pool2d(_stem(state, body, deep_stem, x), 3, 2, 1)
    maps = []
    for stage in range(len(body.strides)):
        block = 0
        while f"layer{stage + 1}.{block}.conv1.weight" in state:
            prefix = f"layer{stage + 1}.{block}"
            stride = body.strides[stage] if block == 0 else 1
            shortcut = _shortcut(state, prefix, body, avg_down, stride, x)
            x = F.relu(residual(state, prefix, body, stage, stride, x) + shortcut)
            block += 1
        maps.append(x)
    return [maps[stage] for stage in body.out_indices]


def check_maps(
    module: nn.Module, body: Any, residual: PlainResidual, *, deep_stem: bool = True, avg_down: bool = True
) -> None:
    """A residual body's maps, and what it says of them, against plain arithmetic in float64."""
    residual_body: Any = settled(module).double()
    batch = images(2, 51, 69).double()
    with torch.inference_mode():
        found = residual_body(batch)
        kinds = {"deep_stem": deep_stem, "avg_down": avg_down}
        expected = plain_body(state_of(residual_body), body, residual, batch, **kinds)
    assert len(found) == len(body.out_indices)
    compare(found, expected)
    assert residual_body.channels == tuple(level.shape[1] for level in found)
    assert [-(-51 // s) for s in residual_body.strides] == [level.shape[2] for level in found]


def _stem(state: State, body: Any, deep: bool, x: Tensor) -> Tensor:
    if not deep:
        x = F.conv2d(x, state["conv1.weight"], stride=body.stem_stride, padding=3)
        return F.relu(norm(state, "gn1" if body.norm.kind == "group" else "bn1", body.norm, x))
    for conv, normed, stride in ((0, 1, body.stem_stride), (3, 4, 1), (6, 7, 1)):
        x = F.conv2d(x, state[f"stem.{conv}.weight"], stride=stride, padding=1)
        x = F.relu(norm(state, f"stem.{normed}", body.norm, x))
    return x


def _shortcut(state: State, prefix: str, body: Any, avg_down: bool, stride: int, x: Tensor) -> Tensor:
    conv, normed = (1, 2) if avg_down else (0, 1)
    if f"{prefix}.downsample.{conv}.weight" not in state:
        return x
    if avg_down:
        x, stride = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False), 1
    x = F.conv2d(x, state[f"{prefix}.downsample.{conv}.weight"], stride=stride)
    return norm(state, f"{prefix}.downsample.{normed}", body.norm, x)


def plain_3x3(state: State, name: str, body: Any, stage: int, stride: int, groups: int, x: Tensor) -> Tensor:
    """The convolution `name`, deformable where the settings say so."""
    dilation, weight, deformable = body.dilations[stage], state[f"{name}.weight"], body.deformable
    if deformable is None or stage not in deformable.stages:
        return F.conv2d(x, weight, None, stride, dilation, dilation, groups)
    offset = f"{name}.conv_offset"
    moves = F.conv2d(x, state[f"{offset}.weight"], state[f"{offset}.bias"], stride, dilation, dilation)
    cut = 18 * deformable.groups
    assert moves.shape[1] == (cut * 3 // 2 if deformable.modulated else cut)
    mask = moves[:, cut:].sigmoid() if deformable.modulated else None
    moved: Tensor = deform_conv2d(x, moves[:, :cut], weight, None, stride, dilation, dilation, mask)
    return moved
