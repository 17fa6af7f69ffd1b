"""COCO's own measures of a submission, by pycocotools, for evaluations that use them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sartorius_infer.cells.rle import Mask, run_pixels
from sartorius_infer.evaluate.classes import Classes
from sartorius_infer.evaluate.submissions import Found
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.types import Float64

AREAS = ("all", "small", "medium", "large")
MAX_DETS = 100
"""COCO's own limit of cells of a class in an image: those of the highest scores count."""

Measures = dict[str, float]
"""AP, AP50, AP75, and AP small (under 32^2 pixels), medium (to 96^2) and large; NaN where nothing is true."""


@dataclass(frozen=True)
class CocoScore:
    """COCO's measures of masks.

    by_class     of each class, by its name; empty where the classes of truth and submission cannot be told
    mean         the mean over classes: COCO's own numbers; empty as `by_class` is
    class_blind  all cells as one class
    cut          images in which cells were left out by `max_dets`, for some class
    """

    mean: Measures
    by_class: dict[str, Measures]
    class_blind: Measures
    max_dets: int
    cut: int

    @property
    def main(self) -> Measures:
        """COCO's own numbers where they can be told, else those without regard to class."""
        return self.mean or self.class_blind


Cells = list[dict[str, Any]]
"""Annotations as pycocotools takes them; of category 0 are those that do not count by class."""


def coco_score(
    truth: Mapping[str, TrueImage], found: Found, classes: Classes, max_dets: int = MAX_DETS
) -> CocoScore:
    """COCO's measures of the images in `found`.

    Crowd regions, and true cells without a pixel, count as in pycocotools. Areas are the annotations' own
    where COCO's JSON tells them, else the masks', never boxes'. Cells without a score, as in a CSV, rank as
    they stand.
    """
    ids = _in_order(truth, found)
    images = [{"id": n, "height": truth[i].size_hw[0], "width": truth[i].size_hw[1]} for i, n in ids.items()]
    true, results = _true(truth, ids, classes), _results(truth, ids, found, classes)
    whole = [[{**cell, "category_id": 1} for cell in cells] for cells in (true, results)]
    class_blind = _measures(_precision(images, whole[0], whole[1], 1, max_dets))
    if classes.untold:
        return CocoScore({}, {}, class_blind, max_dets, _cut(found, classes, max_dets))
    precision = _precision(images, true, results, len(classes.names), max_dets)
    by_class = {name: _measures(precision[:, :, k]) for k, name in enumerate(classes.names)}
    return CocoScore(_measures(precision), by_class, class_blind, max_dets, _cut(found, classes, max_dets))


def _in_order(truth: Mapping[str, TrueImage], found: Found) -> dict[str, int]:
    """Numbers from 1 of the images, in the order of COCO's ids where there are: ties are broken by it."""
    told = {i: image.ids[0] if (image := truth[i].coco) else i for i in found}
    by_number = all(isinstance(key, int) for key in told.values())
    ordered = sorted(found, key=lambda i: told[i] if by_number else i)
    return {image_id: number for number, image_id in enumerate(ordered, start=1)}


def _true(truth: Mapping[str, TrueImage], ids: Mapping[str, int], classes: Classes) -> Cells:
    return [
        {"image_id": n, "category_id": category, "iscrowd": int(region.is_crowd)}
        | {"segmentation": _packed(region.mask, truth[i].size_hw), "area": region.area}
        for i, n in ids.items()
        for region, category in classes.regions(truth[i])
    ]


def _results(truth: Mapping[str, TrueImage], ids: Mapping[str, int], found: Found, classes: Classes) -> Cells:
    return [
        {"image_id": n, "category_id": classes.of_cell(cell), "score": cell.score}
        | {"segmentation": _packed(cell.mask, truth[i].size_hw), "area": float(cell.mask[1].sum())}
        for i, n in ids.items()
        for cell in found[i]
    ]


def _packed(mask: Mask, size_hw: tuple[int, int]) -> Any:
    pixels = np.zeros(size_hw, np.uint8)
    pixels.ravel()[run_pixels(*mask)] = 1
    return coco_mask.encode(np.asfortranarray(pixels))


def _precision(images: Cells, true: Cells, results: Cells, classes: int, max_dets: int) -> Float64:
    """Precision (thresholds, recalls, classes, areas), -1 where nothing is true."""
    with redirect_stdout(io.StringIO()):  # pycocotools tells its progress there
        evaluation = COCOeval(*(_as_coco(images, cells, classes) for cells in (true, results)), "segm")
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Float64 = evaluation.eval["precision"][..., 0]
    return precision


def _as_coco(images: Cells, cells: Cells, classes: int) -> COCO:
    """Not by `loadRes`, which takes no empty list, and a box's area for the mask's where there is a box."""
    for number, cell in enumerate(cells, start=1):
        cell["id"] = number
    coco = COCO()
    categories = [{"id": number, "name": str(number)} for number in range(1, classes + 1)]
    coco.dataset = {"images": images, "annotations": cells, "categories": categories}
    coco.createIndex()
    return coco


def _measures(precision: Float64) -> Measures:
    """Of precision (thresholds, recalls, ..., areas), in which -1 counts for nothing."""
    return {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        **{f"AP {name}": _mean(precision[..., k]) for k, name in enumerate(AREAS) if k},
    }


def _mean(values: Float64) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _cut(found: Found, classes: Classes, max_dets: int) -> int:
    """In how many images a class has more cells than count."""
    counts = [Counter(map(classes.of_cell, cells)) for cells in found.values()]
    return sum(any(count > max_dets for count in own.values()) for own in counts)
