"""TIFF and BigTIFF files: what can be wrong with them, and their pixels as they are stored.

Up to 8 bits are decoded by Pillow, since OpenCV returns a damaged strip as if it were whole; 16 bits by
OpenCV, since Pillow keeps 8 of a colour's 16, and where OpenCV lacks the codec by Pillow as gray. Strips
that are JPEG 2000, WebP or PNG files of their own are put together here.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile as PillowFile
from PIL.TiffImagePlugin import TiffImageFile

from sartorius_infer.errors import ImageError
from sartorius_infer.images import tiff_directory as tags
from sartorius_infer.images.pictures import Format, Picture, decode_quietly, truncated
from sartorius_infer.images.tiff_directory import Directory, read_directory

# (samples, photometric): gray with 0 as white or as black, RGB, RGB with alpha.
_CHANNELS = {(1, 0), (1, 1), (3, 2), (4, 2)}
_YCBCR = 6
_SAMPLE_NAMES = {1: "unsigned", 2: "signed", 3: "float"}

# By number (libtiff's tiff.h): what both decoders read, what Pillow alone does, and pictures of their own.
_PLAIN = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946}
_BY_PILLOW = {34925: "LZMA", 50000: "Zstandard"}
_PICTURES = {33005: "JPEG 2000", 34712: "JPEG 2000", 34933: "PNG", 50001: "WebP"}
_UNREAD = {
    22610: "JPEG XR", 33003: "JPEG 2000 in YCbCr", 34661: "JBIG", 34676: "SGI log", 34677: "SGI log",
    34887: "LERC", 34892: "lossy JPEG", 34934: "JPEG XR", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
# At most so many bytes of one: LZW's longest string for 12 bits, Deflate's 258 for 2 bits, 128 for two bytes,
# a Zstandard block of one byte repeated.
_UNPACKED = {5: 2559, 8: 1032, 32946: 1032, 32773: 64, 50000: 1 << 15}
_FAX = (2, 3, 4)
_NAMES = {6: "JPEG", 7: "JPEG", 33007: "JPEG", **_BY_PILLOW, **_PICTURES, **_UNREAD}
_CONVERT = "save the image without compression or with LZW"


def _size_hw(stream: BinaryIO) -> tuple[int, int]:
    """(H, W) of a TIFF file whose samples can be read. Raises ImageError if they cannot."""
    page = read_directory(stream)
    if has_numbers(page):
        return page.size_hw
    _require_samples(page)
    compression = page.tag(tags.COMPRESSION, 1)
    if compression not in {*_PLAIN, *_BY_PILLOW, *_PICTURES}:
        found = compression_name(compression)
        raise ImageError(f"expected a compression that is known here, found {found}; {_CONVERT}")
    return page.size_hw


def has_numbers(page: Directory) -> bool:
    """Whether the samples are numbers without a range: floats, signed, or of over 16 bits."""
    kind, bits = page.tag(tags.SAMPLE_FORMAT, 1), page.tag(tags.BITS, 1)
    return (kind in _SAMPLE_NAMES and bits in (8, 16, 32, 64)) and (kind != 1 or bits > 16)


def compression_name(number: int) -> str:
    """A compression by its name, with its number in TIFF."""
    return f"{_NAMES.get(number, 'an unknown one')} ({number})"


def _require_samples(page: Directory) -> None:
    """Raise ImageError unless unsigned samples are of at most 16 bits, gray or colour."""
    bits, kind = page.tag(tags.BITS, 1), page.tag(tags.SAMPLE_FORMAT, 1)
    if kind != 1 or bits not in (1, 2, 4, 8, 16):
        found = f"{bits}-bit {_SAMPLE_NAMES.get(kind, 'untyped')} ones"
        raise ImageError(
            f"expected samples of 1, 2, 4, 8 or 16 bits, or numbers of up to 64, found {found}; convert the "
            "image first (ImageJ: Image > Type > 16-bit)"
        )
    samples, photometric = page.tag(tags.SAMPLES, 1), page.tag(tags.PHOTOMETRIC, 0)
    alpha = bits < 16 and page.tag(tags.EXTRA_SAMPLES, 0) in (1, 2)
    strict = photometric < 2 or bits == 16 or page.tag(tags.COMPRESSION, 1) in _PICTURES
    if strict and (samples - alpha, photometric) not in _CHANNELS:
        raise ImageError(f"expected gray or RGB, found {samples} channels of photometric kind {photometric}")


def _check(data: bytes) -> None:
    """Raise ImageError unless every strip or tile is listed and lies inside the file."""
    page = read_directory(BytesIO(data))
    starts, lengths = page.pieces
    expected = _count_pieces(page)
    if not expected <= len(starts) == len(lengths):
        found = f"{len(starts)} strips or tiles of {len(lengths)} lengths"
        raise ImageError(f"expected a TIFF of {expected} strips or tiles, found {found}")
    end = max(start + length for start, length in zip(starts, lengths, strict=True))
    if end > len(data):
        raise truncated("TIFF", data, f"before byte {end} of its last strip")
    _require_enough(page, sum(lengths))


def _require_enough(page: Directory, found: int) -> None:
    """Raise ImageError unless so many bytes can hold the picture: decoders take memory for it first."""
    needed, compression = page.tag(tags.HEIGHT, 0) * page.row_bytes, page.tag(tags.COMPRESSION, 1)
    if compression in _FAX:  # a row like the one above is a bit
        most = 8 * page.row_bytes * found
    elif compression == 1 and page.tag(tags.PHOTOMETRIC, 0) != _YCBCR:
        most = found
    else:
        most = _UNPACKED[compression] * found if compression in _UNPACKED else needed
    if most < needed:
        raise ImageError(f"expected a TIFF of {needed} bytes of pixels, found {found}")


def _count_pieces(page: Directory) -> int:
    """How many strips or tiles the picture must have."""
    (height, width), (high, wide) = page.size_hw, page.piece_hw
    planes = page.tag(tags.SAMPLES, 1) if page.is_apart else 1
    return -(-height // high) * -(-width // wide) * planes


def _decode(data: bytes) -> Picture:
    """The picture of a TIFF file, as stored."""
    page = read_directory(BytesIO(data))
    compression = page.tag(tags.COMPRESSION, 1)
    try:
        if page.tag(tags.BITS, 1) < 16 and compression not in _PICTURES:
            return Picture(_few_bits(page.file(data)))
        apart = list(page.planes()) if page.is_apart else [page]
        pixels = [_stored(data, plane) for plane in apart]
    except Exception as error:
        if compression in _PLAIN:
            raise
        found = f"{_NAMES[compression]} that does not decode (damaged, or a codec that is missing here)"
        raise ImageError(f"expected a compression that can be read, found {found}; {_CONVERT}") from error
    # Alpha, where there is one, is last.
    whole = np.dstack(pixels[:3]) if len(pixels) > 1 else pixels[0]
    return Picture(whole, negative=page.tag(tags.PHOTOMETRIC, 0) == 0)


def _few_bits(file: bytes) -> NDArray[Any]:
    """Up to 8 bits a sample, filling the range of 8; a negative is turned."""
    with UnboundedTiff(BytesIO(file)) as picture:
        return np.array(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))


def _stored(data: bytes, page: Directory) -> NDArray[Any]:
    """The stored values, (H, W) or (H, W, 3), of a picture that does not keep its channels apart."""
    if page.tag(tags.COMPRESSION, 1) in _PICTURES:
        return _of_pictures(data, page)
    if page.tag(tags.COMPRESSION, 1) in _BY_PILLOW:
        return _as_gray(data, page)
    return decode_quietly(page.file(data)).pixels


def _as_gray(data: bytes, page: Directory) -> NDArray[Any]:
    """16 bits by Pillow, which keeps them of gray only: so a row of colour is called a longer row of gray."""
    (height, width), samples = page.size_hw, page.tag(tags.SAMPLES, 1)
    wide = page.piece_hw[1]
    gray = page.saying(t256=width * samples, t258=16, t262=1, t277=1, t338=None, t339=None)
    if page.is_tiled:
        gray = gray.saying(t322=wide * samples)
    differs = samples > 1 and page.tag(tags.PREDICTOR, 1) == 2
    with UnboundedTiff(BytesIO((gray.saying(t317=1) if differs else gray).file(data))) as picture:
        pixels = np.array(picture).astype(np.uint16).reshape(height, width, samples)
    if differs:  # from the pixel to the left (TIFF 6.0, section 14), each strip or tile by itself
        for left in range(0, width, wide):
            part = pixels[:, left : left + wide]
            np.cumsum(part, axis=1, dtype=np.uint16, out=part)
    return pixels[..., 0] if samples == 1 else pixels[..., :3]


def _of_pictures(data: bytes, page: Directory) -> NDArray[Any]:
    """A picture whose strips or tiles are files of their own."""
    (height, width), (high, wide) = page.size_hw, page.piece_hw
    across = -(-width // wide)
    channels = 1 if page.tag(tags.SAMPLES, 1) == 1 else 3
    kind = np.uint8 if page.tag(tags.BITS, 1) == 8 else np.uint16
    canvas = np.zeros((-(-height // high) * high, across * wide, channels), kind)
    for index, (start, length) in enumerate(zip(*page.pieces, strict=True)):
        top, left = index // across * high, index % across * wide
        piece = decode_quietly(data[start : start + length]).pixels
        piece = piece.reshape(*piece.shape[:2], -1)[..., -channels:]
        rows, columns = min(high, height - top), min(wide, width - left)
        if piece.dtype != kind or piece.shape[0] < rows or piece.shape[1] < columns:
            raise ImageError(
                f"expected strips of {rows} x {columns} pixels, found {piece.dtype} {piece.shape}"
            )
        canvas[top : top + rows, left : left + columns] = piece[:rows, :columns]
    whole = canvas[:height, :width]
    return whole[..., 0] if channels == 1 else whole


class UnboundedTiff(TiffImageFile):
    """Without Pillow's own limit on pixels, which is below this package's, and its warning."""

    def load_prepare(self) -> None:
        """Nothing but to allocate."""
        PillowFile.load_prepare(self)


TIFF = Format(_size_hw, _check, _decode)
