"""The held-out score: the kit's own passes, rules and metric on the mean of weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sartorius_infer.cells.claim import Selector, build_instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.evaluate.metric import score_image
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.types import CellImage, Prediction
from training.export import as_ensemble
from training.recipe import Recipe
from training.sources import Example


@dataclass(frozen=True)
class Tried:
    """One held-out image: its type or "several", score and cells found under each candidate set of rules."""

    type: str
    scores: tuple[float, ...]
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """Scores on held-out images: of all and of each type, and the score threshold that each type takes."""

    score: float
    by_type: Mapping[str, float]
    thresholds: Mapping[str, float]
    images: int
    cells: int


def try_images(
    recipe: Recipe, state: Mapping[str, Tensor], examples: Sequence[Example], device: torch.device
) -> list[Tried]:
    """What the network of these tensors scores on each image."""
    ensemble = as_ensemble(recipe, state, device)
    candidates = _candidates(recipe)
    # Thresholds rise, so what is below the first's is below all. Which label wins each decides by itself.
    keep = Selector(candidates[0].model_copy(update={"consensus": "off"}), recipe.classes)
    tried = []
    for example in examples:
        (prediction,) = predict(ensemble, [CellImage(example.file.id, example.pixels())], keep)
        found = [_score(example, prediction, rules, recipe.classes) for rules in candidates]
        scores, cells = zip(*found, strict=True)
        tried.append(Tried(example.type or "several", scores, cells))
    return tried


def summarise(recipe: Recipe, tried: Sequence[Tried]) -> Held:
    """The means, each type under the candidate that suits it best: an image holds one type alone."""
    groups: dict[str, list[Tried]] = defaultdict(list)
    for image in tried:
        groups[image.type].append(image)
    by_type, thresholds, total, cells = {}, {}, 0.0, 0
    for name, images in sorted(groups.items()):
        means = np.array([image.scores for image in images]).mean(axis=0)
        best = int(means.argmax())
        by_type[name] = float(means[best])
        if recipe.validation.thresholds:
            thresholds[name] = sorted(recipe.validation.thresholds)[best]
        total += float(means[best]) * len(images)
        cells += sum(image.cells[best] for image in images)
    return Held(total / max(1, len(tried)), by_type, thresholds, len(tried), cells)


def _candidates(recipe: Recipe) -> list[Rules]:
    """The recipe's rules, or these with each threshold that is to be tried for every class."""
    rules = recipe.final_rules
    return [
        with_scores(rules, dict.fromkeys(recipe.classes, score))
        for score in sorted(recipe.validation.thresholds)
    ] or [rules]


def with_scores(rules: Rules, scores: Mapping[str, float]) -> Rules:
    """The rules with other score thresholds of some classes."""
    changed = {name: rules.of(name).model_copy(update={"score": score}) for name, score in scores.items()}
    return rules.model_copy(update={"per_class": {**rules.per_class, **changed}})


def _score(
    example: Example, prediction: Prediction, rules: Rules, classes: Sequence[str]
) -> tuple[float, int]:
    instances = build_instances(prediction, rules, classes)
    found = split_label_map(instances.label_map, len(instances))
    score = score_image(example.file.id, example.cells, found)
    return score.ap, len(instances)
