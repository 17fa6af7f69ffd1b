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
from sartorius_infer.images.pages import page_file
from sartorius_infer.images.pictures import Picture
from sartorius_infer.images.stored import is_tiff, stored_values
from sartorius_infer.images.tiff import has_numbers
from sartorius_infer.images.tiff_directory import PHOTOMETRIC, SAMPLES, read_directory
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

    Floats, signed numbers and those of over 16 bits, which TIFF may hold, are fractions of white where
    floats lie in [0, 1]; where none is negative or over 65535 they are rounded, half up, and read as 16-bit
    values; others go linearly from `limits`, or where there are none from the image's lowest value but a
    handful to its highest but a handful.

    Raises ImageError if the file cannot be read or is damaged, truncated or larger than
    `types.MAX_PIXELS`, or if a pixel is NaN or infinite, or if it holds several pages or a stack, of which
    `find_images` gives each page, or if its name is not UTF-8, so that no output could name it.
    """
    return read_with_values(file, limits)[0]


def read_with_values(
    file: str | Path | ImageFile, limits: Limits | None = None
) -> tuple[CellImage, NDArray[Any]]:
    """An image as `read_image` gives it, and its pixels before they became 8-bit ones.

    Those are (H, W) gray or (H, W, 3) RGB in the file's own type; of 8 and 16 bits bright is high.
    """
    if not isinstance(file, ImageFile):
        file = ImageFile(as_id(as_path(file, "image").stem), Path(file))
    with naming(file.path):
        require_file(file.path)
        values, negative = _picture(_content(file), file.channel)
        pixels = _to_eight_bits(values, limits)
        if negative:
            pixels, values = ~pixels, ~values if values.dtype.kind == "u" else values
        return CellImage(file.id, pixels), values


def _content(file: ImageFile) -> bytes:
    """The bytes of a file of one picture: the file's own, or those of its page."""
    return file.path.read_bytes() if file.page is None else page_file(file.path, file.page)


def _picture(data: bytes, channel: int | None) -> Picture:
    """The picture of a file of one, or a channel of it, which is gray."""
    if channel is not None and is_tiff(data):
        page = read_directory(BytesIO(data))
        if page.is_apart:
            data, channel = page.plane_file(data, channel), None
        elif page.tag(SAMPLES, 1) not in (1, 3, 4):
            return Picture(one_channel(stored_values(data), channel))
    picture = _whole_picture(data)
    return picture if channel is None else picture._replace(pixels=one_channel(picture.pixels, channel))


def _whole_picture(data: bytes) -> Picture:
    form, _ = header(BytesIO(data))
    if not is_tiff(data) or not has_numbers(page := read_directory(BytesIO(data))):
        form.check(data)
        return form.decode(data)
    values = stored_values(data)
    if values.ndim == 3 and values.shape[2] not in (3, 4):
        raise ImageError(f"expected gray or RGB, found {values.shape[2]} channels; --channel N takes one")
    # Alpha, where there is one, is last.
    return Picture(values[..., :3] if values.ndim == 3 else values, page.tag(PHOTOMETRIC, 1) == 0)


def one_channel(pixels: NDArray[Any], channel: int) -> NDArray[Any]:
    """A channel (H, W) of (H, W) or (H, W, C); raises ImageError where it has none of this number."""
    count = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channel >= count:
        raise ImageError(f"expected a channel below {count}, found {channel}")
    return pixels if pixels.ndim == 2 else pixels[..., channel]


def image_size(file: ImageFile) -> tuple[int, int]:
    """Height and width in pixels, from the header alone; of a channel from the picture.

    Raises ImageError where the header already tells that `read_image` would.
    """
    with naming(file.path):
        require_file(file.path)
        if file.channel is not None:
            values, _ = _picture(_content(file), file.channel)
            return values.shape[0], values.shape[1]
        with file.path.open("rb") if file.page is None else BytesIO(_content(file)) as stream:
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
    if pixels.dtype not in (np.uint8, np.uint16):
        return _of_numbers(pixels, limits)
    if pixels.dtype == np.uint16:
        low, high = limits or (0, 2 ** _bits_in_use(pixels) - 1)
        values = np.clip(np.arange(2**16), low, high) - low
        pixels = ((values * 510 + high - low) // (2 * (high - low))).astype(np.uint8)[pixels]
    return np.ascontiguousarray(pixels, np.uint8)


def _bits_in_use(pixels: NDArray[np.uint16]) -> int:
    """The least usual depth of a camera that holds all pixels but a handful."""
    brightest = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    handful = _handful(brightest.size)
    return next(bits for bits in (8, 10, 12, 14, 16) if np.count_nonzero(brightest >> bits) <= handful)


def _handful(pixels: int) -> int:
    """So many pixels that dust and dead ones may be."""
    return min(max(20, pixels // 10_000), pixels // 100)


def _of_numbers(values: NDArray[Any], limits: Limits | None) -> UInt8:
    """uint8 of numbers of any other type as `read_image` describes."""
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        raise ImageError(f"expected finite numbers, found {np.count_nonzero(~finite)} of NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and 0 <= low <= high <= 1:
        return np.floor(values * 255 + 0.5).astype(np.uint8)
    if 0 <= low <= high <= 2**16 - 1:
        return _to_eight_bits(np.floor(values + 0.5).clip(max=2**16 - 1).astype(np.uint16), limits)
    if limits is None:
        ordered, rest = np.sort(values, axis=None), _handful(values.size)
        low, high = float(ordered[rest]), float(ordered[-1 - rest])
    else:
        low, high = limits
    shares = (values.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.floor(shares.clip(0, 1) * 255 + 0.5).astype(np.uint8)
