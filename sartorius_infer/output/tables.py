"""Two tables of a run as CSV: a row for each cell, and beside it a row for each image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.cells.instances import Instances, no_cells
from sartorius_infer.files import atomic_file
from sartorius_infer.streams import TextStream, csv_line


class TableLines(NamedTuple):
    """What the tables have of one image: a line for each cell, and its own."""

    cells: list[str]
    image: str


class TableWriter:
    """Streams both tables into files that appear whole or not at all, once the block ends well.

    The columns are those of `Instances.measurements` and, in the second file, of `Instances.summary` with
    `error` after them. Raises ExtraError without scikit-image, and SubmissionError if a file cannot be
    written, as soon as the block is entered where that can be known.
    """

    def __init__(self, path: Path, classes: Sequence[str], pixel_size_um: float | None) -> None:
        """Touch nothing yet: the files are opened on entry."""
        self._pixel_size_um = pixel_size_um
        nothing = no_cells("", (1, 1), classes)
        columns = map(str, nothing.measurements(nothing.label_map, pixel_size_um))
        self._image_columns = [*nothing.summary(pixel_size_um), "error"]
        self._cells, self._images = _file(path, columns), _file(images_path(path), self._image_columns)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open both files."""
        with ExitStack() as stack:
            stack.enter_context(self._cells)
            stack.enter_context(self._images)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the files in their places, or after an error remove them."""
        self._stack.__exit__(kind, error, trace)

    def encode(self, cells: Instances, values: NDArray[Any]) -> TableLines:
        """The lines of an image whose stored pixels are `values`; safe to call from any thread."""
        table = cells.measurements(values, self._pixel_size_um)
        rows = zip(*(table[name].array for name in table), strict=True)
        return TableLines([_line(row) for row in rows], self._image_line(cells.summary(self._pixel_size_um)))

    def encode_failure(self, image_id: str, error: str) -> TableLines:
        """The lines of an image that failed."""
        return TableLines([], self._image_line({"image": image_id, "error": error}))

    def _image_line(self, known: Mapping[str, Any]) -> str:
        return _line(known.get(name, "") for name in self._image_columns)

    def write(self, lines: TableLines) -> None:
        """Write what was encoded of one image."""
        self._cells.write(lines.cells)
        self._images.write([lines.image])


def images_path(path: Path) -> Path:
    """Where the table of images lies: cells_images.csv beside cells.csv."""
    return path.with_name(f"{path.stem}_images{path.suffix}")


def _file(path: Path, columns: Iterable[str]) -> TextStream:
    return TextStream(path, atomic_file(path, "w"), head=csv_line(columns))


def _line(values: Iterable[Any]) -> str:
    return csv_line(map(_text, values))


def _text(value: Any) -> str:
    """Seven digits of a number, nothing for NaN, the shortest decimal that is a float32."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, np.float32) or not isinstance(value, float | np.floating):
        return str(value)
    return "" if np.isnan(value) else f"{value:.7g}"
