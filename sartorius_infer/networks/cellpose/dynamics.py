"""Where a Cellpose network's flows lead: walks of pixels, the peaks where they end, the flow of a shape.

Source: Stringer et al., Nature Methods 18 (2021), and the package's behaviour (version 3.1.1, on a CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

from sartorius_infer.machine_code import machine_code
from sartorius_infer.types import Bool, Float32, Float64, Int32, Int64

FLOW_SCALE = np.float32(5)
"""A network's flow is this many times the direction."""

_FEWEST = 10
"""A peak is a bin where more pixels end than this, and more than in any other of the 5 x 5 around it."""

_GROWTH, _BIN_FEWEST = 5, 2
"""A seed grows so many times into neighbouring bins where more pixels end than this."""

_MARGIN = 20
"""Empty bins around the image."""


@cache
def _compiled(loop: Callable[..., None]) -> Callable[..., None]:
    """A loop as machine code; numba is loaded when the first is needed."""
    return machine_code(loop)


def walk(flow: Float32, points: Int64, steps: int) -> Float32:
    """Where points (n, 2), y and x, stand after so many steps along a flow (2, H, W); float32 (n, 2).

    A flow of 1 is a pixel a step, interpolated between the centres of pixels; nobody leaves the image.
    """
    places = points.astype(np.float32)
    _compiled(_walk)(np.ascontiguousarray(flow, np.float32), places, steps)
    return places


def _walk(flow: Any, places: Any, steps: int) -> None:
    bottom, right = flow.shape[1] - 1, flow.shape[2] - 1
    for i in range(len(places)):
        y, x = places[i]
        for _ in range(steps):
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, bottom), min(x0 + 1, right)
            down, along = y - y0, x - x0
            a, b = (1 - down) * (1 - along), (1 - down) * along
            c, d = down * (1 - along), down * along
            dy = flow[0, y0, x0] * a + flow[0, y0, x1] * b + flow[0, y1, x0] * c + flow[0, y1, x1] * d
            dx = flow[1, y0, x0] * a + flow[1, y0, x1] * b + flow[1, y1, x0] * c + flow[1, y1, x1] * d
            old_y, old_x = y, x
            y = min(np.float32(bottom), max(np.float32(0), y + np.float32(dy)))
            x = min(np.float32(right), max(np.float32(0), x + np.float32(dx)))
            if y == old_y and x == old_x:
                break
        places[i, 0], places[i, 1] = y, x


def follow(maps: Float32, inside: Bool, points: Int64, steps: int) -> Int64:
    """The pixels (n, 2) in which points (n, 2) end by a network's maps (3, H, W), still outside `inside`."""
    return walk(maps[:2] * inside / FLOW_SCALE, points, steps).astype(np.int64)


def grown_seeds(ends: Int64, size_hw: tuple[int, int]) -> Int32:
    """The seed that each bin of the image belongs to, int32 (H, W), 0 where to none; ends (n, 2) are y and x.

    Seeds count from 1, those of fewer pixels first; where two grow into each other the later has the bins.
    """
    height, width = (side + 2 * _MARGIN for side in size_hw)
    y, x = (ends + _MARGIN).T
    bins = np.bincount(y * width + x, minlength=height * width).reshape(height, width)
    peaks = (bins == ndimage.maximum_filter(bins, size=5, mode="constant")) & (bins > _FEWEST)
    rows, columns = np.nonzero(peaks)
    order = np.argsort(bins[rows, columns], kind="stable")
    seeds = np.zeros((height, width), np.int32)
    offset = np.arange(-_GROWTH, _GROWTH + 1)
    for number, (row, column) in enumerate(zip(rows[order], columns[order], strict=True), start=1):
        window = np.ix_(row + offset, column + offset)
        inside = bins[window] > _BIN_FEWEST
        grown = np.zeros_like(inside)
        grown[_GROWTH, _GROWTH] = True
        grown = ndimage.binary_dilation(grown, np.ones((3, 3), np.bool_), iterations=_GROWTH, mask=inside)
        seeds[window] = np.where(grown, number, seeds[window])
    return seeds[_MARGIN : _MARGIN + size_hw[0], _MARGIN : _MARGIN + size_hw[1]]


def shape_flow(label_map: Int32) -> Float64:
    """The directions (2, H, W) in which each cell's pixels lie to its centre, by its shape alone; 0 outside.

    Heat spreads from the pixel nearest to the cell's mean, and the flow climbs it.
    """
    flow = np.zeros((2, *label_map.shape))
    spread = _compiled(_spread)
    for number, place in enumerate(ndimage.find_objects(label_map), start=1):
        if place is None:
            continue
        pixels = np.argwhere(label_map[place] == number)
        height, width = (side.stop - side.start + 2 for side in place)  # an empty pixel on each side
        centre = int(((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1).argmin())
        directions = np.empty((2, len(pixels)))
        spread((pixels + 1) @ (width, 1), centre, width, np.zeros(height * width), directions, height + width)
        flow[:, place[0], place[1]][:, *pixels.T] = directions
    return flow


def _spread(places: Any, centre: int, width: int, heat: Any, directions: Any, rounds: int) -> None:
    count = len(places)
    after = directions[0]
    for _ in range(2 * rounds):
        heat[places[centre]] += 1
        for k in range(count):
            p = places[k]
            over = heat[p - width - 1] + heat[p - width] + heat[p - width + 1]
            beside = heat[p - 1] + heat[p] + heat[p + 1]
            below = heat[p + width - 1] + heat[p + width] + heat[p + width + 1]
            after[k] = (over + beside + below) / 9
        for k in range(count):
            heat[places[k]] = after[k]
    for k in range(count):
        p = places[k]
        dy, dx = heat[p + width] - heat[p - width], heat[p + 1] - heat[p - 1]
        length = 1e-60 + math.sqrt(dy * dy + dx * dx)
        directions[0, k], directions[1, k] = dy / length, dx / length


def flow_errors(label_map: Int32, maps: Float32) -> Float64:
    """How far a network's maps (3, H, W) are from each cell's own flow, float64 (N + 1,) by its number.

    The mean over its pixels of the squared length of the difference; 0 for a number without pixels.
    """
    inside = label_map > 0
    numbers, of_shape = label_map[inside], shape_flow(label_map)[:, inside]
    squares = ((of_shape - maps[:2, inside] / FLOW_SCALE) ** 2).sum(axis=0)
    count = int(label_map.max()) + 1
    pixels = np.bincount(numbers, minlength=count)
    return np.bincount(numbers, weights=squares, minlength=count) / np.maximum(pixels, 1)
