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

from sartorius_infer.cells.rle import Mask, areas, cross_pixels, run_pixels
from sartorius_infer.types import Float64, Int32, Int64

_TWENTIETHS = tuple(range(10, 20))

THRESHOLDS: tuple[float, ...] = tuple(k / 20 for k in _TWENTIETHS)
"""0.50 to 0.95 by 0.05; compared in whole numbers, so that an IoU of exactly t is no match."""


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


def score_image(image_id: str, true: Sequence[Mask], found: Sequence[Mask]) -> ImageScore:
    """Match found cells with true ones; cells of either may share pixels."""
    tp = matches(*overlaps(true, found))
    return ImageScore(image_id, tp, len(true), len(found))


def match(true: Sequence[Mask], found: Sequence[Mask], iou: float) -> Int64:
    """The number of each true cell's partner among the found ones, int64 (T,), -1 for none.

    As many pairs as `score_image` counts at `iou`, one of the `THRESHOLDS`; else raises ValueError.
    """
    level = twentieths(iou)
    one, other, shared, unions = overlaps(true, found)
    some = 20 * shared > level * unions
    return _partners(one[some], other[some], len(true))


def twentieths(iou: float) -> int:
    """One of the `THRESHOLDS` in twentieths; raises ValueError for another IoU."""
    if iou not in THRESHOLDS:
        raise ValueError(f"expected an IoU of {', '.join(map(str, THRESHOLDS))}, found {iou}")
    return _TWENTIETHS[THRESHOLDS.index(iou)]


@dataclass(frozen=True, eq=False)
class TrueCells:
    """The true cells of one image, made ready to be compared with many label maps.

    owners  int32 (P,), from 0, and
    pixels  int32 (P,): every pixel of every cell; a pixel of two cells is there twice
    areas   int64 (T,), in pixels
    """

    owners: Int32
    pixels: Int32
    areas: Int64


def true_cells(masks: Sequence[Mask]) -> TrueCells:
    """Masks as `rle.decode` gives them, pixel by pixel."""
    starts, lengths = (np.concatenate([m[i] for m in masks] or [np.zeros(0, np.int64)]) for i in (0, 1))
    pixels = areas(masks)
    owners = np.repeat(np.arange(len(masks), dtype=np.int32), pixels)
    return TrueCells(owners, run_pixels(starts, lengths).astype(np.int32), pixels)


def overlaps(true: Sequence[Mask], found: Sequence[Mask]) -> tuple[Int64, Int64, Int64, Int64]:
    """Numbers of each true and found cell that share pixels; pixels in both and in either; int64 (R,) each.

    Sorted by the true cell's number, then the found one's.
    """
    one, other, shared = cross_pixels(true, found)
    return one, other, shared, areas(true)[one] + areas(found)[other] - shared


def matches(true: Int64, found: Int64, shared: Int64, unions: Int64) -> Int64:
    """TP at each threshold, int64 (10,), from the R pairs of cells that share pixels, all int64 (R,)."""
    loosest = 20 * shared > _TWENTIETHS[0] * unions
    true, found, shared, unions = true[loosest], found[loosest], shared[loosest], unions[loosest]
    matching = 20 * shared > np.array(_TWENTIETHS)[:, None] * unions  # (10, R)
    if _is_one_to_one(true, found):  # and so at every higher threshold
        return np.asarray(matching.sum(axis=1), np.int64)
    return np.array([(_partners(true[some], found[some]) >= 0).sum() for some in matching], np.int64)


def _is_one_to_one(true: Int64, found: Int64) -> bool:
    return all(np.bincount(cells).max(initial=0) <= 1 for cells in (true, found))


def _partners(true: Int64, found: Int64, count: int = 0) -> Int64:
    """Each true cell's partner, int64 (`count`,) or as many as are named, -1 for none.

    The most pairs among those given, int64 (R,) each, with each cell in one at most.
    """
    partners = np.full(max(count, true.max(initial=-1) + 1), -1, np.int64)
    if _is_one_to_one(true, found):
        partners[true] = found
        return partners
    # Here, since few images need it and its import is half of a short command's time.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    pairs = csr_array((np.ones(len(true)), (true, found)), shape=(len(partners), found.max() + 1))
    partners[:] = maximum_bipartite_matching(pairs, perm_type="column")
    return partners


def mean_ap(scores: Sequence[ImageScore]) -> float:
    """The competition's number over images; raises ValueError for none."""
    if not scores:
        raise ValueError("expected at least one image, found none")
    return float(np.mean([score.ap for score in scores]))
