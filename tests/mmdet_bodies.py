"""What tests of MMDetection's bodies share: small images, settled modules, and norms written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

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
