"""What formats share: a decoded picture, how a format is read, the bytes of headers, OpenCV's decoder."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from sartorius_infer.errors import ImageError

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


def take(stream: BinaryIO, layout: str, at: int | None = None) -> tuple[Any, ...]:
    """The next bytes, or those at `at`, unpacked as `layout`. Raises ImageError if there are fewer."""
    if at is not None:
        stream.seek(at)
    size = struct.calcsize(layout)
    data = stream.read(min(size, _LONGEST_HEADER))
    if len(data) < size:
        total = stream.seek(0, os.SEEK_END)
        raise ImageError(f"expected a whole image, found {total} bytes that end inside the header")
    return struct.unpack(layout, data)


def truncated(form: str, data: bytes, where: str) -> ImageError:
    """The error for a file of format `form` that is cut off."""
    return ImageError(f"expected a whole {form}, found {len(data)} bytes that end {where}")


def decode(data: bytes) -> Picture:
    """A picture that OpenCV can read."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError("expected a whole image, found a damaged one")
    # BGR or BGRA to RGB.
    return Picture(pixels if pixels.ndim == 2 else pixels[..., 2::-1])


def decode_quietly(data: bytes) -> Picture:
    """`decode` while OpenCV's log, to which its TIFF and BMP readers print, is silent."""
    log = cv2.utils.logging
    with _OPENCV_LOG:
        level = log.setLogLevel(log.LOG_LEVEL_SILENT)
        try:
            return decode(data)
        finally:
            log.setLogLevel(level)
