from __future__ import annotations

import json
import shutil
import tracemalloc
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sartorius_infer.errors import JournalError
from sartorius_infer.run.journal import ABOUT, Journal, Result, journal_folder

ABOUT_A = {"weights": "12ab", "views": "identity,hflip"}

BATCHES: dict[int, list[Result]] = {
    0: [Result("a", ["a,1 2\n", "a,9 1\n"], {"shsy5y": 2}), Result("b", ["b,\n"])],
    3: [Result('ü "\n\udc80', ['"ü ""\n",\n'], {}, "ü.png: nothing\nto read")],
    1: [],
    2: [Result("no pieces", [], {"cort": 0})],
}


def recorded(folder: Path, batches: Mapping[int, Sequence[Result]] = BATCHES) -> Path:
    """A closed journal of some batches, in this order; returns its only part file."""
    with closing(Journal(folder, ABOUT_A)) as journal:
        for number, results in batches.items():
            journal.add(number, results)
    (part,) = folder.glob("*.part")
    return part


def in_order(batches: Mapping[int, Sequence[Result]]) -> list[Result]:
    return [result for number in sorted(batches) for result in batches[number]]


def test_it_lies_beside_the_output() -> None:
    assert journal_folder(Path("x/cells.csv")) == Path("x/cells.csv.journal")
    assert journal_folder(Path("cells")) == Path("cells.journal")


def test_what_was_added_is_there_now_and_when_reopened(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "j", ABOUT_A)
    assert journal.finished == frozenset()
    assert list(journal.results()) == []
    for number, results in BATCHES.items():
        journal.add(number, results)
        assert number in journal.finished
    assert list(journal.results()) == in_order(BATCHES)
    journal.close()
    again = Journal(tmp_path / "new" / "j", ABOUT_A)
    assert again.finished == frozenset(BATCHES)
    assert list(again.results()) == list(again.results()) == in_order(BATCHES)


def test_a_batch_is_there_without_closing(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, ABOUT_A)) as journal:
        journal.add(0, BATCHES[0])
        assert list(Journal(tmp_path, ABOUT_A).results()) == BATCHES[0]


def test_each_opening_writes_a_part_of_its_own_and_the_order_is_the_batches(tmp_path: Path) -> None:
    for number, results in BATCHES.items():
        with closing(Journal(tmp_path, ABOUT_A)) as journal:
            journal.add(number, results)
    assert len(list(tmp_path.glob("*.part"))) == len(BATCHES)
    assert list(Journal(tmp_path, ABOUT_A).results()) == in_order(BATCHES)


def test_one_that_adds_nothing_leaves_no_part(tmp_path: Path) -> None:
    Journal(tmp_path, ABOUT_A).close()
    assert [path.name for path in tmp_path.iterdir()] == [ABOUT]


def test_reread_takes_in_what_others_added(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, ABOUT_A)) as mine, closing(Journal(tmp_path, ABOUT_A)) as other:
        mine.add(0, BATCHES[0])
        other.add(3, BATCHES[3])
        assert mine.finished == {0}
        mine.reread()
        assert mine.finished == {0, 3}
        assert list(mine.results()) == BATCHES[0] + BATCHES[3]


def test_cut_at_every_byte_it_holds_the_whole_batches_before_the_cut(tmp_path: Path) -> None:
    """And the others can be added again."""
    part = recorded(tmp_path / "j")
    whole = part.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == len(BATCHES)
    for length in range(len(whole) + 1):
        part.write_bytes(whole[:length])
        kept = list(BATCHES)[: sum(end <= length for end in ends)]
        assert list(Journal(tmp_path / "j", ABOUT_A).results()) == in_order({n: BATCHES[n] for n in kept})
    part.write_bytes(whole[:-1])
    with closing(Journal(tmp_path / "j", ABOUT_A)) as journal:
        journal.add(2, BATCHES[2])
        assert list(journal.results()) == in_order(BATCHES)
    assert list(Journal(tmp_path / "j", ABOUT_A).results()) == in_order(BATCHES)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The file of a journal, to be damaged over and over, and what was in it."""
    part = recorded(tmp_path_factory.mktemp("damaged"))
    return part, part.read_bytes()


def lines_of(data: bytes) -> list[bytes]:
    """Not splitlines(), which also splits at other bytes than a newline."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3), st.binary(max_size=3)), max_size=5)


@given(edits=EDITS)
@example(edits=[(0, 0, b"00000000\n")])
@example(edits=[(0, 0, b"00000000 \n")])
@example(edits=[(0, 0, b"\n\n")])
def test_damage_loses_the_batches_it_touches_and_no_other(
    edits: list[tuple[int, int, bytes]], damaged: tuple[Path, bytes]
) -> None:
    """Each edit replaces some bytes at a place."""
    part, whole = damaged
    data = whole
    for place, length, new in edits:
        place %= len(data) + 1
        data = data[:place] + new + data[place + length :]
    part.write_bytes(data)
    journal = Journal(part.parent, ABOUT_A)
    lines = zip(BATCHES, lines_of(whole), strict=True)
    untouched = {number for number, line in lines if line in lines_of(data)}
    assert journal.finished == untouched
    assert list(journal.results()) == in_order({n: BATCHES[n] for n in untouched})


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_journal_hold_nothing(data: bytes, damaged: tuple[Path, bytes]) -> None:
    part, _ = damaged
    part.write_bytes(data)
    assert list(Journal(part.parent, ABOUT_A).results()) == []


