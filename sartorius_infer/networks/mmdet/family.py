"""MMDetection's Mask R-CNN family: the config in a checkpoint, or beside it, tells what its keys do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sartorius_infer.checkpoints.reading import Checkpoint
from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.manifest.settings import flatten
from sartorius_infer.networks.base import Network
from sartorius_infer.networks.mmdet.config import MmdetConfig, class_names, read_config, read_config_text
from sartorius_infer.networks.mmdet.keys import (
    ARCHITECTURE,
    canonical_state,
    foreground_classes,
    is_mmdet,
    parts_of,
)
from sartorius_infer.networks.mmdet.rcnn import MmdetNetwork, build_mmdet
from sartorius_infer.networks.registry import Family, State
from sartorius_infer.networks.wording import is_idle, plain, preprocessing_lines

_TEXTS = ("cfg", "config")
"""Under `meta`, where MMDetection 3 and 2 keep the text of the config."""

_KINDS = {"standard": "Mask R-CNN", "cascade": "Cascade Mask R-CNN", "htc": "Hybrid Task Cascade"}


class MmdetFamily(Family):
    """Settings come from `--config`, else the checkpoint itself, else a `.py` file beside it."""

    names = (ARCHITECTURE,)
    settings = True

    def recognise(self, state: State) -> bool:
        """By the keys of body, RPN and both heads."""
        return is_mmdet(state)

    def complete(self, spec: ModelSpec, checkpoint: Checkpoint, config: Path | None) -> ModelSpec:
        """With everything that the config decides, and the names of its data set's classes.

        The classifier tells how many classes there are: scripts change `num_classes` in code.
        """
        path = Path(spec.file)
        said, count = _config(path, checkpoint, config), foreground_classes(checkpoint.state, spec.file)
        names = _told_classes(checkpoint.meta) or said.classes
        update = {
            "architecture": ARCHITECTURE,
            "preprocessing": said.preprocessing,
            "mmdet": said.parts,
            "provenance": said.source,
            "classes": names if len(names) == count else None,
        }
        return spec.model_copy(update=update)

    def told(self, spec: ModelSpec) -> str:
        """By its config."""
        return f"MMDetection, {spec.provenance}; see `models --weights`"

    def describe(self, spec: ModelSpec, state: State) -> list[str]:
        """Every setting of the entry."""
        parts = parts_of(spec)
        values = _flat(parts.model_dump())
        silent = {n for n in values if is_idle(n, values) or values[n] is None}
        depth = f"-{depth}" if (depth := getattr(parts.body, "depth", None)) else ""
        return [
            f"  architecture  MMDetection {_KINDS[parts.heads]}, {parts.body.kind}{depth}, FPN of "
            f"{parts.fpn.channels} channels",
            "  settings:",
            *(f"    {n} = {plain(value)}" for n, value in values.items() if n not in silent),
            *preprocessing_lines(spec.preprocessing),
        ]

    def build(self, spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Network:
        """From the entry's settings."""
        return build_mmdet(spec, state, precision)

    def lean(self, spec: ModelSpec, state: State, network: Network) -> dict[str, Tensor]:
        """Under MMDetection's own names."""
        own = cast(MmdetNetwork, network).model.state_dict()
        return {key: t for key, t in canonical_state(state).items() if key in own}

    def entry(self, spec: ModelSpec, state: State) -> dict[str, Any]:
        """All of `mmdet`."""
        return {"mmdet": parts_of(spec).model_dump(mode="json")}


def _config(path: Path, checkpoint: Checkpoint, config: Path | None) -> MmdetConfig:
    """What the config says that is given, that the checkpoint holds, or that lies beside it."""
    if config is not None:
        return read_config(config)
    for name in _TEXTS:
        text = checkpoint.meta.get(name)
        if isinstance(text, str) and text.strip():
            return read_config_text(text, path, f"meta.{name}")
    beside = _config_beside(path)
    if beside is None:
        raise CheckpointError(
            f"{path}: an MMDetection checkpoint without its config: expected it as meta.cfg or meta.config "
            f"inside, or {path.stem}.py or one .py file beside it, found none; cfg.dump() writes it, and "
            "--config FILE.py names one that lies elsewhere"
        )
    return read_config(beside)


def _config_beside(path: Path) -> Path | None:
    own = path.with_suffix(".py")
    if own.is_file():
        return own
    files = sorted(file for file in path.parent.glob("*.py") if file.is_file())
    return files[0] if len(files) == 1 else None


def _told_classes(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that a checkpoint holds, by MMDetection 3 or 2."""
    data_set = meta.get("dataset_meta")
    values = [data_set.get("classes"), data_set.get("CLASSES")] if isinstance(data_set, dict) else []
    return next((names for names in map(class_names, [*values, meta.get("CLASSES")]) if names), ())


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Dotted names of settings, those of lists by their number."""
    numbered = {
        name: {str(index): entry for index, entry in enumerate(value)}
        if isinstance(value, tuple) and value and isinstance(value[0], dict)
        else value
        for name, value in tree.items()
    }
    return flatten(numbered)
