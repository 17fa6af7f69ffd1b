"""Find images and read them; what a file that cannot be used becomes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.errors import ImageError
from sartorius_infer.images.formats import header
from sartorius_infer.types import CellImage, UInt8

EXTENSIONS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")

_NOT_MOUNTS = {"train", "test", "train_semi_supervised", "images", "LIVECell_dataset_2021"}


@dataclass(frozen=True)
class ImageFile:
    """Where an image is; `id` is the file's stem, which names its cells in every output."""

    id: str
    path: Path


def find_images(sources: Sequence[Path]) -> tuple[ImageFile, ...]:
    """The images that `sources`, files and folders, hold, in the order given.

    Of a folder (not of its sub-folders) all files with one of `EXTENSIONS` in any letter case, by
    id; hidden files are skipped. Contents are not looked at.
    Raises ImageError if a source is missing, holds no image or is not one, or if two share an id.
    """
    found: dict[str, ImageFile] = {}
    for source in sources:
        with _naming(source):
            files = _in_folder(source) if source.is_dir() else [_by_name(source)]
        for file in files:
            twin = found.setdefault(file.id, file)
            if twin is not file:
                raise ImageError(f"{file.path}: expected ids to be unique, found {twin.path} as well")
    if not found:
        raise ImageError("expected at least one image or folder, found none")
    return tuple(found.values())


def find_competition(root: Path = Path("/kaggle/input")) -> tuple[Path, Path] | None:
    """The folder of test images and the sample submission of a competition mounted under `root`.

    That is `test` beside `sample_submission.csv`, at most four folders down. Of several, the one
    whose folder is named after Sartorius; None if there is none.
    Raises ImageError if the choice is not clear.
    """
    found = list({folder.resolve(): folder for folder in _competitions(root, depth=4)}.values())
    chosen = [folder for folder in found if "sartorius" in folder.name.lower()] or found
    if len(chosen) > 1:
        listed = ", ".join(str(folder) for folder in chosen)
        raise ImageError(f"{root}: expected one competition, found {len(chosen)}: {listed}")
    return (chosen[0] / "test", chosen[0] / "sample_submission.csv") if chosen else None


def read_image(file: ImageFile) -> CellImage:
    """The pixels of a PNG, TIFF, JPEG or BMP file, which its content tells apart, not its name.

    Gray stays gray; palettes become RGB, alpha is dropped, and RGB with three equal channels
    becomes gray. 1-bit pictures become 0 and 255. Orientation tags are ignored, since masks
    belong to the stored pixels.

    16-bit values count as b-bit ones, b being the least of 8, 10, 12, 14 and 16 that holds the
    image's maximum (cameras store 10 to 14 bits in 16), and go linearly from [0, 2^b - 1] to
    [0, 255], rounded half up. So 8 bits stored in 16 do not change, nor does their multiple by 257
    where its maximum needs more than 14 bits.

    Raises ImageError if the file cannot be read or is damaged, truncated or larger than
    `image_formats.MAX_PIXELS`, or if its samples are signed, floats or wider than 16 bits, or if it
    holds several pages.
    """
    with _naming(file.path):
        data = file.path.read_bytes()
        form, _ = header(BytesIO(data))
        form.check(data)
        picture = form.decode(data)
        pixels = _to_eight_bits(picture.pixels)
        return CellImage(file.id, ~pixels if picture.negative else pixels)


def image_size(file: ImageFile) -> tuple[int, int]:
    """Height and width in pixels, from the header alone.

    Raises ImageError where the header already tells that `read_image` would.
    """
    with _naming(file.path), file.path.open("rb") as stream:
        return header(stream)[1]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
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


def _competitions(folder: Path, depth: int) -> Iterator[Path]:
    """Folders at or below `folder` that look like the competition's, none inside another."""
    inner: list[str] = []
    try:
        marked = (folder / "sample_submission.csv").is_file() and (folder / "test").is_dir()
        if depth and not marked:
            with os.scandir(folder) as entries:
                inner = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:  # what cannot be listed cannot be the mount
        return
    if marked:
        yield folder
    for name in inner:
        if name not in _NOT_MOUNTS and not name.startswith("."):
            yield from _competitions(folder / name, depth - 1)


def _to_eight_bits(pixels: NDArray[Any]) -> UInt8:
    """uint8 of uint8 or uint16 pixels as `read_image` describes; gray where channels are equal."""
    if pixels.ndim == 3 and all(np.array_equal(pixels[..., 0], pixels[..., i]) for i in (1, 2)):
        pixels = pixels[..., 0]
    if pixels.dtype == np.uint16:
        highest = int(pixels.max())
        top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if highest < 2**bits)
        pixels = ((np.arange(top + 1) * 510 + top) // (2 * top)).astype(np.uint8)[pixels]
    return np.ascontiguousarray(pixels, np.uint8)
