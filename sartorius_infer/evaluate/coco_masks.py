"""COCO's ways to draw a cell, as pycocotools makes them pixels: polygons, and RLE of either kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sartorius_infer.cells.rle import Mask, decode_coco
from sartorius_infer.errors import size_text
from sartorius_infer.files import whole
from sartorius_infer.types import Float64

NO_PIXEL: Mask = (np.zeros(0, np.int64), np.zeros(0, np.int64))

_CORNERS = 3
# pycocotools walks along every edge in fifths of a pixel, and keeps them all.
_FURTHEST, _LONGEST = 1e6, 4e6


def coco_runs(segmentation: Any, size_hw: tuple[int, int]) -> Mask:
    """Row-major runs of polygons, or of COCO's column-major RLE; none of None, or of fewer than 3 corners.

    Raises ValueError, KeyError and TypeError on what is damaged.
    """
    if isinstance(segmentation, Mapping) and segmentation:
        return _rle_runs(segmentation, size_hw)
    polygons = _polygons(segmentation)
    if not polygons:
        return NO_PIXEL
    packed = coco_mask.merge(coco_mask.frPyObjects(polygons, *size_hw))
    return decode_coco(packed["counts"].decode("ascii"), size_hw)


def _rle_runs(segmentation: Mapping[str, Any], size_hw: tuple[int, int]) -> Mask:
    size, counts = segmentation["size"], segmentation["counts"]
    if tuple(map(whole, size)) != size_hw:
        raise ValueError(f"expected an RLE of {size_text(size_hw)} pixels, found {size_text(size)}")
    if isinstance(counts, str):
        return decode_coco(counts, size_hw)
    numbers = [whole(count) for count in counts]
    if None in numbers:
        raise ValueError("expected counts in whole numbers, found others")
    return decode_coco([n for n in numbers if n is not None], size_hw)


def _polygons(segmentation: Any) -> list[list[float]]:
    """The parts of a cell that have an inside; a list of numbers is one part."""
    if not isinstance(segmentation, list | type(None)) and segmentation:
        raise ValueError(f"expected polygons or an RLE, found {type(segmentation).__name__}")
    parts = segmentation or []
    if parts and not any(isinstance(part, list | dict | None) for part in parts):
        parts = [parts]
    polygons = [_coordinates(part) for part in parts if part]
    return [polygon for polygon in polygons if len(polygon) >= 2 * _CORNERS]


def _coordinates(part: Any) -> list[float]:
    numbers = np.asarray(part, np.float64)
    if numbers.ndim != 1 or len(numbers) % 2:
        raise ValueError("expected x and y of each corner in turn, found another list")
    if not (np.abs(numbers) <= _FURTHEST).all() or _length(numbers) > _LONGEST:
        raise ValueError(f"expected corners near the image, found {part[0]!r} or another far away")
    found: list[float] = numbers.tolist()
    return found


def _length(numbers: Float64) -> float:
    """How many pixels an outline passes, its end joined to its start."""
    corners = numbers.reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1, initial=0).sum())
