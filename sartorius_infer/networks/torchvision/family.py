"""Torchvision's Mask R-CNN as a family: keys tell the architecture, a manifest what they cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sartorius_infer.checkpoints.reading import Checkpoint
from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.manifest.settings import flatten
from sartorius_infer.manifest.torchvision import PRESETS, NetworkParts
from sartorius_infer.networks.base import Network
from sartorius_infer.networks.layers import norm_eps
from sartorius_infer.networks.registry import Family, State
from sartorius_infer.networks.torchvision.keys import canonical_keys, is_mask_rcnn
from sartorius_infer.networks.torchvision.rcnn import (
    TorchvisionNetwork,
    build_network,
    likely_groups,
    resolve_parts,
)
from sartorius_infer.networks.wording import is_idle, plain, preprocessing_lines

SOURCES = {
    "keys": "told by the checkpoint's keys",
    "manifest": "said by the manifest",
    "preset": "implied by the architecture's name",
    "default": "assumed (write them as `network` fields of a manifest to change them)",
}
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)", re.IGNORECASE)

_UNTOLD = {"body_norm", "anchors", "box_pool", "mask_pool", "detection"}
"""Parts with settings that keys do not tell; `rpn` is another."""


class TorchvisionFamily(Family):
    """The presets are names of their own."""

    names = tuple(PRESETS)
    settings = True

    def recognise(self, state: State) -> bool:
        """By the keys of pyramid, RPN and both predictors."""
        return is_mask_rcnn(state)

    def complete(self, spec: ModelSpec, checkpoint: Checkpoint, config: Path | None) -> ModelSpec:
        """As it is; raises CheckpointError for what is called an average and has no statistics of norms."""
        parts, origin = resolve_parts(spec, canonical_keys(checkpoint.state))
        name = f"{checkpoint.wrapper}.{checkpoint.prefix}".strip(".")
        if (norms := likely_groups(parts, origin)) and _AVERAGE.search(name):
            raise CheckpointError(
                f"{spec.file}: {name}: expected the running statistics of norms, found none, as in an "
                "average over named_parameters(): take the model that it averages, which usually lies "
                "beside it, or save the average with its buffers; of group norms a manifest may say so "
                f"({', '.join(norms)})"
            )
        return super().complete(spec, checkpoint, config)

    def assumed(self, spec: ModelSpec) -> str:
        """Torchvision's defaults, wherever keys do not tell."""
        resize, parts = spec.preprocessing.resize, NetworkParts()
        edges = f"{resize.shortest_edge}/{resize.longest_edge}" if resize else "none"
        return (
            f"assumed ImageNet normalisation, resize {edges}, torchvision's anchors, at most "
            f"{parts.detection.per_image} detections an image; see `models --weights`; a manifest changes it"
        )

    def describe(self, spec: ModelSpec, state: State) -> list[str]:
        """Every part by what told it."""
        parts, origin = resolve_parts(spec, canonical_keys(state))
        values = flatten(parts.model_dump()) | {"body_norm.eps": norm_eps(parts.body_norm, parts.body)}
        for part in ("fpn", "box_head", "mask_head"):
            values[f"{part}.norm.eps"] = norm_eps(getattr(parts, part).norm)
        levels = f"{parts.levels} levels of {parts.fpn.channels} channels"
        lines = [f"  architecture  Mask R-CNN, {parts.body}, {levels}"]
        silent = {name for name in values if values[name] is None or is_idle(name, values)}
        for source, title in SOURCES.items():
            names = [name for name in values if origin[name] == source and name not in silent]
            fields = [f"    {name} = {plain(values[name])}" for name in names]
            lines += [f"  {title}:", *fields] if fields else []
        return lines + preprocessing_lines(spec.preprocessing)

    def build(self, spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Network:
        """From parts that keys and manifest tell together."""
        return build_network(spec, state, precision)

    def lean(self, spec: ModelSpec, state: State, network: Network) -> dict[str, Tensor]:
        """Under torchvision's names of today."""
        own = cast(TorchvisionNetwork, network).model.state_dict()
        return {key: tensor for key, tensor in canonical_keys(state).items() if key in own}

    def entry(self, spec: ModelSpec, state: State) -> dict[str, Any]:
        """Those parts of `network` that no key tells."""
        parts, _ = resolve_parts(spec, canonical_keys(state))
        kept = parts.model_dump(mode="json", include=_UNTOLD, exclude_none=True)
        kept["rpn"] = parts.rpn.model_dump(mode="json", exclude={"conv_depth"})
        for part in ("fpn", "box_head", "mask_head"):
            if getattr(parts, part).norm.kind == "group":
                kept[part] = {"norm": getattr(parts, part).norm.model_dump(mode="json", exclude_none=True)}
        return {"network": kept}
