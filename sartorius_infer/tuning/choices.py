"""What `tune` may choose, and the grids that it tries: rules, and how several members vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

from sartorius_infer.manifest.manifest import Fusion, Manifest
from sartorius_infer.manifest.rules import ClassRule, Consensus, EdgeThresholds, Rules

SCORES = tuple(round(0.05 * k, 2) for k in range(1, 20))
MASKS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
AREAS = (0, 15, 30, 47, 63, 80, 107, 130, 160, 200)
SURVIVALS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
FINE_SCORES = (-0.04, -0.03, -0.02, -0.01, 0.01, 0.02, 0.03, 0.04)
IOUS = tuple(round(0.05 * k, 2) for k in range(6, 17))
VOTES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""A member's weight, relative to the greatest of the others."""


@dataclass(frozen=True)
class Choice:
    """One point of the search: the rules, and the fusion and weights of members that were kept apart.

    `weights` has one number for each member, of any scale, 0 for one that is left out.
    """

    rules: Rules
    fusion: Fusion = field(default_factory=Fusion)
    weights: tuple[float, ...] = (1.0,)


def choice_of(manifest: Manifest, apart: bool) -> Choice:
    """What a manifest says now; its members' weights only where they were kept `apart`."""
    weights = tuple(model.weight for model in manifest.models) if apart else (1.0,)
    return Choice(manifest.rules, manifest.fusion, weights)


def starts(choice: Choice) -> list[Choice]:
    """The choice, and the same with the consensus that suits low thresholds.

    Under any other consensus low thresholds and that one must come together to be better, so that no search
    by one setting at a time finds the way.
    """
    if choice.rules.consensus == "surest":
        return [choice]
    return [choice, _with_rules(choice, consensus="surest")]


Moves = Callable[[Choice], Iterator[Choice]]
"""The choice with one setting at each value of its grid."""


def coordinates(
    classes: Sequence[str], members: int = 1, fine: bool = False, again: bool = False
) -> list[tuple[str, Moves]]:
    """The settings that the search moves, by name; `fine` are small steps of the score thresholds.

    `again`, when all have been moved before, how members vote moves by single steps: each costs a combination
    of all images, and the rules decide little about it.
    """
    if fine:
        return [(f"{name} score", class_setting(name, "score", _near)) for name in classes]
    settings: list[tuple[str, Moves]] = []
    if members > 1:
        settings += [(f"weight {i}", partial(_votes, member=i, by_step=again)) for i in range(members)]
        settings.append(("fusion iou", _iou_steps if again else ious))
    for name in classes:
        settings += [
            (f"{name} score", class_setting(name, "score", lambda old: SCORES)),
            (f"{name} min_area", class_setting(name, "min_area", lambda old: AREAS)),
            (f"{name} mask", class_setting(name, "mask", lambda old: MASKS)),
            (f"{name} edge", class_setting(name, "edge", _edges)),
        ]
    return [
        *settings,
        ("consensus", _shared_setting("consensus", get_args(Consensus))),
        ("overlap_survival", _shared_setting("overlap_survival", SURVIVALS)),
        ("rescore_by_mask", _shared_setting("rescore_by_mask", (False, True))),
        ("fill_holes", _shared_setting("fill_holes", (False, True))),
        ("edge mode", _edge_modes),
    ]


def class_setting(name: str, setting: str, grid: Callable[[ClassRule], Sequence[Any]]) -> Moves:
    """Moves of one setting of one class, over what `grid` gives for its present rule."""

    def moves(choice: Choice) -> Iterator[Choice]:
        old = choice.rules.of(name)
        for value in grid(old):
            rule = old.model_copy(update={setting: value})
            yield _with_rules(choice, per_class=choice.rules.per_class | {name: rule})

    return moves


def ious(choice: Choice, values: Sequence[float] = IOUS) -> Iterator[Choice]:
    """Moves of the overlap from which boxes of several members are one cell."""
    for value in values:
        yield replace(choice, fusion=choice.fusion.model_copy(update={"iou": value}))


def _iou_steps(choice: Choice) -> Iterator[Choice]:
    return ious(choice, _beside(choice.fusion.iou, IOUS))


def _beside(value: float, grid: Sequence[float]) -> list[float]:
    """The values of a rising grid next below and next above this one."""
    below, above = ([v for v in grid if v < value - 1e-9], [v for v in grid if v > value + 1e-9])
    return [*below[-1:], *above[:1]]


def _votes(choice: Choice, member: int, by_step: bool) -> Iterator[Choice]:
    """Moves of one member's weight; none where it is the only one left, whatever its weight."""
    others = max(weight for i, weight in enumerate(choice.weights) if i != member)
    if others <= 0:
        return
    for vote in _beside(choice.weights[member] / others, VOTES) if by_step else VOTES:
        yield replace(
            choice, weights=(*choice.weights[:member], vote * others, *choice.weights[member + 1 :])
        )


def _with_rules(choice: Choice, **update: Any) -> Choice:
    return replace(choice, rules=choice.rules.model_copy(update=update))


def _shared_setting(setting: str, values: Sequence[Any]) -> Moves:
    return lambda choice: (_with_rules(choice, **{setting: value}) for value in values)


def _edge_modes(choice: Choice) -> Iterator[Choice]:
    for mode in ("rule", "keep", "drop"):
        yield _with_rules(choice, edge=choice.rules.edge.model_copy(update={"mode": mode}))


def _near(rule: ClassRule) -> list[float]:
    return [round(rule.score + step, 3) for step in FINE_SCORES if 0 <= rule.score + step <= 1]


def _edges(rule: ClassRule) -> list[EdgeThresholds | None]:
    areas = sorted({0, rule.min_area // 2, rule.min_area})
    scores = sorted({round(min(1.0, max(0.0, rule.score + step)), 3) for step in (-0.2, -0.1, 0.0, 0.1, 0.2)})
    return [None, *(EdgeThresholds(score=s, min_area=a) for s in scores for a in areas)]
