"""Draw found cells over their image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sartorius_infer.cells.colours import class_colours
from sartorius_infer.cells.instances import Instances
from sartorius_infer.errors import ImageError, size_text
from sartorius_infer.files import as_id, atomic_file
from sartorius_infer.types import Bool, CellImage, Int32, UInt8

NARROWEST = 256

# Shares of the class's colour in the fill; cells that touch seldom get the same one.
_FILLS = (0.10, 0.40, 0.20, 0.30)
_BAND, _TEXT, _FAINT_TEXT = (24, 24, 24), (240, 240, 240), (160, 160, 160)


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


def overlay(image: CellImage, instances: Instances) -> UInt8:
    """The image with its cells outlined and faintly filled, uint8 RGB, and a legend under it.

    One pixel stays one pixel, unless the image is narrower than `NARROWEST`: then each becomes a
    square. Contrast is stretched from the 1st to the 99th percentile, since phase contrast is flat
    around mid-gray. The legend names the image and, by colour, each class and its number of cells.
    Raises ImageError if the label map has another size than the image.
    """
    if image.size_hw != instances.label_map.shape:
        expected, found = size_text(image.size_hw), size_text(instances.label_map.shape)
        raise ImageError(f"{image.id}: expected cells of {expected} pixels, found {found}")
    classes = instances.class_names
    palette = class_colours(len(classes))
    factor = enlargement(image.size_hw)
    picture, label_map = stretched(image.pixels), instances.label_map
    if factor > 1:
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
        label_map = label_map.repeat(factor, axis=0).repeat(factor, axis=1)
    _paint(picture, label_map, np.array([(0, 0, 0), *palette])[instances.labels])
    counts = np.bincount(instances.labels, minlength=len(classes) + 1)[1:].tolist()
    entries = [(colour, f"{name} {n}") for colour, name, n in zip(palette, classes, counts, strict=True)]
    return with_legend(picture, image.id, entries)


def save_overlay(folder: Path, image_id: str, picture: UInt8) -> Path:
    """Write a picture as `<image_id>.png` into `folder`, made if need be, whole or not at all.

    The id is as `files.as_id` spells it. Raises ImageError if the file cannot be written.
    """
    path = folder / f"{as_id(image_id)}.png"
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


def enlargement(size_hw: tuple[int, int]) -> int:
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


def with_legend(picture: UInt8, title: str, entries: Sequence[tuple[tuple[int, int, int], str]]) -> UInt8:
    """A picture, uint8 RGB, with a band under it that holds a title and a swatch for each entry."""
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
