"""Detectron2's arithmetic of boxes, each step beside a slow one and under the laws that it must keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from box_factories import boxes_of, random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from sartorius_infer.manifest.detectron2 import Detectron2Pool
from sartorius_infer.networks.boxes import clip
from sartorius_infer.networks.detectron2.boxes import apply_deltas, grid_anchors, pool_rois, pyramid_level

CPU = torch.device("cpu")
ONES = (1.0, 1.0, 1.0, 1.0)


# Anchors.


def slow_anchors(
    grid_hw: tuple[int, int], stride: int, sizes: Sequence[float], ratios: Sequence[float], offset: float
) -> Tensor:
    rows = []
    for i in range(grid_hw[0]):
        for j in range(grid_hw[1]):
            x, y = (j + offset) * stride, (i + offset) * stride
            for size in sizes:
                for ratio in ratios:
                    width = math.sqrt(size * size / ratio)
                    height = width * ratio
                    rows.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return boxes_of(rows)


@pytest.mark.parametrize(
    ("grid_hw", "stride", "sizes", "ratios", "offset"),
    [
        ((3, 4), 4, [24], [0.33, 1, 3], 0.0),
        ((13, 17), 64, [256], [0.33, 1, 3], 0.0),  # p6 of 800 x 1088
        ((2, 5), 8, [10, 20, 40], [0.5, 1.0, 2.0], 0.0),
        ((2, 5), 16, [7.5, 11], [1.7], 0.5),
        ((3, 2), 32, [64], [0.5, 2], 0.25),
        ((1, 1), 64, [512], [1], 0.0),
    ],
)
def test_anchors_are_those_of_the_loops(
    grid_hw: tuple[int, int], stride: int, sizes: list[float], ratios: list[float], offset: float
) -> None:
    found = grid_anchors(grid_hw, stride, sizes, ratios, offset, CPU)
    assert found.dtype == torch.float32
    expected = slow_anchors(grid_hw, stride, sizes, ratios, offset)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)


def test_anchors_go_by_rows_then_columns_then_sizes_then_ratios() -> None:
    found = grid_anchors((2, 3), 4, [8, 16], [1, 4], 0.0, CPU).reshape(2, 3, 2, 2, 4)
    sides = found[..., 2:] - found[..., :2]
    centres = found[..., :2] + sides / 2
    at_once = [[[8, 8], [4, 16]], [[16, 16], [8, 32]]]
    torch.testing.assert_close(sides, torch.tensor(at_once, dtype=torch.float32).expand(2, 3, 2, 2, 2))
    for row in range(2):
        for column in range(3):
            place = torch.tensor([4.0 * column, 4.0 * row])
            torch.testing.assert_close(centres[row, column], place.expand(2, 2, 2))


def test_anchors_are_not_rounded() -> None:
    (found,) = grid_anchors((1, 1), 4, [24], [0.33], 0.0, CPU)
    width = 24 / math.sqrt(0.33)
    torch.testing.assert_close(found, boxes_of([[-width, -0.33 * width, width, 0.33 * width]])[0] / 2)


def test_an_offset_moves_all_anchors_by_a_part_of_the_stride() -> None:
    moved, still = (grid_anchors((3, 3), 16, [20], [1, 2], offset, CPU) for offset in (0.5, 0.0))
    torch.testing.assert_close(moved, still + 8)


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([4, 8, 16, 32, 64]),
    st.lists(st.floats(4, 600), min_size=1, max_size=3),
    st.lists(st.floats(0.1, 8), min_size=1, max_size=3),
    st.floats(0, 0.99),
)
@settings(max_examples=40)
def test_anchors_have_their_area_ratio_and_centre(
    grid_hw: tuple[int, int], stride: int, sizes: list[float], ratios: list[float], offset: float
) -> None:
    found = grid_anchors(grid_hw, stride, sizes, ratios, offset, CPU).double().reshape(*grid_hw, -1, 4)
    sides = found[..., 2:] - found[..., :2]
    cells = [(size, ratio) for size in sizes for ratio in ratios]
    for index, (size, ratio) in enumerate(cells):
        here = sides[:, :, index]
        assert here.prod(-1).sqrt().numpy() == pytest.approx(size, rel=1e-3)
        assert (here[..., 1] / here[..., 0]).numpy() == pytest.approx(ratio, rel=1e-3)
    centres = (found[..., 2:] + found[..., :2]) / 2
    assert centres[..., 0].numpy() == pytest.approx(
        np.broadcast_to((np.arange(grid_hw[1]) + offset)[None, :, None] * stride, centres.shape[:3]), abs=1e-3
    )
    assert centres[..., 1].numpy() == pytest.approx(
        np.broadcast_to((np.arange(grid_hw[0]) + offset)[:, None, None] * stride, centres.shape[:3]), abs=1e-3
    )


# Deltas.

CLAMP = math.log(1000 / 16)


def slow_deltas(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    rows = []
    for delta, (x0, y0, x1, y1) in zip(deltas.tolist(), boxes.tolist(), strict=True):
        row: list[float] = []
        for k in range(0, len(delta), 4):
            dx, dy, dw, dh = (d / w for d, w in zip(delta[k : k + 4], weights, strict=True))
            width, height = x1 - x0, y1 - y0
            x, y = x0 + width / 2 + dx * width, y0 + height / 2 + dy * height
            width, height = width * math.exp(min(dw, CLAMP)), height * math.exp(min(dh, CLAMP))
            row += [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).reshape(deltas.shape)


@pytest.mark.parametrize("weights", [ONES, (10.0, 10.0, 5.0, 5.0), (30.0, 20.0, 15.0, 10.0)])
@pytest.mark.parametrize("classes", [1, 3])
def test_deltas_do_what_the_loops_do(weights: tuple[float, ...], classes: int) -> None:
    boxes = random_boxes(0, 50)
    deltas = torch.randn((50, 4 * classes), generator=torch.Generator().manual_seed(1)) * max(weights) / 5
    found = apply_deltas(deltas, boxes, weights)
    assert found.shape == deltas.shape and found.dtype == torch.float32
    torch.testing.assert_close(found, slow_deltas(deltas, boxes, weights), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("weights", [ONES, (10.0, 10.0, 5.0, 5.0)])
def test_sides_grow_by_1000_of_16_at_most(weights: tuple[float, ...]) -> None:
    box = boxes_of([[10, 20, 26, 52]])
    for delta in (CLAMP, 5.0, 50.0, 1e30, torch.inf):
        deltas = torch.tensor([[0, 0, delta * weights[2], delta * weights[3]]])
        found = apply_deltas(deltas, box, weights)
        torch.testing.assert_close(found, boxes_of([[18 - 500, 36 - 1000, 18 + 500, 36 + 1000]]))


def test_sides_shrink_without_limit() -> None:
    found = apply_deltas(torch.tensor([[0.0, 0.0, -30.0, -200.0]]), boxes_of([[10, 20, 30, 60]]), ONES)
    torch.testing.assert_close(found, boxes_of([[20, 40, 20, 40]]))


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=30)
def test_no_deltas_change_no_box(seed: int, classes: int) -> None:
    boxes = random_boxes(seed, 20)
    found = apply_deltas(torch.zeros(20, 4 * classes), boxes, (10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(found, boxes.repeat(1, classes), rtol=1e-5, atol=1e-4)


@given(st.integers(0, 10_000), st.floats(0.1, 40), st.floats(0.1, 40))
@settings(max_examples=30)
def test_weights_divide_deltas(seed: int, position: float, size: float) -> None:
    boxes = random_boxes(seed, 20)
    deltas = torch.randn((20, 4), generator=torch.Generator().manual_seed(seed))
    weights = (position, position, size, size)
    found = apply_deltas(deltas * torch.tensor(weights), boxes, weights)
    torch.testing.assert_close(found, apply_deltas(deltas, boxes, ONES), rtol=1e-4, atol=1e-3)


@given(st.integers(0, 10_000), st.floats(-500, 500), st.floats(-500, 500), st.floats(0.1, 20))
@settings(max_examples=30)
def test_moved_and_scaled_boxes_give_moved_and_scaled_boxes(seed: int, x: float, y: float, k: float) -> None:
    boxes = random_boxes(seed, 20)
    deltas = torch.randn((20, 8), generator=torch.Generator().manual_seed(seed))
    step = torch.tensor([x, y, x, y])
    found = apply_deltas(deltas, boxes * k + step, ONES)
    expected = apply_deltas(deltas, boxes, ONES) * k + step.repeat(2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("columns", [4, 12])
def test_no_boxes_get_no_deltas(columns: int) -> None:
    found = apply_deltas(torch.zeros(0, columns), torch.zeros(0, 4), ONES)
    assert found.shape == (0, columns)


# Levels.


def slow_level(box: Tensor, levels: Sequence[int]) -> int:
    """Detectron2's own float32 expression, for one box."""
    side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
    level = int(torch.floor(4 + torch.log2(side / 224 + 1e-8)))
    return min(max(level, min(levels)), max(levels))


