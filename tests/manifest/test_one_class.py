from __future__ import annotations

import pytest

from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.manifest.one_class import with_one_class
from sartorius_infer.manifest.rules import ClassRule, EdgeRule, EdgeThresholds, Rules


def manifest(rules: Rules) -> Manifest:
    return Manifest.model_validate(
        {"version": 1, "classes": ("a", "b"), "models": ({"name": "x", "file": "x.pth"},), "rules": rules}
    )


def test_one_rule_is_made_of_all() -> None:
    per_class = {
        "a": ClassRule(score=0.2, mask=0.4, min_area=60),
        "b": ClassRule(score=0.4, mask=0.5, min_area=30, edge=EdgeThresholds(score=0.6, min_area=10)),
    }
    before = Rules(
        per_class=per_class, consensus="surest", overlap_survival=0.8, edge=EdgeRule(mode="keep", margin=3)
    )
    after = with_one_class(manifest(before), "cell")
    assert after.classes == ("cell",)
    (rule,) = after.rules.per_class.values()
    assert (rule.score, rule.mask, rule.min_area) == (pytest.approx(0.3), 0.45, 30)
    assert rule.edge == EdgeThresholds(score=0.4, min_area=10), "of a its own thresholds count"
    assert after.rules == before.model_copy(update={"per_class": {"cell": rule}, "consensus": "off"})
    assert after.models == manifest(before).models


def test_rules_that_nobody_wrote_stay_the_defaults() -> None:
    assert with_one_class(manifest(Rules()), "cell").rules.of("cell") == ClassRule()
