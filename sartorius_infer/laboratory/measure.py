"""Measurements of the cells of a label map, by scikit-image's `regionprops_table`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sartorius_infer.laboratory import extra
from sartorius_infer.types import Bool, Int32, Int64

_LENGTHS = {"perimeter": "perimeter", "axis_major_length": "major_axis", "axis_minor_length": "minor_axis"}


def area_name(pixel_size_um: float | None) -> str:
    """What a column of areas is called."""
    return f"area_{_unit(pixel_size_um)}2"


def _unit(pixel_size_um: float | None) -> str:
    """What lengths are told in, as the end of a column's name."""
    return "px" if pixel_size_um is None else "um"


def require_size(pixel_size_um: float | None) -> None:
    """Raise ValueError unless it is the size of a pixel, or None."""
    if pixel_size_um is not None and not 0 < pixel_size_um < np.inf:
        raise ValueError(f"pixel_size_um: expected a number over 0, found {pixel_size_um}")


def measure(
    label_map: Int32, values: NDArray[Any] | None, pixel_size_um: float | None
) -> dict[str, NDArray[Any]]:
    """A column for each measurement, of each label that has pixels, by label.

    label_map      int32 (H, W), 0 is background
    values         (H, W) or (H, W, C), whose mean over channels counts; None leaves out mean_intensity
    pixel_size_um  the side of a pixel in micrometres, or None: lengths are in pixels

    Columns: label; area_px2 (or area_um2); centroid_x_px, centroid_y_px and the box around the cell, x0_px,
    y0_px, x1_px, y1_px, where the top left pixel reaches from 0 to 1; perimeter_px, major_axis_px,
    minor_axis_px, the axes of the ellipse of the same second moments; orientation_deg, from the x axis to
    the major axis, counter-clockwise as seen, in [0, 180); eccentricity, solidity (area over that of the
    convex hull), mean_intensity; touches_border, whether a pixel lies on the image's border. All are
    scikit-image's but for the coordinates, which count from pixels' corners, and orientation_deg; solidity is
    its number by other means, since its own takes minutes for a cell of millions of pixels.
    Raises ExtraError without scikit-image, ValueError unless the pixel size is over 0.
    """
    require_size(pixel_size_um)
    extra.require(extra.MEASUREMENTS, "measurements")
    from skimage.measure import regionprops_table

    names = ["label", "area", "centroid", "bbox", *_LENGTHS, "orientation", "eccentricity"]
    intensity = None
    if values is not None:
        names.append("intensity_mean")
        intensity = values.mean(axis=2) if values.ndim == 3 else values
    found = regionprops_table(label_map, intensity, properties=names)
    scale, unit = pixel_size_um or 1, _unit(pixel_size_um)
    columns = {"label": found["label"], area_name(pixel_size_um): found["area"].astype(np.int64) * scale**2}
    for axis, name in (("1", "x"), ("0", "y")):
        columns[f"centroid_{name}_{unit}"] = (found[f"centroid-{axis}"] + 0.5) * scale
    for place, name in (("1", "x0"), ("0", "y0"), ("3", "x1"), ("2", "y1")):
        columns[f"{name}_{unit}"] = found[f"bbox-{place}"] * scale
    for source, name in _LENGTHS.items():
        columns[f"{name}_{unit}"] = found[source] * scale
    # scikit-image counts from the y axis, in radians.
    columns["orientation_deg"] = (np.degrees(found["orientation"]) + 90) % 180
    columns["eccentricity"] = found["eccentricity"]
    columns["solidity"] = found["area"] / _hull_areas(label_map, found)
    if intensity is not None:
        columns["mean_intensity"] = found["intensity_mean"]
    height, width = label_map.shape
    first = np.minimum(found["bbox-0"], found["bbox-1"]) == 0
    columns["touches_border"] = first | (found["bbox-2"] == height) | (found["bbox-3"] == width)
    return columns


def _hull_areas(label_map: Int32, found: Mapping[str, NDArray[Any]]) -> Int64:
    """Pixels whose centres lie in the convex hull of each label's pixels, int64 (N,)."""
    boxes = zip(*(found[f"bbox-{side}"].tolist() for side in range(4)), strict=True)
    pieces = (label_map[y0:y1, x0:x1] for y0, x0, y1, x1 in boxes)
    return np.array([_hull_area(p == n) for p, n in zip(pieces, found["label"], strict=True)], np.int64)


def _hull_area(mask: Bool) -> int:
    """Of one mask (h, w) with a pixel in its first and its last row.

    Coordinates are doubled: the middles of pixels' sides, between which scikit-image spans a hull, are whole
    numbers then, and a centre that lies on the hull is told from one beside it.
    """
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows].argmax(axis=1), width - 1 - mask[rows, ::-1].argmax(axis=1)
    sides = [(2 * first - 1, 0), (2 * last + 1, 0)]
    sides += [(2 * column, step) for column in (first, last) for step in (-1, 1)]
    points = np.concatenate([np.column_stack([x, 2 * rows + dy]) for x, dy in sides]).astype(np.int32)
    hull = cv2.convexHull(points).reshape(-1, 2).astype(np.int64)
    left, right = np.zeros(height, np.int64), np.full(height, width - 1, np.int64)
    for (x0, y0), (x1, y1) in zip(hull.tolist(), np.roll(hull, -1, axis=0).tolist(), strict=True):
        low, high = (min(y0, y1) + 1) // 2, max(y0, y1) // 2 + 1
        across, along = x0 * (y1 - y0) + (x1 - x0) * (2 * np.arange(low, high) - y0), 2 * (y1 - y0)
        if y1 > y0:  # the hull goes down on its right side
            right[low:high] = np.minimum(right[low:high], across // along)
        elif y1 < y0:
            left[low:high] = np.maximum(left[low:high], -(-across // along))
    return int(np.maximum(right - left + 1, 0).sum())
