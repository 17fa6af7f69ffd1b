"""Detectron2's Mask R-CNN as a family: a config tells what a checkpoint does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sartorius_infer.checkpoints.reading import Checkpoint
from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.detectron2 import Detectron2Body
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.manifest.settings import flatten
from sartorius_infer.networks.base import Network
from sartorius_infer.networks.detectron2.config import CONFIG_NAME, read_config
from sartorius_infer.networks.detectron2.rcnn import (
    ARCHITECTURE,
    Detectron2Network,
    build_detectron2,
    canonical_state,
    foreground_classes,
    is_detectron2,
    parts_of,
)
from sartorius_infer.networks.registry import Family, State
from sartorius_infer.networks.wording import is_idle, plain, preprocessing_lines


class Detectron2Family(Family):
    """Settings come from `<checkpoint's name>.yaml` or `config.yaml`."""

    names = (ARCHITECTURE,)
    settings = True

    def recognise(self, state: State) -> bool:
        """By the keys of proposal generator and mask head."""
        return is_detectron2(state)

    def complete(self, spec: ModelSpec, checkpoint: Checkpoint, config: Path | None) -> ModelSpec:
        """With everything that the config decides."""
        path = Path(spec.file)
        config = config or _config_beside(path)
        if config is None:
            raise CheckpointError(
                f"{path}: a Detectron2 checkpoint: expected {CONFIG_NAME} beside it, found none; Detectron2 "
                "writes one where it trains, and cfg.dump() gives its text"
            )
        said, count = read_config(config), foreground_classes(checkpoint.state, spec.file)
        source = said.source
        if said.class_count not in (None, count):  # scripts set it in code and leave the file as it was
            source += f" (but for NUM_CLASSES: {said.class_count} there, {count} in the checkpoint)"
        update = {
            "architecture": ARCHITECTURE,
            "preprocessing": said.preprocessing,
            "detectron2": said.parts,
            "provenance": source,
        }
        return spec.model_copy(update=update)

    def told(self, spec: ModelSpec) -> str:
        """By its config."""
        return f"Detectron2, {spec.provenance}; see `models --weights`"

    def describe(self, spec: ModelSpec, state: State) -> list[str]:
        """Every setting of the entry."""
        parts = parts_of(spec)
        body, values = parts.body, flatten(parts.model_dump())
        kind = "Cascade Mask R-CNN" if parts.box_head.cascade else "Mask R-CNN"
        width = f" {body.groups}x{body.width_per_group}d" if body.groups > 1 else ""
        letter = "ResNeSt-" if body.radix > 1 else "X" if body.groups > 1 else "R"
        taps = " with deformable convolutions" if body.deformable else ""
        name = f"{letter}{body.depth}{width}"
        silent = {n for n in values if is_idle(n, values) or (n.endswith(".eps") and values[n] is None)}
        silent |= _without_effect(body)
        return [
            f"  architecture  Detectron2 {kind}, {name}-FPN of {parts.fpn.channels} channels{taps}",
            "  settings:",
            *(f"    {n} = {plain(value)}" for n, value in values.items() if n not in silent),
            *preprocessing_lines(spec.preprocessing),
        ]

    def build(self, spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Network:
        """From the entry's settings."""
        return build_detectron2(spec, state, precision)

    def lean(self, spec: ModelSpec, state: State, network: Network) -> dict[str, Tensor]:
        """Under Detectron2's own names."""
        own = cast(Detectron2Network, network).model.state_dict()
        return {key: t for key, t in canonical_state(state, parts_of(spec)).items() if key in own}

    def entry(self, spec: ModelSpec, state: State) -> dict[str, Any]:
        """All of `detectron2`."""
        return {"detectron2": parts_of(spec).model_dump(mode="json")}


def _without_effect(body: Detectron2Body) -> set[str]:
    """Settings of other bodies than this one."""
    idle = set() if body.deformable else {"deformable", "modulated", "deformable_groups"}
    idle |= {"stem_channels"} if body.radix > 1 else {"radix"}
    return {f"body.{name}" for name in idle}


def _config_beside(path: Path) -> Path | None:
    beside = (path.with_suffix(".yaml"), path.with_name(CONFIG_NAME))
    return next((file for file in beside if file.is_file()), None)
