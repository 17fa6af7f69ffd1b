"""Label maps against Cellpose's own, and each setting against what it says."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from cellpose_cases import REFERENCE, needs_reference, radial_maps, seen_by_quarter
from scipy import ndimage

from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.networks.cellpose.dynamics import flow_errors
from sartorius_infer.networks.cellpose.masks import Cells, cells_of, cleaned
from sartorius_infer.types import Int32

POSTS: dict[str, dict[str, Any]] = {
    "default_fixed": {},
    "min75_fixed": {"min_size": 75},
    "noqc": {"flow_threshold": 0.0},
    "cell-1": {"cellprob_threshold": -1.0},
    "cell1": {"cellprob_threshold": 1.0},
    "noresample": {"resample": False},
}
NETS = {"default": None, "d19": 19.0, "d19aug": 19.0}
ALL = [
    pytest.param(
        name, net, post, marks=() if (name, net) == ("d48ec7815252", "default") else pytest.mark.slow
    )
    for name in ("d48ec7815252", "7ae19de7bc2a")
    for net in NETS
    for post in POSTS
    if (REFERENCE / "official" / f"{name}_{net}_{post}.png").is_file()
] or [pytest.param("d48ec7815252", "default", "default_fixed")]


def pairs(a: Int32, b: Int32) -> int:
    """How many cells of one meet how many of the other, background with background left out."""
    met = {tuple(p) for p in np.stack([a.ravel(), b.ravel()], axis=1).tolist()}
    return len(met - {(0, 0)})


@needs_reference
@pytest.mark.parametrize("name, net, post", ALL)
def test_label_maps_are_cellpose_s(name: str, net: str, post: str) -> None:
    maps = seen_by_quarter(name, NETS[net], net == "d19aug")[0]
    rescale = 30 / (NETS[net] or 20.38911247253418)
    found = cells_of(maps, CellposeParts(**POSTS[post]), (520, 704), rescale).label_map
    answer = cv2.imread(str(REFERENCE / "official" / f"{name}_{net}_{post}.png"), cv2.IMREAD_UNCHANGED)
    answer = answer.astype(np.int32)
    assert found.max() == len(np.unique(answer)) - 1
    # Up to numbering: as many pairs of numbers as there are cells, but for a few pixels elsewhere.
    wrong = sum(
        int(n) for number in np.unique(found) for n in np.sort(np.bincount(answer[found == number]))[:-1]
    )
    assert wrong <= 20


DISCS = [(14.0, 15.0, 9.0), (40.0, 20.0, 12.0), (22.0, 50.0, 6.0), (58.0, 62.0, 3.0)]


def seen(size_hw: tuple[int, int] = (70, 80), rescale: float = 1.0, **settings: Any) -> Cells:
    return cells_of(radial_maps(size_hw, DISCS), CellposeParts(**settings), size_hw, rescale)


def areas(cells: Cells) -> list[int]:
    return sorted(np.bincount(cells.label_map.ravel())[1:].tolist())


def test_discs_are_found_whole() -> None:
    cells = seen()
    logit = radial_maps((70, 80), DISCS)[2]
    expected = ndimage.label(logit > 0)[0].astype(np.int32)
    assert pairs(cells.label_map, expected) == len(DISCS) == cells.label_map.max() == len(cells.scores)


def test_each_setting_does_what_it_says() -> None:
    every = areas(seen())
    assert areas(seen(min_size=every[1])) == every[1:]
    assert areas(seen(min_size=every[1] + 1)) == every[2:]
    assert areas(seen(max_size_fraction=(every[-1] - 0.5) / (70 * 80))) == every[:-1]
    assert areas(seen(max_size_fraction=every[-1] / (70 * 80))) == every
    assert sum(areas(seen(cellprob_threshold=2.0))) < sum(every) < sum(areas(seen(cellprob_threshold=-1.0)))
    assert areas(seen(flow_threshold=1e-9)) == []
    # Too few steps to reach the middle: no bin holds the pixels of its cell.
    assert areas(seen(steps=1)) != every


def test_the_flow_check_takes_what_differs() -> None:
    maps = radial_maps((70, 80), DISCS)
    maps[:2, 30:, 8:34] += 2.5
    whole = cells_of(maps, CellposeParts(flow_threshold=0.0), (70, 80), 1.0)
    errors = flow_errors(whole.label_map, maps)[1:]
    for threshold in sorted(errors)[:-1]:
        kept = cells_of(maps, CellposeParts(flow_threshold=float(threshold)), (70, 80), 1.0)
        assert len(kept.scores) == (errors <= threshold).sum()


@pytest.mark.parametrize("resample", [True, False])
def test_cells_of_a_smaller_map_come_back_at_the_image_s_size(resample: bool) -> None:
    maps = radial_maps((70, 80), DISCS)
    cells = cells_of(maps, CellposeParts(resample=resample), (140, 160), 0.5)
    assert cells.label_map.shape == cells.reach.shape == cells.probabilities.shape == (140, 160)
    ratio = np.array(areas(cells)) / np.array(areas(seen()))
    assert ((ratio > 3.4) & (ratio < 4.6)).all()


def test_scores_are_mean_sigmoid_times_exp_of_the_flow_error() -> None:
    maps, cells = radial_maps((70, 80), DISCS), seen(min_size=0)
    errors = flow_errors(cells.label_map, maps)
    for number, score in enumerate(cells.scores, start=1):
        logits = maps[2][cells.label_map == number].astype(np.float64)
        expected = np.mean(1 / (1 + np.exp(-logits))) * np.exp(-errors[number])
        assert score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("threshold", [-3.0, -1.0, 0.0, 1.5])
def test_a_threshold_of_a_half_gives_the_cell(threshold: float) -> None:
    cells = seen(cellprob_threshold=threshold)
    for number in range(1, len(cells.scores) + 1):
        mask = (cells.reach == number) & (cells.probabilities.astype(np.float16) >= 0.5)
        assert np.array_equal(mask, cells.label_map == number)


def test_what_flows_to_a_cell_is_more_than_the_cell() -> None:
    cells, logit = seen(), radial_maps((70, 80), DISCS)[2]
    assert ((cells.reach > 0) <= (logit > -2)).all()
    assert ((cells.reach > 0) & (cells.label_map == 0)).sum() > 100
    assert np.array_equal(cells.reach[cells.label_map > 0], cells.label_map[cells.label_map > 0])


def test_an_image_without_cells() -> None:
    maps = np.full((3, 20, 30), -9.0, np.float32)
    for resample in (True, False):
        cells = cells_of(maps, CellposeParts(resample=resample), (40, 50), 1.0)
        assert not cells.label_map.any() and not cells.reach.any()
        assert cells.scores.shape == (0,)


def slow_cleaned(label_map: Int32, min_size: int) -> Int32:
    """Holes by flooding the whole image from outside of it, one cell after the other."""
    found = label_map.copy()
    for last in (False, True):
        for number in np.unique(found[found > 0]):
            if (found == number).sum() < min_size:
                found[found == number] = 0
        for number in [] if last else np.unique(found[found > 0]):
            outside = ndimage.label(np.pad(found != number, 1, constant_values=True))[0]
            found[(outside != outside[0, 0])[1:-1, 1:-1] & (found != 0)] = number
            found[(outside != outside[0, 0])[1:-1, 1:-1]] = number
    return found


@pytest.mark.parametrize("seed", range(5))
def test_holes_are_filled_and_small_cells_go(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((50, 60)), 1.5)
    label_map = ndimage.label(np.abs(noise) < 0.1)[0].astype(np.int32)
    label_map[label_map == 3] = 0
    found = cleaned(label_map, 12)
    assert np.array_equal(found, slow_cleaned(label_map, 12))
    assert (found > 0).sum() > (label_map > 0).sum()
