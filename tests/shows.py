"""A small case for `show`: images, predictions, rules, and a truth that they meet in part."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import CLASSES, random_prediction
from tiny import write_image

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import Mask, encode_label_map, run_pixels, split_label_map
from sartorius_infer.evaluate.metric import ImageScore, score_image
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.images.find import ImageFile
from sartorius_infer.manifest.rules import ClassRule, EdgeThresholds, Rules
from sartorius_infer.output.predictions import save_prediction
from sartorius_infer.show.candidates import Look, Looks, looks_of_predictions, shown_masks
from sartorius_infer.types import Bool, Prediction

SIZE = (96, 128)
RULES = Rules(
    per_class={
        "shsy5y": ClassRule(score=0.3, min_area=8, edge=EdgeThresholds(score=0.8, min_area=12)),
        "astro": ClassRule(score=0.45),
        "cort": ClassRule(score=0.7, min_area=4),
    },
    consensus="score_sum",
    overlap_survival=0.3,
    rescore_by_mask=True,
)


@dataclass(frozen=True, eq=False)
class Case:
    """Everything `show` takes, on disk and in memory; image `empty` has neither true nor found cells."""

    folder: Path
    files: list[ImageFile]
    predictions: list[Prediction]
    truth: dict[str, TrueImage]

    @property
    def looks(self) -> Looks:
        return looks_of_predictions(self.predictions, RULES, CLASSES)

    def scores(self, looks: Looks) -> dict[str, ImageScore]:
        return {i: scored(self.truth[i], look, looks) for i, look in looks.images.items()}


def scored(true: TrueImage, look: Look, looks: Looks) -> ImageScore:
    return score_image(true.id, true.masks, shown_masks(look, looks))


def make_case(folder: Path, count: int = 6, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    files, predictions, truth = [], [], {}
    for i in range(count):
        image_id = f"i{i}" if i else "empty"
        files.append(ImageFile(image_id, write_image(folder / "images" / f"{image_id}.png", SIZE, seed=i)))
        made = replace(random_prediction(rng, 40 if i else 0, SIZE), image_id=image_id)
        predictions.append(made)
        save_prediction(folder / "saved", made)
        masks = tuple(true_cells(made, rng))
        truth[image_id] = TrueImage(image_id, SIZE, CLASSES[i % 3] if i else "", masks)
    return Case(folder, files, predictions, truth)


def true_cells(prediction: Prediction, rng: np.random.Generator) -> list[Mask]:
    """Cells near those of every class at low thresholds: some as they are, some moved, some left out."""
    masks = []
    for k in np.unique(prediction.labels):
        low = Rules(per_class={name: ClassRule(score=0.25) for name in CLASSES}, overlap_survival=0.2)
        cells = build_instances(prediction[prediction.labels == k], low, CLASSES)
        for number in range(1, len(cells) + 1):
            if rng.random() < 0.7:
                moved = np.roll(cells.label_map == number, tuple(rng.integers(-1, 2, 2)), (0, 1))
                masks.append(one_mask(moved))
    return masks


def one_mask(mask: Bool) -> Mask:
    return split_label_map(mask.astype(np.int32), 1)[0]


def dense(mask: Mask, size_hw: tuple[int, int] = SIZE) -> Bool:
    drawn = np.zeros(size_hw, np.bool_)
    drawn.ravel()[run_pixels(*mask)] = True
    return drawn


def write_train(path: Path, truth: dict[str, TrueImage], **columns: Any) -> Path:
    """Kaggle's train.csv; an image without cells has a row without an annotation."""
    rows = []
    for image_id, image in truth.items():
        texts = [encode_label_map(dense(m, image.size_hw).astype(np.int32), 1)[0] for m in image.masks]
        rows += [(image_id, text, *image.size_hw[::-1], image.cell_type) for text in texts or [""]]
    table = pd.DataFrame(rows, columns=["id", "annotation", "width", "height", "cell_type"])
    table.assign(**columns).to_csv(path, index=False)
    return path


def with_floors(looks: Looks, floors: tuple[float, ...]) -> Looks:
    return replace(looks, floors=floors)


def content_of(page: str) -> dict[str, Any]:
    """What the page's script reads, as a browser cuts it out: up to the first end tag.

    `images` has of each what is counted with, and what is drawn as `drawing`.
    """
    found = {
        name: [
            json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
            for text in re.findall(rf'<script {name} type="application/json">(.*?)</script>', page, re.S)
        ]
        for name in ('id="content"', 'class="image"', 'class="drawing"')
    }
    (content,), images, drawings = found.values()
    pairs = zip(images, drawings, strict=True)
    return dict(content) | {"images": [image | {"drawing": drawn} for image, drawn in pairs]}
