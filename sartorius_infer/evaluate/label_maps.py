"""Truth as pictures: label maps, in which each cell has a number of its own, or a file for each nucleus."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.cells.rle import Mask, split_label_map
from sartorius_infer.errors import ImageError, TruthError, first_line, size_text
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.files import visible
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.names import EXTENSIONS, MAP_ENDS, maps_beside
from sartorius_infer.images.read import image_size
from sartorius_infer.images.stored import stored_values
from sartorius_infer.types import Bool

SUFFIXES = (".tif", ".tiff", ".png")

_INNER = ("labels", "masks")


def read_label_maps(folder: Path) -> dict[str, TrueImage]:
    """Label maps, 0 for background, by the image that each is called after.

    In the folder, or in `labels/` or `masks/` in it: `<id>.tif` or `.png`; `<id>_cp_masks.tif` or
    `<id>_masks.tif`, beside which other pictures are images, in sub-folders too; `<id>/class1.tif`, ... for
    each class; or `<id>/masks/` with a picture for each nucleus. The folder of one image may be named by
    itself, where the image lies beside its maps. Hidden files are skipped. Raises TruthError.
    """
    if is_nuclei(folder) and _image_beside(folder) is not None:
        return {_called(folder): read_nuclei(folder)}
    if inner := next((folder / name for name in _INNER if (folder / name).is_dir()), None):
        return read_label_maps(inner)
    entries = visible(folder)
    if (own := class_maps(folder)) and own[0].name in maps_beside([path.name for path in entries]):
        return {_called(folder): read_class_maps(folder, own)}
    maps = _maps(entries)
    found = [(path, image) for path in entries if path.is_dir() for image in read_folder(path)]
    found += [(path, _of_file(path, maps)) for path in maps]
    if not found:
        raise TruthError(f"{folder}: expected label maps ({', '.join(SUFFIXES)}), found none")
    images: dict[str, TrueImage] = {}
    counts = Counter(image.id for _, image in found)
    for path, image in sorted(found, key=lambda pair: pair[0]):
        # As images of one stem are called.
        if counts[image.id] > 1 and path.is_dir() and image.id != path.name:
            image = replace(image, id=f"{path.name}_{image.id}")
        if image.id in images:
            raise TruthError(f"{path}: expected one truth of each image, found two of {image.id}")
        images[image.id] = image
    return images


def _called(folder: Path) -> str:
    """A folder's own name: of "." too, and of a link not that of what it leads to."""
    return Path(os.path.abspath(folder)).name


def _pictures(entries: Sequence[Path]) -> list[Path]:
    return [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]


def named_maps(entries: Sequence[Path]) -> list[Path]:
    """What is called `<id>_cp_masks`, or else `<id>_masks` where it lies beside its image, or all is so.

    `entries` are those of one folder.
    """
    pictures = _pictures(entries)
    cellpose, other = ([path for path in pictures if path.stem.endswith(end)] for end in MAP_ENDS)
    beside = maps_beside([path.name for path in entries])
    return cellpose or (other if other == pictures or any(path.name in beside for path in other) else [])


def _maps(entries: Sequence[Path]) -> list[Path]:
    """The pictures that are label maps: those called so after their images, where there are any, else all."""
    return named_maps(entries) or _pictures(entries)


def _of_file(path: Path, maps: Sequence[Path]) -> TrueImage:
    """The image that a label map is called after, as one of `maps`."""
    labels = _read_labels(path)
    end = next((end for end in MAP_ENDS if all(other.stem.endswith(end) for other in maps)), "")
    return TrueImage(path.stem.removesuffix(end), _hw(labels), "", _cells(labels))


def read_folder(folder: Path) -> list[TrueImage]:
    """The image that a folder is called after, or those that its label maps are; none without truth.

    Raises TruthError.
    """
    if is_nuclei(folder):
        return [read_nuclei(folder)]
    entries = visible(folder)
    files = class_maps(folder)
    if not files and (maps := named_maps(entries)):
        found = [_of_file(path, maps) for path in maps]
        return [replace(image, id=folder.name) if image.id == "image" else image for image in found]
    files = files or [path for path in _pictures(entries) if path.stem.lower() != "image"]
    return [read_class_maps(folder, files)] if files else []


def class_maps(folder: Path) -> list[Path]:
    """The label maps `class*` of a folder; what lies beside them, such as `image.tif`, is none."""
    return [path for path in _pictures(visible(folder)) if path.stem.lower().startswith("class")]


