"""The competition's metric: mean average precision over IoU thresholds, without regard to class.

For each image and threshold t = 0.50, 0.55, ..., 0.95, a found cell and a true one match where their
IoU is greater than t, one to one; TP is the most pairs that can be made, and the precision is
TP / (TP + FP + FN). The score is its mean over thresholds, then over images. An image with neither true
nor found cells scores 1 at every threshold.
Source: the competition's evaluation page; one to one since public copies disagree where cells overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from sartorius_infer.rle import run_pixels
from sartorius_infer.types import Float64, Int64

_TWENTIETHS = tuple(range(10, 20))

THRESHOLDS: tuple[float, ...] = tuple(k / 20 for k in _TWENTIETHS)
"""0.50 to 0.95 by 0.05; compared in whole numbers, so that an IoU of exactly t is no match."""

Mask = tuple[Int64, Int64]
"""Starts and lengths of a cell's runs of pixels, as `rle.decode` gives them."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """Matches of one image at each of the `THRESHOLDS`: `tp` int64 (10,), and counts of cells."""

    id: str
    tp: Int64
    true_cells: int
    found_cells: int

    @property
    def fp(self) -> Int64:
        """Found cells without a match, int64 (10,)."""
        return self.found_cells - self.tp

    @property
    def fn(self) -> Int64:
        """True cells without a match, int64 (10,)."""
        return self.true_cells - self.tp

    @property
    def precision(self) -> Float64:
        """TP / (TP + FP + FN) at each threshold, float64 (10,); 1 where there is nothing to find or found."""
        cells = self.true_cells + self.found_cells - self.tp
        return np.where(cells > 0, self.tp / np.maximum(cells, 1), 1.0)

    @property
    def ap(self) -> float:
        """The image's score."""
        return float(self.precision.mean())


def score_image(image_id: str, true: Sequence[Mask], found: Sequence[Mask], pixel_count: int) -> ImageScore:
    """Match found cells with true ones; cells of either may share pixels."""
    shared, unions = overlaps(true, found, pixel_count)
    tp = np.array([_pairs(20 * shared > k * unions) for k in _TWENTIETHS], np.int64)
    return ImageScore(image_id, tp, len(true), len(found))


def match(true: Sequence[Mask], found: Sequence[Mask], pixel_count: int, iou: float) -> Int64:
    """The number of each true cell's partner among the found ones, int64 (T,), -1 for none.

    As many pairs as `score_image` counts at `iou`, one of the `THRESHOLDS`; else raises ValueError.
    """
    level = twentieths(iou)
    shared, unions = overlaps(true, found, pixel_count)
    return _partners(20 * shared > level * unions)


def twentieths(iou: float) -> int:
    """One of the `THRESHOLDS` in twentieths; raises ValueError for another IoU."""
    if iou not in THRESHOLDS:
        raise ValueError(f"expected an IoU of {', '.join(map(str, THRESHOLDS))}, found {iou}")
    return _TWENTIETHS[THRESHOLDS.index(iou)]


def overlaps(true: Sequence[Mask], found: Sequence[Mask], pixel_count: int) -> tuple[Int64, Int64]:
    """Pixels in both and in either, int64 (T, P), of each true and each found cell."""
    one, other = _indicator(true, pixel_count), _indicator(found, pixel_count)
    shared = (one @ other.T).toarray().astype(np.int64)
    areas, found_areas = (np.asarray(m.sum(axis=1), np.int64) for m in (one, other))
    return shared, areas[:, None] + found_areas[None, :] - shared


def _indicator(masks: Sequence[Mask], pixel_count: int) -> csr_array:
    """(cells, pixels) with a 1 where a cell has a pixel."""
    members = [run_pixels(*mask) for mask in masks]
    bounds = np.cumsum([0, *(len(m) for m in members)])
    columns = np.concatenate([*members, np.zeros(0, np.int64)])
    return csr_array((np.ones(len(columns), np.int64), columns, bounds), shape=(len(masks), pixel_count))


def _pairs(match: NDArray[np.bool_]) -> int:
    """The most pairs, each cell in one at most, of a table (T, P) of which cells match."""
    if not match.any():
        return 0
    if match.sum(axis=0).max() <= 1 and match.sum(axis=1).max() <= 1:
        return int(match.sum())
    return int((_partners(match) >= 0).sum())


def _partners(match: NDArray[np.bool_]) -> Int64:
    """The column of each row's partner in as many pairs as can be made, int64 (T,), -1 for none."""
    return maximum_bipartite_matching(csr_array(match), perm_type="column").astype(np.int64)


def mean_ap(scores: Sequence[ImageScore]) -> float:
    """The competition's number over images; raises ValueError for none."""
    if not scores:
        raise ValueError("expected at least one image, found none")
    return float(np.mean([score.ap for score in scores]))
