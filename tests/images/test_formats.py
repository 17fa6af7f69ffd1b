"""Image formats, through `read_image` and `image_size`: several encoders, TIFF tags, damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_factories import (
    COLOUR,
    COLOUR16,
    GRAY,
    GRAY16,
    Pixels,
    by_cv2,
    error_of,
    on_disk,
    pixels_of,
    png,
    png_chunk,
    saved,
    tiff,
)
from PIL import Image

from sartorius_infer.errors import ImageError
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.read import image_size, read_image
from sartorius_infer.types import MAX_PIXELS, UInt8


def by_pillow(form: str, **options: Any) -> Callable[[Pixels], bytes]:
    def encode(pixels: Pixels) -> bytes:
        return saved(Image.fromarray(pixels), form, **options)

    return encode


ENCODERS = {
    "png cv2": by_cv2(".png"),
    "png pillow": by_pillow("PNG"),
    "tiff cv2 lzw": by_cv2(".tif", cv2.IMWRITE_TIFF_COMPRESSION, 5),
    "tiff cv2 raw": by_cv2(".tif", cv2.IMWRITE_TIFF_COMPRESSION, 1),
    "tiff cv2 deflate": by_cv2(".tif", cv2.IMWRITE_TIFF_COMPRESSION, 8),
    "tiff pillow raw": by_pillow("TIFF"),
    "tiff pillow packbits": by_pillow("TIFF", compression="packbits"),
    "webp cv2": by_cv2(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    "webp pillow": by_pillow("WEBP", lossless=True, exact=True),
    "bmp cv2": by_cv2(".bmp"),
    "bmp pillow": by_pillow("BMP"),
}
JPEG_ENCODERS = {
    "jpeg cv2": by_cv2(".jpg"),
    "jpeg cv2 progressive": by_cv2(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg pillow": by_pillow("JPEG", quality=95),
    "jpeg pillow thumbnail": by_pillow("JPEG", exif=b"Exif\0\0" + by_pillow("JPEG")(GRAY)),
}
ALL_ENCODERS = ENCODERS | JPEG_ENCODERS
SIXTEEN_BIT = ("png cv2", "tiff cv2 lzw", "tiff cv2 raw", "tiff cv2 deflate")


class TestEncoders:
    @pytest.mark.parametrize("pixels", [GRAY, COLOUR, GRAY[:1, :1], GRAY[:7, :1], COLOUR[:1, :9]])
    @pytest.mark.parametrize("name", ENCODERS)
    def test_lossless(self, name: str, pixels: UInt8) -> None:
        read = pixels_of(ENCODERS[name](pixels))
        assert np.array_equal(read, pixels)
        assert read.flags.writeable
        assert read.flags.c_contiguous

    @pytest.mark.parametrize("pixels", [GRAY, COLOUR])
    @pytest.mark.parametrize("name", JPEG_ENCODERS)
    def test_jpeg(self, name: str, pixels: UInt8) -> None:
        data = JPEG_ENCODERS[name](pixels)
        assert np.abs(pixels_of(data).astype(int) - np.asarray(Image.open(BytesIO(data)))).max() <= 4

    @pytest.mark.parametrize("pixels", [GRAY16, COLOUR16])
    @pytest.mark.parametrize("name", SIXTEEN_BIT)
    def test_sixteen_bits(self, name: str, pixels: Pixels) -> None:
        assert np.array_equal(pixels_of(ENCODERS[name](pixels)), pixels // 257)

    @pytest.mark.parametrize("name", ALL_ENCODERS)
    def test_equal_channels_become_gray(self, name: str) -> None:
        assert pixels_of(ALL_ENCODERS[name](np.dstack([GRAY] * 3))).ndim == 2

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    def test_one_bit(self, form: str) -> None:
        data = saved(Image.fromarray(GRAY > 128), form)
        assert np.array_equal(pixels_of(data), np.where(GRAY > 128, 255, 0))

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    def test_palette(self, form: str) -> None:
        picture = Image.fromarray(COLOUR).quantize(16)
        assert np.array_equal(pixels_of(saved(picture, form)), np.asarray(picture.convert("RGB")))

    def test_webp(self) -> None:
        """Lossy, and in the form that more than a picture needs."""
        for options in ({"quality": 95}, {"quality": 95, "exif": b"Exif\0\0II*\0"}):
            data = by_pillow("WEBP", **options)(COLOUR)
            assert (b"VP8X" in data) == ("exif" in options)
            assert np.array_equal(pixels_of(data), np.asarray(Image.open(BytesIO(data)).convert("RGB")))
        frames = [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1])]
        moving = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
        for use in (read_image, image_size):
            assert "found an animation" in error_of(moving, use)

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
    def test_alpha_is_dropped(self, form: str) -> None:
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        for pixels in (np.dstack([GRAY, GRAY[::-1]]), np.dstack([COLOUR, GRAY[::-1]])):
            expected = pixels[..., 0] if pixels.shape[2] == 2 else COLOUR
            assert np.array_equal(pixels_of(saved(Image.fromarray(pixels), form, **options)), expected)

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
    @pytest.mark.parametrize("orientation", [3, 6])
    def test_orientation_is_ignored(self, form: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[274] = orientation
        data = saved(Image.fromarray(GRAY), form, exif=exif)
        assert np.abs(pixels_of(data).astype(int) - GRAY).max() <= 8

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_few_bits_fill_the_range(self, bits: int) -> None:
        top = 2**bits - 1
        per_byte = 8 // bits
        row = bytes([sum(top * (i % 2) << (8 - bits * (i + 1)) for i in range(per_byte))])
        assert pixels_of(png(per_byte, 1, bits, 0, [row]))[0].tolist() == [0, 255] * (per_byte // 2)

    def test_png_transparency_is_dropped(self) -> None:
        palette = png_chunk(b"PLTE" + bytes([1, 2, 3, 4, 5, 6]))
        see_through = png_chunk(b"tRNS\0\x80")
        assert pixels_of(png(2, 1, 8, 3, [b"\1\0"], palette, see_through)).tolist() == [
            [[4, 5, 6], [1, 2, 3]]
        ]
        one_gray = png_chunk(b"tRNS\0\x0a")
        assert pixels_of(png(2, 1, 8, 0, [b"\x0a\xc8"], one_gray)).tolist() == [[10, 200]]

    def test_sixteen_bit_alpha_does_not_scale(self) -> None:
        rgba = struct.pack(">4H", 1, 2, 3, 65535)
        assert pixels_of(png(1, 1, 16, 6, [rgba])).tolist() == [[[1, 2, 3]]]

    def test_cmyk_jpeg(self) -> None:
        picture = Image.fromarray(np.full((8, 8, 4), (0, 255, 255, 0), np.uint8), mode="CMYK")
        assert np.abs(pixels_of(saved(picture, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3


class TestTiff:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("pixels", [GRAY, COLOUR, GRAY16, COLOUR16])
    def test_byte_orders(self, order: Literal["<", ">"], pixels: Pixels) -> None:
        expected = pixels // 257 if pixels.dtype == np.uint16 else pixels
        assert np.array_equal(pixels_of(tiff(pixels, order)), expected)

    @pytest.mark.parametrize("pixels", [GRAY, GRAY16])
    def test_white_as_zero(self, pixels: Pixels) -> None:
        assert np.array_equal(pixels_of(tiff(pixels, t262=0)), 255 - GRAY)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("pixels", [GRAY, GRAY16])
    def test_orientation_is_ignored(self, pixels: Pixels, orientation: int) -> None:
        assert np.array_equal(pixels_of(tiff(pixels, t274=orientation)), GRAY)

    def test_odd_metadata_is_not_looked_at(self) -> None:
        data = tiff(GRAY, t282=[1, 2, 3], t296=[7, 7], t33628=[1, 2, 3], t305=4_000_000)
        assert np.array_equal(pixels_of(data), GRAY)

    def test_unspecified_fourth_channel_is_dropped(self) -> None:
        pixels = np.dstack([COLOUR, GRAY])
        assert np.array_equal(pixels_of(tiff(pixels, t338=0)), COLOUR)
        assert np.array_equal(pixels_of(tiff(pixels.astype(np.uint16) * 257, t338=0)), COLOUR)

    @pytest.mark.parametrize("pixels", [GRAY, GRAY16])
    def test_channels_that_are_no_colours(self, pixels: Pixels) -> None:
        for channels in (2, 3, 4):
            message = error_of(tiff(np.dstack([pixels] * channels), t262=1))
            assert f"expected gray or RGB, found {channels} channels" in message

    @pytest.mark.parametrize("use", [read_image, image_size])
    def test_pages(self, use: Callable[[ImageFile], Any]) -> None:
        assert error_of(tiff(GRAY, pages=3), use) == (
            "expected one picture, found 3 pages; save one image per file"
        )
        stack = [Image.fromarray(GRAY), Image.fromarray(GRAY)]
        assert "2 pages" in error_of(saved(stack[0], "TIFF", save_all=True, append_images=stack[1:]), use)

    @pytest.mark.parametrize("use", [read_image, image_size])
    @pytest.mark.parametrize(("bits", "code"), [(64, 5), (24, 3), (12, 1)])
    def test_samples_that_need_conversion(
        self, bits: int, code: int, use: Callable[[ImageFile], Any]
    ) -> None:
        message = error_of(tiff(GRAY, t258=bits, t339=code), use)
        assert f"found {bits}-bit " in message and "ones; convert the image first" in message

    def test_pages_in_a_loop(self) -> None:
        data = bytearray(tiff(GRAY))
        (first,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, first)
        struct.pack_into("<I", data, first + 2 + 12 * count, first)
        assert np.array_equal(pixels_of(bytes(data)), GRAY)


class TestDamage:
    @pytest.mark.parametrize("fraction", [0.0005, 0.02, 0.1, 0.5, 0.9, 0.99])
    @pytest.mark.parametrize("name", ALL_ENCODERS)
    def test_truncated(self, name: str, fraction: float, capfd: pytest.CaptureFixture[str]) -> None:
        noisy = np.random.default_rng(0).integers(0, 255, (80, 90), np.uint8)
        for pixels in (noisy, noisy.astype(np.uint16) * 99) if name in SIXTEEN_BIT else (noisy,):
            data = ALL_ENCODERS[name](pixels)
            message = error_of(data[: int(len(data) * fraction)])
            assert message.startswith("expected a")
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("name", ALL_ENCODERS)
    def test_one_byte_short(self, name: str, capfd: pytest.CaptureFixture[str]) -> None:
        error_of(ALL_ENCODERS[name](GRAY)[:-1])
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("name", ["png cv2", "tiff cv2 lzw", *JPEG_ENCODERS])
    def test_second_half_zeroed(self, name: str, capfd: pytest.CaptureFixture[str]) -> None:
        data = ALL_ENCODERS[name](COLOUR)
        error_of(data[: len(data) // 2] + bytes(len(data) // 2))
        assert capfd.readouterr() == ("", "")

    def test_flipped_bits_of_a_png(self, capfd: pytest.CaptureFixture[str]) -> None:
        data = bytearray(by_cv2(".png")(GRAY))
        data[len(data) // 2] ^= 0x5A
        assert "a chunk IDAT that fails its checksum" in error_of(bytes(data))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("name", ["tiff cv2 lzw", "tiff cv2 deflate"])
    def test_damaged_strips(self, name: str) -> None:
        """Eight bits: libtiff inside Pillow prints a line of its own here."""
        data = bytearray(ENCODERS[name](np.random.default_rng(0).integers(0, 255, (80, 90), np.uint8)))
        data[1000:1100] = bytes(value ^ 0x5A for value in data[1000:1100])
        assert "damaged" in error_of(bytes(data))

    def test_damaged_strips_of_sixteen_bits(self, capfd: pytest.CaptureFixture[str]) -> None:
        data = bytearray(tiff(GRAY16))
        data[100:120] = bytes(20)
        assert error_of(bytes(data)) == "expected a whole image, found a damaged one"
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "expected a PNG, TIFF, JPEG, BMP or WebP image, found an empty file"),
            (b"id,predicted", "found a file that begins with 69 64 2c 70 72 65 64 69"),
            (b"GIF89a" + bytes(50), "found a file that begins with 47 49 46 38 39 61 00 00"),
            (by_cv2(".png")(GRAY)[:20], "found 20 bytes that end inside the header"),
            (by_cv2(".png")(GRAY)[:-1], "bytes that end inside a chunk IEND"),
            (by_cv2(".png")(GRAY)[:-12], "bytes that end before its end marker"),
            (by_cv2(".jpg")(GRAY)[:-2], "bytes that end before its end marker"),
            (by_cv2(".bmp")(GRAY)[:-1], "bytes that end before the 3318 that it announces"),
            (tiff(GRAY)[:50], "found 50 bytes that end inside the header"),
            (tiff(GRAY, t279=10**6), "before byte 1000008 of its last strip"),
            (tiff(GRAY, t279=[5, 5]), "found 1 strips or tiles of 2 lengths"),
            (tiff(GRAY, t257=41), "expected a TIFF of 2 strips or tiles, found 1"),
            (tiff(GRAY, t259=1), "expected a TIFF of 2240 bytes of pixels, found "),
            (png(1, 0, 8, 0, []), "pixels, found 0 x 1"),
            (
                png(1 << 15, (1 << 15) + 1, 8, 0, []),
                f"expected 1 to {MAX_PIXELS} pixels, found 32769 x 32768",
            ),
            (png(1, 1, 8, 0, [b"\0"], png_chunk(b"acTL\0\0\0\2\0\0\0\0")), "found an animation"),
        ],
    )
    def test_messages(self, data: bytes, message: str) -> None:
        assert message in error_of(data)

    @given(st.sampled_from(sorted(ALL_ENCODERS)), st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_damage_is_an_image_or_an_image_error(self, name: str, draw: st.DataObject) -> None:
        data = bytearray(ALL_ENCODERS[name](GRAY[:9, :9]))
        for _ in range(draw.draw(st.integers(1, 4))):
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        for use in (read_image, image_size):
            try:
                on_disk(bytes(data), use)
            except ImageError as error:
                assert "\n" not in str(error)


class TestSizes:
    @pytest.mark.parametrize("extension", [".png", ".tif"])
    def test_large(self, extension: str, tmp_path: Path) -> None:
        pixels = np.zeros((10_000, 10_000), np.uint8)
        pixels[-1, -1] = 7
        path = tmp_path / f"large{extension}"
        path.write_bytes(by_cv2(extension)(pixels))
        file = ImageFile("large", path)
        assert image_size(file) == (10_000, 10_000)
        assert np.array_equal(read_image(file).pixels, pixels)

    @pytest.mark.parametrize("name", ["png cv2", "bmp cv2", *JPEG_ENCODERS])
    def test_size_needs_only_the_header(self, name: str) -> None:
        data = ALL_ENCODERS[name](GRAY)
        assert on_disk(data[: len(data) - 200], image_size) == (40, 56)


def test_reading_in_threads_leaves_opencvs_log_as_it_was(tmp_path: Path) -> None:
    level = cv2.utils.logging.getLogLevel()
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(GRAY16))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(read_image, [ImageFile("a", path)] * 64))
    assert all(np.array_equal(image.pixels, GRAY) for image in images)
    assert cv2.utils.logging.getLogLevel() == level
