"""Which files are images, and what each is called."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from sartorius_infer.errors import ImageError
from sartorius_infer.files import Paths, as_paths, distinct_ids, printable
from sartorius_infer.images.names import EXTENSIONS, is_image, maps_beside

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """Where an image is; `id` names its cells in every output: as a rule its file's stem."""

    id: str
    path: Path


def find_images(sources: Paths, recursive: bool = False) -> tuple[ImageFile, ...]:
    """The images that `sources`, a file, a folder or several, hold, in the order given.

    Of a folder all files with one of `EXTENSIONS` in any letter case, by id; of its sub-folders too where
    `recursive`, though not through links. Hidden files and folders are skipped; what else is passed over,
    label maps beside their images (`names.maps_beside`), other files, pipes and devices, is counted in one
    line of the log. Contents are not looked at.

    An id is the file's stem. Images whose stems are equal are called by their path instead, from the
    folder that holds all sources, without suffix and with `_` for `/`: data/a/image.tif and
    data/b/image.tif are a_image and b_image. Ids are as `files.as_id` spells them.
    Raises ImageError if a source is missing, holds no image or is not one, or if two share an id.
    """
    places, passed = as_paths(sources, "images"), Counter[str]()
    groups = [_at(place, recursive, passed) for place in places]
    if not groups:
        raise ImageError("expected at least one image or folder, found none")
    if passed:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(passed.items()))
        log.warning("passed over what is no image (%s): %s", " ".join(EXTENSIONS), kinds)
    names = _names([path for paths in groups for path in paths], places)
    found: dict[str, ImageFile] = {}
    for paths in groups:
        for file in sorted((ImageFile(names[p], p) for p in paths), key=lambda file: (file.id, file.path)):
            twin = found.setdefault(file.id, file)
            if twin is not file:
                raise ImageError(
                    f"{printable(file.path)}: expected ids to be unique, found {printable(twin.path)} as well"
                )
    return tuple(found.values())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into an ImageError of one line that begins with `path`."""
    name = printable(path)
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except OSError as error:
        reason = error.strerror or f"expected a whole image, found a damaged one ({error})"
        raise ImageError(f"{name}: {reason}") from error
    except Exception as error:  # there is no end to what decoders raise on hostile bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageError(f"{name}: expected a whole image, found a damaged one ({reason})") from error


def require_file(path: Path) -> None:
    """Raise ImageError for a pipe or device, which to open may wait for ever, and for a name not in UTF-8."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ImageError(f"expected a file, found a {_kind(path)}")
    require_text(path)


def require_text(path: Path) -> None:
    """Raise ImageError for a file's name that is not UTF-8, so that no output could name it."""
    if printable(path.name) != path.name:
        raise ImageError("expected a file name in UTF-8, found other bytes; rename the file")


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _at(place: Path, recursive: bool, passed: Counter[str]) -> list[Path]:
    """The images at a source, at least one; what else lies there is counted in `passed`."""
    with naming(place):
        if not place.is_dir():
            return [_by_name(place)]
        images, others = [], Counter[str]()
        for path, is_map in _shown(place, recursive):
            if path.exists() and not path.is_file():
                others[_kind(path)] += 1
            elif is_image(path.name) and is_map:
                others["label map"] += 1
            elif is_image(path.name):
                images.append(path)
            else:
                others[printable(path.suffix) or "no suffix"] += 1
        if not images:
            raise ImageError(
                f"expected images ({' '.join(EXTENSIONS)}), found {others.total()} other file(s)"
            )
        passed += others
        return images


def _shown(folder: Path, recursive: bool, is_map: bool = False) -> Iterator[tuple[Path, bool]]:
    """All that is no folder in a folder, or below it, and not hidden; and whether it is beside its image."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    maps = maps_beside([entry.name for entry in shown])
    for entry in shown:
        own = is_map or entry.name in maps
        if not entry.is_dir():
            yield folder / entry.name, own
        elif recursive and not entry.is_symlink():
            yield from _shown(folder / entry.name, recursive, own)


def _by_name(path: Path) -> Path:
    """The image at a path that is not a folder."""
    if not path.exists():
        raise ImageError("expected an image or a folder, found nothing there")
    if not path.is_file():
        raise ImageError(f"expected an image or a folder, found a {_kind(path)}")
    if not is_image(path.name):
        found = printable(path.suffix) or "no extension"
        raise ImageError(f"expected an image ({' '.join(EXTENSIONS)}), found {found}")
    return path


def _names(paths: Sequence[Path], sources: Sequence[Path]) -> dict[Path, str]:
    """The id of each image, as `find_images` describes."""
    root = os.path.commonpath([os.path.abspath(p if p.is_dir() else p.parent) for p in sources])
    return distinct_ids({path: PurePath(os.path.relpath(path, root)) for path in paths})
