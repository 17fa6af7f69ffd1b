"""Optimisers, rates and the mean of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.model import BODY
from training.stages import Optimiser


def make_optimiser(
    parameters: Sequence[tuple[str, nn.Parameter]], settings: Optimiser
) -> torch.optim.Optimizer:
    """The optimiser of a stage; each group remembers its full rate as `top_lr`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        lr = settings.body_lr if settings.body_lr and name.startswith(BODY) else settings.lr
        # Norms and biases are vectors; matrices and convolutions are not.
        plain = parameter.ndim < 2
        decay = 0.0 if plain and not settings.decay_norms else settings.weight_decay
        groups.setdefault((lr, decay), []).append(parameter)
    listed = [
        {"params": some, "lr": lr, "top_lr": lr, "weight_decay": decay}
        for (lr, decay), some in groups.items()
    ]
    if settings.kind == "sgd":
        return torch.optim.SGD(listed, lr=settings.lr, momentum=settings.momentum)
    kind: Any = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
    optimiser: torch.optim.Optimizer = kind(listed, lr=settings.lr, betas=tuple(settings.betas))
    return optimiser


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's full rate by `factor`; gives the highest."""
    for group in optimiser.param_groups:
        group["lr"] = group["top_lr"] * factor
    return max(float(group["lr"]) for group in optimiser.param_groups)


class Ema:
    """An exponential mean of a network's tensors, statistics of norms included.

    Early on the decay is (1 + n) / (10 + n) where that is less, so that the fresh weights are soon
    forgotten.
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {key: tensor.detach().clone() for key, tensor in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        """Move towards the present tensors; counters are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floats = [key for key, mean in self.state.items() if mean.is_floating_point()]
        means, now = [self.state[key] for key in floats], [state[key].detach() for key in floats]
        torch._foreach_lerp_(means, now, 1 - decay)
        for key in self.state.keys() - set(floats):
            self.state[key].copy_(state[key])

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a saved mean."""
        self.updates = updates
        for key, tensor in state.items():
            self.state[key].copy_(tensor)


def clip(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Bound the norm of all gradients together; gives what it was."""
    return float(nn.utils.clip_grad_norm_(parameters, limit if limit is not None else float("inf")))
