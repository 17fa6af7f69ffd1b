"""Images with predictions and a truth that some rules reach, and their scores computed the long way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from factories import random_prediction

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.paste import PasteMode
from sartorius_infer.cells.rle import encode_label_map, split_label_map
from sartorius_infer.evaluate.metric import score_image
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.manifest.rules import ClassRule, Consensus, EdgeRule, EdgeThresholds, Rules
from sartorius_infer.output.predictions import save_prediction
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.members import combine
from sartorius_infer.tuning.trials import Example

CLASSES = ("a", "b", "c")
SIZE = (60, 80)
HIDDEN = Rules(
    per_class={"a": ClassRule(score=0.5), "b": ClassRule(score=0.3, min_area=30), "c": ClassRule(score=0.7)}
)


def examples(count: int = 6, members: int = 1) -> list[Example]:
    """The truth is what hidden rules make of the first member; good rules exist, and can be found."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        seen = tuple(replace(random_prediction(rng, 25, SIZE), image_id=f"i{i}") for _ in range(members))
        cells = build_instances(seen[0], HIDDEN, CLASSES)
        masks = tuple(split_label_map(cells.label_map, len(cells)))
        made.append(Example(seen, TrueImage(f"i{i}", SIZE, CLASSES[i % 3], masks)))
    return made


def any_rules(rng: np.random.Generator) -> Rules:
    """Rules of every kind."""
    per_class = {}
    for name in CLASSES:
        edge = EdgeThresholds(score=round(rng.random(), 1), min_area=int(rng.integers(0, 40)))
        rule = ClassRule(score=round(rng.random(), 1), min_area=int(rng.integers(0, 60)), mask=0.4)
        per_class[name] = rule.model_copy(update={"edge": edge if rng.random() < 0.5 else None})
    return Rules(
        per_class=per_class,
        consensus=get_args(Consensus)[rng.integers(4)],
        overlap_survival=round(rng.random(), 1),
        rescore_by_mask=bool(rng.random() < 0.5),
        fill_holes=bool(rng.random() < 0.5),
        edge=EdgeRule(mode=("rule", "keep", "drop")[rng.integers(3)], margin=int(rng.integers(0, 3))),
        paste=get_args(PasteMode)[rng.integers(2)],
    )


def plain_scores(some: Sequence[Example], choice: Choice) -> list[float]:
    """Each example's score, with nothing remembered."""
    scores = []
    for example in some:
        prediction = combine(example.members, choice.weights, choice.fusion)
        cells = build_instances(prediction, choice.rules, CLASSES)
        found = split_label_map(cells.label_map, len(cells))
        scores.append(score_image("", example.truth.masks, found).ap)
    return scores


def write_saved(folder: Path, classes: Sequence[str] = CLASSES, count: int = 4) -> tuple[Path, Path]:
    """`saved/` and `train.csv` in `folder`: predictions, and as truth what hidden rules make of them."""
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        prediction = replace(random_prediction(rng, 12, SIZE), image_id=f"i{i}")
        save_prediction(folder / "saved", prediction)
        cells = build_instances(prediction, HIDDEN, CLASSES)
        texts = encode_label_map(cells.label_map, len(cells))
        rows += [(f"i{i}", text, SIZE[1], SIZE[0], classes[0]) for text in texts if text]
    columns = ["id", "annotation", "width", "height", "cell_type"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "train.csv", index=False)
    return folder / "saved", folder / "train.csv"
