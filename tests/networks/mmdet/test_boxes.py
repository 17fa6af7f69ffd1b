"""MMDetection's arithmetic of boxes, each step beside a slow one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from box_factories import boxes_of, random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from sartorius_infer.manifest.mmdet import MmdetAnchors, MmdetCoder, MmdetPool
from sartorius_infer.networks.mmdet.boxes import apply_deltas, grid_anchors, pool_rois, pyramid_level

CPU = torch.device("cpu")
FAR = (10_000, 10_000)


# Anchors.


def slow_anchors(grid_hw: tuple[int, int], level: int, anchors: MmdetAnchors) -> Tensor:
    stride = anchors.strides[level]
    base = anchors.base_sizes[level] if anchors.base_sizes else stride
    shapes = [(scale, ratio) for ratio in anchors.ratios for scale in anchors.scales]
    if not anchors.scale_major:
        shapes = [(scale, ratio) for scale in anchors.scales for ratio in anchors.ratios]
    rows = []
    for i in range(grid_hw[0]):
        for j in range(grid_hw[1]):
            x, y = (place * stride + anchors.center_offset * base for place in (j, i))
            for scale, ratio in shapes:
                width, height = base * scale / math.sqrt(ratio), base * scale * math.sqrt(ratio)
                rows.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return boxes_of(rows)


@pytest.mark.parametrize(
    ("grid_hw", "level", "options"),
    [
        ((3, 4), 0, {}),
        ((13, 17), 4, {"scales": (8.0,)}),
        ((2, 5), 1, {"scales": (2.0, 3.5, 8.0), "ratios": (0.33, 1.0)}),
        ((2, 5), 1, {"scales": (2.0, 3.5, 8.0), "ratios": (0.33, 1.0), "scale_major": False}),
        ((4, 1), 2, {"center_offset": 0.5}),
        ((2, 2), 3, {"base_sizes": (5.0, 6.0, 7.0, 8.5, 9.0), "center_offset": 0.25}),
    ],
)
def test_anchors_are_those_of_the_loops(
    grid_hw: tuple[int, int], level: int, options: dict[str, Any]
) -> None:
    anchors = MmdetAnchors(**options)
    found = grid_anchors(grid_hw, level, anchors, CPU)
    assert found.dtype == torch.float32
    assert len(found) == grid_hw[0] * grid_hw[1] * anchors.per_cell
    torch.testing.assert_close(found, slow_anchors(grid_hw, level, anchors), rtol=1e-6, atol=1e-4)


def test_the_order_of_scales_and_ratios_matters() -> None:
    first = MmdetAnchors(scales=(4.0, 8.0), ratios=(0.5, 2.0))
    sides = [(a[2:] - a[:2]).tolist() for a in grid_anchors((1, 1), 0, first, CPU)]
    assert [w > h for w, h in sides] == [True, True, False, False]
    assert sides[0][0] * 2 == pytest.approx(sides[1][0])


# Deltas.

CLAMP = math.log(1000 / 16)


def slow_deltas(deltas: Tensor, boxes: Tensor, coder: MmdetCoder, size_hw: tuple[int, int]) -> Tensor:
    rows = []
    for delta, (x0, y0, x1, y1) in zip(deltas.tolist(), boxes.tolist(), strict=True):
        row = []
        for k in range(0, len(delta), 4):
            steps = [d * s + m for d, s, m in zip(delta[k : k + 4], coder.stds, coder.means, strict=True)]
            width, height = x1 - x0, y1 - y0
            x, y = (x0 + x1) / 2 + steps[0] * width, (y0 + y1) / 2 + steps[1] * height
            width *= math.exp(min(max(steps[2], -CLAMP), CLAMP))
            height *= math.exp(min(max(steps[3], -CLAMP), CLAMP))
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            if coder.clip:
                box = [min(max(v, 0), side) for v, side in zip(box, size_hw[::-1] * 2, strict=True)]
            row.append(box)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).reshape(len(boxes), -1, 4)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stds": (0.1, 0.1, 0.2, 0.2)},
        {"stds": (0.033, 0.05, 0.067, 0.1), "means": (0.1, -0.2, 0.3, 0.05)},
        {"clip": False},
    ],
)
def test_deltas_do_what_the_loops_do(classes: int, options: dict[str, Any]) -> None:
    coder, boxes = MmdetCoder(**options), random_boxes(0, 50)
    deltas = torch.randn((50, 4 * classes), generator=torch.Generator().manual_seed(1)) / coder.stds[0] / 2
    found = apply_deltas(deltas, boxes, coder, (80, 120))
    assert found.shape == (50, classes, 4)
    expected = slow_deltas(deltas, boxes, coder, (80, 120))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("delta", "factor"), [(5.0, 1000 / 16), (50.0, 1000 / 16), (-5.0, 16 / 1000)])
def test_sides_grow_and_shrink_by_1000_of_16_at_most(delta: float, factor: float) -> None:
    box = boxes_of([[5000, 5000, 5100, 5040]])
    found = apply_deltas(torch.tensor([[0, 0, delta, delta]]), box, MmdetCoder(), FAR)[0, 0]
    assert (found[2:] - found[:2]).tolist() == pytest.approx([100 * factor, 40 * factor], abs=2e-3)


@pytest.mark.parametrize("columns", [4, 12])
def test_no_boxes_get_no_deltas(columns: int) -> None:
    found = apply_deltas(torch.zeros(0, columns), torch.zeros(0, 4), MmdetCoder(), FAR)
    assert found.shape == (0, columns // 4, 4)


# Levels and regions.


@pytest.mark.parametrize(
    ("side", "level"),
    [(0.0, 0), (1.0, 0), (111.99, 0), (112.0, 1), (223.9, 1), (224.0, 2), (448.0, 3), (5000.0, 3)],
)
def test_a_level_is_that_of_the_side(side: float, level: int) -> None:
    assert pyramid_level(boxes_of([[5, 5, 5 + side, 5 + side]]), 56.0, 4).tolist() == [level]
    assert pyramid_level(boxes_of([[5, 5, 5 + side, 5 + side]]), 56.0, 2).tolist() == [min(level, 1)]


def test_the_finest_scale_moves_the_borders() -> None:
    assert pyramid_level(boxes_of([[0, 0, 50, 50]]), 20.0, 4).tolist() == [1]


SIZE_HW = (640, 512)


def slow_pool(maps: Sequence[Tensor], boxes: Sequence[Tensor], pool: MmdetPool) -> Tensor:
    found = [torch.zeros(0, 3, pool.size, pool.size)]
    for image, some in enumerate(boxes):
        for box in some:
            side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
            level = int(torch.floor(torch.log2(side / pool.finest + 1e-6)))
            level = min(max(level, 0), len(pool.strides) - 1)
            one = maps[level][image : image + 1]
            scale = 1 / pool.strides[level]
            found.append(roi_align(one, [box[None]], pool.size, scale, pool.sampling_ratio, pool.aligned))
    return torch.cat(found)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 7},
        {"size": 4, "sampling_ratio": 2, "aligned": False},
        {"size": 5, "strides": (4, 8)},
        {"size": 5, "finest": 30.0},
    ],
)
def test_regions_are_pooled_as_one_by_one(options: dict[str, Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    strides = (4, 8, 16, 32, 64)
    maps = [torch.randn(2, 3, SIZE_HW[0] // s, SIZE_HW[1] // s, generator=draw) for s in strides]
    pool = MmdetPool(**options)
    boxes = [random_boxes(1, 25, 500).clamp(min=0), random_boxes(2, 0)]
    found = pool_rois(maps, boxes, pool)
    torch.testing.assert_close(found, slow_pool(maps, boxes, pool), rtol=1e-5, atol=1e-5)
    assert pool_rois(maps, [boxes[1], boxes[1]], pool).shape == (0, 3, pool.size, pool.size)


@given(st.integers(0, 10_000), st.floats(10, 2000), st.floats(8, 100))
@settings(max_examples=50)
def test_levels_are_those_of_the_loop(seed: int, side: float, finest: float) -> None:
    boxes = random_boxes(seed, 30, side)
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    expected = [min(max(math.floor(np.log2(np.float32(s) / np.float32(finest) + 1e-6)), 0), 3) for s in sides]
    found = pyramid_level(boxes, finest, 4)
    assert found.dtype == torch.int64
    differ = [i for i, (a, b) in enumerate(zip(found.tolist(), expected, strict=True)) if a != b]
    # Beside a border the last bit of a logarithm decides.
    assert all(abs(math.log2(float(sides[i]) / finest) % 1 - 0.5) > 0.4999 for i in differ)
