"""Cases of all kinds in turn until the time is up, and the table of what came of them."""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from torture.cases import Case, draw, run
from torture.child import Outcome
from torture.scene import make_scene


@dataclass
class Tally:
    """What came of the cases of one kind."""

    codes: Counter[int] = field(default_factory=Counter)
    fresh: int = 0
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    failures: int = 0

    def add(self, case: Case, outcome: Outcome, failed: bool) -> None:
        """Count one."""
        self.codes[outcome.code] += 1
        self.fresh += case.is_fresh
        self.failures += failed
        if not case.is_fresh:
            self.cpu_s.append(outcome.cpu_s)
            self.peak_mib = max(self.peak_mib, outcome.peak_mib)


@dataclass
class Report:
    """Tallies by kind."""

    tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """Cases that broke the contract."""
        return sum(tally.failures for tally in self.tallies.values())

    def table(self) -> str:
        """Markdown: a row a kind, and one of all; seconds are the processor's, of forks."""
        lines = [
            "| kind | inputs | fresh | exit 0 | 1 | 2 | 3 | failures | median s | worst s | worst MiB |",
            "|---|" + "---|" * 10,
        ]
        for name, tally in self.tallies.items():
            lines.append(_row(name, tally))
        everything = Tally()
        for tally in self.tallies.values():
            everything.codes += tally.codes
            everything.fresh += tally.fresh
            everything.failures += tally.failures
            everything.cpu_s += tally.cpu_s
            everything.peak_mib = max(everything.peak_mib, tally.peak_mib)
        return "\n".join([*lines, _row("all", everything)])


def _row(name: str, tally: Tally) -> str:
    codes = [str(tally.codes[code]) for code in (0, 1, 2, 3)]
    seconds = tally.cpu_s or [0.0]
    cells = [name, tally.codes.total(), tally.fresh, *codes, tally.failures]
    cells += [f"{median(seconds):.2f}", f"{max(seconds):.1f}", f"{tally.peak_mib:.0f}"]
    return f"| {' | '.join(map(str, cells))} |"


def import_everything() -> None:
    """So that forks need not, and no fork waits for another's lock."""
    import matplotlib.backends.backend_agg
    import tqdm

    import sartorius_infer
    import training

    for package in (sartorius_infer, training):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    assert matplotlib.backends.backend_agg
    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system


def torture(kinds: Sequence[str], seed: int, first: int, seconds: float, keep: Path) -> Report:
    """Cases from number `first` on, the kinds in turn; at least one of each. Failures go to `keep`."""
    import_everything()
    report = Report({kind: Tally() for kind in kinds})
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        scene = make_scene(Path(name) / "scene")
        end, number = time.monotonic() + seconds, first
        while number == first or time.monotonic() < end:
            for kind in kinds:
                case, folder = draw(scene, kind, seed, number), Path(name) / "case"
                outcome, faults = run(case, scene, folder)
                report.tallies[kind].add(case, outcome, bool(faults))
                if faults:
                    _keep(keep, seed, case, outcome, faults)
                shutil.rmtree(folder)
            number += 1
    return report


def _keep(keep: Path, seed: int, case: Case, outcome: Outcome, faults: Sequence[str]) -> None:
    """The input and what happened, for the person who mends it."""
    folder = keep / f"{case.kind.replace(' ', '_')}-{seed}-{case.number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / Path(case.file).name).write_bytes(case.content)
    said = [
        f"python -m {case.command.program} {' '.join(case.words)}",
        *faults,
        "",
        outcome.stderr,
        outcome.stdout,
    ]
    (folder / "told.txt").write_text("\n".join(said), encoding="utf-8")
    print(f"{case.kind} {case.number}: {'; '.join(faults)[:300]}\n  kept in {folder}", flush=True)
