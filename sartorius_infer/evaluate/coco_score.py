"""COCO's own measures of a submission, by pycocotools, for evaluations that use them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sartorius_infer.cells.rle import Mask, run_pixels
from sartorius_infer.evaluate.submissions import Found
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.types import Float64

AREAS = ("all", "small", "medium", "large")


def coco_summary(truth: Mapping[str, TrueImage], found: Found) -> dict[str, float]:
    """AP, AP50, AP75 and AP by area (under 32^2, to 96^2, over it), of masks, without regard to class.

    As many detections an image as there are: COCO's usual limit of 100 would cut dense images off.
    NaN where there is nothing of an area. Cells without a score, as in a CSV, rank as they stand.
    """
    ids = {image_id: number for number, image_id in enumerate(sorted(found), start=1)}
    images = [{"id": n, "height": truth[i].size_hw[0], "width": truth[i].size_hw[1]} for i, n in ids.items()]
    true = [
        {"image_id": n, "category_id": 1, "iscrowd": 0, **_shape(mask, truth[i].size_hw)}
        for i, n in ids.items()
        for mask in truth[i].masks
    ]
    results = [
        {"image_id": n, "category_id": 1, "score": cell.score, **_shape(cell.mask, truth[i].size_hw)}
        for i, n in ids.items()
        for cell in found[i]
    ]
    with redirect_stdout(io.StringIO()):  # pycocotools tells its progress there
        evaluation = COCOeval(_as_coco(images, true), _as_coco(images, results), "segm")
        evaluation.params.maxDets = [max(len(cells) for cells in found.values())]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, :, 0]  # (thresholds, recalls, areas)
    return {
        "AP": _mean(precision[:, :, 0]),
        "AP50": _mean(precision[0, :, 0]),
        "AP75": _mean(precision[5, :, 0]),
        **{f"AP {name}": _mean(precision[:, :, k]) for k, name in enumerate(AREAS) if k},
    }


def _as_coco(images: list[dict[str, int]], cells: list[dict[str, Any]]) -> COCO:
    """Not by `loadRes`, which takes no empty list, and a box's area for the mask's where there is a box."""
    for number, cell in enumerate(cells, start=1):
        cell["id"] = number
    coco = COCO()
    coco.dataset = {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    coco.createIndex()
    return coco


def _shape(mask: Mask, size_hw: tuple[int, int]) -> dict[str, object]:
    pixels = np.zeros(size_hw, np.uint8)
    pixels.ravel()[run_pixels(*mask)] = 1
    packed = coco_mask.encode(np.asfortranarray(pixels))
    return {"segmentation": packed, "area": float(coco_mask.area(packed))}


def _mean(values: Float64) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
