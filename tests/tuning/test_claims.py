"""Rules and score as machine code, against `build_instances` and `score_image`."""

from __future__ import annotations

import numpy as np
import pytest
from annotated import CLASSES, any_rules
from factories import empty_prediction, make_prediction, random_prediction

from sartorius_infer.cells.claim import build_instances, limits_of, select
from sartorius_infer.cells.paste import paste_cells
from sartorius_infer.cells.rle import Mask, split_label_map
from sartorius_infer.evaluate.metric import score_image, true_cells
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.tuning.claims import pack, score_packed
from sartorius_infer.types import Prediction

SIZE = (40, 52)


def fast(prediction: Prediction, rules: Rules, true: list[Mask]) -> float:
    crops = paste_cells(prediction.masks, prediction.boxes, prediction.size_hw, rules.paste)
    keep = select(prediction.scores, prediction.labels, rules, CLASSES)
    limits = limits_of(rules, CLASSES)
    return score_packed(pack(prediction, crops), keep, limits, rules, true_cells(true))


def slow(prediction: Prediction, rules: Rules, true: list[Mask]) -> float:
    cells = build_instances(prediction, rules, CLASSES)
    return score_image("", true, split_label_map(cells.label_map, len(cells))).ap


def test_any_rules_on_any_cells_score_the_same() -> None:
    """Against a truth that overlaps: what other rules make of the cells, and once more without some."""
    scores = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        prediction = random_prediction(rng, int(rng.integers(0, 30)), SIZE)
        cells = build_instances(prediction, any_rules(rng), CLASSES)
        true = split_label_map(cells.label_map, len(cells))
        true += split_label_map(np.roll(cells.label_map, 1, axis=0), len(cells))[::2]
        rules = any_rules(rng)
        assert fast(prediction, rules, true) == slow(prediction, rules, true), seed
        scores.add(slow(prediction, rules, true))
    assert len(scores) > 30


@pytest.mark.parametrize("fill", [False, True])
def test_rings_with_cells_in_their_holes(fill: bool) -> None:
    """The hole of a ring belongs to it where nothing surer lies in it, and as far as it is not cut off."""
    y, x = np.mgrid[:28, :28] / 13.5 - 1
    ring = (abs(np.hypot(y, x) - 0.8) < 0.15) * 0.9
    bar = (abs(y) < 0.2) * 0.9
    boxes = [(2, 2, 30, 30), (4, 4, 28, 28), (20, 5, 50, 35)]
    rules = Rules(
        per_class={name: ClassRule(score=0.1) for name in CLASSES},
        fill_holes=fill,
        overlap_survival=0.0,
        consensus="off",
    )
    for scores in ((0.9, 0.5, 0.7), (0.5, 0.9, 0.7), (0.6, 0.6, 0.6)):
        prediction = make_prediction(np.stack([ring, bar, ring]), boxes, scores, [1, 2, 1], SIZE)
        cells = build_instances(prediction, rules, CLASSES)
        for moved in range(-2, 3):
            true = split_label_map(np.roll(cells.label_map, moved, axis=1), len(cells))
            assert fast(prediction, rules, true) == slow(prediction, rules, true)
    assert fast(prediction, rules, split_label_map(cells.label_map, len(cells))) == 1


def test_nothing_seen_and_nothing_true() -> None:
    rules, nothing = Rules(), empty_prediction(SIZE)
    assert fast(nothing, rules, []) == 1
    assert fast(nothing, rules, [(np.array([3]), np.array([4]))]) == 0
