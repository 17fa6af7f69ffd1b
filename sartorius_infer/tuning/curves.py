"""The score against one setting with the others as chosen: numbers, and a picture of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sartorius_infer.tuning.choices import AREAS, IOUS, SCORES, Choice, Moves, class_setting, ious
from sartorius_infer.tuning.trials import Example, Scorer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "score": "score threshold",
    "min_area": "minimum area (pixels)",
    "iou": "fusion IoU of several members",
}
_STYLES = ("-", "--", ":", "-.")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True, eq=False)
class Curve:
    """The score against one setting, all else as chosen: values and scores (V,) each."""

    class_name: str
    setting: str
    values: tuple[float, ...]
    scores: tuple[float, ...]
    chosen: float


def curves(scorer: Scorer, choice: Choice) -> list[Curve]:
    """Against threshold and minimum area of each class that an image holds, and the members' fusion IoU.

    The last, of class "all", only where more than one member has a vote.
    """
    drawn = []
    present = scorer.labels(choice)
    for label, name in enumerate(scorer.classes, start=1):
        if label in present:
            drawn.append(_class_curve(scorer, choice, name, "score", choice.rules.of(name).score, SCORES))
            drawn.append(area_curve(scorer, choice, name))
    if sum(weight > 0 for weight in choice.weights) > 1:
        values = _with(IOUS, choice.fusion.iou)
        drawn.append(
            _curve(scorer, choice, "all", "iou", choice.fusion.iou, values, partial(ious, values=values))
        )
    return drawn


def area_curve(scorer: Scorer, choice: Choice, name: str) -> Curve:
    """Against the minimum area of the class called `name`."""
    return _class_curve(scorer, choice, name, "min_area", choice.rules.of(name).min_area, AREAS)


def area_curves(examples: Iterable[Example], choice: Choice, classes: Sequence[str]) -> list[Curve]:
    """As `area_curve` of every class that an image holds, of examples that are read one after the other."""
    drawn: dict[str, list[Curve]] = {name: [] for name in classes}
    present: set[int] = set()
    for example in examples:
        scorer = Scorer([example], classes)
        present |= scorer.labels(choice)
        for name in classes:
            drawn[name].append(area_curve(scorer, choice, name))
    return [_mean(drawn[name]) for label, name in enumerate(classes, start=1) if label in present]


def _mean(drawn: Sequence[Curve]) -> Curve:
    scores = np.mean([curve.scores for curve in drawn], axis=0)
    return replace(drawn[0], scores=tuple(scores.tolist()))


def _class_curve(
    scorer: Scorer, choice: Choice, name: str, setting: str, chosen: float, grid: Sequence[float]
) -> Curve:
    values = _with(grid, chosen)
    return _curve(
        scorer, choice, name, setting, chosen, values, class_setting(name, setting, lambda old: values)
    )


def _with(grid: Sequence[float], chosen: float) -> list[float]:
    return sorted({*grid, chosen})


def _curve(
    scorer: Scorer,
    choice: Choice,
    name: str,
    setting: str,
    chosen: float,
    values: Sequence[float],
    moves: Moves,
) -> Curve:
    scores = tuple(float(scorer(candidate).mean()) for candidate in moves(choice))
    return Curve(name, setting, tuple(map(float, values)), scores, float(chosen))


def save_plot(drawn: Sequence[Curve], path: Path) -> None:
    """Charts side by side as a PNG, one for each setting that has a curve; dots are what was chosen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = [setting for setting in LABELS if any(curve.setting == setting for curve in drawn)]
    count = max(1, len(settings))
    figure, axes = pyplot.subplots(
        1, count, figsize=(5.5 * count, 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, setting in zip(axes[0], settings, strict=False):
        for number, curve in enumerate(c for c in drawn if c.setting == setting):
            _draw(axis, curve, number)
        axis.set_xlabel(LABELS[setting])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("score (mean average precision)")
    figure.suptitle("Score on all annotated images against one setting, the others as chosen (dots)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def _draw(axis: Axes, curve: Curve, number: int) -> None:
    colour = _COLOURS[number % 4]
    axis.plot(curve.values, curve.scores, _STYLES[number % 4], color=colour)
    best = curve.scores[curve.values.index(curve.chosen)]
    axis.plot([curve.chosen], [best], "o", color=colour)
    axis.annotate(
        f"{curve.class_name} {curve.chosen:g}",
        (curve.chosen, best),
        xytext=(4, 6 + 11 * number),
        textcoords="offset points",
        color=colour,
    )
