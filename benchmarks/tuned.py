"""How long `tune` searches, against the number of images: drawn cells, seen by members that differ."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.ratios import drawn_cells
from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.competition import COMPETITION_CLASSES, default_rules
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.curves import curves
from sartorius_infer.tuning.search import tune
from sartorius_infer.tuning.trials import Example, Scorer
from sartorius_infer.types import Prediction

CELLS = (400, 90, 40)
"""Of an image of each of the competition's classes."""


@dataclass(frozen=True)
class Cost:
    """What a search took: processor seconds, combinations of members, and cells put under rules."""

    images: int
    seconds: float
    combined: int
    evaluated: int


def costs(counts: Sequence[int], members: int = 3) -> Iterator[Cost]:
    """Of whole searches on so many images, five folds and the curves included."""
    for count in counts:
        scorer = Scorer(examples(count, members), COMPETITION_CLASSES)
        start = time.process_time()
        rules = default_rules(COMPETITION_CLASSES)
        tuned = tune(scorer, Choice(rules, Fusion(), (1.0,) * members))
        curves(scorer, tuned.choice)
        yield Cost(count, time.process_time() - start, scorer.combined, scorer.evaluated)


def examples(count: int, members: int) -> list[Example]:
    """Images of one class each, in turns; a member lacks some of the cells and moves the others."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        label = number % len(CELLS) + 1
        cells = drawn_cells(CELLS[label - 1], seed=number)
        true = build_instances(cells, default_rules(("cell",)), ("cell",))
        masks = tuple(split_label_map(true.label_map, len(true)))
        cells = replace(cells, image_id=f"i{number}", labels=np.full(len(cells), label, np.int64))
        seen = tuple(_seen(cells, rng) for _ in range(members))
        kind = COMPETITION_CLASSES[label - 1]
        made.append(Example(seen, TrueImage(f"i{number}", cells.size_hw, kind, masks)))
    return made


def _seen(cells: Prediction, rng: np.random.Generator) -> Prediction:
    """What one member sees of drawn cells."""
    some = cells[np.flatnonzero(rng.random(len(cells)) < 0.9)]
    boxes = (some.boxes + rng.normal(0, 1, some.boxes.shape)).astype(np.float32)
    scores = np.clip(some.scores - rng.uniform(0, 0.5, len(some)), 0.05, 1).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return replace(some, boxes=boxes, scores=scores)[order]
