"""Putting a checkpoint's tensors into a network, all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sartorius_infer.errors import CheckpointError


def load_state(model: nn.Module, state: Mapping[str, Tensor], file: str, cause: str = "") -> None:
    """Put the tensors into a model built on the meta device, as float32.

    Raises one CheckpointError that lists the first missing, unexpected and misshapen keys and the
    likely cause, by default one of torchvision's.
    """
    counters = [key for key in model.state_dict() if _is_counter(key)]
    expected = {key: _kind(t) for key, t in model.state_dict().items() if not _is_counter(key)}
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected and not _is_counter(key)]
    misshapen = [key for key in expected if key in state and _kind(state[key]) != expected[key]]
    if missing or unexpected or misshapen:
        raise CheckpointError(_describe(file, expected, state, missing, unexpected, misshapen, cause))
    widened = {key: _widen(state[key]) for key in expected}
    widened |= {key: torch.zeros((), dtype=torch.int64) for key in counters}
    model.load_state_dict(widened, strict=True, assign=True)


def _is_counter(key: str) -> bool:
    """Whether a tensor counts training batches, which nothing here reads."""
    return key.endswith("num_batches_tracked")


def _kind(tensor: Tensor) -> str:
    """What must agree: the shape, and whether values are fractions."""
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _describe(
    file: str,
    expected: Mapping[str, str],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
    cause: str,
) -> str:
    shapes = [f"{k} (expected {expected[k]}, found {_kind(state[k])})" for k in misshapen]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    said = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in lists if keys)
    if missing and not unexpected + misshapen and _are_statistics(missing):
        cause = (
            "An average over named_parameters() has no running statistics of norms: take the model that it "
            "averages, which usually lies beside it, or save the average with its buffers."
        )
    cause = cause or _likely_cause(missing + unexpected, misshapen)
    return f"{file}: the keys do not fit the network: {said}. {cause}"


def _are_statistics(missing: list[str]) -> bool:
    """Whether keys are buffers of norms: statistics, and of frozen norms all they have."""
    modules = {key.rpartition(".")[0] for key in missing}
    return all(f"{module}.running_mean" in missing for module in modules)


def _likely_cause(strange: list[str], misshapen: list[str]) -> str:
    if not strange and all("predictor" in key for key in misshapen):
        return "Likely another class count."
    if all(key.startswith("backbone.") for key in strange + misshapen):
        return "Likely another backbone, or one with added blocks; register it by --plugin FILE.py."
    return "Likely a network with parts of its own; register it by --plugin FILE.py."
