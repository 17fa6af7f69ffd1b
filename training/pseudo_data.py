"""Pseudo-labels as a folder that training reads like any other: COCO's JSON beside the images."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sartorius_infer.cells.instances import Instances
from sartorius_infer.files import as_id, atomic_file
from sartorius_infer.types import CellImage
from training.sure import Judged

ANNOTATIONS = "pseudo.json"
IMAGES = "images"
TABLE = "images.csv"
COLUMNS = ("id", "class", "found", "sure", "left_out")


@dataclass(eq=False)
class PseudoFolder:
    """What is written to `folder`: `images/<id>.png` as they are added, the rest by `finish`.

    classes    the ensemble's
    rows       of every image, as `COLUMNS` says
    of_images  how many are kept of each class, `of_cells` how many of their cells are sure, `unsure` how
               many are not
    """

    folder: Path
    classes: tuple[str, ...]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    rows: list[tuple[object, ...]] = field(default_factory=list)
    of_images: Counter[str] = field(default_factory=Counter)
    of_cells: Counter[str] = field(default_factory=Counter)
    unsure: int = 0

    def add(self, image: CellImage, judged: Judged) -> None:
        """Take note of an image, and write it where it is kept, as the networks saw it."""
        names = Counter(self.classes[label - 1] for label in judged.cells.labels[judged.sure].tolist())
        kind = max(names, key=names.__getitem__, default="")
        self.rows.append((image.id, kind, len(judged.cells), int(judged.sure.sum()), judged.fault))
        if judged.fault:
            return
        self.of_images[kind] += 1
        self.of_cells += names
        self.unsure += int((~judged.sure).sum())
        file_name = f"{as_id(image.id)}.png"
        (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / IMAGES / file_name, "wb") as file:
            Image.fromarray(image.pixels).save(file, "PNG")
        height, width = image.size_hw
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        for result, sure in zip(judged.cells.to_coco(number), judged.sure.tolist(), strict=True):
            self.annotations.append({"id": len(self.annotations) + 1, **result, "iscrowd": int(not sure)})

    def finish(self, about: Mapping[str, object]) -> None:
        """Write the table of all images, and the annotations of those that are kept, where there are any."""
        with atomic_file(self.folder / TABLE, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(self.rows)
        if not self.images:
            return
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes, start=1)]
        content = {"info": about, "categories": categories, "images": self.images}
        with atomic_file(self.folder / ANNOTATIONS, "w") as file:
            json.dump(content | {"annotations": self.annotations}, file)


def shown(judged: Judged) -> Instances:
    """The cells with one more class, "unsure", for pictures."""
    cells = judged.cells
    classes = (*cells.class_names, "unsure")
    labels = np.where(judged.sure, cells.labels, len(classes))
    return Instances(cells.image_id, cells.label_map, cells.scores, labels, classes)


def counted(counts: Counter[str], classes: Sequence[str]) -> str:
    """The number of each class that there is any of, as text: "astro 3, cort 17"."""
    return ", ".join(f"{name} {counts[name]}" for name in classes if counts[name]) or "none"
