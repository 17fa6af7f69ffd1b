"""From what the networks saw to the final cells of one image: `Prediction` + `Rules` -> `Instances`.

Cells claim pixels of one label map, the surest first; no cell ever owns another image-sized array. Where
overlaps may stay nothing is claimed, and `OverlappingCells` come out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.overlapping import OverlappingCells
from sartorius_infer.cells.paste import Crop, paste_cells
from sartorius_infer.cells.rle import crop_runs
from sartorius_infer.manifest.rules import Consensus, Rules
from sartorius_infer.types import Bool, Float32, Int32, Int64, Prediction


class Limits(NamedTuple):
    """Every class's thresholds as arrays, by class index; rows: 0 for inner cells, 1 for edge cells.

    mask float32 (K,), score float32 (2, K), min_area int64 (2, K)
    """

    mask: Float32
    score: Float32
    min_area: Int64


class _Cell(NamedTuple):
    """A pasted cell: its mask (h, w) begins at (y0, x0) and has `area` pixels, at least one."""

    score: float
    label: int
    y0: int
    x0: int
    mask: Bool
    area: int


def build_instances(prediction: Prediction, rules: Rules, classes: Sequence[str]) -> Instances:
    """Apply the rules to one image's prediction; label l is `classes[l - 1]`.

    Cells claim their pixels by falling score, at equal scores the smaller mask first, then in the
    prediction's order, and are numbered in that order.
    """
    limits = limits_of(rules, classes)
    label_map = np.zeros(prediction.size_hw, np.int32)
    kept: list[_Cell] = []
    for cell in _ranked(prediction, rules, classes):
        if _claim(label_map, cell, rules, limits, number=len(kept) + 1):
            kept.append(cell)
    return Instances(prediction.image_id, label_map, *_scores_and_labels(kept), tuple(classes))


def build_overlapping(prediction: Prediction, rules: Rules, classes: Sequence[str]) -> OverlappingCells:
    """Apply the rules to one image's prediction, but leave each cell every pixel of its mask.

    As `build_instances`, in the same order, without what pixels taken by others bring about: nothing is cut
    off, `overlap_survival` does not apply, and all parts of a mask stay.
    """
    limits, size_hw = limits_of(rules, classes), prediction.size_hw
    kept, masks = [], []
    for cell in _ranked(prediction, rules, classes):
        region = cell.mask | _holes(cell.mask) if rules.fill_holes else cell.mask
        if _stays(region, cell, size_hw, rules, limits):
            kept.append(cell)
            masks.append(crop_runs(region, cell.y0, cell.x0, size_hw[1]))
    return OverlappingCells(
        prediction.image_id, size_hw, tuple(masks), *_scores_and_labels(kept), tuple(classes)
    )


def select(scores: Float32, labels: Int64, rules: Rules, classes: Sequence[str]) -> Bool:
    """Which of N cells, scores (N,) and labels (N,), can still appear in the result; bool (N,).

    What it discards may be discarded before the masks are made: `build_instances` gives the same.
    """
    label = consensus_label(scores, labels, rules, classes)
    return worthy(scores, labels, limits_of(rules, classes), label)


def worthy(scores: Float32, labels: Int64, limits: Limits, label: int | None) -> Bool:
    """`select` by thresholds and a consensus, None for no such, that are known."""
    keep: Bool = scores >= limits.score.min(axis=0)[labels - 1]
    return keep if label is None else keep & (labels == label)


@dataclass(frozen=True)
class Selector:
    """`select` under these rules and classes, as `passes.predict` takes it."""

    rules: Rules
    classes: Sequence[str]

    def __call__(self, scores: Float32, labels: Int64) -> Bool:
        """Of an image's cells, scores (N,) and labels (N,), those that can still appear; bool (N,)."""
        return select(scores, labels, self.rules, self.classes)

    def of_part(self, scores: Float32, labels: Int64) -> Bool:
        """The same of some cells of an image, whatever class it may agree on; a label of 0 may become any."""
        floors = score_floors(self.rules, self.classes)
        return np.asarray(scores >= np.insert(floors, 0, floors.min())[labels])


