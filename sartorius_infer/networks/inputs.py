"""From an image as it was read to a network's input: colour, range, resizing, normalisation, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor

from sartorius_infer.manifest.rules import Settings
from sartorius_infer.manifest.torchvision import Count
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
    off, Detectron2 takes the nearest.
    """

    shortest_edge: Count | None = None
    longest_edge: Count | None = None
    exact_hw: tuple[Count, Count] | None = None
    interpolation: Literal["torch", "opencv", "pil"] = "torch"
    rounding: Literal["down", "nearest"] = "down"

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
    `resize` is the network's own. Gray images are repeated to three channels; colour images keep
    theirs, or become gray first where `colour` says so.
    """

    colour: Literal["keep", "gray"] = "keep"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize_before: Resize | None = None
    input_range: Literal["0-1", "0-255"] = "0-1"
    normalise: tuple[Step, ...] = ("imagenet",)
    resize: Resize | None = Resize(shortest_edge=800, longest_edge=1333)

    @model_validator(mode="after")
    def _pil_sees_bytes(self) -> Preprocessing:
        before, own = self.resize_before, self.resize
        if before and own and (before.interpolation, own.interpolation) == ("torch", "pil"):
            raise ValueError("expected no resize_before by torch, whose floats pil cannot resize, found one")
        return self


def network_input(
    images: Sequence[Tensor], settings: Preprocessing, view: View
) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """A zero-padded batch and the sizes of its images in it.

    images: uint8 (1 or 3, H, W). Returns float32 (B, 3, H', W') with H' and W' multiples of 32, and
    each image's resized (height, width).
    """
    resized = [_prepare(image, settings, view) for image in images]
    sizes = tuple((int(r.shape[1]), int(r.shape[2])) for r in resized)
    height = math.ceil(max(h for h, _ in sizes) / PAD_MULTIPLE) * PAD_MULTIPLE
    width = math.ceil(max(w for _, w in sizes) / PAD_MULTIPLE) * PAD_MULTIPLE
    batch = resized[0].new_zeros((len(resized), 3, height, width))
    for row, image in zip(batch, resized, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def _prepare(image: Tensor, settings: Preprocessing, view: View) -> Tensor:
    """One image, uint8 (1 or 3, H, W) -> float32 (3, H', W')."""
    if settings.colour == "gray" and image.shape[0] == 3:
        image = _luminance(image)
    if settings.channel_order == "bgr":
        image = image.flip(0)
    own, before = settings.resize, settings.resize_before
    if before is not None:
        # The last resize alone carries the view's scale, else it would count twice.
        image = _resize(image, before, view if own is None else replace(view, scale=1.0))
    if own is not None and own.interpolation != "torch":
        image, own = _resize(image, own, view), None
    pixels = image.float() / 255 if settings.input_range == "0-1" else image.float()
    for step in settings.normalise:
        pixels = _normalise(pixels, step)
    if own is not None:
        # Three channels of gray images too: on one thread torch resizes fewer by another kernel, whose
        # last bits differ from what `model(images)` makes of three.
        pixels = _resize(pixels.expand(3, -1, -1).contiguous(), own, view)
    elif settings.resize is None and before is None and view.scale != 1:
        height, width = image.shape[-2:]
        target = max(1, round(height * view.scale)), max(1, round(width * view.scale))
        pixels = _interpolate(pixels, target)
    return pixels.expand(3, -1, -1)


def _luminance(image: Tensor) -> Tensor:
    """ITU-R BT.601 gray in the integers of PIL's convert("L"), uint8 (3, H, W) -> uint8 (1, H, W)."""
    red, green, blue = image.to(torch.int32)
    gray: Tensor = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return gray[None].to(torch.uint8)


def _normalise(pixels: Tensor, step: Step) -> Tensor:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if step == "imagenet" else (step.mean, step.std)
    means, stds = pixels.new_tensor(mean), pixels.new_tensor(std)
    return (pixels - means[:, None, None]) / stds[:, None, None]


def _resize(image: Tensor, rule: Resize, view: View) -> Tensor:
    """Resize (C, H, W) by `rule`; uint8 stays uint8 with opencv and pil, torch makes it float."""
    height, width = image.shape[-2:]
    target = rule.target_hw((int(height), int(width)), view)
    if rule.interpolation == "torch":
        return _interpolate(image.float(), target)
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()  # (C, H, W) -> (H, W, C)
    if rule.interpolation == "opencv":
        out = cv2.resize(pixels, target[::-1], interpolation=cv2.INTER_LINEAR)
    else:
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        out = np.array(picture.resize(target[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(out.reshape(*target, -1)).permute(2, 0, 1).to(image.device)


def _interpolate(image: Tensor, target_hw: tuple[int, int]) -> Tensor:
    out = F.interpolate(image[None], size=target_hw, mode="bilinear", align_corners=False)
    return out[0]
