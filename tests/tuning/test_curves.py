from __future__ import annotations

from pathlib import Path

import pytest
from annotated import CLASSES, HIDDEN, examples

from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.curves import area_curve, area_curves, curves, save_plot
from sartorius_infer.tuning.trials import Scorer


def test_curves_pass_through_the_chosen_point() -> None:
    scorer = Scorer(examples(), CLASSES)
    drawn = curves(scorer, Choice(HIDDEN))
    expected = {(name, setting) for name in CLASSES for setting in ("score", "min_area")}
    assert {(curve.class_name, curve.setting) for curve in drawn} == expected
    for curve in drawn:
        assert list(curve.values) == sorted(set(curve.values)) and len(curve.scores) == len(curve.values)
        assert curve.scores[curve.values.index(curve.chosen)] == 1


def test_members_have_a_curve_of_their_fusion(tmp_path: Path) -> None:
    scorer = Scorer(examples(3, members=2), CLASSES)
    together = Choice(HIDDEN, Fusion(iou=0.52), (1.0, 1.0))
    drawn = curves(scorer, together)
    (last,) = [curve for curve in drawn if curve.setting == "iou"]
    assert last.chosen == 0.52 and last.values[0] == 0.3 and last.values[-1] == 0.8
    assert last.scores[last.values.index(0.52)] == scorer(together).mean()
    alone = curves(scorer, Choice(HIDDEN, weights=(1.0, 0.0)))
    assert not [curve for curve in alone if curve.setting == "iou"]
    for some in (drawn, alone, []):
        save_plot(some, tmp_path / "new" / "curves.png")
        assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_area_curves_of_one_image_after_the_other_are_those_of_all_together() -> None:
    some, choice = examples(), Choice(HIDDEN)
    scorer = Scorer(some, CLASSES)
    present = scorer.labels(choice)
    assert len(present) == len(CLASSES)
    drawn = area_curves(iter(some), choice, CLASSES)
    for own, name in zip(drawn, CLASSES, strict=True):
        together = area_curve(scorer, choice, name)
        assert (own.class_name, own.setting, own.values, own.chosen) == (
            together.class_name,
            together.setting,
            together.values,
            together.chosen,
        )
        assert own.scores == pytest.approx(together.scores, abs=1e-12)
    assert len({score for curve in drawn for score in curve.scores}) > 1
    assert area_curves([], choice, CLASSES) == []
