"""`import`: a training checkpoint becomes a lean `.safetensors` file and a manifest entry that says all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.checkpoints.storage import pack
from sartorius_infer.competition import default_classes, default_rules
from sartorius_infer.ensemble.ensemble import bare_spec, load_network
from sartorius_infer.errors import CheckpointError, ManifestError
from sartorius_infer.files import atomic_file, bytes_sha256, file_sha256
from sartorius_infer.manifest.manifest import MANIFEST_NAME, Manifest, ModelSpec, load_manifest
from sartorius_infer.networks import architecture_of
from sartorius_infer.networks.detectron2.rcnn import build_detectron2, canonical_state
from sartorius_infer.networks.torchvision.keys import canonical_keys
from sartorius_infer.networks.torchvision.rcnn import build_network, resolve_parts

_BUILDS = (build_network, build_detectron2)
_UNTOLD = {"body_norm", "anchors", "box_pool", "mask_pool", "detection"}
"""Parts of a torchvision network with settings that its keys do not tell; `rpn` is another."""

_SHORT_LIST = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")


@dataclass(frozen=True)
class Imported:
    """What was written: the weights, the manifest that names them, the entry, bytes before and after."""

    weights: Path
    manifest: Path
    spec: ModelSpec
    bytes_before: int
    bytes_after: int


def import_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    config: Path | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    manifest: Path | None = None,
    half: bool = False,
) -> Imported:
    """Write `<out>/<name>.safetensors` and its manifest entry, or nothing at all.

    The entry goes into a new `<out>/weights_manifest.json`, or is added to `manifest`, above whose
    folder the weights cannot lie. `classes` are the network's own, in label order, without background;
    None takes the competition's for three. `half` stores convolutions and matrices as float16. Raises
    CheckpointError and ManifestError; files that exist are never written over.
    """
    name = name or checkpoint.stem
    if Path(name).name != name:
        raise CheckpointError(f"{name}: expected a name without folders")
    weights, listing = out / f"{name}.safetensors", manifest or out / MANIFEST_NAME
    _require_free(weights, listing, manifest is not None)
    read = read_checkpoint(checkpoint)
    spec = bare_spec(checkpoint, name, read.state, config)
    if architecture_of(spec.architecture, read.state, spec.file).build not in _BUILDS:
        raise CheckpointError(f"{checkpoint}: expected a torchvision or Detectron2 checkpoint, found another")
    network = load_network(spec, read.state, torch.device("cpu"), torch.float32)
    content = save(
        pack(lean_state(spec, read.state, network), "float16" if half else "float32", str(checkpoint))
    )
    entry = {
        "name": name,
        "file": weights.resolve().relative_to(listing.parent.resolve()).as_posix(),
        "sha256": bytes_sha256(content),
        "bytes": len(content),
        "format": "safetensors",
        "classes": list(classes or default_classes(network.class_count)),
        **_settings(spec, read.state, checkpoint),
    }
    if len(entry["classes"]) != network.class_count:
        raise ManifestError(
            f"{checkpoint}: expected {network.class_count} class names, as the checkpoint has, found "
            f"{len(entry['classes'])}: {', '.join(entry['classes'])}"
        )
    text = _listing(listing, entry, manifest is not None)
    _write_both(weights, content, listing, text)
    written = next(s for s in load_manifest(listing).manifest.models if s.name == name)
    return Imported(weights, listing, written, checkpoint.stat().st_size, len(content))


def _write_both(weights: Path, content: bytes, listing: Path, text: str) -> None:
    weights.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(weights, "wb") as file:
        file.write(content)
    try:
        with atomic_file(listing, "w") as lines:
            lines.write(text)
    except BaseException:
        weights.unlink()
        raise


def _require_free(weights: Path, listing: Path, add: bool) -> None:
    if weights.exists():
        raise CheckpointError(f"{weights}: expected no file yet, found one; choose another --name or --out")
    if not add and listing.exists():
        raise ManifestError(f"{listing}: expected no file yet, found one; add to it with --manifest")
    if add and not listing.is_file():
        raise ManifestError(f"{listing}: expected a manifest to add to, found none; leave out --manifest")
    if not weights.resolve().is_relative_to(listing.parent.resolve()):
        raise ManifestError(f"{listing}: expected --out inside its folder, found {weights.parent}")


def lean_state(spec: ModelSpec, state: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """The network's own tensors in a checkpoint, without leftovers, under the keys it is built from."""
    parts = spec.detectron2
    canonical = canonical_keys(state) if parts is None else canonical_state(state, parts)
    own = network.model.state_dict()
    return {key: tensor for key, tensor in canonical.items() if key in own}


def _settings(spec: ModelSpec, state: Mapping[str, Tensor], checkpoint: Path) -> dict[str, Any]:
    """The JSON of everything that the weights do not tell."""
    if spec.detectron2 is not None:
        settings = {"detectron2": spec.detectron2.model_dump(mode="json")}
    else:
        parts, _ = resolve_parts(spec, canonical_keys(state))
        kept = parts.model_dump(mode="json", include=_UNTOLD, exclude_none=True)
        kept["rpn"] = parts.rpn.model_dump(mode="json", exclude={"conv_depth"})
        settings = {"network": kept}
    preprocessing = spec.preprocessing.model_dump(mode="json", exclude_none=True)
    if spec.preprocessing.resize is None:
        preprocessing["resize"] = None  # left out it would mean the default
    source = f"imported from {checkpoint.name}, sha256 {file_sha256(checkpoint)}"
    return {
        "architecture": spec.architecture or "torchvision_rcnn",
        "preprocessing": preprocessing,
        **settings,
        "provenance": f"{source}; {spec.provenance}" if spec.provenance else source,
    }


def _listing(path: Path, entry: dict[str, Any], add: bool) -> str:
    """The manifest's new text, checked."""
    if add:
        load_manifest(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        content["models"].append(entry)
    else:
        rules = default_rules(entry["classes"])
        content = {
            "version": 1,
            "classes": entry["classes"],
            "models": [entry],
            "views": ["identity"],
            "rules": rules.model_dump(mode="json", exclude_none=True),
        }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    try:
        Manifest.model_validate_json(text)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"{path}: the new entry does not fit: {reason[:300]}") from None
    return _SHORT_LIST.sub(_one_line, text) + "\n"


def _one_line(found: re.Match[str]) -> str:
    lines = found[1].split("\n")  # text may hold other line ends
    return f"[{' '.join(line.strip() for line in lines)}]"
