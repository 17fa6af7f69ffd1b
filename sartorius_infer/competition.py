"""Facts of the competition: its classes, rules that fit them, its image size, where it is mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sartorius_infer.errors import ImageError

if TYPE_CHECKING:
    from sartorius_infer.manifest.rules import Rules

COMPETITION_SIZE_HW = (520, 704)
INPUT = Path("/kaggle/input")
"""Where Kaggle mounts what a notebook reads."""

COMPETITION_CLASSES = ("shsy5y", "astro", "cort")


# Score thresholds that won with a single ResNet-50, and the 1st percentile of true areas, per class.
_COMPETITION_RULES = {"shsy5y": (0.15, 47), "astro": (0.35, 107), "cort": (0.55, 63)}


def default_classes(count: int) -> tuple[str, ...]:
    """Class names of a bare checkpoint: the competition's for three, "cell" for one, else numbered."""
    if count == len(COMPETITION_CLASSES):
        return COMPETITION_CLASSES
    return ("cell",) if count == 1 else tuple(f"class{i}" for i in range(1, count + 1))


def default_rules(classes: Sequence[str]) -> Rules:
    """Rules of a bare checkpoint: the competition's known thresholds, else a score of 0.5."""
    # Here, since who asks for the image size alone need not wait for pydantic.
    from sartorius_infer.manifest.rules import ClassRule, Rules

    known = {c: _COMPETITION_RULES[c] for c in classes if c in _COMPETITION_RULES}
    return Rules(per_class={c: ClassRule(score=score, min_area=area) for c, (score, area) in known.items()})


def any_score(classes: Sequence[str]) -> Rules:
    """Rules for networks that chose their cells themselves, by other measures than the score."""
    from sartorius_infer.manifest.rules import ClassRule, Rules

    return Rules(per_class={c: ClassRule(score=0.0) for c in classes})


_NOT_MOUNTS = {"train", "test", "train_semi_supervised", "images", "LIVECell_dataset_2021"}


def find_competition(root: Path = INPUT) -> tuple[Path, Path] | None:
    """The folder of test images and the sample submission of a competition mounted under `root`.

    That is `test` beside `sample_submission.csv`, at most four folders down. Of several, the one
    whose folder is named after Sartorius; None if there is none.
    Raises ImageError if the choice is not clear.
    """
    found = list({folder.resolve(): folder for folder in _competitions(root, depth=4)}.values())
    chosen = [folder for folder in found if "sartorius" in folder.name.lower()] or found
    if len(chosen) > 1:
        listed = ", ".join(str(folder) for folder in chosen)
        raise ImageError(f"{root}: expected one competition, found {len(chosen)}: {listed}")
    return (chosen[0] / "test", chosen[0] / "sample_submission.csv") if chosen else None


def _competitions(folder: Path, depth: int) -> Iterator[Path]:
    """Folders at or below `folder` that look like the competition's, none inside another."""
    inner: list[str] = []
    try:
        marked = (folder / "sample_submission.csv").is_file() and (folder / "test").is_dir()
        if depth and not marked:
            with os.scandir(folder) as entries:
                inner = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:  # what cannot be listed cannot be the mount
        return
    if marked:
        yield folder
    for name in inner:
        if name not in _NOT_MOUNTS and not name.startswith("."):
            yield from _competitions(folder / name, depth - 1)