def score_floors(rules: Rules, classes: Sequence[str]) -> Float32:
    """For each class the lowest score with which a cell, edge cells included, may stay; (K,)."""
    floors: Float32 = limits_of(rules, classes).score.min(axis=0)
    return floors


def consensus_label(scores: Float32, labels: Int64, rules: Rules, classes: Sequence[str]) -> int | None:
    """The one label that the image's cells, scores (N,) and labels (N,), agree on, as `leading_label`."""
    return leading_label(scores, labels, limits_of(rules, classes).score[0], rules.consensus)


def leading_label(scores: Float32, labels: Int64, floors: Float32, consensus: Consensus) -> int | None:
    """The consensus of cells, scores (N,) and labels (N,), at plain score thresholds `floors` (K,).

    The cells that reach their class's plain score threshold vote. Under `surest` they only name the
    candidates, and all cells vote with the cube of their score: a few sure ones outdo many faint ones,
    wherever the thresholds lie. Ties go to the voters' higher summed score, then to the lower label. None
    where the rule is off or nobody votes. Asking again about the cells of the winner alone gives the same
    answer.
    """
    if consensus == "off":
        return None
    voters = scores >= floors[labels - 1]
    votes = np.bincount(labels[voters], minlength=1)
    sums = np.bincount(labels[voters], weights=scores[voters], minlength=1)
    weight = votes if consensus == "count" else sums
    if consensus == "surest":
        wide = scores.astype(np.float64)
        weight = np.bincount(labels, weights=wide * wide * wide)
    ranks = [(weight[label], sums[label], -label) for label in np.flatnonzero(votes).tolist()]
    return -max(ranks)[2] if ranks else None


def decisive(rules: Rules, classes: Sequence[str], labels: Sequence[int]) -> Hashable:
    """What of the rules decides over cells of these labels, once any consensus has spoken.

    Rules that differ, but not in this, make the same instances of such cells.
    """
    limits = limits_of(rules, classes)
    columns = np.array(labels, np.int64) - 1
    own = [part[..., columns] for part in limits]
    edges_differ = any((inner != edge).any() for inner, edge in own[1:])
    return (
        *(part.tobytes() for part in own),
        rules.edge.margin if edges_differ else None,
        rules.rescore_by_mask,
        rules.overlap_survival,
        rules.fill_holes,
        rules.paste,
    )


def limits_of(rules: Rules, classes: Sequence[str]) -> Limits:
    """The thresholds of all classes; an edge score of infinity drops every edge cell."""
    inner = [rules.of(name) for name in classes]
    edge = [rule.edge if rules.edge.mode == "rule" and rule.edge is not None else rule for rule in inner]
    edge_scores = [np.inf if rules.edge.mode == "drop" else rule.score for rule in edge]
    return Limits(
        # float32, as the scores and probabilities are, or 0.35 would not reach a threshold of 0.35.
        np.array([rule.mask for rule in inner], np.float32),
        np.array([[rule.score for rule in inner], edge_scores], np.float32),
        np.array([[rule.min_area for rule in row] for row in (inner, edge)], np.int64),
    )


def _ranked(prediction: Prediction, rules: Rules, classes: Sequence[str]) -> list[_Cell]:
    """The cells whose masks may still lead to an instance, by falling score, then by size."""
    some = prediction[select(prediction.scores, prediction.labels, rules, classes)]
    pasted = paste_cells(some.masks, some.boxes, some.size_hw, rules.paste)
    scored = zip(some.scores.tolist(), some.labels.tolist(), pasted, strict=True)
    cells = _thresholded(scored, rules, limits_of(rules, classes))
    return sorted(cells, key=lambda cell: (-cell.score, cell.area))


def _scores_and_labels(cells: Sequence[_Cell]) -> tuple[Float32, Int64]:
    scores = np.array([cell.score for cell in cells], np.float32)
    return scores, np.array([cell.label for cell in cells], np.int64)


