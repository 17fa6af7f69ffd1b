"""Choosing by the score what follows the networks, on predictions that were made once.

Coordinate search: one setting after another takes the value of its grid that scores best, until none
moves. The choice is judged by cross-validation: the score on images that it did not see, beside the one
on those that it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.scoring import Comparison, bootstrap
from sartorius_infer.tuning.choices import Choice, coordinates, starts
from sartorius_infer.tuning.trials import Scorer
from sartorius_infer.types import Float64, Int64

MOST_ROUNDS = 6


def search(scorer: Scorer, start: Choice, which: Int64) -> Choice:
    """What scores best on the examples numbered `which`, from any of `choices.starts`; ties keep what is.

    Where one member alone is left with a vote, the fusion is that of `start`: no score spoke for another.
    """
    chosen, _ = max((_climb(scorer, one, which) for one in starts(start)), key=lambda found: found[1])
    alone = sum(weight > 0 for weight in chosen.weights) == 1
    return replace(chosen, fusion=start.fusion) if alone else chosen


def _climb(scorer: Scorer, start: Choice, which: Int64) -> tuple[Choice, float]:
    """The choice that coordinate search ends with, and its score."""
    chosen, best = start, float(scorer(start, which).mean())
    for fine in (False, True):
        for _ in range(MOST_ROUNDS):
            before = best
            for _, moves in coordinates(scorer.classes, scorer.members, fine):
                for candidate in moves(chosen):
                    score = float(scorer(candidate, which).mean())
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
    unseen = np.zeros(count)
    for fold in range(folds):
        held, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        unseen[held] = scorer(search(scorer, start, others), held)
        on_fold(fold)
    chosen = search(scorer, start, np.arange(count))
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