def square(side: float) -> list[float]:
    return [0, 0, side, side]


@pytest.mark.parametrize(
    ("side", "level"),
    [
        *((1.0, 2), (55.9, 2), (56.0, 2), (111.99, 2), (112.0, 3), (112.01, 3), (223.99, 3), (224.0, 4)),
        *((224.01, 4), (447.99, 4), (448.0, 5), (448.01, 5), (895.99, 5), (896.0, 6), (1e4, 6), (0.0, 2)),
    ],
)
def test_a_box_of_224_belongs_to_level_4_and_of_twice_the_side_to_the_next(side: float, level: int) -> None:
    boxes = boxes_of([square(side)])
    assert pyramid_level(boxes, (2, 3, 4, 5, 6)).tolist() == [level]
    for levels in ((2, 3, 4, 5), (3, 4, 5), (3,), (5, 6)):
        assert pyramid_level(boxes, levels).tolist() == [min(max(level, levels[0]), levels[-1])]


def test_a_level_counts_from_the_area_whatever_the_ratio() -> None:
    boxes = boxes_of([[0, 0, 448, 112], [10, 20, 66, 916], [0, 0, 447.9, 112]])
    assert pyramid_level(boxes, (2, 3, 4, 5)).tolist() == [4, 4, 3]


def test_a_level_next_to_its_limit_is_detectron2s() -> None:
    sides = []
    for side in (112, 224, 448, 896):
        for up in (-np.inf, np.inf):
            value = np.float32(side)
            for _ in range(12):
                sides.append(float(value))
                value = np.nextafter(value, np.float32(up))
    boxes = boxes_of([square(side) for side in sides])
    levels = (2, 3, 4, 5, 6)
    assert pyramid_level(boxes, levels).tolist() == [slow_level(box, levels) for box in boxes]


