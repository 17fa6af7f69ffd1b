"""What `--weights` means, before any of it is loaded: a manifest, or bare checkpoints. No torch here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sartorius_infer.checkpoints.files import SUFFIXES, looks_like_a_checkpoint, named_network
from sartorius_infer.errors import CheckpointError, ManifestError, some
from sartorius_infer.files import Paths, as_paths, visible
from sartorius_infer.manifest.manifest import MANIFEST_NAME, Plan, load_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A manifest, or, where `plan` is None, checkpoints that come without one.

    path   the manifest's own file
    files  the bare checkpoints, at least one; "FILE::ema" means one network of several in a file
    config the file that says what the only one of them does not; None: one inside or beside it
    """

    plan: Plan | None = None
    path: Path | None = None
    files: tuple[Path, ...] = ()
    config: Path | None = None

    @property
    def is_bare(self) -> bool:
        """Whether a manifest has still to be put together from the checkpoints."""
        return self.plan is None

    @property
    def folder(self) -> Path:
        """What the files of entries are relative to; bare checkpoints name theirs as they were given."""
        return Path() if self.plan is None else self.plan.folder

    def require_plan(self) -> Plan:
        """The manifest; raises ManifestError for bare checkpoints, which tell neither classes nor rules."""
        if self.plan is None:
            raise ManifestError(
                f"{self.files[0]}: expected --weights to be a manifest here, found checkpoints; "
                "`sartorius_infer import` makes one"
            )
        return self.plan


def default_manifest() -> Path:
    """The manifest that comes with the package: installed inside it, or at the top of its source tree.

    Raises ManifestError where there is none.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "default", package.parent):
        if (folder / MANIFEST_NAME).is_file():
            return folder / MANIFEST_NAME
    raise ManifestError(f"no {MANIFEST_NAME} comes with this installation; name checkpoints by --weights")


def find_weights(weights: Paths = (), config: str | Path | None = None) -> Weights:
    """What `weights` are: one manifest, one or more checkpoints, folders of them, or nothing: the included.

    A manifest in a folder goes before what else is there. Of a folder without one, every file that is a
    checkpoint by its content counts, whatever it is called; what is left out is said in a warning. After
    "::" stands which network of a file, or of every file of a folder, is meant. `config` goes with one
    checkpoint. Raises ManifestError for a faulty manifest or several, CheckpointError for a folder without
    checkpoints, a file that is named twice, or a config with anything else than one checkpoint.
    """
    found = _find(weights)
    if config is None:
        return found
    if len(found.files) != 1:
        what = "a manifest" if found.plan else f"{len(found.files)} checkpoints"
        raise CheckpointError(f"{config}: expected one checkpoint to go with a config, found {what}")
    return replace(found, config=Path(config))


def _find(weights: Paths) -> Weights:
    paths = as_paths(weights, "weights")
    if not paths:
        return _of_manifest(default_manifest())
    manifests: list[Path] = []
    files: list[Path] = []
    for path in paths:
        folder, state = named_network(path)
        if path.is_dir():
            path = path / MANIFEST_NAME if (path / MANIFEST_NAME).is_file() else path
        if path.suffix.lower() == ".json":
            manifests.append(path)
        elif state is not None and folder.is_dir():
            files += [Path(f"{file}::{state}") for file in _in_folder(folder)]
        else:
            files += _in_folder(path) if path.is_dir() else [path]
    if manifests and (files or len(manifests) > 1):
        raise ManifestError(
            f"{manifests[0]}: expected one manifest, or checkpoints alone, found both or several"
        )
    named = Counter((file.resolve(), state) for file, state in map(named_network, files))
    if twice := [file for (file, _), count in named.items() if count > 1]:
        raise CheckpointError(f"{twice[0]}: expected each checkpoint once, found it twice")
    return _of_manifest(manifests[0]) if manifests else Weights(files=tuple(files))


def _of_manifest(path: Path) -> Weights:
    return Weights(load_manifest(path), path)


def _in_folder(folder: Path) -> list[Path]:
    files = [path for path in visible(folder) if path.is_file()]
    found = [path for path in files if looks_like_a_checkpoint(path)]
    if not found:
        raise CheckpointError(
            f"{folder}: expected {MANIFEST_NAME} or checkpoints ({', '.join(SUFFIXES)}), found none"
        )
    _say_left_out(folder, [path.name for path in files if path not in found])
    return found


def _say_left_out(folder: Path, names: Sequence[str]) -> None:
    """Configs go with a checkpoint of their own, so nobody misses them here."""
    names = [name for name in names if not name.lower().endswith((".yaml", ".yml", ".py"))]
    if names:
        log.warning("%s: left out, being no checkpoints: %s", folder, some(names))
