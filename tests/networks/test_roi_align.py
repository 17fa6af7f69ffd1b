"""RoIAlign by weighted sums against the loops of the paper, torchvision's kernel and torchvision's pooler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as kernel

from sartorius_infer.networks import Features, roi_align
from sartorius_infer.networks.roi_align import Rois, pool_rois
from sartorius_infer.networks.torchvision.rcnn import TorchvisionNetwork


def maps_of(
    sizes_hw: Sequence[tuple[int, int]], batch: int = 1, channels: int = 3, seed: int = 0
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn((batch, channels, *size), generator=draw) for size in sizes_hw]


def boxes_in(size_hw: tuple[int, int], count: int, seed: int, beyond: float = 0.0) -> Tensor:
    """Boxes of all shapes, down to nothing; `beyond` of the image's size they may stick out of it."""
    draw = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size_hw[1], size_hw[0]])
    corners = ((1 + 2 * beyond) * torch.rand((count, 2, 2), generator=draw) - beyond) * extent
    return torch.cat((corners.amin(dim=1), corners.amax(dim=1)), dim=1)


def sampled(plane: Any, y: float, x: float) -> float:
    """Bilinear value of a map (H, W); zero more than a pixel beyond its rim."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = (min(max(place, 0.0), limit - 1.0) for place, limit in ((y, height), (x, width)))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    above = (1 - across) * plane[top, left] + across * plane[top, right]
    below = (1 - across) * plane[bottom, left] + across * plane[bottom, right]
    return float((1 - down) * above + down * below)


def slow_bin(plane: Any, box: Sequence[float], row: int, column: int, size: int, ratio: int) -> float:
    """The mean of a bin's samples, one after the other."""
    x1, y1, x2, y2 = box
    width, height = (x2 - x1) / size, (y2 - y1) / size
    down, across = (ratio or math.ceil(side) for side in (height, width))
    if down <= 0 or across <= 0:
        return 0.0
    values = [
        sampled(plane, y1 + (row + (i + 0.5) / down) * height, x1 + (column + (j + 0.5) / across) * width)
        for i in range(down)
        for j in range(across)
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_bins_are_means_of_bilinear_samples(ratio: int, aligned: bool) -> None:
    size, scale = 3, 0.25
    maps = maps_of([(9, 14)], channels=2)
    boxes = boxes_in((36, 56), 12, ratio, beyond=0.3)
    found = pool_rois(Rois(maps, [scale], torch.zeros(12, dtype=torch.int64), [boxes]), size, ratio, aligned)
    for k, box in enumerate(boxes.double() * scale - (0.5 if aligned else 0.0)):
        x1, y1, x2, y2 = box.tolist()
        if not aligned:
            x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        for channel in range(2):
            plane = maps[0][0, channel].double().numpy()
            slow = [
                [slow_bin(plane, (x1, y1, x2, y2), row, column, size, ratio) for column in range(size)]
                for row in range(size)
            ]
            np.testing.assert_allclose(found[k, channel], slow, rtol=0, atol=2e-5)


@settings(max_examples=80)
@given(
    sizes_hw=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    size=st.integers(1, 8),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    channels_last=st.booleans(),
    at_once=st.sampled_from((1, 1000, 1 << 22)),
    seed=st.integers(0, 10_000),
)
def test_torchvisions_kernel_gives_the_same(
    sizes_hw: list[tuple[int, int]],
    counts: list[int],
    size: int,
    ratio: int,
    aligned: bool,
    channels_last: bool,
    at_once: int,
    seed: int,
) -> None:
    maps = maps_of(sizes_hw, batch=len(counts), seed=seed)
    if channels_last:
        maps = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    boxes = [boxes_in((160, 160), count, seed + i, beyond=0.2) for i, count in enumerate(counts)]
    scales = [0.5 ** (i + 1) for i in range(len(maps))]
    draw = torch.Generator().manual_seed(seed)
    levels = torch.randint(-1, len(maps) + 1, (sum(counts),), generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_align, "ROWS_AT_ONCE", at_once)
        found = pool_rois(Rois(maps, scales, levels, boxes), size, ratio, aligned)
    expected = torch.zeros((sum(counts), 3, size, size))
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    for k, (image, box) in enumerate(zip(owners, torch.cat(boxes), strict=True)):
        level = int(levels[k])
        if 0 <= level < len(maps):
            one = maps[level][image : image + 1]
            (expected[k],) = kernel(one, [box[None]], size, scales[level], ratio, aligned)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@settings(max_examples=60)
@given(
    size_hw=st.tuples(st.integers(8, 400), st.integers(8, 400)),
    levels=st.integers(1, 5),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=2),
    seed=st.integers(0, 10_000),
)
def test_scales_and_levels_are_torchvisions_own(
    size_hw: tuple[int, int], levels: int, counts: list[int], seed: int
) -> None:
    """Also where an image is so small that torchvision guesses its maps' scales wrongly."""
    sizes = [tuple(-(-side // 2 ** (i + 2)) for side in size_hw) for i in range(levels)]
    maps = dict(zip("0123p", maps_of([(h, w) for h, w in sizes], batch=len(counts), seed=seed), strict=False))
    boxes = [boxes_in(size_hw, count, seed + i) for i, count in enumerate(counts)]
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 5, 2)
    hws = (size_hw,) * len(counts)
    found = TorchvisionNetwork._pool(
        SimpleNamespace(),  # type: ignore[arg-type]
        pool,
        Features(maps, hws, hws, size_hw),
        boxes,
    )
    torch.testing.assert_close(found, pool(maps, boxes, list(hws)), rtol=0, atol=5e-6)


def test_maps_that_are_not_float32_go_to_torchvisions_kernel() -> None:
    """The way that a GPU's maps take as well."""
    maps = [level.double() for level in maps_of([(20, 30), (10, 15)])]
    boxes = boxes_in((80, 120), 9, 0).double()
    levels = torch.arange(9) % 2
    found = pool_rois(Rois(maps, [0.25, 0.125], levels, [boxes]), 7, 2)
    floats = pool_rois(Rois([m.float() for m in maps], [0.25, 0.125], levels, [boxes.float()]), 7, 2)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), floats, rtol=0, atol=5e-6)


def test_an_image_does_not_depend_on_how_many_cores_there_are() -> None:
    maps, boxes = maps_of([(50, 70), (25, 35)], channels=96), boxes_in((200, 280), 40, 1)
    levels = torch.arange(40) % 2
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(pool_rois(Rois(maps, [0.25, 0.125], levels, [boxes]), 7, 2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
