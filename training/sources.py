"""Annotated images from folders: Kaggle's train.csv, COCO's JSON, label maps or nuclei, told by content.

What cannot be trained on is left out, counted and reported; what no training should begin with is an
error.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import pandas as pd

from sartorius_infer.cells.rle import Mask
from sartorius_infer.errors import ImageError
from sartorius_infer.evaluate.label_maps import class_maps, is_nuclei, named_maps, read_folder
from sartorius_infer.evaluate.train_csv import COLUMNS
from sartorius_infer.evaluate.true_image import paths_of
from sartorius_infer.evaluate.truth import TrueImage, read_truth
from sartorius_infer.files import as_id, distinct_ids, visible
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.names import is_image, maps_beside, match_names
from sartorius_infer.images.read import read_image
from sartorius_infer.types import UInt8
from training.errors import TrainingError
from training.recipe import Recipe

CACHED_IMAGES = 1024


@dataclass(frozen=True, eq=False)
class Example:
    """One image with its cells.

    `type` is the class of its cells ("" for several); labels count from 1 in the recipe's classes, and a
    mask of label 0 is what may be a cell or not, of which nothing is learnt; `group` is what it shares with
    images that must not be told apart from it, its own id if nothing; `told_in` the name of the
    annotations' file, without its suffix.
    """

    source: str
    file: ImageFile
    size_hw: tuple[int, int]
    type: str
    masks: tuple[Mask, ...]
    labels: tuple[int, ...]
    group: str
    told_in: str = ""

    @property
    def key(self) -> str:
        """Source and id, which no two examples share."""
        return f"{self.source}/{self.file.id}"

    def pixels(self) -> UInt8:
        """The image, uint8 (H, W) or (H, W, 3)."""
        return _pixels(self.file)

    @property
    def cells(self) -> tuple[Mask, ...]:
        """The masks of what is a cell."""
        return tuple(mask for mask, label in zip(self.masks, self.labels, strict=True) if label)

    def truth(self) -> TrueImage:
        """What the metric compares with."""
        return TrueImage(self.file.id, self.size_hw, self.type, self.cells)


@lru_cache(maxsize=CACHED_IMAGES)
def _pixels(file: ImageFile) -> UInt8:
    return read_image(file).pixels


@dataclass
class Skipped:
    """What was left out, by reason: how many, and the first few."""

    counts: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count one more, or several of one image."""
        self.counts[reason] += count
        self.named.setdefault(reason, []).append(name)

    def lines(self) -> list[str]:
        """A line for each reason."""
        return [
            f"{count} {reason}: {', '.join(self.named[reason][:3])}{', ...' * (len(self.named[reason]) > 3)}"
            for reason, count in sorted(self.counts.items())
        ]


