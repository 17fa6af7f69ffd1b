from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from logged import run_here, seen, words_of, write_numbered, write_weights

from sartorius_infer.cli.predict import _duration
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.member import Member
from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.output.check import check_submission
from sartorius_infer.run import runs
from sartorius_infer.run.budget import RESERVE, Budget

VIEWS = ("identity", "hflip", "vflip")

Costs = dict[str, float]
"""Seconds that each network takes for an image in one view."""


def make_ensemble(weights: dict[str, float], views: Sequence[str] = VIEWS) -> Ensemble:
    """Networks that are only names, with these weights."""
    models = [{"name": name, "file": f"{name}.pth", "weight": weight} for name, weight in weights.items()]
    content = {"version": 1, "classes": ["a"], "models": models, "views": list(views)}
    none = torch.zeros(0, dtype=torch.int64)
    members = [Member(name, None, weight, none, none) for name, weight in weights.items()]  # type: ignore[arg-type]
    return Ensemble(Manifest.model_validate_json(json.dumps(content)), tuple(members), torch.device("cpu"))


@dataclass
class Simulation:
    """A run whose clock goes on only while it works: `startup` in the first look, `other` for each image."""

    ensemble: Ensemble
    costs: Costs
    images: int
    limit: float
    startup: float = 0.0
    other: float = 0.0
    batch: int = 1
    now: float = 1000.0
    chosen: list[tuple[tuple[str, ...], tuple[str, ...]] | None] = field(default_factory=list)

    def run(self) -> Simulation:
        """Note of each batch the networks and views that looked at it, or None where time was up."""
        budget = Budget(self.limit, self.now, lambda: self.now)
        ensemble, remaining = self.ensemble, self.images
        self.began = self.now
        while remaining:
            count = min(self.batch, remaining)
            chosen = budget.choose(ensemble, remaining)
            if chosen is not None:
                ensemble = chosen
                self._look(budget, ensemble, count)
                self.chosen.append((tuple(m.name for m in ensemble.members), ensemble.manifest.views))
            else:
                self.chosen.append(None)
            remaining -= count
            budget.finished(count)
        return self

    def _look(self, budget: Budget, ensemble: Ensemble, count: int) -> None:
        for member in ensemble.members:
            for view in ensemble.manifest.views:
                seconds = self.costs[member.name] * count + self.startup
                self.startup = 0.0
                self.now += seconds
                budget.looked(member.name, view, seconds, count)
        self.now += self.other * count

    @property
    def seconds(self) -> float:
        return self.now - self.began


WEIGHTS = {"light": 1.0, "heavy": 3.0, "middle": 2.0}
CHAIN = [
    (("light", "heavy", "middle"), ("identity", "hflip", "vflip")),
    (("light", "heavy", "middle"), ("identity", "hflip")),
    (("light", "heavy", "middle"), ("identity",)),
    (("heavy", "middle"), ("identity",)),
    (("heavy",), ("identity",)),
]
"""What is dropped, step by step: the last view first, then the network of the lowest weight."""


def simulate(images: int, limit: float, **more: float) -> Simulation:
    """Networks of a second each."""
    costs = dict.fromkeys(WEIGHTS, 1.0)
    return Simulation(make_ensemble(WEIGHTS), costs, images, limit, **more).run()  # type: ignore[arg-type]


def test_nothing_is_dropped_where_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    assert simulate(100, 900 / (1 - RESERVE) + 0.1).chosen == [CHAIN[0]] * 100
    assert caplog.messages == []


@pytest.mark.parametrize(("share", "step"), [(0.9, 1), (0.5, 2), (0.25, 3), (0.13, 4)])
def test_as_much_is_dropped_as_it_takes_and_in_order(share: float, step: int) -> None:
    """After the two batches that it takes to know."""
    simulation = simulate(1000, 9000 * share)
    assert simulation.chosen[:2] == [CHAIN[0]] * 2
    assert simulation.chosen[2:] == [CHAIN[step]] * 998
    assert simulation.seconds < 9000 * share


def test_it_says_what_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        simulate(1000, 9000 * 0.25)
    said = "the time limit: going on without view hflip, view vflip, network light for the last 998 images"
    assert caplog.messages == [said]


