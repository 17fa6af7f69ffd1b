"""The directories of a TIFF or BigTIFF file: their tags, how many pictures they hold, other ways to say one.

A picture is decoded from its file with a directory written anew behind the pixels, which stay where they
are: without orientation, always of the classic kind that every decoder reads, and where need be with other
words for the same pixels, as one channel for one of several planes.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import BinaryIO

from sartorius_infer.errors import ImageError
from sartorius_infer.images.pictures import take

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STARTS, SAMPLES, STRIP_HEIGHT, LENGTHS, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_STARTS, TILE_LENGTHS = 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
_KIND, _DESCRIPTION, _DEPTH, _METAMORPH_PLANES = 254, 270, 32997, 33629
_REDUCED_OR_MASK = 1 | 4
# What the pixels depend on; orientation, resolution and private tags are left out.
_PIXEL_TAGS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324}
_PIXEL_TAGS |= {325, 332, 338, 339, 347, *range(512, 522), *range(529, 533)}

# Bytes of one value of each type; those of BigTIFF are 8 long, and 4 once they are written classic.
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_UNSIGNED = {1: "B", 3: "H", 4: "I", 16: "Q"}
_LONG, _LONGEST = 4, 2**32
_LONGEST_HINT = 1 << 20


@dataclass(frozen=True)
class _Field:
    """What a tag holds: its type, how many values, and their bytes in the file's order."""

    kind: int
    count: int
    data: bytes


