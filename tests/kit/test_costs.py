"""Hours and bytes on paper, before anything is uploaded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_image, write_tiny

from kit.costs import (
    Calibration,
    calibrate,
    drops_for_bytes,
    drops_for_time,
    read_calibration,
    write_calibration,
)
from kit.errors import KitError
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.errors import ImageError

VIEWS = ("identity", "hflip", "vflip")
WEIGHTS = {"large": 3.0, "small": 1.0, "twin": 1.0}


def calibration(names: tuple[str, ...] = ("large", "small", "twin"), seconds: float = 1.0) -> Calibration:
    """Every network takes as long in every view."""
    return Calibration("a card", 4, tuple((name, view, seconds) for name in names for view in VIEWS))


def test_hours_grow_with_looks_and_images_and_shrink_with_devices() -> None:
    whole = calibration()
    assert whole.hours(3600, 1) == pytest.approx(9.0)
    assert whole.hours(7200, 4) == pytest.approx(4.5)
    assert whole.hours(3600, 1, [("small", "hflip"), ("twin", "hflip")]) == pytest.approx(7.0)
    assert whole.hours(0, 1) == 0.0


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (9.0, []),
        (8.9, ["view vflip"]),
        (6.0, ["view vflip"]),
        (5.9, ["view vflip", "view hflip"]),
        (2.9, ["view vflip", "view hflip", "network twin"]),
        (1.9, ["view vflip", "view hflip", "network twin", "network small"]),
        (0.9, []),
    ],
)
def test_the_last_views_go_first_then_the_least_networks(limit: float, expected: list[str]) -> None:
    """Of equal ones the last, as a run at its limit does; nothing is named that does not help."""
    assert drops_for_time(calibration(), WEIGHTS, 3600, 1, limit) == expected


def test_one_look_has_nothing_to_drop() -> None:
    one = Calibration("a card", 1, (("large", "identity", 10.0),))
    assert drops_for_time(one, WEIGHTS, 3600, 1, 10.0) == []
    assert drops_for_time(one, WEIGHTS, 3600, 1, 9.0) == []


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        (0, []),
        (-5, []),
        (1, ["network twin"]),
        (20, ["network twin"]),
        (21, ["network twin", "network small"]),
        (30, ["network twin", "network small"]),
        (31, []),
    ],
)
def test_the_least_networks_go_until_the_bytes_fit(over: int, expected: list[str]) -> None:
    assert drops_for_bytes({"large": 100, "small": 10, "twin": 20}, WEIGHTS, over) == expected


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 50), st.integers(1, 4)), min_size=1),
    st.integers(1, 300),
)
def test_what_is_dropped_is_enough_and_none_of_it_could_stay(
    networks: dict[str, tuple[int, int]], over: int
) -> None:
    sizes = {name: size for name, (size, _) in networks.items()}
    weights = {name: float(weight) for name, (_, weight) in networks.items()}
    drops = [drop.removeprefix("network ") for drop in drops_for_bytes(sizes, weights, over)]
    kept = [name for name in sizes if name not in drops]
    assert kept
    if drops:
        assert sum(sizes[name] for name in drops) >= over > sum(sizes[name] for name in drops[:-1])
        assert max(weights[name] for name in drops) <= min(weights[name] for name in kept)
    else:
        spared = sorted(sizes, key=lambda name: (weights[name], -list(sizes).index(name)))[-1]
        assert sum(sizes.values()) - sizes[spared] < over


def test_a_calibration_measures_every_look(tmp_path: Path) -> None:
    """The shares are of the whole, the rules' time too; the first image warms up and counts once."""
    for i in range(3):
        write_image(tmp_path / "images" / f"{i}.png", seed=i)
    ensemble = load_ensemble([write_tiny(tmp_path)], torch.device("cpu"))
    start = time.perf_counter()
    measured = calibrate(ensemble, tmp_path / "images", most=2)
    seconds = time.perf_counter() - start
    assert measured.images == 2
    assert [(name, view) for name, view, _ in measured.looks] == [("tiny", "identity")]
    assert 0 < 2 * sum(share for _, _, share in measured.looks) < seconds
    assert "threads of" in measured.device


def test_a_calibration_needs_images(tmp_path: Path) -> None:
    ensemble = load_ensemble([write_tiny(tmp_path)], torch.device("cpu"))
    with pytest.raises(ImageError):
        calibrate(ensemble, tmp_path)


def test_a_kept_calibration_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, calibration())
    assert read_calibration(path) == calibration()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"device": "a", "images": 1}',
        '{"device": "a", "images": 1, "looks": [["n", "v", "s"]]}',
    ],
)
def test_what_is_no_calibration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(KitError, match=rf"^{path}: expected a calibration, found \w+: "):
        read_calibration(path)
    path.unlink()
    with pytest.raises(KitError, match="expected a calibration, found FileNotFoundError"):
        read_calibration(path)
