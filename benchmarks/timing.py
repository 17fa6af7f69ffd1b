"""Ratios of times, taken side by side so that a noisy machine is noisy for all."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of one contender, one for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of all rounds, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Row:
    """A line of a table: what was measured, and its ratio to the opponent's, greater meaning better."""

    what: str
    opponent_s: float
    kit_s: float
    ratio: float
    goal: str = ""


def alternate(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, Times]:
    """Each contender once a round, in turns, after `warm_up` rounds that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if number >= warm_up:
                taken[name].append(time.perf_counter() - start)
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}


def against_all(
    what: str,
    opponent: Callable[[], object],
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    goal: str = "",
    warm_up: int = 1,
) -> list[Row]:
    """The opponent and each contender in turns; a ratio is the median of the rounds' own."""
    times = alternate({"the opponent": opponent, **contenders}, rounds, warm_up)
    theirs = times.pop("the opponent")
    rows = []
    for name, ours in times.items():
        ratios = [one / other for one, other in zip(theirs.seconds, ours.seconds, strict=True)]
        label = f"{what}, {name}" if name else what
        rows.append(Row(label, theirs.median, ours.median, statistics.median(ratios), goal))
        print(f"{label}: {theirs.median:.3g} s against {ours.median:.3g} s", file=sys.stderr, flush=True)
    return rows


def against(
    what: str, opponent: Callable[[], object], kit: Callable[[], object], rounds: int, goal: str = ""
) -> Row:
    """`against_all` of a single contender."""
    (row,) = against_all(what, opponent, {"": kit}, rounds, goal)
    return row


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def rows_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [[r.what, f"{r.opponent_s:.3g}", f"{r.kit_s:.3g}", f"{r.ratio:.1f}", r.goal] for r in rows]
    return table(["", "opponent, s", "kit, s", "times as fast", "goal"], lines)
