"""One voice of an ensemble: a network, its weight, and how its classes are the manifest's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sartorius_infer.errors import ManifestError
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks import Network


@dataclass(frozen=True, eq=False)
class Member:
    """One network of the ensemble and its vote.

    to_manifest    int64 (k + 1,): the network's label -> the manifest's, -1 for background and ignored, 0 for
                   no class
    from_manifest  int64 (K + 1,): the other way, 0 where the network does not know the class; of one that
                   knows none, 1 for every class and for no class
    """

    name: str
    network: Network
    weight: float
    to_manifest: Tensor
    from_manifest: Tensor


def make_member(classes: Sequence[str], spec: ModelSpec, network: Network, device: torch.device) -> Member:
    """The voice of a manifest entry's network; `classes` are the manifest's.

    Raises ManifestError where the entry names another number of classes than the network has.
    """
    own = spec.classes or tuple(classes)
    if network.class_count is None:
        to_manifest, from_manifest = [0], [1, *(1 for _ in classes)]
        return _member(spec, network, to_manifest, from_manifest, device)
    if len(own) != network.class_count:
        raise ManifestError(
            f"{spec.file}: expected {network.class_count} class names, as the checkpoint has, found "
            f"{len(own)}: {', '.join(own)}; write the network's own `classes` in its manifest entry"
        )
    to_manifest = [-1, *(classes.index(c) + 1 if c in classes else -1 for c in own)]
    from_manifest = [0, *(own.index(c) + 1 if c in own else 0 for c in classes)]
    return _member(spec, network, to_manifest, from_manifest, device)


def _member(
    spec: ModelSpec,
    network: Network,
    to_manifest: Sequence[int],
    from_manifest: Sequence[int],
    device: torch.device,
) -> Member:
    return Member(
        spec.name,
        network,
        spec.weight,
        torch.tensor(to_manifest, device=device),
        torch.tensor(from_manifest, device=device),
    )
