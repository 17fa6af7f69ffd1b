"""The files that leave the package: the competition's submission.csv, and COCO results as JSON.

Both are streamed, image by image, into a file that appears whole or not at all.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self, TextIO

from sartorius_infer.cells.instances import Instances
from sartorius_infer.errors import SubmissionError
from sartorius_infer.files import as_path, atomic_file
from sartorius_infer.output.submission import COLUMNS


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
