"""Truths on disk, and what is read of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sartorius_infer.cells.rle import Mask, areas, run_pixels
from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.metric import overlaps
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.evaluate.truth import read_truth
from sartorius_infer.types import Bool, Int64

HEAD = "id,annotation,width,height,cell_type\n"
SIZE = "expected a size in whole pixels, found .+"
SQUARE = {"segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}
SQUARE_PIXELS = [9, 10, 11, 17, 18, 19]


def overlap_tables(true: Sequence[Mask], found: Sequence[Mask]) -> tuple[Int64, Int64]:
    """Pixels in both and in either, int64 (T, P), of each true and each found cell."""
    one, other, pixels, either = overlaps(true, found)
    shared, unions = np.zeros((len(true), len(found)), np.int64), areas(true)[:, None] + areas(found)
    shared[one, other], unions[one, other] = pixels, either
    return shared, unions


def csv(folder: Path, *rows: str) -> Path:
    path = folder / "train.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return path


def dense(image: TrueImage) -> list[Bool]:
    masks = []
    for starts, lengths in image.masks:
        mask = np.zeros(image.size_hw, np.bool_)
        mask.ravel()[run_pixels(starts, lengths)] = True
        masks.append(mask)
    return masks


def pixels(image: TrueImage) -> list[list[int]]:
    """The flat indices of each cell."""
    return [np.flatnonzero(mask).tolist() for mask in dense(image)]


def refused(path: Path, said: str) -> None:
    """Reading raises one line that begins with the file."""
    with pytest.raises(TruthError, match=f"^{re.escape(f'{path}: ')}{said}$") as caught:
        read_truth(path)
    assert "\n" not in str(caught.value)


def coco(folder: Path, cells: list[dict[str, Any]], **more: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "plate/a.tif", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "shsy5y"}, {"id": 2, "name": "cort"}],
        "annotations": [{"image_id": 7, "category_id": 1, **cell} for cell in cells],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content | more))
    return path


def label_map(path: Path, labels: list[list[int]], kind: str = "uint16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(labels, kind)).save(path)
    return path
