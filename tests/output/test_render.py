"""Outlines against a plain reference; overlays, what they show and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sartorius_infer.cells.colours import PALETTE
from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import Mask, split_label_map
from sartorius_infer.errors import ImageError
from sartorius_infer.evaluate.metric import THRESHOLDS, score_image
from sartorius_infer.output.render import NARROWEST, outline, overlay, png, save_overlay
from sartorius_infer.show.matches import FALSE_ALARM, HIT, MISS, match_overlay
from sartorius_infer.types import Bool, CellImage, Int32, UInt8

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


def cells(
    *boxes: tuple[int, int, int, int],
    size_hw: tuple[int, int] = SIZE_HW,
    label: int = 1,
    classes: tuple[str, ...] = CLASSES,
) -> Instances:
    """One rectangle per (top, left, bottom, right), all of one class."""
    label_map = np.zeros(size_hw, np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        label_map[top:bottom, left:right] = number
    scores = np.ones(len(boxes), np.float32)
    return Instances("image", label_map, scores, np.full(len(boxes), label, np.int64), classes)


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
    drawn = overlay(image, cells())
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > 300
    assert drawn.shape[1:] == (400, 3)
    assert (drawn[:300] == drawn[:300, :, :1]).all()
    assert swatches(drawn[300:]) == list(PALETTE[:3])


def test_cells_are_outlined_in_their_colour_and_filled_faintly() -> None:
    image, found = gray(), cells((10, 10, 60, 60), (10, 60, 60, 90), label=2)
    drawn = overlay(image, found)[:300]
    bare = overlay(image, cells())[:300]
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
    drawn = overlay(CellImage("image", flat), cells())[:300]
    assert drawn.min() == 0
    assert drawn.max() == 255
    levels = [drawn[flat.reshape(300, 400, -1)[..., 0] == level] for level in np.unique(flat)]
    assert all(np.unique(level).size == 1 for level in levels)
    assert all(np.diff([int(level[0, 0]) for level in levels]) >= 0)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_image_of_one_gray_stays_so(value: int) -> None:
    image = CellImage("image", np.full(SIZE_HW, value, np.uint8))
    assert (overlay(image, cells())[:300] == value).all()


def test_neither_image_nor_cells_are_changed() -> None:
    image, found = gray(), cells((10, 10, 60, 60))
    pixels, label_map = image.pixels.copy(), found.label_map.copy()
    overlay(image, found)
    assert np.array_equal(image.pixels, pixels)
    assert np.array_equal(found.label_map, label_map)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 1), (60, 70), (90, 255), (5000, 2), (2, 5000), (256, 256)])
def test_sizes(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    drawn = overlay(gray(size_hw), cells((0, 0, 1, 1), size_hw=size_hw))
    assert drawn.shape[1] >= max(NARROWEST, width)
    assert drawn.shape[0] > height
    if width >= NARROWEST:
        assert drawn.shape[1] == width
    assert max(drawn.shape) < max(16 * NARROWEST, *size_hw) + 300


def test_a_narrow_image_is_enlarged_with_thin_outlines() -> None:
    drawn = overlay(gray((60, 70)), cells((10, 10, 40, 40), size_hw=(60, 70)))
    assert drawn.shape[1] == 280
    edge = (drawn[:240] == PALETTE[0]).all(axis=2)
    assert edge[100, 40]
    assert not edge[100, 42:158].any()


@pytest.mark.parametrize("names", [("a",), tuple(f"class {n}" for n in range(20)), ("\n", "é\tü")])
def test_legends(names: tuple[str, ...]) -> None:
    drawn = overlay(gray(), cells(classes=names))
    assert swatches(drawn[300:]) == list(PALETTE[: len(names)])


def test_the_legend_counts() -> None:
    one, two = (overlay(gray(), cells(*[(0, 0, 9, 9)] * n))[300:] for n in (1, 2))
    assert one.shape == two.shape
    assert not np.array_equal(one, two)


def test_cells_of_another_image() -> None:
    with pytest.raises(ImageError, match=r"image: expected cells of 300 x 400 pixels, found 3 x 4"):
        overlay(gray(), cells(size_hw=(3, 4)))


def test_saved_overlay(tmp_path: Path) -> None:
    image, found = gray(), cells((10, 10, 60, 60))
    path = save_overlay(tmp_path / "new", image.id, overlay(image, found))
    assert path == tmp_path / "new" / "image.png"
    assert [inside.name for inside in path.parent.iterdir()] == ["image.png"]
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert np.array_equal(read[..., ::-1], overlay(image, found))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match=r"image\.png: cannot be written: (File exists|Not a directory)"):
        save_overlay(tmp_path / "file", "image", overlay(gray(), cells()))


# Hits, misses and false alarms.


def runs(top: int, left: int, bottom: int, right: int, size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    """A rectangle's."""
    return split_label_map(cells((top, left, bottom, right), size_hw=size_hw).label_map, 1)[0]


