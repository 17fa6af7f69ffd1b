"""Truth as COCO writes it: one JSON of images, annotations and categories."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sartorius_infer.cells.rle import Mask, split_label_map
from sartorius_infer.errors import TruthError, first_line, size_text
from sartorius_infer.evaluate.true_image import TrueImage, whole_size


def read_coco(path: Path) -> dict[str, TrueImage]:
    """COCO's JSON: polygons or RLE, made pixels as pycocotools makes them; ids are file stems.

    The cell type is the category's name where an image holds one. Crowd regions are left out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {c["id"]: str(c["name"]) for c in content.get("categories", ())}
        drawn: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                drawn[annotation["image_id"]].append(annotation)
        images: dict[str, TrueImage] = {}
        for entry in content["images"]:
            image_id = Path(str(entry["file_name"])).stem
            if image_id in images:
                raise TruthError(f"{path}: expected one truth of each image, found two of {image_id}")
            size_hw = whole_size(path, image_id, entry["height"], entry["width"])
            cells = drawn.pop(entry["id"], [])
            types = {names.get(cell.get("category_id"), "") for cell in cells}
            drawn_cells = (
                (coco_runs(cell["segmentation"], size_hw), names.get(cell.get("category_id"), ""))
                for cell in cells
            )
            # A sliver of a polygon may hold no pixel's centre.
            whole = [(mask, kind) for mask, kind in drawn_cells if len(mask[0])]
            masks, kinds = (tuple(part) for part in zip(*whole, strict=True)) if whole else ((), ())
            cell_type = types.pop() if len(types) == 1 else ""
            own_kinds = () if cell_type else kinds
            images[image_id] = TrueImage(
                image_id, size_hw, cell_type, masks, own_kinds, len(cells) - len(masks)
            )
    except TruthError:
        raise
    except Exception as error:  # a malformed file fails in any way, in pycocotools too
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise TruthError(f"{path}: expected COCO's JSON, found {reason}") from None
    if drawn:
        raise TruthError(f"{path}: expected annotations of its images, found some of {next(iter(drawn))!r}")
    return images


def coco_runs(segmentation: Any, size_hw: tuple[int, int]) -> Mask:
    """Row-major runs of polygons, or of COCO's column-major RLE; raises whatever pycocotools raises."""
    height, width = size_hw
    if isinstance(segmentation, dict) and tuple(segmentation["size"]) != size_hw:
        expected, found = size_text(size_hw), size_text(segmentation["size"])
        raise ValueError(f"expected an RLE of {expected} pixels, found {found}")
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], (str, bytes)):
        packed = segmentation
    else:
        packed = coco_mask.frPyObjects(segmentation, height, width)
    if isinstance(packed, list):
        packed = coco_mask.merge(packed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' arrays are older than numpy 2
        pixels = coco_mask.decode(packed).astype(np.int32)
    (runs,) = split_label_map(pixels, 1)
    return runs
