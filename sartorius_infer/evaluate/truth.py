"""True cells, as annotators drew them: any number of overlapping masks an image."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from sartorius_infer.cells.rle import Mask, decode, split_label_map
from sartorius_infer.errors import TruthError, first_line, size_text
from sartorius_infer.files import as_path
from sartorius_infer.types import Int32

COLUMNS = ("id", "annotation", "width", "height", "cell_type")
SUFFIXES = (".tif", ".tiff", ".png")


@dataclass(frozen=True, eq=False)
class TrueImage:
    """The true cells of one image; `cell_type` is "" where it is not told, or not one.

    `mask_types` tells each cell's own type; empty where all are of `cell_type`. `empty` counts annotated
    cells that hold no pixel of the image.
    """

    id: str
    size_hw: tuple[int, int]
    cell_type: str
    masks: tuple[Mask, ...]
    mask_types: tuple[str, ...] = ()
    empty: int = 0


def read_truth(path: str | Path) -> dict[str, TrueImage]:
    """True images by id: from Kaggle's train.csv, COCO's JSON, or a folder of label maps.

    Raises TruthError, naming the file and the image.
    """
    path = as_path(path, "truth")
    if path.is_dir():
        return read_label_maps(path)
    return read_coco(path) if path.suffix.lower() == ".json" else read_train_csv(path)


def read_train_csv(path: Path) -> dict[str, TrueImage]:
    """Kaggle's `train.csv`: a row a cell with id, annotation, width, height and cell_type.

    Raises TruthError for a missing column, a size or type that changes within an image, or a
    malformed annotation.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except Exception as error:  # a damaged or cut off file, compressed ones too, fails in any way
        raise TruthError(f"{path}: expected a CSV file, found {first_line(error)}") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise TruthError(f"{path}: expected columns {', '.join(COLUMNS)}, found no {', '.join(missing)}")
    # pandas makes an index of what a first row has beyond the header.
    if not isinstance(table.index, pd.RangeIndex):
        raise TruthError(f"{path}: expected {len(table.columns)} fields in line 2, found more")
    if (table["id"] == "").any():
        line = int((table["id"] == "").to_numpy().argmax()) + 2
        raise TruthError(f"{path}: expected an id in each row, found none in line {line}")
    images: dict[str, TrueImage] = {}
    for image_id, rows in table.groupby("id", sort=True):
        kinds = rows[["height", "width", "cell_type"]].drop_duplicates().to_numpy().tolist()
        if len(kinds) > 1:
            raise TruthError(f"{path}: {image_id}: expected one size and cell type, found {len(kinds)}")
        size_hw, cell_type = _size(path, image_id, *kinds[0][:2]), str(kinds[0][2])
        try:
            masks = tuple(decode(text, size_hw) for text in rows["annotation"] if text.strip())
        except ValueError as error:
            raise TruthError(f"{path}: {image_id}: {error}") from None
        images[str(image_id)] = TrueImage(str(image_id), size_hw, cell_type, masks)
    return images


def _size(path: Path, image_id: object, height: object, width: object) -> tuple[int, int]:
    try:
        size_hw = int(str(height)), int(str(width))
    except ValueError:
        size_hw = (0, 0)
    if min(size_hw) < 1:
        raise TruthError(f"{path}: {image_id}: expected a size in whole pixels, found {height!r} x {width!r}")
    return size_hw


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
            size_hw = _size(path, image_id, entry["height"], entry["width"])
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


def read_label_maps(folder: Path) -> dict[str, TrueImage]:
    """Label maps, 0 for background: `<id>.tif` or `.png`, or `<id>/class1.tif`, ... for each class.

    With a file for each class the cell type is the file's stem where one class alone has cells.
    """
    images: dict[str, TrueImage] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            labels = _read_labels(path)
            found = TrueImage(path.stem, _hw(labels), "", _cells(labels))
        elif path.is_dir() and (files := [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES]):
            found = read_class_maps(path, files)
        else:
            continue
        if found.id in images:
            raise TruthError(f"{path}: expected one truth of each image, found two of {found.id}")
        images[found.id] = found
    if not images:
        raise TruthError(f"{folder}: expected label maps ({', '.join(SUFFIXES)}), found none")
    return images


def read_class_maps(folder: Path, files: Sequence[Path]) -> TrueImage:
    """The image that `folder` is called after, from a label map for each class, at least one.

    The cell type is the file's stem where one class alone has cells. Raises TruthError.
    """
    maps: dict[str, Int32] = {}
    for file in files:
        if file.stem in maps:
            raise TruthError(f"{file}: expected one label map of each class, found two of {file.stem}")
        maps[file.stem] = _read_labels(file)
    sizes = {_hw(labels) for labels in maps.values()}
    if len(sizes) > 1:
        found = ", ".join(map(size_text, sorted(sizes)))
        raise TruthError(f"{folder}: expected label maps of one size, found {found}")
    cells = {name: _cells(labels) for name, labels in maps.items()}
    present = [name for name, masks in cells.items() if masks]
    every = tuple(mask for masks in cells.values() for mask in masks)
    kinds = tuple(name for name, masks in cells.items() for _ in masks)
    if len(present) == 1:
        return TrueImage(folder.name, sizes.pop(), present[0], every)
    return TrueImage(folder.name, sizes.pop(), "", every, kinds)


def _hw(labels: Int32) -> tuple[int, int]:
    return int(labels.shape[0]), int(labels.shape[1])


def _read_labels(path: Path) -> Int32:
    try:
        with Image.open(path) as picture:
            pages, labels = getattr(picture, "n_frames", 1), np.array(picture)
    except Exception as error:  # a damaged file fails in any way
        raise TruthError(f"{path}: expected a label map, found {first_line(error)}") from None
    if pages > 1:
        raise TruthError(f"{path}: expected a label map, found a stack of {pages}")
    whole = labels.dtype.kind in "iub" or bool((labels == labels.round()).all())
    whole = whole and labels.min(initial=0) >= 0 and float(labels.max(initial=0)) < 2**31
    if labels.ndim != 2 or not whole:
        raise TruthError(f"{path}: expected whole numbers (H, W) from 0, found {labels.dtype} {labels.shape}")
    return labels.astype(np.int32)


def _cells(labels: Int32) -> tuple[Mask, ...]:
    """One mask for each label that occurs; labels need not be consecutive."""
    values, dense = np.unique(labels, return_inverse=True)
    first = 0 if values[0] == 0 else 1
    numbered = (dense.reshape(labels.shape) + first).astype(np.int32)
    return tuple(split_label_map(numbered, len(values) - 1 + first))


def require_known(truth: Mapping[str, TrueImage], ids: list[str], source: Path) -> None:
    """Raise TruthError unless every id has its truth."""
    unknown = [image_id for image_id in ids if image_id not in truth]
    if unknown:
        raise TruthError(f"{source}: expected truth of every image, found none of {', '.join(unknown[:5])}")
