"""The families of networks: how a checkpoint is recognised, completed, described and built.

Nothing outside this folder and the manifest's settings names a family; whoever needs to know asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sartorius_infer.checkpoints.reading import Checkpoint
from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks.base import Network
from sartorius_infer.networks.others import what_it_is

State = Mapping[str, Tensor]
Build = Callable[[ModelSpec, dict[str, Tensor], torch.dtype], Network]
Recognise = Callable[[State], bool]


class Family:
    """One kind of network, as its own folder tells it. What is not overridden fits one without settings.

    names             what `architecture` of a manifest entry may say; the first is what `import` writes
    settings          whether its entries hold all that its checkpoints do not tell, so that they can be
                      imported
    preprocessing     whether the `preprocessing` of an entry says how its images are made
    takes_everything  whether it wants what lies beside the network in a checkpoint too
    """

    names: tuple[str, ...] = ()
    settings = False
    preprocessing = True
    takes_everything = False

    def recognise(self, state: State) -> bool:
        """Whether tensors by key are a checkpoint of this family."""
        return False

    def complete(self, spec: ModelSpec, checkpoint: Checkpoint, config: Path | None) -> ModelSpec:
        """The entry of a bare checkpoint with what a config says, `config` or one beside or inside the file.

        Raises CheckpointError where there has to be one and is none, or where it cannot be honoured.
        """
        if config is not None:
            raise CheckpointError(
                f"{spec.file}: expected a checkpoint that goes with {config}, found another"
            )
        return spec

    def told(self, spec: ModelSpec) -> str:
        """In a few words where the settings of a bare checkpoint are from; "" where nothing tells them."""
        return ""

    def assumed(self, spec: ModelSpec) -> str:
        """What a bare checkpoint leaves open and how it is filled, in a few words; "" where nothing is."""
        return ""

    def describe(self, spec: ModelSpec, state: State) -> list[str]:
        """Lines on the architecture: what is told, and by what, and what is assumed."""
        return [f"  architecture  {spec.architecture or self.names[0]} (from a plugin)"]

    def build(self, spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Network:
        """The network on the CPU with these tensors, computing in `precision`; raises CheckpointError."""
        raise NotImplementedError

    def lean(self, spec: ModelSpec, state: State, network: Network) -> dict[str, Tensor]:
        """The built network's own tensors, under the keys that it is built from, without leftovers."""
        raise NotImplementedError

    def entry(self, spec: ModelSpec, state: State) -> dict[str, Any]:
        """The JSON fields of a manifest entry that say all that the tensors do not."""
        raise NotImplementedError


class _Registered(Family):
    """A network of somebody's own, which alone knows what belongs to it."""

    takes_everything = True

    def __init__(self, name: str, build: Build, recognise: Recognise) -> None:
        self.names = (name,)
        self._build, self._recognise = build, recognise

    def recognise(self, state: State) -> bool:
        return self._recognise(state)

    def build(self, spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Network:
        return self._build(spec, state, precision)


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make a family available under its names; those that come later are asked first about a checkpoint."""
    for name in family.names:
        if name in _FAMILIES:
            raise CheckpointError(f"architecture {name!r} is registered twice")
    _FAMILIES.update(dict.fromkeys(family.names, family))


def register_network(name: str, build: Build, recognise: Recognise = lambda state: False) -> None:
    """Make a network of your own available as `architecture` `name`.

    `build(spec, state, precision)` gets the manifest entry, the checkpoint's tensors by key, without
    wrappers and prefixes, and the dtype to compute in (torch.float32, float16 or bfloat16), and
    returns a `Network` on the CPU. `recognise(state)` says whether a bare checkpoint is of this kind;
    later registrations are asked first. A plugin file calls this when it is loaded by `--plugin`;
    `Network`, which tells the four steps, `Features` and `Detections` are in `sartorius_infer.networks`;
    `networks.base` has what a network may do beside them: `Abstains` and `Quickens`.
    """
    register(_Registered(name, build, recognise))


def family_of(name: str | None, state: State, file: str) -> Family:
    """The family with an architecture called `name`, or with None the one that recognises `state`."""
    if name is not None:
        if name in _FAMILIES:
            return _FAMILIES[name]
        raise CheckpointError(
            f"{file}: expected an architecture of {', '.join(sorted(_FAMILIES))}, found {name!r}; "
            "a network of your own is registered by --plugin FILE.py"
        )
    for candidate in reversed(dict.fromkeys(_FAMILIES.values())):
        if candidate.recognise(state):
            return candidate
    found = what_it_is(state)
    raise CheckpointError(
        f"{file}: no known Mask R-CNN: expected keys of backbone, rpn and roi_heads, found {found}; "
        "register the network by --plugin FILE.py and name it as `architecture` in a manifest"
    )
