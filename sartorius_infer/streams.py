"""Text written piece by piece into files that appear whole or not at all; lines of CSV; bytes of zips."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TextIO
from zipfile import ZIP_DEFLATED, ZipInfo

from sartorius_infer.errors import SubmissionError

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # a zip knows no earlier one; any other would change the bytes


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system or the encoding refuses into SubmissionError."""
    try:
        yield
    except OSError as error:
        raise SubmissionError(f"{path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise SubmissionError(f"{path}: expected a Unicode id, found {error.object[:60]!r}") from error


class TextStream:
    """Pieces of text one after another into `path`, replaced once the block ends well.

    If the block raises, an earlier file stays as it was. Raises SubmissionError if the file
    cannot be written, as soon as the block is entered where that can be known.
    """

    def __init__(self, path: Path, file: AbstractContextManager[TextIO], head: str, tail: str = "") -> None:
        """Touch nothing yet: `file`, such as an `atomic_file` of `path`, is opened on entry."""
        self.path = path
        self._stream = _between(file, head, tail)

    def __enter__(self) -> Self:
        """Open the file."""
        with writing(self.path):
            self._file = self._stream.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the file in its place, or after an error remove it."""
        with writing(self.path):
            self._stream.__exit__(kind, error, trace)

    def write(self, pieces: Iterable[str]) -> None:
        """Write some text."""
        with writing(self.path):
            self._file.writelines(pieces)


@contextmanager
def _between(file: AbstractContextManager[TextIO], head: str, tail: str) -> Iterator[TextIO]:
    """A file between `head` and `tail`; the tail is not written after an error."""
    with file as text:
        text.write(head)
        yield text
        text.write(tail)


def csv_line(fields: Iterable[str]) -> str:
    """A line of CSV, with its end."""
    texts = list(fields)
    # Before Python 3.13 csv leaves a lone carriage return unquoted, and readers end the row there.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in text for text in texts) else csv.QUOTE_MINIMAL
    line = StringIO()
    csv.writer(line, lineterminator="\n", quoting=quoting).writerow(texts)
    return line.getvalue()


def zip_entry(name: str) -> ZipInfo:
    """A compressed file of a zip, whose bytes tell neither the day nor the machine."""
    entry = ZipInfo(name, _FIRST_DAY)
    entry.compress_type, entry.create_system, entry.external_attr = ZIP_DEFLATED, 3, 0o100644 << 16
    return entry
