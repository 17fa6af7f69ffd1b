"""Truth as COCO writes it: one JSON of images, annotations and categories."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sartorius_infer.errors import TruthError, first_line
from sartorius_infer.evaluate.coco_masks import coco_runs
from sartorius_infer.evaluate.metric import match
from sartorius_infer.evaluate.true_image import CocoImage, Key, Region, TrueImage, whole_size
from sartorius_infer.files import distinct_ids, json_text, whole

Annotation = tuple[str, dict[str, Any]]
"""An annotation, and what to call it in messages."""

_CROWD = {"false": False, "none": False, "null": False, "": False, "true": True}


@dataclass
class _File:
    """An image's file: its name with `/` between folders, its entries in `images` by id."""

    name: str
    entries: dict[Key, dict[str, Any]] = field(default_factory=dict)


def read_coco(path: Path) -> dict[str, TrueImage]:
    """COCO's JSON: polygons or RLE, made pixels as pycocotools makes them; ids are file stems.

    The cell type is the category's name where an image holds one. Crowd regions are kept apart, and cells
    without a pixel counted. `annotations` and `images` may be mappings, as LIVECell's are. Raises
    TruthError, naming the image and the annotation where there is one.
    """
    try:
        content = json.loads(json_text(path))
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise TruthError(f"{path}: expected COCO's JSON, found a {kind} and no object of annotations")
        categories = {key_of(c["id"]): str(c["name"]) for c in content.get("categories") or ()}
        drawn = _by_image(content["annotations"])
        files = _files(path, content["images"])
    except TruthError:
        raise
    except Exception as error:  # a malformed file fails in any way
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise TruthError(f"{path}: expected COCO's JSON, found {reason}") from None
    images = {stem: _image(path, stem, file, drawn, categories) for stem, file in files.items()}
    if drawn:
        raise TruthError(f"{path}: expected annotations of its images, found some of {next(iter(drawn))!r}")
    return images


def key_of(value: Any) -> Key:
    """An id as it is compared: a whole number however it is written, or a text; else raises ValueError."""
    number = whole(value)
    if number is None and not isinstance(value, str):
        raise ValueError(f"expected an id, a number or a text, found {value!r}")
    return value if number is None else number


def _entries(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a list, or of a mapping whose keys are their ids."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value, start=1)
    found = [(str(name), entry) for name, entry in pairs]
    for name, entry in found:
        if not isinstance(entry, dict):
            raise ValueError(f"entry {name}: expected a mapping, found {type(entry).__name__}")
    return found


def _by_image(annotations: Any) -> dict[Key, list[Annotation]]:
    drawn: dict[Key, list[Annotation]] = defaultdict(list)
    for number, annotation in _entries(annotations):
        name = f"annotation {annotation.get('id', number)}"
        try:
            key = key_of(annotation.get("image_id"))
        except ValueError as error:
            raise ValueError(f"{name}: image_id: {error}") from None
        drawn[key].append((name, annotation))
    return drawn


def _files(path: Path, images: Any) -> dict[str, _File]:
    """The files that `images` lists, by `distinct_ids`; one may stand under several ids of COCO's."""
    files: dict[str, _File] = {}
    ids: Counter[Key] = Counter()
    entries = [(str(entry["file_name"]).replace("\\", "/"), entry) for _, entry in _entries(images)]
    stems = distinct_ids({name: PurePosixPath(name) for name, _ in entries})
    for name, entry in entries:
        stem, key = stems[name], key_of(entry["id"])
        file = files.setdefault(stem, _File(name))
        if file.name != name:
            raise TruthError(f"{path}: expected one truth of each image, found two of {stem}")
        ids[key] += key not in file.entries
        if ids[key] > 1:
            raise TruthError(f"{path}: expected an id for each image, found {key!r} twice")
        file.entries.setdefault(key, entry)
    return files


def _image(
    path: Path,
    stem: str,
    file: _File,
    drawn: dict[Key, list[Annotation]],
    categories: Mapping[Key, str],
) -> TrueImage:
    own = {key: drawn.pop(key, []) for key in file.entries}
    every = [annotation for annotations in own.values() for _, annotation in annotations]
    sizes = {_size(path, stem, entry, every) for entry in file.entries.values()}
    if len(sizes) > 1:
        raise TruthError(f"{path}: {stem}: expected one size, found {len(sizes)}")
    size_hw = sizes.pop()
    each = [[_region(path, stem, a, size_hw) for a in annotations] for annotations in own.values()]
    regions, repeated = _united(each)
    kinds = [("" if r.category is None else categories.get(r.category, "")) for r in regions]
    types = {kind for kind, region in zip(kinds, regions, strict=True) if not region.is_crowd}
    # A sliver of a polygon may hold no pixel's centre.
    cells = [(r.mask, kind) for r, kind in zip(regions, kinds, strict=True) if _is_cell(r)]
    empty = sum(not region.is_crowd for region in regions) - len(cells)
    cell_type = types.pop() if len(types) == 1 else ""
    mask_types = () if cell_type else tuple(kind for _, kind in cells)
    coco = CocoImage(tuple(own), tuple(regions), categories, repeated, file.name)
    return TrueImage(stem, size_hw, cell_type, tuple(mask for mask, _ in cells), mask_types, empty, coco)


def _is_cell(region: Region) -> bool:
    return not region.is_crowd and len(region.mask[0]) > 0


def _size(
    path: Path, stem: str, entry: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]
) -> tuple[int, int]:
    """The size that an image's entry tells, or else an RLE of it."""
    told = entry.get("height"), entry.get("width")
    if told == (None, None):
        drawings = (annotation.get("segmentation") for annotation in annotations)
        sizes = (d["size"] for d in drawings if isinstance(d, dict) and "size" in d)
        told = tuple(next(sizes, told))
    if len(told) != 2:
        raise TruthError(f"{path}: {stem}: expected a height and a width, found {told!r}")
    size_hw = whole_size(path, stem, *told)
    return size_hw


def _region(path: Path, stem: str, annotation: Annotation, size_hw: tuple[int, int]) -> Region:
    name, content = annotation
    try:
        mask = coco_runs(content.get("segmentation"), size_hw)
        category = content.get("category_id")
        pixels = float(mask[1].sum())
        told = content.get("area")
        area = float(told) if isinstance(told, int | float) and 0 <= told < float("inf") else pixels
        return Region(mask, None if category is None else key_of(category), area, _is_crowd(content))
    except ValueError as error:
        raise TruthError(f"{path}: {stem}: {name}: {first_line(error)}") from None
    except Exception as error:  # pycocotools fails in any way
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise TruthError(f"{path}: {stem}: {name}: expected polygons or an RLE, found {reason}") from None


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    value = annotation.get("iscrowd")
    number = whole(value)
    if isinstance(value, bool) or number in (0, 1):
        return bool(value if number is None else number)
    text = str(value).strip().lower()
    if text not in _CROWD:
        raise ValueError(f"expected iscrowd 0 or 1, found {value!r}")
    return _CROWD[text]


def _united(each: Sequence[Sequence[Region]]) -> tuple[list[Region], int]:
    """The annotation of a file that stands under several ids, and how many cells were left out.

    What repeats cells that are there already is a second annotation, of which nothing is taken; what does
    not is another part of the same.
    """
    regions, repeated = list(each[0]), 0
    for more in each[1:]:
        true, found = ([r.mask for r in some if _is_cell(r)] for some in (regions, more))
        if len(found) and (match(true, found, 0.5) >= 0).any():
            repeated += len(more)
        else:
            regions += more
    return regions, repeated
