"""Everything that is wrong with a submission, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sartorius_infer.cells.rle import decode, shared_pixels
from sartorius_infer.competition import COMPETITION_SIZE_HW
from sartorius_infer.files import as_id, as_path
from sartorius_infer.output.submission import Row, read_submission
from sartorius_infer.types import Int64

# What other tools write for an image without cells; the competition wants an empty field.
_PLACEHOLDERS = ("0 1", "0 0", "1 0")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a submission: at `line`, or in the file as a whole (line 0)."""

    line: int
    id: str
    message: str


def check_submission(
    path: str | Path,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    sample_ids: Sequence[str] | None = None,
) -> list[Problem]:
    """Everything wrong with a submission, each problem once, sorted by line.

    sizes       (H, W) of each image; those not given are taken to be the competition's 520 x 704
    sample_ids  ids in the order the rows must follow; without them, that of `sizes`

    A row that repeats another, or whose pairs are malformed, is not compared with the masks of
    its image. Raises SubmissionError if the file cannot be read at all.
    """
    path = as_path(path, "submission")
    rows = read_submission(path)
    images: dict[str, list[Row]] = {}
    for row in rows:
        if row.id:
            images.setdefault(row.id, []).append(row)
    problems = [Problem(row.line, "", "empty id") for row in rows if not row.id]
    # Ids mean the same image however its letters are composed; problems name it as the file does.
    written = {as_id(name): name for name in images}
    if sizes is not None:
        sizes = {written.get(as_id(name), name): size_hw for name, size_hw in sizes.items()}
    if sample_ids is not None:
        sample_ids = [written.get(as_id(name), name) for name in sample_ids]
    problems += _unknown_and_missing(images, sizes, sample_ids)
    problems += _scattered(rows)
    order = sample_ids if sample_ids is not None else list(sizes or ())
    problems += _disordered(images, order)
    for name, own in images.items():
        problems += _blanks(own)
        problems += _masks(own, (sizes or {}).get(name, COMPETITION_SIZE_HW))
    return sorted(problems, key=lambda problem: problem.line)


def _unknown_and_missing(
    images: Mapping[str, list[Row]],
    sizes: Mapping[str, tuple[int, int]] | None,
    sample_ids: Sequence[str] | None,
) -> Iterator[Problem]:
    """Ids that the sample or the images do not have, and theirs that the file does not have."""
    sources = {"the sample submission": sample_ids, "the images": sizes}
    known = {name: dict.fromkeys(ids) for name, ids in sources.items() if ids is not None}
    for image_id, rows in images.items():
        if absent := [name for name, ids in known.items() if image_id not in ids]:
            yield Problem(rows[0].line, image_id, f"unknown id: not in {' or '.join(absent)}")
    for image_id in dict.fromkeys(image_id for ids in known.values() for image_id in ids):
        if image_id not in images:
            where = [name for name, ids in known.items() if image_id in ids]
            yield Problem(0, image_id, f"missing id: in {' and '.join(where)}, without a row")


def _scattered(rows: Sequence[Row]) -> Iterator[Problem]:
    """Rows apart from the earlier ones of their image; rows without an id do not part others."""
    last: dict[str, int] = {}
    before = ""
    for row in rows:
        if not row.id:
            continue
        if row.id != before and row.id in last:
            yield Problem(row.line, row.id, f"apart from its image's rows, which end at line {last[row.id]}")
        last[row.id] = row.line
        before = row.id


def _disordered(images: Mapping[str, list[Row]], order: Sequence[str]) -> Iterator[Problem]:
    """Images whose rows begin after those of one that `order` puts later."""
    places = {image_id: place for place, image_id in reversed(list(enumerate(order)))}
    furthest = None
    for image_id, rows in images.items():
        if image_id not in places:
            continue
        if furthest is None or places[image_id] > places[furthest]:
            furthest = image_id
        else:
            line = images[furthest][0].line
            yield Problem(rows[0].line, image_id, f"out of order: belongs before {furthest!r}, line {line}")


def _blanks(rows: Sequence[Row]) -> Iterator[Problem]:
    """Blank rows of one image that stand beside masks, or beside another blank row."""
    blanks = [row for row in rows if not row.predicted.strip()]
    mask = next((row for row in rows if row.predicted.strip()), None)
    if mask is not None:
        for row in blanks:
            yield Problem(row.line, row.id, f"blank, although line {mask.line} has a mask")
    else:
        for row in blanks[1:]:
            yield Problem(row.line, row.id, f"blank, as line {blanks[0].line} is already")


def _masks(rows: Sequence[Row], size_hw: tuple[int, int]) -> Iterator[Problem]:
    """Repeated rows of one image, malformed ones, and masks that share pixels."""
    lines: dict[str, int] = {}
    masks: list[tuple[Int64, Int64]] = []
    sound: list[Row] = []
    for row in rows:
        text = row.predicted.strip()
        if text in lines:
            yield Problem(row.line, row.id, f"same mask as line {lines[text]}")
        elif text in _PLACEHOLDERS:
            yield Problem(row.line, row.id, f"{text!r} is no mask: an image without cells is left empty")
        elif text:
            try:
                masks.append(decode(text, size_hw))
                sound.append(row)
            except ValueError as error:
                yield Problem(row.line, row.id, str(error))
        if text:
            lines.setdefault(text, row.line)
    for first, second, pixels in shared_pixels(masks):
        row = sound[second]
        yield Problem(row.line, row.id, f"shares {pixels} pixel(s) with line {sound[first].line}")
