"""Choosing by the score what follows the networks, on predictions that were made once.

Coordinate search: one setting after another takes the value of its grid that scores best, until none
moves. The choice is judged by cross-validation: the score on images that it did not see, beside the one
on those that it saw. The searches of all folds go step by step together, for they try much the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.scoring import Comparison, bootstrap
from sartorius_infer.tuning.choices import Choice, coordinates, starts
from sartorius_infer.tuning.trials import Scorer, combination
from sartorius_infer.types import Float64, Int64

MOST_ROUNDS = 6


def search(scorer: Scorer, start: Choice, which: Int64) -> Choice:
    """What scores best on the examples numbered `which`, from any of `choices.starts`; ties keep what is.

    Where one member alone is left with a vote, the fusion is that of `start`: no score spoke for another.
    """
    return searches(scorer, start, [which])[0]


def searches(
    scorer: Scorer, start: Choice, parts: Sequence[Int64], on_part: Callable[[int], None] = lambda part: None
) -> list[Choice]:
    """As `search` of each part of the examples; what several of them try at once is combined once."""
    climbs = [_Climb(part, _climb(scorer, one)) for part in range(len(parts)) for one in starts(start)]
    while going := [climb for climb in climbs if not climb.is_done]:
        _answer(scorer, going, parts)
        for part in {climb.part for climb in going}:
            if all(climb.is_done for climb in climbs if climb.part == part):
                on_part(part)
    found = []
    for part in range(len(parts)):
        chosen, _ = max((climb.found for climb in climbs if climb.part == part), key=lambda pair: pair[1])
        alone = sum(weight > 0 for weight in chosen.weights) == 1
        found.append(replace(chosen, fusion=start.fusion) if alone else chosen)
    return found


Steps = Generator[list[Choice], list[float], tuple[Choice, float]]
"""A search that asks again and again for the scores of some choices, and ends with a choice and its score."""


class _Climb:
    """A search on one part of the examples, what it asks for now, and what it has found once it is done."""

    def __init__(self, part: int, steps: Steps) -> None:
        self.part, self._steps = part, steps
        self.asked, self.is_done = next(steps), False
        self.found = (self.asked[0], -np.inf)

    def go_on(self, scores: list[float]) -> None:
        """Take the scores of what was asked for, to the next question or the end."""
        try:
            self.asked = self._steps.send(scores)
        except StopIteration as ended:
            self.is_done, self.found = True, ended.value


def _answer(scorer: Scorer, climbs: Sequence[_Climb], parts: Sequence[Int64]) -> None:
    """Score what all climbs ask for, choices that combine the members alike one after the other."""
    asked = [(k, place, choice) for k, climb in enumerate(climbs) for place, choice in enumerate(climb.asked)]
    groups: dict[Hashable, list[tuple[int, int, Choice]]] = {}
    for one in asked:
        groups.setdefault(combination(one[2]), []).append(one)
    scores = [[0.0] * len(climb.asked) for climb in climbs]
    for group in groups.values():
        for k, place, choice in group:
            scores[k][place] = float(scorer(choice, parts[climbs[k].part]).mean())
    for climb, own in zip(climbs, scores, strict=True):
        climb.go_on(own)


def _climb(scorer: Scorer, start: Choice) -> Steps:
    """Coordinate search from a choice."""
    chosen, (best,) = start, (yield [start])
    for fine in (False, True):
        for turn in range(MOST_ROUNDS):
            before = best
            for _, moves in coordinates(scorer.classes, scorer.members, fine, again=turn > 0):
                candidates = list(moves(chosen))
                for candidate, score in zip(candidates, (yield candidates), strict=True):
                    if score > best + 1e-9:
                        chosen, best = candidate, score
            if best <= before + 1e-9:
                break
    return chosen, best


@dataclass(frozen=True, eq=False)
class Tuned:
    """What was chosen, and what speaks for it.

    before   score of each image by the choice that the search began with, float64 (N,)
    unseen   by one chosen without the image (cross-validation), float64 (N,)
    seen     mean by the new choice, on the images that it was chosen on
    types    each image's cell type, "" where it is not told
    groups   each image's fold by name, where the folds were given, else nothing
    """

    choice: Choice
    before: Float64
    unseen: Float64
    seen: float
    types: tuple[str, ...]
    groups: tuple[str, ...]
    folds: int
    seed: int

    @cached_property
    def gain(self) -> Comparison:
        """Of unseen over before, by paired bootstrap."""
        gains = self.unseen - self.before
        return Comparison(float(gains.mean()), *bootstrap(gains, self.seed), len(gains))

    def by_type(self) -> dict[str, tuple[int, float, float]]:
        """How many images, and the means before and unseen, of each cell type."""
        return self._parts(self.types)

    def by_fold(self) -> dict[str, tuple[int, float, float]]:
        """The same of each fold that was given."""
        return self._parts(self.groups)

    def _parts(self, names: Sequence[str]) -> dict[str, tuple[int, float, float]]:
        of = np.array(names)
        return {
            name: (int((of == name).sum()), self.before[of == name].mean(), self.unseen[of == name].mean())
            for name in sorted(set(names))
        }


def tune(scorer: Scorer, start: Choice, folds: int = 5, seed: int = 0,
         on_fold: Callable[[int], None] = lambda fold: None,
         groups: Sequence[str] = ()) -> Tuned:  # fmt: skip
    """Choose on all examples, and judge the choice on images that it did not see.

    Folds hold whole images, each cell type spread over them; or they are `groups`, a name for each
    example. Raises TruthError as `require_folds` does.
    """
    count = len(scorer.examples)
    names = sorted(set(groups))
    folds = len(names) or folds
    require_folds(count, folds, seed)
    types = tuple(example.truth.cell_type for example in scorer.examples)
    fold_of = np.array([names.index(name) for name in groups]) if groups else _folds(types, folds, seed)
    held = [np.flatnonzero(fold_of == fold) for fold in range(folds)]
    others = [np.flatnonzero(fold_of != fold) for fold in range(folds)]
    parts = [*others, np.arange(count)]
    *judged, chosen = searches(scorer, start, parts, lambda part: on_fold(part) if part < folds else None)
    unseen = np.zeros(count)
    for choice, which in zip(judged, held, strict=True):
        unseen[which] = scorer(choice, which)
    seen = float(scorer(chosen).mean())
    return Tuned(chosen, scorer(start), unseen, seen, types, tuple(groups), folds, seed)


def require_folds(count: int, folds: int, seed: int) -> None:
    """Raise TruthError for fewer images than folds, fewer than two folds, or a seed below 0."""
    if folds < 2 or count < folds:
        raise TruthError(
            f"expected at least {max(folds, 2)} annotated images for {folds} folds, found {count}"
        )
    if seed < 0:
        raise TruthError(f"expected a seed of 0 or more, found {seed}")


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
