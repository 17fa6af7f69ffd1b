"""Disks that are full, read-only or gone, two runs on one output: one line, and nothing written is lost."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from torture.acts import Act, broken_outputs, make_acts, prepare
from torture.child import Outcome
from torture.contract import contents, faults
from torture.inputs import import_everything
from torture.isolation import has_mounts
from torture.kills import start, undisturbed

PAGE = 4096
_READ_ONLY, _REMOUNT = 1, 32
_NOTHING: Mapping[str, bytes] = {}


@dataclass
class Disturbed:
    """What came of one way to disturb one act: exit codes, faults."""

    codes: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def _mount(target: Path, options: str, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"{target}: mount: {os.strerror(ctypes.get_errno())}")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system in memory at `folder`, of 16 MiB until it is told otherwise."""
    folder.mkdir()
    _mount(folder, "size=16m")
    try:
        yield
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(folder), 2)
        folder.rmdir()


def _limited(work: Path, act: Act, expected: Mapping[str, bytes], limit: str) -> tuple[Outcome, list[str]]:
    """The act on a disk that is limited as the kernel's option says."""
    folder = work / "disk"
    with small_disk(folder):
        for name in act.outputs:
            if not name.endswith("/"):
                (folder / name).write_bytes(b"earlier\n")
        _mount(folder, limit, _REMOUNT | (_READ_ONLY if limit.endswith(",ro") else 0))
        return _ended(act, folder, expected, work)


def _faults(
    outcome: Outcome, act: Act, before: Mapping[str, bytes] = _NOTHING, after: Mapping[str, bytes] = _NOTHING
) -> list[str]:
    """What breaks the contract, but for writing elsewhere: the network's log does, and folders move."""
    writes = (*act.outputs, f"{act.journal}/")
    return faults(replace(outcome, broke=()), "sartorius_infer", act.words, writes, before, after)


def _ended(act: Act, folder: Path, expected: Mapping[str, bytes], work: Path) -> tuple[Outcome, list[str]]:
    before = contents(folder)
    # Beside the disk, not on it.
    outcome = start(act, folder, work / "log").outcome()
    (work / "log").unlink(missing_ok=True)
    found = _faults(outcome, act, before, contents(folder))
    return outcome, found + broken_outputs(folder, act, expected)


def _full(
    work: Path, act: Act, expected: Mapping[str, bytes], rng: Random
) -> Iterator[tuple[Outcome, list[str]]]:
    """Full after each number of pages that it needs, then after each number of files."""
    used = sum(1 for name in act.outputs if not name.endswith("/"))
    for unit in ("size={}k", "size=16m,nr_inodes={}"):
        for free in range(400):
            count = (used + free) * (PAGE // 1024) if unit.startswith("size={}") else used + 1 + free
            ended = _limited(work, act, expected, unit.format(count))
            yield ended
            if ended[0].code in (0, 3):
                break


def _read_only(
    work: Path, act: Act, expected: Mapping[str, bytes], rng: Random
) -> Iterator[tuple[Outcome, list[str]]]:
    yield _limited(work, act, expected, "size=16m,ro")


def _vanishing(
    work: Path, act: Act, expected: Mapping[str, bytes], rng: Random
) -> Iterator[tuple[Outcome, list[str]]]:
    """The folder of the output is moved away while it works, eight times."""
    for _ in range(8):
        top = work / "top"
        top.mkdir()
        folder = prepare(top / "run", act)
        process = start(act, folder, work / "log")
        process.has_ended(rng.uniform(0, 1))
        gone = folder.rename(work / "gone")
        outcome = process.outcome()
        (work / "log").unlink(missing_ok=True)
        found = _faults(outcome, act)
        yield outcome, found + broken_outputs(gone, act, expected)
        shutil.rmtree(top)
        shutil.rmtree(gone)


def _two_at_once(
    work: Path, act: Act, expected: Mapping[str, bytes], rng: Random
) -> Iterator[tuple[Outcome, list[str]]]:
    """Two runs on one output, one a little later, four times: one at least ends well, with whole bytes."""
    for _ in range(4):
        folder = prepare(work / "both", act)
        first = start(act, folder, work / "log")
        first.has_ended(rng.uniform(0, 0.5))
        second = start(act, folder, work / "log")
        ends = [first.outcome(), second.outcome()]
        found = []
        for outcome in ends:
            found += _faults(outcome, act)
        if 0 not in [outcome.code for outcome in ends]:
            found.append(f"expected one of two to end well, found {[o.stderr[-200:] for o in ends]}")
        elif any(contents(folder).get(path) != content for path, content in expected.items()):
            found.append("other bytes at the end")
        yield ends[0], found
        yield ends[1], []
        shutil.rmtree(folder)


WAYS = {
    "full disk": _full,
    "read-only": _read_only,
    "vanishing folder": _vanishing,
    "two at once": _two_at_once,
}


def disturb(seed: int, only: Sequence[str] = ()) -> dict[tuple[str, str], Disturbed]:
    """Every way to disturb every act, but for torchrun's."""
    import_everything()
    results: dict[tuple[str, str], Disturbed] = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        work = Path(name)
        acts = {
            k: a for k, a in make_acts(work / "scene").items() if not a.torchrun and (not only or k in only)
        }
        for key, act in acts.items():
            expected, _ = undisturbed(act, work / "expected")
            shutil.rmtree(work / "expected")
            for way, disturbed in WAYS.items():
                if disturbed in (_full, _read_only) and not has_mounts():
                    print(f"{way}: nothing can be mounted here, left out")
                    continue
                result = results.setdefault((way, key), Disturbed())
                for outcome, found in disturbed(work, act, expected, Random(f"{seed}/{way}/{key}")):
                    result.codes[outcome.code] += 1
                    result.faults += found
                    for fault in found:
                        print(f"{key}, {way}: {fault}", flush=True)
    return results


def table(results: Mapping[tuple[str, str], Disturbed]) -> str:
    """Markdown: a row a way and act."""
    lines = ["| disturbed by | act | runs | exit 0 | 1 | 3 | failures |", "|---|---|---|---|---|---|---|"]
    for (way, act), result in results.items():
        codes = [result.codes[code] for code in (0, 1, 3)]
        cells = [way, act, result.codes.total(), *codes, len(result.faults)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
