"""What `--weights` means: a manifest, checkpoint files or a folder of them -> networks ready to vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sartorius_infer.checkpoints.reading import SUFFIXES, read_checkpoint
from sartorius_infer.competition import default_classes, default_rules
from sartorius_infer.errors import CheckpointError, ManifestError, SartoriusError
from sartorius_infer.files import bytes_sha256, file_sha256
from sartorius_infer.manifest.manifest import MANIFEST_NAME, Manifest, ModelSpec, load_manifest, verify_files
from sartorius_infer.networks import Network, architecture_of
from sartorius_infer.networks.detectron2.config import CONFIG_NAME, read_config
from sartorius_infer.networks.detectron2.rcnn import ARCHITECTURE, foreground_classes, is_detectron2
from sartorius_infer.networks.pyramid import PyramidNetwork


@dataclass(frozen=True, eq=False)
class Member:
    """One network of the ensemble and its vote.

    to_manifest    int64 (k + 1,): the network's label -> the manifest's, 0 for background and ignored
    from_manifest  int64 (K + 1,): the other way, 0 where the network does not know the class
    """

    name: str
    network: Network
    weight: float
    to_manifest: Tensor
    from_manifest: Tensor


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The members, on their device, and the manifest that says how they vote."""

    manifest: Manifest
    members: tuple[Member, ...]
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order, from 1."""
        return self.manifest.classes

    def quicken(self) -> None:
        """Let float32 networks on a CPU take faster arithmetic throughout, in place.

        It differs from their authors' in the last bits, which can decide between boxes that are all
        but equal. Networks that know no other arithmetic, and those elsewhere, stay as they are.
        """
        for member in self.members:
            if isinstance(member.network, PyramidNetwork):
                member.network.quicken()

    def with_overrides(
        self, views: Sequence[str] | None = None, edge: Literal["rule", "keep", "drop"] | None = None
    ) -> Ensemble:
        """The same networks with other views (as `parse_view` reads them) or another edge rule."""
        manifest = self.manifest
        if views is not None:
            manifest = manifest.model_copy(update={"views": tuple(views)})
        if edge is not None:
            rule = manifest.rules.edge.model_copy(update={"mode": edge})
            rules = manifest.rules.model_copy(update={"edge": rule})
            manifest = manifest.model_copy(update={"rules": rules})
        return replace(self, manifest=manifest)


def default_manifest() -> Path:
    """The manifest that comes with the package: installed inside it, or at the top of its source tree.

    Raises ManifestError where there is none.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "default", package.parent):
        if (folder / MANIFEST_NAME).is_file():
            return folder / MANIFEST_NAME
    raise ManifestError(f"no {MANIFEST_NAME} comes with this installation; name checkpoints by --weights")


def find_weights(weights: Sequence[Path]) -> Path | tuple[Path, ...]:
    """A manifest's path, or the paths of bare checkpoints.

    weights: one manifest, one or more checkpoints, folders of them (a manifest in a folder goes first),
    or nothing for the default. Raises ManifestError or CheckpointError for anything else.
    """
    if not weights:
        return default_manifest()
    manifests: list[Path] = []
    files: list[Path] = []
    for path in weights:
        if path.is_dir():
            path = path / MANIFEST_NAME if (path / MANIFEST_NAME).is_file() else path
        if path.suffix.lower() == ".json":
            manifests.append(path)
        else:
            files += _in_folder(path) if path.is_dir() else [path]
    if manifests and (files or len(manifests) > 1):
        raise ManifestError(
            f"{manifests[0]}: expected one manifest, or checkpoints alone, found both or several"
        )
    if twice := [file for file, count in Counter(f.resolve() for f in files).items() if count > 1]:
        raise CheckpointError(f"{twice[0]}: expected each checkpoint once, found it twice")
    return manifests[0] if manifests else tuple(files)


def weights_sha256(weights: Sequence[Path]) -> str:
    """One hash of everything that `--weights` means: entries of a manifest, configs, and every file."""
    found = find_weights(weights)
    texts = []
    if isinstance(found, Path):
        plan = load_manifest(found)
        for spec in plan.manifest.models:
            texts += [spec.model_dump_json(), spec.sha256 or file_sha256(plan.path(spec))]
    else:
        for path in found:
            texts += [file_sha256(file) for file in (path, config_beside(path)) if file is not None]
    return bytes_sha256("\n".join(texts).encode())


