"""Checkpoints become networks that vote: each file is read once, checked, completed and built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sartorius_infer.checkpoints.files import name_of, named_network, verify_files
from sartorius_infer.checkpoints.reading import Checkpoint, read_checkpoint
from sartorius_infer.competition import any_score, default_classes, default_rules
from sartorius_infer.ensemble.device import keep_memory, resolve_device, resolve_precision
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.member import make_member
from sartorius_infer.ensemble.weights import Weights, find_weights
from sartorius_infer.errors import CheckpointError, SartoriusError
from sartorius_infer.files import Paths, bytes_sha256, file_sha256
from sartorius_infer.manifest.manifest import Manifest, ModelSpec
from sartorius_infer.manifest.rules import EdgeMode, Rules
from sartorius_infer.manifest.tiling import TileRule
from sartorius_infer.networks import Family, Network, family_of
from sartorius_infer.networks.pyramid import PyramidNetwork

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint that was read, the entry that says what it is, and the family that can build it."""

    path: Path
    spec: ModelSpec
    checkpoint: Checkpoint
    family: Family

    def build(self, device: torch.device, precision: torch.dtype) -> Network:
        """Its network on a device; raises CheckpointError."""
        return build_network(self.spec, self.family, self.checkpoint.state, device, precision)


OnOpen = Callable[[Opened], None]


def say_left_out(opened: Opened) -> None:
    """Warn of what lies beside the network in a file, and is not loaded."""
    if left_out := opened.checkpoint.left_out:
        log.warning("%s: left out beside the network: %s", opened.path, ", ".join(left_out))


def load_ensemble(
    weights: Paths = (),
    device: str | torch.device = "auto",
    precision: str | torch.dtype = "auto",
    *,
    views: Sequence[str] | None = None,
    rules: Rules | str | Path | None = None,
    score: Mapping[str, float] | None = None,
    min_area: Mapping[str, int] | None = None,
    edge: EdgeMode | None = None,
    tile: TileRule | str | None = None,
    magnification: float | None = None,
    config: str | Path | None = None,
) -> Ensemble:
    """The ensemble of a manifest, of one or more checkpoints, or, with nothing, the one that is included.

    weights    a path (str or Path) or several, as `--weights` takes them; "run.pth::ema" is one network of
               a file that holds several
    device     "auto", "cpu", "cuda" or "cuda:N"; auto is a GPU that really runs, else the CPU
    precision  "auto", "fp32", "fp32-fast", "fp16" or "bf16"; auto is fp16 on a GPU, fp32 on a CPU, but bf16
               on one with instructions for it for networks whose entry says `holds_bf16`
    views      test-time views instead of the manifest's, such as ["identity", "hflip"]
    rules      in the place of the manifest's: `Rules`, or a JSON file of them, or another manifest
    score      score thresholds of some classes, such as {"cort": 0.4}
    min_area   smallest areas of some classes, in pixels
    edge       "rule", "keep" or "drop" cells on the image border, instead of the manifest's rule
    tile       of large images: "auto", "off", "HxW" or (height, width), instead of the manifest's
    magnification  how many times as large as in the networks' images the cells are, instead of the manifest's
    config     of one checkpoint that does not tell how it is used, by default one inside or beside it

    Every file's size and checksum is compared with the manifest before the first is loaded. Raises
    ManifestError, CheckpointError and DeviceError, and TypeError for weights that are no paths.
    """
    found = find_weights(weights, config)
    where = device if isinstance(device, torch.device) else resolve_device(device)
    return load_for_runs(found, where, precision).with_overrides(
        views,
        rules=rules,
        score=score,
        min_area=min_area,
        edge=edge,
        tile=tile,
        magnification=magnification,
    )


def load_for_runs(weights: Weights, device: torch.device, precision: str | torch.dtype = "auto") -> Ensemble:
    """The networks on `device` as a whole process uses them, in the precision that is asked for by name.

    Raises ManifestError, CheckpointError and DeviceError.
    """
    keep_memory(device)
    if precision == "auto":
        ensemble = _load(weights, device, lambda spec: resolve_precision("auto", device, spec.holds_bf16))
    else:
        named = precision if isinstance(precision, torch.dtype) else resolve_precision(precision, device)
        ensemble = load(weights, device, named)
    if precision == "fp32-fast":
        ensemble.quicken()
    return ensemble


def load(
    weights: Weights,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    on_open: OnOpen = say_left_out,
) -> Ensemble:
    """The networks of `weights` on `device`, computing in `precision`; `on_open` is told each checkpoint;
    left out, what a checkpoint holds beside its network is said in a warning.

    Raises ManifestError and CheckpointError.
    """
    return _load(weights, device, lambda spec: precision, on_open)


