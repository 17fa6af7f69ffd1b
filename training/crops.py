"""A crop of an image with the masks of its cells: what a draw becomes before it is a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.cells.rle import Mask, run_pixels
from sartorius_infer.types import Bool, Int64, UInt8
from training.recipe import Augment
from training.sources import Example

CACHED_EXAMPLES = 1024


class Window(NamedTuple):
    """A part of an image in whole pixels."""

    y0: int
    x0: int
    height: int
    width: int


class CellCrop(NamedTuple):
    """One cell's own pixels: bool (h, w) from (y0, x0) of the image."""

    y0: int
    x0: int
    mask: Bool


@dataclass(frozen=True, eq=False)
class Sample:
    """A piece of an image.

    pixels   uint8 (h, w) or (h, w, 3)
    masks    bool (N, h, w), which may overlap
    labels   int64 (N,), from 1; 0 for what may be a cell or not
    zoom     network pixels for each that inference would have there
    """

    pixels: UInt8
    masks: Bool
    labels: Int64
    zoom: float = 1.0

    def __post_init__(self) -> None:
        if self.masks.shape != (len(self.labels), *self.pixels.shape[:2]):
            raise ValueError(
                f"masks: expected {len(self.labels)} of {self.pixels.shape}, found {self.masks.shape}"
            )


def cell_crop(mask: Mask, size_hw: tuple[int, int]) -> CellCrop:
    """The pixels of a cell's runs in its own bounding box; a cell has at least one pixel."""
    rows, columns = np.divmod(run_pixels(*mask), size_hw[1])
    y0, x0 = int(rows.min()), int(columns.min())
    pixels = np.zeros((int(rows.max()) - y0 + 1, int(columns.max()) - x0 + 1), np.bool_)
    pixels[rows - y0, columns - x0] = True
    return CellCrop(y0, x0, pixels)


@lru_cache(maxsize=CACHED_EXAMPLES)
def cell_crops(example: Example) -> tuple[CellCrop, ...]:
    """Every mask of an example."""
    return tuple(cell_crop(mask, example.size_hw) for mask in example.masks)


def draw_zoom(settings: Augment, rng: np.random.Generator) -> float:
    """A magnification, evenly by its logarithm."""
    return float(np.exp(rng.uniform(*np.log(settings.scale))))


def draw_window(example: Example, settings: Augment, rng: np.random.Generator, zoom: float) -> Window:
    """Where to cut: around a cell or anywhere, inside the image; all of it without a crop."""
    side = settings.crop_of.get(example.type, settings.crop)
    size = np.array(example.size_hw)
    if side is None:
        return Window(0, 0, *example.size_hw)
    # Rounded down: magnified again it must not be a pixel wider than side, which would be padded to 32 more.
    extent = np.minimum(size, max(1, int(side / zoom)))
    slack = size - extent
    if rng.random() < settings.on_cells:
        cells = [c for c, label in zip(cell_crops(example), example.labels, strict=True) if label]
        cell = cells[int(rng.integers(len(cells)))]
        middle = np.array([cell.y0, cell.x0]) + np.array(cell.mask.shape) / 2
        # Anywhere such that the cell's middle lies inside.
        corner = np.rint(middle - rng.random(2) * extent).astype(int)
    else:
        corner = rng.integers(0, slack + 1)
    y0, x0 = np.clip(corner, 0, slack).tolist()
    return Window(y0, x0, int(extent[0]), int(extent[1]))


def cut(example: Example, window: Window, min_visible: float, zoom: float = 1.0) -> Sample:
    """The image's pixels in the window, and its cells that show at least `min_visible` of their area."""
    y0, x0, height, width = window
    pixels = example.pixels()[y0 : y0 + height, x0 : x0 + width]
    masks: list[Bool] = []
    labels: list[int] = []
    for cell, label in zip(cell_crops(example), example.labels, strict=True):
        mask = _in_window(cell, window)
        if mask is not None and mask.sum() >= max(1.0, min_visible * cell.mask.sum()):
            masks.append(mask)
            labels.append(label)
    return Sample(pixels, stack(masks, (height, width)), np.array(labels, np.int64), zoom)


def _in_window(cell: CellCrop, window: Window) -> Bool | None:
    """A cell's mask (h, w) in the window's frame; None where it lies outside."""
    top, left = cell.y0 - window.y0, cell.x0 - window.x0
    bottom, right = top + cell.mask.shape[0], left + cell.mask.shape[1]
    if bottom <= 0 or right <= 0 or top >= window.height or left >= window.width:
        return None
    mask = np.zeros((window.height, window.width), np.bool_)
    part = cell.mask[max(0, -top) : window.height - top, max(0, -left) : window.width - left]
    mask[max(0, top) : max(0, top) + part.shape[0], max(0, left) : max(0, left) + part.shape[1]] = part
    return mask


def stack(masks: Sequence[Bool], size_hw: tuple[int, int]) -> Bool:
    """Bool (N, h, w) of N masks, none included."""
    return np.stack(masks) if masks else np.zeros((0, *size_hw), np.bool_)


def boxes_of(masks: Bool) -> NDArray[np.float32]:
    """Half-open boxes float32 (N, 4) xyxy around masks (N, h, w), none of which is empty."""
    edges = []
    for axis, size in ((1, masks.shape[2]), (2, masks.shape[1])):
        seen = np.asarray(masks.any(axis=axis))
        edges.append((seen.argmax(axis=1), size - seen[:, ::-1].argmax(axis=1)))
    (x0, x1), (y0, y1) = edges
    return np.stack([x0, y0, x1, y1], axis=1).astype(np.float32).reshape(-1, 4)
