"""How good a submission is: the competition's score in total and in parts, and how sure one can be of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sartorius_infer.cells.rle import Mask, decode
from sartorius_infer.errors import SubmissionError, TruthError, first_line
from sartorius_infer.evaluate.metric import THRESHOLDS, ImageScore, mean_ap, score_image
from sartorius_infer.evaluate.truth import TrueImage, coco_runs
from sartorius_infer.files import as_path
from sartorius_infer.output.submission import read_submission
from sartorius_infer.types import Float64, Int64

RESAMPLES = 10_000
_CHUNK = 500


@dataclass(frozen=True, eq=False)
class FoundCell:
    """One cell of a submission; a CSV tells neither score nor label, which are 1 then."""

    mask: Mask
    score: float = 1.0
    label: int = 1


Found = Mapping[str, Sequence[FoundCell]]


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
        raise TruthError(f"expected the truth of every image, found none of {', '.join(unknown[:5])}")
    ids = sorted(found)
    images = tuple(
        score_image(i, truth[i].masks, [cell.mask for cell in found[i]], _pixels(truth[i])) for i in ids
    )
    return Score(images, tuple(truth[i].cell_type for i in ids))


def _pixels(image: TrueImage) -> int:
    return image.size_hw[0] * image.size_hw[1]


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
        raise TruthError(f"expected two submissions of the same images, found {', '.join(odd[:5])} in one")
    differences = one.aps - other.aps
    low, high = bootstrap(differences, seed)
    return Comparison(float(differences.mean()), low, high, len(ids))


def read_found(path: str | Path, truth: Mapping[str, TrueImage]) -> dict[str, list[FoundCell]]:
    """The cells of a submission.csv, or of COCO results (`.json`), by image; sizes are the truth's.

    COCO results name no image without cells: then every image of the truth counts. Raises
    SubmissionError, naming file, line or image, and TruthError for an image without truth, or no image.
    """
    path = as_path(path, "submission")
    found = read_cells(path, {image_id: image.size_hw for image_id, image in truth.items()}, "of the truth")
    return _at_least_one(path, found)


def read_annotated(
    path: Path, truth: Mapping[str, TrueImage]
) -> tuple[dict[str, list[FoundCell]], list[str]]:
    """As `read_found` of the images that have their truth, and the ids of those that have none.

    Raises TruthError where no image is left.
    """
    found, unknown = _read(path, {image_id: image.size_hw for image_id, image in truth.items()})
    if unknown and not found:
        raise TruthError(f"{path}: expected an image of the truth, found {', '.join([*unknown][:5])}")
    return _at_least_one(path, found), [*unknown]


def read_cells(
    path: Path, sizes: Mapping[str, tuple[int, int]], whence: str = "that is there"
) -> dict[str, list[FoundCell]]:
    """As `read_found`, of images whose sizes (H, W) are known; `whence` they are, for messages."""
    found, unknown = _read(path, sizes)
    for image_id, place in unknown.items():
        raise TruthError(f"{path}: {place}expected an image {whence}, found {image_id!r}")
    return found


def _at_least_one(path: Path, found: dict[str, list[FoundCell]]) -> dict[str, list[FoundCell]]:
    if not found:
        raise TruthError(f"{path}: expected a submission with at least one image, found none")
    return found


_Read = tuple[dict[str, list[FoundCell]], dict[str, str]]
"""Cells by image, and where in the file each unknown image is named first."""


def _read(path: Path, sizes: Mapping[str, tuple[int, int]]) -> _Read:
    return (_from_coco if path.suffix.lower() == ".json" else _from_csv)(path, sizes)


def _from_csv(path: Path, sizes: Mapping[str, tuple[int, int]]) -> _Read:
    found: dict[str, list[FoundCell]] = {}
    unknown: dict[str, str] = {}
    for row in read_submission(path):
        if row.id not in sizes:
            unknown.setdefault(row.id, f"line {row.line}: ")
            continue
        cells = found.setdefault(row.id, [])
        if not row.predicted.strip():
            continue
        try:
            cells.append(FoundCell(decode(row.predicted, sizes[row.id])))
        except ValueError as error:
            raise SubmissionError(f"{path}: line {row.line}: {row.id}: {error}") from None
    return found, unknown


def _from_coco(path: Path, sizes: Mapping[str, tuple[int, int]]) -> _Read:
    found: dict[str, list[FoundCell]] = {}
    unknown: dict[str, str] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            image_id = str(entry["image_id"])
            if image_id not in sizes:
                unknown[image_id] = ""
                continue
            mask = coco_runs(entry["segmentation"], sizes[image_id])
            cell = FoundCell(mask, float(entry["score"]), int(entry["category_id"]))
            found.setdefault(image_id, []).append(cell)
    except Exception as error:  # a malformed file fails in any way, in pycocotools too
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise SubmissionError(f"{path}: expected COCO results, found {reason}") from None
    # Results name no image without cells; of other images alone, they say nothing of these.
    return ({i: found.get(i, []) for i in sizes} if found or not unknown else {}), unknown


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
