"""Choosing the rules by the score, on predictions that were made once.

Coordinate search: one setting after another takes the value of its grid that scores best, until none
moves. An image's score depends on few settings (those of the classes it holds), so what a candidate does
not change is looked up. The choice is judged by cross-validation: the score on images that it did not
see, beside the one on those that it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartorius_infer.errors import TruthError
from sartorius_infer.instances import build_instances, consensus_label
from sartorius_infer.metric import score_image
from sartorius_infer.rle import split_label_map
from sartorius_infer.rules import ClassRule, EdgeThresholds, Rules
from sartorius_infer.scoring import Comparison, bootstrap
from sartorius_infer.truth import TrueImage
from sartorius_infer.types import Float64, Int64, Prediction

SCORES = tuple(round(0.05 * k, 2) for k in range(1, 20))
MASKS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
AREAS = (0, 15, 30, 47, 63, 80, 107, 130, 160, 200)
SURVIVALS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
FINE_SCORES = (-0.04, -0.03, -0.02, -0.01, 0.01, 0.02, 0.03, 0.04)
MOST_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class Example:
    """What the networks saw in an image, and what is there."""

    prediction: Prediction
    truth: TrueImage


class Scorer:
    """The score of each example under given rules; what a change of rules cannot change is remembered."""

    def __init__(self, examples: Sequence[Example], classes: Sequence[str]) -> None:
        self.examples, self.classes = examples, classes
        self._known: dict[tuple[Any, ...], float] = {}

    def __call__(self, rules: Rules, which: Int64 | None = None) -> Float64:
        """Scores of the examples, or of those numbered `which`, float64 (N,)."""
        numbers = range(len(self.examples)) if which is None else which.tolist()
        return np.array([self._score(number, rules) for number in numbers])

    def _score(self, number: int, rules: Rules) -> float:
        prediction, truth = self.examples[number].prediction, self.examples[number].truth
        label = consensus_label(prediction.scores, prediction.labels, rules, self.classes)
        labels = np.unique(prediction.labels) if label is None else [label]
        own = tuple((int(k), rules.of(self.classes[int(k) - 1]).model_dump_json()) for k in labels)
        shared = rules.model_dump_json(exclude={"per_class", "consensus"})
        key = (number, own, shared)
        if key not in self._known:
            # The winner's cells alone: asking again gives the same winner, and the key says no more.
            cells = build_instances(prediction, rules, self.classes)
            found = split_label_map(cells.label_map, len(cells))
            self._known[key] = score_image(truth.id, truth.masks, found, cells.label_map.size).ap
        return self._known[key]


Candidates = Callable[[Rules], Iterator[Rules]]
"""The rules with one setting at each value of its grid."""


def coordinates(classes: Sequence[str], fine: bool = False) -> list[tuple[str, Candidates]]:
    """The settings that the search moves, by name; `fine` are small steps of the score thresholds."""
    settings: list[tuple[str, Candidates]] = []
    for name in classes:
        if fine:
            settings.append((f"{name} score", _class_setting(name, "score", _near)))
            continue
        settings += [
            (f"{name} score", _class_setting(name, "score", lambda old: SCORES)),
            (f"{name} min_area", _class_setting(name, "min_area", lambda old: AREAS)),
            (f"{name} mask", _class_setting(name, "mask", lambda old: MASKS)),
            (f"{name} edge", _class_setting(name, "edge", _edges)),
        ]
    if not fine:
        settings += [
            ("consensus", _shared_setting("consensus", ("off", "count", "score_sum"))),
            ("overlap_survival", _shared_setting("overlap_survival", SURVIVALS)),
            ("rescore_by_mask", _shared_setting("rescore_by_mask", (False, True))),
            ("fill_holes", _shared_setting("fill_holes", (False, True))),
            ("edge mode", _edge_mode),
        ]
    return settings


def _class_setting(name: str, setting: str, grid: Callable[[ClassRule], Sequence[Any]]) -> Candidates:
    def candidates(rules: Rules) -> Iterator[Rules]:
        old = rules.of(name)
        for value in grid(old):
            per_class = rules.per_class | {name: old.model_copy(update={setting: value})}
            yield rules.model_copy(update={"per_class": per_class})

    return candidates


def _shared_setting(setting: str, values: Sequence[Any]) -> Candidates:
    return lambda rules: (rules.model_copy(update={setting: value}) for value in values)


def _edge_mode(rules: Rules) -> Iterator[Rules]:
    for mode in ("rule", "keep", "drop"):
        yield rules.model_copy(update={"edge": rules.edge.model_copy(update={"mode": mode})})


def _near(rule: ClassRule) -> list[float]:
    return [round(rule.score + step, 3) for step in FINE_SCORES if 0 <= rule.score + step <= 1]


def _edges(rule: ClassRule) -> list[EdgeThresholds | None]:
    areas = sorted({0, rule.min_area // 2, rule.min_area})
    scores = sorted({round(min(1.0, max(0.0, rule.score + step)), 3) for step in (-0.2, -0.1, 0.0, 0.1, 0.2)})
    return [None, *(EdgeThresholds(score=s, min_area=a) for s in scores for a in areas)]


def search(scorer: Scorer, start: Rules, which: Int64) -> Rules:
    """The rules that score best on the examples numbered `which`, from `start`; ties keep what is."""
    rules, best = start, float(scorer(start, which).mean())
    for fine in (False, True):
        for _ in range(MOST_ROUNDS):
            before = best
            for _, candidates in coordinates(scorer.classes, fine):
                for candidate in candidates(rules):
                    score = float(scorer(candidate, which).mean())
                    if score > best + 1e-9:
                        rules, best = candidate, score
            if best <= before + 1e-9:
                break
    return rules


@dataclass(frozen=True, eq=False)
class Tuned:
    """Chosen rules and what speaks for them.

    start   mean score of the rules that the search began with
    seen    of the chosen rules, on the images that they were chosen on
    unseen  of rules chosen without an image, on that image (cross-validation)
    gain    unseen minus start, with its interval by paired bootstrap
    """

    rules: Rules
    start: float
    seen: float
    unseen: float
    gain: Comparison
    images: int
    folds: int
    seed: int


def tune(scorer: Scorer, start: Rules, folds: int = 5, seed: int = 0,
         on_fold: Callable[[int], None] = lambda fold: None) -> Tuned:  # fmt: skip
    """Choose rules on all examples, and judge the choice on images that it did not see.

    Folds hold whole images, each cell type spread over them. Raises TruthError for fewer images than
    folds, and for fewer than two folds.
    """
    count = len(scorer.examples)
    if folds < 2 or count < folds:
        raise TruthError(
            f"expected at least {max(folds, 2)} annotated images for {folds} folds, found {count}"
        )
    fold_of = _folds([example.truth.cell_type for example in scorer.examples], folds, seed)
    base = scorer(start)
    unseen = np.zeros(count)
    for fold in range(folds):
        held, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        unseen[held] = scorer(search(scorer, start, others), held)
        on_fold(fold)
    everything = np.arange(count)
    chosen = search(scorer, start, everything)
    low, high = bootstrap(unseen - base, seed)
    gain = Comparison(float((unseen - base).mean()), low, high)
    return Tuned(
        chosen,
        float(base.mean()),
        float(scorer(chosen).mean()),
        float(unseen.mean()),
        gain,
        count,
        folds,
        seed,
    )


def _folds(types: Sequence[str], folds: int, seed: int) -> Int64:
    """A fold for each image, int64 (N,): images of one type go round, in an order drawn by `seed`."""
    rng = np.random.default_rng(seed)
    fold_of = np.zeros(len(types), np.int64)
    dealt = 0
    for kind in sorted(set(types)):
        members = rng.permutation([i for i, t in enumerate(types) if t == kind])
        fold_of[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return fold_of


@dataclass(frozen=True, eq=False)
class Curve:
    """The score against one setting, all else as chosen: values and scores (V,) each."""

    class_name: str
    setting: str
    values: tuple[float, ...]
    scores: tuple[float, ...]
    chosen: float


def curves(scorer: Scorer, rules: Rules, settings: Sequence[str] = ("score", "min_area")) -> list[Curve]:
    """Score against threshold and against minimum area, for each class that an image holds."""
    drawn = []
    present = {label for example in scorer.examples for label in example.prediction.labels.tolist()}
    for label, name in enumerate(scorer.classes, start=1):
        if label not in present:
            continue
        for setting in settings:
            grid: Sequence[float] = SCORES if setting == "score" else AREAS
            chosen = float(getattr(rules.of(name), setting))
            values = tuple(sorted({float(v) for v in grid} | {chosen}))
            kind = int if setting == "min_area" else float
            candidates = _class_setting(name, setting, lambda old, v=values, k=kind: [k(x) for x in v])  # type: ignore[misc]
            scores = tuple(float(scorer(candidate).mean()) for candidate in candidates(rules))
            drawn.append(Curve(name, setting, values, scores, chosen))
    return drawn
