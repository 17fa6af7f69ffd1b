"""Kills at random moments, resumed until the end: the same bytes, nothing broken before, nothing doubled."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from logged import seen

from sartorius_infer.run.journal import Journal
from torture.acts import Act, broken_outputs, make_acts, prepare
from torture.child import Process, adopt_orphans, forked, fresh
from torture.contract import contents
from torture.inputs import import_everything

SERIES = 6
"""Kills in a row at most, before a run may end by itself."""
_SIGNALS = (signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGINT)
_TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sartorius_infer")


@dataclass
class Killed:
    """What came of one act: signals that found it running, ends by itself, faults."""

    kills: Counter[str] = field(default_factory=Counter)
    ends: int = 0
    faults: list[str] = field(default_factory=list)


def start(act: Act, folder: Path, log: Path) -> Process:
    """The act in `folder`; the network's looks at images go to `log`."""
    if act.torchrun:
        return fresh([*_TORCHRUN, *act.words], folder, LOGGED_TO=str(log))
    return forked("sartorius_infer", act.words, folder, LOGGED_TO=str(log))


def undisturbed(act: Act, folder: Path) -> tuple[dict[str, bytes], float]:
    """What an act writes when nobody disturbs it, and the seconds that it takes."""
    outcome = start(act, prepare(folder, act), folder.with_suffix(".log")).outcome()
    if outcome.code != 0:
        raise RuntimeError(f"expected an undisturbed run, found {outcome.stderr[-500:]}")
    return contents(folder), outcome.wall_s


def kill_series(act: Act, folder: Path, expected: Mapping[str, bytes], most_s: float, rng: Random) -> Killed:
    """One output, killed up to `SERIES` times, then left to its end."""
    result = Killed()
    prepare(folder, act)
    for round_ in range(SERIES + 1):
        log = folder.with_name(f"{folder.name}.{round_}.log")
        before = _finished(folder, act)
        process = start(act, folder, log)
        number = rng.choice(_SIGNALS)
        is_last = round_ == SERIES
        if not is_last and not process.has_ended(rng.uniform(0, most_s)):
            process.send(number)
        outcome = process.outcome()
        if twice := before & set(seen(log)):
            result.faults.append(f"looked again at finished images {sorted(twice)}")
        log.unlink(missing_ok=True)
        is_whole = {p: c for p, c in contents(folder).items() if Path(p).name[0] != "."} == expected
        if outcome.code == 0:
            result.ends += 1
            if not is_whole:
                result.faults.append("other bytes at the end")
            return result
        if outcome.code == -number or (number == signal.SIGINT and outcome.code == 130):
            result.kills[signal.Signals(number).name] += 1
        elif not act.torchrun:
            result.faults.append(f"exit code {outcome.code} after {number.name}: {outcome.stderr[-300:]}")
        else:
            result.kills[signal.Signals(number).name] += 1
        result.faults += broken_outputs(folder, act, expected)
        if act.once and is_whole:
            return result
    result.faults.append("no end without a kill")
    return result


def _finished(folder: Path, act: Act) -> set[int]:
    """The numbers of the images in the journal of an act."""
    if not act.resumes:
        return set()
    return {int(result.id.removeprefix("image")) for result in Journal.salvage(folder / act.journal)}


def kill_often(count: int, seed: int, only: Sequence[str] = ()) -> dict[str, Killed]:
    """At least `count` kills over all acts, in turn; torchrun, slow to start, in every fourth round."""
    import_everything()
    adopt_orphans()
    results: dict[str, Killed] = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        work = Path(name)
        acts = {k: a for k, a in make_acts(work / "scene").items() if not only or k in only}
        known = {key: undisturbed(act, work / f"expected-{i}") for i, (key, act) in enumerate(acts.items())}
        series = 0
        while sum(r.kills.total() for r in results.values()) < count:
            for key, act in acts.items():
                if act.torchrun and series % 4 and len(acts) > 1:
                    continue
                expected, seconds = known[key]
                rng, folder = Random(f"{seed}/{key}/{series}"), work / "run"
                one = kill_series(act, folder, expected, 1.1 * seconds, rng)
                shutil.rmtree(folder)
                total = results.setdefault(key, Killed())
                total.kills += one.kills
                total.ends += one.ends
                total.faults += [f"series {series}: {fault}" for fault in one.faults]
                counts = ", ".join(f"{n} {name}" for name, n in one.kills.items())
                print(f"{key}, series {series}: {counts or 'no kill'}", *one.faults, sep="; ", flush=True)
            series += 1
    return results


def table(results: Mapping[str, Killed]) -> str:
    """Markdown: a row an act."""
    lines = [
        "| killed | SIGKILL | SIGTERM | SIGINT | ran to the end | failures |",
        "|---|---|---|---|---|---|",
    ]
    total = Killed()
    for name, result in results.items():
        lines.append(_row(name, result))
        total.kills += result.kills
        total.ends += result.ends
        total.faults += result.faults
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, result: Killed) -> str:
    counts = [result.kills[key] for key in ("SIGKILL", "SIGTERM", "SIGINT")]
    return f"| {name} | {' | '.join(map(str, [*counts, result.ends, len(result.faults)]))} |"
