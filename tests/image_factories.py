"""Factories of image files: pixels to bytes, and what reading the bytes returns."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

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


def tiff(pixels: Pixels, order: Literal["<", ">"] = "<", pages: int = 1, **changed: Any) -> bytes:
    """A TIFF file of one deflated strip per plane; `changed` are tags, as t262=0 for one.

    Pixels are (H, W) or (H, W, C); with t284=2 each channel is a plane of its own.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    planes = np.moveaxis(pixels, 2, 0) if changed.get("t284") == 2 else pixels[None]
    strips = [zlib.compress(plane.astype(plane.dtype.newbyteorder(order)).tobytes()) for plane in planes]
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
        numbers = np.atleast_1d(value).tolist()
        field = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            tail += field
            field = struct.pack(order + "I", after + len(tail) - len(field))
        entries += struct.pack(order + "HHI", number, 4, len(numbers)) + field
    follows = struct.pack(order + "I", 0 if last else after + len(tail))
    return struct.pack(order + "H", len(tags)) + entries + follows + tail


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
