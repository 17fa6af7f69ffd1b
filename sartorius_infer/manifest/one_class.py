"""One class in the place of all, for cells that are none of the manifest's kinds."""

from __future__ import annotations

from statistics import mean

from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.manifest.rules import ClassRule, EdgeThresholds, Rules

ONE_CLASS_RULES = (
    "no consensus; score and mask threshold are the mean of the classes', the smallest area is the lowest"
)


def with_one_class(manifest: Manifest, name: str) -> Manifest:
    """The manifest with every class called `name`, under rules that any of them could have had.

    No consensus: it would drop all cells but those of the class that most are taken for. The score and mask
    thresholds are the mean of the classes', the smallest area is the lowest, and edge thresholds are made
    likewise where any class has them. The entries of networks keep their own classes.
    """
    rules = manifest.rules
    own = [rules.of(each) for each in manifest.classes]
    merged = Rules(
        **(dict(rules) | {"per_class": {name: _merged(own)}, "consensus": "off"}),
    )
    return manifest.model_copy(update={"classes": (name,), "rules": merged})


def _merged(rules: list[ClassRule]) -> ClassRule:
    edge = None
    if any(rule.edge for rule in rules):
        edges = [rule.edge or EdgeThresholds(score=rule.score, min_area=rule.min_area) for rule in rules]
        edge = EdgeThresholds(
            score=mean(each.score for each in edges), min_area=min(each.min_area for each in edges)
        )
    return ClassRule(
        score=mean(rule.score for rule in rules),
        mask=mean(rule.mask for rule in rules),
        min_area=min(rule.min_area for rule in rules),
        edge=edge,
    )
