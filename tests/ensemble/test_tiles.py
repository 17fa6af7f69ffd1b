"""Tiles cover an image, and one of them speaks for each cell."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartorius_infer.ensemble.tiles import LARGEST, OVERLAP, Span, Tiling, tile_size, tiling
from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.manifest.tiling import require_tile
from sartorius_infer.types import Float32

sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))
tile_sizes = st.tuples(st.integers(8, 200), st.integers(8, 200))


def manifest(**said: object) -> Manifest:
    content = {"version": 1, "classes": ("a",), "models": ({"name": "a", "file": "a"},)}
    return Manifest.model_validate(content | said)


def inside(plan: Tiling, tile: int, box: Float32) -> bool:
    down, across = plan.window(tile)
    x0, y0, x1, y1 = box
    return bool(across.start <= x0 and x1 <= across.stop and down.start <= y0 and y1 <= down.stop)


def depth(span: Span, side: int, low: float, high: float) -> float:
    """How far [low, high] lies from the ends of a span at which an image of `side` was cut."""
    before = math.inf if span[0] == 0 else low - span[0]
    after = math.inf if span[1] == side else span[1] - high
    return min(before, after)


@given(sizes, tile_sizes)
def test_tiles_of_one_size_cover_every_pixel_and_overlap_by_a_quarter(
    size_hw: tuple[int, int], tile_hw: tuple[int, int]
) -> None:
    plan = tiling(size_hw, tile_hw)
    seen = np.zeros(size_hw, np.int64)
    for tile in range(len(plan)):
        seen[plan.window(tile)] += 1
    assert seen.min() >= 1
    for spans, side, wanted in zip((plan.rows, plan.columns), size_hw, tile_hw, strict=True):
        assert {stop - start for start, stop in spans} == {side if len(plan) == 1 else min(side, wanted)}
        for (start, stop), (after, _) in pairwise(spans):
            assert start < after and stop - after >= OVERLAP * wanted - 1e-9
        # No fewer tiles would do.
        step = wanted - math.ceil(wanted * OVERLAP)
        assert len(spans) == 1 or side > wanted + (len(spans) - 2) * step


@given(sizes, tile_sizes, st.integers(0, 2**32 - 1))
def test_a_box_is_owned_by_the_tile_in_which_it_lies_deepest(
    size_hw: tuple[int, int], tile_hw: tuple[int, int], seed: int
) -> None:
    plan, rng = tiling(size_hw, tile_hw), np.random.default_rng(seed)
    low = rng.random((20, 2)) * (size_hw[1], size_hw[0])
    high = np.minimum(low + rng.random((20, 2)) * 80, (size_hw[1], size_hw[0]))
    boxes = np.hstack([low, high]).astype(np.float32)
    for box, owner in zip(boxes, plan.owners(boxes), strict=True):
        places = zip(divmod(int(owner), len(plan.columns)), (plan.rows, plan.columns), (1, 0), strict=True)
        for (place, spans, axis), side in zip(places, size_hw, strict=True):
            depths = [depth(span, side, float(box[axis]), float(box[axis + 2])) for span in spans]
            assert depths[place] >= max(depths) - 1e-3
        # What another tile sees whole, the owner does, unless no overlap is that long.
        if all(
            length <= OVERLAP * side for length, side in zip(box[2:] - box[:2], tile_hw[::-1], strict=True)
        ):
            assert inside(plan, int(owner), box)


@given(sizes, tile_sizes, st.integers(0, 2**32 - 1))
def test_the_owner_is_near_and_every_tile_that_may_tell_a_cell_holds_its_centre(
    size_hw: tuple[int, int], tile_hw: tuple[int, int], seed: int
) -> None:
    plan = tiling(size_hw, tile_hw)
    points = np.random.default_rng(seed).random((20, 2)) * (size_hw[1], size_hw[0])
    boxes = np.hstack([points, points]).astype(np.float32)
    owners = plan.owners(boxes)
    near = np.stack([plan.near(tile, boxes) for tile in range(len(plan))])
    assert near[owners, np.arange(20)].all()
    for tile, box in np.argwhere(near):
        assert inside(plan, int(tile), boxes[box])


@pytest.mark.parametrize("turn", [False, True])
def test_up_to_one_and_a_half_times_the_size_nothing_is_cut(turn: bool) -> None:
    order = slice(None, None, -1 if turn else 1)
    for size_hw in [(1, 1), (520, 704), (780, 1056)]:
        assert len(tiling(size_hw[order], (520, 704))) == 1
    for size_hw in [(781, 1056), (780, 1057), (1, 1057)]:
        assert len(tiling(size_hw[order], (520, 704))) > 1
    assert LARGEST == 1.5


def test_what_a_manifest_says_of_tiles() -> None:
    assert tile_size(manifest()) == (520, 704)
    assert tile_size(manifest(learned_hw=(300, 400))) == (300, 400)
    assert tile_size(manifest(magnification=0.5)) == (260, 352)
    assert tile_size(manifest(tile=(100, 80), magnification=2.0)) == (100, 80)
    assert tile_size(manifest(tile="off")) is None
    assert [require_tile(rule) for rule in ("off", "100x80", (100, 80))] == ["off", (100, 80), (100, 80)]
    assert len(tiling((5000, 5000), None)) == 1


# Two tiles side by side: 0..100 and 60..160; cores meet at 80.
PAIR = Tiling((50, 160), ((0, 50),), ((0, 100), (60, 160)))


def once(*cells: tuple[int, float, float, float, int]) -> list[int]:
    """Cells (tile, x0, x1, score, label), all of them from 10 down to 30: which stay."""
    tiles = np.array([cell[0] for cell in cells], np.int64)
    boxes = np.array([(cell[1], 10, cell[2], 30) for cell in cells], np.float32).reshape(-1, 4)
    scores = np.array([cell[3] for cell in cells], np.float32)
    labels = np.array([cell[4] for cell in cells], np.int64)
    return np.flatnonzero(PAIR.once(tiles, boxes, scores, labels)).tolist()


@pytest.mark.parametrize(
    ("cells", "stay"),
    [
        ([], []),
        ([(0, 0, 20, 0.1, 1), (1, 140, 160, 0.1, 1)], [0, 1]),
        # Seen by both: its own tile speaks, however sure the other is.
        ([(0, 60, 80, 0.2, 1), (1, 61, 80, 0.9, 1)], [0]),
        ([(0, 75, 90, 0.9, 1), (1, 75, 90, 0.2, 1)], [1]),
        # Cut at 100 by the first tile, whole in the second.
        ([(0, 90, 100, 0.9, 1), (1, 90, 115, 0.3, 1)], [1]),
        # Seen by the other tile alone: the one that sees it better says that there is none.
        ([(0, 72, 90, 0.9, 1)], []),
        # Each takes it for the other's, or for its own: the surer speaks.
        ([(0, 72, 90, 0.4, 1), (1, 70, 88, 0.6, 1)], [1]),
        ([(0, 71, 88, 0.4, 1), (1, 72, 90, 0.3, 1)], [0]),
        # Of other classes, or places, they are other cells.
        ([(0, 71, 88, 0.4, 1), (1, 72, 90, 0.3, 2)], [0, 1]),
        ([(0, 70, 89, 0.4, 1), (1, 79, 98, 0.3, 1)], [0, 1]),
        # Longer than the overlap: no tile sees it whole, and both tell what they see.
        ([(0, 30, 100, 0.4, 1), (1, 60, 130, 0.3, 1)], [0, 1]),
    ],
)
def test_each_cell_is_told_once(cells: list[tuple[int, float, float, float, int]], stay: list[int]) -> None:
    assert once(*cells) == stay
    assert once(*cells[::-1]) == [len(cells) - 1 - i for i in stay][::-1]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_contested_cells_are_told_once_as_a_slow_loop_tells_them(seed: int) -> None:
    """Many tiles, boxes that each tile places a little elsewhere, against every pair by itself."""
    rng, plan = np.random.default_rng(seed), tiling((200, 300), (80, 100))
    centres = rng.random((20, 2)) * (300, 200)
    half = rng.uniform(4, 12, (20, 2))
    cells = np.hstack([centres - half, centres + half])
    rows = []
    for tile in range(len(plan)):
        moved = (cells + rng.normal(0, 1.5, (20, 1))).astype(np.float32)
        seen = plan.near(tile, moved) & (rng.random(20) < 0.95)
        rows += [(tile, *moved[i], rng.random(), 1 + i % 2) for i in np.flatnonzero(seen)]
    table = np.array(rows)
    tiles, labels = table[:, 0].astype(np.int64), table[:, 6].astype(np.int64)
    boxes, scores = table[:, 1:5].astype(np.float32), table[:, 5].astype(np.float32)
    stays = plan.once(tiles, boxes, scores, labels)
    np.testing.assert_array_equal(stays, slow_once(plan, tiles, boxes, scores, labels))


def slow_once(plan: Tiling, tiles, boxes, scores, labels) -> np.ndarray:  # type: ignore[no-untyped-def]
    own = plan.owners(boxes) == tiles
    stays: list[int] = []
    for i in sorted(range(len(tiles)), key=lambda i: (not own[i], -scores[i])):
        same = [
            j
            for j in range(len(tiles))
            if tiles[j] != tiles[i] and labels[j] == labels[i] and overlap(boxes[i], boxes[j]) > 0.5
        ]
        if (own[i] or same) and not set(same) & set(stays):
            stays.append(i)
    return np.isin(np.arange(len(tiles)), stays)


def overlap(a: Float32, b: Float32) -> float:
    width, height = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
    shared = float(width) * float(height)
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)
