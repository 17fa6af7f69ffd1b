"""What must hold of a command whatever it is given: exit codes, words, files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torture.child import CPU_S, MEMORY_MIB, Outcome

EARLIER = b"earlier\n"
"""What lies where an output will be."""

_KNOWN = re.compile(
    r"WARNING: |error: |usage: |then |interrupted|.*: error: |  |precision |rules   |overlaps  |truth  |"
    r"assumed|[ \w]+: *\d+%\|| *\d+%\||\|  |[\w./-]+: .*(told|assumed)|$"
)
"""How a line on stderr may begin."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path; of a link what it leads to counts as its content."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def faults(
    outcome: Outcome,
    program: str,
    words: Sequence[str],
    writes: Sequence[str],
    before: Mapping[str, bytes],
    after: Mapping[str, bytes],
) -> list[str]:
    """What of the contract does not hold, each in a line."""
    found = [f"did what no command does: {what}" for what in outcome.broke]
    found += _of_code(outcome)
    found += _of_words(outcome, program, is_check="check" in words[:1])
    found += _of_files(outcome, writes, before, after)
    return found


def _of_code(outcome: Outcome) -> list[str]:
    found = []
    if outcome.code not in (0, 1, 2, 3):
        found.append(f"expected an exit code of 0 to 3, found {outcome.code}")
    if outcome.cpu_s > CPU_S:
        found.append(f"expected at most {CPU_S} s, found {outcome.cpu_s:.0f}")
    if outcome.peak_mib > MEMORY_MIB:
        found.append(f"expected at most {MEMORY_MIB} MiB, found {outcome.peak_mib:.0f}")
    return found


def _of_words(outcome: Outcome, program: str, is_check: bool) -> list[str]:
    lines = [line for part in outcome.stderr.split("\n") if (line := part.rpartition("\r")[2])]
    found = [f"said {line[:200]!r}" for line in lines if program != "training" and not _KNOWN.match(line)]
    if "Traceback" in outcome.stderr:
        found.append(f"a traceback: {lines[-1][:300] if lines else ''}")
    errors = [line for line in lines if re.match(r"error: |.*: error: ", line)]
    last = lines[-1] if lines else ""
    if outcome.code in (0, 3) and errors:
        found.append(f"an error that is none: {errors[0][:200]}")
    if outcome.code == 1 and is_check and not errors:
        if not outcome.stdout.strip():
            found.append("problems that are not said")
    elif outcome.code in (1, 2) and program != "training" and errors != [last]:
        found.append(f"expected one line of an error, found {lines[-3:]}"[:600])
    if outcome.code == 1 and program == "training" and len(lines) != 1:
        found.append(f"expected one line of an error, found {lines[-3:]}"[:600])
    if len(last) > 2000:
        found.append(f"an error of {len(last)} characters: {last[:100]}")
    if any(not char.isprintable() for char in last):
        found.append(f"an error that no terminal takes: {last[:200]!r}")
    return found


def _of_files(
    outcome: Outcome, writes: Sequence[str], before: Mapping[str, bytes], after: Mapping[str, bytes]
) -> list[str]:
    def is_output(path: str) -> bool:
        return any(path == name or (name.endswith("/") and path.startswith(name)) for name in writes)

    found = []
    for path in sorted({*before, *after}):
        if not is_output(path) and before.get(path) != after.get(path):
            what = "made" if path not in before else "removed" if path not in after else "changed"
            found.append(f"{what} {path}")
        if is_output(path) and outcome.code in (1, 2) and before.get(path) == EARLIER != after.get(path):
            found.append(f"an earlier {path} is gone")
        if is_output(path) and "/." in f"/{path}":
            found.append(f"left {path} behind")
    return found
