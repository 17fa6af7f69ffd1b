"""Reading images: files by their content, and arrays that somebody has read already."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.errors import ImageError
from sartorius_infer.files import as_id, as_path
from sartorius_infer.images.find import ImageFile, naming, require_file
from sartorius_infer.images.formats import header
from sartorius_infer.types import CellImage, UInt8

AnyImage = str | Path | ImageFile | CellImage | NDArray[Any]
"""What counts as one image, wherever people hand one over."""

Limits = tuple[int, int]
"""The 16-bit values that are read as black and as white."""


def read_image(file: str | Path | ImageFile, limits: Limits | None = None) -> CellImage:
    """The pixels of a PNG, TIFF, JPEG, BMP or WebP file, which its content tells apart, not its name.

    Gray stays gray; palettes become RGB, alpha is dropped, and RGB with three equal channels
    becomes gray. 1-bit pictures become 0 and 255. Orientation tags are ignored, since masks
    belong to the stored pixels.

    16-bit values go linearly from `limits`, the values that are black and white, to [0, 255], rounded
    half up; what lies outside saturates. A manifest may fix the limits (`images.bits` or
    `images.range`). Where they are None, values count as b-bit ones, from 0 to 2^b - 1, b being the
    least of 8, 10, 12, 14 and 16 (cameras store 10 to 14 bits in 16) that holds all pixels but a
    handful: dust and dead pixels must not decide. A handful is 20 pixels or one in 10,000, whichever
    is more, but never over one in 100; a pixel counts by its brightest channel. So 8 bits stored in 16
    do not change, nor does their multiple by 257 where it needs more than 14 bits.

    Raises ImageError if the file cannot be read or is damaged, truncated or larger than
    `formats.MAX_PIXELS`, or if its samples are signed, floats or wider than 16 bits, or if it
    holds several pages or a stack, or if its name is not UTF-8, so that no output could name it.
    """
    return read_with_values(file, limits)[0]


def read_with_values(
    file: str | Path | ImageFile, limits: Limits | None = None
) -> tuple[CellImage, NDArray[Any]]:
    """An image as `read_image` gives it, and its pixels before they became 8-bit ones.

    Those are (H, W) gray or (H, W, 3) RGB in the file's own type; bright is high in either.
    """
    if not isinstance(file, ImageFile):
        file = ImageFile(as_id(as_path(file, "image").stem), Path(file))
    with naming(file.path):
        require_file(file.path)
        data = file.path.read_bytes()
        form, _ = header(BytesIO(data))
        form.check(data)
        values, negative = form.decode(data)
        pixels = _to_eight_bits(values, limits)
        if negative:
            pixels, values = ~pixels, ~values
        return CellImage(file.id, pixels), values


def image_size(file: ImageFile) -> tuple[int, int]:
    """Height and width in pixels, from the header alone.

    Raises ImageError where the header already tells that `read_image` would.
    """
    with naming(file.path):
        require_file(file.path)
        with file.path.open("rb") as stream:
            return header(stream)[1]


def as_image(image: AnyImage, limits: Limits | None = None) -> CellImage:
    """An image as the networks take it, from a file or from an array.

    An array is (H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA, whose alpha is dropped; uint8, uint16, which
    counts as `read_image` says with these `limits`, or fractions in [0, 1]. Its id is "image".
    Raises ImageError for another shape or type, or values outside; TypeError for what is no image.
    """
    if isinstance(image, CellImage):
        return image
    if isinstance(image, str | Path | ImageFile):
        return read_image(image, limits)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            "image: expected a path, an array (H, W), (H, W, 3) or (H, W, 4), or a list of them, found "
            f"{type(image).__name__}"
        )
    shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if not shaped or image.size == 0:
        raise ImageError(f"image: expected an array (H, W), (H, W, 3) or (H, W, 4), found {image.shape}")
    pixels = image[..., :3] if image.ndim == 3 else image
    return CellImage("image", _to_eight_bits(_whole(pixels), limits))


def _whole(pixels: NDArray[Any]) -> NDArray[Any]:
    """Uint8 or uint16 of an array's pixels."""
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:
            raise ImageError(f"image: expected fractions in [0, 1], found {low:g} to {high:g}")
        return np.floor(pixels * 255 + 0.5).astype(np.uint8)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"image: expected uint8, uint16 or fractions in [0, 1], found {pixels.dtype}")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _to_eight_bits(pixels: NDArray[Any], limits: Limits | None) -> UInt8:
    """uint8 of uint8 or uint16 pixels as `read_image` describes; gray where channels are equal."""
    if pixels.ndim == 3 and all(np.array_equal(pixels[..., 0], pixels[..., i]) for i in (1, 2)):
        pixels = pixels[..., 0]
    if pixels.dtype == np.uint16:
        low, high = limits or (0, 2 ** _bits_in_use(pixels) - 1)
        values = np.clip(np.arange(2**16), low, high) - low
        pixels = ((values * 510 + high - low) // (2 * (high - low))).astype(np.uint8)[pixels]
    return np.ascontiguousarray(pixels, np.uint8)


def _bits_in_use(pixels: NDArray[np.uint16]) -> int:
    """The least usual depth of a camera that holds all pixels but a handful."""
    brightest = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    handful = min(max(20, brightest.size // 10_000), brightest.size // 100)
    return next(bits for bits in (8, 10, 12, 14, 16) if np.count_nonzero(brightest >> bits) <= handful)
