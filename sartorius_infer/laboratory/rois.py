"""Outlines as a zip of ImageJ's regions of interest, as its ROI Manager opens and measures them.

The format is that of ImageJ's RoiDecoder (ij.io), by roifile. Polygons follow the edges of pixels, so that
what ImageJ takes for a region are the cell's own pixels, its holes filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import numpy as np

from sartorius_infer.files import atomic_file
from sartorius_infer.laboratory import extra
from sartorius_infer.streams import writing, zip_entry
from sartorius_infer.types import Float32

if TYPE_CHECKING:
    from roifile import ImagejRoi

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0
"""Steps of a path of several rings, by java.awt.geom.PathIterator."""


def write_rois(
    path: Path, polygons: Sequence[Sequence[Float32]], colours: Sequence[tuple[int, int, int]]
) -> None:
    """Write a zip with one region for each cell that has a ring, whole or not at all.

    `polygons` are a cell's rings of corners x, y, as `contours.outer_rings` draws them; `colours` the RGB of
    its outline. Region n is `n.roi`, n the cell's label, counted from 1; the same cells give the same bytes.
    Raises ExtraError without roifile, SubmissionError if the file cannot be written.
    """
    extra.require(extra.ROIS, "ROIs")
    with writing(path), atomic_file(path, "wb") as file, ZipFile(file, "w") as archive:
        for label, (rings, colour) in enumerate(zip(polygons, colours, strict=True), start=1):
            if rings:
                roi = _region(rings)
                roi.name, roi.stroke_color = str(label), bytes((255, *colour))
                archive.writestr(zip_entry(f"{label}.roi"), roi.tobytes())


def _region(rings: Sequence[Float32]) -> ImagejRoi:
    """One ring as ImageJ's wand traces it, several as a composite region."""
    from roifile import ROI_TYPE, ImagejRoi

    corners = np.concatenate(rings).astype(np.int64)
    roi = ImagejRoi.frompoints(corners)
    roi.right, roi.bottom = corners.max(axis=0).tolist()
    roi.roitype = ROI_TYPE.TRACED
    if len(rings) > 1:
        roi.roitype, roi.n_coordinates, roi.integer_coordinates = ROI_TYPE.RECT, 0, None
        roi.subpixel_coordinates = None
        roi.multi_coordinates = np.concatenate([_steps(ring) for ring in rings])
        roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _steps(ring: Float32) -> Float32:
    """A ring as part of a path: to its first corner, along the others, and back."""
    lines = np.insert(ring, 0, _LINE, axis=1)  # (V, 3): step, x, y
    lines[0, 0] = _MOVE
    return np.append(lines.ravel(), np.float32(_CLOSE)).astype(np.float32)
