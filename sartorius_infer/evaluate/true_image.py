"""What a truth holds of one image: cells as annotators drew them, any number of overlapping masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sartorius_infer.cells.rle import Mask
from sartorius_infer.errors import TruthError, some
from sartorius_infer.files import whole
from sartorius_infer.types import MAX_PIXELS

Key = int | str
"""The id of an image or a category in COCO's JSON."""


@dataclass(frozen=True, eq=False)
class Region:
    """One annotation of COCO's, crowd regions and those without a pixel too; `area` as it was told."""

    mask: Mask
    category: Key | None
    area: float
    is_crowd: bool


@dataclass(frozen=True, eq=False)
class CocoImage:
    """What COCO's JSON tells of an image beyond its cells.

    `ids` are those of the image, several where one file is listed under several; `categories` are the
    file's, by id. `repeated` counts cells of a second annotation of the same file, which are left out.
    `path` is the image's `file_name`, with `/` between folders.
    """

    ids: tuple[Key, ...]
    regions: tuple[Region, ...]
    categories: Mapping[Key, str]
    repeated: int = 0
    path: str = ""


@dataclass(frozen=True, eq=False)
class TrueImage:
    """The true cells of one image; `cell_type` is "" where it is not told, or not one.

    `mask_types` tells each cell's own type; empty where all are of `cell_type`. `empty` counts annotated
    cells that hold no pixel of the image. `coco` is None where the truth is not COCO's.
    """

    id: str
    size_hw: tuple[int, int]
    cell_type: str
    masks: tuple[Mask, ...]
    mask_types: tuple[str, ...] = ()
    empty: int = 0
    coco: CocoImage | None = None

    @property
    def types(self) -> tuple[str, ...]:
        """The type of each cell."""
        return self.mask_types or (self.cell_type,) * len(self.masks)


def paths_of(truth: Mapping[str, TrueImage]) -> dict[str, str]:
    """The paths that COCO's JSON gives of images."""
    return {image_id: image.coco.path for image_id, image in truth.items() if image.coco}


def whole_size(path: Path, image_id: object, height: object, width: object) -> tuple[int, int]:
    """A size (H, W) of two texts or numbers, of at most `MAX_PIXELS`.

    Raises TruthError that names the file and the image.
    """
    size_hw = whole(height) or 0, whole(width) or 0
    if min(size_hw) < 1:
        raise TruthError(f"{path}: {image_id}: expected a size in whole pixels, found {height!r} x {width!r}")
    if size_hw[0] * size_hw[1] > MAX_PIXELS:
        raise TruthError(f"{path}: {image_id}: expected at most {MAX_PIXELS} pixels, found {size_hw}")
    return size_hw


def truth_notes(truth: Mapping[str, TrueImage]) -> Iterator[str]:
    """A line for each thing that was read otherwise than it stands: how many, and the first few images."""
    coco = {i: image.coco for i, image in truth.items() if image.coco}
    crowds = {i: sum(region.is_crowd for region in c.regions) for i, c in coco.items()}
    yield from _note("annotated cells without a pixel, left out", {i: t.empty for i, t in truth.items()})
    yield from _note("crowd regions, which are no cells", crowds)
    yield from _note(
        "further ids of a file that is listed before", {i: len(c.ids) - 1 for i, c in coco.items()}
    )
    yield from _note(
        "cells of a file's second annotation, left out", {i: c.repeated for i, c in coco.items()}
    )


def _note(what: str, counts: Mapping[str, int]) -> Iterator[str]:
    named = [image_id for image_id, count in counts.items() if count]
    if named:
        yield f"{sum(counts.values())} {what}: {', '.join(named[:3])}{', ...' * (len(named) > 3)}"


def require_known(truth: Mapping[str, TrueImage], ids: list[str], source: Path) -> None:
    """Raise TruthError unless every id has its truth."""
    unknown = [image_id for image_id in ids if image_id not in truth]
    if unknown:
        raise TruthError(f"{source}: expected truth of every image, found none of {some(unknown)}")
