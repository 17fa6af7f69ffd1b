"""Measurements of the cells of a label map, by scikit-image's `regionprops_table`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.laboratory import extra
from sartorius_infer.types import Int32

_LENGTHS = {"perimeter": "perimeter", "axis_major_length": "major_axis", "axis_minor_length": "minor_axis"}
_RATIOS = ("eccentricity", "solidity")


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
    scikit-image's but for the coordinates, which count from pixels' corners, and orientation_deg.
    Raises ExtraError without scikit-image, ValueError unless the pixel size is over 0.
    """
    require_size(pixel_size_um)
    extra.require(extra.MEASUREMENTS, "measurements")
    from skimage.measure import regionprops_table

    names = ["label", "area", "centroid", "bbox", *_LENGTHS, "orientation", *_RATIOS]
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
    columns |= {name: found[name] for name in _RATIOS}
    if intensity is not None:
        columns["mean_intensity"] = found["intensity_mean"]
    height, width = label_map.shape
    first = np.minimum(found["bbox-0"], found["bbox-1"]) == 0
    columns["touches_border"] = first | (found["bbox-2"] == height) | (found["bbox-3"] == width)
    return columns
