"""What the image formats PNG, JPEG, BMP, WebP and TIFF are: headers, structure checks, decoders.

A picture is read whole or not at all: each format's structure is checked before its decoder runs,
because some decoders fill what is missing with gray, and some print.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from sartorius_infer.errors import ImageError
from sartorius_infer.images.pictures import Format, decode, decode_quietly, take, truncated
from sartorius_infer.images.png import PNG
from sartorius_infer.images.tiff import TIFF
from sartorius_infer.types import MAX_PIXELS


def header(stream: BinaryIO) -> tuple[Format, tuple[int, int]]:
    """Format and (H, W) of the picture in a stream.

    Raises ImageError if the format is none of these, or if the header tells that the picture cannot
    be read or is larger than `MAX_PIXELS`.
    """
    start = stream.read(8)
    form = next((form for magic, form in _FORMATS.items() if start.startswith(magic)), None)
    if form is None:
        found = f"a file that begins with {start.hex(' ')}" if start else "an empty file"
        raise ImageError(f"expected a PNG, TIFF, JPEG, BMP or WebP image, found {found}")
    height, width = form.size_hw(stream)
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"expected 1 to {MAX_PIXELS} pixels, found {height} x {width}")
    return form, (height, width)


def _jpeg_size(stream: BinaryIO) -> tuple[int, int]:
    """(H, W) of the frame header, the first marker SOF0 to SOF15 (ITU-T T.81, B.1.1.3)."""
    stream.seek(2)
    while True:
        lead, code = take(stream, ">BB")
        while code == 0xFF:
            (code,) = take(stream, ">B")
        (length,) = take(stream, ">H")
        if lead != 0xFF or length < 2 or code in (0xD9, 0xDA):
            raise ImageError("expected a JPEG with a frame header, found none")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            _, height, width = take(stream, ">BHH")
            return height, width
        stream.seek(length - 2, os.SEEK_CUR)


def _check_jpeg(data: bytes) -> None:
    """Raise ImageError unless an end marker follows the last scan; a thumbnail's is before it."""
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise truncated("JPEG", data, "before its end marker")


def _bmp_size(stream: BinaryIO) -> tuple[int, int]:
    (header,) = take(stream, "<I", at=14)
    width, height = take(stream, "<HH" if header == 12 else "<ii")
    return abs(height), width


def _check_bmp(data: bytes) -> None:
    """Raise ImageError if there are fewer bytes than announced; some writers announce 0."""
    (announced,) = struct.unpack_from("<I", data, 2)
    if announced > len(data):
        raise truncated("BMP", data, f"before the {announced} that it announces")


def _webp_size(stream: BinaryIO) -> tuple[int, int]:
    """(H, W) of the first chunk (RFC 9649): lossy, lossless, or what tells of several. One picture only."""
    kind, chunk = take(stream, "4s4s", at=8)
    if (kind, chunk) == (b"WEBP", b"VP8 "):
        start, width, height = take(stream, "<3sHH", at=23)
        if start == b"\x9d\x01\x2a":
            return height & 0x3FFF, width & 0x3FFF
    elif (kind, chunk) == (b"WEBP", b"VP8L"):
        mark, sizes = take(stream, "<BI", at=20)
        if mark == 0x2F:
            return (sizes >> 14 & 0x3FFF) + 1, (sizes & 0x3FFF) + 1
    elif (kind, chunk) == (b"WEBP", b"VP8X"):
        flags, width, more_width, height, more_height = take(stream, "<B3xHBHB", at=20)
        if flags & 2:
            raise ImageError("expected one picture, found an animation; save one image per file")
        return height + (more_height << 16) + 1, width + (more_width << 16) + 1
    raise ImageError(f"expected a WebP with a frame header, found {kind!r}, {chunk!r}")


def _check_webp(data: bytes) -> None:
    """Raise ImageError if there are fewer bytes than announced."""
    (announced,) = struct.unpack_from("<I", data, 4)
    if announced + 8 > len(data):
        raise truncated("WebP", data, f"before the {announced + 8} that it announces")


_FORMATS = {
    b"\x89PNG\r\n\x1a\n": PNG,
    b"\xff\xd8\xff": Format(_jpeg_size, _check_jpeg, decode),
    b"BM": Format(_bmp_size, _check_bmp, decode_quietly),
    b"RIFF": Format(_webp_size, _check_webp, decode_quietly),
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
    b"II+\0": TIFF,
    b"MM\0+": TIFF,
}