def box(
    top: int, left: int, bottom: int, right: int, size_hw: tuple[int, int] = SIZE_HW
) -> tuple[Mask, Bool]:
    """A rectangle's runs, and its outline."""
    place = (top, left, bottom, right)
    return runs(*place, size_hw), reference(cells(place, size_hw=size_hw).label_map)


def of_colour(picture: UInt8, colour: tuple[int, int, int], size_hw: tuple[int, int] = SIZE_HW) -> Bool:
    found: Bool = (picture[: size_hw[0], : size_hw[1]] == colour).all(axis=2)
    return found


def every_dash() -> Bool:
    y, x = np.indices(SIZE_HW)
    kept: Bool = (x + y) % 8 <= 4
    return kept


def test_hits_misses_and_false_alarms_are_outlined() -> None:
    image = gray(low=100, high=120)
    bare = overlay(image, cells())[:300]
    (true, _), (found, hit) = box(10, 10, 50, 60), box(12, 10, 50, 60)
    (missed, miss), (wrong, alarm) = box(100, 100, 140, 170), box(200, 30, 230, 90)
    drawn = match_overlay(image, [missed, true], [wrong, found])
    assert drawn.dtype == np.uint8
    assert np.array_equal(of_colour(drawn, HIT), hit)
    assert np.array_equal(of_colour(drawn, FALSE_ALARM), alarm)
    assert np.array_equal(of_colour(drawn, MISS), miss & every_dash())
    assert 0 < of_colour(drawn, MISS).sum() < miss.sum()
    rest = ~(hit | alarm | (miss & every_dash()))
    assert np.array_equal(drawn[:300][rest], bare[rest]), "nothing is filled"
    assert swatches(drawn[300:]) == [HIT, MISS, FALSE_ALARM]


def test_a_hit_at_a_low_iou_is_a_miss_and_a_false_alarm_at_a_high_one() -> None:
    (true, missed), (found, drawn) = box(10, 10, 50, 50), box(10, 10, 50, 42)
    assert of_colour(match_overlay(gray(), [true], [found], 0.75), HIT).sum() >= drawn.sum()
    picture = match_overlay(gray(), [true], [found], 0.8)
    assert not of_colour(picture, HIT).any()
    # False alarms are drawn last.
    assert np.array_equal(of_colour(picture, FALSE_ALARM), drawn)
    assert np.array_equal(of_colour(picture, MISS), missed & every_dash() & ~drawn)


def test_border_cells() -> None:
    """The image's border is no outline, and a cell there does not wrap around."""
    for corner in ((0, 0, 9, 9), (0, 391, 9, 400), (291, 0, 300, 9), (291, 391, 300, 400), (0, 0, 300, 400)):
        mask, edge = box(*corner)
        drawn = match_overlay(gray(), [], [mask])
        assert np.array_equal(of_colour(drawn, FALSE_ALARM), edge), corner
        drawn = match_overlay(gray(), [mask], [])
        assert np.array_equal(of_colour(drawn, MISS), edge & every_dash()), corner


