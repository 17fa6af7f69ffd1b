"""Images with predictions and a truth that some rules reach, and their scores computed the long way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from factories import random_prediction

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.evaluate.metric import score_image
from sartorius_infer.evaluate.truth import TrueImage
from sartorius_infer.manifest.rules import ClassRule, Rules
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


def plain_scores(some: Sequence[Example], choice: Choice) -> list[float]:
    """Each example's score, with nothing remembered."""
    scores = []
    for example in some:
        prediction = combine(example.members, choice.weights, choice.fusion)
        cells = build_instances(prediction, choice.rules, CLASSES)
        found = split_label_map(cells.label_map, len(cells))
        scores.append(score_image("", example.truth.masks, found, SIZE[0] * SIZE[1]).ap)
    return scores
