"""Which files are images, and what each is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sartorius_infer.errors import ImageError
from sartorius_infer.files import Paths, as_paths

EXTENSIONS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class ImageFile:
    """Where an image is; `id` is the file's stem, which names its cells in every output."""

    id: str
    path: Path


def find_images(sources: Paths) -> tuple[ImageFile, ...]:
    """The images that `sources`, a file, a folder or several, hold, in the order given.

    Of a folder (not of its sub-folders) all files with one of `EXTENSIONS` in any letter case, by
    id; hidden files are skipped. Contents are not looked at.
    Raises ImageError if a source is missing, holds no image or is not one, or if two share an id.
    """
    found: dict[str, ImageFile] = {}
    for source in as_paths(sources, "images"):
        with naming(source):
            files = _in_folder(source) if source.is_dir() else [_by_name(source)]
        for file in files:
            twin = found.setdefault(file.id, file)
            if twin is not file:
                raise ImageError(f"{file.path}: expected ids to be unique, found {twin.path} as well")
    if not found:
        raise ImageError("expected at least one image or folder, found none")
    return tuple(found.values())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into an ImageError of one line that begins with `path`."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except OSError as error:
        reason = error.strerror or f"expected a whole image, found a damaged one ({error})"
        raise ImageError(f"{path}: {reason}") from error
    except Exception as error:  # there is no end to what decoders raise on hostile bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageError(f"{path}: expected a whole image, found a damaged one ({reason})") from error


def _in_folder(folder: Path) -> list[ImageFile]:
    """The images directly in a folder, by id; at least one."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
    paths = [folder / name for name in names if _is_image(name)]
    if not paths:
        raise ImageError(f"expected images ({' '.join(EXTENSIONS)}), found {len(names)} other file(s)")
    return sorted((ImageFile(path.stem, path) for path in paths), key=lambda file: (file.id, file.path))


def _by_name(path: Path) -> ImageFile:
    """The image at a path that is not a folder."""
    if not path.exists():
        raise ImageError("expected an image or a folder, found nothing there")
    if not _is_image(path.name):
        raise ImageError(f"expected an image ({' '.join(EXTENSIONS)}), found {path.suffix or 'no extension'}")
    return ImageFile(path.stem, path)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
