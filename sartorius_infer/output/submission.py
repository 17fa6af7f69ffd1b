"""Submissions as they are read: the competition's CSV, and the sample that fixes its ids."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sartorius_infer.errors import SubmissionError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "predicted")
_LINE_BREAK = re.compile(r"\r\n?|\n")


class Row(NamedTuple):
    """One row of a submission; `line` counts from 1, the header's line included."""

    line: int
    id: str
    predicted: str


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
