"""`paste_cells` against torchvision's own paste and a full-canvas `grid_sample`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import random_boxes
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image

from sartorius_infer.cells.paste import Crop, PasteMode, paste_cells
from sartorius_infer.types import Float32

SIZE_HW = (43, 61)
MODES: list[PasteMode] = ["exact", "torchvision"]
SIDES = {  # lowest and highest side of the boxes, in pixels
    "tiny": (1e-3, 1.5),
    "usual": (3.0, 30.0),
    "larger than the image": (60.0, 300.0),
}


def canvas(crop: Crop, size_hw: tuple[int, int] = SIZE_HW) -> Float32:
    """The crop on an empty image (H, W); fails where it would not fit."""
    full = np.zeros(size_hw, np.float32)
    height, width = crop.probabilities.shape
    full[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width] = crop.probabilities
    return full


def canvases(masks: Float32, boxes: Float32, mode: PasteMode) -> Float32:
    crops = paste_cells(masks, boxes, SIZE_HW, mode)
    return np.stack([canvas(crop) for crop in crops])


def grid_sampled(masks: Float32, boxes: Float32) -> Float32:
    """Every pixel of every canvas by `grid_sample`, as Detectron2's `_do_paste_mask`."""
    height, width = SIZE_HW
    x0, y0, x1, y1 = torch.from_numpy(boxes)[:, :, None].unbind(1)
    y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    across, down = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
    grid = torch.stack([across, down], dim=3)
    full = functional.grid_sample(torch.from_numpy(masks)[:, None], grid, align_corners=False)
    return np.asarray(full[:, 0])


def torchvision_pasted(masks: Float32, boxes: Float32) -> Float32:
    grids = torch.from_numpy(masks)[:, None]
    return np.asarray(paste_masks_in_image(grids, torch.from_numpy(boxes), SIZE_HW)[:, 0])


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("squares", [1, 7, 28])
@pytest.mark.parametrize("mode", MODES)
def test_every_pixel_is_as_in_the_reference(
    mode: PasteMode, squares: int, sides: tuple[float, float]
) -> None:
    rng = np.random.default_rng(squares)
    boxes = random_boxes(rng, 150, SIZE_HW, sides)
    masks = rng.random((len(boxes), squares, squares), np.float32)
    reference = grid_sampled if mode == "exact" else torchvision_pasted
    np.testing.assert_allclose(canvases(masks, boxes, mode), reference(masks, boxes), rtol=0, atol=1e-5)


def test_torchvision_corners_are_truncated_from_the_same_float32() -> None:
    rng = np.random.default_rng(0)
    # Grown by 30/28, boxes of 28 pixels at half pixels have corners at whole pixels, give or take.
    low = rng.integers(-8, 40, (500, 2)) / 2
    boxes = np.concatenate([low, low + rng.choice([7, 14, 28, 42], (500, 2))], 1).astype(np.float32)
    masks = rng.random((500, 28, 28), np.float32)
    np.testing.assert_allclose(
        canvases(masks, boxes, "torchvision"), torchvision_pasted(masks, boxes), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_crop_loses_nothing_and_carries_little(mode: PasteMode) -> None:
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 100, SIZE_HW, (2.0, 200.0))
    for crop in paste_cells(np.ones((100, 7, 7), np.float32), boxes, SIZE_HW, mode):
        assert crop.probabilities.dtype == np.float32
        assert (crop.probabilities > 0).all()
        assert (crop.probabilities <= 1).all()


def test_a_box_of_as_many_pixels_as_squares_shows_the_grid_itself() -> None:
    grid = np.random.default_rng(2).random((1, 8, 8)).astype(np.float16)
    (crop,) = paste_cells(grid, np.array([[3, 5, 11, 13]], np.float32), SIZE_HW, "exact")
    assert crop[:2] == (5, 3)
    np.testing.assert_array_equal(crop.probabilities, grid[0])


def test_exact_gives_a_pixel_beyond_the_box_its_share() -> None:
    one = np.ones((1, 1, 1), np.float16)
    (crop,) = paste_cells(one, np.array([[2, 2, 6, 4]], np.float32), SIZE_HW, "exact")
    assert crop[:2] == (1, 0)
    across = [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]
    down = [0.25, 0.75, 0.75, 0.25]
    np.testing.assert_array_equal(crop.probabilities, np.outer(down, across).astype(np.float32))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "box",
    [(-90, 5, -50, 9), (200, 5, 240, 9), (5, -90, 9, -50), (5, 200, 9, 240), (9, 5, 4, 8), (4, 9, 9, 5)],
)
def test_boxes_outside_or_inside_out_give_an_empty_crop(mode: PasteMode, box: tuple[float, ...]) -> None:
    masks = np.ones((1, 28, 28), np.float16)
    (crop,) = paste_cells(masks, np.array([box], np.float32), SIZE_HW, mode)
    assert crop.probabilities.size == 0
    assert not canvas(crop).any()


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (5.5, 5.5, 5.5, 5.5), (0, 0, 0, 0)])
def test_exact_gives_a_box_without_area_an_empty_crop(box: tuple[float, ...]) -> None:
    masks = np.ones((1, 28, 28), np.float16)
    (crop,) = paste_cells(masks, np.array([box], np.float32), SIZE_HW, "exact")
    assert crop.probabilities.size == 0
    assert not canvas(crop).any()


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (5.5, 5.5, 5.5, 5.5), (0, 0, 0, 0)])
def test_torchvision_gives_a_box_without_area_what_torchvision_gives(box: tuple[float, ...]) -> None:
    masks = np.random.default_rng(3).random((1, 28, 28), np.float32)
    boxes = np.array([box], np.float32)
    np.testing.assert_allclose(
        canvases(masks, boxes, "torchvision"), torchvision_pasted(masks, boxes), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [0, 28])
def test_no_cells(mode: PasteMode, side: int) -> None:
    masks, boxes = np.zeros((0, side, side), np.float16), np.zeros((0, 4), np.float32)
    assert list(paste_cells(masks, boxes, SIZE_HW, mode)) == []
