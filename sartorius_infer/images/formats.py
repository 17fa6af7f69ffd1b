"""What the image formats PNG, JPEG, BMP and TIFF are: headers, structure checks, decoders.

A picture is read whole or not at all: each format's structure is checked before its decoder runs,
because some decoders fill what is missing with gray, and some print.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile as PillowFile
from PIL.TiffImagePlugin import TiffImageFile

from sartorius_infer.errors import ImageError

# OpenCV's own limit, applied to every format.
MAX_PIXELS = 1 << 30

_LONGEST_HEADER = 1 << 27
_OPENCV_LOG = threading.Lock()


class Picture(NamedTuple):
    """A decoded picture.

    pixels    (H, W) gray or (H, W, 3) RGB, uint8 or uint16
    negative  whether 0 still stands for white; not turned here, since the bits in use come first
    """

    pixels: NDArray[Any]
    negative: bool = False


class Format(NamedTuple):
    """How one format is read: (H, W) of a stream, a check of the whole, its picture."""

    size_hw: Callable[[BinaryIO], tuple[int, int]]
    check: Callable[[bytes], None]
    decode: Callable[[bytes], Picture]


def header(stream: BinaryIO) -> tuple[Format, tuple[int, int]]:
    """Format and (H, W) of the picture in a stream.

    Raises ImageError if the format is none of these, or if the header tells that the picture cannot
    be read or is larger than `MAX_PIXELS`.
    """
    start = stream.read(8)
    form = next((form for magic, form in _FORMATS.items() if start.startswith(magic)), None)
    if form is None:
        found = f"a file that begins with {start.hex(' ')}" if start else "an empty file"
        raise ImageError(f"expected a PNG, TIFF, JPEG or BMP image, found {found}")
    height, width = form.size_hw(stream)
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"expected 1 to {MAX_PIXELS} pixels, found {height} x {width}")
    return form, (height, width)


def _take(stream: BinaryIO, layout: str, at: int | None = None) -> tuple[Any, ...]:
    """The next bytes, or those at `at`, unpacked as `layout`. Raises ImageError if there are fewer."""
    if at is not None:
        stream.seek(at)
    size = struct.calcsize(layout)
    data = stream.read(min(size, _LONGEST_HEADER))
    if len(data) < size:
        total = stream.seek(0, os.SEEK_END)
        raise ImageError(f"expected a whole image, found {total} bytes that end inside the header")
    return struct.unpack(layout, data)


def _truncated(form: str, data: bytes, where: str) -> ImageError:
    return ImageError(f"expected a whole {form}, found {len(data)} bytes that end {where}")


def _png_size(stream: BinaryIO) -> tuple[int, int]:
    kind, width, height = _take(stream, ">4sII", at=12)
    if kind != b"IHDR":
        raise ImageError(f"expected a PNG that begins with IHDR, found {kind!r}")
    return height, width


def _check_png(data: bytes) -> None:
    """Raise ImageError unless every chunk is there with its checksum, up to the end marker."""
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 8 > len(data):
            raise _truncated("PNG", data, "before its end marker")
        length, kind = struct.unpack_from(">I4s", data, at)
        name, end = kind.decode("ascii", "backslashreplace"), at + 12 + length
        if end > len(data):
            raise _truncated("PNG", data, f"inside a chunk {name}")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ImageError(f"expected an intact PNG, found a chunk {name} that fails its checksum")
        if kind == b"acTL" and data[at + 8 : at + 12] > b"\0\0\0\1":
            raise ImageError("expected one picture, found an animation; save one image per file")
        at = end


def _jpeg_size(stream: BinaryIO) -> tuple[int, int]:
    """(H, W) of the frame header, the first marker SOF0 to SOF15 (ITU-T T.81, B.1.1.3)."""
    stream.seek(2)
    while True:
        lead, code = _take(stream, ">BB")
        while code == 0xFF:
            (code,) = _take(stream, ">B")
        (length,) = _take(stream, ">H")
        if lead != 0xFF or length < 2 or code in (0xD9, 0xDA):
            raise ImageError("expected a JPEG with a frame header, found none")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            _, height, width = _take(stream, ">BHH")
            return height, width
        stream.seek(length - 2, os.SEEK_CUR)


def _check_jpeg(data: bytes) -> None:
    """Raise ImageError unless an end marker follows the last scan; a thumbnail's is before it."""
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise _truncated("JPEG", data, "before its end marker")


