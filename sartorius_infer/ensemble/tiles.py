"""Where the tiles of a large image lie, and which of them speaks for a cell. Plain geometry, no networks.

Tiles of one size overlap by a quarter or more. Midway through each overlap the cores of two tiles meet: cores
part the image, and a box belongs to the tile whose core holds its centre. That is the tile in which it lies
deepest, farthest from the borders at which the tile was cut out; where a cell is cut by such a border and
another tile sees it whole, it belongs to the other. So every cell is told by one tile alone, and a cell that
is no longer than an overlap by one that sees all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sartorius_infer.competition import COMPETITION_SIZE_HW
from sartorius_infer.ensemble.fuse import box_iou
from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.types import Bool, Float32, Float64, Int64

LARGEST = 1.5
"""An image is seen whole while neither side is longer than this many sides of a tile."""

OVERLAP = 0.25
"""The least part of a tile's side that it shares with its neighbour."""

_SLACK = 1 / 32
"""Part of a tile's side beyond its core up to which it tells cells: two tiles place one cell a pixel or two
apart, and each may take it for the other's."""

_SAME_CELL = 0.5
"""Boxes of one class in two tiles that overlap by more are one cell."""

Span = tuple[int, int]
"""First pixel of a side, and the one after the last."""


@dataclass(frozen=True)
class Tiling:
    """An image of `size_hw` in tiles: every one of `rows` (spans down) with every one of `columns`.

    Tiles are numbered row by row. Of a single tile nothing is cut, and its core is the image.
    """

    size_hw: tuple[int, int]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def window(self, tile: int) -> tuple[slice, slice]:
        """Where a tile lies in the image (H, W)."""
        row, column = divmod(tile, len(self.columns))
        return slice(*self.rows[row]), slice(*self.columns[column])

    def to_image(self, tile: int, boxes: Float32) -> Float32:
        """Boxes (N, 4), xyxy in a tile's pixels, in the image's."""
        down, across = self.window(tile)
        return boxes + np.array([across.start, down.start] * 2, np.float32)

    def owners(self, boxes: Float32) -> Int64:
        """The tile in which each of boxes (N, 4), xyxy in the image's pixels, lies deepest; int64 (N,)."""
        x, y = _centres(boxes).T
        rows = np.searchsorted(_meetings(self.rows), y, side="right")
        columns = np.searchsorted(_meetings(self.columns), x, side="right")
        owners: Int64 = rows * len(self.columns) + columns
        return owners

    def near(self, tile: int, boxes: Float32) -> Bool:
        """Which of boxes (N, 4) are a tile's own, or may be for all that it can tell; bool (N,)."""
        down, across = self.window(tile)
        slack = np.array([across.stop - across.start, down.stop - down.start]) * _SLACK
        low, high = self._cores[tile].reshape(2, 2)
        centres = _centres(boxes)
        inside: Bool = np.all((centres >= low - slack) & (centres < high + slack), axis=1)
        return inside

    def once(self, tiles: Int64, boxes: Float32, scores: Float32, labels: Int64) -> Bool:
        """Of boxes that the tiles saw `near` their cores, those that tell each cell once; bool (N,).

        tiles (N,) that saw boxes (N, 4), in the image's pixels, with scores and labels (N,). A tile's own
        boxes stay and those of others do not; but of two tiles that both take a cell for their own, or both
        for the other's, the surer speaks.
        """
        own: Bool = self.owners(boxes) == tiles
        same = defaultdict(list)
        for one, other in self._same_cells(tiles, boxes, labels, own):
            same[one].append(other)
            same[other].append(one)
        stays = own.copy()
        contested = np.array(sorted(same), np.int64)
        stays[contested] = False
        for box in contested[np.lexsort((-scores[contested], ~own[contested]))].tolist():
            stays[box] = not stays[same[box]].any()
        return stays

    def _same_cells(
        self, tiles: Int64, boxes: Float32, labels: Int64, own: Bool
    ) -> Iterator[tuple[int, int]]:
        """Pairs of boxes of two tiles that are of one cell, as far as both may stay."""
        # A box that lies in its own core shares more than half with none that another tile may call its own.
        low, high = np.hsplit(self._cores[tiles], 2)
        leaves = ((boxes[:, :2] < low) | (boxes[:, 2:] > high)).any(axis=1)
        meets = np.flatnonzero(~own | leaves)
        by_tile = {int(t): meets[tiles[meets] == t] for t in np.unique(tiles[meets])}
        for tile, here in by_tile.items():
            for other in self._after(tile):
                there = by_tile.get(other, meets[:0])
                alike = labels[here][:, None] == labels[there]
                found = np.nonzero((box_iou(boxes[here], boxes[there]) > _SAME_CELL) & alike)
                yield from zip(here[found[0]].tolist(), there[found[1]].tolist(), strict=True)

    def _after(self, tile: int) -> Iterator[int]:
        """The neighbours of a tile, corner to corner too, that come after it."""
        row, column = divmod(tile, len(self.columns))
        for down, across in ((0, 1), (1, -1), (1, 0), (1, 1)):
            if row + down < len(self.rows) and 0 <= column + across < len(self.columns):
                yield (row + down) * len(self.columns) + column + across

    @cached_property
    def _cores(self) -> Float64:
        """Every tile's core, xyxy, float64 (tiles, 4); at the image's borders it has no end."""
        ends = np.array([np.inf])
        x, y = (np.concatenate([-ends, _meetings(spans), ends]) for spans in (self.columns, self.rows))
        x0, y0 = np.meshgrid(x[:-1], y[:-1])
        x1, y1 = np.meshgrid(x[1:], y[1:])
        return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)


def tile_size(manifest: Manifest) -> tuple[int, int] | None:
    """Height and width of tiles in pixels of an image, None where every image is seen whole."""
    if isinstance(manifest.tile, tuple):
        return manifest.tile
    if manifest.tile == "off":
        return None
    height, width = manifest.learned_hw or COMPETITION_SIZE_HW
    return max(1, round(height * manifest.magnification)), max(1, round(width * manifest.magnification))


def tiling(size_hw: tuple[int, int], tile_hw: tuple[int, int] | None) -> Tiling:
    """An image in tiles of `tile_hw`, or whole: where there is None, or it is not much larger than one.

    Which side is the longer says nothing about what is much larger: an image turned on its side is as large
    as before.
    """
    if tile_hw is None or all(
        side <= LARGEST * tile for side, tile in zip(sorted(size_hw), sorted(tile_hw), strict=True)
    ):
        tile_hw = size_hw
    rows, columns = (_spans(side, tile) for side, tile in zip(size_hw, tile_hw, strict=True))
    return Tiling(size_hw, rows, columns)


def _spans(side: int, tile: int) -> tuple[Span, ...]:
    """Spans of one length, `tile` or the whole side, that cover a side evenly."""
    if side <= tile:
        return ((0, side),)
    step = tile - int(np.ceil(tile * OVERLAP))
    count = 1 + int(np.ceil((side - tile) / step))
    return tuple((start, start + tile) for start in np.linspace(0, side - tile, count).astype(int).tolist())


def _meetings(spans: tuple[Span, ...]) -> Float64:
    """Midway through each overlap of neighbouring spans, float64 (spans - 1,)."""
    edges = np.array(spans, np.float64)
    return np.asarray((edges[1:, 0] + edges[:-1, 1]) / 2)


def _centres(boxes: Float32) -> Float64:
    """x, y of the centres of boxes (N, 4), float64 (N, 2)."""
    wide = boxes.astype(np.float64)
    return np.asarray((wide[:, :2] + wide[:, 2:]) / 2)
