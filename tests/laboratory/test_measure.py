"""Measurements against plain sums over each cell's pixels, and shapes whose numbers are known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from skimage.measure import regionprops_table

from sartorius_infer.laboratory.measure import measure
from sartorius_infer.types import Int32

label_maps = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3))


def by_hand(label_map: Int32, values: NDArray[Any], label: int) -> dict[str, Any]:
    """One cell, pixel by pixel; axes are those of the ellipse of its second moments (x up to the right)."""
    own = [(x, y) for y, row in enumerate(label_map) for x, n in enumerate(row) if n == label]
    xs, ys = np.array(own, float).T
    height, width = label_map.shape
    cx, cy = xs.mean(), ys.mean()
    xx, yy, xy = ((xs - cx) ** 2).mean(), ((ys - cy) ** 2).mean(), -((xs - cx) * (ys - cy)).mean()
    mean, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = mean + spread, max(mean - spread, 0.0)
    return {
        "label": label, "area_px2": len(own),
        "centroid_x_px": cx + 0.5, "centroid_y_px": cy + 0.5,
        "x0_px": xs.min(), "y0_px": ys.min(), "x1_px": xs.max() + 1, "y1_px": ys.max() + 1,
        "major_axis_px": 4 * np.sqrt(long), "minor_axis_px": 4 * np.sqrt(short),
        "eccentricity": np.sqrt(1 - short / long) if long > 0 else 0.0,
        "mean_intensity": np.mean([values[int(y), int(x)].mean() for x, y in own]),
        "touches_border": bool({0, width - 1} & set(xs) or {0, height - 1} & set(ys)),
    }  # fmt: skip


@settings(max_examples=50)
@given(label_maps, st.sampled_from(["u1", "u2", "f4", "rgb"]))
def test_every_sum_is_the_plain_one(label_map: Int32, kind: str) -> None:
    rng = np.random.default_rng(int(label_map.sum()))
    values = rng.integers(0, 200, (*label_map.shape, 3))
    values = values.astype(np.uint8) if kind == "rgb" else values[..., 0].astype(kind)
    found = measure(label_map, values, None)
    labels = sorted(set(label_map.ravel().tolist()) - {0})
    assert found["label"].tolist() == labels
    for i, label in enumerate(labels):
        for name, expected in by_hand(label_map, values, label).items():
            assert found[name][i] == pytest.approx(expected, rel=1e-6, abs=2e-6), name


@settings(max_examples=20)
@given(label_maps, st.floats(0.01, 100))
def test_micrometres_are_pixels_times_their_size(label_map: Int32, size_um: float) -> None:
    in_pixels, found = measure(label_map, None, None), measure(label_map, None, size_um)
    assert "mean_intensity" not in found
    for name, column in in_pixels.items():
        scale = size_um**2 if name.endswith("px2") else size_um if name.endswith("px") else 1
        np.testing.assert_allclose(found[name.replace("_px", "_um")], column * scale)


@settings(max_examples=100)
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 2)))
def test_solidity_is_scikit_image_s(label_map: Int32) -> None:
    expected = regionprops_table(label_map, properties=["solidity"])["solidity"]
    assert measure(label_map, None, None)["solidity"].tolist() == expected.tolist()


def test_a_hull_of_long_sides_is_scikit_image_s() -> None:
    """Slanted, so that many centres lie close to a side and some of them on it."""
    label_map = np.zeros((400, 500), np.int32)
    for number, (centre, axes, angle) in enumerate(
        [((150, 180), (140, 60), 30), ((380, 200), (90, 190), 77)]
    ):
        cv2.ellipse(label_map, centre, axes, angle, 0, 360, number + 1, -1)
        cv2.fillPoly(label_map, [np.array([[250, 3], [410, 83], [300, 33]])], 3)
    expected = regionprops_table(label_map, properties=["solidity"])["solidity"]
    assert measure(label_map, None, None)["solidity"].tolist() == expected.tolist()


def angle_of(dx: int, dy_up: int) -> float:
    """The orientation of a bar of pixels that leaves in this direction."""
    label_map = np.zeros((41, 41), np.int32)
    for step in np.linspace(-1, 1, 400):
        label_map[round(20 - 15 * dy_up * step), round(20 + 15 * dx * step)] = 1
    return float(measure(label_map, None, None)["orientation_deg"][0])


def test_orientation_is_counter_clockwise_from_the_x_axis() -> None:
    """As ImageJ's Angle."""
    assert angle_of(1, 0) == pytest.approx(0) or angle_of(1, 0) == pytest.approx(180)
    assert angle_of(1, 1) == pytest.approx(45)
    assert angle_of(0, 1) == pytest.approx(90)
    assert angle_of(-1, 1) == pytest.approx(135)


def test_a_rectangle_and_a_corner_of_two_rectangles() -> None:
    label_map = np.zeros((60, 60), np.int32)
    label_map[5:25, 10:50] = 1
    label_map[30:50, 10:20] = label_map[40:50, 10:30] = 2
    found = measure(label_map, None, 0.5)
    assert found["area_um2"].tolist() == [800 / 4, 300 / 4]
    # From pixel to pixel along the outline, as scikit-image counts.
    assert found["perimeter_um"][0] == (2 * 19 + 2 * 39) / 2
    assert found["solidity"][0] == 1
    assert found["solidity"][1] == pytest.approx(300 / 350, abs=0.02), "the hull adds a triangle of 50 pixels"
    assert found["touches_border"].tolist() == [False, False]


def test_no_cells_have_the_same_columns() -> None:
    nothing = measure(np.zeros((3, 4), np.int32), np.zeros((3, 4)), None)
    something = measure(np.ones((3, 4), np.int32), np.zeros((3, 4)), None)
    assert list(nothing) == list(something)
    assert {len(column) for column in nothing.values()} == {0}


@pytest.mark.parametrize("size_um", [0, -1, float("nan"), float("inf")])
def test_a_size_that_is_none_is_named(size_um: float) -> None:
    with pytest.raises(ValueError, match=f"pixel_size_um: expected a number over 0, found {size_um}"):
        measure(np.zeros((3, 4), np.int32), None, size_um)