def _bmp_size(stream: BinaryIO) -> tuple[int, int]:
    (header,) = _take(stream, "<I", at=14)
    width, height = _take(stream, "<HH" if header == 12 else "<ii")
    return abs(height), width


def _check_bmp(data: bytes) -> None:
    """Raise ImageError if there are fewer bytes than announced; some writers announce 0."""
    (announced,) = struct.unpack_from("<I", data, 2)
    if announced > len(data):
        raise _truncated("BMP", data, f"before the {announced} that it announces")


@dataclass(frozen=True)
class _Tiff:
    """The first directory of a TIFF file (TIFF 6.0, section 2) or BigTIFF file.

    entries  the undecoded entries of the tags that pixels depend on
    tags     the numbers of those of them that hold unsigned integers
    """

    order: str
    big: bool
    entries: tuple[bytes, ...]
    tags: dict[int, tuple[int, ...]]

    def tag(self, number: int, default: int) -> int:
        """The first number of a tag."""
        return self.tags.get(number, (default,))[0]


_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 258, 259, 262, 277, 284
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
# What the pixels depend on; orientation, resolution and private tags are left out.
_PIXEL_TAGS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324}
_PIXEL_TAGS |= {325, 332, 338, 339, 347, *range(512, 522), *range(529, 533)}
# (samples, photometric): gray with 0 as white or as black, RGB, RGB with alpha.
_CHANNELS = {(1, 0), (1, 1), (3, 2), (4, 2)}
_YCBCR = 6
_SAMPLE_NAMES = {1: "unsigned", 2: "signed", 3: "float"}


def _tiff(stream: BinaryIO) -> _Tiff:
    """The only directory of a TIFF file. Raises ImageError if there are several."""
    byte_order, version = _take(stream, "2s2s", at=0)
    order, big = ("<" if byte_order == b"II" else ">"), b"+" in version
    at = first = _take(stream, order + "Q", at=8)[0] if big else _take(stream, order + "I")[0]
    count_as, entry_size, next_as = ("Q", 20, "Q") if big else ("H", 12, "I")
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        (count,) = _take(stream, order + count_as, at=at)
        stream.seek(count * entry_size, os.SEEK_CUR)
        (at,) = _take(stream, order + next_as)
    if len(seen) != 1:
        raise ImageError(f"expected one picture, found {len(seen)} pages; save one image per file")
    (count,) = _take(stream, order + count_as, at=first)
    entries = _take(stream, f"{entry_size}s" * count)
    numbers = [struct.unpack_from(order + "H", entry)[0] for entry in entries]
    kept = {number: entry for number, entry in zip(numbers, entries, strict=True) if number in _PIXEL_TAGS}
    tags = {number: _tiff_numbers(stream, order, entry) for number, entry in kept.items()}
    return _Tiff(order, big, tuple(kept.values()), {number: value for number, value in tags.items() if value})


def _tiff_numbers(stream: BinaryIO, order: str, entry: bytes) -> tuple[int, ...]:
    """The unsigned integers of an entry, in it or where it points; () for other types."""
    big = len(entry) == 20
    _, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), entry)
    code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    if code is None or not count:
        return ()
    layout, field = f"{order}{count}{code}", entry[12:] if big else entry[8:]
    if struct.calcsize(layout) <= len(field):
        return struct.unpack_from(layout, field)
    (at,) = struct.unpack(order + ("Q" if big else "I"), field)
    return _take(stream, layout, at=at)


def _tiff_size(stream: BinaryIO) -> tuple[int, int]:
    """(H, W) of a TIFF file whose samples can be read. Raises ImageError if they cannot."""
    page = _tiff(stream)
    bits, kind = page.tag(_BITS, 1), page.tag(_SAMPLE_FORMAT, 1)
    if kind != 1 or bits not in (1, 2, 4, 8, 16):
        found = f"{bits}-bit {_SAMPLE_NAMES.get(kind, 'untyped')} ones"
        raise ImageError(
            f"expected unsigned samples of 8 or 16 bits, found {found}; convert the image first "
            "(ImageJ: Image > Type > 16-bit)"
        )
    samples, photometric = page.tag(_SAMPLES, 1), page.tag(_PHOTOMETRIC, 0)
    alpha = bits < 16 and page.tag(_EXTRA_SAMPLES, 0) in (1, 2)
    if (photometric < 2 or bits == 16) and (samples - alpha, photometric) not in _CHANNELS:
        raise ImageError(f"expected gray or RGB, found {samples} channels of photometric kind {photometric}")
    if bits == 16 and samples > 1 and page.tag(_PLANAR, 1) != 1:
        raise ImageError("expected 16-bit channels pixel by pixel, found separate planes")
    return page.tag(257, 0), page.tag(256, 0)


