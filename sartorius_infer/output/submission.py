"""The files that leave the package: the competition's submission.csv, and COCO results as JSON.

Both are streamed, image by image, into a file that appears whole or not at all. A submission,
whoever wrote it, can be read back and checked.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self, TextIO

from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import decode, shared_pixels
from sartorius_infer.competition import COMPETITION_SIZE_HW
from sartorius_infer.errors import SubmissionError
from sartorius_infer.files import as_id, as_path, atomic_file
from sartorius_infer.types import Int64

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "predicted")
# What other tools write for an image without cells; the competition wants an empty field.
_PLACEHOLDERS = ("0 1", "0 0", "1 0")
_LINE_BREAK = re.compile(r"\r\n?|\n")


class ResultWriter(ABC):
    """Streams one image after another into `path`, replaced once the block ends well.

    If the block raises, an earlier file stays as it was. Raises SubmissionError if the file
    cannot be written, as soon as the block is entered where that can be known.
    """

    _head: ClassVar[str]
    _tail: ClassVar[str]

    def __init__(self, path: Path) -> None:
        """Touch nothing yet: the file is opened on entry."""
        self.path = path
        self._stream = _stream(path, self._head, self._tail)

    def __enter__(self) -> Self:
        """Open the file."""
        with _writing(self.path):
            self._file = self._stream.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the file in its place, or after an error remove it."""
        with _writing(self.path):
            self._stream.__exit__(kind, error, trace)

    @abstractmethod
    def encode(self, instances: Instances) -> list[str]:
        """The text of one image's cells, a piece for each; safe to call from any thread."""

    @abstractmethod
    def encode_blank(self, image_id: str) -> list[str]:
        """The text that says that an image has no cells."""

    @abstractmethod
    def write(self, pieces: Sequence[str]) -> None:
        """Write what was encoded of one image."""

    def add(self, instances: Instances) -> None:
        """Write the cells of one image; a cell without pixels is left out."""
        self.write(self.encode(instances))

    def blank(self, image_id: str) -> None:
        """Write that an image has no cells."""
        self.write(self.encode_blank(image_id))


class SubmissionWriter(ResultWriter):
    """The competition's CSV: a row "id,predicted" per cell, one with nothing predicted for none."""

    _head = ",".join(COLUMNS) + "\n"
    _tail = ""

    def encode(self, instances: Instances) -> list[str]:
        """A line of each cell that has pixels."""
        return encode_rows(instances.image_id, [rle for rle in instances.rle() if rle] or [""])

    def encode_blank(self, image_id: str) -> list[str]:
        """One line with nothing predicted."""
        return encode_rows(image_id, [""])

    def write(self, pieces: Sequence[str]) -> None:
        """Write the lines of one image."""
        with _writing(self.path):
            self._file.writelines(pieces)


def encode_rows(image_id: str, rles: Sequence[str]) -> list[str]:
    """The submission's lines of one image, one for each string."""
    # Before Python 3.13 csv leaves a lone carriage return unquoted, and readers end the row there.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if "\r" in image_id else csv.QUOTE_MINIMAL
    lines: list[str] = []
    for rle in rles:
        line = StringIO()
        csv.writer(line, lineterminator="\n", quoting=quoting).writerow((image_id, rle))
        lines.append(line.getvalue())
    return lines


class CocoWriter(ResultWriter):
    """COCO results: a JSON list with one entry per cell, none for an image without.

    `image_id` is the image's id as a string, `category_id` the label, `bbox` is xywh in pixels.
    """

    _head = "["
    _tail = "\n]\n"

    def __init__(self, path: Path) -> None:
        """Touch nothing yet: the file is opened on entry."""
        super().__init__(path)
        self._separator = "\n"

    def encode(self, instances: Instances) -> list[str]:
        """The JSON of each cell that has pixels."""
        return [json.dumps(entry, allow_nan=False) for entry in instances.to_coco()]

    def encode_blank(self, image_id: str) -> list[str]:
        """Nothing: an image without cells has no entry."""
        return []

    def write(self, pieces: Sequence[str]) -> None:
        """Write the entries of one image."""
        with _writing(self.path):
            for entry in pieces:
                self._file.write(self._separator + entry)
                self._separator = ",\n"


