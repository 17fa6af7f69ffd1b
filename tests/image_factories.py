"""Factories of image files: pixels to bytes, and what reading the bytes returns."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sartorius_infer.errors import ImageError
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.read import image_size, read_image
from sartorius_infer.types import UInt8

Pixels = NDArray[Any]

ROWS, COLUMNS = np.mgrid[:40, :56]
GRAY: UInt8 = (128 + 60 * np.sin(ROWS / 5) * np.cos(COLUMNS / 7)).astype(np.uint8)
COLOUR: UInt8 = np.dstack([GRAY, GRAY[::-1], 255 - GRAY])
GRAY16 = GRAY.astype(np.uint16) * 257
COLOUR16 = COLOUR.astype(np.uint16) * 257


def by_cv2(extension: str, *parameters: int) -> Callable[[Pixels], bytes]:
    """An encoder of gray or RGB pixels."""

    def encode(pixels: Pixels) -> bytes:
        bgr = pixels if pixels.ndim == 2 else pixels[..., ::-1]
        return cv2.imencode(extension, np.ascontiguousarray(bgr), parameters)[1].tobytes()

    return encode


def png(
    width: int,
    height: int,
    bits: int,
    kind: int,
    rows: list[bytes],
    *extra: bytes,
    methods: tuple[int, int, int] = (0, 0, 0),
    packed: bytes | None = None,
) -> bytes:
    """A PNG file of rows, or of what they are packed as; `kind` is its colour type."""
    header = struct.pack(">IIBB3B", width, height, bits, kind, *methods)
    body = zlib.compress(b"".join(b"\0" + row for row in rows)) if packed is None else packed
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [png_chunk(b"IHDR" + header), *extra, png_chunk(b"IDAT" + body), png_chunk(b"IEND")]
    )


def png_chunk(content: bytes) -> bytes:
    """A chunk of a PNG, its name first."""
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def tiff(
    pixels: Pixels,
    order: Literal["<", ">"] = "<",
    pages: int = 1,
    compress: Callable[[bytes], bytes] = zlib.compress,
    **changed: Any,
) -> bytes:
    """A TIFF file of one deflated strip per plane; `changed` are tags, as t262=0 for one.

    Pixels are (H, W) or (H, W, C); with t284=2 each channel is a plane of its own. Tags of bytes are text.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    planes = np.moveaxis(pixels, 2, 0) if changed.get("t284") == 2 else pixels[None]
    strips = [compress(plane.astype(plane.dtype.newbyteorder(order)).tobytes()) for plane in planes]
    starts = [8 + sum(map(len, strips[:index])) for index in range(len(strips))]
    tags: dict[int, Any] = {256: width, 257: height, 258: [pixels.itemsize * 8] * channels, 259: 8}
    tags |= {262: 1 if channels < 3 else 2, 273: starts, 277: channels, 278: height}
    tags |= {279: [len(strip) for strip in strips], 339: [1] * channels}
    tags |= {int(name[1:]): value for name, value in changed.items()}
    data = b"".join(strips)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "I", 8 + len(data)) + data
    for page in range(pages):
        head += directory(order, len(head), tags, last=page == pages - 1)
    return head


def directory(order: str, at: int, tags: dict[int, Any], last: bool) -> bytes:
    """A TIFF directory of longs at byte `at`; the next one follows it unless it is the last."""
    after = at + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for number, value in sorted(tags.items()):
        if isinstance(value, bytes):
            kind, count, field = 2, len(value), value
        else:
            numbers = np.atleast_1d(value).tolist()
            kind, count, field = 4, len(numbers), struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(field) > 4:
            tail += field
            field = struct.pack(order + "I", after + len(tail) - len(field))
        entries += struct.pack(order + "HHI", number, kind, count) + field.ljust(4, b"\0")
    follows = struct.pack(order + "I", 0 if last else after + len(tail))
    return struct.pack(order + "H", len(tags)) + entries + follows + tail


def big_tiff(pixels: Pixels, order: Literal["<", ">"] = "<") -> bytes:
    """A BigTIFF file of two raw strips of gray or RGB pixels."""
    height, width = pixels.shape[:2]
    channels, half = pixels.size // (height * width), -(-height // 2)
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    long = half * width * channels * pixels.itemsize
    tags = {256: [width], 257: [height], 258: [pixels.itemsize * 8] * channels, 259: [1]}
    tags |= {262: [1 if channels == 1 else 2], 273: [16, 16 + long], 277: [channels]}
    tags |= {278: [half], 279: [long, len(data) - long]}
    at = 16 + len(data)
    after, entries, tail = at + 8 + 20 * len(tags) + 8, b"", b""
    for number, values in tags.items():
        field = struct.pack(f"{order}{len(values)}Q", *values)
        if len(values) > 1:
            tail += field
            field = struct.pack(order + "Q", after + len(tail) - len(field))
        entries += struct.pack(order + "HHQ", number, 16, len(values)) + field
    head = (b"II+\0" if order == "<" else b"MM\0+") + struct.pack(order + "HHQ", 8, 0, at) + data
    return head + struct.pack(order + "Q", len(tags)) + entries + bytes(8) + tail


def error_of(data: bytes, use: Callable[[ImageFile], Any] = read_image) -> str:
    """The message for a file that holds `data`, after its path."""
    with pytest.raises(ImageError) as caught:
        on_disk(data, use)
    path, _, message = str(caught.value).partition(": ")
    assert path.endswith("a.png")
    assert "\n" not in message
    return message


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    """A file of Pillow's."""
    stream = BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def on_disk(data: bytes, use: Callable[[ImageFile], Any]) -> Any:
    """What `use` makes of a file that holds `data`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(data)
        return use(ImageFile("a", path))


def pixels_of(data: bytes) -> UInt8:
    pixels: UInt8 = on_disk(data, read_image).pixels
    assert on_disk(data, image_size) == pixels.shape[:2]
    return pixels
