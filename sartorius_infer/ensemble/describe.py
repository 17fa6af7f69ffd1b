"""What the kit knows of checkpoints: what their keys tell, what is assumed, how large they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sartorius_infer.ensemble.loading import Opened, load
from sartorius_infer.ensemble.weights import Weights
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.manifest import Manifest, ModelSpec
from sartorius_infer.networks import family_of


def describe_weights(weights: Weights, last: Callable[[Manifest], str] = lambda manifest: "") -> str:
    """A report on every checkpoint, and what `last` has to say of the manifest.

    Each checkpoint is built, so it raises what loading would raise.
    """
    reports: list[tuple[list[str], list[str]]] = []
    ensemble = load(weights, torch.device("cpu"), on_open=lambda opened: reports.append(_report(opened)))
    manifest = ensemble.manifest
    texts = [
        "\n".join([*file_lines, f"  classes       background, {_classes(spec, manifest, weights)}", *rest])
        for spec, (file_lines, rest) in zip(manifest.models, reports, strict=True)
    ]
    head = f"{weights.path}: classes {', '.join(manifest.classes)}; views {', '.join(manifest.views)}"
    if (limits := manifest.images.limits) is not None:
        head += f"; 16-bit values from {limits[0]} to {limits[1]}"
    return "\n\n".join(filter(None, [head * (not weights.is_bare), *texts, last(manifest)]))


def told_and_assumed(spec: ModelSpec) -> str:
    """One line on where a bare checkpoint's settings are from; "" where there is nothing to say."""
    family = family_of(spec.architecture, {}, spec.file)
    said = "; ".join(filter(None, (family.told(spec), family.assumed(spec))))
    return f"{spec.file}: {said}" if said else ""


def assumed(spec: ModelSpec) -> str:
    """One line on what a checkpoint does not tell and the kit assumes; "" where that is nothing."""
    said = family_of(spec.architecture, {}, spec.file).assumed(spec)
    return f"{spec.file}: {said}" if said else ""


def _classes(spec: ModelSpec, manifest: Manifest, weights: Weights) -> str:
    return f"{', '.join(spec.classes or manifest.classes)}{' (assumed)' * weights.is_bare}"


def _report(opened: Opened) -> tuple[list[str], list[str]]:
    """Lines on the file, and lines on the network in it."""
    path, spec, checkpoint = opened.path, opened.spec, opened.checkpoint
    file_lines = [
        spec.name,
        f"  file          {path}",
        f"  bytes         {path.stat().st_size:,}",
        f"  sha256        {file_sha256(path)}",
        f"  tensors       {_tensors(checkpoint.state)}",
        f"  found under   {checkpoint.wrapper or 'the top level'}, prefix {checkpoint.prefix or 'none'}",
    ]
    if checkpoint.left_out:
        file_lines.append(f"  left out      {', '.join(checkpoint.left_out)}")
    provenance = [f"  provenance    {spec.provenance}"] if spec.provenance else []
    return file_lines, [*provenance, *opened.family.describe(spec, checkpoint.state)]


def _tensors(state: Mapping[str, Tensor]) -> str:
    floats = [t for t in state.values() if t.is_floating_point()]
    kinds = Counter(str(t.dtype).removeprefix("torch.") for t in floats)
    weights = sum(t.numel() for key, t in state.items() if t.is_floating_point() and "running_" not in key)
    broken = sum(not bool(torch.isfinite(t).all()) for t in floats)
    warning = f"; {broken} hold NaN or infinity" if broken else ""
    return f"{len(state)}, {weights:,} parameters in {', '.join(sorted(kinds))}{warning}"
