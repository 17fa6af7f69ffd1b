"""The score of annotated images under any choice; what a choice does not change is not computed again.

An image's score depends on few settings (those of the classes it holds), so scores are remembered by what
decides them. Members are combined once for each fusion and weights, and a combination's cells are pasted
once for all rules, as far as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sartorius_infer.cells.claim import Limits, decisive, leading_label, limits_of, worthy
from sartorius_infer.cells.paste import paste_cells
from sartorius_infer.errors import TruthError, size_text
from sartorius_infer.evaluate.metric import TrueCells, true_cells
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.manifest.rules import Consensus, Rules
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.members import combine
from sartorius_infer.types import Float32, Float64, Int64, Prediction

# `claims` is imported where it is used: numba takes long to load, and `--help` need not wait.
if TYPE_CHECKING:
    from sartorius_infer.tuning.claims import PackedCells

KEPT_BYTES = 1 << 30
"""Combined and pasted cells that are kept; beyond it they are made again, memory before speed."""


@dataclass(frozen=True, eq=False)
class Example:
    """What the networks saw in an image, together or each member by itself, and what is there.

    Raises TruthError where the predictions and the truth are of different sizes, or ids.
    """

    members: tuple[Prediction, ...]
    truth: TrueImage

    def __post_init__(self) -> None:
        expected = (self.truth.id, tuple(self.truth.size_hw))
        for member in self.members:
            if (member.image_id, tuple(member.size_hw)) != expected:
                raise TruthError(
                    f"{self.truth.id}: expected predictions of the true image, "
                    f"{size_text(self.truth.size_hw)}, found {member.image_id}, {size_text(member.size_hw)}"
                )


@dataclass(frozen=True, eq=False)
class _Seen:
    """Scores and labels (N,) of a combination's cells, which outlast its masks, and what all share."""

    scores: Float32
    labels: Int64
    own: tuple[int, ...]
    leads: dict[Hashable, int | None] = field(default_factory=dict)

    def lead(self, floors: Float32, consensus: Consensus) -> int | None:
        """The consensus, as `claim.leading_label`."""
        key = (floors.tobytes(), consensus)
        if key not in self.leads:
            self.leads[key] = leading_label(self.scores, self.labels, floors, consensus)
        return self.leads[key]


@dataclass(eq=False)
class _Store:
    """Pasted predictions by combination and image, up to `limit` bytes.

    What is there of another combination makes room, oldest first. What is there of the same one stays:
    a search goes round the images, and would always find that the next one has just been dropped.
    """

    limit: int
    kept: dict[tuple[Hashable, int], PackedCells] = field(default_factory=dict)
    used: int = 0
    latest: tuple[tuple[Hashable, int], PackedCells] | None = None
    """At hand even where nothing fits: it is asked for again at once."""

    def get(self, combination: Hashable, number: int, make: Callable[[], PackedCells]) -> PackedCells:
        key = (combination, number)
        if key in self.kept:
            return self.kept[key]
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, make())
            self._keep(*self.latest)
        return self.latest[1]

    def _keep(self, key: tuple[Hashable, int], made: PackedCells) -> None:
        for old in [old for old in self.kept if old[0] != key[0]]:
            if self.used + made.nbytes <= self.limit:
                break
            self.used -= self.kept.pop(old).nbytes
        if self.used + made.nbytes <= self.limit:
            self.kept[key] = made
            self.used += made.nbytes


class Scorer:
    """The score of each example under a choice.

    Raises TruthError unless every example has the same number of members. Besides `kept_bytes`, it holds
    12 bytes for each cell of each combination that it has seen.
    """

    def __init__(
        self, examples: Sequence[Example], classes: Sequence[str], kept_bytes: int = KEPT_BYTES
    ) -> None:
        if len(counts := {len(example.members) for example in examples}) > 1:
            raise TruthError(
                f"expected predictions of the same members for every image, found {sorted(counts)}"
            )
        self.examples, self.classes = examples, classes
        self.members = counts.pop() if counts else 1
        self.combined = self.evaluated = 0
        self._true: dict[int, TrueCells] = {}
        self._store = _Store(kept_bytes)
        self._cells: dict[tuple[Hashable, int], _Seen] = {}
        self._known: dict[Hashable, float] = {}

    def __call__(self, choice: Choice, which: Int64 | None = None) -> Float64:
        """Scores of the examples, or of those numbered `which`, float64 (N,)."""
        numbers = range(len(self.examples)) if which is None else which.tolist()
        limits = limits_of(choice.rules, self.classes)
        trial = _Trial(choice, combination(choice), limits, self.classes)
        return np.array([self._score(number, trial) for number in numbers])

    def labels(self, choice: Choice) -> set[int]:
        """The labels of all cells of all examples."""
        combined = combination(choice)
        numbers = range(len(self.examples))
        return {label for i in numbers for label in self._seen(i, choice, combined).own}

    def _score(self, number: int, trial: _Trial) -> float:
        seen = self._seen(number, trial.choice, trial.combination)
        label = seen.lead(trial.limits.score[0], trial.choice.rules.consensus)
        # The winner's cells alone: asking again gives the same winner, and the key says no more.
        own = seen.own if label is None else (label,)
        key = (number, trial.combination, own, trial.decisive(own))
        if key not in self._known:
            self._known[key] = self._evaluate(number, trial, label)
        return self._known[key]

    def _seen(self, number: int, choice: Choice, combination: Hashable) -> _Seen:
        if (combination, number) not in self._cells:
            prediction = self._pasted(number, choice, combination).prediction
            own = tuple(np.unique(prediction.labels).tolist())
            self._cells[combination, number] = _Seen(prediction.scores, prediction.labels, own)
        return self._cells[combination, number]

    def _evaluate(self, number: int, trial: _Trial, label: int | None) -> float:
        from sartorius_infer.tuning.claims import score_packed

        cells = self._pasted(number, trial.choice, trial.combination)
        if number not in self._true:
            self._true[number] = true_cells(self.examples[number].truth.masks)
        keep = worthy(cells.prediction.scores, cells.prediction.labels, trial.limits, label)
        self.evaluated += 1
        return score_packed(cells, keep, trial.limits, trial.choice.rules, self._true[number])

    def _pasted(self, number: int, choice: Choice, combination: Hashable) -> PackedCells:
        def make() -> PackedCells:
            self.combined += 1
            return _paste(combine(self.examples[number].members, choice.weights, choice.fusion), choice.rules)

        return self._store.get((combination, choice.rules.paste), number, make)


def _paste(prediction: Prediction, rules: Rules) -> PackedCells:
    from sartorius_infer.tuning.claims import pack

    return pack(prediction, paste_cells(prediction.masks, prediction.boxes, prediction.size_hw, rules.paste))


@dataclass(frozen=True, eq=False)
class _Trial:
    """A choice, what decides how its members are combined, and its thresholds."""

    choice: Choice
    combination: Hashable
    limits: Limits
    classes: Sequence[str]
    known: dict[tuple[int, ...], Hashable] = field(default_factory=dict)

    def decisive(self, labels: tuple[int, ...]) -> Hashable:
        """As `claim.decisive`."""
        if labels not in self.known:
            self.known[labels] = decisive(self.choice.rules, self.classes, labels)
        return self.known[labels]


def combination(choice: Choice) -> Hashable:
    """What decides how the members are combined: of one alone neither the weight nor the fusion."""
    there = [i for i, weight in enumerate(choice.weights) if weight > 0]
    if len(there) == 1:
        return there[0]
    top = max(choice.weights)
    return (tuple(weight / top for weight in choice.weights), choice.fusion)
