"""From a cell's soft M x M grid to probabilities at the pixels of its own crop of the image.

Both modes interpolate bilinearly between the centres of the grid's squares, with zeros around the
grid; they differ only in where the grid lies. Interpolation is separable, so a crop is two small
matrix products: (h, M) @ (M, M) @ (M, w).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.types import Float16, Float32, Int64

PasteMode = Literal["exact", "torchvision"]
Float64 = NDArray[np.float64]

_CHUNK = 64  # cells whose weights are made at once: enough to amortise the calls, small for the cache


class Crop(NamedTuple):
    """Probabilities float32 (h, w) of one cell, whose first pixel is (y0, x0) of the image."""

    y0: int
    x0: int
    probabilities: Float32


class _Spans(NamedTuple):
    """Along one axis and for n cells: the pixels [start, stop) to sample and where the grids lie."""

    start: Int64
    stop: Int64
    low: Float64
    squares_per_pixel: Float64


def paste_cells(
    masks: Float16 | Float32, boxes: Float32, size_hw: tuple[int, int], mode: PasteMode
) -> Iterator[Crop]:
    """The crops of N cells in order, made as they are asked for.

    masks (N, M, M) probabilities, boxes (N, 4) xyxy in image pixels. A crop holds every pixel of
    the image with a probability above zero, and hardly more. It is empty where a box has no area
    or lies too far outside to reach the image.

    exact: a pixel's centre is mapped into the unrounded box, as Detectron2's `_do_paste_mask`;
    pixels up to half a grid square outside the box get a share.
    torchvision: as `torchvision.models.detection.roi_heads.paste_masks_in_image`.
    """
    side = masks.shape[-1]
    place = _torchvision_boxes if mode == "torchvision" else _exact_boxes
    height, width = size_hw
    for first in range(0, len(masks), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        x0, y0, x1, y1 = place(boxes[chunk], side).T
        rows, columns = _spans(y0, y1, side, height), _spans(x0, x1, side, width)
        grids = masks[chunk].astype(np.float32)
        weights = zip(_weights(rows, side), grids, _weights(columns, side), strict=True)
        for y, x, (down, grid, across) in zip(rows.start, columns.start, weights, strict=True):
            yield Crop(int(y), int(x), down @ grid @ across.T)


def _exact_boxes(boxes: Float32, side: int) -> Float64:
    """The boxes (N, 4) themselves, whatever the grid."""
    return boxes.astype(np.float64)


def _torchvision_boxes(boxes: Float32, side: int) -> Float64:
    """The boxes (N, 4) in which exact sampling gives what torchvision's paste gives.

    torchvision pads the grid with one ring of zeros, grows the box to match, truncates its corners
    and stretches the padded grid over the whole pixels from corner to corner, both included. Taking
    the ring off again leaves the box of the grid itself.
    """
    # float32 throughout, and in this order: the last bit decides where a corner is truncated to.
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    low = (centre - half).astype(np.int64)
    pixels = (centre + half).astype(np.int64) + 1 - low
    square = pixels / (side + 2)
    return np.concatenate([low + square, low + pixels - square], axis=1)


def _spans(low: Float64, high: Float64, side: int, size: int) -> _Spans:
    """The pixels (n,) whose centres lie less than half a square outside [low, high], in [0, size)."""
    length = high - low
    reach = length / (2 * side)
    start = np.clip(np.floor(low - reach - 0.5) + 1, 0, size).astype(np.int64)
    stop = np.clip(np.ceil(high + reach - 0.5), 0, size).astype(np.int64)
    solid = length > 0
    scale = np.divide(side, length, out=np.zeros_like(length), where=solid)
    return _Spans(start, np.where(solid, np.maximum(start, stop), start), low, scale)


def _weights(spans: _Spans, side: int) -> list[Float32]:
    """Each cell's (pixels, side) weights of its grid's squares: 1 at their centres, 0 one away."""
    counts = spans.stop - spans.start
    ends = np.cumsum(counts)
    pixel = np.arange(ends[-1]) - np.repeat(ends - counts - spans.start, counts)
    centre = pixel + 0.5 - np.repeat(spans.low, counts)
    position = (centre * np.repeat(spans.squares_per_pixel, counts) - 0.5).astype(np.float32)
    weights = np.abs(position[:, None] - np.arange(side, dtype=np.float32))
    np.subtract(1, weights, out=weights)
    np.maximum(weights, 0, out=weights)
    return np.split(weights, ends[:-1])