@dataclass(frozen=True)
class Directory:
    """The pixel tags of a TIFF file's directory (TIFF 6.0, section 2).

    fields   what each tag holds
    numbers  the values of those that hold unsigned integers
    """

    order: str
    fields: dict[int, _Field]
    numbers: dict[int, tuple[int, ...]]

    def tag(self, number: int, default: int) -> int:
        """The first number of a tag."""
        return self.numbers.get(number, (default,))[0]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.tag(HEIGHT, 0), self.tag(WIDTH, 0)

    @property
    def is_tiled(self) -> bool:
        """Whether the picture lies in tiles, not in strips."""
        return TILE_STARTS in self.numbers

    @property
    def is_apart(self) -> bool:
        """Whether each of several channels is a plane of its own."""
        return self.tag(SAMPLES, 1) > 1 and self.tag(PLANAR, 1) == 2

    @property
    def piece_hw(self) -> tuple[int, int]:
        """Height and width of a strip or tile; the last of each column and row may reach over the edge."""
        height, width = self.size_hw
        high = self.tag(TILE_HEIGHT if self.is_tiled else STRIP_HEIGHT, height) or height
        return (high, self.tag(TILE_WIDTH, width) or width) if self.is_tiled else (min(high, height), width)

    @property
    def pieces(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First bytes and lengths of all strips or tiles."""
        tags = (TILE_STARTS, TILE_LENGTHS) if self.is_tiled else (STARTS, LENGTHS)
        return self.numbers.get(tags[0], ()), self.numbers.get(tags[1], ())

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of pixels that are not compressed."""
        return -(-self.tag(WIDTH, 0) * self.tag(BITS, 1) * self.tag(SAMPLES, 1) // 8)

    @property
    def plane_bytes(self) -> int:
        """Bytes of a whole picture that is not compressed."""
        return self.row_bytes * self.tag(HEIGHT, 0)

    def saying(self, **changed: int | tuple[int, ...] | None) -> Directory:
        """The directory with other numbers in some tags, by their number as in t258=8; None takes one out."""
        fields, numbers = dict(self.fields), dict(self.numbers)
        for name, value in changed.items():
            number = int(name[1:])
            fields.pop(number, None)
            numbers.pop(number, None)
            if value is not None:
                values = value if isinstance(value, tuple) else (value,)
                data = struct.pack(f"{self.order}{len(values)}I", *values)
                fields[number], numbers[number] = _Field(_LONG, len(values), data), values
        return replace(self, fields=fields, numbers=numbers)

    def planes(self) -> Iterator[Directory]:
        """A directory for each plane of a picture that keeps its channels apart, as a gray picture."""
        starts, lengths = self.pieces
        each = len(starts) // self.tag(SAMPLES, 1)
        tags = ("t324", "t325") if self.is_tiled else ("t273", "t279")
        for first in range(0, each * self.tag(SAMPLES, 1), each):
            own = {
                name: part[first : first + each] for name, part in zip(tags, (starts, lengths), strict=True)
            }
            gray = {f"t{BITS}": self.tag(BITS, 1), f"t{SAMPLES}": 1, f"t{PHOTOMETRIC}": 1, f"t{PLANAR}": 1}
            yield self.saying(**gray, **own, t338=None, t339=self.tag(SAMPLE_FORMAT, 1))

    def plane_file(self, data: bytes, channel: int) -> bytes:
        """The file of one plane of a picture that keeps its channels apart; raises ImageError for none."""
        planes = [*self.planes()]
        if channel >= len(planes):
            raise ImageError(f"expected a channel below {len(planes)}, found {channel}")
        return planes[channel].file(data)

    def file(self, data: bytes) -> bytes:
        """The file that holds the pixels of `data` under this directory, as a classic TIFF.

        Raises ImageError where its pixels lie further than a classic TIFF can point.
        """
        fields = {number: _classic(self.order, field) for number, field in sorted(self.fields.items())}
        at = len(data) + len(data) % 2
        after = at + 2 + 12 * len(fields) + 4
        if after + sum(len(field.data) + 1 for field in fields.values()) >= _LONGEST:
            raise ImageError(
                "expected a BigTIFF under 4 GiB, found a longer one; save it compressed, or in parts"
            )
        entries, tail = b"", b""
        for number, field in fields.items():
            place = field.data.ljust(4, b"\0")
            if len(field.data) > 4:
                place = struct.pack(self.order + "I", after + len(tail))
                tail += field.data + bytes(len(field.data) % 2)
            entries += struct.pack(self.order + "HHI", number, field.kind, field.count) + place
        start = (b"II*\0" if self.order == "<" else b"MM\0*") + struct.pack(self.order + "I", at)
        directory = struct.pack(self.order + "H", len(fields)) + entries + bytes(4) + tail
        return b"".join([start, memoryview(data)[len(start) :], bytes(at - len(data)), directory])


def _classic(order: str, field: _Field) -> _Field:
    """A field without the types that only BigTIFF has."""
    if field.kind not in (16, 17, 18):
        return field
    values = struct.unpack(f"{order}{field.count}Q", field.data)
    if max(values, default=0) >= _LONGEST:
        raise ImageError(f"expected offsets under {_LONGEST}, found {max(values)}")
    return _Field(_LONG, field.count, struct.pack(f"{order}{field.count}I", *values))


def read_directory(stream: BinaryIO) -> Directory:
    """The only directory of a TIFF file.

    Raises ImageError if there are several, or if it holds a stack: of a depth over 1 (tag 32997), or of
    planes that one after the other follow the first, where ImageJ, tifffile, OME or MetaMorph say how many
    and the bytes of a second plane are there (a description may be older than its file).
    """
    starts = directory_starts(stream)
    if len(starts) != 1:
        raise ImageError(f"expected one picture, found {len(starts)} pages; save one image per file")
    found = directory_at(stream, starts[0])
    if (planes := plane_count(stream, found, starts[0])) > 1:
        raise ImageError(f"expected one picture, found a stack of {planes} planes; save one image per file")
    return found


@dataclass(frozen=True)
class _Layout:
    """How the numbers of a file are written: its byte order, and those of counts, entries and places."""

    order: str
    count_as: str
    entry_size: int
    place_as: str


def _layout(stream: BinaryIO) -> tuple[_Layout, int]:
    """The layout of a file, and where its first directory begins."""
    byte_order, version = take(stream, "2s2s", at=0)
    if byte_order + version not in MAGICS:
        raise ImageError(f"expected a TIFF, found a file that begins with {(byte_order + version).hex(' ')}")
    order, big = ("<" if byte_order == b"II" else ">"), b"+" in version
    first = take(stream, order + "Q", at=8)[0] if big else take(stream, order + "I")[0]
    return (_Layout(order, "Q", 20, "Q") if big else _Layout(order, "H", 12, "I")), first


def directory_starts(stream: BinaryIO) -> list[int]:
    """Where each directory of a file begins; one that has occurred already ends them."""
    layout, at = _layout(stream)
    found = dict[int, None]()
    while at and at not in found:
        found[at] = None
        (count,) = take(stream, layout.order + layout.count_as, at=at)
        stream.seek(count * layout.entry_size, os.SEEK_CUR)
        (at,) = take(stream, layout.order + layout.place_as)
    return [*found]


def directory_at(stream: BinaryIO, at: int) -> Directory:
    """The directory that begins at a byte of a file."""
    order, entries = _entries(stream, at)
    fields = {n: _field(stream, order, entry) for n, entry in entries.items() if n in _PIXEL_TAGS}
    known = {number: field for number, field in fields.items() if field is not None}
    numbers = {number: _numbers(order, field) for number, field in known.items()}
    return Directory(order, known, {number: values for number, values in numbers.items() if values})


def _entries(stream: BinaryIO, at: int) -> tuple[str, dict[int, bytes]]:
    """The byte order, and the entries of the directory at `at`, not decoded, by their tag."""
    layout, _ = _layout(stream)
    (count,) = take(stream, layout.order + layout.count_as, at=at)
    entries = take(stream, f"{layout.entry_size}s" * count)
    return layout.order, {struct.unpack_from(layout.order + "H", entry)[0]: entry for entry in entries}


def is_copy(stream: BinaryIO, at: int) -> bool:
    """Whether the directory at `at` holds a smaller copy of another one's picture, or its mask (tag 254)."""
    order, entries = _entries(stream, at)
    kind = _hint(stream, order, entries.get(_KIND))
    return kind is not None and any(number & _REDUCED_OR_MASK for number in _numbers(order, kind))


def description_at(stream: BinaryIO, at: int) -> str:
    """What the directory at `at` says of its picture; "" where it says nothing, or too much."""
    order, entries = _entries(stream, at)
    text = _hint(stream, order, entries.get(_DESCRIPTION))
    return "" if text is None else text.data.decode("utf-8", "replace")


def _field(stream: BinaryIO, order: str, entry: bytes) -> _Field | None:
    """What an entry holds, in it or where it points; None for types that TIFF does not have."""
    big = len(entry) == 20
    _, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), entry)
    if kind not in _SIZES:
        return None
    size, place = _SIZES[kind] * count, entry[12:] if big else entry[8:]
    if size > len(place):
        (at,) = struct.unpack(order + ("Q" if big else "I"), place)
        place = take(stream, f"{size}s", at=at)[0]
    return _Field(kind, count, place[:size])