def _check_tiff(data: bytes) -> None:
    """Raise ImageError unless every strip or tile is listed and lies inside the file."""
    page = _tiff(BytesIO(data))
    tiled = 324 in page.tags
    starts, lengths = (page.tags.get(number, ()) for number in ((324, 325) if tiled else (273, 279)))
    expected = _tiff_pieces(page, tiled)
    if not expected <= len(starts) == len(lengths):
        found = f"{len(starts)} strips or tiles of {len(lengths)} lengths"
        raise ImageError(f"expected a TIFF of {expected} strips or tiles, found {found}")
    end = max(start + length for start, length in zip(starts, lengths, strict=True))
    if end > len(data):
        raise _truncated("TIFF", data, f"before byte {end} of its last strip")
    needed = page.tag(257, 0) * -(-page.tag(256, 0) * page.tag(_BITS, 1) * page.tag(_SAMPLES, 1) // 8)
    if page.tag(_COMPRESSION, 1) == 1 and page.tag(_PHOTOMETRIC, 0) != _YCBCR and sum(lengths) < needed:
        raise ImageError(f"expected a TIFF of {needed} bytes of pixels, found {sum(lengths)}")


def _tiff_pieces(page: _Tiff, tiled: bool) -> int:
    """How many strips or tiles the picture must have."""
    height, width = page.tag(257, 0), page.tag(256, 0)
    high = page.tag(323 if tiled else 278, height) or height
    wide = page.tag(322, width) or width if tiled else width
    planes = page.tag(_SAMPLES, 1) if page.tag(_PLANAR, 1) == 2 else 1
    return -(-height // high) * -(-width // wide) * planes


def _plain_tiff(data: bytes, page: _Tiff) -> bytes:
    """The same file with a directory of pixel tags only, so that no decoder turns the picture."""
    at = len(data) + len(data) % 2
    count_as, offset_as = ("Q", "Q") if page.big else ("H", "I")
    start = data[: 8 if page.big else 4] + struct.pack(page.order + offset_as, at)
    directory = struct.pack(page.order + count_as, len(page.entries)) + b"".join(page.entries)
    padding = bytes(at - len(data))
    return b"".join([start, memoryview(data)[len(start) :], padding, directory, bytes(8)])


def _decode_tiff(data: bytes) -> Picture:
    """The picture of a TIFF file, as stored.

    Up to 8 bits by Pillow, since OpenCV returns a damaged strip as if it were whole; 16 bits by
    OpenCV, since Pillow keeps 8 of a colour's 16.
    """
    page = _tiff(BytesIO(data))
    plain = _plain_tiff(data, page)
    if page.tag(_BITS, 1) < 16:
        with _UnboundedTiff(BytesIO(plain)) as picture:
            mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
            return Picture(np.array(picture.convert(mode)))
    return _decode_quietly(plain)._replace(negative=page.tag(_PHOTOMETRIC, 0) == 0)


class _UnboundedTiff(TiffImageFile):
    """Without Pillow's own limit on pixels, which is below this package's, and its warning."""

    def load_prepare(self) -> None:
        PillowFile.load_prepare(self)


def _decode(data: bytes) -> Picture:
    """A picture that OpenCV can read."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError("expected a whole image, found a damaged one")
    # BGR or BGRA to RGB.
    return Picture(pixels if pixels.ndim == 2 else pixels[..., 2::-1])


def _decode_quietly(data: bytes) -> Picture:
    """`_decode` while OpenCV's log, to which its TIFF and BMP readers print, is silent."""
    log = cv2.utils.logging
    with _OPENCV_LOG:
        level = log.setLogLevel(log.LOG_LEVEL_SILENT)
        try:
            return _decode(data)
        finally:
            log.setLogLevel(level)


_TIFF_FORMAT = Format(_tiff_size, _check_tiff, _decode_tiff)
_FORMATS = {
    b"\x89PNG\r\n\x1a\n": Format(_png_size, _check_png, _decode),
    b"\xff\xd8\xff": Format(_jpeg_size, _check_jpeg, _decode),
    b"BM": Format(_bmp_size, _check_bmp, _decode_quietly),
    b"II*\0": _TIFF_FORMAT,
    b"MM\0*": _TIFF_FORMAT,
    b"II+\0": _TIFF_FORMAT,  # BigTIFF; Pillow cannot read its other byte order
}
