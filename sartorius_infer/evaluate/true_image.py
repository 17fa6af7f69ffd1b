"""What a truth holds of one image: cells as annotators drew them, any number of overlapping masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sartorius_infer.cells.rle import Mask
from sartorius_infer.errors import TruthError


@dataclass(frozen=True, eq=False)
class TrueImage:
    """The true cells of one image; `cell_type` is "" where it is not told, or not one.

    `mask_types` tells each cell's own type; empty where all are of `cell_type`. `empty` counts annotated
    cells that hold no pixel of the image.
    """

    id: str
    size_hw: tuple[int, int]
    cell_type: str
    masks: tuple[Mask, ...]
    mask_types: tuple[str, ...] = ()
    empty: int = 0


def whole_size(path: Path, image_id: object, height: object, width: object) -> tuple[int, int]:
    """A size (H, W) of two texts or numbers; raises TruthError that names the file and the image."""
    try:
        size_hw = int(str(height)), int(str(width))
    except ValueError:
        size_hw = (0, 0)
    if min(size_hw) < 1:
        raise TruthError(f"{path}: {image_id}: expected a size in whole pixels, found {height!r} x {width!r}")
    return size_hw


def require_known(truth: Mapping[str, TrueImage], ids: list[str], source: Path) -> None:
    """Raise TruthError unless every id has its truth."""
    unknown = [image_id for image_id in ids if image_id not in truth]
    if unknown:
        raise TruthError(f"{source}: expected truth of every image, found none of {', '.join(unknown[:5])}")
