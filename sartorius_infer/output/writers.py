"""The files that leave the package: the competition's submission.csv, and COCO results as JSON or in a zip.

All are streamed, image by image, into a file that appears whole or not at all.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import StringIO, TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self, TextIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from sartorius_infer.cells.overlapping import Cells, OverlappingCells
from sartorius_infer.errors import SubmissionError
from sartorius_infer.files import as_path, atomic_file
from sartorius_infer.output.submission import COLUMNS

NAME_IN_ZIP = "test-results.json"
"""What COCO results are called in a zip, whatever the zip is called."""

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # a zip knows no earlier one; any other would change the bytes


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
        self._stream = _stream(self._open(), self._head, self._tail)

    def _open(self) -> AbstractContextManager[TextIO]:
        """The text file that is written to, once it is entered."""
        return atomic_file(self.path, "w")

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
    def encode(self, cells: Cells) -> list[str]:
        """The text of one image's cells, a piece for each; safe to call from any thread."""

    @abstractmethod
    def encode_blank(self, image_id: str) -> list[str]:
        """The text that says that an image has no cells."""

    @abstractmethod
    def write(self, pieces: Sequence[str]) -> None:
        """Write what was encoded of one image."""

    def add(self, cells: Cells) -> None:
        """Write the cells of one image; a cell without pixels is left out."""
        self.write(self.encode(cells))

    def blank(self, image_id: str) -> None:
        """Write that an image has no cells."""
        self.write(self.encode_blank(image_id))


class SubmissionWriter(ResultWriter):
    """The competition's CSV: a row "id,predicted" per cell, one with nothing predicted for none."""

    _head = ",".join(COLUMNS) + "\n"
    _tail = ""

    def encode(self, cells: Cells) -> list[str]:
        """A line of each cell that has pixels. Raises SubmissionError for cells that may share pixels."""
        if isinstance(cells, OverlappingCells):
            raise SubmissionError(f"{self.path}: expected cells that share no pixels, found {cells.image_id}")
        return encode_rows(cells.image_id, [rle for rle in cells.rle() if rle] or [""])

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

    `image_id` is the image's id as a string, or what `numbers` gives for it; `category_id` the label,
    `bbox` is xywh in pixels. Where `path` ends in `.zip`, the JSON lies in a zip as `NAME_IN_ZIP`; the same
    results give the same bytes.
    """

    _head = "["
    _tail = "\n]\n"

    def __init__(self, path: Path, numbers: Mapping[str, int] | None = None) -> None:
        """Touch nothing yet: the file is opened on entry."""
        super().__init__(path)
        self._numbers = numbers
        self._separator = "\n"

    def _open(self) -> AbstractContextManager[TextIO]:
        return _in_zip(self.path) if self.path.suffix.lower() == ".zip" else super()._open()

    def encode(self, cells: Cells) -> list[str]:
        """The JSON of each cell that has pixels. Raises SubmissionError for an image without a number."""
        number = None if self._numbers is None else self._numbers.get(cells.image_id)
        if number is None and self._numbers is not None:
            raise SubmissionError(
                f"{self.path}: expected numbers of all images, found none of {cells.image_id}"
            )
        return [json.dumps(entry, allow_nan=False) for entry in cells.to_coco(number)]

    def encode_blank(self, image_id: str) -> list[str]:
        """Nothing: an image without cells has no entry."""
        return []

    def write(self, pieces: Sequence[str]) -> None:
        """Write the entries of one image."""
        with _writing(self.path):
            for entry in pieces:
                self._file.write(self._separator + entry)
                self._separator = ",\n"


def open_writer(
    path: str | Path, format: Literal["kaggle", "coco"], numbers: Mapping[str, int] | None = None
) -> ResultWriter:
    """The writer of `format`, to be entered with `with`; `numbers` are COCO's `image_id`s by image."""
    path = as_path(path, "submission")
    return CocoWriter(path, numbers) if format == "coco" else SubmissionWriter(path)


@contextmanager
def _stream(file: AbstractContextManager[TextIO], head: str, tail: str) -> Iterator[TextIO]:
    """A file between `head` and `tail`; the tail is not written after an error."""
    with file as text:
        text.write(head)
        yield text
        text.write(tail)


@contextmanager
def _in_zip(path: Path) -> Iterator[TextIO]:
    """An atomic zip with one text file in it, whose bytes tell neither the day nor the machine."""
    inside = ZipInfo(NAME_IN_ZIP, _FIRST_DAY)
    inside.compress_type, inside.create_system, inside.external_attr = ZIP_DEFLATED, 3, 0o100644 << 16
    with (
        atomic_file(path, "wb") as file,
        ZipFile(file, "w") as archive,
        archive.open(inside, "w", force_zip64=True) as entry,
        TextIOWrapper(entry, encoding="utf-8", newline="") as text,
    ):
        yield text


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the file system or the encoding refuses into SubmissionError."""
    try:
        yield
    except OSError as error:
        raise SubmissionError(f"{path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise SubmissionError(f"{path}: expected a Unicode id, found {error.object[:60]!r}") from error
