"""How good a submission is: the competition's score in total and in parts, and how sure one can be of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartorius_infer.cells.rle import Mask
from sartorius_infer.errors import TruthError, some
from sartorius_infer.evaluate.classes import Classes
from sartorius_infer.evaluate.metric import THRESHOLDS, ImageScore, mean_ap, score_image
from sartorius_infer.evaluate.submissions import Found
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.types import Float64, Int64

RESAMPLES = 10_000
_CHUNK = 500


@dataclass(frozen=True, eq=False)
class Score:
    """The score of every image, in the order of their ids, and each one's cell type."""

    images: tuple[ImageScore, ...]
    types: tuple[str, ...]

    @property
    def mean(self) -> float:
        """The competition's number."""
        return mean_ap(self.images)

    @property
    def aps(self) -> Float64:
        """Each image's score, float64 (N,)."""
        return np.array([image.ap for image in self.images])

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % interval of the mean by bootstrap over images (percentiles of 10,000 resamples)."""
        return bootstrap(self.aps, seed)

    def by_threshold(self) -> Float64:
        """Mean precision over images at each threshold, float64 (10,)."""
        mean: Float64 = np.stack([image.precision for image in self.images]).mean(axis=0)
        return mean

    def by_type(self) -> dict[str, Score]:
        """The score of the images of each cell type; "" for those that do not tell it."""
        groups: dict[str, list[ImageScore]] = defaultdict(list)
        for image, cell_type in zip(self.images, self.types, strict=True):
            groups[cell_type].append(image)
        return {name: Score(tuple(some), (name,) * len(some)) for name, some in sorted(groups.items())}

    def counts(self) -> tuple[Int64, Int64, Int64]:
        """TP, FP and FN over all images at each threshold, int64 (10,) each."""
        tp, fp, fn = (sum(getattr(i, n) for i in self.images) for n in ("tp", "fp", "fn"))
        return np.asarray(tp), np.asarray(fp), np.asarray(fn)


def score(truth: Mapping[str, TrueImage], found: Found) -> Score:
    """Score every image of `found`, each of which must have its truth; raises TruthError."""
    if not found:
        raise TruthError("expected a submission with at least one image, found none")
    unknown = [image_id for image_id in found if image_id not in truth]
    if unknown:
        raise TruthError(f"expected the truth of every image, found none of {some(unknown)}")
    ids = sorted(found)
    images = tuple(score_image(i, truth[i].masks, [cell.mask for cell in found[i]]) for i in ids)
    return Score(images, tuple(truth[i].cell_type for i in ids))


def score_by_class(truth: Mapping[str, TrueImage], found: Found, classes: Classes) -> dict[str, Score]:
    """The score of each class by itself, over the images that truly hold it or in which it was found.

    Empty where `classes` cannot tell those of the submission.
    """
    if classes.untold:
        return {}
    scores: dict[str, list[ImageScore]] = {name: [] for name in classes.names}
    for image_id in sorted(found):
        image = truth[image_id]
        true, own = _by_class(classes, image), defaultdict[int, list[Mask]](list)
        for cell in found[image_id]:
            own[classes.of_cell(cell)].append(cell.mask)
        for number, name in enumerate(classes.names, start=1):
            if true[number] or own[number]:
                scores[name].append(score_image(image_id, true[number], own[number]))
    return {name: Score(tuple(some), (name,) * len(some)) for name, some in scores.items() if some}


def _by_class(classes: Classes, image: TrueImage) -> dict[int, list[Mask]]:
    """The true cells of each class: neither crowd regions nor what holds no pixel."""
    masks: dict[int, list[Mask]] = defaultdict(list)
    for region, number in classes.regions(image):
        if not region.is_crowd and len(region.mask[0]):
            masks[number].append(region.mask)
    return masks


def bootstrap(values: Float64, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of values (N,) by resampling them with replacement."""
    rng = np.random.default_rng(seed)
    means = [
        values[rng.integers(len(values), size=(_CHUNK, len(values)))].mean(axis=1)
        for _ in range(RESAMPLES // _CHUNK)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """How much better one submission is than another on the same `images`, with a 95 % interval."""

    difference: float
    low: float
    high: float
    images: int

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out zero; never of one image, which says nothing of others."""
        return self.images > 1 and (self.low > 0 or self.high < 0)


def compare(one: Score, other: Score, seed: int = 0) -> Comparison:
    """Paired bootstrap of `one` minus `other`; raises TruthError where their images differ."""
    ids, others = ([image.id for image in s.images] for s in (one, other))
    if ids != others:
        odd = sorted(set(ids) ^ set(others))
        raise TruthError(f"expected two submissions of the same images, found {some(odd)} in one")
    differences = one.aps - other.aps
    low, high = bootstrap(differences, seed)
    return Comparison(float(differences.mean()), low, high, len(ids))


def as_json(score: Score, source: str) -> dict[str, Any]:
    """Everything there is to say of a score, as JSON holds it."""
    low, high = score.interval()
    tp, fp, fn = score.counts()
    return {
        "submission": source,
        "score": score.mean,
        "interval_95": [low, high],
        "images": len(score.images),
        "types": {name: {"score": s.mean, "images": len(s.images)} for name, s in score.by_type().items()},
        "thresholds": [
            {"iou": t, "precision": float(p), "tp": int(a), "fp": int(b), "fn": int(c)}
            for t, p, a, b, c in zip(THRESHOLDS, score.by_threshold(), tp, fp, fn, strict=True)
        ],
        "per_image": [
            {
                "id": image.id,
                "cell_type": cell_type,
                "score": image.ap,
                "true_cells": image.true_cells,
                "found_cells": image.found_cells,
                "tp": image.tp.tolist(),
            }
            for image, cell_type in zip(score.images, score.types, strict=True)
        ],
    }


def type_counts(score: Score) -> Counter[str]:
    """How many images of each cell type."""
    return Counter(score.types)
