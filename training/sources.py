"""Annotated images from folders: Kaggle's train.csv, COCO's JSON, or label maps, told apart by content.

What cannot be trained on is left out, counted and reported; what no training should begin with is an
error.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from sartorius_infer.errors import ImageError, SartoriusError
from sartorius_infer.images import EXTENSIONS, ImageFile, image_size, read_image
from sartorius_infer.metric import Mask
from sartorius_infer.truth import COLUMNS, TrueImage, read_truth
from sartorius_infer.types import UInt8
from training.errors import TrainingError
from training.recipe import Recipe

CACHED_IMAGES = 1024


@dataclass(frozen=True, eq=False)
class Example:
    """One image with its cells.

    `type` is the class of its cells ("" for several); labels count from 1 in the recipe's classes;
    `group` is what it shares with images that must not be told apart from it, its own id if nothing.
    """

    source: str
    file: ImageFile
    size_hw: tuple[int, int]
    type: str
    masks: tuple[Mask, ...]
    labels: tuple[int, ...]
    group: str

    @property
    def key(self) -> str:
        """Source and id, which no two examples share."""
        return f"{self.source}/{self.file.id}"

    def pixels(self) -> UInt8:
        """The image, uint8 (H, W) or (H, W, 3)."""
        return _pixels(self.file)

    def truth(self) -> TrueImage:
        """What the metric compares with."""
        return TrueImage(self.file.id, self.size_hw, self.type, self.masks)


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
            raise TrainingError(f"{folder}: expected images with cells, found none; {'; '.join(skipped.lines())}")
        examples += own
    return tuple(examples), skipped


def _read_source(name: str, folder: Path, recipe: Recipe, skipped: Skipped) -> list[Example]:
    files = _image_files(folder)
    examples: dict[str, Example] = {}
    for annotations in _annotation_files(folder):
        groups = _groups(annotations, recipe.split.group)
        for image in read_truth(annotations).values():
            if image.id not in files:
                skipped.add("annotated images without a file", f"{name}/{image.id}")
                continue
            example = _example(name, files[image.id], image, groups.get(image.id, image.id), recipe, skipped)
            if example is not None and image.id in examples:
                raise TrainingError(f"{annotations}: {image.id}: expected its cells in one file, found them in two")
            if example is not None:
                examples[image.id] = example
    return [examples[key] for key in sorted(examples)]


def _annotation_files(folder: Path) -> list[Path]:
    """Every train*.csv of Kaggle's columns, every COCO JSON, or the folder of label maps."""
    tables = [path for path in sorted(folder.glob("*.csv")) if _is_train_csv(path)]
    found = tables + sorted(folder.glob("*.json"))
    if not found:
        found = [path for path in (folder / "labels", folder / "masks") if path.is_dir()]
    if not found:
        raise TrainingError(
            f"{folder}: expected train.csv, a COCO JSON, or a folder labels/ of label maps, found none"
        )
    return found


def _is_train_csv(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return set(COLUMNS) <= set(next(csv.reader(file), []))


def _image_files(folder: Path) -> dict[str, ImageFile]:
    """Images by id, in `images/`, `train/` or below the folder, but for label maps."""
    roots = [path for path in (folder / "images", folder / "train") if path.is_dir()] or [folder]
    files: dict[str, ImageFile] = {}
    for path in sorted(p for root in roots for p in root.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and not {"labels", "masks"} & set(path.parts[:-1]):
            files.setdefault(path.stem, ImageFile(path.stem, path))
    return files


def _groups(annotations: Path, columns: Iterable[str]) -> dict[str, str]:
    """The group of each image by the first of `columns` that a CSV has."""
    if annotations.suffix.lower() != ".csv":
        return {}
    with annotations.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        column = next((c for c in columns if c in (rows.fieldnames or ())), None)
        return {row["id"]: f"{column} {row[column]}" for row in rows if row[column]} if column else {}


def _example(
    source: str, file: ImageFile, image: TrueImage, group: str, recipe: Recipe, skipped: Skipped
) -> Example | None:
    """The example of an image, or None with the reason counted."""
    key = f"{source}/{image.id}"
    try:
        size_hw = image_size(file)
    except ImageError as error:
        skipped.add("images that cannot be read", f"{key} ({error})")
        return None
    if size_hw != image.size_hw:
        skipped.add("images of another size than annotated", key)
        return None
    kept = [i for i, mask in enumerate(image.masks) if mask[1].sum() > 0]
    if len(kept) < len(image.masks):
        skipped.add("cells without a pixel", key, len(image.masks) - len(kept))
    if not kept:
        skipped.add("images without a cell", key)
        return None
    types = image.mask_types or (image.cell_type,) * len(image.masks)
    names = [_class_of(source, types[i], image.id, recipe) for i in kept]
    labels = tuple(recipe.all_classes.index(name) + 1 for name in names)
    kind = names[0] if len(set(names)) == 1 else ""
    return Example(source, file, size_hw, kind, tuple(image.masks[i] for i in kept), labels, group)


def _class_of(source: str, cell_type: str, image_id: str, recipe: Recipe) -> str:
    place = f"{source}/{cell_type}/{image_id}"
    for pattern, name in recipe.labels.items():
        if fnmatchcase(place, pattern):
            return name
    if cell_type not in recipe.all_classes:
        raise TrainingError(
            f"{place}: expected a class of {', '.join(recipe.all_classes)}, or a pattern of source/type/id in "
            f"the recipe's [labels] that fits, found neither"
        )
    return cell_type


def require_readable(examples: Iterable[Example], skipped: Skipped) -> tuple[Example, ...]:
    """The examples whose images decode; the others are counted. Each image is read once."""
    kept = []
    for example in examples:
        try:
            example.pixels()
            kept.append(example)
        except SartoriusError as error:
            skipped.add("images that cannot be read", f"{example.key} ({error})")
    return tuple(kept)



