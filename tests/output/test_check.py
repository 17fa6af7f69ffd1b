from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.output.check import Problem, check_submission
from sartorius_infer.types import Bool

# How long an example takes is up to the disk, which each one syncs.
slow_disk = settings(deadline=None)
SIZES = {"a": (3, 4), "b": (3, 4), "c": (2, 2)}


def written(folder: Path, *rows: str, header: str = "id,predicted") -> Path:
    """A submission of these lines."""
    path = folder / "written.csv"
    path.write_text("".join(line + "\n" for line in (header, *rows)), newline="")
    return path


def problems(path: Path) -> list[tuple[int, str, str]]:
    """What the check finds against SIZES, with all its ids in the sample."""
    return [(p.line, p.id, p.message) for p in check_submission(path, SIZES, list(SIZES))]


FOUND: dict[str, tuple[list[str], list[tuple[int, str, str]]]] = {
    "nothing": (["a,1 2", "a,3 1 5 2", "b,", "c,1 4"], []),
    "unknown id": (
        ["a,", "b,", "c,", "d,1 1", "d,2 1"],
        [(5, "d", "unknown id: not in the sample submission or the images")],
    ),
    "missing ids": (
        ["b,1 1"],
        [
            (0, "a", "missing id: in the sample submission and the images, without a row"),
            (0, "c", "missing id: in the sample submission and the images, without a row"),
        ],
    ),
    "out of order": (
        ["c,", "a,", "b,"],
        [
            (3, "a", "out of order: belongs before 'c', line 2"),
            (4, "b", "out of order: belongs before 'c', line 2"),
        ],
    ),
    "apart": (
        ["a,1 1", "a,2 1", "b,1 1", "a,3 1", "b,3 1", "c,"],
        [
            (5, "a", "apart from its image's rows, which end at line 3"),
            (6, "b", "apart from its image's rows, which end at line 4"),
        ],
    ),
    "empty id": (
        ["a,1 1", ",1 1", "a,2 1", "", "b,", "c,"],
        [(3, "", "empty id"), (5, "", "empty id")],
    ),
    "malformed": (
        ["a,x 1", "a,1 2 3", "a,3 1 2 1", "b,0 2 3 0", "c,1 2 2 2"],
        [
            (2, "a", "expected integers of at most 18 digits, found 'x'"),
            (3, "a", "expected start length pairs, found an odd number of values (3)"),
            (4, "a", "pair 2 (2 1): the start is before the previous pair's"),
            (5, "b", "pair 1 (0 2): the start is below 1; pair 2 (3 0): the length is below 1"),
            (6, "c", "pair 2 (2 2): the start is inside the previous pair"),
        ],
    ),
    "out of bounds": (
        ["a,12 1", "b,12 2", "c,1 5"],
        [
            (3, "b", "pair 1 (12 2): it ends past pixel 12, the last of 3 x 4"),
            (4, "c", "pair 1 (1 5): it ends past pixel 4, the last of 2 x 2"),
        ],
    ),
    "shared pixels": (
        ["a,1 4", "a,4 2", "a,7 2", "a,2 6", "b,", "c,"],
        [
            (3, "a", "shares 1 pixel(s) with line 2"),
            (5, "a", "shares 3 pixel(s) with line 2"),
            (5, "a", "shares 2 pixel(s) with line 3"),
            (5, "a", "shares 1 pixel(s) with line 4"),
        ],
    ),
    "the same pixels in two images": (["a,1 4", "b,1 4", "c,1 4"], []),
    "repeated rows": (
        ["a,1 4", "a,1 4", "a,1 4", "b,x", "b,x", "c,"],
        [
            (3, "a", "same mask as line 2"),
            (4, "a", "same mask as line 2"),
            (5, "b", "expected integers of at most 18 digits, found 'x'"),
            (6, "b", "same mask as line 5"),
        ],
    ),
    "blank beside masks": (
        ["a,", "a,1 1", "a, ", "b,", "c,"],
        [(2, "a", "blank, although line 3 has a mask"), (4, "a", "blank, although line 3 has a mask")],
    ),
    "several blanks": (
        ["a,", "a,", "a, ", "b,", "c,"],
        [(3, "a", "blank, as line 2 is already"), (4, "a", "blank, as line 2 is already")],
    ),
    "placeholders": (
        ["a,0 1", "b,0 0", "c,1 0"],
        [
            (2, "a", "'0 1' is no mask: an image without cells is left empty"),
            (3, "b", "'0 0' is no mask: an image without cells is left empty"),
            (4, "c", "'1 0' is no mask: an image without cells is left empty"),
        ],
    ),
}