def test_a_cell_of_several_parts_and_one_without_pixels() -> None:
    label_map = cells((5, 5, 20, 20), (280, 300, 299, 330)).label_map.clip(0, 1)
    (mask,) = split_label_map(label_map, 1)
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    drawn = match_overlay(gray(), [nothing], [mask, nothing])
    assert np.array_equal(of_colour(drawn, FALSE_ALARM), reference(label_map))


@given(st.integers(0, 2**32 - 1), st.sampled_from(THRESHOLDS))
@settings(max_examples=15, deadline=None)
def test_as_many_are_drawn_as_the_metric_counts(seed: int, iou: float) -> None:
    """Of disjoint cells in either set each outline's corner tells what the cell is taken for."""
    rng = np.random.default_rng(seed)
    places = [(60 * (n // 6), 60 * (n % 6)) for n in range(24)]
    true, found, corners = [], [], {}
    for y, x in places:
        shift, kind = int(rng.integers(0, 12)), rng.integers(3)
        if kind < 2:
            true.append(runs(y + 1, x + 1, y + 41, x + 41))
        if kind > 0:
            found.append(runs(y + 1, x + 1 + shift, y + 41, x + 41 + shift))
            corners[len(found) - 1] = (y + 1, x + 1 + shift)
    drawn = match_overlay(gray(low=100, high=120), true, found, iou)
    score = score_image("", true, found)
    at = THRESHOLDS.index(iou)
    hits = sum(of_colour(drawn, HIT)[corner] for corner in corners.values())
    alarms = sum(of_colour(drawn, FALSE_ALARM)[corner] for corner in corners.values())
    assert (hits, alarms) == (score.tp[at], score.fp[at])
    assert of_colour(drawn, MISS).any() == (score.fn[at] > 0)


def test_nothing_to_match() -> None:
    image = gray()
    drawn = match_overlay(image, [], [])
    assert np.array_equal(drawn[:300], overlay(image, cells())[:300])
    assert swatches(drawn[300:]) == [HIT, MISS, FALSE_ALARM]


def test_the_legend_tells_counts_and_the_iou() -> None:
    (mask, _), (other, _) = box(10, 10, 50, 60), box(100, 100, 150, 150)
    bands = [
        match_overlay(gray(), true, found, iou)[300:].tobytes()
        for true, found, iou in (
            ([], [], 0.5), ([], [], 0.55), ([mask], [mask], 0.5), ([mask], [], 0.5), ([], [mask], 0.5),
            ([], [mask, other], 0.5),
        )
    ]  # fmt: skip
    assert len(set(bands)) == len(bands)


def test_matches_in_a_narrow_and_in_a_colour_image() -> None:
    size = (60, 70)
    mask, _ = box(10, 10, 40, 40, size)
    drawn = match_overlay(gray(size), [], [mask])
    assert drawn.shape[1] == 280
    assert (drawn[40:44, 40:44] == FALSE_ALARM).all(), "pixels are enlarged with their outline"
    colour = CellImage("image", np.dstack([gray().pixels, gray().pixels // 2, gray().pixels // 3]))
    mask, edge = box(10, 10, 40, 40)
    assert np.array_equal(of_colour(match_overlay(colour, [], [mask]), FALSE_ALARM), edge)


def test_matching_changes_neither_image_nor_cells() -> None:
    image, (mask, _) = gray(), box(10, 10, 50, 60)
    pixels, starts = image.pixels.copy(), mask[0].copy()
    match_overlay(image, [mask], [mask])
    assert np.array_equal(image.pixels, pixels)
    assert np.array_equal(mask[0], starts)


def test_matches_at_an_iou_that_the_metric_has_not() -> None:
    with pytest.raises(ValueError, match=r"expected an IoU of .*, found 0\.51"):
        match_overlay(gray(), [], [], 0.51)


def test_png_bytes_are_the_picture() -> None:
    drawn = match_overlay(gray(), [], [runs(10, 10, 50, 60)])
    read = cv2.imdecode(np.frombuffer(png(drawn), np.uint8), cv2.IMREAD_COLOR)
    assert read is not None
    assert np.array_equal(read[..., ::-1], drawn)
