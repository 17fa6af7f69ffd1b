"""Factories of the values that several tests need; each returns a new one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.cells.instances import Instances
from sartorius_infer.types import Float32, Prediction

CLASSES = ("shsy5y", "astro", "cort")


def random_boxes(
    rng: np.random.Generator, count: int, size_hw: tuple[int, int], sides: tuple[float, float]
) -> Float32:
    """Boxes (count, 4) xyxy with sides in the range, each with its centre in the image."""
    height, width = size_hw
    centre = rng.random((count, 2)) * (width, height)
    half = rng.uniform(*sides, (count, 2)) / 2
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def make_prediction(
    masks: NDArray[np.floating],
    boxes: NDArray[np.floating] | Sequence[Sequence[float]],
    scores: Sequence[float] | Float32,
    labels: Sequence[int] | NDArray[np.int64],
    size_hw: tuple[int, int],
) -> Prediction:
    """A prediction of `CLASSES` with these cells; converts to the dtypes it must have."""
    return Prediction(
        image_id="image",
        size_hw=size_hw,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        labels=np.asarray(labels, np.int64),
        masks=np.asarray(masks, np.float16),
    )


def empty_prediction(size_hw: tuple[int, int]) -> Prediction:
    """A prediction in which nothing was found."""
    return make_prediction(np.zeros((0, 28, 28)), [], [], [], size_hw)


def drawn_prediction(
    *drawings: str, scores: Sequence[float] | None = None, labels: Sequence[int] | None = None
) -> Prediction:
    """One cell per drawing of a square image, pasted exactly as drawn by the exact paste.

    Each drawing is rows separated by blanks: `.` is 0, `1` to `9` are tenths and `#` is 1. Without
    scores the first cell has the highest, all above 0.5; without labels all are 1.
    """
    tenths = {".": 0, "#": 10} | {str(digit): digit for digit in range(1, 10)}
    grids = [[[tenths[mark] / 10 for mark in row] for row in text.split()] for text in drawings]
    side = len(grids[0])
    return make_prediction(
        np.array(grids),
        [[0, 0, side, side]] * len(grids),
        scores or [0.9 - 0.01 * index for index in range(len(grids))],
        labels or [1] * len(grids),
        (side, side),
    )


def random_prediction(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> Prediction:
    """Crowded cells of every kind: tied scores, ragged masks, boxes that leave the image or are flat."""
    boxes = random_boxes(rng, count, size_hw, (1.0, max(size_hw) / 1.5))
    whole = rng.random(count) < 0.5
    boxes[whole] = np.round(boxes[whole])
    masks = rng.random((count, 7, 7)) + rng.choice([-0.4, 0.0, 0.3, 0.6], (count, 1, 1))
    scores = np.where(rng.random(count) < 0.5, rng.integers(0, 11, count) / 10, rng.random(count))
    return make_prediction(masks.clip(0, 1), boxes, scores, rng.integers(1, 4, count), size_hw)


def make_instances(
    label_map: NDArray[np.integer] | Sequence[Sequence[int]],
    scores: Sequence[float] | Float32 | None = None,
    labels: Sequence[int] | NDArray[np.int64] | None = None,
    image_id: str = "image",
) -> Instances:
    """Cells of `CLASSES`: unless told as many as the map has, of falling scores, of all classes in turn."""
    numbers = np.asarray(label_map, np.int32)
    order = np.arange(int(numbers.max(initial=0)) if scores is None else len(scores))
    return Instances(
        image_id=image_id,
        label_map=numbers,
        scores=np.asarray(np.float32(0.9) / (1 + order) if scores is None else scores, np.float32),
        labels=np.asarray(order % len(CLASSES) + 1 if labels is None else labels, np.int64),
        class_names=CLASSES,
    )