def parse_data(arguments: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` or a folder, which is called by its own name; raises TrainingError for anything else."""
    found: dict[str, Path] = {}
    for argument in arguments:
        name, given, rest = argument.partition("=")
        path = Path(rest if given else argument)
        name = name if given else path.resolve().name
        if not path.is_dir():
            raise TrainingError(f"--data {argument}: expected a folder, found none at {path}")
        if name in found:
            raise TrainingError(f"--data {argument}: expected each name once, found {name} twice")
        found[name] = path
    return found


def read_sources(folders: dict[str, Path], recipe: Recipe) -> tuple[tuple[Example, ...], Skipped]:
    """The examples of all folders, by source and id, and what was left out.

    Raises TrainingError where a folder holds no annotations or nothing to train on.
    """
    examples: list[Example] = []
    skipped = Skipped()
    for name, folder in folders.items():
        own = _read_source(name, folder, recipe, skipped)
        if not own:
            raise TrainingError(
                f"{folder}: expected images with cells, found none; {'; '.join(skipped.lines())}"
            )
        examples += own
    return tuple(examples), skipped


def annotated(places: Sequence[Path], ids: Sequence[str]) -> set[str]:
    """Which of some images, by id, have annotations: in files of them, or folders as `read_sources` takes.

    Raises TrainingError and TruthError.
    """
    found: set[str] = set()
    for told in (path for place in places for path in (_annotations(place) if place.is_dir() else [place])):
        if not told.exists():
            raise TrainingError(f"{told}: expected annotations or a folder of them, found nothing there")
        found |= set(_matched(told, _truth(told), ids))
    return found


def _read_source(name: str, folder: Path, recipe: Recipe, skipped: Skipped) -> list[Example]:
    files = _image_files(folder)
    examples: dict[str, Example] = {}
    for told in _annotations(folder):
        truth = _truth(told)
        groups = _groups(told, recipe.split.group)
        known = _matched(told, truth, files)
        for image in truth.values():
            if image.id not in known:
                skipped.add("annotated images without a file", f"{name}/{image.id}")
                continue
            example = _example(name, ImageFile(image.id, files[known[image.id]].path), image, recipe, skipped)
            if example is not None and image.id in examples:
                raise TrainingError(f"{told}: {image.id}: expected its cells in one file, found them in two")
            if example is not None:
                group = groups.get(image.id, image.id)
                examples[image.id] = replace(example, group=group, told_in=told.stem)
    return [examples[key] for key in sorted(examples)]


def _matched(told: Path, truth: Mapping[str, TrueImage], files: Iterable[str]) -> dict[str, str]:
    """The file's id of each annotated image that has one: where it is called otherwise, too."""
    try:
        return {known: said for said, known in match_names(files, truth, paths_of(truth)).items()}
    except ValueError as error:
        raise TrainingError(f"{told}: {error}") from None


def _annotations(folder: Path) -> list[Path]:
    """Every CSV with train.csv's columns and every COCO JSON; else the folder of label maps.

    JSONs lie in the folder or in `annotations/`, of which LIVECell's own `LIVECell/` repeats the rest.
    """
    found = [path for path in _shown(folder, folder.glob("*.csv")) if _is_train_csv(path)]
    found += _shown(folder, folder.glob("*.json"))
    for name in ("annotations/LIVECell", "annotations"):
        found = found or _shown(folder, (folder / name).rglob("*.json"))
    for name in ("labels", "masks"):
        found = found or [path for path in [folder / name] if path.is_dir()]
    if not found and (named_maps(visible(folder)) or any(_has_truth(own) for own in _folders(folder))):
        found = [folder]
    if not found:
        raise TrainingError(
            f"{folder}: expected train.csv, a COCO JSON, labels/ of label maps, <id>_masks.tif, "
            "<id>/class1.tif or <id>/masks/, found none"
        )
    return found


def _has_truth(folder: Path) -> bool:
    return bool(is_nuclei(folder) or class_maps(folder) or named_maps(visible(folder)))


def _shown(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Paths in a folder, sorted, without what is hidden or lies in something hidden."""
    return sorted(
        path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _folders(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.is_dir()]


def _truth(annotations: Path) -> dict[str, TrueImage]:
    if not annotations.is_dir() or annotations.name in ("labels", "masks"):
        return read_truth(annotations)
    if named_maps(visible(annotations)):
        return read_truth(annotations)
    # Images lie in folders, beside their truth, and anything else beside these.
    found: dict[str, TrueImage] = {}
    for image in (i for own in _folders(annotations) if _has_truth(own) for i in read_folder(own)):
        own_id = as_id(image.id)
        if own_id in found:
            raise TrainingError(f"{annotations}: expected one truth of each image, found two of {own_id}")
        found[own_id] = replace(image, id=own_id)
    return found


def _is_train_csv(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return set(COLUMNS) <= set(next(csv.reader(file), []))


def _image_files(folder: Path) -> dict[str, ImageFile]:
    """Images by id, in `images/`, `train/` or below the folder, but for label maps."""
    roots = [path for path in (folder / "images", folder / "train") if path.is_dir()] or [folder]
    files: dict[str, ImageFile] = {}
    for root in roots:
        paths = [path for path in _shown(root, root.rglob("*")) if is_image(path.name)]
        maps = {parent: _maps_in(parent) for parent in {path.parent for path in paths}}
        paths = [p for p in paths if p.name not in maps[p.parent] and not _in_map_folder(p, folder)]
        within = {path: path.relative_to(root) for path in paths}
        for path, image_id in distinct_ids(within).items():
            # What is called "image" is told by its folder alone.
            own = path.stem.lower() == "image"
            image_id = as_id(str(within[path].with_suffix(""))) if own else image_id
            files.setdefault(image_id, ImageFile(image_id, path))
    return files


def _maps_in(folder: Path) -> set[str]:
    return maps_beside([path.name for path in folder.iterdir()])


def _in_map_folder(path: Path, folder: Path) -> bool:
    return bool({"labels", "masks"} & set(path.relative_to(folder).parts[:-1]))


def _groups(annotations: Path, columns: Iterable[str]) -> dict[str, str]:
    """The group of each image by the first of `columns` that a CSV has."""
    if annotations.suffix.lower() != ".csv":
        return {}
    # Not by csv, for which a large mask's annotation is too long a field.
    table = pd.read_csv(annotations, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    column = next((c for c in columns if c in table), None)
    if column is None:
        return {}
    rows = zip(table["id"], table[column], strict=True)
    return {as_id(str(image_id)): f"{column} {value}" for image_id, value in rows if value}


def _example(
    source: str, file: ImageFile, image: TrueImage, recipe: Recipe, skipped: Skipped
) -> Example | None:
    """The example of an image, or None with the reason counted."""
    key = f"{source}/{image.id}"
    try:
        # Read whole, once: a damaged file is better told now than hours later.
        pixels = _pixels(file)
    except ImageError as error:
        skipped.add("images that cannot be read", f"{key} ({error})")
        return None
    size_hw = (int(pixels.shape[0]), int(pixels.shape[1]))
    if size_hw != image.size_hw:
        skipped.add("images of another size than annotated", key)
        return None
    kept = [i for i, mask in enumerate(image.masks) if mask[1].sum() > 0]
    if empty := image.empty + len(image.masks) - len(kept):
        skipped.add("cells without a pixel", key, empty)
    if image.coco and len(image.coco.ids) > 1:
        skipped.add("further ids of a file that is listed before", key, len(image.coco.ids) - 1)
    if image.coco and image.coco.repeated:
        skipped.add("cells of a file's second annotation", key, image.coco.repeated)
    if not kept:
        skipped.add("images without a cell", key)
        return None
    names = [_class_of(source, image.types[i], image.id, recipe) for i in kept]
    labels = tuple(recipe.all_classes.index(name) + 1 for name in names)
    kind = names[0] if len(set(names)) == 1 else ""
    unsure = _crowds(image)
    masks = (*(image.masks[i] for i in kept), *unsure)
    return Example(source, file, size_hw, kind, masks, labels + (0,) * len(unsure), image.id)


def _crowds(image: TrueImage) -> tuple[Mask, ...]:
    """The regions that COCO's `iscrowd` marks, as far as they have pixels."""
    regions = image.coco.regions if image.coco else ()
    return tuple(region.mask for region in regions if region.is_crowd and len(region.mask[0]))


def _class_of(source: str, cell_type: str, image_id: str, recipe: Recipe) -> str:
    place = f"{source}/{cell_type}/{image_id}"
    for pattern, name in recipe.labels.items():
        if fnmatchcase(place, pattern):
            return name
    if cell_type not in recipe.all_classes:
        raise TrainingError(
            f"{place}: expected a class of {', '.join(recipe.all_classes)}, or a pattern of source/type/id "
            "that fits in the recipe's [labels], found neither"
        )
    return cell_type
