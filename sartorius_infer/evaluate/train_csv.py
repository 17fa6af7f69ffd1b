"""Truth as Kaggle writes it: `train.csv`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sartorius_infer.cells.rle import decode
from sartorius_infer.errors import TruthError, first_line
from sartorius_infer.evaluate.true_image import TrueImage, whole_size

COLUMNS = ("id", "annotation", "width", "height", "cell_type")


def read_train_csv(path: Path) -> dict[str, TrueImage]:
    """Kaggle's `train.csv`: a row a cell with id, annotation, width, height and cell_type.

    Raises TruthError for a missing column, a size or type that changes within an image, or a
    malformed annotation.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Exception as error:  # a damaged or cut off file, compressed ones too, fails in any way
        raise TruthError(f"{path}: expected a CSV file, found {first_line(error)}") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise TruthError(f"{path}: expected columns {', '.join(COLUMNS)}, found no {', '.join(missing)}")
    # pandas makes an index of what a first row has beyond the header.
    if not isinstance(table.index, pd.RangeIndex):
        raise TruthError(f"{path}: expected {len(table.columns)} fields in line 2, found more")
    if (table["id"] == "").any():
        line = int((table["id"] == "").to_numpy().argmax()) + 2
        raise TruthError(f"{path}: expected an id in each row, found none in line {line}")
    images: dict[str, TrueImage] = {}
    for image_id, rows in table.groupby("id", sort=True):
        kinds = rows[["height", "width", "cell_type"]].drop_duplicates().to_numpy().tolist()
        if len(kinds) > 1:
            raise TruthError(f"{path}: {image_id}: expected one size and cell type, found {len(kinds)}")
        size_hw, cell_type = whole_size(path, image_id, *kinds[0][:2]), str(kinds[0][2])
        try:
            masks = tuple(decode(text, size_hw) for text in rows["annotation"] if text.strip())
        except ValueError as error:
            raise TruthError(f"{path}: {image_id}: {error}") from None
        images[str(image_id)] = TrueImage(str(image_id), size_hw, cell_type, masks)
    return images
