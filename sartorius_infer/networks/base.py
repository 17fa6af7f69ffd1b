"""What a network is to the ensemble: four steps, and what flows between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sartorius_infer.errors import PredictionError
from sartorius_infer.manifest.views import IDENTITY, View


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
    """Boxes of one image: float32 (N, 4) xyxy in image pixels; scores (N,); labels int64 (N,).

    A label of 0 is no class: that of the cell is for other networks to say.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Network(Protocol):
    """Anything that proposes, detects and scores masks. Boxes are xyxy in pixels of the given images.

    The steps are called in this order on images of one size, the last as often as needed, under
    `torch.inference_mode()`. A `torch.nn.Module` has its `to` already.
    """

    @property
    def class_count(self) -> int | None:
        """The number of foreground classes; labels run from 1 to it.

        None where the network finds cells and knows no classes: the labels that it gives are 0, and any may
        be asked for.
        """

    def to(self, device: torch.device) -> Network:
        """The network on a device."""

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


@runtime_checkable
class Abstains(Protocol):
    """A fifth step, for networks of any family that may have nothing to say about single boxes."""

    def saw(self, features: Features, boxes: list[Tensor]) -> list[Tensor]:
        """Bool (N,) for each image: in which of its boxes the network saw a cell.

        Its masks in the others count only where no other network has a say.
        """


@runtime_checkable
class Quickens(Protocol):
    """A network that has faster arithmetic, which differs in the last bits."""

    def quicken(self) -> None:
        """Take it, in place, where it is on a CPU in float32."""


def require_finite(what: str, *tensors: Tensor) -> None:
    """Raise PredictionError if any value is NaN or infinite."""
    for tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise PredictionError(f"{what}: expected finite values, found {bad} NaN or infinite ones")