@pytest.mark.parametrize(
    "content",
    [
        *("{", "3", "null", "[" * 20_000, '{"batch": 0}', '{"batch": 0, "results": {}}'),
        *('{"batch": "0", "results": []}', '{"batch": 0, "results": [{"id": "a"}]}'),
        '{"batch": 0, "results": [{"id": "a", "pieces": [{}], "cells": {}, "error": ""}]}',
        '{"batch": 0, "results": [{"id": "a", "pieces": [], "cells": {"a": "1"}, "error": ""}]}',
        '{"batch": 0, "results": [{"id": "a", "pieces": [], "cells": {}, "error": "", "b": 1}]}',
    ],
)
def test_a_line_of_a_right_checksum_that_no_run_writes_is_no_record(tmp_path: Path, content: str) -> None:
    part = recorded(tmp_path)
    line = b"%08x %b\n" % (zlib.crc32(content.encode()), content.encode())
    part.write_bytes(part.read_bytes() + line)
    assert list(Journal(tmp_path, ABOUT_A).results()) == in_order(BATCHES)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (ABOUT_A | {"views": "identity"}, "it differs in views;"),
        (ABOUT_A | {"weights": "", "views": ""}, "it differs in weights, views;"),
        (ABOUT_A | {"images": "5"}, "it differs in images;"),
        ({"views": ABOUT_A["views"]}, "it differs in weights;"),
        ({}, "it differs in weights, views;"),
    ],
)
def test_of_another_run_it_is_refused_by_the_names_that_differ(
    tmp_path: Path, other: dict[str, str], named: str
) -> None:
    folder = tmp_path / "s.csv.journal"
    recorded(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(JournalError) as caught:
        Journal(folder, other)
    assert str(caught.value).startswith(f"{folder}: expected the journal of this run, found ")
    assert named in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(Journal(folder, dict(reversed(ABOUT_A.items()))).results()) == in_order(BATCHES)


@pytest.mark.parametrize("text", ["", "{", "3", "null", '"weights"', "[]", "[1]", '{"a": 1}', "\xff"])
def test_a_damaged_about_is_another_run_but_can_be_salvaged(tmp_path: Path, text: str) -> None:
    recorded(tmp_path)
    (tmp_path / ABOUT).write_bytes(text.encode("latin-1"))
    with pytest.raises(JournalError, match=r"it differs in weights, views"):
        Journal(tmp_path, ABOUT_A)
    assert list(Journal.salvage(tmp_path)) == in_order(BATCHES)


def test_fresh_forgets_whatever_was_there(tmp_path: Path) -> None:
    recorded(tmp_path / "j")
    (tmp_path / "j" / "folder").mkdir()
    journal = Journal(tmp_path / "j", {"weights": "other"}, fresh=True)
    assert journal.finished == frozenset()
    assert [path.name for path in (tmp_path / "j").iterdir()] == [ABOUT]
    assert json.loads((tmp_path / "j" / ABOUT).read_text()) == {"weights": "other"}
    assert Journal(tmp_path / "none", ABOUT_A, fresh=True).finished == frozenset()


def test_batches_whose_about_is_gone_belong_to_nobody(tmp_path: Path) -> None:
    """Removing a folder may be killed after any of its files."""
    recorded(tmp_path)
    (tmp_path / ABOUT).unlink()
    assert list(Journal.salvage(tmp_path)) == []
    assert list(Journal(tmp_path, {"weights": "other"}).results()) == []
    assert list(Journal(tmp_path, {"weights": "other"}).results()) == []


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", ABOUT_A)
    journal.add(0, BATCHES[0])
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_salvage_needs_no_about_and_changes_nothing(tmp_path: Path) -> None:
    recorded(tmp_path / "j")
    before = sorted(tmp_path.rglob("*"))
    assert list(Journal.salvage(tmp_path / "j")) == in_order(BATCHES)
    assert list(Journal.salvage(tmp_path / "none")) == []
    assert list(Journal.salvage(tmp_path)) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_its_place_is_an_error_that_the_command_line_can_say(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("")
    with pytest.raises(OSError):
        Journal(tmp_path / "j", ABOUT_A)


def test_memory_is_that_of_one_batch(tmp_path: Path) -> None:
    """40 batches of 200 kB."""
    many = {n: [Result(f"{n}", [f"{n},{i} 1\n".ljust(100) for i in range(2000)])] for n in range(40)}
    recorded(tmp_path, many)
    del many
    tracemalloc.start()
    try:
        journal = Journal(tmp_path, ABOUT_A)
        assert sum(len(result.pieces) for result in journal.results()) == 80_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_million_batches_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As measured on two thousand, added and indexed."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    tracemalloc.start()
    try:
        journal = Journal(tmp_path / "j", ABOUT_A)
        for number in range(1000, 3000):
            journal.add(number, [])
        assert tracemalloc.get_traced_memory()[0] / 2000 < 500
        journal.close()
        shutil.copytree(tmp_path / "j", tmp_path / "k")
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        again = Journal(tmp_path / "k", ABOUT_A)
        assert len(again.finished) == 2000
        assert (tracemalloc.get_traced_memory()[0] - before) / 2000 < 500
    finally:
        tracemalloc.stop()
