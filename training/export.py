"""A trained network becomes a checkpoint and a manifest that `sartorius_infer --weights` takes as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sartorius_infer.checkpoints.storage import pack
from sartorius_infer.competition import COMPETITION_SIZE_HW
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.member import Member
from sartorius_infer.files import atomic_file, bytes_sha256
from sartorius_infer.manifest.manifest import MANIFEST_NAME, Manifest, ModelSpec
from sartorius_infer.manifest.writing import write_manifest
from sartorius_infer.networks.torchvision.rcnn import build_network
from training.model import exported_state
from training.recipe import Recipe


def manifest_of(
    recipe: Recipe, provenance: str = "", learned_hw: tuple[int, int] = COMPETITION_SIZE_HW, **file: Any
) -> Manifest:
    """The manifest of one network of this recipe; `file` says what is known of its file.

    learned_hw is the size of the images that it learned on, in pixels, by which others are seen in tiles.
    """
    entry: dict[str, Any] = {
        "name": recipe.name,
        "file": f"{recipe.name}.safetensors",
        **file,
        "format": "safetensors",
        "architecture": recipe.architecture,
        "classes": recipe.classes,
        "preprocessing": _written(recipe.preprocessing),
        "network": _written(recipe.network) if recipe.network else {},
        "provenance": provenance,
        "licence": recipe.licence,
    }
    content = {
        "version": 1,
        "classes": recipe.classes,
        "models": [entry],
        **({} if learned_hw == COMPETITION_SIZE_HW else {"learned_hw": learned_hw}),
        "views": ["identity"],
        "rules": recipe.final_rules.model_dump(mode="json", exclude_none=True),
    }
    return Manifest.model_validate_json(json.dumps(content))


def _written(settings: Any) -> dict[str, Any]:
    written: dict[str, Any] = settings.model_dump(mode="json", exclude_unset=True)
    return _without_none(written, keep=("resize",))


def _without_none(tree: dict[str, Any], keep: tuple[str, ...]) -> dict[str, Any]:
    """What is null means the default, but where null is a choice of its own."""
    return {
        key: _without_none(value, keep) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None or key in keep
    }


def as_ensemble(recipe: Recipe, state: Mapping[str, Tensor], device: torch.device) -> Ensemble:
    """An ensemble of the one network, for the kit's own passes; its tensors are copies."""
    manifest = manifest_of(recipe)
    spec = manifest.models[0]
    tensors = {k: t.detach().cpu().clone() for k, t in exported_state(state, len(recipe.classes)).items()}
    network = build_network(spec, tensors, torch.float32).to(device)
    same = torch.arange(len(recipe.classes) + 1, device=device)
    return Ensemble(manifest, (Member(spec.name, network, 1.0, same, same),), device)


def write_checkpoint(
    out: Path,
    recipe: Recipe,
    state: Mapping[str, Tensor],
    provenance: str,
    learned_hw: tuple[int, int] = COMPETITION_SIZE_HW,
) -> ModelSpec:
    """Write `<name>.safetensors` and the manifest beside it; gives the manifest's entry."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: t.detach().cpu() for k, t in exported_state(state, len(recipe.classes)).items()}
    file = out / f"{recipe.name}.safetensors"
    content = save(pack(tensors, recipe.store, str(file)))
    known = {"sha256": bytes_sha256(content), "bytes": len(content)}
    manifest = manifest_of(recipe, provenance, learned_hw, **known)
    with atomic_file(file, "wb") as weights:
        weights.write(content)
    write_manifest(out / MANIFEST_NAME, manifest)
    return manifest.models[0]
