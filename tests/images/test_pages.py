"""Stacks as tifffile and Pillow write them, page by page against the array that was written."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from image_factories import COLOUR, GRAY, GRAY16, error_of, tiff
from numpy.typing import NDArray
from PIL import Image

from sartorius_infer.errors import ImageError
from sartorius_infer.images.find import find_images
from sartorius_infer.images.pages import page_file, read_stack
from sartorius_infer.images.read import image_size, read_image, read_with_values

STACK = np.random.default_rng(0).integers(0, 4000, (6, 40, 56)).astype(np.uint16)


def write(path: Path, stack: NDArray[Any] = STACK, **how: Any) -> Path:
    tifffile.imwrite(path, stack, **how)
    return path


KINDS: dict[str, dict[str, Any]] = {
    "pages": {"metadata": None},
    "one directory": {},
    "ImageJ": {"imagej": True},
    "one directory of ImageJ": {"imagej": True, "truncate": True},
    "OME": {"ome": True, "metadata": {"axes": "TYX"}},
    "BigTIFF": {"bigtiff": True, "metadata": None},
    "BigTIFF, one directory": {"bigtiff": True, "truncate": True},
    "high byte first": {"byteorder": ">", "metadata": None, "compression": "zlib"},
    "tiles": {"tile": (16, 32), "compression": "zlib", "metadata": None},
    "strips": {"rowsperstrip": 7, "metadata": None},
}


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_each_page_is_the_plane_that_was_written(tmp_path: Path, how: dict[str, Any]) -> None:
    files = find_images([write(tmp_path / "a.tif", **how)])
    assert [file.id for file in files] == [f"a_p{number:03}" for number in range(len(STACK))]
    for file, plane in zip(files, STACK, strict=True):
        image, values = read_with_values(file)
        np.testing.assert_array_equal(values, plane)
        assert image.id == file.id
        assert image_size(file) == image.size_hw == plane.shape


@settings(max_examples=25)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.permutations("CZT"), st.booleans(), st.data()
)
def test_a_channel_is_the_one_that_ome_or_imagej_tells(
    tmp_path_factory: pytest.TempPathFactory,
    c: int, z: int, t: int, order: list[str], is_imagej: bool, data: st.DataObject,
) -> None:  # fmt: skip
    """tifffile writes pages in the order of the axes, the last one fastest, and tells so."""
    path, sizes = tmp_path_factory.mktemp("stack") / "a.tif", {"C": c, "Z": z, "T": t}
    axes = ["T", "Z", "C"] if is_imagej else order
    stack = np.arange(c * z * t, dtype=np.uint16).reshape([sizes[axis] for axis in axes])
    pixels = np.broadcast_to(stack[..., None, None], (*stack.shape, 4, 5))
    tifffile.imwrite(
        path, np.ascontiguousarray(pixels), imagej=is_imagej, ome=not is_imagej,
        metadata={"axes": "".join(axes) + "YX"}, photometric="minisblack",
    )  # fmt: skip
    channel = data.draw(st.integers(0, c - 1))
    files = find_images([path], channel=channel)
    expected = np.take(stack, channel, axes.index("C")).ravel().tolist()
    assert [int(read_with_values(file)[1][0, 0]) for file in files] == expected


def ids(path: Path, *choice: int | None, **more: Any) -> list[str]:
    return [file.id for file in find_images([path], pages=slice(*choice), **more)]


def test_pages_are_chosen_by_number_and_what_is_left_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tif", STACK.reshape(3, 2, 40, 56), imagej=True, metadata={"axes": "TCYX"})
    assert ids(path, 1, 3) == ["a_p001", "a_p002"]
    assert ids(path, 5, None) == ["a_p005"]
    assert ids(path, 0, 4, channel=1) == ["a_p001", "a_p003"]
    assert caplog.messages == [
        "passed over pages of TIFF files: outside --pages 4",
        f"each page is an image; --channel N takes one of several channels of {path}",
        "passed over pages of TIFF files: outside --pages 5",
        f"each page is an image; --channel N takes one of several channels of {path}",
        "passed over pages of TIFF files: of another channel 3, outside --pages 1",
    ]
    with pytest.raises(ImageError, match="expected at least one page that --pages and --channel choose"):
        ids(path, 6, None)
    with pytest.raises(ImageError, match=r"a\.tif: expected a channel below 2, found 2"):
        ids(path, None, channel=2)


def test_smaller_copies_are_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(STACK[0])
        writer.write(STACK[0, ::2, ::2], subfiletype=1)
    (file,) = find_images([tmp_path])
    assert file.id == "pyramid"
    np.testing.assert_array_equal(read_with_values(file)[1], STACK[0])
    assert caplog.messages == ["passed over pages of TIFF files: smaller copy or mask 1"]


def test_many_pages_are_counted_with_more_digits(tmp_path: Path) -> None:
    files = find_images([write(tmp_path / "a.tif", np.zeros((1001, 2, 5), np.uint8), metadata=None)])
    assert (files[0].id, files[-1].id) == ("a_p0000", "a_p1000")


def test_a_page_and_a_file_of_one_name_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    write(tmp_path / "a_p002.tif", STACK[0])
    with pytest.raises(ImageError, match=r"a_p002\.tif: expected ids to be unique, found .*a\.tif as well"):
        find_images([tmp_path])


def test_single_pictures_stay_what_they_are(tmp_path: Path) -> None:
    """Whatever --pages says, of files of several pages."""
    for name, data in (("a.tif", tiff(GRAY)), ("b.tif", b"damaged"), ("c.tiff", tiff(GRAY)[:9])):
        (tmp_path / name).write_bytes(data)
    Image.fromarray(GRAY).save(tmp_path / "d.png")
    files = find_images([tmp_path], pages=slice(4, 5))
    assert [(file.id, file.page, file.channel) for file in files] == [(name, None, None) for name in "abcd"]


def test_a_page_takes_the_memory_of_a_page(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.zeros((40, 500, 500), np.uint16), metadata=None)
    page = read_stack(path).pages[30]
    tracemalloc.start()
    data = page_file(path, page)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data) < 510_000
    assert peak < 2_000_000 < path.stat().st_size


def test_a_page_that_is_cut_off_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", imagej=True, truncate=True)
    whole = path.stat().st_size
    os.truncate(path, whole - 100)
    files = find_images([path])
    assert len(files) == len(STACK) - 1, "the last plane is not all there"
    np.testing.assert_array_equal(read_with_values(files[-1])[1], STACK[-2])
    path = write(tmp_path / "b.tif", metadata=None)
    files = find_images([path])
    start = files[2].page
    assert start is not None
    os.truncate(path, start.start)
    with pytest.raises(ImageError, match=r"b\.tif: expected a whole "):
        read_image(files[2])


@pytest.mark.parametrize("tags", [{"t273": [4_000_000_000]}, {"t279": [4_000_000_000]}, {"t279": [5, 5]}])
def test_places_outside_the_file_are_refused(tmp_path: Path, tags: dict[str, Any]) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(GRAY, pages=2, **tags))
    with pytest.raises(ImageError, match=r"a\.tif: expected "):
        read_image(find_images([tmp_path])[0])


def test_old_jpeg_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(GRAY, pages=2, t259=6))
    with pytest.raises(ImageError, match=r"a\.tif: expected a page in a compression of TIFF 6\.0"):
        read_image(find_images([tmp_path])[0])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_channel_within_the_picture(tmp_path: Path, planar: Any, dtype: type, count: int) -> None:
    whole = np.random.default_rng(1).integers(0, 200, (count, 40, 56)).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(whole, 0, 2) if planar == "contig" else whole,
        planarconfig=planar, photometric="rgb" if count == 3 else "minisblack", metadata=None,
        compression="zlib", extrasamples=None if count == 3 else ["unspecified"] * (count - 1),
    )  # fmt: skip
    for channel in range(count):
        (file,) = find_images([tmp_path], channel=channel)
        image, values = read_with_values(file)
        np.testing.assert_array_equal(values, whole[channel])
        np.testing.assert_array_equal(image.pixels, whole[channel])
        assert image_size(file) == (40, 56)
    (file,) = find_images([tmp_path], channel=count)
    with pytest.raises(ImageError, match=rf"a\.tif: expected a channel below {count}, found {count}$"):
        read_image(file)


def test_a_channel_of_other_formats(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for channel in range(3):
        (file,) = find_images([tmp_path], channel=channel)
        np.testing.assert_array_equal(read_image(file).pixels, COLOUR[..., channel])
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    assert np.array_equal(read_image(find_images([tmp_path], channel=0)[0]).pixels, GRAY)
    with pytest.raises(ImageError, match=r"a\.png: expected a channel below 1, found 1"):
        read_image(find_images([tmp_path], channel=1)[0])


def test_a_path_alone_is_still_one_picture() -> None:
    assert error_of(tiff(GRAY16, pages=2)).startswith("expected one picture, found 2 pages")
