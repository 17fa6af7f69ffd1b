"""Truth as label maps: a folder of pictures in which each cell has a number of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sartorius_infer.cells.rle import Mask, split_label_map
from sartorius_infer.errors import TruthError, first_line, size_text
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.types import Int32

SUFFIXES = (".tif", ".tiff", ".png")


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
