"""Submissions as they are scored: the cells of each image, from a CSV or from COCO results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sartorius_infer.cells.rle import Mask, decode
from sartorius_infer.errors import SubmissionError, TruthError, first_line
from sartorius_infer.evaluate.coco_truth import coco_runs
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.files import as_path
from sartorius_infer.output.submission import read_submission


@dataclass(frozen=True, eq=False)
class FoundCell:
    """One cell of a submission; a CSV tells neither score nor label, which are 1 then."""

    mask: Mask
    score: float = 1.0
    label: int = 1


Found = Mapping[str, Sequence[FoundCell]]


def read_found(path: str | Path, truth: Mapping[str, TrueImage]) -> dict[str, list[FoundCell]]:
    """The cells of a submission.csv, or of COCO results (`.json`), by image; sizes are the truth's.

    COCO results name no image without cells: then every image of the truth counts. Raises
    SubmissionError, naming file, line or image, and TruthError for an image without truth, or no image.
    """
    path = as_path(path, "submission")
    found = read_cells(path, {image_id: image.size_hw for image_id, image in truth.items()}, "of the truth")
    return _at_least_one(path, found)


def read_annotated(
    path: Path, truth: Mapping[str, TrueImage]
) -> tuple[dict[str, list[FoundCell]], list[str]]:
    """As `read_found` of the images that have their truth, and the ids of those that have none.

    Raises TruthError where no image is left.
    """
    found, unknown = _read(path, {image_id: image.size_hw for image_id, image in truth.items()})
    if unknown and not found:
        raise TruthError(f"{path}: expected an image of the truth, found {', '.join([*unknown][:5])}")
    return _at_least_one(path, found), [*unknown]


def read_cells(
    path: Path, sizes: Mapping[str, tuple[int, int]], whence: str = "that is there"
) -> dict[str, list[FoundCell]]:
    """As `read_found`, of images whose sizes (H, W) are known; `whence` they are, for messages."""
    found, unknown = _read(path, sizes)
    for image_id, place in unknown.items():
        raise TruthError(f"{path}: {place}expected an image {whence}, found {image_id!r}")
    return found


def _at_least_one(path: Path, found: dict[str, list[FoundCell]]) -> dict[str, list[FoundCell]]:
    if not found:
        raise TruthError(f"{path}: expected a submission with at least one image, found none")
    return found


_Read = tuple[dict[str, list[FoundCell]], dict[str, str]]
"""Cells by image, and where in the file each unknown image is named first."""


def _read(path: Path, sizes: Mapping[str, tuple[int, int]]) -> _Read:
    return (_from_coco if path.suffix.lower() == ".json" else _from_csv)(path, sizes)


def _from_csv(path: Path, sizes: Mapping[str, tuple[int, int]]) -> _Read:
    found: dict[str, list[FoundCell]] = {}
    unknown: dict[str, str] = {}
    for row in read_submission(path):
        if row.id not in sizes:
            unknown.setdefault(row.id, f"line {row.line}: ")
            continue
        cells = found.setdefault(row.id, [])
        if not row.predicted.strip():
            continue
        try:
            cells.append(FoundCell(decode(row.predicted, sizes[row.id])))
        except ValueError as error:
            raise SubmissionError(f"{path}: line {row.line}: {row.id}: {error}") from None
    return found, unknown


def _from_coco(path: Path, sizes: Mapping[str, tuple[int, int]]) -> _Read:
    found: dict[str, list[FoundCell]] = {}
    unknown: dict[str, str] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            image_id = str(entry["image_id"])
            if image_id not in sizes:
                unknown[image_id] = ""
                continue
            mask = coco_runs(entry["segmentation"], sizes[image_id])
            cell = FoundCell(mask, float(entry["score"]), int(entry["category_id"]))
            found.setdefault(image_id, []).append(cell)
    except Exception as error:  # a malformed file fails in any way, in pycocotools too
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise SubmissionError(f"{path}: expected COCO results, found {reason}") from None
    # Results name no image without cells; of other images alone, they say nothing of these.
    return ({i: found.get(i, []) for i in sizes} if found or not unknown else {}), unknown
