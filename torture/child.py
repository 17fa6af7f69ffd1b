"""One command in a process under limits: a fork of this one, which has imported everything, or a fresh one.

Importing costs seconds, so most inputs go to forks, in which Python's own audit events are watched too. The
limits are those of the process: seconds of the processor, bytes of memory, size of a file.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture import ROOT

CPU_S = 60
WALL_S = 300
MEMORY_MIB = 512
"""That a process may need on top of what it is at its start; small inputs are all that it gets."""
ADDRESSES = 4 << 30
FILE_BYTES = 64 << 20

_PR_SET_CHILD_SUBREAPER = 36

_RUNS_CODE: tuple[str, ...] = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
)
_RUNS_CODE += ("pickle.find_class", "socket.connect", "socket.bind", "webbrowser.open")
_CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.rename": 2, "os.link": 2}
_CHANGES |= {"os.symlink": 2, "os.chmod": 1}
"""How many of an event's first arguments are paths that change."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended: exit code, or minus its signal; what it said; what it cost; what it must not do.

    peak_mib  of memory above that of its start; 0 where it is not known
    broke     audit events that no command has a use for
    """

    code: int
    stdout: str
    stderr: str
    cpu_s: float
    wall_s: float
    peak_mib: float
    broke: tuple[str, ...] = field(default=())


def forked(
    program: str, words: Sequence[str], folder: Path, then: Sequence[str] = (), **environment: str
) -> Process:
    """The command in a fork in `folder`; after 0 and 3 the words of `then`, which must give 0."""

    def work() -> int:
        code = _run(program, words)
        if then and code in (0, 3) and (found := _run(program, then)) != 0:
            print(f"then {' '.join(then)}: exit code {found}", file=sys.stderr)
            return 70
        return code

    return Process(work, folder, environment, is_fork=True)


def fresh(words: Sequence[str], folder: Path, **environment: str) -> Process:
    """`python -m words` in a process that begins anew, as people start it."""

    def work() -> int:
        os.execv(sys.executable, [sys.executable, "-m", *words])

    return Process(work, folder, {**environment, "PYTHONPATH": str(ROOT)}, is_fork=False)


class Process:
    """A command that runs: what is sent to it meets the command, not the way there."""

    def __init__(
        self, work: Callable[[], int], folder: Path, environment: Mapping[str, str], is_fork: bool
    ) -> None:
        # Beside the folder; two may run in one.
        notes = f"{folder.name}.{time.monotonic_ns()}"
        self._notes = [folder.with_name(f"{notes}.{name}") for name in ("stdout", "stderr", "broke")]
        self._is_fork, self._begun = is_fork, time.monotonic()
        sys.stdout.flush()
        waits, begins = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(environment)
            _child(work, folder, self._notes, begins, is_fork)
        os.close(begins)
        self._start_mib = float(os.read(waits, 64) or 0)  # waits; nothing comes of a child that is over
        os.close(waits)

    def has_ended(self, within_s: float) -> bool:
        """Whether it has ended, or does so within this time."""
        end = os.pidfd_open(self.pid)
        try:
            return bool(select.select([end], [], [], within_s)[0])
        finally:
            os.close(end)

    def send(self, number: signal.Signals) -> None:
        """A signal to it and to all that it started."""
        for kill in (os.killpg, os.kill):  # at first it has no group of its own
            with suppress(ProcessLookupError):
                kill(self.pid, number)

    def outcome(self) -> Outcome:
        """How it ended, which is waited for; it is killed when its time is up."""
        if not self.has_ended(WALL_S):
            self.send(signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)
        said = [path.read_text("utf-8", "replace") if path.is_file() else "" for path in self._notes]
        for path in self._notes:
            path.unlink(missing_ok=True)
        if not self._is_fork:
            _end_orphans()
        return Outcome(
            code=os.waitstatus_to_exitcode(status),
            stdout=said[0],
            stderr=said[1],
            cpu_s=used.ru_utime + used.ru_stime,
            wall_s=time.monotonic() - self._begun,
            peak_mib=max(0.0, used.ru_maxrss / 1024 - self._start_mib) if self._is_fork else 0.0,
            broke=tuple(said[2].splitlines()),
        )


def adopt_orphans() -> None:
    """Become the parent of what killed processes leave behind: torchrun's are in sessions of their own."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_orphans() -> None:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ChildProcessError):
            parent = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)
                os.waitpid(int(folder.name), 0)


def _run(program: str, words: Sequence[str]) -> int:
    """`python -m program words` in this process."""
    logging.getLogger().handlers.clear()
    sys.argv = [program, *words]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else bool(end.code)
    return 0


def _child(work: Callable[[], int], folder: Path, notes: Sequence[Path], begins: int, watched: bool) -> None:
    """Never returns; `begins` is told the MiB that it has when the work begins."""
    code = 70
    try:
        os.setpgid(0, 0)
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in notes]
        os.chdir(folder)
        for number, file in zip((0, 1, 2), (os.open(os.devnull, os.O_RDONLY), *files[:2]), strict=True):
            os.dup2(file, number)
        _limit()
        if watched:
            sys.addaudithook(_watch(folder, files[2]))
        os.write(begins, str(_rss_mib()).encode())
        os.close(begins)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _watch(folder: Path, notes: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that notes code that runs, and changes of files outside the folder."""
    inside = f"{os.path.realpath(folder)}{os.sep}"

    def note(what: str) -> None:
        os.write(notes, " ".join(what.split()).encode("utf-8", "backslashreplace")[:500] + b"\n")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _RUNS_CODE:
            note(f"{event} {arguments!r}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                outside(event, path)
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                outside(event, path)

    def outside(event: str, path: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # a number of a file that is open
        real = os.path.realpath(os.path.join(inside, os.fsdecode(path)))
        if not f"{real}{os.sep}".startswith(inside) and real != os.devnull:
            note(f"{event} {real}")

    return watch


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
