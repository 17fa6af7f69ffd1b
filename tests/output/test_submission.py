from __future__ import annotations

from pathlib import Path

import pytest

from sartorius_infer.errors import SubmissionError
from sartorius_infer.output.check import check_submission
from sartorius_infer.output.submission import Row, read_sample_submission, read_submission


def written(folder: Path, *rows: str, header: str = "id,predicted") -> Path:
    """A submission of these lines."""
    path = folder / "written.csv"
    path.write_text("".join(line + "\n" for line in (header, *rows)), newline="")
    return path


def test_sample_ids_keep_order_and_spelling(tmp_path: Path) -> None:
    rows = ["b,1 1", "001,", "b,", "1e5,", "NA,", '"a,""1""",', ",", "", "None,x"]
    expected = ("b", "001", "1e5", "NA", 'a,"1"', "None")
    assert read_sample_submission(written(tmp_path, *rows)) == expected
    assert read_sample_submission(written(tmp_path, "001", "002", header="id")) == ("001", "002")
    assert read_sample_submission(written(tmp_path)) == ()


def test_a_byte_order_mark_and_foreign_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(b"\xef\xbb\xbfid,predicted\r\n001,1 2\r\nb,\r\n")
    assert read_sample_submission(path) == ("001", "b")
    assert read_submission(path) == [Row(2, "001", "1 2"), Row(3, "b", "")]


UNREADABLE = {
    b"": "expected a CSV file with a header, found nothing",
    b"id,predicted\n\xff,\n": "expected UTF-8 text, found byte 0xff at 13",
    b"ID,predicted\n": "expected {}, found 'ID', 'predicted'",
    b"\nid,predicted\n": "expected {}, found an empty header",
    b"id,predicted\na,1 2,3\n": "expected 2 fields in line 2, found more",
}


@pytest.mark.parametrize(("content", "reason"), UNREADABLE.items(), ids=range(len(UNREADABLE)))
def test_an_unreadable_file_is_an_error(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    columns = {read_sample_submission: "a column 'id'", read_submission: "the columns 'id', 'predicted'"}
    for read, column in columns.items():
        with pytest.raises(SubmissionError) as raised:
            read(path)
        assert str(raised.value) == f"{path}: {reason.format(column)}"


@pytest.mark.parametrize("rows", [["a,1 1", "b,1,2"], ['"a,1 1']])
def test_a_broken_table_is_an_error(tmp_path: Path, rows: list[str]) -> None:
    path = written(tmp_path, *rows)
    for read in (read_sample_submission, read_submission, check_submission):
        with pytest.raises(SubmissionError) as raised:
            read(path)
        assert str(raised.value).startswith(f"{path}: expected a CSV file, found: ")


def test_an_absent_file_is_an_error(tmp_path: Path) -> None:
    places = {tmp_path: "Is a directory", tmp_path / "absent.csv": "No such file or directory"}
    for path, reason in places.items():
        for read in (read_sample_submission, read_submission, check_submission):
            with pytest.raises(SubmissionError) as raised:
                read(path)
            assert str(raised.value) == f"{path}: expected a CSV file, found none to read: {reason}"


@pytest.mark.parametrize("header", ["predicted,id", "id", "id,predicted,more", "id,id"])
def test_a_submission_has_exactly_its_columns(tmp_path: Path, header: str) -> None:
    with pytest.raises(SubmissionError, match="expected the columns 'id', 'predicted', found '"):
        read_submission(written(tmp_path, header=header))


def test_lines_are_counted_across_quoted_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path, '"a\nb\r\n",', "c,", "", "d", 'e,"1\r2"', "f,")
    assert [(row.line, row.id) for row in read_submission(path)] == [
        (2, "a\nb\r\n"),
        (5, "c"),
        (6, ""),
        (7, "d"),
        (8, "e"),
        (10, "f"),
    ]
