"""Draw found cells over their image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sartorius_infer.cells.rle import run_pixels
from sartorius_infer.errors import ImageError
from sartorius_infer.files import atomic_file
from sartorius_infer.types import Bool, CellImage, Instances, Int32, UInt8

if TYPE_CHECKING:
    from sartorius_infer.evaluate.metric import Mask

# Okabe and Ito, "Color Universal Design" (2008), those that stand out on gray, clearest
# first: told apart with any kind of colour vision.
PALETTE = (
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (240, 228, 66),  # yellow
    (204, 121, 167),  # reddish purple
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
)
HIT, MISS, FALSE_ALARM = PALETTE[0], PALETTE[2], PALETTE[5]
NARROWEST = 256

# Shares of the class's colour in the fill; cells that touch seldom get the same one.
_FILLS = (0.10, 0.40, 0.20, 0.30)
_BAND, _TEXT, _FAINT_TEXT = (24, 24, 24), (240, 240, 240), (160, 160, 160)


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """The colours, RGB, of the first `count` classes, in label order."""
    return list(islice(cycle(PALETTE), count))


def outline(label_map: Int32) -> Bool:
    """Whether each pixel of `label_map` (H, W) is a cell's and has a 4-neighbour that is not.

    The image's border is no neighbour. bool (H, W); one pass over the map for all cells.
    """
    edge = np.zeros(label_map.shape, np.bool_)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = label_map[here] != label_map[there]
        edge[here] |= differs
        edge[there] |= differs
    edge &= label_map != 0
    return edge


def overlay(image: CellImage, instances: Instances, classes: Sequence[str]) -> UInt8:
    """The image with its cells outlined and faintly filled, uint8 RGB, and a legend under it.

    One pixel stays one pixel, unless the image is narrower than `NARROWEST`: then each becomes a
    square. Contrast is stretched from the 1st to the 99th percentile, since phase contrast is flat
    around mid-gray. The legend names the image and, by colour, each class and its number of cells.
    Raises ImageError if the label map has another size than the image, or a label has no class.
    """
    if image.size_hw != instances.label_map.shape:
        expected, found = (" x ".join(map(str, size)) for size in (image.size_hw, instances.label_map.shape))
        raise ImageError(f"{image.id}: expected cells of {expected} pixels, found {found}")
    if instances.labels.max(initial=0) > len(classes):
        raise ImageError(f"{image.id}: expected labels 1..{len(classes)}, found {instances.labels.max()}")
    palette = class_colours(len(classes))
    factor = _enlargement(image.size_hw)
    picture, label_map = stretched(image.pixels), instances.label_map
    if factor > 1:
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
        label_map = label_map.repeat(factor, axis=0).repeat(factor, axis=1)
    _paint(picture, label_map, np.array([(0, 0, 0), *palette])[instances.labels])
    counts = np.bincount(instances.labels, minlength=len(classes) + 1)[1:].tolist()
    entries = [(colour, f"{name} {n}") for colour, name, n in zip(palette, classes, counts, strict=True)]
    return _with_legend(picture, image.id, entries)


def match_overlay(image: CellImage, true: Sequence[Mask], found: Sequence[Mask], iou: float = 0.5) -> UInt8:
    """The image with hits, misses (dashed) and false alarms outlined, uint8 RGB, and a legend under it.

    A found cell is a hit where it pairs with a true one by an IoU greater than `iou`, one of
    `metric.THRESHOLDS`. Masks are runs within the image; cells of either kind may share pixels.
    Contrast as in `overlay`. Raises ValueError for another IoU.
    """
    from sartorius_infer.evaluate.metric import (
        match,  # it imports scipy, which pictures of predictions do without
    )

    partners = match(true, found, image.pixels.shape[0] * image.pixels.shape[1], iou)
    hits = set(partners[partners >= 0].tolist())
    picture = stretched(image.pixels)
    kinds = (
        ("hits", HIT, [found[c] for c in sorted(hits)]),
        ("misses", MISS, [true[t] for t in np.flatnonzero(partners < 0).tolist()]),
        ("false alarms", FALSE_ALARM, [mask for c, mask in enumerate(found) if c not in hits]),
    )
    for name, colour, masks in kinds:
        for mask in masks:
            _draw_outline(picture, mask, colour, dashed=name == "misses")
    factor = _enlargement(image.size_hw)
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    entries = [(colour, f"{name} {len(masks)}") for name, colour, masks in kinds]
    return _with_legend(picture, f"{image.id}, IoU > {iou:.2f}", entries)


def save_overlay(folder: Path, image_id: str, picture: UInt8) -> Path:
    """Write a picture as `<image_id>.png` into `folder`, made if need be, whole or not at all.

    Raises ImageError if the file cannot be written.
    """
    path = folder / f"{image_id}.png"
    data = png(picture)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def png(picture: UInt8) -> bytes:
    """A picture, uint8 RGB, as the bytes of a PNG file; IPython.display.Image shows them."""
    _, data = cv2.imencode(".png", picture[..., ::-1])
    return data.tobytes()


def _enlargement(size_hw: tuple[int, int]) -> int:
    """How many pixels a side each pixel becomes; the longer side stays below 16 times `NARROWEST`."""
    height, width = size_hw
    return max(1, min(-(-NARROWEST // width), 16 * NARROWEST // max(height, width)))


def stretched(pixels: UInt8) -> UInt8:
    """RGB (H, W, 3) of gray or RGB pixels, 1st percentile to black and 99th to white."""
    shares = np.bincount(pixels.ravel(), minlength=256).cumsum() / pixels.size
    low, high = np.searchsorted(shares, (0.01, 0.99))
    if low == high:
        low, high = np.intp(0), np.intp(255)
    table: UInt8 = ((np.arange(256) - low) * 255 / (high - low)).clip(0, 255).astype(np.uint8)
    stretched = table[pixels]
    return stretched if stretched.ndim == 3 else np.repeat(stretched[..., None], 3, axis=2)


def _paint(picture: UInt8, label_map: Int32, colours: NDArray[np.int64]) -> None:
    """Fill and outline the cells in place; `colours` (N, 3) are theirs, in label order."""
    shares = np.resize(_FILLS, len(colours)).astype(np.float32)[:, None]
    cells = label_map > 0
    index = label_map[cells] - 1
    tint = (colours * shares).astype(np.float32)
    picture[cells] = picture[cells] * (1 - shares)[index] + tint[index]
    edge = outline(label_map)
    picture[edge] = colours[label_map[edge] - 1]


def _draw_outline(picture: UInt8, mask: Mask, colour: tuple[int, int, int], dashed: bool) -> None:
    """Outline a mask in place; touches the mask's own rows only."""
    starts, lengths = mask
    if len(starts) == 0:
        return
    width = picture.shape[1]
    top, bottom = int(starts[0]) // width, int(starts[-1] + lengths[-1] - 1) // width + 1
    # A ring of background above and below, as the mask has, unless the image ends there.
    first, last = max(top - 1, 0), min(bottom + 1, picture.shape[0])
    own = np.zeros((last - first) * width, np.int32)
    own[run_pixels(starts - first * width, lengths)] = 1
    y, x = np.nonzero(outline(own.reshape(-1, width)))
    y += first
    drawn = (x + y) % 8 <= 4 if dashed else np.ones(len(x), np.bool_)
    picture[y[drawn], x[drawn]] = colour


