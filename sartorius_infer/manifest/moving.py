"""A manifest goes to another place: its files keep their names seen from there, or come along.

A manifest names files below its own folder only, so that a folder can be moved or mounted as it is.
What lies elsewhere is linked, or copied where a link cannot be, into a folder beside the manifest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from sartorius_infer.errors import ManifestError
from sartorius_infer.files import atomic_file, file_sha256
from sartorius_infer.manifest.manifest import Plan
from sartorius_infer.manifest.writing import Content, content_of, write_manifest


@dataclass(frozen=True)
class Moved:
    """A manifest as it will stand at `out`, and what must lie beside it: new places, and files for them."""

    out: Path
    content: Content
    files: Mapping[Path, Path] = field(default_factory=dict)


def move(plan: Plan, out: Path) -> Moved:
    """What `plan` is called at `out`, which may lie anywhere; nothing is written yet.

    A file below the folder of `out` is named as seen from there. Any other gets a place in
    `<stem>_weights/` beside `out`, with its checksum and size in the manifest; a file of the same
    content that is there already is that place, and one of other content makes the name `<name>_2`.
    Raises ManifestError for a file that is not there, or not what the manifest says, and for an `out`
    that cannot be written.
    """
    _require_place(out)
    folder = out.resolve().parent
    content = content_of(plan.manifest, moves=folder != plan.folder.resolve())
    files: dict[Path, Path] = {}
    for model in content["models"]:
        source = (plan.folder / model["file"]).resolve()
        place = source
        if not source.is_relative_to(folder):
            _note_content(model, source)
            place = _place(folder / f"{out.stem}_weights", source, files)
            files[place] = source
        model["file"] = place.relative_to(folder).as_posix()
    return Moved(out, content, files)


def write_moved(moved: Moved, content: Content) -> list[Path]:
    """Write `content`, what has become of `moved.content`, and the files that it still names.

    Returns the places of those files, as `moved.out` says their folder. Raises ManifestError for what
    does not fit or cannot be written; then nothing is left behind.
    """
    named = {model["file"] for model in content["models"]}
    folder = moved.out.resolve().parent
    files = {p: source for p, source in moved.files.items() if p.relative_to(folder).as_posix() in named}
    try:
        with _placed(files):
            write_manifest(moved.out, content)
    except OSError as error:
        raise ManifestError(f"{moved.out}: expected room for its weights, found {error}") from None
    return [moved.out.parent / place.relative_to(folder) for place in files]


def _require_place(out: Path) -> None:
    folder = out.resolve().parent
    if out.is_dir():
        raise ManifestError(f"{out}: expected a file to write, found a folder")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ManifestError(f"{out}: expected a file in a folder that can be written, found none at {folder}")


def _note_content(model: Content, source: Path) -> None:
    """Write checksum and size of a file into its entry."""
    try:
        found = {"sha256": file_sha256(source), "bytes": source.stat().st_size}
    except OSError as error:
        raise ManifestError(f"{source}: expected a file that can be read, found {error}") from None
    for key, value in found.items():
        if model.get(key) not in (None, value):
            raise ManifestError(f"{source}: expected {key} {model[key]}, as the manifest says, found {value}")
    model |= found


def _place(folder: Path, source: Path, taken: Mapping[Path, Path]) -> Path:
    """The first name in `folder` that is free, or that this very content has already."""
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise ManifestError(f"{folder}: expected a folder for weights, or nothing, found something else")
    names = (f"{source.stem}{f'_{n}' if n > 1 else ''}{source.suffix}" for n in count(1))
    return next(place for name in names if _fits(place := folder / name, source, taken))


def _fits(place: Path, source: Path, taken: Mapping[Path, Path]) -> bool:
    if place in taken:
        return taken[place] == source
    return not os.path.lexists(place) or _holds(place, source)


def _holds(place: Path, source: Path) -> bool:
    """Whether `place` is a file of the content of `source`."""
    if not place.is_file() or place.is_symlink() or place.stat().st_size != source.stat().st_size:
        return False
    return place.samefile(source) or file_sha256(place) == file_sha256(source)


@contextmanager
def _placed(files: Mapping[Path, Path]) -> Iterator[None]:
    """Let every place hold its file while the block writes what names them; undone if that fails."""
    made: list[Path] = []
    try:
        for folder in {place.parent for place in files if not place.parent.is_dir()}:
            folder.mkdir()
            made.append(folder)
        for place, source in files.items():
            if not os.path.lexists(place):
                _link(source, place)
                made.append(place)
            elif not _holds(place, source):
                raise ManifestError(f"{place}: expected the content of {source}, found another file")
        yield
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _link(source: Path, place: Path) -> None:
    """A second name for a file; a copy where they lie on different file systems, or links are refused."""
    try:
        os.link(source, place)
    except FileExistsError:
        raise
    except OSError:
        with source.open("rb") as old, atomic_file(place, "wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
