"""TIFF files of several pictures: where each lies, of which channel it is, and its bytes as a file.

A page is read without the others: a file of a thousand takes no more memory than one of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

from sartorius_infer.errors import ImageError
from sartorius_infer.images import tiff_directory as tags
from sartorius_infer.images.tiff_directory import (
    Directory,
    description_at,
    directory_at,
    directory_starts,
    is_copy,
    plane_count,
)

_OLD_JPEG = 6


@dataclass(frozen=True)
class Page:
    """A picture of a TIFF file.

    number   its place among the file's pictures, from 0
    start    where its directory begins, in bytes
    plane    which of several planes it is that one directory stands for, else None
    channel  its channel from 0, where the file tells one of several, else None
    """

    number: int
    start: int
    plane: int | None = None
    channel: int | None = None


@dataclass(frozen=True)
class Stack:
    """The pictures of a TIFF file, and how many smaller copies or masks of them lie beside them."""

    pages: tuple[Page, ...]
    copies: int = 0

    @property
    def channels(self) -> int:
        """How many channels the file tells of its pages; 0 where it tells none."""
        return max((page.channel + 1 for page in self.pages if page.channel is not None), default=0)


def read_stack(path: Path) -> Stack:
    """The pictures of a TIFF file; raises ImageError and OSError where it cannot be told."""
    with path.open("rb") as stream:
        starts = directory_starts(stream)
        whole = [start for start in starts if not is_copy(stream, start)]
        if len(whole) > 1:
            pages = [Page(number, start) for number, start in enumerate(whole)]
        else:
            pages = [page for start in whole for page in _planes(stream, start)]
        channels = _channels(description_at(stream, starts[0]), len(pages)) if starts else []
    found = [replace(page, channel=channel) for page, channel in zip(pages, channels, strict=True)]
    return Stack(tuple(found), len(starts) - len(whole))


def _planes(stream: BinaryIO, start: int) -> list[Page]:
    """The page of a directory, or those of the planes that it stands for."""
    page = directory_at(stream, start)
    count = plane_count(stream, page, start)
    if count == 1 or page.is_tiled or page.tag(tags.COMPRESSION, 1) != 1:  # refused when it is read
        return [Page(0, start)]
    first, _ = page.pieces
    there = (stream.seek(0, os.SEEK_END) - min(first, default=0)) // max(1, page.plane_bytes)
    return [Page(plane, start, plane) for plane in range(min(count, there))]


def _channels(text: str, pages: int) -> Sequence[int | None]:
    """The channel of each page by ImageJ's or OME's description; None where there is one, or none is told.

    ImageJ's stacks have channels first; OME says the order, in which each page is one of C x Z x T.
    """
    if text.startswith("ImageJ="):
        sizes = dict.fromkeys("CZT", 1)
        names = {"channels": "C", "slices": "Z", "frames": "T"}
        sizes |= {names[n]: int(v) for n, v in re.findall(r"^(channels|slices|frames)=(\d+)", text, re.M)}
        order = "CZT"
    else:
        found = re.search(r"<(?:\w+:)?Pixels\b[^<>]*>", text)
        pixels = found[0] if found else ""
        sizes = {axis: int(v) for axis, v in re.findall(r'\bSize([CZT])="(\d+)"', pixels)}
        said = re.search(r'\bDimensionOrder="XY([CZT]{3})"', pixels)
        order = said[1] if said else ""
    is_told = set(order) == set(sizes) == set("CZT") and prod(sizes.values()) == pages
    if not is_told or sizes["C"] < 2:
        return [None] * pages
    step = prod(sizes[axis] for axis in order[: order.index("C")])
    return [number // step % sizes["C"] for number in range(pages)]


def page_file(path: Path, page: Page) -> bytes:
    """A page as a TIFF file of one picture. Raises ImageError where it is damaged, and OSError."""
    with path.open("rb") as stream:
        directory = directory_at(stream, page.start)
        size = stream.seek(0, os.SEEK_END)
        pieces = _pieces(directory, page, size)
        parts, starts, at = [bytes(8)], [], 8
        for start, length in pieces:
            stream.seek(start)
            parts.append(stream.read(length))
            starts.append(at)
            at += length
    changed: dict[str, int | tuple[int, ...]] = {} if page.plane is None else {"t278": directory.size_hw[0]}
    names = ("t324", "t325") if directory.is_tiled else ("t273", "t279")
    changed |= zip(names, (tuple(starts), tuple(length for _, length in pieces)), strict=True)
    return directory.saying(**changed).file(b"".join(parts))


def _pieces(directory: Directory, page: Page, size: int) -> list[tuple[int, int]]:
    """The first byte and the length of each strip or tile, all within the file."""
    if directory.tag(tags.COMPRESSION, 1) == _OLD_JPEG:
        raise ImageError("expected a page in a compression of TIFF 6.0, found the JPEG before it (6)")
    starts, lengths = directory.pieces
    pieces = [*zip(starts, lengths, strict=False)]
    if page.plane is not None:
        length = directory.plane_bytes
        pieces = [(min(starts) + page.plane * length, length)]
    if not pieces or len(starts) != len(lengths):
        raise ImageError(f"expected strips or tiles, found {len(starts)} of {len(lengths)} lengths")
    end, total = max(start + length for start, length in pieces), sum(length for _, length in pieces)
    if max(end, total) > size:
        raise ImageError(f"expected a whole page {page.number}, found a file that ends before it does")
    return pieces
