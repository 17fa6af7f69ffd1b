"""TIFF files as programs write them: stacks in one directory, compressions, planes, BigTIFF."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from image_factories import (
    COLOUR,
    COLOUR16,
    GRAY,
    GRAY16,
    Pixels,
    big_tiff,
    by_cv2,
    error_of,
    pixels_of,
    saved,
    tiff,
)
from PIL import Image
from places import CASES

from sartorius_infer.errors import ImageError
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.read import image_size, read_image

ALL = [GRAY, COLOUR, GRAY16, COLOUR16]
SIZE = GRAY.size * 2
IMAGEJ = b"ImageJ=1.54f\nimages=%d\nslices=%d\n"
OME = b'<OME><Image><Pixels ID="P" SizeX="56" SizeY="40" SizeC="%d" SizeZ="%d" SizeT="1"/></Image></OME>'


def eight(pixels: Pixels) -> Pixels:
    return pixels // 257 if pixels.dtype == np.uint16 else pixels


def planes(count: int, **tags: Any) -> bytes:
    """A directory for the first of `count` planes of 16-bit gray, which all lie one after the other."""
    data = tiff(GRAY16, compress=lambda plane: plane + bytes(SIZE * (count - 1)), t259=1, **tags)
    return data


class TestStacks:
    @pytest.mark.parametrize("use", [read_image, image_size])
    @pytest.mark.parametrize(
        "told",
        [
            {"t270": IMAGEJ % (3, 3)},
            {"t270": b"ImageJ=1.11a\nimages=3\nchannels=3\nhyperstack=true\nmode=grayscale\n"},
            {"t270": b'{"shape": [3, 40, 56], "truncated": true}'},
            {"t270": b"shape=(3, 40, 56)"},
            {"t270": OME % (3, 1)},
            {"t270": OME % (1, 3)},
            {"t32997": 3},
            {"t33629": [0] * 3},
        ],
    )
    def test_of_one_directory_are_refused(
        self, told: dict[str, Any], use: Callable[[ImageFile], Any]
    ) -> None:
        assert error_of(planes(3, **told), use) == (
            "expected one picture, found a stack of 3 planes; save one image per file"
        )

    def test_depth_needs_no_uncompressed_planes(self) -> None:
        assert "a stack of 2 planes" in error_of(tiff(GRAY, t32997=2))

    @pytest.mark.parametrize(
        "told",
        [
            {},
            {"t270": IMAGEJ % (1, 1)},
            {"t270": b"ImageJ=1.54f\n"},
            {"t270": b"images=3"},
            {"t270": b'{"shape": [40, 56]}'},
            {"t270": OME % (1, 1)},
            {"t270": b"<Pixels " * 10_000},
            {"t270": b"\xff\xfe"},
            {"t32997": 1},
            {"t33629": [0]},
        ],
    )
    def test_one_plane_is_a_picture_whatever_follows_it(self, told: dict[str, Any]) -> None:
        assert np.array_equal(pixels_of(planes(3, **told)), GRAY)

    @pytest.mark.parametrize("told", [{"t270": IMAGEJ % (3, 3)}, {"t270": OME % (3, 1)}, {"t33629": [0] * 3}])
    def test_words_older_than_the_file_do_not_count(self, told: dict[str, Any]) -> None:
        """A plane taken out of a stack keeps its description; of several OME files each holds one plane."""
        assert np.array_equal(pixels_of(planes(1, **told)), GRAY)
        assert np.array_equal(pixels_of(tiff(GRAY, **told)), GRAY)

    def test_colours_are_not_planes(self) -> None:
        def twice(data: bytes) -> bytes:
            return data * 2

        assert np.array_equal(pixels_of(tiff(COLOUR, compress=twice, t259=1, t270=OME % (3, 1))), COLOUR)
        assert "2 planes" in error_of(tiff(COLOUR, compress=twice, t259=1, t270=OME % (6, 1)))


class TestPlanes:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("pixels", [COLOUR, COLOUR16])
    def test_separate_ones(self, pixels: Pixels, order: Literal["<", ">"]) -> None:
        assert np.array_equal(pixels_of(tiff(pixels, order, t284=2)), COLOUR)

    def test_alpha_is_dropped(self) -> None:
        assert np.array_equal(pixels_of(tiff(np.dstack([COLOUR16, GRAY16]), t284=2, t338=2)), COLOUR)

    def test_a_missing_plane(self) -> None:
        message = error_of(tiff(COLOUR16, t284=2, t273=[8, 8], t279=[5, 5]))
        assert "expected a TIFF of 3 strips or tiles, found 2" in message


class TestBig:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("pixels", ALL)
    def test_either_byte_order(self, pixels: Pixels, order: Literal["<", ">"]) -> None:
        data = big_tiff(pixels, order)
        assert np.array_equal(pixels_of(data), eight(pixels))
        for cut in (4, 10, 20, len(data) // 2, len(data) - 1):
            error_of(data[:cut])


def zstandard(data: bytes) -> bytes:
    """A frame of one block as it is (RFC 8878)."""
    return (
        struct.pack("<IBI", 0xFD2FB528, 0xA0, len(data)) + (1 | len(data) << 3).to_bytes(3, "little") + data
    )


def differences(pixels: Pixels) -> Pixels:
    """What predictor 2 stores."""
    return np.diff(pixels, axis=1, prepend=np.zeros_like(pixels[:, :1]))


CODECS = {8: zlib.compress, 34925: lzma.compress, 50000: zstandard}


class TestCompressions:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("pixels", ALL)
    @pytest.mark.parametrize("number", CODECS)
    @pytest.mark.parametrize("predictor", [1, 2])
    def test_of_bytes(self, number: int, pixels: Pixels, order: Literal["<", ">"], predictor: int) -> None:
        stored = differences(pixels) if predictor == 2 else pixels
        data = tiff(stored, order, compress=CODECS[number], t259=number, t317=predictor)
        assert np.array_equal(pixels_of(data), eight(pixels))

    @pytest.mark.parametrize("pixels", ALL)
    def test_of_tiles(self, pixels: Pixels) -> None:
        assert np.array_equal(pixels_of(tiled(differences(pixels), 50000, zstandard)), eight(pixels))

    @pytest.mark.parametrize(
        ("number", "pixels"),
        [*((number, pixels) for number in (34712, 34933) for pixels in ALL), (50001, GRAY), (50001, COLOUR)],
    )
    def test_of_pictures(self, number: int, pixels: Pixels) -> None:
        encode = PICTURES[number]
        data = tiff(pixels, compress=lambda _: encode(pixels), t259=number)
        assert np.array_equal(pixels_of(data), eight(pixels))

    @pytest.mark.parametrize("number", [34712, 34933, 50001])
    def test_of_pictures_that_are_damaged(self, number: int, capfd: pytest.CaptureFixture[str]) -> None:
        encode = PICTURES[number]
        whole = encode(GRAY)
        cut = [whole[: int(len(whole) * fraction)] for fraction in (0.1, 0.5, 0.9, 0.99)]
        for damaged in (b"", b"no picture", encode(GRAY[:33]), encode(GRAY[:, :33]), *cut):
            message = error_of(tiff(GRAY, compress=lambda _, data=damaged: data, t259=number))
            assert "that does not decode" in message
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(("number", "name"), [(34925, "LZMA"), (50000, "Zstandard")])
    @pytest.mark.parametrize("pixels", ALL)
    def test_damage_names_the_compression(self, number: int, name: str, pixels: Pixels) -> None:
        def cut(data: bytes) -> bytes:
            return CODECS[number](data)[:50]

        message = error_of(tiff(pixels, compress=cut, t259=number))
        assert f"found {name} that does not decode" in message
        assert message.endswith("save the image without compression or with LZW")

    @pytest.mark.parametrize("use", [read_image, image_size])
    @pytest.mark.parametrize(
        ("number", "name"), [(34887, "LERC"), (50002, "JPEG XL"), (7777, "an unknown one")]
    )
    def test_unknown_ones_are_named(self, number: int, name: str, use: Callable[[ImageFile], Any]) -> None:
        assert error_of(tiff(GRAY16, t259=number), use) == (
            f"expected a compression that is known here, found {name} ({number}); "
            "save the image without compression or with LZW"
        )


def codestream(pixels: Pixels) -> bytes:
    """JPEG 2000 without the boxes around it."""
    whole = by_cv2(".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)(pixels)
    return whole[whole.index(b"\xff\x4f\xff\x51") :]


PICTURES: dict[int, Callable[[Pixels], bytes]] = {
    34712: codestream,
    34933: by_cv2(".png"),
    50001: by_cv2(".webp", 64, 101),
}


def tiled(pixels: Pixels, number: int, compress: Callable[[bytes], bytes], side: int = 16) -> bytes:
    """Tiles of pixels that are differences within each row of each tile."""
    whole = np.cumsum(pixels, axis=1, dtype=pixels.dtype)
    height, width = pixels.shape[:2]
    padding = ((0, -height % side), (0, -width % side), (0, 0))
    padded = np.pad(whole.reshape(height, width, -1), padding)
    tiles = [
        compress(differences(padded[top : top + side, left : left + side]).tobytes())
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    starts = [8 + sum(map(len, tiles[:index])) for index in range(len(tiles))]
    return tiff(
        pixels, compress=lambda _: b"".join(tiles), t259=number, t317=2, t322=side, t323=side,
        t324=starts, t325=[len(tile) for tile in tiles],
    )  # fmt: skip


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
class TestClaims:
    """A header is believed only as far as its bytes can go."""

    HIGH, WIDE = 1 << 14, 1 << 15

    @pytest.mark.parametrize(
        ("number", "most"), [(1, 1), (5, 2559), (8, 1032), (32946, 1032), (32773, 64), (50000, 1 << 15)]
    )
    def test_of_more_than_any_compression_can_hold(self, number: int, most: int) -> None:
        strip = bytes(self.HIGH * self.WIDE // most - 1 if most > 1000 else 9)
        data = tiff(
            GRAY, compress=lambda _: strip, t256=self.WIDE, t257=self.HIGH, t278=self.HIGH, t259=number
        )
        assert f"expected a TIFF of {self.HIGH * self.WIDE} bytes of pixels, found " in error_of(data)

    @pytest.mark.parametrize("number", [2, 3, 4])
    def test_of_more_rows_than_fax_has_bits(self, number: int) -> None:
        data = tiff(GRAY, compress=lambda _: bytes(9), t257=73, t278=73, t258=1, t259=number)
        assert error_of(data) == f"expected a TIFF of {73 * 7} bytes of pixels, found 9"

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"])
    def test_pictures_of_nothing_are_as_small_as_they_come(self, compression: str) -> None:
        blank = Image.new("1" if compression == "group4" else "L", (2000, 2000))
        assert not pixels_of(saved(blank, "TIFF", compression=compression)).any()


def test_cases() -> None:
    stack, zstd = CASES / "tiff" / "imagej_one_ifd.tif", CASES / "tiff" / "gray16_zstd.tif"
    with pytest.raises(ImageError, match=r"imagej_one_ifd\.tif: .* a stack of 3 planes"):
        read_image(stack)
    with Image.open(zstd) as picture:
        stored = np.asarray(picture)
    assert read_image(zstd).pixels.shape == stored.shape == (48, 64)
