"""Outlines against a plain reference; overlays, what they show and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sartorius_infer.errors import ImageError
from sartorius_infer.render import NARROWEST, PALETTE, outline, overlay, save_overlay
from sartorius_infer.types import Bool, CellImage, Instances, Int32, UInt8

CLASSES = ("shsy5y", "astro", "cort")
SIZE_HW = (300, 400)


def reference(label_map: Int32) -> Bool:
    """`outline`, pixel by pixel."""
    height, width = label_map.shape
    edge = np.zeros(label_map.shape, np.bool_)
    for y, x in np.argwhere(label_map):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(j, i) for j, i in around if 0 <= j < height and 0 <= i < width]
        edge[y, x] = any(label_map[place] != label_map[y, x] for place in inside)
    return edge


def gray(size_hw: tuple[int, int] = SIZE_HW, low: int = 0, high: int = 256) -> CellImage:
    """Noise of an even spread."""
    pixels = np.random.default_rng(0).integers(low, high, size_hw, np.uint8)
    return CellImage("image", pixels)


def cells(*boxes: tuple[int, int, int, int], size_hw: tuple[int, int] = SIZE_HW, label: int = 1) -> Instances:
    """One rectangle per (top, left, bottom, right), all of one class."""
    label_map = np.zeros(size_hw, np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        label_map[top:bottom, left:right] = number
    scores = np.ones(len(boxes), np.float32)
    return Instances("image", label_map, scores, np.full(len(boxes), label, np.int64))


def swatches(legend: UInt8) -> list[tuple[int, int, int]]:
    """The colours of the palette that cover some area of the legend."""
    return [colour for colour in PALETTE if (legend == colour).all(axis=2).sum() > 100]


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)))
@settings(max_examples=100, deadline=None)
def test_outline_is_the_reference(label_map: Int32) -> None:
    assert np.array_equal(outline(label_map), reference(label_map))


def test_outline_of_rectangles() -> None:
    label_map = cells((0, 0, 5, 4), (5, 0, 9, 4), (2, 6, 8, 12), size_hw=(10, 14)).label_map
    edge = outline(label_map)
    assert np.array_equal(edge, reference(label_map))
    assert edge[4, :4].all()
    assert edge[5, :4].all()
    assert not edge[:4, 0].any()  # the image's border is no neighbour
    assert edge[2:8, 6:12].sum() == 2 * (6 + 6) - 4


def test_nothing_found() -> None:
    assert not outline(np.zeros((5, 7), np.int32)).any()
    image = gray()
    drawn = overlay(image, cells(), CLASSES)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > 300
    assert drawn.shape[1:] == (400, 3)
    assert (drawn[:300] == drawn[:300, :, :1]).all()
    assert swatches(drawn[300:]) == list(PALETTE[:3])


def test_cells_are_outlined_in_their_colour_and_filled_faintly() -> None:
    image, found = gray(), cells((10, 10, 60, 60), (10, 60, 60, 90), label=2)
    drawn = overlay(image, found, CLASSES)[:300]
    bare = overlay(image, cells(), CLASSES)[:300]
    edge, inside = outline(found.label_map), found.label_map > 0
    assert (drawn[edge] == PALETTE[1]).all()
    assert np.array_equal(drawn[~inside], bare[~inside])
    fill = inside & ~edge
    toward = (
        np.abs(drawn[fill].astype(int) - PALETTE[1]).sum(),
        np.abs(bare[fill].astype(int) - PALETTE[1]).sum(),
    )
    assert 0.5 * toward[1] < toward[0] < 0.95 * toward[1]
    assert len({tuple(drawn[30, x] - bare[30, x]) for x in (30, 75)}) == 2


@pytest.mark.parametrize("pixels", [gray().pixels, np.dstack([gray().pixels] * 3)])
def test_contrast_is_stretched(pixels: UInt8) -> None:
    flat = (118 + pixels // 13).astype(np.uint8)
    drawn = overlay(CellImage("image", flat), cells(), CLASSES)[:300]
    assert drawn.min() == 0
    assert drawn.max() == 255
    levels = [drawn[flat.reshape(300, 400, -1)[..., 0] == level] for level in np.unique(flat)]
    assert all(np.unique(level).size == 1 for level in levels)
    assert all(np.diff([int(level[0, 0]) for level in levels]) >= 0)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_image_of_one_gray_stays_so(value: int) -> None:
    image = CellImage("image", np.full(SIZE_HW, value, np.uint8))
    assert (overlay(image, cells(), CLASSES)[:300] == value).all()


def test_neither_image_nor_cells_are_changed() -> None:
    image, found = gray(), cells((10, 10, 60, 60))
    pixels, label_map = image.pixels.copy(), found.label_map.copy()
    overlay(image, found, CLASSES)
    assert np.array_equal(image.pixels, pixels)
    assert np.array_equal(found.label_map, label_map)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 1), (60, 70), (90, 255), (5000, 2), (2, 5000), (256, 256)])
def test_sizes(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    drawn = overlay(gray(size_hw), cells((0, 0, 1, 1), size_hw=size_hw), CLASSES)
    assert drawn.shape[1] >= max(NARROWEST, width)
    assert drawn.shape[0] > height
    if width >= NARROWEST:
        assert drawn.shape[1] == width
    assert max(drawn.shape) < max(16 * NARROWEST, *size_hw) + 300


def test_a_narrow_image_is_enlarged_with_thin_outlines() -> None:
    drawn = overlay(gray((60, 70)), cells((10, 10, 40, 40), size_hw=(60, 70)), CLASSES)
    assert drawn.shape[1] == 280
    edge = (drawn[:240] == PALETTE[0]).all(axis=2)
    assert edge[100, 40]
    assert not edge[100, 42:158].any()


@pytest.mark.parametrize("names", [("a",), (), tuple(f"class {n}" for n in range(20)), ("\n", "é\tü")])
def test_legends(names: tuple[str, ...]) -> None:
    drawn = overlay(gray(), cells(), names)
    assert swatches(drawn[300:]) == list(PALETTE[: len(names)])


def test_the_legend_counts() -> None:
    one, two = (overlay(gray(), cells(*[(0, 0, 9, 9)] * n), CLASSES)[300:] for n in (1, 2))
    assert one.shape == two.shape
    assert not np.array_equal(one, two)


def test_cells_of_another_image() -> None:
    with pytest.raises(ImageError, match=r"image: expected cells of 300 x 400 pixels, found 3 x 4"):
        overlay(gray(), cells(size_hw=(3, 4)), CLASSES)
    with pytest.raises(ImageError, match=r"image: expected labels 1\.\.3, found 4"):
        overlay(gray(), cells((0, 0, 5, 5), label=4), CLASSES)


def test_saved_overlay(tmp_path: Path) -> None:
    image, found = gray(), cells((10, 10, 60, 60))
    path = save_overlay(tmp_path / "new", image.id, overlay(image, found, CLASSES))
    assert path == tmp_path / "new" / "image.png"
    assert [inside.name for inside in path.parent.iterdir()] == ["image.png"]
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert np.array_equal(read[..., ::-1], overlay(image, found, CLASSES))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match=r"image\.png: cannot be written: (File exists|Not a directory)"):
        save_overlay(tmp_path / "file", "image", overlay(gray(), cells(), CLASSES))
