from __future__ import annotations

import errno
import os
import stat
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartorius_infer.files import as_id, atomic_file, json_text, printable, visible


def names(folder: Path) -> list[str]:
    """What the folder holds, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def test_text_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with atomic_file(path, "w") as file:
        file.write("µ\r\n1\n")
        assert not path.exists()
    assert path.read_bytes() == "µ\r\n1\n".encode()
    assert names(tmp_path) == ["out.csv"]


def test_bytes_replace_an_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    path.write_bytes(b"a much longer earlier file")
    with atomic_file(path, "wb") as file:
        file.write(b"\x00\n\xff")
    assert path.read_bytes() == b"\x00\n\xff"


def write_half(path: Path, error: BaseException) -> None:
    with atomic_file(path, "w") as file:
        file.write("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), OSError("not ours")])
def test_an_exception_leaves_the_earlier_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.csv"
    path.write_text("earlier")
    with pytest.raises(type(error)) as raised:
        write_half(path, error)
    assert raised.value is error
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["out.csv"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "out.csv", "w"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o640


def test_an_unwritable_place_fails_on_entry(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = {
        "": IsADirectoryError,
        "absent/out.csv": FileNotFoundError,
        "file/out.csv": NotADirectoryError,
    }
    for place, error in places.items():
        with pytest.raises(error):
            atomic_file(tmp_path / place, "w").__enter__()
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_fails_on_entry(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        atomic_file(tmp_path / "out.csv", "w").__enter__()


def test_the_longest_name_is_writable(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    with atomic_file(path, "w"):
        pass
    assert path.exists()


def test_two_writers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with atomic_file(path, "w") as first:
        with atomic_file(path, "w") as second:
            second.write("second")
        first.write("first")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "out.csv")
    for text in ("first", "second"):
        with atomic_file(tmp_path / "link.csv", "w") as file:
            file.write(text)
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "real" / "out.csv").read_text() == text


def test_a_pipe_is_written_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with atomic_file(pipe, "w") as file:
            file.write("rows")
        assert os.read(reader, 10) == b"rows"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_device_is_an_error_and_stays_a_device() -> None:
    with (
        pytest.raises(OSError, match="No space left") as raised,
        atomic_file(Path("/dev/full"), "w") as file,
    ):
        file.write("rows")
    assert raised.value.errno == errno.ENOSPC
    assert Path("/dev/full").is_char_device()


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(ANY_TEXT)
def test_ids_can_be_written_anywhere_and_stay_as_they_are(name: str) -> None:
    found = as_id(name)
    found.encode("utf-8")
    assert "/" not in found
    assert as_id(found) == found


@given(st.text())
def test_ids_are_equal_however_letters_are_composed(name: str) -> None:
    assert len({as_id(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")}) == 1


def test_ids() -> None:
    assert as_id("a b.c") == "a b.c"
    assert as_id("a/b/c") == "a_b_c"
    assert as_id("e\N{COMBINING ACUTE ACCENT}") == "\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert as_id(os.fsdecode(b"caf\xe9")) == printable(Path(os.fsdecode(b"caf\xe9"))) == r"caf\udce9"
    assert as_id("") == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes('["µ"]'.encode(encoding))
    assert json_text(tmp_path / "a.json") == '["µ"]'


def test_what_is_hidden_is_not_visible(tmp_path: Path) -> None:
    for name in ("b", ".a", "._b", "a"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path)] == ["a", "b"]
