"""What is varied in a crop: flips, quarter turns, grays, and cells pasted from another crop.

Flips and grays are torchvision's v2 transforms, called with numbers drawn from numpy's generators, so
that a draw depends on its key alone.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from sartorius_infer.types import Bool, UInt8
from training.crops import Sample
from training.recipe import Augment


def turn(sample: Sample, settings: Augment, rng: np.random.Generator) -> Sample:
    """Flipped and turned by draws; pixels and masks alike."""
    hflip, vflip, turns = rng.random() < 0.5, rng.random() < 0.5, int(rng.integers(4))
    pixels, masks = _planes(sample.pixels), torch.from_numpy(np.ascontiguousarray(sample.masks))
    if settings.hflip and hflip:
        pixels, masks = v2.horizontal_flip(pixels), v2.horizontal_flip(masks)
    if settings.vflip and vflip:
        pixels, masks = v2.vertical_flip(pixels), v2.vertical_flip(masks)
    if settings.quarter_turns:
        pixels, masks = torch.rot90(pixels, turns, (1, 2)), torch.rot90(masks, turns, (1, 2))
    return replace(sample, pixels=_pixels(pixels), masks=masks.numpy())


def change_grays(sample: Sample, settings: Augment, rng: np.random.Generator) -> Sample:
    """Gamma, contrast, brightness, blur and noise, by draws; rounded to whole grays like any image."""
    if rng.random() >= settings.photometric:
        return sample
    pixels = _planes(sample.pixels).float() / 255
    if settings.gamma != (1.0, 1.0):
        pixels = v2.adjust_gamma(pixels, _between(settings.gamma, rng))
    if settings.contrast != (1.0, 1.0):
        # About the crop's own mean; torchvision's adjust_contrast takes it of the luminance.
        mean = pixels.mean()
        pixels = mean + (pixels - mean) * _between(settings.contrast, rng)
    if settings.brightness:
        pixels = pixels + rng.uniform(-1, 1) * settings.brightness / 255
    if settings.blur and (sigma := rng.uniform(0, settings.blur)) > 0.05:
        pixels = v2.gaussian_blur(pixels, [2 * round(3 * sigma) + 1] * 2, [sigma, sigma])
    if settings.noise:
        noise = rng.standard_normal(tuple(pixels.shape), np.float32) * rng.uniform(0, settings.noise) / 255
        pixels = pixels + torch.from_numpy(noise)
    return replace(sample, pixels=_pixels((pixels * 255).round().clamp(0, 255).to(torch.uint8)))


def paste_cells(sample: Sample, donor: Sample, settings: Augment, rng: np.random.Generator) -> Sample:
    """Some of a donor's cells laid over the sample, with soft borders; what they cover is lost to others.

    Simple copy-paste (Ghiasi et al. 2021). The donor is cut to the sample's size; of one that is
    smaller nothing is pasted.
    """
    height, width = sample.pixels.shape[:2]
    if not len(donor.labels) or donor.pixels.shape[0] < height or donor.pixels.shape[1] < width:
        return sample
    if donor.pixels.ndim != sample.pixels.ndim:
        return sample
    chosen = (rng.random(len(donor.labels)) < rng.uniform(0.1, 0.6)) & (donor.labels > 0)
    pasted = donor.masks[chosen][:, :height, :width]
    pasted_labels = donor.labels[chosen][pasted.any(axis=(1, 2))]
    pasted = pasted[pasted.any(axis=(1, 2))]
    cover = np.asarray(pasted.any(axis=0))
    areas = sample.masks.sum(axis=(1, 2))
    rest = sample.masks & ~cover
    kept = rest.sum(axis=(1, 2)) >= np.maximum(1, max(0.5, settings.min_visible) * areas)
    return replace(
        sample,
        pixels=_blend(sample.pixels, donor.pixels[:height, :width], cover),
        masks=np.concatenate([rest[kept], pasted]),
        labels=np.concatenate([sample.labels[kept], pasted_labels]),
    )


def _blend(under: UInt8, over: UInt8, cover: Bool) -> UInt8:
    """`over` where it covers, fading out over about two pixels, so that no cut edge gives it away."""
    share = cv2.GaussianBlur(cv2.dilate(cover.astype(np.float32), np.ones((3, 3))), (5, 5), 1.0)
    share = share if under.ndim == 2 else share[..., None]
    shifted = over.astype(np.float32) + (float(under.mean()) - float(over.mean()))
    mixed = under * (1 - share) + shifted * share
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def _between(limits: tuple[float, ...], rng: np.random.Generator) -> float:
    return float(rng.uniform(limits[0], limits[1]))


def _planes(pixels: UInt8) -> Tensor:
    """Uint8 (1 or 3, h, w)."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C"))


def _pixels(planes: Tensor) -> UInt8:
    array: UInt8 = planes.numpy()
    return np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
