"""COCO's ways to draw a cell, as pycocotools makes them pixels: polygons, and RLE of either kind."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sartorius_infer.cells.rle import Mask, split_label_map
from sartorius_infer.errors import size_text
from sartorius_infer.evaluate.true_image import whole

NO_PIXEL: Mask = (np.zeros(0, np.int64), np.zeros(0, np.int64))

_CORNERS = 3
# pycocotools walks along every edge pixel by pixel, in C's int.
_FURTHEST = 1e6


def coco_runs(segmentation: Any, size_hw: tuple[int, int]) -> Mask:
    """Row-major runs of polygons, or of COCO's column-major RLE; none of None, or of fewer than 3 corners.

    Raises ValueError, and whatever pycocotools raises on what is damaged.
    """
    if isinstance(segmentation, Mapping) and segmentation:
        packed = _rle(segmentation, size_hw)
    elif polygons := _polygons(segmentation):
        packed = coco_mask.merge(coco_mask.frPyObjects(polygons, *size_hw))
    else:
        return NO_PIXEL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' arrays are older than numpy 2
        pixels = coco_mask.decode(packed).astype(np.int32)
    (runs,) = split_label_map(pixels, 1)
    return runs


def _rle(segmentation: Mapping[str, Any], size_hw: tuple[int, int]) -> Any:
    size, counts = segmentation["size"], segmentation["counts"]
    if tuple(map(whole, size)) != size_hw:
        raise ValueError(f"expected an RLE of {size_text(size_hw)} pixels, found {size_text(size)}")
    if isinstance(counts, str):
        return {"size": list(size_hw), "counts": counts}
    numbers = [whole(count) for count in counts]
    if None in numbers or sum(n for n in numbers if n) > size_hw[0] * size_hw[1]:
        raise ValueError(f"expected counts of {size_text(size_hw)} pixels in whole numbers, found others")
    return coco_mask.frPyObjects({"size": list(size_hw), "counts": numbers}, *size_hw)


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
    if not (np.abs(numbers) <= _FURTHEST).all():
        raise ValueError(f"expected corners near the image, found {part[0]!r} or another far away")
    found: list[float] = numbers.tolist()
    return found
