"""Mutations of pictures by their structure: chunks, segments and directories, with right checksums."""

from __future__ import annotations

import struct
import zlib
from random import Random

from torture.bits import Mutation, mutate_bits, pick_number, shuffled

_PNG = b"\x89PNG\r\n\x1a\n"
_IHDR = ((0, ">I"), (4, ">I"), (8, ">B"), (9, ">B"), (10, ">B"), (11, ">B"), (12, ">B"))
_BMP: tuple[tuple[int, str], ...] = (
    (2, "<I"),
    (10, "<I"),
    (14, "<I"),
    (18, "<I"),
    (22, "<I"),
    (26, "<H"),
    (28, "<H"),
    (30, "<I"),
)
_BMP += ((34, "<I"), (46, "<I"), (50, "<I"))
_TYPES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 0, 99)
_TAGS: tuple[int, ...] = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    330,
)
_TAGS += (338, 339, 340, 347, 530, 532, 34665, 50838)


def _field(data: bytes, at: int, layout: str, rng: Random) -> bytes:
    """One field with another number in it."""
    return data[:at] + pick_number(layout, rng) + data[at + struct.calcsize(layout) :]


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a whole PNG, each with its content."""
    chunks, at = [], len(_PNG)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, whose lengths and checksums are right."""
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return _PNG + b"".join(parts)


def mutate_png(data: bytes, rng: Random) -> bytes:
    """Another header, other rows under a right checksum, chunks lost, doubled, moved or renamed."""
    chunks = png_chunks(data)
    kind = rng.randrange(4)
    if kind == 0:
        chunks = shuffled(chunks, rng)
    elif kind == 1:
        chunks[0] = (b"IHDR", _field(chunks[0][1], *rng.choice(_IHDR), rng))
    elif kind == 2:
        rows = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
        others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
        chunks = [*others[:-1], (b"IDAT", zlib.compress(mutate_bits(rows, rng))), others[-1]]
    else:
        at = rng.randrange(len(chunks))
        name, body = chunks[at]
        names = (name, name, b"tRNS", b"PLTE", b"acTL", b"eXIf", b"iCCP", b"zTXt")
        chunks[at] = (rng.choice(names), mutate_bits(body, rng))
    return png_of(chunks)


def _entries(data: bytes, order: str) -> tuple[int, list[bytes]]:
    """Where the first directory of a TIFF is, and its entries of twelve bytes."""
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    return at, [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]


def mutate_tiff(data: bytes, rng: Random) -> bytes:
    """Entries of the first directory with another tag, type, count or value, lost, doubled or moved."""
    order = "<" if data.startswith(b"II") else ">"
    at, entries = _entries(data, order)
    end, after = at + 2 + 12 * len(entries), data[at + 2 + 12 * len(entries) : at + 6 + 12 * len(entries)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, kind = rng.randrange(len(entries)), rng.randrange(6)
        entry = entries[place]
        if kind == 0:
            entries = shuffled(entries, rng)
            continue
        if kind == 1:
            entry = struct.pack(f"{order}H", rng.choice(_TAGS)) + entry[2:]
        elif kind == 2:
            entry = entry[:2] + struct.pack(f"{order}H", rng.choice(_TYPES)) + entry[4:]
        else:
            entry = _field(entry, *((4, f"{order}I"), (8, f"{order}I"), (8, f"{order}H"))[kind - 3], rng)
        entries[place] = entry
    if rng.randrange(12) == 0:
        after = pick_number(f"{order}I", rng)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + after
    # At the end, as a writer that appends would put it, where it does not fit.
    if len(directory) > end + 4 - at:
        return data[:4] + struct.pack(f"{order}I", len(data)) + data[8:] + directory
    return data[:at] + directory + data[at + len(directory) :]


def mutate_jpeg(data: bytes, rng: Random) -> bytes:
    """Another size, number or content of segments; segments lost, doubled or moved; the scan damaged."""
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        segments.append(data[at : at + 2 + length])
        at += 2 + length
    scan, kind = data[at:], rng.randrange(4)
    place = rng.randrange(len(segments))
    if kind == 0:
        segments = shuffled(segments, rng)
    elif kind == 1:
        frame = next(i for i, s in enumerate(segments) if 0xC0 <= s[1] <= 0xCF and s[1] not in (0xC4, 0xCC))
        field = rng.choice(((1, ">B"), (4, ">B"), (5, ">H"), (7, ">H"), (9, ">B"), (11, ">B")))
        segments[frame] = _field(segments[frame], *field, rng)
    elif kind == 2:
        segment = segments[place]
        body = mutate_bits(segment[4:], rng)[:65000]
        segments[place] = segment[:2] + struct.pack(">H", len(body) + 2) + body
    else:
        scan = scan[:-2] and mutate_bits(scan[:-2], rng) + scan[-2:]
    return data[:2] + b"".join(segments) + scan


def mutate_bmp(data: bytes, rng: Random) -> bytes:
    """Other fields of the headers."""
    for _ in range(rng.choice((1, 1, 2))):
        data = _field(data, *rng.choice(_BMP), rng)
    return data


def mutate_webp(data: bytes, rng: Random) -> bytes:
    """Chunks of the RIFF with another size, name or content, lost, doubled or moved."""
    chunks, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        chunks.append(data[at : at + 8 + length + length % 2])
        at += len(chunks[-1])
    kind, place = rng.randrange(3), rng.randrange(len(chunks))
    if kind == 0:
        chunks = shuffled(chunks, rng)
    elif kind == 1:
        chunks[place] = rng.choice((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF")) + chunks[place][4:]
    else:
        body = mutate_bits(chunks[place][8:], rng)
        chunks[place] = chunks[place][:4] + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


PICTURES: dict[str, Mutation] = {
    ".png": mutate_png,
    ".tif": mutate_tiff,
    ".jpg": mutate_jpeg,
    ".bmp": mutate_bmp,
    ".webp": mutate_webp,
}
"""The mutation of each format, by the suffix of its files."""
