"""Hits, misses and false alarms, drawn over their image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sartorius_infer.cells.colours import PALETTE
from sartorius_infer.cells.rle import run_pixels
from sartorius_infer.evaluate.metric import match
from sartorius_infer.output.render import enlargement, outline, stretched, with_legend
from sartorius_infer.types import CellImage, UInt8

if TYPE_CHECKING:
    from sartorius_infer.cells.rle import Mask


HIT, MISS, FALSE_ALARM = PALETTE[0], PALETTE[2], PALETTE[5]


def match_overlay(image: CellImage, true: Sequence[Mask], found: Sequence[Mask], iou: float = 0.5) -> UInt8:
    """The image with hits, misses (dashed) and false alarms outlined, uint8 RGB, and a legend under it.

    A found cell is a hit where it pairs with a true one by an IoU greater than `iou`, one of
    `metric.THRESHOLDS`. Masks are runs within the image; cells of either kind may share pixels.
    Contrast as in `overlay`. Raises ValueError for another IoU.
    """
    partners = match(true, found, iou)
    hits = set(partners[partners >= 0].tolist())
    picture = stretched(image.pixels)
    kinds = (
        ("hits", HIT, [found[c] for c in sorted(hits)]),
        ("misses", MISS, [true[t] for t in np.flatnonzero(partners < 0).tolist()]),
        ("false alarms", FALSE_ALARM, [mask for c, mask in enumerate(found) if c not in hits]),
    )
    for name, colour, masks in kinds:
        for mask in masks:
            _draw_outline(picture, mask, colour, dashed=name == "misses")
    factor = enlargement(image.size_hw)
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    entries = [(colour, f"{name} {len(masks)}") for name, colour, masks in kinds]
    return with_legend(picture, f"{image.id}, IoU > {iou:.2f}", entries)


def _draw_outline(picture: UInt8, mask: Mask, colour: tuple[int, int, int], dashed: bool) -> None:
    """Outline a mask in place; touches the mask's own rows only."""
    starts, lengths = mask
    if len(starts) == 0:
        return
    width = picture.shape[1]
    top, bottom = int(starts[0]) // width, int(starts[-1] + lengths[-1] - 1) // width + 1
    # A ring of background above and below, as the mask has, unless the image ends there.
    first, last = max(top - 1, 0), min(bottom + 1, picture.shape[0])
    own = np.zeros((last - first) * width, np.int32)
    own[run_pixels(starts - first * width, lengths)] = 1
    y, x = np.nonzero(outline(own.reshape(-1, width)))
    y += first
    drawn = (x + y) % 8 <= 4 if dashed else np.ones(len(x), np.bool_)
    picture[y[drawn], x[drawn]] = colour
