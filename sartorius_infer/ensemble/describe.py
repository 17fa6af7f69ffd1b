"""What the kit knows of a checkpoint: what its keys tell, what is assumed, how large it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.ensemble.ensemble import find_weights, load_ensemble
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.manifest.settings import flatten
from sartorius_infer.manifest.torchvision import NetworkParts
from sartorius_infer.networks import architecture_of
from sartorius_infer.networks.layers import norm_eps
from sartorius_infer.networks.torchvision.keys import canonical_keys
from sartorius_infer.networks.torchvision.rcnn import build_network, resolve_parts

SOURCES = {
    "keys": "told by the checkpoint's keys",
    "manifest": "said by the manifest",
    "preset": "implied by the architecture's name",
    "default": "assumed (write them as `network` fields of a manifest to change them)",
}


def describe_weights(weights: Sequence[Path]) -> str:
    """A report on every checkpoint that `--weights` means; raises what loading them would raise."""
    manifest = load_ensemble(weights, torch.device("cpu")).manifest
    found = find_weights(weights)
    if not isinstance(found, Path):
        bare = (
            _describe(Path(s.file), s, f"{', '.join(manifest.classes)} (assumed)") for s in manifest.models
        )
        return "\n\n".join(bare)
    head = f"{found}: classes {', '.join(manifest.classes)}; views {', '.join(manifest.views)}"
    reports = (
        _describe(found.parent / s.file, s, ", ".join(s.classes or manifest.classes)) for s in manifest.models
    )
    return "\n\n".join([head, *reports])


def assumptions(spec: ModelSpec) -> str:
    """One line of what a bare checkpoint does not tell and the kit assumes."""
    if spec.detectron2 is not None:
        return f"{spec.file}: Detectron2, {spec.provenance}; see `models --weights`"
    parts = NetworkParts()
    resize = spec.preprocessing.resize
    edges = f"{resize.shortest_edge}/{resize.longest_edge}" if resize else "none"
    return (
        f"{spec.file}: assumed ImageNet normalisation, resize {edges}, torchvision's anchors, at most "
        f"{parts.detection.per_image} detections an image; see `models --weights`; a manifest changes it"
    )


def _describe(path: Path, spec: ModelSpec, classes: str) -> str:
    checkpoint = read_checkpoint(path)
    architecture = architecture_of(spec.architecture, checkpoint.state, spec.file)
    lines = [
        spec.name,
        f"  file          {path}",
        f"  bytes         {path.stat().st_size:,}",
        f"  sha256        {file_sha256(path)}",
        f"  tensors       {_tensors(checkpoint.state)}",
        f"  found under   {checkpoint.wrapper or 'the top level'}, prefix {checkpoint.prefix or 'none'}",
        f"  classes       background, {classes}",
        *([f"  provenance    {spec.provenance}"] if spec.provenance else []),
    ]
    if spec.detectron2 is not None:
        lines += _detectron2_lines(spec, spec.detectron2) + _preprocessing_lines(spec)
    elif architecture.build is build_network:
        lines += _part_lines(spec, canonical_keys(checkpoint.state)) + _preprocessing_lines(spec)
    else:
        lines.append(f"  architecture  {architecture.name} (from a plugin)")
    return "\n".join(lines)


def _part_lines(spec: ModelSpec, state: Mapping[str, Tensor]) -> list[str]:
    parts, origin = resolve_parts(spec, state)
    values = flatten(parts.model_dump()) | {"body_norm.eps": norm_eps(parts.body_norm, parts.body)}
    for part in ("fpn", "box_head", "mask_head"):
        values[f"{part}.norm.eps"] = norm_eps(getattr(parts, part).norm)
    levels = f"{parts.levels} levels of {parts.fpn.channels} channels"
    lines = [f"  architecture  Mask R-CNN, {parts.body}, {levels}"]
    silent = {name for name in values if values[name] is None or _idle(name, values)}
    for source, title in SOURCES.items():
        names = [name for name in values if origin[name] == source and name not in silent]
        fields = [f"    {name} = {_plain(values[name])}" for name in names]
        lines += [f"  {title}:", *fields] if fields else []
    return lines


def _detectron2_lines(spec: ModelSpec, parts: Detectron2Parts) -> list[str]:
    body, values = parts.body, flatten(parts.model_dump())
    kind = "Cascade Mask R-CNN" if parts.box_head.cascade else "Mask R-CNN"
    name = f"X{body.depth} {body.groups}x{body.width_per_group}d" if body.groups > 1 else f"R{body.depth}"
    fields = [n for n in values if not _idle(n, values) and not (n.endswith(".eps") and values[n] is None)]
    return [
        f"  architecture  Detectron2 {kind}, {name}-FPN of {parts.fpn.channels} channels",
        "  settings:",
        *(f"    {name} = {_plain(values[name])}" for name in fields),
    ]


def _preprocessing_lines(spec: ModelSpec) -> list[str]:
    seen, said = spec.preprocessing, spec.preprocessing.model_fields_set
    values = {"resize": "none"} if seen.resize is None else {}
    values |= flatten(seen.model_dump(exclude_none=True))
    assumed = {name: "" if name.partition(".")[0] in said else " (assumed)" for name in values}
    return ["  preprocessing:", *(f"    {name} = {_plain(v)}{assumed[name]}" for name, v in values.items())]


def _idle(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting of a norm has no effect on a norm of its kind."""
    part, _, setting = name.rpartition(".")
    kind = values.get(f"{part}.kind")
    if kind is None:
        return False
    return (setting == "groups" and kind != "group") or (setting == "eps" and kind == "none")


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_plain(v) for v in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tensors(state: Mapping[str, Tensor]) -> str:
    floats = [t for t in state.values() if t.is_floating_point()]
    kinds = Counter(str(t.dtype).removeprefix("torch.") for t in floats)
    weights = sum(t.numel() for key, t in state.items() if t.is_floating_point() and "running_" not in key)
    broken = sum(not bool(torch.isfinite(t).all()) for t in floats)
    warning = f"; {broken} hold NaN or infinity" if broken else ""
    return f"{len(state)}, {weights:,} parameters in {', '.join(sorted(kinds))}{warning}"
