"""Paths as people give them, JSON as others write it, files that appear whole or not at all, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal, TextIO, TypeVar, overload
from zipfile import ZipInfo

Paths = str | Path | Sequence[str | Path]
"""One path or several."""

K = TypeVar("K", bound=Hashable)
_MOST_SHRUNK = 100
_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,18})(\.0*)?\s*")


def as_path(value: str | Path, what: str) -> Path:
    """A path of a `str` or `Path`; raises TypeError that says what `what` was expected to be."""
    if not isinstance(value, str | Path):
        raise TypeError(f"{what}: expected a path (str or Path), found {type(value).__name__}")
    return Path(value)


def as_paths(value: Paths | None, what: str) -> list[Path]:
    """The paths of one path, several, or None; raises TypeError as `as_path` does."""
    if value is None:
        return []
    if isinstance(value, str | Path):
        return [Path(value)]
    if not isinstance(value, Sequence):
        raise TypeError(
            f"{what}: expected a path (str or Path) or a list of them, found {type(value).__name__}"
        )
    return [as_path(each, what) for each in value]


def as_id(name: str) -> str:
    """The id of an image that is called `name` somewhere: in a folder, a table, an annotation.

    Ids that mean the same image are equal here, whoever wrote them: letters with accents are composed
    (Unicode's NFC; macOS decomposes them in file names), and `/` is `_`, since outputs are files and rows
    that are called after ids. Bytes of a file name that are not UTF-8 are spelled out, as in "\\udce9".
    """
    return unicodedata.normalize("NFC", printable(name)).replace("/", "_")


def distinct_ids(paths: Mapping[K, PurePath]) -> dict[K, str]:
    """The ids of several images: their stems; where stems are equal, their paths without suffix."""
    stems = {key: as_id(path.stem) for key, path in paths.items()}
    counts = Counter(stems.values())
    return {
        key: stems[key] if counts[stems[key]] == 1 else as_id(str(path.parent / path.stem))
        for key, path in paths.items()
    }


def printable(text: object) -> str:
    """Text that any file or terminal takes: what is not Unicode in a path is spelled out."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def json_text(path: Path) -> str:
    """The text of a JSON file in any Unicode encoding, without its byte order mark.

    Raises OSError and UnicodeDecodeError.
    """
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data))


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden entries such as `._a.tif` and `.ipynb_checkpoints`."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def whole(value: object) -> int | None:
    """The whole number that JSON or CSV tells: 7, 7.0, "7" or "7.0"; None for anything else."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value)
        return int(found[1]) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 and abs(value) < 2**63 else None


@overload
def atomic_file(path: Path, mode: Literal["w"]) -> AbstractContextManager[TextIO]: ...
@overload
def atomic_file(path: Path, mode: Literal["wb"]) -> AbstractContextManager[BinaryIO]: ...
@contextmanager
def atomic_file(path: Path, mode: Literal["w", "wb"]) -> Iterator[Any]:
    """A file open for writing that takes the place of `path` once the block ends well.

    It is written beside `path` under a hidden name; if the block raises, it is removed and what
    was at `path` stays. Text is UTF-8 with newlines as given. A link is followed. A device or a
    pipe, having nothing to replace, is written directly. Raises OSError, on entry if the folder
    cannot be written or `path` is a folder.
    """
    if path.exists() and not path.is_file():
        with _open(path, mode) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    # Not named after the process: containers reuse small ids, and a killed run leaves its file behind.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    # Exclusive creation by opening rather than mkstemp(), which ignores the umask and gives 0600.
    file = _open(temporary, mode.replace("w", "x"))
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        temporary.replace(target)
    except BaseException:
        # On a full disk closing flushes, and fails, again.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            temporary.unlink()
        raise


def _open(path: Path, mode: str) -> Any:
    """`path` opened in `mode`; text is UTF-8, newlines untouched."""
    return path.open(mode) if "b" in mode else path.open(mode, encoding="utf-8", newline="")


def unpacks_to_much(entry: ZipInfo, held: int) -> bool:
    """Whether an entry of a zip of `held` bytes would unpack to more than a hundred times what it is there.

    Weights and arrays hardly shrink at all, JSON some ten times.
    """
    return entry.file_size > _MOST_SHRUNK * (min(entry.compress_size, held) + 100)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
