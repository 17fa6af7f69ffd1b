"""PNG files (ISO/IEC 15948): chunks with their checksums, and pixels by way of a plain copy.

libpng prints whatever it minds, and takes memory for the size in the header before it looks for pixels. So
the rows are unpacked here and counted, and OpenCV is given a file of nothing but header, palette and rows.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from sartorius_infer.errors import ImageError
from sartorius_infer.images.pictures import Format, Picture, decode, take, truncated

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
_LONGEST_SIDE = 1_000_000
"""Libpng's own limit."""
_LONGEST_CHUNK = 1 << 30
_FILTERS = 5
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: of each pass the first column and row, and the steps to the next."""


def _size_hw(stream: BinaryIO) -> tuple[int, int]:
    kind, width, height = take(stream, ">4sII", at=12)
    if kind != b"IHDR":
        raise ImageError(f"expected a PNG that begins with IHDR, found {kind!r}")
    return height, width


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of every chunk up to the end marker; raises ImageError unless each is whole."""
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        if at + 8 > len(data):
            raise truncated("PNG", data, "before its end marker")
        length, kind = struct.unpack_from(">I4s", data, at)
        name, end = kind.decode("latin-1"), at + 12 + length
        if end > len(data):
            raise truncated("PNG", data, f"inside a chunk {name}")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ImageError(f"expected an intact PNG, found a chunk {name} that fails its checksum")
        yield kind, memoryview(data)[at + 8 : end - 4]
        at = end


def _check(data: bytes) -> None:
    """Raise ImageError unless every chunk is there with its checksum, up to the end marker."""
    for kind, content in _chunks(data):
        if kind == b"acTL" and bytes(content[:4]) > b"\0\0\0\1":
            raise ImageError("expected one picture, found an animation; save one image per file")


def _decode(data: bytes) -> Picture:
    """The picture without alpha; raises ImageError for rows that are missing or are none."""
    found: dict[bytes, list[memoryview]] = {}
    for kind, content in _chunks(data):
        found.setdefault(kind, []).append(content)
    header = bytes(found[b"IHDR"][0][:13])
    rows = _rows(header, b"".join(found.get(b"IDAT", [])))
    plain = [(b"IHDR", header)]
    if header[9] == _PALETTE:
        if b"PLTE" not in found:
            raise ImageError("expected a PNG with a palette, found none")
        size = 3 << header[8]  # pixels beyond a short palette are black
        plain.append((b"PLTE", bytes(found[b"PLTE"][0][:size]).ljust(size, b"\0")))
    stored = zlib.compress(rows, 0)
    plain += [(b"IDAT", stored[at : at + _LONGEST_CHUNK]) for at in range(0, len(stored), _LONGEST_CHUNK)]
    plain.append((b"IEND", b""))
    return decode(_SIGNATURE + b"".join(_chunk(kind, content) for kind, content in plain))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", zlib.crc32(kind + content))


def _rows(header: bytes, packed: bytes) -> bytes:
    """The rows of all passes, each a byte for its filter, then its pixels."""
    width, height, bits, kind, compression, method, interlaced = struct.unpack(">IIBBBBB", header)
    if bits not in _DEPTHS.get(kind, ()) or (compression, method) != (0, 0) or interlaced > 1:
        found = f"{bits} bits of colour type {kind}, methods {compression}, {method}, {interlaced}"
        raise ImageError(f"expected a PNG of a kind that there is, found {found}")
    if max(width, height) > _LONGEST_SIDE:
        raise ImageError(f"expected sides of up to {_LONGEST_SIDE} pixels, found {height} x {width}")
    passes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _PASSES]
    sizes = [(high, 1 + -(-wide * bits * _SAMPLES[kind] // 8)) for wide, high in passes if wide > 0 < high]
    if not interlaced:
        sizes = [(height, 1 + -(-width * bits * _SAMPLES[kind] // 8))]
    needed = sum(high * stride for high, stride in sizes)
    try:
        rows = zlib.decompressobj().decompress(packed, needed)
    except zlib.error as error:
        raise ImageError(f"expected a whole PNG, found pixels that do not unpack ({error})") from None
    if len(rows) < needed:
        raise ImageError(f"expected a PNG of {needed} bytes of pixels, found {len(rows)}")
    start = 0
    for high, stride in sizes:
        filters = np.frombuffer(rows, np.uint8, high * stride, start)[::stride]
        if filters.max() >= _FILTERS:
            raise ImageError(f"expected rows of the filters 0 to {_FILTERS - 1}, found {filters.max()}")
        start += high * stride
    return rows


PNG = Format(_size_hw, _check, _decode)
