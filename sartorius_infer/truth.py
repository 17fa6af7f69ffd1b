"""True cells, as annotators drew them: any number of overlapping masks an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sartorius_infer.errors import TruthError, first_line
from sartorius_infer.metric import Mask
from sartorius_infer.rle import decode

COLUMNS = ("id", "annotation", "width", "height", "cell_type")


@dataclass(frozen=True, eq=False)
class TrueImage:
    """The true cells of one image; `cell_type` is "" where it is not told."""

    id: str
    size_hw: tuple[int, int]
    cell_type: str
    masks: tuple[Mask, ...]


def read_train_csv(path: Path) -> dict[str, TrueImage]:
    """Kaggle's `train.csv`: a row a cell with id, annotation, width, height and cell_type.

    Raises TruthError, naming the file and the image, for a missing column, a size or type that
    changes within an image, or a malformed annotation.
    """
    try:
        table = pd.read_csv(
            path, dtype={"id": str, "annotation": str, "cell_type": str}, keep_default_na=False
        )
    except (OSError, ValueError) as error:
        raise TruthError(f"{path}: expected a CSV file, found {first_line(error)}") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise TruthError(f"{path}: expected columns {', '.join(COLUMNS)}, found no {', '.join(missing)}")
    images: dict[str, TrueImage] = {}
    for image_id, rows in table.groupby("id", sort=True):
        kinds = rows[["height", "width", "cell_type"]].drop_duplicates().to_numpy().tolist()
        if len(kinds) > 1:
            raise TruthError(f"{path}: {image_id}: expected one size and cell type, found {len(kinds)}")
        height, width, cell_type = kinds[0]
        size_hw = (int(height), int(width))
        try:
            masks = tuple(decode(text, size_hw) for text in rows["annotation"] if text)
        except ValueError as error:
            raise TruthError(f"{path}: {image_id}: {error}") from None
        images[str(image_id)] = TrueImage(str(image_id), size_hw, str(cell_type), masks)
    return images


def require_known(truth: Mapping[str, TrueImage], ids: list[str], source: Path) -> None:
    """Raise TruthError unless every id has its truth."""
    unknown = [image_id for image_id in ids if image_id not in truth]
    if unknown:
        raise TruthError(f"{source}: expected truth of every image, found none of {', '.join(unknown[:5])}")
