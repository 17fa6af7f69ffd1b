"""True cells, told apart by how they are written."""

from __future__ import annotations

from pathlib import Path

from sartorius_infer.evaluate.coco_truth import read_coco
from sartorius_infer.evaluate.label_maps import read_label_maps
from sartorius_infer.evaluate.train_csv import read_train_csv
from sartorius_infer.evaluate.true_image import TrueImage as TrueImage
from sartorius_infer.files import as_path


def read_truth(path: str | Path) -> dict[str, TrueImage]:
    """True images by id: from Kaggle's train.csv, COCO's JSON, or a folder of label maps.

    Raises TruthError, naming the file and the image.
    """
    path = as_path(path, "truth")
    if path.is_dir():
        return read_label_maps(path)
    return read_coco(path) if path.suffix.lower() == ".json" else read_train_csv(path)