def _in_folder(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise CheckpointError(
            f"{folder}: expected {MANIFEST_NAME} or {', '.join(SUFFIXES)} files, found none"
        )
    return found


def load_ensemble(
    weights: Sequence[Path], device: torch.device, precision: torch.dtype = torch.float32
) -> Ensemble:
    """Networks with their weights on `device`, computing in `precision`.

    Every file's size and checksum is compared with the manifest before the first is loaded. Raises
    ManifestError and CheckpointError.
    """
    found = find_weights(weights)
    if isinstance(found, Path):
        plan = load_manifest(found)
        verify_files(plan)
        networks = [
            load_network(spec, read_checkpoint(plan.path(spec)).state, device, precision)
            for spec in plan.manifest.models
        ]
        return _assemble(plan.manifest, networks, device)
    specs, networks = [], []
    for path, name in zip(found, _names(found), strict=True):
        state = read_checkpoint(path).state
        specs.append(bare_spec(path, name, state))
        networks.append(load_network(specs[-1], state, device, precision))
    return _assemble(bare_manifest(specs, networks), networks, device)


def _names(files: Sequence[Path]) -> list[str]:
    """A name for each of some checkpoints: their files' names where those differ."""
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]


def bare_spec(path: Path, name: str, state: Mapping[str, Tensor], config: Path | None = None) -> ModelSpec:
    """The manifest entry of a checkpoint that comes without one.

    A Detectron2 checkpoint takes its settings from `config`, by default `<its name>.yaml` or
    `config.yaml` beside it. Raises CheckpointError where there is none, or where it cannot be honoured.
    """
    spec = ModelSpec(name=name, file=str(path))
    if not is_detectron2(state):
        if config is not None:
            raise CheckpointError(
                f"{path}: expected a Detectron2 checkpoint to go with {config}, found another"
            )
        return spec
    config = config or config_beside(path)
    if config is None:
        raise CheckpointError(
            f"{path}: a Detectron2 checkpoint: expected {CONFIG_NAME} beside it, found none; Detectron2 "
            "writes one where it trains, and cfg.dump() gives its text"
        )
    said, count = read_config(config), foreground_classes(state, str(path))
    if said.class_count not in (None, count):
        raise CheckpointError(
            f"{config}: MODEL.ROI_HEADS.NUM_CLASSES: expected {count}, as {path.name} has, found "
            f"{said.class_count}"
        )
    update = {
        "architecture": ARCHITECTURE,
        "preprocessing": said.preprocessing,
        "detectron2": said.parts,
        "provenance": said.source,
    }
    return spec.model_copy(update=update)


def config_beside(path: Path) -> Path | None:
    """The config that lies beside a checkpoint: `<its name>.yaml`, else `config.yaml`."""
    beside = (path.with_suffix(".yaml"), path.with_name(CONFIG_NAME))
    return next((file for file in beside if file.is_file()), None)


def bare_manifest(specs: Sequence[ModelSpec], networks: Sequence[Network]) -> Manifest:
    """What a manifest would say of bare checkpoints, by the documented defaults."""
    counts = {spec.file: network.class_count for spec, network in zip(specs, networks, strict=True)}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{file} has {count}" for file, count in counts.items())
        raise CheckpointError(f"expected checkpoints of one class count, found: {said}; write a manifest")
    (count,) = set(counts.values())
    if count < 1:
        raise CheckpointError(f"{specs[0].file}: expected a class besides background, found none")
    classes = default_classes(count)
    return Manifest(version=1, classes=classes, models=tuple(specs), rules=default_rules(classes))


def load_network(
    spec: ModelSpec, state: dict[str, Tensor], device: torch.device, precision: torch.dtype
) -> Network:
    """The network of one entry with its checkpoint's tensors, on `device`."""
    architecture = architecture_of(spec.architecture, state, spec.file)
    try:
        moved: Network = architecture.build(spec, state, precision).to(device)  # type: ignore[attr-defined]
    except SartoriusError:
        raise
    except Exception as error:  # a plugin may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{spec.file}: {architecture.name} cannot be built: {reason}") from error
    return moved


def _assemble(manifest: Manifest, networks: Sequence[Network], device: torch.device) -> Ensemble:
    for network in networks:
        if isinstance(network, PyramidNetwork):
            network.settle()
    members = tuple(
        _member(manifest.classes, spec, network, device)
        for spec, network in zip(manifest.models, networks, strict=True)
    )
    return Ensemble(manifest, members, device)


def _member(classes: Sequence[str], spec: ModelSpec, network: Network, device: torch.device) -> Member:
    own = spec.classes or tuple(classes)
    if len(own) != network.class_count:
        raise ManifestError(
            f"{spec.file}: expected {network.class_count} class names, as the checkpoint has, found "
            f"{len(own)}: {', '.join(own)}; write the network's own `classes` in its manifest entry"
        )
    to_manifest = [0, *(classes.index(c) + 1 if c in classes else 0 for c in own)]
    from_manifest = [0, *(own.index(c) + 1 if c in own else 0 for c in classes)]
    return Member(
        spec.name,
        network,
        spec.weight,
        torch.tensor(to_manifest, device=device),
        torch.tensor(from_manifest, device=device),
    )
