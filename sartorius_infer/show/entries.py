"""What the page knows of one image, as JSON: what it counts with, and what it draws."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from sartorius_infer.cells.rle import Mask, areas, run_pixels
from sartorius_infer.errors import ImageError, TruthError, size_text
from sartorius_infer.output.render import stretched
from sartorius_infer.types import CellImage, Float32, Int64

if TYPE_CHECKING:
    from sartorius_infer.evaluate.true_image import TrueImage
    from sartorius_infer.show.candidates import Look

LONGEST = 2048
"""Pixels of a page's picture along its longer side; larger images are shown reduced."""

QUALITY = 30
_NEAR = 7
"""By how much a run may differ from the one above it, and still be one byte."""


def entry(image: CellImage, look: Look, scored: bool, truth: TrueImage | None) -> dict[str, Any]:
    """Everything but the picture and the masks: sizes, scores, labels, areas, votes and pairs.

    `scored`: whether the cells' scores mean something. Raises ImageError where the cells are of another
    size than the image.
    """
    if look.size_hw != image.size_hw:
        expected, found = size_text(image.size_hw), size_text(look.size_hw)
        raise ImageError(f"{image.id}: expected cells of {expected} pixels, found {found}")
    height, width = image.size_hw
    step = _step(image)
    cells: dict[str, Any] = {"label": look.labels.tolist(), "area": areas(look.masks).tolist()}
    if scored:
        cells |= {"score": _decimals(look.scores), "fixed": look.fixed.astype(int).tolist()}
    told: dict[str, Any] = {
        "id": image.id,
        "h": -(-height // step),
        "w": -(-width // step),
        "step": step,
        "type": "" if truth is None else truth.cell_type,
        "cells": cells,
        "votes": [_decimals(scores) for scores in look.votes] or None,
        "truth": None,
        "pairs": [],
    }
    if truth is not None:
        told["truth"] = {"area": areas(truth.masks).tolist()}
        if truth.mask_types:
            told["truth"]["types"] = truth.mask_types
        told["pairs"] = _pairs(truth.masks, look.masks)
    return told


def drawing(image: CellImage, look: Look, truth: TrueImage | None) -> dict[str, Any]:
    """The picture, and the masks of found and true cells, each as `packed`."""
    step, width = _step(image), image.size_hw[1]
    return {
        "picture": _picture(image, step),
        "cells": [packed(mask, width, step) for mask in look.masks],
        "truth": [] if truth is None else [packed(mask, width, step) for mask in truth.masks],
    }


def truth_of(image: CellImage, truth: Mapping[str, TrueImage]) -> TrueImage:
    """The image's; raises TruthError where it is missing, or of another size."""
    if image.id not in truth:
        raise TruthError(f"expected the truth of every image, found none of {image.id}")
    known = truth[image.id]
    if known.size_hw != image.size_hw:
        expected, found = size_text(image.size_hw), size_text(known.size_hw)
        raise TruthError(f"{image.id}: expected a truth of {expected} pixels, found {found}")
    return known


def packed(mask: Mask, width: int, step: int) -> str:
    """A mask's runs in base64, most of them as one byte: by what they differ from the run before.

    Of a run that begins a pixels further right than the one before, a row below it, and is b pixels longer,
    with a and b from -7 to 7, the byte is 16 (a + 8) + b + 8. Any other run is a byte 0, then the gap since
    the end of the one before and the length, seven bits a byte, lowest first. Before the first run is one
    without pixels at 0. Reduced by `step`, a pixel is the mask's where one of its step x step is.
    """
    starts, lengths = mask if step == 1 else _reduced(mask, width, step)
    shifts = np.diff(starts, prepend=0) + -width // step
    growths = np.diff(lengths, prepend=0)
    near = (np.abs(shifts) <= _NEAR) & (np.abs(growths) <= _NEAR)
    codes = np.where(near, 16 * (shifts + 8) + growths + 8, 0).astype(np.uint8).tobytes()
    pieces, after, end = [], 0, 0
    for far in np.flatnonzero(~near).tolist():
        if far:
            end = int(starts[far - 1] + lengths[far - 1])
        pieces += [codes[after : far + 1], bytes(_sevens(int(starts[far]) - end, int(lengths[far])))]
        after = far + 1
    return base64.b64encode(b"".join([*pieces, codes[after:]])).decode("ascii")


def _reduced(mask: Mask, width: int, step: int) -> tuple[Int64, Int64]:
    y, x = np.divmod(run_pixels(*mask), width)
    flat = np.unique(y // step * -(-width // step) + x // step)
    cuts = np.flatnonzero(np.diff(flat, prepend=-2) > 1)
    return flat[cuts], np.diff(cuts, append=len(flat))


def _sevens(*numbers: int) -> Iterator[int]:
    for number in numbers:
        while number > 127:
            yield number & 127 | 128
            number >>= 7
        yield number


def _step(image: CellImage) -> int:
    return -(-max(image.size_hw) // LONGEST)


def _pairs(true: Sequence[Mask], found: Sequence[Mask]) -> list[int]:
    """True cell, found cell, shared pixels and pixels of either, in turn, where the IoU is over 0.5."""
    from sartorius_infer.evaluate.metric import overlaps

    pairs = np.stack(overlaps(true, found), axis=1)  # true cell, found cell, pixels in both, in either
    flat: list[int] = pairs[2 * pairs[:, 2] > pairs[:, 3]].ravel().tolist()
    return flat


def _decimals(scores: Float32) -> list[float]:
    """The shortest decimals that name these float32."""
    return [float(str(score)) for score in scores]


def _picture(image: CellImage, step: int) -> str:
    """The image, its contrast stretched, as a data URL."""
    pixels = stretched(image.pixels)[..., ::-1]
    size = (-(-pixels.shape[1] // step), -(-pixels.shape[0] // step))
    reduced = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if step > 1 else pixels
    _, data = cv2.imencode(".webp", reduced, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")