@given(st.integers(0, 10_000), st.floats(10, 2000), st.sampled_from([(2, 3, 4, 5), (3, 4, 5), (4,), (2, 3)]))
@settings(max_examples=50)
def test_levels_are_those_of_the_loop(seed: int, side: float, levels: tuple[int, ...]) -> None:
    boxes = random_boxes(seed, 30, side)
    found = pyramid_level(boxes, levels)
    assert found.dtype == torch.int64
    assert found.tolist() == [slow_level(box, levels) for box in boxes]


def test_no_boxes_have_no_level() -> None:
    assert pyramid_level(torch.zeros(0, 4), (2, 3)).shape == (0,)


# Pooling.

SIZE_HW = (640, 512)


def maps_of(batch: int, levels: Sequence[int] = (2, 3, 4, 5, 6)) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        f"p{level}": torch.randn(batch, 3, SIZE_HW[0] >> level, SIZE_HW[1] >> level, generator=draw)
        for level in levels
    }


def slow_pool(
    maps: dict[str, Tensor], levels: Sequence[int], boxes: Sequence[Tensor], pool: Detectron2Pool
) -> Tensor:
    found = [torch.zeros(0, 3, pool.size, pool.size)]
    for image, some in enumerate(boxes):
        for box in some:
            level = slow_level(box, levels)
            one = maps[f"p{level}"][image : image + 1]
            scale = 1 / 2**level
            found.append(roi_align(one, [box[None]], pool.size, scale, pool.sampling_ratio, pool.aligned))
    return torch.cat(found)