def _numbers(order: str, field: _Field) -> tuple[int, ...]:
    """The unsigned integers of a field; () for other types."""
    code = _UNSIGNED.get(field.kind)
    return struct.unpack(f"{order}{field.count}{code}", field.data) if code else ()


def plane_count(stream: BinaryIO, page: Directory, at: int) -> int:
    """How many planes the directory at `at`, which is `page`, stands for."""
    _, entries = _entries(stream, at)
    depth = _hint(stream, page.order, entries.get(_DEPTH))
    if depth is not None and (numbers := _numbers(page.order, depth)) and numbers[0] > 1:
        return numbers[0]
    starts, _ = page.pieces
    end = min(starts, default=0) + 2 * page.plane_bytes
    if page.tag(COMPRESSION, 1) != 1 or not starts or end > stream.seek(0, os.SEEK_END):
        return 1
    metamorph = entries.get(_METAMORPH_PLANES)
    told = [1 if metamorph is None else _count(page.order, metamorph)]
    told.append(_described(description_at(stream, at), page))
    return max(told)


def _hint(stream: BinaryIO, order: str, entry: bytes | None) -> _Field | None:
    """What a tag holds that no pixel depends on; None where it is not there, too long, or damaged."""
    if entry is None or _count(order, entry) > _LONGEST_HINT:
        return None
    try:
        return _field(stream, order, entry)
    except ImageError:
        return None


def _count(order: str, entry: bytes) -> int:
    """How many values an entry has."""
    count: int = struct.unpack_from(order + ("Q" if len(entry) == 20 else "I"), entry, 4)[0]
    return count


def _described(text: str, page: Directory) -> int:
    """How many planes an image description tells of: ImageJ's, tifffile's or OME's."""
    if text.startswith("ImageJ="):
        found = re.search(r"^images=(\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 1
    if found := re.match(r'\{?"?shape"?\s*[:=]\s*[\[(]([\d,\s]+)[\])]', text):
        values = prod(int(number) for number in re.findall(r"\d+", found[1]))
        return values // (prod(page.size_hw) * page.tag(SAMPLES, 1) or 1)
    sizes = [re.search(rf'<(?:\w+:)?Pixels\b[^<>]*?\bSize{axis}="(\d+)"', text) for axis in "CZT"]
    return prod(int(size[1]) for size in sizes if size) // page.tag(SAMPLES, 1)
