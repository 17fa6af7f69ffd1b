"""From an image as it was read to a network's input: colour, range, resizing, normalisation, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from sartorius_infer.manifest.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    Resize,
    Step,
)
from sartorius_infer.manifest.views import View


def network_input(
    images: Sequence[Tensor], settings: Preprocessing, view: View
) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """A zero-padded batch and the sizes of its images in it.

    images: uint8 (1 or 3, H, W). Returns float32 (B, 3, H', W') with H' and W' multiples of
    `settings.pad_multiple`, and each image's resized (height, width).
    """
    resized = [_prepare(image, settings, view) for image in images]
    sizes = tuple((int(r.shape[1]), int(r.shape[2])) for r in resized)
    multiple = settings.pad_multiple
    height, width = (math.ceil(max(side) / multiple) * multiple for side in zip(*sizes, strict=True))
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