def _with_legend(picture: UInt8, title: str, entries: Sequence[tuple[tuple[int, int, int], str]]) -> UInt8:
    width = max(picture.shape[1], NARROWEST)
    beside = ((0, 0), (0, width - picture.shape[1]), (0, 0))
    return np.vstack([np.pad(picture, beside), _legend(width, title, entries)])


def _legend(width: int, title: str, entries: Sequence[tuple[tuple[int, int, int], str]]) -> UInt8:
    """A band (h, width, 3): the title, then a swatch and its text for each entry, in rows."""
    size = max(14, width // 48)
    font = ImageFont.load_default(size)
    x, y, row = size, size // 2, size * 3 // 2
    placed: list[tuple[int, int, tuple[int, int, int] | None, str]] = []
    for colour, text in [(None, title), *entries]:
        text = " ".join(text.split())
        swatch = 0 if colour is None else row
        needed = swatch + int(font.getlength(text)) + size
        if x + needed > width and x > size:
            x, y = size, y + row
        placed.append((x, y, colour, text))
        x += needed
    band = Image.new("RGB", (width, y + row + size // 2), _BAND)
    draw = ImageDraw.Draw(band)
    for x, y, colour, text in placed:
        middle = y + row // 2
        if colour is not None:
            draw.rectangle((x, middle - size // 2, x + size, middle + size // 2), colour)
            x += row
        draw.text((x, middle), text, _FAINT_TEXT if colour is None else _TEXT, font, anchor="lm")
    return np.array(band)
