"""Cellpose's CPnet as a family: keys and shapes tell the network, the file the size of cells it knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks.base import Network
from sartorius_infer.networks.cellpose.unet import CHANNELS, OUTPUTS, UNet, widths_of
from sartorius_infer.networks.registry import Family, State
from sartorius_infer.networks.skeleton import skeleton
from sartorius_infer.networks.state import load_state
from sartorius_infer.networks.wording import plain

ARCHITECTURE = "cellpose"

MEAN_DIAMETER = 30.0
"""Of the cells that a network sees, in its pixels, where the file does not tell."""

_FIRST = "downsample.down.res_down_0.conv.conv_0.0.weight"
_LAST = "output.2.weight"
_DIAMETERS = ("diam_mean", "diam_labels")
_TRANSFORMER = ("encoder.patch_embed.proj.weight", "encoder.neck.0.weight", "W2", "out.weight")
_MOST_RESCALE = 20
"""An image that grows by more has no pixel that tells anything, and no room in memory."""

_DEEPEST = 5
"""Depths that fit into tiles whose sides are multiples of 16."""


class CellposeFamily(Family):
    """`classes` of an entry may name the one class of its cells; else other networks say which they are."""

    names = (ARCHITECTURE,)
    settings = True
    preprocessing = False
    takes_everything = True

    def recognise(self, state: State) -> bool:
        """By the keys of its first and last layer, or those of version 4's transformer, which is refused."""
        return {_FIRST, _LAST} <= set(state) or set(_TRANSFORMER) <= set(state)

    def told(self, spec: ModelSpec) -> str:
        """That it is one, and which of its settings matters most."""
        return "Cellpose, the diameter of cells as in the file; see `models --weights`; a manifest changes it"

    def describe(self, spec: ModelSpec, state: State) -> list[str]:
        """Every setting, and where it is from."""
        parts, widths = parts_of(spec), widths_of(state, spec.file)
        mean, from_mean = _mean_diameter(state)
        diameter, from_diameter = _diameter(parts, state)
        values = parts.model_dump()
        sources = {n: "manifest" if n in parts.model_fields_set else "default" for n in values}
        values["diameter"], sources["diameter"] = diameter, from_diameter
        if parts.steps is None:
            values["steps"] = "200 in the network's pixels"
        count = "one, its `classes`" if spec.classes and len(spec.classes) == 1 else "told by other networks"
        return [
            f"  architecture  Cellpose CPnet of {', '.join(map(str, widths))} channels",
            f"  class         {count}",
            f"  mean diameter {plain(mean)} in the network's pixels ({from_mean}); an image is resized by "
            f"{plain(float(np.float32(mean) / np.float32(diameter)))}",
            "  settings:",
            *(f"    {name} = {plain(value)} ({sources[name]})" for name, value in values.items()),
        ]

    def build(self, spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Network:
        """From keys, shapes and the entry's settings."""
        # It needs scipy, for which no run without such a network shall wait.
        from sartorius_infer.networks.cellpose.network import CellposeNetwork

        _require_cpnet(spec, state)
        with skeleton():
            model = UNet(widths_of(state, spec.file))
        tensors = {key: tensor for key, tensor in state.items() if key not in _DIAMETERS}
        load_state(
            model, tensors, spec.file, "Likely one trained with concatenation or without residual blocks."
        )
        model.requires_grad_(False)
        parts = parts_of(spec)
        (mean, _), (diameter, source) = _mean_diameter(state), _diameter(parts, state)
        rescale = np.float32(mean) / np.float32(diameter)
        if not 1 / _MOST_RESCALE <= rescale <= _MOST_RESCALE:
            raise CheckpointError(
                f"{spec.file}: expected a diameter within {_MOST_RESCALE} times the network's {plain(mean)}, "
                f"found {plain(diameter)} ({source}); the manifest's `cellpose.diameter` sets another"
            )
        count = 1 if spec.classes and len(spec.classes) == 1 else None
        return CellposeNetwork(model, parts, float(rescale), count, precision)

    def lean(self, spec: ModelSpec, state: State, network: Network) -> dict[str, Tensor]:
        """What is computed with, and the diameters."""
        return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}

    def entry(self, spec: ModelSpec, state: State) -> dict[str, Any]:
        """All of `cellpose`, the file's diameter written out."""
        parts = parts_of(spec).model_copy(update={"diameter": _diameter(parts_of(spec), state)[0]})
        return {"cellpose": parts.model_dump(mode="json", exclude_none=True)}


def parts_of(spec: ModelSpec) -> CellposeParts:
    """The settings of a manifest entry, or the defaults."""
    return spec.cellpose or CellposeParts()


def _mean_diameter(state: State) -> tuple[float, str]:
    return _in_file("diam_mean", state) or (MEAN_DIAMETER, "assumed")


def _diameter(parts: CellposeParts, state: State) -> tuple[float, str]:
    """The diameter of cells in the image's pixels, and where it is from."""
    if parts.diameter is not None:
        return parts.diameter, "manifest"
    mean, _ = _mean_diameter(state)
    return _in_file("diam_labels", state) or (mean, "assumed: as the network's mean")


def _in_file(key: str, state: State) -> tuple[float, str] | None:
    tensor = state.get(key)
    if tensor is None:
        return None
    value = float(tensor.float().reshape(-1)[0]) if tensor.numel() == 1 else float("nan")
    return (value, f"the file's {key}") if 0 < value < float("inf") else None


def _require_cpnet(spec: ModelSpec, state: State) -> None:
    """Raise CheckpointError for a network of another kind, and say what it is."""
    if set(_TRANSFORMER) <= set(state):
        raise CheckpointError(
            f"{spec.file}: expected a CPnet of Cellpose 0.7 to 3.1, found Cellpose 4's transformer "
            "(Cellpose-SAM), which is not run here; train one with cellpose 3.1, or let cellpose 4 segment"
        )
    last, first = state.get(_LAST), state.get(_FIRST)
    outputs = 0 if last is None else int(last.shape[0])
    if outputs == OUTPUTS + 1:
        raise CheckpointError(
            f"{spec.file}: expected {OUTPUTS} outputs, found 4, as Omnipose's networks have, whose masks are "
            "made otherwise; take a Cellpose network, or let omnipose segment"
        )
    if outputs != OUTPUTS:
        raise CheckpointError(
            f"{spec.file}: expected {OUTPUTS} outputs (two flows and a logit), found {outputs}, as "
            "Cellpose's networks for other tasks have; take one that segments"
        )
    if first is None or first.shape != (CHANNELS,):
        found = 0 if first is None else int(first.shape[0])
        raise CheckpointError(f"{spec.file}: expected a network of {CHANNELS} channels, found {found}")
    if len(widths := widths_of(state, spec.file)) > _DEEPEST:
        raise CheckpointError(f"{spec.file}: expected at most {_DEEPEST} depths, found {len(widths)}")
    if "preprocessing" in spec.model_fields_set:
        raise CheckpointError(
            f"{spec.file}: expected no `preprocessing`, found one; a Cellpose network's image is made by "
            "`percentile` and `diameter` of `cellpose`"
        )