@pytest.mark.parametrize(("rows", "expected"), FOUND.values(), ids=FOUND)
def test_the_check_finds(tmp_path: Path, rows: list[str], expected: list[tuple[int, str, str]]) -> None:
    assert problems(written(tmp_path, *rows)) == expected


def test_several_kinds_are_found_at_once_by_line(tmp_path: Path) -> None:
    path = written(tmp_path, "d,", "c,9 1", "a,1 3", "a,3 1", "c,")
    assert [(line, message.split(":")[0]) for line, _, message in problems(path)] == [
        (0, "missing id"),
        (2, "unknown id"),
        (3, "pair 1 (9 1)"),
        (4, "out of order"),
        (5, "shares 1 pixel(s) with line 4"),
        (6, "apart from its image's rows, which end at line 3"),
        (6, "blank, although line 3 has a mask"),
    ]


def test_without_sizes_or_sample_only_the_rows_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, "z,366080 1", "y,366080 2", "a,")
    message = "pair 1 (366080 2): it ends past pixel 366080, the last of 520 x 704"
    assert check_submission(path) == [Problem(3, "y", message)]


def test_sizes_alone_ask_for_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, "b,13 1", "a,", "d,13 1")
    assert check_submission(path, {"a": (3, 4), "c": (3, 4), "b": (3, 4)}) == [
        Problem(0, "c", "missing id: in the images, without a row"),
        Problem(2, "b", "pair 1 (13 1): it ends past pixel 12, the last of 3 x 4"),
        Problem(3, "a", "out of order: belongs before 'b', line 2"),
        Problem(4, "d", "unknown id: not in the images"),
    ]


def test_ids_are_the_same_however_letters_are_composed(tmp_path: Path) -> None:
    composed, decomposed = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
    for one, other in ((composed, decomposed), (decomposed, composed)):
        path = written(tmp_path, "z,", f"{one},1 9", "a_b,")
        assert check_submission(path, {"z": (2, 3), other: (2, 3), "a_b": (2, 3)}) == check_submission(
            path, {"z": (2, 3), one: (2, 3), "a_b": (2, 3)}, ("z", other, "a/b")
        )
        (problem,) = check_submission(path, {"z": (2, 3), other: (2, 3), "a_b": (2, 3)})
        assert (problem.line, problem.id) == (3, one)


def test_a_sample_alone_asks_for_its_own_order(tmp_path: Path) -> None:
    path = written(tmp_path, "b,13 1", "a,", "c,")
    assert check_submission(path, sample_ids=["b", "a", "d", "b"]) == [
        Problem(0, "d", "missing id: in the sample submission, without a row"),
        Problem(4, "c", "unknown id: not in the sample submission"),
    ]


@slow_disk
@given(masks=st.lists(arrays(np.bool_, (3, 4)).filter(np.any), max_size=5))
def test_overlaps_are_those_of_each_two_masks(
    tmp_path_factory: pytest.TempPathFactory, masks: list[Bool]
) -> None:
    distinct = list({mask.tobytes(): mask for mask in masks}.values())
    rows = ["a," + encode_label_map(mask.astype(np.int32), 1)[0] for mask in distinct]
    path = written(tmp_path_factory.mktemp("in"), *rows)
    expected = []
    for (i, first), (j, second) in combinations(enumerate(distinct, start=2), 2):
        if pixels := int((first & second).sum()):
            expected.append(Problem(j, "a", f"shares {pixels} pixel(s) with line {i}"))
    found = check_submission(path, {"a": (3, 4)}) if rows else []
    assert sorted(found, key=repr) == sorted(expected, key=repr)
