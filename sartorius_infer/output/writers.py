"""The files that leave the package: the competition's submission.csv, and COCO results as JSON or in a zip.

All are streamed, image by image, into a file that appears whole or not at all.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, TextIO
from zipfile import ZipFile

from sartorius_infer.cells.overlapping import Cells, OverlappingCells
from sartorius_infer.errors import SubmissionError
from sartorius_infer.files import as_path, atomic_file
from sartorius_infer.output.submission import COLUMNS
from sartorius_infer.streams import TextStream, csv_line, zip_entry

NAME_IN_ZIP = "test-results.json"
"""What COCO results are called in a zip, whatever the zip is called."""


class ResultWriter(TextStream, ABC):
    """A stream of one image's cells after another's."""

    @abstractmethod
    def encode(self, cells: Cells) -> list[str]:
        """The text of one image's cells, a piece for each; safe to call from any thread."""

    @abstractmethod
    def encode_blank(self, image_id: str) -> list[str]:
        """The text that says that an image has no cells."""

    def add(self, cells: Cells) -> None:
        """Write the cells of one image; a cell without pixels is left out."""
        self.write(self.encode(cells))

    def blank(self, image_id: str) -> None:
        """Write that an image has no cells."""
        self.write(self.encode_blank(image_id))


class SubmissionWriter(ResultWriter):
    """The competition's CSV: a row "id,predicted" per cell, one with nothing predicted for none."""

    def __init__(self, path: Path) -> None:
        """Touch nothing yet: the file is opened on entry."""
        super().__init__(path, atomic_file(path, "w"), head=csv_line(COLUMNS))

    def encode(self, cells: Cells) -> list[str]:
        """A line of each cell that has pixels. Raises SubmissionError for cells that may share pixels."""
        if isinstance(cells, OverlappingCells):
            raise SubmissionError(f"{self.path}: expected cells that share no pixels, found {cells.image_id}")
        return encode_rows(cells.image_id, [rle for rle in cells.rle() if rle] or [""])

    def encode_blank(self, image_id: str) -> list[str]:
        """One line with nothing predicted."""
        return encode_rows(image_id, [""])


def encode_rows(image_id: str, rles: Sequence[str]) -> list[str]:
    """The submission's lines of one image, one for each string."""
    return [csv_line((image_id, rle)) for rle in rles]


class CocoWriter(ResultWriter):
    """COCO results: a JSON list with one entry per cell, none for an image without.

    `image_id` is the image's id as a string, or what `numbers` gives for it; `category_id` the label,
    `bbox` is xywh in pixels. Where `path` ends in `.zip`, the JSON lies in a zip as `NAME_IN_ZIP`; the same
    results give the same bytes.
    """

    def __init__(self, path: Path, numbers: Mapping[str, int] | None = None) -> None:
        """Touch nothing yet: the file is opened on entry."""
        file = _in_zip(path) if path.suffix.lower() == ".zip" else atomic_file(path, "w")
        super().__init__(path, file, head="[", tail="\n]\n")
        self._numbers = numbers
        self._separator = "\n"

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

    def write(self, pieces: Iterable[str]) -> None:
        """Write the entries of one image."""
        for entry in pieces:
            super().write((self._separator, entry))
            self._separator = ",\n"


def open_writer(
    path: str | Path, format: Literal["kaggle", "coco"], numbers: Mapping[str, int] | None = None
) -> ResultWriter:
    """The writer of `format`, to be entered with `with`; `numbers` are COCO's `image_id`s by image."""
    path = as_path(path, "submission")
    return CocoWriter(path, numbers) if format == "coco" else SubmissionWriter(path)


@contextmanager
def _in_zip(path: Path) -> Iterator[TextIO]:
    """An atomic zip with one text file in it, whose bytes tell neither the day nor the machine."""
    with (
        atomic_file(path, "wb") as file,
        ZipFile(file, "w") as archive,
        archive.open(zip_entry(NAME_IN_ZIP), "w", force_zip64=True) as entry,
        TextIOWrapper(entry, encoding="utf-8", newline="") as text,
    ):
        yield text