def _load(
    weights: Weights,
    device: torch.device,
    precision_of: Callable[[ModelSpec], torch.dtype],
    on_open: OnOpen = say_left_out,
) -> Ensemble:
    specs, networks = [], []
    for opened in open_checkpoints(weights):
        on_open(opened)
        specs.append(opened.spec)
        networks.append(opened.build(device, precision_of(opened.spec)))
    manifest = weights.plan.manifest if weights.plan else bare_manifest(specs, networks)
    for network in networks:
        if isinstance(network, PyramidNetwork):
            network.settle()
    members = tuple(
        make_member(manifest.classes, spec, network, device)
        for spec, network in zip(manifest.models, networks, strict=True)
    )
    return Ensemble(manifest, members, device, weights.folder)


def open_checkpoints(weights: Weights) -> Iterator[Opened]:
    """Every checkpoint, one at a time; all files of a manifest are verified before the first is read."""
    if weights.plan is not None:
        verify_files(weights.plan)
        for spec in weights.plan.manifest.models:
            path = weights.plan.path(spec)
            yield opened_as(path, spec, read_checkpoint(path, spec.state))
    for path, name in zip(weights.files, _names(weights.files), strict=True):
        yield open_bare(path, name, weights.config)


def _names(files: Sequence[Path]) -> list[str]:
    """A name for each of some checkpoints: their files' names where those differ."""
    stems = [name_of(file) for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]


def open_bare(path: Path, name: str, config: Path | None = None) -> Opened:
    """A checkpoint that comes without a manifest entry, with one that its family completes.

    `path` may say which network of the file is meant, as "run.pth::ema". `config` is the file that says
    what the checkpoint does not, by default one beside or inside it. Raises CheckpointError where its
    family needs one and there is none, or it cannot be honoured.
    """
    file, state = named_network(path)
    opened = opened_as(file, ModelSpec(name=name, file=str(file), state=state), read_checkpoint(file, state))
    family = opened.family
    spec = opened.spec.model_copy(update={"architecture": family.names[0]})
    return replace(opened, spec=family.complete(spec, opened.checkpoint, config))


def opened_as(path: Path, spec: ModelSpec, checkpoint: Checkpoint) -> Opened:
    """A checkpoint that was read with its family, and as much of it as that wants."""
    everything = checkpoint.with_outside
    family = family_of(spec.architecture, everything.state, spec.file)
    return Opened(path, spec, everything if family.takes_everything else checkpoint, family)


def bare_manifest(specs: Sequence[ModelSpec], networks: Sequence[Network]) -> Manifest:
    """What a manifest would say of bare checkpoints, by the documented defaults.

    Classes are those that all files name alike, in any order, else the usual ones of their number.
    """
    told = zip(specs, (network.class_count for network in networks), strict=True)
    counts = {spec.file: count for spec, count in told if count is not None}
    if not counts:
        classes = default_classes(1)
        return Manifest(version=1, classes=classes, models=tuple(specs), rules=any_score(classes))
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{file} has {count}" for file, count in counts.items())
        raise CheckpointError(f"expected checkpoints of one class count, found: {said}; write a manifest")
    (count,) = set(counts.values())
    if count < 1:
        raise CheckpointError(f"{specs[0].file}: expected a class besides background, found none")
    classes = _common_classes(specs, count)
    return Manifest(version=1, classes=classes, models=tuple(specs), rules=default_rules(classes))


def _common_classes(specs: Sequence[ModelSpec], count: int) -> tuple[str, ...]:
    usual = default_classes(count)
    told = [spec.classes for spec in specs if spec.classes is not None]
    if not told or any(set(names) == set(usual) for names in told):
        return usual
    if any(set(names) != set(told[0]) for names in told):
        said = ", ".join(f"{s.file} has {', '.join(s.classes)}" for s in specs if s.classes is not None)
        raise CheckpointError(f"expected checkpoints of the same classes, found: {said}; write a manifest")
    return told[0]


def build_network(
    spec: ModelSpec,
    family: Family,
    state: Mapping[str, Tensor],
    device: torch.device,
    precision: torch.dtype,
) -> Network:
    """The network of one entry with its checkpoint's tensors, on `device`."""
    try:
        return family.build(spec, dict(state), precision).to(device)
    except SartoriusError:
        raise
    except Exception as error:  # a plugin may fail in any way
        name, reason = spec.architecture or family.names[0], f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{spec.file}: {name} cannot be built: {reason}") from error


def weights_sha256(ensemble: Ensemble) -> str:
    """One hash of all that its networks are made of: the entries, and the bytes of every file."""
    texts = []
    for spec in ensemble.manifest.models:
        # Where a bare checkpoint lies changes nothing; what it holds is hashed.
        texts.append(spec.model_dump_json(exclude={"file", "sha256", "bytes"}))
        texts.append(spec.sha256 or file_sha256(ensemble.folder / spec.file))
    return bytes_sha256("\n".join(texts).encode())
