"""The machine that tries to break the kit: the same cases by seed, a contract that can fail, a short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from commands import python

from torture.archives import mutate_safetensors
from torture.bits import mutate_bits
from torture.bombs import zeros
from torture.cases import Case, draw, run
from torture.child import Outcome
from torture.contract import EARLIER, faults
from torture.inputs import import_everything
from torture.kinds import KINDS
from torture.scene import make_scene
from torture.texts import mutate_json

GOOD = Outcome(0, "", "", 0.1, 0.1, 10.0)
BAD_INPUT = replace(GOOD, code=1, stderr="WARNING: left out\nerror: a.json: expected a list, found none\n")
FILES = {"a.json": b"{}", "out.csv": EARLIER}


def found(outcome: Outcome, after: dict[str, bytes] = FILES, words: tuple[str, ...] = ("score",)) -> str:
    return "; ".join(faults(outcome, "sartorius_infer", words, ("out.csv", "o/"), FILES, after))


def test_what_keeps_the_contract_has_no_faults() -> None:
    assert found(GOOD, FILES | {"out.csv": b"new", "o/a.png": b"new"}) == ""
    assert found(BAD_INPUT) == ""
    assert found(replace(GOOD, code=1, stdout="2 problems\n"), words=("check",)) == ""


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (replace(GOOD, code=-9), "expected an exit code of 0 to 3, found -9"),
        (replace(GOOD, code=130), "expected an exit code of 0 to 3, found 130"),
        (replace(GOOD, cpu_s=1e3), "expected at most 60 s"),
        (replace(GOOD, peak_mib=1e3), "expected at most 512 MiB"),
        (replace(GOOD, broke=("os.system touch",)), "did what no command does: os.system touch"),
        (replace(GOOD, code=1), "expected one line of an error, found []"),
        (replace(BAD_INPUT, stderr=BAD_INPUT.stderr * 2), "expected one line of an error"),
        (replace(BAD_INPUT, stderr=BAD_INPUT.stderr + "more"), "expected one line of an error"),
        (replace(BAD_INPUT, code=0), "an error that is none"),
        (replace(BAD_INPUT, stderr="error: \x1b[2J\n"), "an error that no terminal takes"),
        (replace(GOOD, stderr="Traceback (most recent call last):\nKeyError: 'a'"), "a traceback: KeyError"),
        (replace(GOOD, stderr="libpng warning: odd\n"), "said 'libpng warning: odd'"),
    ],
)
def test_what_breaks_it_is_named(outcome: Outcome, fault: str) -> None:
    assert fault in found(outcome)


@pytest.mark.parametrize(
    ("outcome", "after", "fault"),
    [
        (GOOD, FILES | {"canary": b""}, "made canary"),
        (GOOD, FILES | {"a.json": b"1"}, "changed a.json"),
        (GOOD, {"out.csv": EARLIER}, "removed a.json"),
        (GOOD, FILES | {"o/.a.part": b""}, "left o/.a.part behind"),
        (BAD_INPUT, FILES | {"out.csv": b"half"}, "an earlier out.csv is gone"),
    ],
)
def test_files_that_break_it_are_named(outcome: Outcome, after: dict[str, bytes], fault: str) -> None:
    assert found(outcome, after) == fault


def test_a_seed_decides_every_mutation() -> None:
    for mutate, data in ((mutate_bits, bytes(500)), (mutate_json, b'[{"a": [1, 2]}, {"b": null}]')):
        made = [[mutate(data, Random(seed)) for seed in range(50)] for _ in range(2)]
        assert made[0] == made[1]
        assert len(set(made[0])) > 25


def test_a_header_s_length_stays_right_most_times() -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    made = [mutate_safetensors(data, Random(seed)) for seed in range(100)]
    assert sum(one[8 + int.from_bytes(one[:8], "little") :] == bytes(4) for one in made) > 30


def test_zeros_are_made_without_unpacking_them() -> None:
    import zlib

    assert zlib.decompress(zeros(3 << 20), -15) == bytes(3 << 20)


@pytest.mark.slow
def test_untouched_inputs_are_taken_by_every_command(tmp_path: Path) -> None:
    """Else a mutated one would prove little; and a case is the same whenever it is drawn."""
    import_everything()
    scene = make_scene(tmp_path / "scene")
    cases = [
        Case(name, 0, kind.files[0], (scene / kind.files[0]).read_bytes(), command, False, False)
        for name, kind in KINDS.items()
        for command in kind.commands
    ]
    for number, case in enumerate(cases):
        outcome, wrong = run(case, scene, tmp_path / f"case{number}")
        assert (outcome.code, wrong) == (0, []), (case.kind, case.words, outcome.stderr)
    for name in KINDS:
        assert draw(scene, name, 1, 2) == draw(scene, name, 1, 2) != draw(scene, name, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--seconds", "15"), ("--kills", "6", "--acts", "resumed", "import")])
def test_a_short_run(words: tuple[str, ...], tmp_path: Path) -> None:
    keep = () if "--kills" in words else ("--keep", tmp_path)
    done = python("torture", *words, *keep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | " in done.stdout