def read_class_maps(folder: Path, files: Sequence[Path]) -> TrueImage:
    """The image that `folder` is called after, from a label map for each class, at least one.

    The cell type is the file's stem where one class alone has cells. Raises TruthError.
    """
    maps: dict[str, NDArray[Any]] = {}
    for file in files:
        if file.stem in maps:
            raise TruthError(f"{file}: expected one label map of each class, found two of {file.stem}")
        maps[file.stem] = _read_labels(file)
    size_hw = _one_size(folder, maps.values())
    cells = {name: _cells(labels) for name, labels in maps.items()}
    present = [name for name, masks in cells.items() if masks]
    every = tuple(mask for masks in cells.values() for mask in masks)
    kinds = tuple(name for name, masks in cells.items() for _ in masks)
    if len(present) == 1:
        return TrueImage(_called(folder), size_hw, present[0], every)
    return TrueImage(_called(folder), size_hw, "", every, kinds)


def is_nuclei(folder: Path) -> bool:
    """Whether a folder is one image of the Data Science Bowl of 2018: `masks/` beside `images/`."""
    return (folder / "masks").is_dir() and (folder / "images").is_dir()


def read_nuclei(folder: Path) -> TrueImage:
    """The image that `folder` is called after, from `masks/` with a picture for each nucleus.

    What is not 0 is the nucleus. Where there is no nucleus, the size is that of the one picture in
    `images/`. Raises TruthError.
    """
    masks = {path: _read_nucleus(path) for path in _maps(visible(folder / "masks"))}
    if not masks:
        return TrueImage(_called(folder), _size_of_image(folder), "", ())
    size_hw = _one_size(folder, masks.values())
    cells = tuple(cell for mask in masks.values() for cell in _cells(mask))
    return TrueImage(_called(folder), size_hw, "", cells, empty=len(masks) - len(cells))


def _read_nucleus(path: Path) -> Bool:
    labels = _read_labels(path)
    values = np.unique(labels)
    if np.count_nonzero(values) > 1:
        raise TruthError(f"{path}: expected one nucleus a file, 0 around it, found {len(values)} values")
    return np.asarray(labels != 0)


def _image_beside(folder: Path) -> ImageFile | None:
    """The picture in `images/` that is called as the folder is."""
    pictures = (p for p in visible(folder / "images") if p.suffix.lower() in EXTENSIONS)
    return next((ImageFile(p.stem, p) for p in pictures if p.stem == _called(folder)), None)


def _size_of_image(folder: Path) -> tuple[int, int]:
    image = _image_beside(folder)
    if image is None:
        raise TruthError(f"{folder}: expected nuclei in masks/, or images/{_called(folder)}, found neither")
    try:
        return image_size(image)
    except ImageError as error:
        raise TruthError(str(error)) from None


def _one_size(folder: Path, maps: Any) -> tuple[int, int]:
    sizes = {_hw(labels) for labels in maps}
    if len(sizes) > 1:
        found = ", ".join(map(size_text, sorted(sizes)))
        raise TruthError(f"{folder}: expected label maps of one size, found {found}")
    return sizes.pop()


def _hw(labels: NDArray[Any]) -> tuple[int, int]:
    return int(labels.shape[0]), int(labels.shape[1])


def _read_labels(path: Path) -> NDArray[Any]:
    """Whole numbers (H, W) from 0, of the file's own type."""
    try:
        values = stored_values(path.read_bytes())
    except ImageError as error:
        raise TruthError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file fails in any way
        raise TruthError(f"{path}: expected a label map, found {first_line(error)}") from None
    labels = _one_channel(values)
    if labels is None:
        raise TruthError(f"{path}: expected a number for each pixel, found {values.shape[2]} channels")
    if fault := _fault(labels):
        raise TruthError(f"{path}: expected whole numbers from 0, found {fault} ({labels.dtype})")
    return labels


def _one_channel(values: NDArray[Any]) -> NDArray[Any] | None:
    """(H, W) of a picture whose colours are equal, alpha aside; None where they are not."""
    if values.ndim == 2:
        return values
    colours = values.shape[2] - (values.shape[2] in (2, 4))
    if colours not in (1, 3) or (values[..., :colours] != values[..., :1]).any():
        return None
    return values[..., 0]


def _fault(labels: NDArray[Any]) -> str:
    """What forbids to count cells by these numbers; "" where nothing does."""
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            return "NaN" if np.isnan(labels).any() else "infinity"
        fractions = labels != np.floor(labels)
        if fractions.any():
            return f"the fraction {labels[fractions][0]:g}"
    lowest = labels.min(initial=0)
    return f"{lowest:g}" if lowest < 0 else ""


def _cells(labels: NDArray[Any]) -> tuple[Mask, ...]:
    """One mask for each label that occurs; labels need not be consecutive."""
    values, dense = np.unique(labels, return_inverse=True)
    first = 0 if values[0] == 0 else 1
    numbered = (dense.reshape(labels.shape) + first).astype(np.int32)
    return tuple(split_label_map(numbered, len(values) - 1 + first))
