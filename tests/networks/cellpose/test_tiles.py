"""Tiles, taper and range against Cellpose's own raw outputs, and against loops that say what is meant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cellpose_cases import REFERENCE, needs_reference, seen_by_quarter
from torch import Tensor

from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.networks.cellpose import tiles
from sartorius_infer.networks.cellpose.tiles import (
    flows_of,
    normalised,
    resized,
    resized_hw,
    taper,
    tiles_of,
)
from sartorius_infer.types import Float32

CPU = torch.device("cpu")
RUNS = {"default": (None, False), "d19": (19.0, False), "d19aug": (19.0, True)}


@needs_reference
@pytest.mark.parametrize(
    "name, net",
    [
        ("d48ec7815252", "default"),
        pytest.param("d48ec7815252", "d19aug", marks=pytest.mark.slow),
        pytest.param("7ae19de7bc2a", "default", marks=pytest.mark.slow),
        pytest.param("7ae19de7bc2a", "d19", marks=pytest.mark.slow),
        pytest.param("7ae19de7bc2a", "d19aug", marks=pytest.mark.slow),
    ],
)
def test_raw_outputs_are_cellpose_s(name: str, net: str) -> None:
    maps, style = seen_by_quarter(name, *RUNS[net])
    at_size = resized(maps, (520, 704))
    answer = np.load(REFERENCE / "official" / f"{name}_{net}.npz")
    np.testing.assert_allclose(at_size[:, 196:324, 288:416], answer["crop32"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(style, answer["style"], rtol=0, atol=1e-6)


def looks(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """A stand-in that tells apart where it is in its tile, and which way up: a ramp, and the tile itself."""
    rows, columns = (torch.linspace(-1, 1, n) for n in tiles.shape[-2:])
    ramp = rows[:, None] + 2 * columns
    maps = torch.stack([tiles[:, 0] + ramp, tiles[:, 0] * ramp, tiles[:, 1] - ramp], dim=1)
    return maps, tiles.mean(dim=(2, 3)) + 0.1


def slow_flows(image: Float32, parts: CellposeParts) -> Float32:
    """Pixel by pixel: every tile that covers it has a say by its taper."""
    pads = []
    for size in image.shape[1:]:
        more = math.ceil(size / 16) * 16 - size
        short = parts.tile - size - more - 16 if parts.augment else 0
        pads.append((8 + more // 2, 8 + more - more // 2 + max(0, short)))
    padded = np.pad(image, [(0, 0), *pads])
    height, width = padded.shape[1:]
    tile_hw = min(parts.tile, height), min(parts.tile, width)
    starts = []
    for size, tile in zip((height, width), tile_hw, strict=True):
        count = math.ceil((1 + 2 * parts.tile_overlap) * size / tile) if size > parts.tile else 1
        count = max(2, math.ceil(2 * size / tile)) if parts.augment else count
        starts.append([int(k * (size - tile) / max(1, count - 1)) for k in range(count)])
    sums, cover = np.zeros((3, height, width)), np.zeros((height, width))
    weight, whole = np.zeros(tile_hw), 224
    for i in range(tile_hw[0]):
        for j in range(tile_hw[1]):
            places = zip((i, j), tile_hw, strict=True)
            far = [abs(k + whole // 2 - n // 2 - (whole - 1) / 2) for k, n in places]
            weight[i, j] = math.prod(1 / (1 + math.exp((f - whole / 2 + 20) / 7.5)) for f in far)
    for j, top in enumerate(starts[0]):
        for i, left in enumerate(starts[1]):
            place = (slice(top, top + tile_hw[0]), slice(left, left + tile_hw[1]))
            seen = padded[:, *place]
            up, over = (-1 if parts.augment and k % 2 else 1 for k in (i, j))
            maps = looks(torch.from_numpy(seen[:, ::up, ::over].copy())[None])[0][0].numpy()[:, ::up, ::over]
            maps = maps * np.array([up, over, 1])[:, None, None]
            sums[:, *place] += maps * weight
            cover[place] += weight
    (top, bottom), (left, right) = pads
    mean = (sums / cover)[:, top : height - bottom, left : width - right]
    return np.asarray(mean, np.float32)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(
    "size_hw, tile, overlap", [((70, 133), 48, 0.1), ((64, 64), 64, 0.3), ((20, 100), 32, 0.05)]
)
def test_tiles_are_averaged_as_said(
    size_hw: tuple[int, int], tile: int, overlap: float, augment: bool
) -> None:
    image = np.random.default_rng(3).standard_normal((2, *size_hw)).astype(np.float32)
    parts = CellposeParts(tile=tile, tile_overlap=overlap, augment=augment)
    ((found, _),) = flows_of(looks, [image], parts, CPU)
    np.testing.assert_allclose(found.numpy(), slow_flows(image, parts), rtol=0, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 4, 5, 100])
def test_tiles_of_several_images_go_in_together(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_BATCH", batch)
    images = list(np.random.default_rng(4).standard_normal((3, 2, 70, 133)).astype(np.float32))
    parts, counts = CellposeParts(tile=48), list[int]()

    def counted(some: Tensor) -> tuple[Tensor, Tensor]:
        counts.append(len(some))
        return looks(some)

    found = flows_of(counted, iter(images), parts, CPU)
    first = next(found)
    each = len(tiles_of((96, 160), parts))
    # The first is out before tiles of the third go in.
    assert sum(counts) <= 2 * each or batch > 2 * each
    for image, (maps, style) in zip(images, [first, *found], strict=True):
        np.testing.assert_allclose(maps.numpy(), slow_flows(image, parts), rtol=0, atol=2e-6)
        ((_, alone),) = flows_of(looks, [image], parts, CPU)
        torch.testing.assert_close(style, alone, rtol=0, atol=1e-6)
    assert sum(counts) == 3 * each and set(counts[:-1]) <= {batch}


def test_no_images_have_no_flows() -> None:
    assert list(flows_of(looks, [], CellposeParts(), CPU)) == []


def test_tiles_of_the_usual_image() -> None:
    """704 x 520 at diameter 19: 35 tiles, 88 with `augment`."""
    padded = (848, 1136)
    assert len(tiles_of(padded, CellposeParts())) == 35
    assert len(tiles_of(padded, CellposeParts(augment=True))) == 88
    assert {(t.mirror_y, t.mirror_x) for t in tiles_of(padded, CellposeParts())} == {(False, False)}


def test_a_taper_is_symmetric_and_highest_inside() -> None:
    rows, columns = taper(32, 224)
    for weight in (rows, columns):
        torch.testing.assert_close(weight, weight.flip(0), rtol=0, atol=1e-15)
    assert rows.min() > 0.9 > 0.1 > columns[0]


@pytest.mark.parametrize("percentile", [(1.0, 99.0), (5.0, 80.0), (0.0, 100.0)])
def test_percentiles_become_0_and_1(percentile: tuple[float, float]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 31, 47), dtype=np.uint8)
    found = normalised(pixels, percentile)
    gray = np.sort(pixels.astype(np.float64).mean(axis=0).ravel())
    at = [p / 100 * (gray.size - 1) for p in percentile]
    low, high = (
        gray[int(a)] + (a - int(a)) * (gray[min(int(a) + 1, gray.size - 1)] - gray[int(a)]) for a in at
    )
    expected = (pixels.astype(np.float64).mean(axis=0) - low) / (high - low)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5)
    assert not found[1].any()


def test_an_image_of_one_value_stays_and_one_of_hardly_more_is_empty() -> None:
    plain = np.full((1, 30, 30), 7, np.uint8)
    assert (normalised(plain, (1.0, 99.0))[0] == 7).all()
    plain[0, 3, 3] = 200
    assert not normalised(plain, (1.0, 99.0)).any()


def test_sizes_are_cut_off() -> None:
    assert resized_hw((520, 704), 30 / 19) == (821, 1111)
    assert resized_hw((3, 5), 0.1) == (1, 1)
