"""A large image in tiles is what it is whole: laws on networks that see exactly what is there."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import BlobNetwork, assert_same, blank, blobs, ensemble_of
from cellpose_cases import QUARTER, needs_reference
from factories import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from places import DATA
from torch import Tensor

from sartorius_infer.cells.claim import Selector, build_instances
from sartorius_infer.competition import COMPETITION_SIZE_HW
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.parts import Part, bounded_masks, join
from sartorius_infer.ensemble.passes import How, predict, predict_tiles
from sartorius_infer.ensemble.tiles import tiling
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.networks import Detections, Features
from sartorius_infer.types import CellImage, Prediction

TILE_HW = (64, 84)
"""Neighbours share more than a blob is long."""

LARGE = (130, 200)
MOSAIC = DATA / "sartorius_full"
CUT_YX = (128, 192)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def in_tiles(ensemble: Ensemble) -> Ensemble:
    return ensemble.with_overrides(tile=TILE_HW)


def several() -> Ensemble:
    networks = BlobNetwork(), BlobNetwork(("cort", "debris", "shsy5y"), grid=56, firmness=0.6)
    return ensemble_of(*networks, views=("identity", "rot90+scale:2"), weights=(1.0, 2.5))


def both_ways(ensemble: Ensemble, image: CellImage, select: Selector | None = None) -> list[Prediction]:
    assert len(tiling(image.size_hw, TILE_HW)) > 1
    return [predict(e, [image], select)[0] for e in (in_tiles(ensemble), ensemble)]


@settings(max_examples=4)
@given(seeds)
def test_tiles_give_what_the_whole_image_gives(seed: int) -> None:
    tiled, whole = both_ways(ensemble_of(BlobNetwork()), blobs(seed, LARGE))
    assert len(whole) > 60
    assert_same(tiled, whole)


@pytest.mark.parametrize("size_hw", [(130, 200), (300, 40), (33, 250), (97, 126), (61, 300)])
def test_networks_and_views_in_tiles_of_any_image(size_hw: tuple[int, int]) -> None:
    tiled, whole = both_ways(several(), blobs(4, size_hw))
    assert len(whole) > 10
    assert_same(tiled, whole)


def test_colour_images_and_several_at_once() -> None:
    gray, small = blobs(5, LARGE), blobs(6)
    colour = replace(gray, pixels=np.stack([gray.pixels, gray.pixels // 2, gray.pixels], axis=2))
    found = predict(in_tiles(several()), [small, colour, gray, small])
    for tiled, image in zip(found, (small, gray, gray, small), strict=True):
        assert_same(tiled, predict(several(), [image])[0])


@pytest.mark.parametrize("count", [0, 1])
def test_few_cells_or_none(count: int) -> None:
    image = blank(LARGE)
    image.pixels[70:80, 100:110] = 200 * count
    tiled, whole = both_ways(several(), image)
    assert len(tiled) == count and tiled.masks.shape[0] == count
    assert_same(tiled, whole, masks=2e-3)


# What concerns the whole image.


def rules(consensus: str, floors: tuple[float, float, float] = (0.2, 0.5, 0.4)) -> Rules:
    per_class = {
        name: ClassRule(score=floor, mask=0.1, min_area=1)
        for name, floor in zip(CLASSES, floors, strict=True)
    }
    return Rules.model_validate({"per_class": per_class, "consensus": consensus})


@pytest.mark.parametrize("consensus", ["off", "count", "score_sum", "surest"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_image_agrees_on_its_class(consensus: str, seed: int) -> None:
    """Faint cells, which have no masks, vote as well."""
    own = rules(consensus)
    tiled, whole = both_ways(several(), blobs(seed, LARGE), Selector(own, CLASSES))
    assert_same(tiled, whole)
    cells = build_instances(tiled, own, CLASSES)
    assert len(cells) > 5 and (len(np.unique(cells.labels)) == 1) == (consensus != "off")
    np.testing.assert_array_equal(cells.label_map, build_instances(whole, own, CLASSES).label_map)


def test_any_function_of_the_whole_image_may_choose() -> None:
    def surest(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return scores >= np.sort(scores)[-7]

    image = blobs(3, LARGE)
    tiled, whole = (predict(e, [image], surest)[0] for e in (in_tiles(several()), several()))
    assert len(tiled) == 7
    assert_same(tiled, whole)


@dataclass
class Classless(BlobNetwork):
    """Sees cells of all classes, and does not know which."""

    @property
    def class_count(self) -> None:  # type: ignore[override]
        return None

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        found = super().detect(features, proposals)
        return [replace(each, labels=torch.zeros_like(each.labels)) for each in found]


def with_classless(*others: BlobNetwork) -> Ensemble:
    ensemble = ensemble_of(Classless(firmness=0.4), *others)
    first, *rest = ensemble.members
    none = replace(first, to_manifest=torch.tensor([0]), from_manifest=torch.ones(4, dtype=torch.int64))
    return replace(ensemble, members=(none, *rest))


def test_cells_of_no_class_take_that_of_the_image_wherever_their_tile_lies() -> None:
    """The other network sees the bright blobs alone, none of them in the last rows of tiles."""
    image = blobs(7, LARGE)
    image.pixels[70:] = np.minimum(image.pixels[70:], 100)
    tiled, whole = both_ways(with_classless(BlobNetwork(dimmest=150)), image)
    alone = whole.boxes[:, 1] >= 70
    assert alone.sum() > 10 and len(set(whole.labels[alone])) == 1
    np.testing.assert_array_equal(np.sort(tiled.labels), np.sort(whole.labels))
    order = [int(np.abs(tiled.boxes - box).sum(axis=1).argmin()) for box in whole.boxes]
    same = tiled[np.array(order)]
    np.testing.assert_allclose(same.boxes, whole.boxes, atol=2e-3)
    np.testing.assert_array_equal(same.labels, whole.labels)
    # Where no network tells a class, those that know classes have no say about the mask.
    assert np.isfinite(same.masks).all() and same.masks[alone].max() <= 0.4


def test_cells_of_no_class_alone() -> None:
    tiled, whole = both_ways(with_classless(), blobs(8, LARGE))
    assert set(whole.labels) == {1}
    assert_same(tiled, whole)


# Cells of another size.


@pytest.mark.parametrize("ways", [in_tiles, lambda ensemble: ensemble], ids=["tiles", "whole"])
def test_magnified_images_are_seen_at_the_networks_size(ways) -> None:  # type: ignore[no-untyped-def]
    """Tiles begin at even pixels, so that none cuts a pixel of the small image."""
    small = blobs(9, (64, 100))
    image = replace(small, pixels=np.kron(small.pixels, np.ones((2, 2), np.uint8)))
    seen = predict(several(), [small])[0]
    (found,) = predict(ways(several()).with_overrides(magnification=2.0), [image])
    grown = replace(seen, size_hw=image.size_hw, boxes=seen.boxes * 2)
    assert_same(found, grown)


# Parts.


def part(tile: int, boxes: list[list[float]], side: int = 28) -> Part:
    count = len(boxes)
    return Part(
        tile,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, count).astype(np.float32),
        np.ones(count, np.int64),
        np.full((count, side, side), 0.25 * (1 + tile % 3), np.float16),
        np.zeros(0, np.float32),
        np.zeros(0, np.int64),
    )


def test_no_tile_leaves_no_cell() -> None:
    plan = tiling(LARGE, TILE_HW)
    for parts in ([], [part(0, [])]):
        found = join("a", plan, parts, None)
        assert (found.image_id, found.size_hw, len(found)) == ("a", LARGE, 0)
        assert found.masks.shape == (0, 28, 28)


def test_masks_of_other_grids_come_to_the_finest() -> None:
    plan = tiling((100, 1000), TILE_HW)
    parts = [part(0, [[2, 2, 9, 9]]), part(1, []), part(2, [[130, 2, 139, 9], [150, 2, 159, 9]], side=56)]
    found = join("a", plan, parts, None)
    assert found.masks.shape == (3, 56, 56)
    assert sorted(found.masks[:, 20, 20].tolist()) == [0.25, 0.75, 0.75]


def test_masks_are_coarser_where_there_are_too_many() -> None:
    masks = np.ones((3000, 112, 112), np.float16)
    assert bounded_masks(masks[:300], 10).shape == (300, 112, 112)
    coarse = bounded_masks(masks, 100)
    assert coarse.shape[1] == 59 and coarse.size <= (1 << 30) // 100
    assert bounded_masks(masks[:, :28, :28], 10**6).shape == (3000, 28, 28)


def test_a_tile_is_seen_as_an_image_of_its_own() -> None:
    """Whatever else enters the networks with it."""
    ensemble, image = several(), blobs(2, LARGE)
    plan = tiling(LARGE, TILE_HW)
    together = predict_tiles(ensemble, image, plan, [0, 3, 5], How())
    for seen, tile in zip(together, (0, 3, 5), strict=True):
        (alone,) = predict_tiles(ensemble, image, plan, [tile], How())
        assert seen.tile == alone.tile == tile
        np.testing.assert_allclose(seen.boxes, alone.boxes, atol=1e-4)
        np.testing.assert_array_equal(seen.labels, alone.labels)
        assert plan.near(tile, seen.boxes).all()


# Real images.


@pytest.mark.slow
@pytest.mark.skipif(not MOSAIC.is_dir(), reason="the competition's images are not here")
@pytest.mark.parametrize(
    ("weights", "least"),
    [
        pytest.param(None, 300, id="included"),
        pytest.param([QUARTER], 100, id="cellpose", marks=needs_reference),
    ],
)
def test_a_mosaic_of_real_images_has_the_cells_of_each_of_them(
    weights: list[Path] | None, least: int
) -> None:
    """Cut so that no tile is an image of it, by a multiple of the network's strides: shifted by less, even a
    single image has one cell in eight otherwise. Away from the seams, of tiles or not, fewer may differ."""
    pixels = [read_image(file).pixels for file in some_images(4)]
    ensemble = load_ensemble(weights, "cpu")
    alone = [ensemble.segment(each).label_map for each in pixels]
    numbers = np.cumsum([0, *(each.max() for each in alone)])
    numbered = [np.where(each > 0, each + n, 0) for each, n in zip(alone, numbers, strict=False)]
    cut = np.s_[CUT_YX[0] :, CUT_YX[1] :]
    found = ensemble.segment(two_by_two(pixels)[cut]).label_map
    expected = two_by_two(numbered)[cut]
    for one, other in ((expected, found), (found, expected)):
        inner = [i for i in np.unique(one[one > 0]) if is_inner(one == i)]
        assert len(inner) > least
        assert np.mean([best_iou(one == i, other) > 0.5 for i in inner]) > 0.9


def some_images(count: int) -> list[ImageFile]:
    """Of SH-SY5Y cells, small and many."""
    with (MOSAIC / "train.csv").open() as file:
        kinds = {row["id"]: row["cell_type"] for row in csv.DictReader(file)}
    return [file for file in find_images([MOSAIC / "images"]) if kinds.get(file.id) == "shsy5y"][:count]


def two_by_two(images: list[np.ndarray]) -> np.ndarray:
    return np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])


def is_inner(cell: np.ndarray) -> bool:
    """Farther than 32 pixels from where the images meet, and from the mosaic's borders."""
    for axis, side, cut in zip((1, 0), COMPETITION_SIZE_HW, CUT_YX, strict=True):
        seams = (0, side - cut, 2 * side - cut)
        places = np.flatnonzero(cell.any(axis=axis))
        if any(places[0] - 32 < seam < places[-1] + 32 for seam in seams):
            return False
    return True


def best_iou(cell: np.ndarray, label_map: np.ndarray) -> float:
    others = np.unique(label_map[cell & (label_map > 0)])
    return max(((cell & (label_map == i)).sum() / (cell | (label_map == i)).sum() for i in others), default=0)
