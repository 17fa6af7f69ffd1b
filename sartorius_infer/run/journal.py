"""What a run has finished, kept beside its output so that a killed run can go on.

A journal is a folder: `about.json` says which run it belongs to, each process appends to a file of its
own, and the finished tiles of an image that is not finished lie in a folder of its batch. A record is one
line with a checksum, for one batch of images whole: images of a batch may influence each other's last
bits, so a batch is finished together or not at all. A line that a kill cut short is not a record, and its
batch runs again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sartorius_infer.errors import JournalError
from sartorius_infer.files import atomic_file

ABOUT = "about.json"


@dataclass(frozen=True)
class Result:
    """What became of one image.

    pieces  its text in the output, as `ResultWriter.encode` made it
    cells   how many cells of each class
    error   why it is blank, or ""
    tables  its lines in the tables of cells and of images, as `TableWriter.encode` made them, if any
    """

    id: str
    pieces: list[str]
    cells: dict[str, int] = field(default_factory=dict)
    error: str = ""
    tables: tuple[list[str], str] | None = None


_PARTS = {"id": str, "pieces": list, "cells": dict, "error": str}


class _Place(NamedTuple):
    """Where a record lies: its file, the line's first byte, its length."""

    file: Path
    start: int
    length: int


def journal_folder(out: Path) -> Path:
    """Where the journal of a run that writes `out` lies."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """The finished batches of one run, by their number in its list.

    `about` says what results depend on, by short names; a journal whose `about` differs is refused.
    None takes a journal as it is. `fresh` removes what is there. Raises JournalError, which names what
    differs, and OSError.
    """

    def __init__(self, folder: Path, about: Mapping[str, str] | None, *, fresh: bool = False) -> None:
        self.folder = folder
        if fresh and folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if about is not None:
            self._require_same(dict(about))
        self._places: dict[int, _Place] = {}
        for part in sorted(folder.glob("*.part")):
            self._index(part)
        self._file: BinaryIO | None = None

    def _require_same(self, about: dict[str, str]) -> None:
        path = self.folder / ABOUT
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            # Left where the removal of a journal was killed, they may be of any run.
            for part in self.folder.glob("*.part"):
                part.unlink()
            with atomic_file(path, "w") as file:
                json.dump(about, file, indent=1)
            return
        except ValueError:
            known = None
        if known != about:
            found = known if isinstance(known, dict) else {}
            differs = [name for name in {**about, **found} if found.get(name) != about.get(name)]
            raise JournalError(
                f"{self.folder}: expected the journal of this run, found that of another: it differs in "
                f"{', '.join(differs)}; remove the folder, or go on with what it was made with"
            )

    def _index(self, part: Path) -> None:
        start = 0
        with part.open("rb") as file:
            for line in file:
                if (number := _number(line)) is not None:
                    self._places[number] = _Place(part, start, len(line))
                start += len(line)

    @property
    def finished(self) -> frozenset[int]:
        """Numbers of the batches that were finished when the journal was opened, or since."""
        return frozenset(self._places)

    def add(self, number: int, results: Sequence[Result]) -> None:
        """Record a finished batch; it is kept whatever happens to the process or its machine after."""
        if self._file is None:
            self._part = self.folder / f"{secrets.token_hex(8)}.part"
            self._file = self._part.open("xb")
        line = _line({"batch": number, "results": [asdict(result) for result in results]})
        self._places[number] = _Place(self._part, self._file.tell(), len(line))
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        if (tiles := self.tiles_of(number)).is_dir():
            shutil.rmtree(tiles)

    def tiles_of(self, number: int) -> Path:
        """The folder for the finished tiles of a batch's only image, until all of it is finished."""
        return self.folder / f"{number}.tiles"

    def results(self) -> Iterator[Result]:
        """Every recorded image, in the order of the batches; one batch in memory at a time."""
        files: dict[Path, BinaryIO] = {}
        try:
            for number in sorted(self._places):
                path, start, length = self._places[number]
                if path not in files:
                    files[path] = path.open("rb")
                file = files[path]
                file.seek(start)
                for result in _content(file.read(length))["results"]:
                    yield Result(**result)
        finally:
            for file in files.values():
                file.close()

    @classmethod
    def salvage(cls, folder: Path) -> Iterator[Result]:
        """Every recorded image of whatever run left a journal there; none where there is no journal."""
        if (folder / ABOUT).is_file():
            yield from cls(folder, None).results()

    def reread(self) -> None:
        """Take in what other processes have recorded since."""
        for part in sorted(self.folder.glob("*.part")):
            self._index(part)

    def close(self) -> None:
        """Close the file of this process; the journal stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Remove the journal, once its run has written everything."""
        self.close()
        shutil.rmtree(self.folder)


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _content(line: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(line[9:])
    return content


def _number(line: bytes) -> int | None:
    """The batch of a record, or None for a line that is not whole, or none that `add` writes."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or not text or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        content = _content(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or type(number := content.get("batch")) is not int:
        return None
    results = content.get("results")
    return number if isinstance(results, list) and all(map(_is_result, results)) else None


def _is_result(value: Any) -> bool:
    """Whether a value is what `asdict` makes of a `Result`."""
    if not isinstance(value, dict) or not _are_tables(value.get("tables", ())):
        return False
    parts = {name: type(part) for name, part in value.items() if name != "tables"}
    return (
        parts == _PARTS
        and _are_texts(value["pieces"])
        and all(type(count) is int for count in value["cells"].values())
    )


def _are_tables(value: Any) -> bool:
    if isinstance(value, list) and len(value) == 2:
        return _are_texts(value[0]) and isinstance(value[1], str)
    return value is None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
