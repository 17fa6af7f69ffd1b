"""Which files are images, and what each is called."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from sartorius_infer.errors import ImageError, some
from sartorius_infer.files import Paths, as_paths, distinct_ids, printable
from sartorius_infer.images.names import EXTENSIONS, TIFF_EXTENSIONS, is_image, maps_beside

if TYPE_CHECKING:
    from sartorius_infer.images.pages import Page

log = logging.getLogger(__name__)

EVERY_PAGE = slice(None)


@dataclass(frozen=True)
class ImageFile:
    """Where an image is; `id` names its cells in every output: as a rule its file's stem.

    page     which picture of a file of several, None for the only one
    channel  which of the picture's own channels is read, from 0, as gray; None for all
    """

    id: str
    path: Path
    page: Page | None = None
    channel: int | None = None


def find_images(
    sources: Paths, recursive: bool = False, *, pages: slice = EVERY_PAGE, channel: int | None = None
) -> tuple[ImageFile, ...]:
    """The images that `sources`, a file, a folder or several, hold, in the order given.

    Of a folder all files with one of `EXTENSIONS` in any letter case, by id; of its sub-folders too where
    `recursive`, though not through links. Hidden files and folders are skipped; what else is passed over,
    label maps beside their images (`names.maps_beside`), other files, pipes and devices, is counted in one
    line of the log. Contents are not looked at, but for the directories of TIFF files.

    An id is the file's stem. Images whose stems are equal are called by their path instead, from the
    folder that holds all sources, without suffix and with `_` for `/`: data/a/image.tif and
    data/b/image.tif are a_image and b_image. Ids are as `files.as_id` spells them.

    A TIFF of several pictures is an image for each that is not a smaller copy or a mask, numbered from 0 in
    the file: a_p000, a_p001, ...; `pages` chooses among these numbers. `channel`, from 0, chooses pages where
    ImageJ or OME told the file's channels, else a channel of each picture. What is left out so is counted in
    the log. A TIFF that is damaged is one image, which fails when it is read.
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
    listed = [[ImageFile(names[path], path) for path in paths] for paths in groups]
    files = _distinct(file for group in listed for file in sorted(group, key=lambda f: (f.id, f.path)))
    return _distinct(_paged(files, pages, channel))


def _paged(files: Iterable[ImageFile], pages: slice, channel: int | None) -> Iterator[ImageFile]:
    """The images of each file; says at the end what was left out."""
    passed, mixed = Counter[str](), list[str]()
    for file in files:
        if file.path.suffix.lower() in TIFF_EXTENSIONS and file.path.is_file():
            yield from _of_tiff(file, pages, channel, passed, mixed)
        else:
            yield replace(file, channel=channel)
    if told := [f"{kind} {count}" for kind, count in passed.items() if count]:
        log.warning("passed over pages of TIFF files: %s", ", ".join(told))
    if mixed:
        log.warning("each page is an image; --channel N takes one of several channels of %s", some(mixed, 3))


def _of_tiff(
    file: ImageFile, pages: slice, channel: int | None, passed: Counter[str], mixed: list[str]
) -> Iterator[ImageFile]:
    """The images of a TIFF file; `passed` counts what is left out, `mixed` files of several channels."""
    from sartorius_infer.images.pages import read_stack  # costs OpenCV, which looking for names does without

    try:
        stack = read_stack(file.path)
    except (ImageError, OSError):  # said when it is read
        yield replace(file, channel=channel)
        return
    left = stack.pages
    passed["smaller copy or mask"] += stack.copies
    if stack.channels and channel is None:
        mixed.append(printable(file.path))
    elif stack.channels and channel is not None:
        if channel >= stack.channels:
            raise ImageError(
                f"{printable(file.path)}: expected a channel below {stack.channels}, found {channel}"
            )
        left = tuple(page for page in left if page.channel == channel)
        passed["of another channel"] += len(stack.pages) - len(left)
    own = None if stack.channels else channel
    if len(stack.pages) <= 1:
        yield replace(file, page=stack.pages[0] if stack.copies and left else None, channel=own)
        return
    numbers = range(*pages.indices(len(stack.pages)))
    chosen = [page for page in left if page.number in numbers]
    passed["outside --pages"] += len(left) - len(chosen)
    width = max(3, len(str(len(stack.pages) - 1)))
    for page in chosen:
        yield replace(file, id=f"{file.id}_p{page.number:0{width}}", page=page, channel=own)


def _distinct(files: Iterable[ImageFile]) -> tuple[ImageFile, ...]:
    """The images; raises ImageError unless there is one at least and their ids differ."""
    found: dict[str, ImageFile] = {}
    for file in files:
        twin = found.setdefault(file.id, file)
        if twin is not file:
            raise ImageError(
                f"{printable(file.path)}: expected ids to be unique, found {printable(twin.path)} as well"
            )
    if not found:
        raise ImageError("expected at least one page that --pages and --channel choose, found none")
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
