"""Pictures whose values are names and no brightness, as label maps are: stored values of stored pixels.

Nothing is scaled, turned by an orientation, inverted where 0 stands for white, or looked up in a palette.
TIFF rows are unpacked as bytes, whatever their samples are, and only then taken for numbers: no decoder at
hand knows every type, and each has an opinion of its own on what to show for it. (tifffile knows them, but
needs a second package of compiled codecs for LZW, which most programs write.)
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from sartorius_infer.errors import ImageError
from sartorius_infer.images import tiff_directory as tags
from sartorius_infer.images.formats import header
from sartorius_infer.images.tiff import TIFF, UnboundedTiff, compression_name
from sartorius_infer.images.tiff_directory import Directory, read_directory
from sartorius_infer.types import MAX_PIXELS, UInt8

_PNG = b"\x89PNG\r\n\x1a\n"
# None, CCITT of one bit (2 to 4), LZW, Deflate, PackBits, LZMA and Zstandard: those that change no value.
_CCITT = (2, 3, 4)
_EXACT = {1, *_CCITT, 5, 8, 32773, 32946, 34925, 50000}
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_TYPES = {"u": (1, 2, 4, 8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
_BY_PLANES = 3
"""The predictor of floats (TIFF Technical Note 3): differences of bytes, the highest of all numbers first."""


def is_tiff(data: bytes) -> bool:
    """Whether a file is a TIFF or BigTIFF, by its first bytes."""
    return data.startswith(tags.MAGICS)


def stored_values(data: bytes) -> NDArray[Any]:
    """The numbers (H, W), or (H, W, C), of the only picture in a TIFF or PNG file, of the file's own type.

    TIFF: any integer or float of up to 64 bits, in either byte order; PNG: up to 16 bits of gray, 8 of
    colour, indices of palettes. Raises ImageError for other files, stacks, and what would not be exact.
    """
    if is_tiff(data):
        return _tiff_values(data)
    if data.startswith(_PNG):
        return _png_values(data)
    start = data[:8].hex(" ") or "nothing"
    raise ImageError(f"expected a TIFF or PNG file, found one that begins with {start}")


def _png_values(data: bytes) -> NDArray[Any]:
    form, _ = header(BytesIO(data))
    form.check(data)
    bits, kind = data[24:26]
    if bits == 16 and kind:
        raise ImageError("expected gray or 8-bit colour, found 16-bit channels")
    with PngImageFile(BytesIO(data)) as picture:
        return np.array(picture)


def _tiff_values(data: bytes) -> NDArray[Any]:
    page = read_directory(BytesIO(data))
    (height, width), samples = page.size_hw, page.tag(tags.SAMPLES, 1)
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"expected 1 to {MAX_PIXELS} pixels, found {height} x {width}")
    dtype, bits = _sample_type(page)
    _require_exact(page)
    TIFF.check(data)
    if page.tag(tags.COMPRESSION, 1) in _CCITT:
        return _read(page.saying(t262=1, t339=None), data)
    across = -(-width // page.piece_hw[1])
    rows = _rows(page, data, bits * samples).reshape(height, across, -1)
    predictor = page.tag(tags.PREDICTOR, 1)
    if bits < 8:
        values = _few_bits(rows, bits)
    elif predictor == _BY_PLANES:
        values = _from_planes(rows, dtype, samples)
    else:
        values = rows.view(dtype).reshape(height, across, -1, samples)
        values = values.astype(dtype.newbyteorder("="), copy=False)
    if predictor == 2:
        values = np.cumsum(values, axis=2, dtype=values.dtype)
    whole: NDArray[Any] = values.reshape(height, -1, samples)[:, :width]
    return whole[..., 0] if samples == 1 else whole


def _sample_type(page: Directory) -> tuple[np.dtype[Any], int]:
    """How a sample is written, and how many bits it has."""
    every = set(page.numbers.get(tags.BITS, (1,)))
    bits, number = page.tag(tags.BITS, 1), page.tag(tags.SAMPLE_FORMAT, 1)
    kind = _KINDS.get(number, "")
    if len(every) > 1 or bits not in _TYPES.get(kind, ()):
        raise ImageError(f"expected integers or floats of up to 64 bits, found {bits} bits of kind {number}")
    return np.dtype(f"{page.order}{kind}{max(bits // 8, 1)}"), bits


def _require_exact(page: Directory) -> None:
    """Raise ImageError unless the stored numbers can be had, one after the other."""
    compression, samples = page.tag(tags.COMPRESSION, 1), page.tag(tags.SAMPLES, 1)
    if compression not in _EXACT:
        raise ImageError(
            "expected a compression that keeps every value (LZW, Deflate, PackBits), found "
            f"{compression_name(compression)}; save the file without compression or with LZW"
        )
    if samples > 1 and (page.tag(tags.PLANAR, 1) == 2 or page.tag(tags.BITS, 1) < 8):
        raise ImageError(f"expected one number for each pixel, found {samples} planes")


def _rows(page: Directory, data: bytes, unit: int) -> UInt8:
    """The bytes of each row (H, ...), pixels of `unit` bits; of tiles all, the last one's margin too."""
    height, width = page.size_hw
    high, wide = page.piece_hw
    bytes_wide = -(-wide * unit // 8)
    plain = page.saying(t258=8, t262=1, t277=1, t284=None, t317=None, t320=None, t338=None, t339=None)
    if page.is_tiled:
        size = {"t256": -(-width // wide) * bytes_wide, "t257": -(-height // high) * high}
        plain = plain.saying(**size, t322=bytes_wide)
    else:
        plain = plain.saying(t256=bytes_wide)
    return _read(plain, data)[:height]


def _read(page: Directory, data: bytes) -> NDArray[Any]:
    with UnboundedTiff(BytesIO(page.file(data))) as picture:
        return np.array(picture)


def _few_bits(rows: UInt8, bits: int) -> UInt8:
    """Numbers of 1, 2 or 4 bits, the highest bit first, (H, A, W, 1) of bytes (H, A, W * bits / 8)."""
    parts = np.unpackbits(rows, axis=-1).reshape(*rows.shape[:2], -1, bits)
    places = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    return np.asarray((parts << places).sum(-1, dtype=np.uint8, keepdims=True))


def _from_planes(rows: UInt8, dtype: np.dtype[Any], samples: int) -> NDArray[Any]:
    """Floats (H, A, W, samples) whose bytes lie apart: all first ones of a piece's row, then all second."""
    height, across, _ = rows.shape
    differences = rows.reshape(height, across, -1, samples)
    planes = np.cumsum(differences, axis=2, dtype=np.uint8).reshape(height, across, dtype.itemsize, -1)
    numbers = np.ascontiguousarray(planes.swapaxes(2, 3)).view(dtype.newbyteorder(">"))
    return numbers.reshape(height, across, -1, samples).astype(dtype.newbyteorder("="))
