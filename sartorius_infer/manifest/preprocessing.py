"""How an image becomes a network's input, as settings: colour, range, normalisation, size."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sartorius_infer.manifest.settings import Count, Settings
from sartorius_infer.manifest.views import View

IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


PAD_MULTIPLE = 32


OneOrThree = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class Resize(Settings):
    """A target size: `shortest_edge` with `longest_edge` as its limit, or `exact_hw`.

    `interpolation` is bilinear in each case: `torch` on floats without antialiasing (as torchvision's
    detection models resize), `opencv` and `pil` on uint8 (as data sets that call cv2.resize or
    Image.resize do; PIL antialiases). `rounding` is how edges become whole pixels: torchvision cuts
    off (`down`), Detectron2 takes the nearest, and MMDetection the nearest of a side times the one factor
    (`nearest_side`).
    """

    shortest_edge: Count | None = None
    longest_edge: Count | None = None
    exact_hw: tuple[Count, Count] | None = None
    interpolation: Literal["torch", "opencv", "pil"] = "torch"
    rounding: Literal["down", "nearest", "nearest_side"] = "down"

    @model_validator(mode="after")
    def _one_rule(self) -> Resize:
        by_edges = self.shortest_edge is not None and self.longest_edge is not None
        any_edge = self.shortest_edge is not None or self.longest_edge is not None
        if (self.exact_hw is not None) == any_edge or (any_edge and not by_edges):
            raise ValueError("expected shortest_edge and longest_edge, or exact_hw alone")
        return self

    def target_hw(self, size_hw: tuple[int, int], view: View) -> tuple[int, int]:
        """The size that an image of `size_hw`, already seen through `view`, is resized to."""
        if self.exact_hw is not None:
            height, width = self.exact_hw[::-1] if view.transpose else self.exact_hw
            return max(1, round(height * view.scale)), max(1, round(width * view.scale))
        shortest, longest = self.shortest_edge or 0, self.longest_edge or 0
        if self.rounding == "nearest":
            return _detectron2_hw(size_hw, shortest * view.scale, longest * view.scale)
        # Torchvision floors in float arithmetic; the same expression gives the same integer.
        factor = min(shortest / min(size_hw), longest / max(size_hw)) * view.scale
        if self.rounding == "nearest_side":
            return max(1, int(size_hw[0] * factor + 0.5)), max(1, int(size_hw[1] * factor + 0.5))
        return max(1, math.floor(size_hw[0] * factor)), max(1, math.floor(size_hw[1] * factor))


def _detectron2_hw(size_hw: tuple[int, int], shortest: float, longest: float) -> tuple[int, int]:
    """The size by Detectron2's `ResizeShortestEdge`, whose order of operations decides the last pixel."""
    factor = shortest / min(size_hw)
    height, width = size_hw
    edges = (shortest, factor * width) if height < width else (factor * height, shortest)
    if max(edges) > longest:
        factor = longest / max(edges)
        edges = edges[0] * factor, edges[1] * factor
    return max(1, int(edges[0] + 0.5)), max(1, int(edges[1] + 0.5))


class Normalise(Settings):
    """One step (x - mean) / std, each of one value or one per channel."""

    mean: OneOrThree
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=3)]

    @model_validator(mode="after")
    def _lengths(self) -> Normalise:
        if {len(self.mean), len(self.std)} - {1, 3}:
            raise ValueError("expected 1 or 3 values of mean and of std")
        return self


Step = Annotated[
    Annotated[Literal["imagenet"], Tag("name")] | Annotated[Normalise, Tag("step")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "step"),
]


class Preprocessing(Settings):
    """What happens to an image before the body sees it, in this order.

    `resize_before` works on the image as read, `input_range` scales 0-255 to 0-1 or leaves it, each
    step of `normalise` follows (some systems normalise in the data set and again in the model), and
    `resize` is the network's own. Zeros at the right and bottom then fill each side to a multiple of
    `pad_multiple`. Gray images are repeated to three channels; colour images keep theirs, or become gray
    first where `colour` says so.
    """

    colour: Literal["keep", "gray"] = "keep"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize_before: Resize | None = None
    input_range: Literal["0-1", "0-255"] = "0-1"
    normalise: tuple[Step, ...] = ("imagenet",)
    resize: Resize | None = Resize(shortest_edge=800, longest_edge=1333)
    pad_multiple: Count = PAD_MULTIPLE

    @model_validator(mode="after")
    def _pil_sees_bytes(self) -> Preprocessing:
        before, own = self.resize_before, self.resize
        if before and own and (before.interpolation, own.interpolation) == ("torch", "pil"):
            raise ValueError("expected no resize_before by torch, whose floats pil cannot resize, found one")
        return self
