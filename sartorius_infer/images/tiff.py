"""TIFF and BigTIFF files: their directory, what can be wrong with it, their pixels."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL.ImageFile import ImageFile as PillowFile
from PIL.TiffImagePlugin import TiffImageFile

from sartorius_infer.errors import ImageError
from sartorius_infer.images.pictures import Format, Picture, decode_quietly, take, truncated


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
    byte_order, version = take(stream, "2s2s", at=0)
    order, big = ("<" if byte_order == b"II" else ">"), b"+" in version
    at = first = take(stream, order + "Q", at=8)[0] if big else take(stream, order + "I")[0]
    count_as, entry_size, next_as = ("Q", 20, "Q") if big else ("H", 12, "I")
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        (count,) = take(stream, order + count_as, at=at)
        stream.seek(count * entry_size, os.SEEK_CUR)
        (at,) = take(stream, order + next_as)
    if len(seen) != 1:
        raise ImageError(f"expected one picture, found {len(seen)} pages; save one image per file")
    (count,) = take(stream, order + count_as, at=first)
    entries = take(stream, f"{entry_size}s" * count)
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
    return take(stream, layout, at=at)


def _size_hw(stream: BinaryIO) -> tuple[int, int]:
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


def _check(data: bytes) -> None:
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
        raise truncated("TIFF", data, f"before byte {end} of its last strip")
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


def _decode(data: bytes) -> Picture:
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
    return decode_quietly(plain)._replace(negative=page.tag(_PHOTOMETRIC, 0) == 0)


class _UnboundedTiff(TiffImageFile):
    """Without Pillow's own limit on pixels, which is below this package's, and its warning."""

    def load_prepare(self) -> None:
        PillowFile.load_prepare(self)


TIFF = Format(_size_hw, _check, _decode)
