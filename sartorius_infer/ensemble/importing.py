"""`import`: a training checkpoint becomes a lean `.safetensors` file and a manifest entry that says all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from sartorius_infer.checkpoints.files import name_of, named_network
from sartorius_infer.checkpoints.storage import Store, pack
from sartorius_infer.competition import any_score, default_classes, default_rules
from sartorius_infer.ensemble.loading import Opened, open_bare
from sartorius_infer.errors import CheckpointError, ManifestError
from sartorius_infer.files import Paths, as_paths, atomic_file, bytes_sha256, file_sha256
from sartorius_infer.manifest.manifest import MANIFEST_NAME, ModelSpec, load_manifest
from sartorius_infer.manifest.writing import manifest_text, with_entries


@dataclass(frozen=True)
class Imported:
    """What was written: the weights, the manifest that names them, the entry, bytes before and after."""

    weights: Path
    manifest: Path
    spec: ModelSpec
    bytes_before: int
    bytes_after: int


def import_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    manifest: str | Path | None = None,
    half: bool = False,
) -> Imported:
    """Write `<out>/<name>.safetensors` and its manifest entry, or nothing at all.

    The entry goes into a new `<out>/weights_manifest.json`, or is added to `manifest`, above whose
    folder the weights cannot lie. "run.pth::ema" is one network of a file of several. `classes` are the
    network's own, in label order, without background; None takes the competition's for three. `half`
    stores convolutions and matrices as float16. Raises
    CheckpointError and ManifestError; files that exist are never written over. Weights that are there
    already, byte for byte, are taken as they are.
    """
    path = Path(checkpoint)
    settings = _Settings(None if config is None else Path(config), classes, half)
    (done,) = _import([(path, name or name_of(path))], Path(out), manifest, settings)
    return done


def import_checkpoints(
    checkpoints: Paths,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    manifest: str | Path | None = None,
    half: bool = False,
) -> list[Imported]:
    """`import_checkpoint` for each of several, into one manifest, under the names of their files.

    All of them are written, or none. Raises CheckpointError where two are called alike.
    """
    files = as_paths(checkpoints, "checkpoints")
    named = [(path, name_of(path)) for path in files]
    return _import(named, Path(out), manifest, _Settings(None, classes, half))


class _Settings(NamedTuple):
    """What holds for all checkpoints of one import."""

    config: Path | None
    classes: Sequence[str] | None
    half: bool


def _import(
    named: Sequence[tuple[Path, str]], out: Path, manifest: str | Path | None, settings: _Settings
) -> list[Imported]:
    listing = out / MANIFEST_NAME if manifest is None else Path(manifest)
    targets = [out / f"{name}.safetensors" for _, name in named]
    for (checkpoint, name), weights in zip(named, targets, strict=True):
        if Path(name).name != name:
            raise CheckpointError(f"{name}: expected a name without folders")
        if targets.count(weights) > 1:
            raise CheckpointError(f"{checkpoint}: expected names that differ, found {name!r} twice")
        _require_listing(weights, listing, manifest is not None)
    with _all_or_none(out) as written:
        entries: list[dict[str, Any]] = []
        for (checkpoint, name), weights in zip(named, targets, strict=True):
            content, entry = _converted(open_bare(checkpoint, name, settings.config), settings)
            entry["file"] = weights.resolve().relative_to(listing.parent.resolve()).as_posix()
            entries.append(entry)
            text = _listing(listing, entries, manifest is not None)
            out.mkdir(parents=True, exist_ok=True)
            if not _is_there(weights, content):
                with atomic_file(weights, "wb") as file:
                    file.write(content)
                written.append(weights)
        with atomic_file(listing, "w") as lines:
            lines.write(text)
    specs = {spec.name: spec for spec in load_manifest(listing).manifest.models}
    return [
        Imported(weights, listing, specs[name], _size(path), weights.stat().st_size)
        for (path, name), weights in zip(named, targets, strict=True)
    ]


@contextmanager
def _all_or_none(out: Path) -> Iterator[list[Path]]:
    """A list of files in `out` that are removed again, and `out` with them if it is new, should all fail."""
    is_new, written = not out.exists(), list[Path]()
    try:
        yield written
    except BaseException:
        for weights in written:
            weights.unlink()
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise


def _size(path: Path) -> int:
    return named_network(path)[0].stat().st_size


def _is_there(weights: Path, content: bytes) -> bool:
    """Whether the file is written already, by an import that was killed before it wrote its manifest."""
    if not weights.exists():
        return False
    if not weights.is_file() or weights.stat().st_size != len(content) or weights.read_bytes() != content:
        raise _taken(weights)
    return True


def _taken(weights: Path) -> CheckpointError:
    return CheckpointError(f"{weights}: expected no file yet, found one; choose another --name or --out")


def _require_listing(weights: Path, listing: Path, add: bool) -> None:
    if not add and listing.exists():
        raise ManifestError(f"{listing}: expected no file yet, found one; add to it with --manifest")
    if add and not listing.is_file():
        raise ManifestError(f"{listing}: expected a manifest to add to, found none; leave out --manifest")
    if not weights.resolve().is_relative_to(listing.parent.resolve()):
        raise ManifestError(f"{listing}: expected --out inside its folder, found {weights.parent}")
    if add:
        named = (listing.parent / spec.file for spec in load_manifest(listing).manifest.models)
        if weights.resolve() in {path.resolve() for path in named}:
            raise _taken(weights)


def _converted(opened: Opened, settings: _Settings) -> tuple[bytes, dict[str, Any]]:
    """A checkpoint as safetensors, and its entry's JSON but for where it lies."""
    path, spec, state, family = opened.path, opened.spec, opened.checkpoint.state, opened.family
    if not family.settings:
        raise CheckpointError(f"{path}: expected a network that comes with the kit, found a plugin's")
    network = opened.build(torch.device("cpu"), torch.float32)
    store: Store = "float16" if settings.half else "float32"
    content = save(pack(family.lean(spec, state, network), store, str(path)))
    count = network.class_count
    classes = list(settings.classes or spec.classes or (default_classes(count) if count is not None else ()))
    if count not in (None, len(classes)):
        raise ManifestError(
            f"{path}: expected {count} class names, as the checkpoint has, found "
            f"{len(classes)}: {', '.join(classes)}"
        )
    which = f"::{spec.state}" if spec.state else ""
    source = f"imported from {path.name}{which}, sha256 {file_sha256(path)}"
    return content, {
        "name": spec.name,
        "file": "",
        "sha256": bytes_sha256(content),
        "bytes": len(content),
        "format": "safetensors",
        **({"classes": classes} if classes else {}),
        "architecture": spec.architecture,
        **({"preprocessing": _preprocessing(spec)} if family.preprocessing else {}),
        **family.entry(spec, state),
        "provenance": f"{source}; {spec.provenance}" if spec.provenance else source,
    }


def _preprocessing(spec: ModelSpec) -> dict[str, Any]:
    said = spec.preprocessing.model_dump(mode="json", exclude_none=True)
    if spec.preprocessing.resize is None:
        said["resize"] = None  # left out it would mean the default
    return said


def _listing(path: Path, entries: Sequence[dict[str, Any]], add: bool) -> str:
    """The manifest's new text, checked."""
    if add:
        return manifest_text(path, with_entries(path, entries))
    told = next((entry["classes"] for entry in entries if "classes" in entry), None)
    classes = told or default_classes(1)
    rules = default_rules(classes) if told else any_score(classes)
    content = {
        "version": 1,
        "classes": classes,
        "models": list(entries),
        "views": ["identity"],
        "rules": rules.model_dump(mode="json", exclude_none=True),
    }
    return manifest_text(path, content)
