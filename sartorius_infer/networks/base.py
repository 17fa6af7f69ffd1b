"""What a network is to the ensemble: four steps, and a registry by architecture name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from sartorius_infer.errors import CheckpointError, PredictionError
from sartorius_infer.manifest.views import IDENTITY, View

if TYPE_CHECKING:
    from sartorius_infer.manifest.manifest import ModelSpec


@dataclass(frozen=True, eq=False)
class Features:
    """Feature maps of a batch, and the sizes that tie them to the images.

    maps       name -> float (B, C, h, w), finest first
    image_hws  sizes of the images as they were given
    input_hws  sizes after the network's own resizing
    padded_hw  size of the padded batch
    """

    maps: Mapping[str, Tensor]
    image_hws: tuple[tuple[int, int], ...]
    input_hws: tuple[tuple[int, int], ...]
    padded_hw: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes that the maps hold."""
        return sum(m.numel() * m.element_size() for m in self.maps.values())


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image: float32 (N, 4) xyxy in image pixels; scores (N,); labels int64 (N,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Network(Protocol):
    """Anything that proposes, detects and scores masks. Boxes are xyxy in pixels of the given images.

    `class_count` is the number of foreground classes; labels run from 1 to it. The steps are called
    in this order on images of one size, the last as often as needed, under `torch.inference_mode()`.
    """

    class_count: int

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        """Feature maps of images, uint8 (1 or 3, H, W) on the network's device, already seen through `view`.

        The view is told because only the network knows its input size: `view.scale` multiplies
        it, and an exact input size turns with a quarter-turned image.
        """

    def propose(self, features: Features) -> list[Tensor]:
        """Proposals of each image, float32 (P, 4) in the network's input pixels."""

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        """Classified, suppressed detections of each image, best first."""

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        """Float32 (N, M, M) in [0, 1] for each image: its boxes' masks for the given labels.

        The boxes are those that the whole ensemble agreed on. A label of 0 is a class that this
        network does not know: any mask will do.
        """


def require_finite(what: str, *tensors: Tensor) -> None:
    """Raise PredictionError if any value is NaN or infinite."""
    for tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise PredictionError(f"{what}: expected finite values, found {bad} NaN or infinite ones")


Build = Callable[["ModelSpec", dict[str, Tensor], torch.dtype], Network]
Recognise = Callable[[Mapping[str, Tensor]], bool]


@dataclass(frozen=True)
class Architecture:
    """A registered way to build networks."""

    name: str
    build: Build
    recognise: Recognise


_REGISTRY: dict[str, Architecture] = {}


def register_network(name: str, build: Build, recognise: Recognise = lambda state: False) -> None:
    """Make an architecture available under `name`.

    `build(spec, state, precision)` gets the manifest entry, the checkpoint's tensors by key, without
    wrappers and prefixes, and the dtype to compute in (torch.float32, float16 or bfloat16), and
    returns a `Network` on the CPU; if it is a `torch.nn.Module` it is moved to the device for it,
    else it needs a `to(device)` method that returns it there. `recognise(state)` says whether a bare
    checkpoint is of this kind; later registrations are asked first. A plugin file calls this when it
    is loaded by `--plugin`; `Network`, which tells the four steps, `Features` and `Detections` are in
    `sartorius_infer.networks`.
    """
    if name in _REGISTRY:
        raise CheckpointError(f"architecture {name!r} is registered twice")
    _REGISTRY[name] = Architecture(name, build, recognise)


def architecture_of(name: str | None, state: Mapping[str, Tensor], file: str) -> Architecture:
    """The architecture called `name`, or with None the one that recognises `state`."""
    if name is not None:
        if name in _REGISTRY:
            return _REGISTRY[name]
        raise CheckpointError(
            f"{file}: expected an architecture of {', '.join(sorted(_REGISTRY))}, found {name!r}; "
            "a network of your own is registered by --plugin FILE.py"
        )
    for candidate in reversed(_REGISTRY.values()):
        if candidate.recognise(state):
            return candidate
    some = ", ".join(sorted(state)[:4])
    raise CheckpointError(
        f"{file}: no known Mask R-CNN: expected keys of backbone, rpn and roi_heads, found {some}, ...; "
        "register the network by --plugin FILE.py and name it as `architecture` in a manifest"
    )