def _thresholded(scored: Iterable[tuple[float, int, Crop]], rules: Rules, limits: Limits) -> Iterator[_Cell]:
    """The cells (score, label, crop) whose masks may still lead to an instance, in their order."""
    # Only filled holes add pixels to a mask, so without them a small one cannot grow up.
    smallest = np.maximum(limits.min_area.min(axis=0) * (not rules.fill_holes), 1)
    floors = limits.score.min(axis=0)
    for score, label, crop in scored:
        mask = crop.probabilities >= limits.mask[label - 1]
        area = int(np.count_nonzero(mask))
        if area < smallest[label - 1]:
            continue
        final = _rescored(score, crop, mask) if rules.rescore_by_mask else score
        if final >= floors[label - 1]:
            yield _Cell(final, label, crop.y0, crop.x0, mask, area)


def _rescored(score: float, crop: Crop, mask: Bool) -> float:
    """The score times the mean probability in the mask, which has a pixel; a float32's value."""
    mean = cv2.mean(crop.probabilities, mask.view(np.uint8))[0]
    return float(np.float32(score) * np.float32(mean))


def _claim(label_map: Int32, cell: _Cell, rules: Rules, limits: Limits, number: int) -> bool:
    """Write what is left of a cell into the label map (H, W) as `number`, if enough of it is left."""
    height, width = cell.mask.shape
    window = label_map[cell.y0 : cell.y0 + height, cell.x0 : cell.x0 + width]
    unclaimed = window == 0
    free = cell.mask & unclaimed
    # Divided, not multiplied: 55 of 100 is 0.55 exactly as it is written, 0.55 * 100 is above 55.
    survival = np.count_nonzero(free) / cell.area
    if survival == 0 or survival < rules.overlap_survival:
        return False
    region = _largest_component(free)
    if rules.fill_holes:
        region = _fill_holes(region, unclaimed)
    if not _stays(region, cell, label_map.shape, rules, limits):
        return False
    np.copyto(window, number, where=region)
    return True


def _stays(region: Bool, cell: _Cell, size_hw: tuple[int, ...], rules: Rules, limits: Limits) -> bool:
    """Whether a cell whose pixels these are, (h, w), reaches the thresholds of its class and place."""
    area = np.count_nonzero(region)
    inner = _inner(region, cell, size_hw, rules.edge.margin)
    edge, index = int(np.count_nonzero(inner) < area), cell.label - 1
    return bool(cell.score >= limits.score[edge, index] and area >= limits.min_area[edge, index])


def _inner(region: Bool, cell: _Cell, size_hw: tuple[int, ...], margin: int) -> Bool:
    """The part of a cell's region (h, w) that lies further than `margin` from the image border."""
    rows, columns = (
        slice(max(margin + 1 - start, 0), max(size - margin - 1 - start, 0))
        for start, size in zip((cell.y0, cell.x0), size_hw, strict=True)
    )
    return region[rows, columns]


def _largest_component(mask: Bool) -> Bool:
    """The largest 8-connected part of a mask with a pixel; of equals, the first in reading order."""
    count, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    if count == 2:
        return mask
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    # OpenCV numbers parts by blocks of 2 x 2 pixels, not in reading order.
    first = np.argmax(areas[parts] == areas.max())
    return np.asarray(parts == parts.flat[first])


def _fill_holes(region: Bool, unclaimed: Bool) -> Bool:
    """A connected region with those unclaimed pixels of its holes that are connected to it.

    A hole is background that no 4-connected path leads out of. Where other cells lie in it, they
    may cut off a part of it, which stays unclaimed.
    """
    filled = region | (_holes(region) & unclaimed)
    count, parts = cv2.connectedComponents(filled.view(np.uint8), connectivity=8)
    return filled if count == 2 else np.asarray(parts == parts[region][0])


def _holes(region: Bool) -> Bool:
    """The pixels beside a region (h, w) that no 4-connected path leads out of."""
    flooded = cv2.copyMakeBorder(region.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(flooded, None, (0, 0), 1)
    return np.asarray(flooded[1:-1, 1:-1] == 0)
