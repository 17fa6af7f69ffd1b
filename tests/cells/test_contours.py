"""Outlines as polygons: what they enclose is the mask, by a plain rasteriser and by pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rings import rasterised
from scipy import ndimage

from sartorius_infer.cells.contours import outer_rings
from sartorius_infer.types import Bool, Float32

# pycocotools' own decode does not know numpy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans())


def area(ring: Float32) -> float:
    """The polygon's, by the shoelace formula."""
    x, y = ring.astype(float).T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def filled(mask: Bool) -> Bool:
    """A mask without holes, background that no 4-connected path leads out of."""
    return np.asarray(ndimage.binary_fill_holes(mask), np.bool_)


def blob(seed: int, size_hw: tuple[int, int]) -> Bool:
    """Smooth parts, with bays, holes and bridges of a pixel."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size_hw), 1.5)
    return np.asarray(noise > 0.02, np.bool_)


@settings(max_examples=300, deadline=None)
@given(masks)
def test_what_the_rings_enclose_is_the_mask_without_holes(mask: Bool) -> None:
    rings = outer_rings(mask)
    np.testing.assert_array_equal(rasterised(rings, mask.shape), filled(mask))
    _, parts = ndimage.label(filled(mask), np.ones((3, 3)))
    assert len(rings) == parts
    assert sum(map(area, rings)) == filled(mask).sum()
    for ring in rings:
        assert ring.dtype == np.float32 and ring.shape[1:] == (2,) and len(ring) >= 4


@pytest.mark.parametrize("seed", range(5))
def test_large_masks(seed: int) -> None:
    mask = blob(seed, (90, 120))
    np.testing.assert_array_equal(rasterised(outer_rings(mask), mask.shape), filled(mask))


@settings(max_examples=100, deadline=None)
@given(masks)
def test_pycocotools_makes_the_same_pixels(mask: Bool) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    made = np.zeros(mask.shape, np.bool_)
    for ring in outer_rings(mask):
        for rle in coco.frPyObjects([ring.ravel().tolist()], *mask.shape):
            made |= coco.decode(rle).astype(bool)
    np.testing.assert_array_equal(made, filled(mask))


def test_single_pixels_and_the_whole_image() -> None:
    (ring,) = outer_rings(np.ones((1, 1), np.bool_))
    assert sorted(map(tuple, ring.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (ring,) = outer_rings(np.ones((3, 5), np.bool_))
    assert sorted(map(tuple, ring.tolist())) == [(0, 0), (0, 3), (5, 0), (5, 3)]
    assert len(outer_rings(np.eye(4, dtype=np.bool_))) == 1, "parts are 8-connected"


def test_nothing_has_no_ring() -> None:
    assert outer_rings(np.zeros((3, 4), np.bool_)) == []
    assert outer_rings(np.zeros((0, 0), np.bool_)) == []
