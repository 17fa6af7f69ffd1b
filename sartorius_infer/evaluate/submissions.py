"""Submissions as they are scored: the cells of each image, from a CSV or from COCO results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sartorius_infer.cells.rle import Mask, decode
from sartorius_infer.errors import SubmissionError, TruthError, first_line
from sartorius_infer.evaluate.coco_masks import coco_runs
from sartorius_infer.evaluate.image_names import ImageNames
from sartorius_infer.evaluate.true_image import Key, TrueImage
from sartorius_infer.files import as_path, whole
from sartorius_infer.images.names import match_names
from sartorius_infer.output.results import is_results, read_results
from sartorius_infer.output.submission import read_submission

_IS_SAID = re.compile(r"(.*: )?expected ")
"""What this package says is wrong, of an image where it is named; other errors are wrapped."""


@dataclass(frozen=True, eq=False)
class FoundCell:
    """One cell of a submission; a CSV tells neither score nor label, which are 1 then.

    `has_label` is whether `label`, COCO's `category_id`, was told.
    """

    mask: Mask
    score: float = 1.0
    label: int = 1
    has_label: bool = False


Found = Mapping[str, Sequence[FoundCell]]


@dataclass
class _Read:
    """Cells by image, and where in the file each unknown image is named first.

    Of COCO results also which numbers stood for images, and by which id each image was named.
    """

    found: dict[str, list[FoundCell]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    numbers: dict[object, None] = field(default_factory=dict)
    ids: dict[str, Key] = field(default_factory=dict)

    def add(self, entry: Any, sizes: Mapping[str, tuple[int, int]], names: ImageNames) -> None:
        """One entry of COCO results."""
        if not isinstance(entry, dict):
            raise ValueError(f"expected COCO results, found {type(entry).__name__}")
        said = entry["image_id"]
        if not isinstance(said, str):
            self.numbers[said] = None
        image_id = names.find(said)
        if image_id is None or image_id not in sizes:
            self.unknown[str(said)] = ""
            return
        key = names.key(said)
        # Of a file that the truth lists under several ids, the results of the first.
        if key is None or self.ids.setdefault(image_id, key) == key:
            self.found.setdefault(image_id, []).append(_cell(entry, image_id, sizes[image_id]))


def read_found(path: str | Path, truth: Mapping[str, TrueImage]) -> dict[str, list[FoundCell]]:
    """The cells of a submission.csv, or of COCO results (`.json`), by image; sizes are the truth's.

    The `image_id` of results is an id of the truth's `images`, where it is COCO's, or else a name. Results
    name no image without cells: then every image of the truth counts. Raises SubmissionError, naming file,
    line or image, and TruthError for an image without truth, or no image.
    """
    path = as_path(path, "submission")
    found = read_cells(path, _sizes(truth), "of the truth", ImageNames.of(truth))
    return _at_least_one(path, found)


def read_annotated(
    path: Path, truth: Mapping[str, TrueImage]
) -> tuple[dict[str, list[FoundCell]], list[str]]:
    """As `read_found` of the images that have their truth, and the ids of those that have none.

    Raises TruthError where no image is left.
    """
    names = ImageNames.of(truth)
    read = _read(path, _sizes(truth), names)
    if read.unknown and not read.found:
        raise TruthError(f"{path}: expected an image of the truth, found {_named(read, names)}")
    return _at_least_one(path, read.found), [*read.unknown]


def read_cells(
    path: Path,
    sizes: Mapping[str, tuple[int, int]],
    whence: str = "that is there",
    names: ImageNames | None = None,
) -> dict[str, list[FoundCell]]:
    """As `read_found`, of images whose sizes (H, W) are known; `whence` they are, for messages."""
    read = _read(path, sizes, names or ImageNames(sizes))
    for image_id, place in read.unknown.items():
        raise TruthError(f"{path}: {place}expected an image {whence}, found {image_id!r}")
    return read.found


def _sizes(truth: Mapping[str, TrueImage]) -> dict[str, tuple[int, int]]:
    return {image_id: image.size_hw for image_id, image in truth.items()}


def _named(read: _Read, names: ImageNames) -> str:
    """The first unknown images, and what to do where they are numbers that no file explains."""
    some = [*read.unknown][:5]
    advice = "; numbers are ids of a COCO file: score with that file as the truth"
    return ", ".join(some) + advice * (not names.ids and all(whole(i) is not None for i in some))


def _at_least_one(path: Path, found: dict[str, list[FoundCell]]) -> dict[str, list[FoundCell]]:
    if not found:
        raise TruthError(f"{path}: expected a submission with at least one image, found none")
    return found


def _read(path: Path, sizes: Mapping[str, tuple[int, int]], names: ImageNames) -> _Read:
    return _from_coco(path, sizes, names) if is_results(path) else _from_csv(path, sizes, names)


def _from_csv(path: Path, sizes: Mapping[str, tuple[int, int]], names: ImageNames) -> _Read:
    read, rows = _Read(), read_submission(path)
    try:
        called = match_names([row.id for row in rows], sizes, names.paths)
    except ValueError as error:
        raise SubmissionError(f"{path}: {error}") from None
    for row in rows:
        name = called.get(row.id)
        if name is None:
            read.unknown.setdefault(row.id, f"line {row.line}: ")
            continue
        cells = read.found.setdefault(name, [])
        if not row.predicted.strip():
            continue
        try:
            cells.append(FoundCell(decode(row.predicted, sizes[name])))
        except ValueError as error:
            raise SubmissionError(f"{path}: line {row.line}: {row.id}: {error}") from None
    return read


def _from_coco(path: Path, sizes: Mapping[str, tuple[int, int]], names: ImageNames) -> _Read:
    read, place = _Read(), ""
    try:
        entries = read_results(path)
        names = names.calling(entry.get("image_id") for entry in entries if isinstance(entry, dict))
        for index, entry in enumerate(entries, start=1):
            place = f"entry {index}: "
            read.add(entry, sizes, names)
        place = ""
        names.require_one_kind(read.numbers)
    except SubmissionError:
        raise
    except Exception as error:  # a malformed file fails in any way, in pycocotools too
        raise SubmissionError(f"{path}: {place}{_reason(error)}") from None
    # Results name no image without cells; of other images alone, they say nothing of these.
    if read.found or not read.unknown:
        read.found = {image_id: read.found.get(image_id, []) for image_id in sizes}
    return read


def _reason(error: Exception) -> str:
    """What is wrong with results, as other messages say it."""
    said = first_line(error)
    if isinstance(error, ValueError) and _IS_SAID.match(said):
        return said
    return f"expected COCO results, found {type(error).__name__}: {said}"


def _cell(entry: Mapping[str, Any], image_id: str, size_hw: tuple[int, int]) -> FoundCell:
    try:
        if not entry.get("segmentation"):
            raise ValueError("expected a segmentation, found none")
        mask, score = coco_runs(entry["segmentation"], size_hw), float(entry["score"])
        if not math.isfinite(score):
            raise ValueError(f"expected a finite score, found {score}")
        if "category_id" not in entry:
            return FoundCell(mask, score)
        label = whole(entry["category_id"])
        if label is None:
            raise ValueError(f"expected a number as category_id, found {entry['category_id']!r}")
    except ValueError as error:
        raise ValueError(f"{image_id}: {first_line(error)}") from None
    return FoundCell(mask, score, label, has_label=True)