def open_writer(path: str | Path, format: Literal["kaggle", "coco"]) -> ResultWriter:
    """The writer of `format`, to be entered with `with`."""
    path = as_path(path, "submission")
    writers: dict[str, type[ResultWriter]] = {"kaggle": SubmissionWriter, "coco": CocoWriter}
    return writers[format](path)


class Row(NamedTuple):
    """One row of a submission; `line` counts from 1, the header's line included."""

    line: int
    id: str
    predicted: str


@dataclass(frozen=True)
class Problem:
    """Something wrong with a submission: at `line`, or in the file as a whole (line 0)."""

    line: int
    id: str
    message: str


def read_sample_submission(path: Path) -> tuple[str, ...]:
    """The distinct ids of a sample submission, in order of first appearance.

    Raises SubmissionError if the file cannot be read or has no column `id`.
    """
    table = _table(path)
    if "id" not in table:
        raise SubmissionError(f"{path}: expected a column 'id', found {_columns(table)}")
    return tuple(dict.fromkeys(image_id for image_id in table["id"].tolist() if image_id))


def read_submission(path: Path) -> list[Row]:
    """The rows of a submission, as written; an empty line is a row of empty strings.

    Raises SubmissionError if the file cannot be read or its columns are not `id,predicted`.
    """
    table = _table(path)
    if tuple(table.columns) != COLUMNS:
        raise SubmissionError(f"{path}: expected the columns 'id', 'predicted', found {_columns(table)}")
    rows, line = [], 2
    for image_id, predicted in zip(table["id"].tolist(), table["predicted"].tolist(), strict=True):
        rows.append(Row(line, image_id, predicted))
        line += 1 + len(_LINE_BREAK.findall(image_id)) + len(_LINE_BREAK.findall(predicted))
    return rows


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


@contextmanager
def _stream(path: Path, head: str, tail: str) -> Iterator[TextIO]:
    """An atomic text file between `head` and `tail`; the tail is not written after an error."""
    with atomic_file(path, "w") as file:
        file.write(head)
        yield file
        file.write(tail)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the file system or the encoding refuses into SubmissionError."""
    try:
        yield
    except OSError as error:
        raise SubmissionError(f"{path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise SubmissionError(f"{path}: expected a Unicode id, found {error.object[:60]!r}") from error


def _table(path: Path) -> pd.DataFrame:
    """A CSV file as strings only. Raises SubmissionError if it is not one."""
    import pandas as pd  # here, since most runs read no CSV, and its import is a tenth of the first image

    try:
        text = path.read_bytes().decode("utf-8-sig")
        table = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False, skip_blank_lines=False)
    except OSError as error:
        raise SubmissionError(
            f"{path}: expected a CSV file, found none to read: {error.strerror or error}"
        ) from error
    except UnicodeDecodeError as error:
        raise SubmissionError(
            f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from error
    except pd.errors.EmptyDataError as error:
        raise SubmissionError(f"{path}: expected a CSV file with a header, found nothing") from error
    except pd.errors.ParserError as error:
        raise SubmissionError(f"{path}: expected a CSV file, found: {str(error).strip()}") from error
    # pandas makes an index of what a first row has beyond the header.
    if len(table.columns) and not isinstance(table.index, pd.RangeIndex):
        raise SubmissionError(f"{path}: expected {len(table.columns)} fields in line 2, found more")
    return table


def _columns(table: pd.DataFrame) -> str:
    """The column names, as an error message gives them."""
    return ", ".join(repr(str(name)) for name in table.columns) or "an empty header"


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
