"""A large image put together: what the networks saw in each of its tiles becomes one prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sartorius_infer.ensemble.fuse import leading_class
from sartorius_infer.ensemble.grids import SIDE, halves_to_side, side_within
from sartorius_infer.ensemble.tiles import Tiling
from sartorius_infer.types import Bool, Float16, Float32, Int64, Prediction

_MASK_VALUES = 1 << 30
"""Values in all masks of an image: 2 GiB. Grids of 28 leave room for 1.3 million cells."""


@dataclass(frozen=True, eq=False)
class Part:
    """What the networks saw in one tile of an image: N soft cells near its core, before any rule.

    tile          its number in the tiling
    boxes         float32 (N, 4), xyxy in the image's pixels
    scores        float32 (N,), in [0, 1]
    labels        int64 (N,), 1..K; 0 where no network of this tile tells a class
    masks         float16 (N, M, M), as in `Prediction`
    faint_scores  float32 (F,), of the tile's own cells that no rule can keep: they have no masks, but
    faint_labels  int64 (F,) votes about the class of the image
    """

    tile: int
    boxes: Float32
    scores: Float32
    labels: Int64
    masks: Float16
    faint_scores: Float32
    faint_labels: Int64

    def __len__(self) -> int:
        return len(self.scores)


def bounded_masks(masks: Float16, tiles: int) -> Float16:
    """Masks (N, M, M) of one of so many tiles, on a coarser grid where memory needs it."""
    return halves_to_side(masks, side_within(masks.shape[-1], len(masks), _MASK_VALUES // tiles))


def join(
    image_id: str, tiling: Tiling, parts: Sequence[Part], select: Callable[[Float32, Int64], Bool] | None
) -> Prediction:
    """Each cell of an image once, best first, as far as the tiles of `parts` tell.

    Cells of no class take the one that leads in the image. `select` (scores, labels) -> bool, which sees all
    cells of the image, chooses those that stay; None keeps every one.
    """
    tiles = np.repeat([part.tile for part in parts], [len(part) for part in parts]).astype(np.int64)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes for part in parts)])
    scores = np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)])
    labels = np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)])
    stays = np.flatnonzero(tiling.once(tiles, boxes, scores, labels))
    told = np.concatenate([labels[stays], *(part.faint_labels for part in parts)])
    sure = np.concatenate([scores[stays], *(part.faint_scores for part in parts)])
    known = told > 0
    told[~known] = leading_class(sure[known], told[known])
    labels[stays] = told[: len(stays)]
    if select is not None:
        stays = stays[select(sure, told)[: len(stays)]]
    stays = stays[np.argsort(-scores[stays], kind="stable")]
    masks = _masks(parts, stays)
    return Prediction(image_id, tiling.size_hw, boxes[stays], scores[stays], labels[stays], masks)


def _masks(parts: Sequence[Part], wanted: Int64) -> Float16:
    """Masks of some cells, by their numbers through all parts, on the finest grid that memory allows."""
    finest = max((part.masks.shape[-1] for part in parts if len(part)), default=SIDE)
    side = side_within(finest, len(wanted), _MASK_VALUES)
    masks = np.empty((len(wanted), side, side), np.float16)
    order = np.argsort(wanted)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    places = np.split(order, np.searchsorted(wanted[order], ends))
    for part, end, some in zip(parts, ends.tolist(), places, strict=False):
        masks[some] = halves_to_side(part.masks[wanted[some] - (end - len(part))], side)
    return masks
