"""COCO results as they are read: a JSON list with an entry for each cell, alone or in a zip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from sartorius_infer.errors import SubmissionError, first_line
from sartorius_infer.files import as_path, json_text, unpacks_to_much

SUFFIXES = (".json", ".zip")

_MOST_BYTES = 1 << 31


def is_results(path: Path) -> bool:
    """Whether a submission is COCO results, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def read_results(path: str | Path) -> list[Any]:
    """The entries of COCO results, whatever they are; of a zip, those of the one JSON in it.

    Raises SubmissionError.
    """
    path = as_path(path, "submission")
    try:
        content = json.loads(_from_zip(path) if path.suffix.lower() == ".zip" else json_text(path))
    except SubmissionError:
        raise
    except OSError as error:
        raise SubmissionError(
            f"{path}: expected COCO results, found none to read: {error.strerror or error}"
        ) from None
    except Exception as error:  # a damaged zip, text of no encoding, brackets without end
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise SubmissionError(f"{path}: expected COCO results, found {reason}") from None
    if not isinstance(content, list):
        raise SubmissionError(f"{path}: expected COCO results, a list, found {type(content).__name__}")
    return content


def _from_zip(path: Path) -> bytes:
    with ZipFile(path) as archive:
        # What macOS packs beside a file repeats its name under a hidden one.
        inside = [
            entry
            for entry in archive.infolist()
            if entry.filename.lower().endswith(".json")
            and not entry.filename.rsplit("/", 1)[-1].startswith(".")
        ]
        if len(inside) != 1:
            names = ", ".join(entry.filename for entry in inside[:3]) or "none"
            raise SubmissionError(f"{path}: expected one JSON in the zip, found {names}")
        if inside[0].file_size > _MOST_BYTES or unpacks_to_much(inside[0], path.stat().st_size):
            found = f"{inside[0].compress_size:,} bytes that unpack to {inside[0].file_size:,}"
            raise SubmissionError(f"{path}: expected JSON of at most {_MOST_BYTES:,} bytes, found {found}")
        return archive.read(inside[0])
