"""Walks, seeds and the flow of a shape against slow loops that say what is meant."""

from __future__ import annotations

import numpy as np
import pytest
from cellpose_cases import radial_maps
from scipy import ndimage

from sartorius_infer.networks.cellpose.dynamics import (
    flow_errors,
    follow,
    grown_seeds,
    shape_flow,
    walk,
)
from sartorius_infer.types import Float32, Float64, Int32, Int64


def smooth(seed: int, shape: tuple[int, ...], sigma: float = 3.0) -> Float32:
    noise = np.random.default_rng(seed).standard_normal(shape)
    found = np.stack([ndimage.gaussian_filter(each, sigma) for each in noise])
    return np.asarray(found / found.std(), np.float32)


def slow_walk(flow: Float32, points: Int64, steps: int) -> Float32:
    """All points at once, a step at a time, by scipy's interpolation."""
    places = points.astype(np.float32)
    limits = np.array(flow.shape[1:], np.float32) - 1
    for _ in range(steps):
        moved = [ndimage.map_coordinates(each.astype(np.float64), places.T, order=1) for each in flow]
        places = np.clip(places + np.stack(moved, 1).astype(np.float32), 0, limits)
    return places


@pytest.mark.parametrize("steps", [1, 2, 31])
@pytest.mark.parametrize("size_hw", [(23, 40), (40, 9)])
def test_a_walk_follows_the_flow(size_hw: tuple[int, int], steps: int) -> None:
    flow = smooth(1, (2, *size_hw))
    points = np.argwhere(np.ones(size_hw, bool))
    np.testing.assert_allclose(walk(flow, points, steps), slow_walk(flow, points, steps), rtol=0, atol=2e-3)


def test_a_walk_stays_in_the_image_and_where_nothing_flows() -> None:
    flow = np.full((2, 5, 7), 3.0, np.float32)
    assert walk(flow, np.array([[0, 0], [4, 2]]), 9).tolist() == [[4, 6], [4, 6]]
    assert walk(0 * flow, np.array([[1, 2]]), 9).tolist() == [[1, 2]]
    assert walk(flow, np.zeros((0, 2), np.int64), 9).shape == (0, 2)
    assert walk(np.ones((2, 1, 1), np.float32), np.array([[0, 0]]), 3).tolist() == [[0, 0]]


def test_pixels_stop_where_cells_end() -> None:
    maps = np.zeros((3, 1, 9), np.float32)
    maps[1] = 5
    inside = np.arange(9)[None] < 4
    assert follow(maps, inside, np.argwhere(inside), 50).max() == 4


def slow_seeds(ends: Int64, size_hw: tuple[int, int]) -> Int32:
    """Bin by bin; where two seeds have as many pixels the one further down comes later."""
    bins: dict[tuple[int, int], int] = {}
    for y, x in ends.tolist():
        bins[y, x] = bins.get((y, x), 0) + 1

    def near(place: tuple[int, int], reach: int) -> list[tuple[int, int]]:
        y, x = place
        return [(y + i, x + j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]

    peaks = [p for p, n in sorted(bins.items()) if n > 10 and n == max(bins.get(q, 0) for q in near(p, 2))]
    seeds = np.zeros(size_hw, np.int32)
    for number, peak in enumerate(sorted(peaks, key=lambda p: bins[p]), start=1):
        grown = {peak}
        for _ in range(5):
            grown |= {q for p in grown for q in near(p, 1) if bins.get(q, 0) > 2}
        for place in grown:
            seeds[place] = number
    return seeds


@pytest.mark.parametrize("seed", range(6))
def test_seeds_grow_over_full_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_hw = (26, 33)
    centres = rng.integers(0, size_hw, (9, 2))
    ends = (centres[rng.integers(0, 9, 900)] + rng.normal(0, 1.6, (900, 2))).round().astype(np.int64)
    ends = ends.clip(0, np.array(size_hw) - 1)
    found = grown_seeds(ends, size_hw)
    assert np.array_equal(found, slow_seeds(ends, size_hw))
    assert found.max() > 1
    assert not grown_seeds(ends[:0], size_hw).any()


def slow_shape_flow(label_map: Int32) -> Float64:
    """Each cell alone, all of its pixels at once by a convolution."""
    flow = np.zeros((2, *label_map.shape))
    for number in np.unique(label_map[label_map > 0]):
        own = np.pad(label_map == number, 1)
        ys, xs = np.nonzero(own)
        nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
        sides = (np.ptp(ys) + 1) + (np.ptp(xs) + 1) + 4
        heat = np.zeros(own.shape)
        for _ in range(2 * sides):
            heat[ys[nearest], xs[nearest]] += 1
            heat = np.where(own, ndimage.convolve(heat, np.full((3, 3), 1 / 9), mode="constant"), 0)
        slope = np.stack([np.roll(heat, -1, axis) - np.roll(heat, 1, axis) for axis in (0, 1)])
        slope /= 1e-60 + np.sqrt((slope**2).sum(axis=0))
        flow += np.where(own, slope, 0)[:, 1:-1, 1:-1]
    return flow


def cells(seed: int = 2) -> Int32:
    """Ragged cells that touch one another and the border; number 2 is missing."""
    found = ndimage.label(smooth(seed, (1, 40, 52), 2.0)[0] > 0.2)[0].astype(np.int32)
    found[:, 26:][found[:, 26:] > 0] += found.max()
    found[found == 2] = 0
    return np.asarray(found, np.int32)


def test_heat_of_a_shape_flows_to_its_middle() -> None:
    label_map = cells()
    np.testing.assert_allclose(shape_flow(label_map), slow_shape_flow(label_map), rtol=0, atol=1e-9)
    assert not shape_flow(np.zeros((4, 5), np.int32)).any()


def test_flow_errors_are_means_over_the_cell() -> None:
    label_map, maps = cells(), smooth(5, (3, 40, 52)) * 5
    found, of_shape = flow_errors(label_map, maps), slow_shape_flow(label_map)
    for number in range(1, label_map.max() + 1):
        own = label_map == number
        expected = sum(np.mean((of_shape[k] - maps[k] / 5)[own] ** 2) for k in (0, 1)) if own.any() else 0.0
        assert found[number] == pytest.approx(expected, abs=1e-6)


def test_a_disc_has_hardly_any_error() -> None:
    maps = radial_maps((40, 40), [(19.0, 20.0, 12.0)])
    assert flow_errors((maps[2] > 0).astype(np.int32), maps)[1] < 0.05
