"""PNG files that others write: interlaced, short palettes; and those that libpng would print about."""

from __future__ import annotations

import resource
import zlib

import numpy as np
import pytest
from image_factories import error_of, pixels_of, png, png_chunk

from sartorius_infer.types import UInt8

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7's, by column, row, and the steps."""


def adam7(pixels: UInt8) -> list[bytes]:
    """The rows of the seven passes, pixel by pixel as the standard tells them."""
    height, width = pixels.shape[:2]
    return [
        b"".join(bytes(pixels[row, column]) for column in range(x, width, dx))
        for x, y, dx, dy in PASSES
        for row in range(y, height, dy)
        if x < width
    ]


@pytest.mark.parametrize("width", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 9])
def test_interlaced(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    pixels[0, 0] = 1, 2, 3  # else it could be gray
    assert np.array_equal(pixels_of(png(width, height, 8, 2, adam7(pixels), methods=(0, 0, 1))), pixels)


def test_pixels_beyond_a_short_palette_are_black(capfd: pytest.CaptureFixture[str]) -> None:
    data = png(3, 1, 8, 3, [b"\0\1\7"], png_chunk(b"PLTE" + bytes([1, 2, 3, 4, 5, 6])))
    assert pixels_of(data).tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("more", [[], [b"and more"]])
def test_what_follows_the_rows_and_what_is_no_pixel_does_not_count(
    more: list[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    odd = [png_chunk(name + b"nonsense") for name in (b"iCCP", b"tRNS", b"gAMA", b"PLTE")]
    assert pixels_of(png(2, 1, 8, 0, [b"\7\7", *more], *odd)).tolist() == [[7, 7]]
    assert capfd.readouterr() == ("", "")


def unknown(bits: int, kind: int, *methods: int) -> tuple[bytes, str]:
    said = f"found {bits} bits of colour type {kind}, methods {', '.join(map(str, methods))}"
    return png(1, 1, bits, kind, [], methods=methods), said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *(unknown(16, 3, 0, 0, 0), unknown(8, 7, 0, 0, 0), unknown(8, 0, 1, 0, 0), unknown(8, 0, 0, 9, 0)),
        unknown(8, 0, 0, 0, 2),
        (png(1_000_001, 1, 8, 0, []), "expected sides of up to 1000000 pixels, found 1 x 1000001"),
        (png(1, 1, 8, 3, [b"\0"]), "expected a PNG with a palette, found none"),
        (png(2, 1, 8, 0, [], packed=zlib.compress(b"\5\1\1")), "expected rows of the filters 0 to 4, found"),
        (png(2, 2, 8, 0, [b"\1\1", b"\1"]), "expected a PNG of 6 bytes of pixels, found 5"),
        (png(2, 2, 8, 0, [], packed=b""), "expected a PNG of 6 bytes of pixels, found 0"),
        (png(2, 2, 8, 0, [], packed=b"nonsense"), "found pixels that do not unpack (Error -3"),
    ],
)  # fmt: skip
def test_one_line_and_nothing_printed(data: bytes, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(data)
    assert capfd.readouterr() == ("", "")


def test_a_header_that_claims_a_thousand_million_pixels_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "of pixels, found 10" in error_of(png(1 << 15, 1 << 15, 16, 6, [bytes(9)]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
