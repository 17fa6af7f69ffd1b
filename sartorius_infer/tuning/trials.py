"""The score of annotated images under any choice; what a choice does not change is not computed again.

An image's score depends on few settings (those of the classes it holds), so scores are remembered by what
decides them. Members are combined once for each fusion and weights, and a combination's cells are pasted
once for all rules, as far as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sartorius_infer.cells.claim import build_instances, consensus_label, decisive
from sartorius_infer.cells.paste import Crop, paste_cells
from sartorius_infer.errors import TruthError, size_text
from sartorius_infer.evaluate.metric import TrueCells, score_label_map, true_cells
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.members import combine
from sartorius_infer.types import Float32, Float64, Int64, Prediction

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
class _Pasted:
    """A prediction and the crops of all its cells."""

    prediction: Prediction
    crops: tuple[Crop, ...]

    @property
    def nbytes(self) -> int:
        return self.prediction.masks.nbytes + sum(crop.probabilities.nbytes for crop in self.crops)


@dataclass(eq=False)
class _Store:
    """Pasted predictions by combination and image, up to `limit` bytes.

    What is there of another combination makes room, oldest first. What is there of the same one stays:
    a search goes round the images, and would always find that the next one has just been dropped.
    """

    limit: int
    kept: dict[tuple[Hashable, int], _Pasted] = field(default_factory=dict)
    used: int = 0
    latest: tuple[tuple[Hashable, int], _Pasted] | None = None
    """At hand even where nothing fits: it is asked for again at once."""

    def get(self, combination: Hashable, number: int, make: Callable[[], _Pasted]) -> _Pasted:
        key = (combination, number)
        if key in self.kept:
            return self.kept[key]
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, make())
            self._keep(*self.latest)
        return self.latest[1]

    def _keep(self, key: tuple[Hashable, int], made: _Pasted) -> None:
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
        self._cells: dict[tuple[Hashable, int], tuple[Float32, Int64]] = {}
        self._known: dict[Hashable, float] = {}

    def __call__(self, choice: Choice, which: Int64 | None = None) -> Float64:
        """Scores of the examples, or of those numbered `which`, float64 (N,)."""
        numbers = range(len(self.examples)) if which is None else which.tolist()
        combination = _combination(choice)
        return np.array([self._score(number, choice, combination) for number in numbers])

    def labels(self, choice: Choice) -> set[int]:
        """The labels of all cells of all examples."""
        combination = _combination(choice)
        numbers = range(len(self.examples))
        return {label for i in numbers for label in self._seen(i, choice, combination)[1].tolist()}

    def _score(self, number: int, choice: Choice, combination: Hashable) -> float:
        scores, labels = self._seen(number, choice, combination)
        label = consensus_label(scores, labels, choice.rules, self.classes)
        # The winner's cells alone: asking again gives the same winner, and the key says no more.
        own = tuple(np.unique(labels).tolist()) if label is None else (label,)
        key = (number, combination, own, decisive(choice.rules, self.classes, own))
        if key not in self._known:
            self._known[key] = self._evaluate(number, choice, combination)
        return self._known[key]

    def _seen(self, number: int, choice: Choice, combination: Hashable) -> tuple[Float32, Int64]:
        """Scores and labels (N,) of a combination's cells, which outlast its masks."""
        if (combination, number) not in self._cells:
            prediction = self._pasted(number, choice, combination).prediction
            self._cells[combination, number] = (prediction.scores, prediction.labels)
        return self._cells[combination, number]

    def _evaluate(self, number: int, choice: Choice, combination: Hashable) -> float:
        pasted = self._pasted(number, choice, combination)
        if number not in self._true:
            self._true[number] = true_cells(self.examples[number].truth.masks)
        cells = build_instances(pasted.prediction, choice.rules, self.classes, pasted.crops)
        self.evaluated += 1
        return score_label_map("", self._true[number], cells.label_map, len(cells)).ap

    def _pasted(self, number: int, choice: Choice, combination: Hashable) -> _Pasted:
        def make() -> _Pasted:
            self.combined += 1
            return _paste(combine(self.examples[number].members, choice.weights, choice.fusion), choice.rules)

        return self._store.get((combination, choice.rules.paste), number, make)


def _paste(prediction: Prediction, rules: Rules) -> _Pasted:
    crops = paste_cells(prediction.masks, prediction.boxes, prediction.size_hw, rules.paste)
    return _Pasted(prediction, tuple(crops))


def _combination(choice: Choice) -> Hashable:
    """What decides how the members are combined: of one alone neither the weight nor the fusion."""
    there = [i for i, weight in enumerate(choice.weights) if weight > 0]
    if len(there) == 1:
        return there[0]
    top = max(choice.weights)
    return (tuple(weight / top for weight in choice.weights), choice.fusion)