def test_of_equal_weights_the_last_network_goes_first() -> None:
    ensemble = make_ensemble({"a": 1.0, "b": 1.0, "c": 1.0}, ["identity"])
    simulation = Simulation(ensemble, {"a": 1.0, "b": 1.0, "c": 1.0}, 100, 210.0).run()
    assert simulation.chosen[-1] == (("a", "b"), ("identity",))


def test_start_up_is_not_taken_for_the_cost_of_an_image() -> None:
    """Though it is time that has passed: neither in the sum, nor in the share of the first look."""
    fits = simulate(1000, 10_000, startup=200.0)
    assert fits.chosen == [CHAIN[0]] * 1000
    tight = simulate(1000, 6500, startup=200.0)
    assert tight.chosen[2:] == [CHAIN[1]] * 998


def test_images_that_could_not_be_read_before_the_first_do_not_make_it_count() -> None:
    now = [0.0]
    ensemble = make_ensemble(WEIGHTS)
    budget = Budget(1000.0, 0.0, lambda: now[0])
    budget.finished(3)
    assert budget.choose(ensemble, 97) is ensemble
    now[0] += 50.0  # starting up
    budget.looked("light", "identity", 50.0, 1)
    budget.finished(1)
    assert budget.choose(ensemble, 96) is ensemble
    now[0] += 1.0
    budget.looked("light", "identity", 1.0, 1)
    budget.finished(1)
    assert budget.choose(ensemble, 95) is ensemble


def test_batches_that_failed_are_no_reason_to_drop_anything() -> None:
    """Before a network has looked at an image with success there is nothing to go by."""
    now = [0.0]
    ensemble = make_ensemble(WEIGHTS)
    budget = Budget(1000.0, 0.0, lambda: now[0])
    for remaining in range(100, 90, -1):
        assert budget.choose(ensemble, remaining) is ensemble
        now[0] += 50.0
        budget.finished(1)


def test_what_a_network_does_not_account_for_is_counted_all_the_same() -> None:
    """Masks, pasting and reading are no looks, and do not shrink with them: a second step is needed."""
    assert simulate(1000, 10_000).chosen[-1] == CHAIN[0]
    simulation = simulate(1000, 10_000, other=4.5)
    assert simulation.chosen[2:4] == CHAIN[1:3]
    assert simulation.chosen[-1] == CHAIN[2]
    assert simulation.seconds < 10_000


def test_when_the_time_is_up_it_is_up() -> None:
    simulation = simulate(1000, 300.0)
    done = simulation.chosen.index(None)
    assert simulation.chosen[done - 1] == CHAIN[-1]
    assert simulation.chosen[done:] == [None] * (1000 - done)
    assert simulation.seconds < 300.0


def test_a_limit_that_has_passed_before_the_start() -> None:
    ensemble = make_ensemble(WEIGHTS)
    assert Budget(10.0, 0.0, lambda: 10.0).choose(ensemble, 5) is None
    assert Budget(10.0, 0.0, lambda: 9.0).choose(ensemble, 5) is ensemble


def test_nothing_to_look_at_chooses_all() -> None:
    ensemble = make_ensemble(WEIGHTS)
    assert Budget(10.0, 0.0, lambda: 1.0).choose(ensemble, 0) is ensemble


def test_the_ensemble_itself_is_never_changed() -> None:
    ensemble = make_ensemble(WEIGHTS)
    Simulation(ensemble, dict.fromkeys(WEIGHTS, 1.0), 1000, 900.0).run()
    assert ensemble.manifest.views == VIEWS
    assert [member.name for member in ensemble.members] == list(WEIGHTS)


