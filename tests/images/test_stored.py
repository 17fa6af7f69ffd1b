"""Stored values: every type, byte order, packing and layout gives back the numbers that were written."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_factories import big_tiff, directory, saved, tiff
from numpy.typing import NDArray
from PIL import Image

from sartorius_infer.errors import ImageError
from sartorius_infer.images.stored import stored_values

Order = Literal["<", ">"]
CODES = {"u": 1, "i": 2, "f": 3}
TYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


def lzw(data: bytes) -> bytes:
    """Valid, if not small: the table is cleared before codes grow longer than 9 bits."""
    codes = []
    for at in range(0, len(data), 250):
        codes += [256, *data[at : at + 250]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    return bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))


def packbits(data: bytes) -> bytes:
    pieces = (data[at : at + 128] for at in range(0, len(data), 128))
    return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)


PACKINGS: dict[int, Callable[[bytes], bytes]] = {1: bytes, 5: lzw, 8: zlib.compress, 32773: packbits}


def labels(dtype: str, shape: tuple[int, int] = (7, 11), seed: int = 0) -> NDArray[Any]:
    """Whole numbers up to the largest that the type counts to."""
    rng = np.random.default_rng(seed)
    top = 2 ** {"f2": 11, "f4": 24, "f8": 53}.get(dtype, 8 * int(dtype[1]) - 1) - 1
    return rng.choice([0, 1, 2, 100, top], shape).astype(dtype)


def packed(values: NDArray[Any], order: Order, packing: int, **tags: Any) -> bytes:
    return tiff(values, order, compress=PACKINGS[packing], t259=packing, **tags)


def same(data: bytes, values: NDArray[Any]) -> None:
    found = stored_values(data)
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_in_either_byte_order_and_every_packing(dtype: str, packing: int, order: Order) -> None:
    values = labels(dtype)
    for photometric in (0, 1, 3):
        same(packed(values, order, packing, t339=CODES[dtype[0]], t262=photometric, t274=6), values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u8", "f4", "f8"])
def test_differences_between_neighbours(dtype: str, order: Order) -> None:
    values = labels(dtype)
    if dtype[0] != "f":
        differences = np.diff(values, axis=1, prepend=values.dtype.type(0))
        same(packed(differences, order, 8, t339=CODES[dtype[0]], t317=2), values)
        return
    height, width = values.shape
    planes = np.frombuffer(values.astype(f">{dtype}").tobytes(), np.uint8).reshape(height, width, -1)
    rows = planes.transpose(0, 2, 1).reshape(height, -1)
    differences = np.diff(rows, axis=1, prepend=np.uint8(0)).view(dtype)
    same(packed(differences, "<", 8, t339=3, t317=3), values)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(("bits", "packing"), [(1, 1), (1, 5), (2, 8), (4, 8)])
def test_few_bits_are_numbers(bits: int, packing: int, photometric: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 13)).astype(np.uint8)
    each = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(5, -1)
    tags = {"t256": 13, "t258": bits, "t262": photometric, "t339": 1}
    same(packed(np.packbits(each, axis=1), "<", packing, **tags), values)


def test_a_fax_keeps_its_bits() -> None:
    values = np.random.default_rng(0).integers(0, 2, (9, 21)).astype(np.bool_)
    found = stored_values(saved(Image.fromarray(values), "TIFF", compression="group4"))
    assert np.array_equal(found.astype(np.bool_), values)


@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize(("dtype", "predictor"), [("u2", 1), ("f8", 1), ("u4", 2), ("f4", 3)])
def test_tiles_reach_over_the_edge(dtype: str, predictor: int, packing: int) -> None:
    values = labels(dtype, (20, 37))
    whole = np.zeros((32, 48), dtype)
    whole[:20, :37] = values
    tiles = [whole[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16, 32)]
    if predictor == 2:
        tiles = [np.diff(tile, axis=1, prepend=tile.dtype.type(0)) for tile in tiles]
    if predictor == 3:
        planes = [np.frombuffer(t.astype(">f4").tobytes(), np.uint8).reshape(16, 16, 4) for t in tiles]
        rows = [p.transpose(0, 2, 1).reshape(16, -1) for p in planes]
        tiles = [np.diff(row, axis=1, prepend=np.uint8(0)) for row in rows]
    pieces = [PACKINGS[packing](np.ascontiguousarray(tile).tobytes()) for tile in tiles]
    starts = [8 + sum(map(len, pieces[:i])) for i in range(len(pieces))]
    tags = {256: 37, 257: 20, 258: 8 * values.itemsize, 259: packing, 262: 1, 277: 1, 317: predictor}
    tags |= {322: 16, 323: 16, 324: starts, 325: [*map(len, pieces)], 339: CODES[dtype[0]]}  # type: ignore[dict-item]
    data = b"".join(pieces)
    at = 8 + len(data)
    same(b"II*\0" + at.to_bytes(4, "little") + data + directory("<", at, tags, last=True), values)


@pytest.mark.parametrize("packing", PACKINGS)
def test_strips_of_which_the_last_is_shorter(packing: int) -> None:
    values = labels("u2", (7, 11))
    strips = [PACKINGS[packing](values[y : y + 3].tobytes()) for y in (0, 3, 6)]
    starts = [8 + sum(map(len, strips[:i])) for i in range(3)]
    tags = {"t259": packing, "t278": 3, "t273": starts, "t279": [*map(len, strips)]}
    same(tiff(values, compress=lambda plane: b"".join(strips), **tags), values)


@pytest.mark.parametrize("order", ["<", ">"])
def test_big_tiff(order: Order) -> None:
    values = labels("u2")
    same(big_tiff(values, order), values)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(TYPES),
    st.sampled_from(["<", ">"]),
    st.sampled_from([*PACKINGS]),
    st.integers(0, 9),
)
def test_any_size(height: int, width: int, dtype: str, order: Order, packing: int, seed: int) -> None:
    values = labels(dtype, (height, width), seed)
    same(packed(values, order, packing, t339=CODES[dtype[0]]), values)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colours_come_one_after_the_other(dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (5, 6, 3)).astype(dtype)
    same(tiff(values, ">"), values)
    differences = np.diff(values, axis=1, prepend=values.dtype.type(0))
    same(tiff(differences, t317=2), values)


def test_png_of_every_kind() -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    same(saved(Image.fromarray(gray), "PNG"), gray)
    same(saved(Image.fromarray(gray.astype(np.uint16) * 1000), "PNG"), gray.astype(np.uint16) * 1000)
    palette = Image.fromarray(gray)
    palette.putpalette([255 - i for i in range(256) for _ in range(3)])
    same(saved(palette, "PNG"), gray)
    same(saved(Image.fromarray(gray > 5), "PNG"), gray > 5)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"t258": 12}, "integers or floats of up to 64 bits, found 12 bits of kind 1"),
        ({"t339": 6}, "found 16 bits of kind 6"),
        ({"t258": 8, "t339": 3}, "found 8 bits of kind 3"),
        ({"t259": 7}, r"a compression that keeps every value .+, found JPEG \(7\); save"),
        ({"t259": 34887}, r"found LERC \(34887\); save the file without compression or with LZW"),
        ({"t259": 50001}, r"found WebP \(50001\); save"),
        ({"t259": 9}, r"found an unknown one \(9\); save"),
        ({"t256": 1 << 20, "t257": 1 << 20}, "expected 1 to"),
        ({"t270": b"ImageJ=1.53\nimages=2\n", "t257": 3, "t259": 1}, "found a stack of 2"),
        ({"t32997": 4}, "found a stack of 4"),
        ({"t277": 2, "t284": 2}, "."),
    ],
)
def test_what_would_not_be_exact_is_named(tags: dict[str, Any], said: str) -> None:
    data = tiff(labels("u2", (6, 11)), compress=bytes if tags.get("t259") == 1 else zlib.compress, **tags)
    with pytest.raises(ImageError, match=said):
        stored_values(data)


def test_other_files_and_deep_colours_are_named() -> None:
    for data, said in (
        (b"", "begins with nothing"),
        (b"GIF89a", "begins with 47 49 46"),
        (b"BM123", "42 4d"),
    ):
        with pytest.raises(ImageError, match=said):
            stored_values(data)
    deep = bytearray(saved(Image.new("RGB", (2, 2)), "PNG"))
    deep[24] = 16
    deep[29:33] = zlib.crc32(deep[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="16-bit channels"):
        stored_values(bytes(deep))


def test_an_animation_is_a_stack() -> None:
    frames = [Image.new("L", (2, 2), shade) for shade in (0, 9)]
    data = BytesIO()
    frames[0].save(data, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="an animation"):
        stored_values(data.getvalue())
