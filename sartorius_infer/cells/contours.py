"""A cell's outline as polygons along the edges of its pixels."""

from __future__ import annotations

import cv2
import numpy as np

from sartorius_infer.types import Bool, Float32


def outer_rings(mask: Bool) -> list[Float32]:
    """The outlines of the 8-connected parts of `mask` (h, w), float32 (V, 2) each: x, y of its corners.

    Corners are corners of pixels, whole numbers, half-open as boxes are: a single pixel at the top left
    is (0, 0), (0, 1), (1, 1), (1, 0). A ring is not closed by its first corner, and holes are not cut
    out: the pixels whose centres lie in the rings, by the even-odd rule, are the mask with its holes
    filled. Where two pixels meet at a corner alone, the ring passes that corner twice. A part that lies in
    a hole of another has no ring.
    """
    # OpenCV's contours join centres of pixels. Of a mask twice as large these centres, rounded up to
    # whole pixels of the mask itself, are the corners; cut ones fall together and are left out.
    doubled = mask.view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rings = []
    for contour in contours:
        corners = (contour.reshape(-1, 2) + 1) // 2  # (V, 2)
        moved = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
        rings.append(corners[moved].astype(np.float32))
    return rings