@given(
    costs=st.lists(st.floats(0.01, 10), min_size=1, max_size=4),
    views=st.integers(1, 3),
    images=st.integers(1, 60),
    batch=st.integers(1, 5),
    startup=st.floats(0, 100),
    share=st.floats(0.01, 3),
)
def test_two_batches_are_enough_to_know_what_fits(
    costs: list[float], views: int, images: int, batch: int, startup: float, share: float
) -> None:
    """Where all images cost the same: no less is dropped than has to be, and no more; it ends in time."""
    by_name = {f"n{i}": cost for i, cost in enumerate(costs)}
    steps = [sum(costs) * count for count in range(views, 0, -1)]
    steps += [sum(costs[i:]) for i in range(1, len(costs))]  # the first has the lowest weight
    limit = startup + steps[0] * images * share
    ensemble = make_ensemble({name: 1.0 + i for i, name in enumerate(by_name)}, VIEWS[:views])
    run = Simulation(ensemble, by_name, images, limit, startup, batch=batch).run()
    assert run.seconds <= limit + batch * steps[0]
    found = [c and sum(by_name[name] for name in c[0]) * len(c[1]) for c in run.chosen]
    left = limit * (1 - RESERVE) - startup - steps[0] * 2 * batch
    remaining = images - 2 * batch
    if remaining <= 0 or left <= 0:
        return
    assume(all(abs(step * remaining - left) > 1e-6 * left for step in steps))
    fits = [step for step in steps if step * remaining < left]
    expected = fits[0] if fits else steps[-1]
    done = found.index(None) if None in found else len(found)
    assert found[:done] == pytest.approx([steps[0]] * 2 + [expected] * (done - 2))
    assert found[done:] == [None] * (len(found) - done)
    assert done == len(found) or not fits


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h30m", 30600), ("20m", 1200), ("45s", 45), ("1h1m1s", 3661), ("90m", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert _duration(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "0s", "0h0m", "30m8h", "1.5h", "-5m", "8 h", "8H", "8h ", "h"])
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time such as 8h30m, 20m or 45s, found"):
        _duration(text)


def run_limited(
    folder: Path, limit: str, count: int, seconds: Sequence[float], **manifest: object
) -> tuple[int, float, list[int]]:
    """Exit code, seconds and the numbers that the networks saw, of a run within a limit.

    Time passes where a network sleeps and nowhere else, so that a busy machine changes nothing.
    """
    weights = write_weights(folder / "w", seconds, **manifest)
    images = write_numbered(folder / "images", range(count))
    words = words_of(weights, images, folder / "s.csv", "--time-limit", limit)
    now = [1000.0]
    with pytest.MonkeyPatch.context() as patch:
        for clock in ("monotonic", "perf_counter"):
            patch.setattr(time, clock, lambda: now[0])
        patch.setattr(time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
        patch.setattr(runs, "Budget", partial(Budget, clock=time.monotonic))
        code = run_here(words, folder / "log")
    return code, now[0] - 1000.0, seen(folder / "log")


def test_a_slow_run_drops_views_and_networks_says_so_and_ends_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it would take 7.2 s."""
    code, seconds, saw = run_limited(tmp_path, "3s", 40, [0.03, 0.03], views=VIEWS)
    assert code == 0
    assert 1.5 < seconds <= 3
    assert "the time limit: going on without view" in caplog.text
    assert "vflip" in caplog.text
    assert set(saw) == set(range(40))
    sizes = {f"image{i:03}": (24, 40) if i % 4 < 3 else (40, 24) for i in range(40)}
    assert check_submission(tmp_path / "s.csv", sizes) == []


def test_when_the_time_is_up_the_rest_is_blank_and_the_code_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it would take 16 s, by one network in one view."""
    code, seconds, saw = run_limited(tmp_path, "1s", 40, [0.4])
    assert code == 3
    assert seconds <= 1.4  # what an image takes more than is left
    assert 1 <= len(saw) <= 3
    out = capsys.readouterr().out
    assert f"failed    {40 - len(saw)}\n" in out
    assert "  image039: not predicted: the time limit was reached\n" not in out  # only twenty are listed
    assert f"  image{len(saw):03}: image{len(saw):03}: not predicted: the time limit was reached\n" in out
    rows = (tmp_path / "s.csv").read_text().splitlines()[1:]
    assert [row for row in rows if row.endswith(",")] == [f"image{i:03}," for i in range(len(saw), 40)]


def test_with_time_enough_the_bytes_are_those_without_a_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, _, _ = run_limited(tmp_path, "1h", 12, [0.0, 0.0], views=VIEWS)
    assert code == 0
    assert caplog.messages == []
    words = words_of(tmp_path / "w", tmp_path / "images", tmp_path / "plain.csv")
    assert run_here(words) == 0
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
