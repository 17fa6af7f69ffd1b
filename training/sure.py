"""Which found cells are sure enough to learn from, and in which images enough of them are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.member import Member
from sartorius_infer.evaluate.metric import match
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.types import Bool, Int64
from training.errors import TrainingError
from training.seen import Look

SURE = 0.4
"""Of the default checkpoint's cells in unseen images six in seven are true from there on, half below."""

SAME_CELL = 0.5
"""Cells of two networks are one where their masks' IoU is greater."""


@dataclass(frozen=True)
class Limits:
    """What makes a cell sure, and an image worth learning from.

    score   of each class, the least score of a sure cell
    agree   how many networks must find a cell by themselves, of those that know its class; None: more than
            half of them
    cells   the fewest sure cells of an image
    share   the least share that they have of its found cells, in [0, 1]
    """

    score: Mapping[str, float]
    agree: int | None = None
    cells: int = 5
    share: float = 0.3


@dataclass(frozen=True, eq=False)
class Judged:
    """One image's cells by the rules, which of them are sure, bool (N,), and why it is left out, or ""."""

    cells: Instances
    sure: Bool
    fault: str


def sure_scores(rules: Rules, classes: Sequence[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """The least score of a sure cell of each class: as given, else `SURE` of the way from the rules' to 1.

    Raises TrainingError for a class that is none of `classes`, and for a score below the rules' or over 1.
    """
    floors = {name: rules.of(name).score for name in classes}
    scores = {name: floor + SURE * (1 - floor) for name, floor in floors.items()}
    for name, score in (given or {}).items():
        if name not in classes:
            raise TrainingError(f"--sure {name}={score}: expected one of the classes {', '.join(classes)}")
        floor = rules.of(name).score
        if not floor <= score <= 1:  # nor NaN
            raise TrainingError(
                f"--sure {name}={score}: expected a score from the rules' threshold, {floor:g}, to 1"
            )
        scores[name] = score
    return scores


def judge(look: Look, ensemble: Ensemble, limits: Limits) -> Judged:
    """What is sure of what an ensemble saw in an image.

    Where the look does not tell what each network sees by itself, no agreement is asked for.
    """
    rules, classes = ensemble.rules, ensemble.classes
    cells = build_instances(look.together, rules, classes)
    scores = np.array([limits.score[name] for name in classes], np.float32)
    sure = cells.scores >= scores[cells.labels - 1]
    if look.alone:
        own = [build_instances(seen, rules, classes) for seen in look.alone]
        sure &= _agreed(cells, own, ensemble.members, limits.agree)
    return Judged(cells, sure, _fault(sure, limits))


def _agreed(
    cells: Instances, alone: Sequence[Instances], members: Sequence[Member], agree: int | None
) -> Bool:
    """Which of the cells enough of the members found by themselves, bool (N,)."""
    says = np.zeros(len(cells), np.int64)
    found = np.zeros(len(cells), np.int64)
    for own, member in zip(alone, members, strict=True):
        knows = (member.from_manifest > 0).numpy(force=True)[cells.labels]
        partner = _partners(cells, own)
        same = partner >= 0
        if member.network.class_count is not None:
            same[same] = own.labels[partner[same]] == cells.labels[same]
        says += knows
        found += knows & same
    needed = says // 2 + 1 if agree is None else np.minimum(agree, says)
    return np.asarray(found >= needed)


def _partners(cells: Instances, others: Instances) -> Int64:
    """The number of the same cell among `others`, int64 (N,), -1 for none."""
    one, other = (split_label_map(c.label_map, len(c)) for c in (cells, others))
    return match(one, other, SAME_CELL)


def _fault(sure: Bool, limits: Limits) -> str:
    """Why an image is left out, "" for one that is kept."""
    count = int(sure.sum())
    if not len(sure):
        return "without a cell"
    if count < limits.cells:
        return f"with fewer than {limits.cells} sure cells"
    if count < limits.share * len(sure):
        return f"with less than {limits.share:.0%} of their cells sure"
    return ""
