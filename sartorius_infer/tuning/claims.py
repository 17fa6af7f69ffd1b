"""What rules make of pasted cells, and how it scores, as machine code.

The same as `cells.claim.build_instances` and `evaluate.metric.score_image`, for a search that asks
thousands of times: cells stand one after the other in flat arrays, and no object is made for any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np

from sartorius_infer.cells.claim import Limits
from sartorius_infer.cells.paste import Crop
from sartorius_infer.evaluate.metric import ImageScore, TrueCells, matches
from sartorius_infer.machine_code import machine_code
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.types import Bool, Float32, Int32, Int64, Prediction


@dataclass(frozen=True, eq=False)
class PackedCells:
    """The N pasted cells of a prediction.

    probabilities float32 (P,), the crops' rows one after the other
    spans         int64 (N, 5): where a cell's begin there, and its crop's y0, x0, height and width
    """

    prediction: Prediction
    probabilities: Float32
    spans: Int64
    _masked: dict[bytes, tuple[Int64, Bool]] = field(default_factory=dict)
    _means: dict[bytes, Float32] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """What it holds, its prediction too."""
        return self.prediction.masks.nbytes + self.probabilities.nbytes

    def masked(self, thresholds: Float32) -> tuple[Int64, Bool]:
        """Of each cell's mask by its class's threshold (N,): pixels, int64, and whether it is in one part."""
        key = thresholds.tobytes()
        if key not in self._masked:
            areas, in_one = np.zeros(len(self.spans), np.int64), np.zeros(len(self.spans), np.bool_)
            _measure(self.probabilities, self.spans, self._own(thresholds), areas, in_one)
            self._masked[key] = (areas, in_one)
        return self._masked[key]

    def means(self, thresholds: Float32) -> Float32:
        """The mean of each cell's mask by its class's threshold, float32 (N,)."""
        key = thresholds.tobytes()
        if key not in self._means:
            own = zip(self._crops(), self._own(thresholds), strict=True)
            self._means[key] = np.array([_mean(crop, threshold) for crop, threshold in own], np.float32)
        return self._means[key]

    def _own(self, thresholds: Float32) -> Float32:
        return thresholds[self.prediction.labels - 1]

    def _crops(self) -> Iterable[Float32]:
        for first, _, _, height, width in self.spans.tolist():
            yield self.probabilities[first : first + height * width].reshape(height, width)


def _mean(crop: Float32, threshold: np.float32) -> float:
    return cv2.mean(crop, (crop >= threshold).view(np.uint8))[0] if crop.size else 0.0


def pack(prediction: Prediction, crops: Iterable[Crop]) -> PackedCells:
    """A prediction with the crops of all its cells."""
    pasted = list(crops)
    shapes = np.array([(c.y0, c.x0, *c.probabilities.shape) for c in pasted], np.int64).reshape(-1, 4)
    ends = np.cumsum(shapes[:, 2] * shapes[:, 3])
    firsts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    flat = [np.zeros(0, np.float32), *(c.probabilities.ravel() for c in pasted)]
    return PackedCells(prediction, np.concatenate(flat), np.column_stack([firsts, shapes]))


def score_packed(cells: PackedCells, keep: Bool, limits: Limits, rules: Rules, true: TrueCells) -> float:
    """The score of an image whose cells, those that `claim.select` keeps, are put under the rules."""
    seen = cells.prediction
    areas, in_one = cells.masked(limits.mask)
    scores = seen.scores * cells.means(limits.mask) if rules.rescore_by_mask else seen.scores
    index = seen.labels - 1
    smallest = np.maximum(limits.min_area.min(axis=0) * (not rules.fill_holes), 1)
    stay = keep & (areas >= smallest[index]) & (scores >= limits.score.min(axis=0)[index])
    chosen = np.flatnonzero(stay)
    order = chosen[np.lexsort((areas[chosen], -scores[chosen]))]
    label_map = np.zeros(seen.size_hw, np.int32)
    found = np.zeros(len(order), np.int64)
    count = _claim_all(
        label_map, found, order, cells.probabilities, cells.spans, index, scores, areas, in_one,
        limits.mask, limits.score, limits.min_area,
        rules.edge.margin, float(rules.overlap_survival), rules.fill_holes,
    )  # fmt: skip
    partners, shared = np.zeros(len(true.areas), np.int64), np.zeros(len(true.areas), np.int64)
    _cross_count(label_map.ravel(), count, true.owners, true.pixels, partners, shared)
    one = np.flatnonzero(partners)
    other, both = partners[one] - 1, shared[one]
    tp = matches(one, other, both, true.areas[one] + found[other] - both)
    return ImageScore("", tp, len(true.areas), count).ap


@machine_code
def _measure(probabilities: Float32, spans: Int64, thresholds: Float32, areas: Int64, in_one: Bool) -> None:
    most = 1
    for i in range(len(spans)):
        most = max(most, spans[i, 3] * spans[i, 4])
    region, parts, stack = np.zeros(most, np.bool_), np.zeros(most, np.int32), np.zeros(most, np.int64)
    for i in range(len(spans)):
        first, h, w, start = spans[i, 0], spans[i, 3], spans[i, 4], 0
        for place in range(h * w):
            region[place] = probabilities[first + place] >= thresholds[i]
            areas[i] += region[place]
            if areas[i] == 0:
                start = place + 1
        if areas[i]:
            parts[: h * w] = 0
            in_one[i] = _spread(region, h, w, start, 1, parts, stack) == areas[i]


@machine_code
def _claim_all(
    label_map: Int32, found: Int64, order: Int64, probabilities: Float32, spans: Int64, index: Int64,
    scores: Float32, areas: Int64, in_one: Bool, mask: Float32, least_score: Float32, least_area: Int64,
    margin: int, survival: float, fill: bool,
) -> int:  # fmt: skip
    """Write cells into the label map (H, W) in this order; their areas into `found`. How many stayed."""
    height, width = label_map.shape
    most = 1
    for i in order:
        most = max(most, (spans[i, 3] + 2) * (spans[i, 4] + 2))
    region, parts, stack = np.zeros(most, np.bool_), np.zeros(most, np.int32), np.zeros(most, np.int64)
    count = 0
    for i in order:
        first, y0, x0, h, w = spans[i]
        free = 0
        for y in range(h):
            for x in range(w):
                mine = probabilities[first + y * w + x] >= mask[index[i]]
                region[y * w + x] = mine and label_map[y0 + y, x0 + x] == 0
                free += region[y * w + x]
        if free == 0 or free / areas[i] < survival:
            continue
        if free < areas[i] or not in_one[i]:
            _keep_largest(region, h, w, parts, stack)
        if fill:
            _fill(region, label_map, y0, x0, h, w, parts, stack)
        area, edge = 0, 0
        for y in range(h):
            for x in range(w):
                if region[y * w + x]:
                    area += 1
                    if min(y0 + y, x0 + x, height - 1 - y0 - y, width - 1 - x0 - x) <= margin:
                        edge = 1
        if scores[i] < least_score[edge, index[i]] or area < least_area[edge, index[i]]:
            continue
        found[count] = area
        count += 1
        for y in range(h):
            for x in range(w):
                if region[y * w + x]:
                    label_map[y0 + y, x0 + x] = count
    return count


@machine_code
def _spread(region: Bool, h: int, w: int, start: int, part: int, parts: Int32, stack: Int64) -> int:
    """Number `part` the 8-connected pixels of a region (h, w) from `start` on; how many they are."""
    stack[0], parts[start], top, size = start, part, 1, 0
    while top:
        top -= 1
        place = stack[top]
        size += 1
        y, x = place // w, place % w
        for v in range(max(y - 1, 0), min(y + 2, h)):
            for u in range(max(x - 1, 0), min(x + 2, w)):
                near = v * w + u
                if region[near] and parts[near] == 0:
                    parts[near] = part
                    stack[top] = near
                    top += 1
    return size


@machine_code
def _keep_largest(region: Bool, h: int, w: int, parts: Int32, stack: Int64) -> None:
    """Leave of a region the largest 8-connected part; of equals, the first in reading order."""
    parts[: h * w] = 0
    part, best, largest = 0, 0, 0
    for start in range(h * w):
        if region[start] and parts[start] == 0:
            part += 1
            size = _spread(region, h, w, start, part, parts, stack)
            if size > largest:
                best, largest = part, size
    for place in range(h * w):
        region[place] = parts[place] == best and best > 0


@machine_code
def _fill(
    region: Bool, label_map: Int32, y0: int, x0: int, h: int, w: int, parts: Int32, stack: Int64
) -> None:
    """Add to a connected region those unclaimed pixels of its holes that are connected to it."""
    # Background with a ring around it, walked 4-connected from the corner: what is not reached is a hole.
    wide, tall = w + 2, h + 2
    parts[: tall * wide] = 0
    stack[0], parts[0], top = 0, 1, 1
    while top:
        top -= 1
        y, x = stack[top] // wide, stack[top] % wide
        for step in range(4):
            v = y + (step == 0) - (step == 1)
            u = x + (step == 2) - (step == 3)
            if v < 0 or u < 0 or v >= tall or u >= wide or parts[v * wide + u]:
                continue
            if 0 < v <= h and 0 < u <= w and region[(v - 1) * w + u - 1]:
                continue
            parts[v * wide + u] = 1
            stack[top] = v * wide + u
            top += 1
    start = 0
    while not region[start]:
        start += 1
    for y in range(h):
        for x in range(w):
            if parts[(y + 1) * wide + x + 1] == 0 and label_map[y0 + y, x0 + x] == 0:
                region[y * w + x] = True
    parts[: h * w] = 0
    _spread(region, h, w, start, 1, parts, stack)
    for place in range(h * w):
        region[place] = parts[place] == 1


@machine_code
def _cross_count(
    flat: Int32, count: int, owners: Int32, pixels: Int32, partners: Int64, shared: Int64
) -> None:
    """For each true cell the found one, from 1, that shares most pixels with it, and how many.

    Found cells share no pixel, so that no other can have an IoU above a half.
    """
    counts = np.zeros(count + 1, np.int64)
    first = 0
    while first < len(owners):
        owner, last = owners[first], first
        while last < len(owners) and owners[last] == owner:
            counts[flat[pixels[last]]] += 1
            last += 1
        for p in range(first, last):
            label = flat[pixels[p]]
            if label and counts[label] > shared[owner]:
                partners[owner], shared[owner] = label, counts[label]
            counts[label] = 0
        first = last