def rois(seed: int, count: int) -> Tensor:
    """Boxes inside the image, of all sizes."""
    draw = torch.Generator().manual_seed(seed)
    sides = 2 ** (3 + 7.5 * torch.rand((count, 2), generator=draw))
    centres = torch.rand((count, 2), generator=draw) * torch.tensor([SIZE_HW[1], SIZE_HW[0]])
    return clip(torch.cat([centres - sides / 2, centres + sides / 2], dim=1), SIZE_HW)


@pytest.mark.parametrize("levels", [(2, 3, 4, 5), (3, 4, 5), (4,), (2, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "ratio"), [(7, 0), (4, 2)])
def test_regions_are_pooled_as_one_by_one(
    levels: tuple[int, ...], aligned: bool, size: int, ratio: int
) -> None:
    maps, boxes = maps_of(3), [rois(1, 25), rois(2, 0), rois(3, 15)]
    pool = Detectron2Pool(size=size, sampling_ratio=ratio, aligned=aligned)
    if levels == (2, 3, 4, 5):
        assert {slow_level(box, levels) for box in torch.cat(boxes)} == set(levels)
    found = pool_rois(maps, levels, boxes, pool)
    torch.testing.assert_close(found, slow_pool(maps, levels, boxes, pool), rtol=1e-5, atol=1e-5)


def test_regions_of_one_size_come_from_one_level() -> None:
    maps = maps_of(1)
    for side, level in ((40, 2), (150, 3), (300, 4), (500, 5)):
        boxes = [torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side]])]
        found = pool_rois(maps, (2, 3, 4, 5), boxes, Detectron2Pool(size=7))
        expected = roi_align(maps[f"p{level}"], boxes, 7, 0.5**level, 0, True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_levels_that_take_no_part_are_not_looked_at() -> None:
    whole, boxes, pool = maps_of(2), [rois(4, 10), rois(5, 10)], Detectron2Pool(size=5)
    part = {name: values for name, values in whole.items() if name in ("p3", "p4")}
    assert torch.equal(pool_rois(part, (3, 4), boxes, pool), pool_rois(whole, (3, 4), boxes, pool))


@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 2), (2, 0)], ids=str)
def test_images_without_regions(counts: tuple[int, ...]) -> None:
    maps, boxes = maps_of(len(counts)), [rois(seed, count) for seed, count in enumerate(counts)]
    found = pool_rois(maps, (2, 3, 4, 5), boxes, Detectron2Pool(size=6))
    assert found.shape == (sum(counts), 3, 6, 6)
    torch.testing.assert_close(found, slow_pool(maps, (2, 3, 4, 5), boxes, Detectron2Pool(size=6)))


@given(st.integers(0, 10_000), st.sampled_from([0, 1, 2, 3]), st.booleans())
@settings(max_examples=25)
def test_a_ramp_is_pooled_as_its_values_in_the_middles(seed: int, ratio: int, aligned: bool) -> None:
    """Bilinear sampling and means are exact on a ramp; a map's first value lies half a cell inside."""
    pool = Detectron2Pool(size=4, sampling_ratio=ratio, aligned=aligned)
    draw = np.random.default_rng(seed)
    level = int(draw.integers(2, 6))
    side = 1.2 * 224 * 2.0 ** (level - 4)
    space = np.array([SIZE_HW[1] * 4, SIZE_HW[0] * 4])
    corner = 2**level * 2 + draw.random(2) * (space - side - 2**level * 4)
    box = np.concatenate([corner, corner + side])
    shape = (1, 1, SIZE_HW[0] * 4 >> level, SIZE_HW[1] * 4 >> level)
    rows, columns = np.mgrid[: shape[2], : shape[3]]
    steep = draw.normal(size=2)
    ramp = torch.tensor(steep[0] * columns + steep[1] * rows, dtype=torch.float32).reshape(shape)
    found = pool_rois({f"p{level}": ramp}, (level,), [boxes_of([box.tolist()])], pool)
    middles = (corner[:, None] + (np.arange(4) + 0.5) * side / 4) / 2**level - (0.5 if aligned else 0.0)
    expected = steep[0] * middles[0][None, :] + steep[1] * middles[1][:, None]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-3, atol=1e-2)
