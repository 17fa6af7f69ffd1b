"""A plain rasteriser of polygons along the edges of pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from sartorius_infer.types import Bool


def rasterised(rings: Iterable[ArrayLike], size_hw: tuple[int, int]) -> Bool:
    """The pixels whose centres lie in any of the rings: each upright edge turns what is right of it over."""
    inside = np.zeros(size_hw, np.bool_)
    for ring in rings:
        own, corners = np.zeros(size_hw, np.bool_), np.asarray(ring).astype(int)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1), "edges are upright or level, and have a length"
            own[min(y0, y1) : max(y0, y1), x0:] ^= True
        inside |= own
    return inside
