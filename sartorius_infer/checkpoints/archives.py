"""What torch.save wrote, in its two forms: a zip archive, and before torch 1.6 one pickle after another.

Only the pickle is read at once. The bytes of a storage stay in the file until a tensor of it is wanted,
so that an optimizer's state, twice the weights, costs nothing.
"""

from __future__ import annotations

import mmap
import pickle
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from sartorius_infer.checkpoints.pickles import Makers, Stream, run
from sartorius_infer.checkpoints.stand_ins import MAKERS, Storage, storage_dtype
from sartorius_infer.files import unpacks_to_much
from sartorius_infer.types import UInt8

MAGIC = 0x1950A86A20F9469CFC6C
"""What torch's older form begins with, pickled."""


def read_archive(path: Path) -> Any:
    """What a zip archive of torch.save holds, with `StoredTensor`s for tensors.

    Raises zipfile.BadZipFile, pickle.UnpicklingError and ValueError.
    """
    content = _mapped(path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
    root = next(name for name in records if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")

    def record(name: str) -> UInt8:
        return _record(content, records[root + name])

    if root + "constants.pkl" in records:
        raise pickle.UnpicklingError("a TorchScript archive")
    if root + "byteorder" in records and bytes(record("byteorder")) != b"little":
        raise ValueError("expected the byte order little, found another")

    def storage(pid: Any) -> Any:
        if not _is_storage(pid, 5) or root + f"data/{pid[2]}" not in records:
            raise pickle.UnpicklingError("a reference to no record")
        return Storage(storage_dtype(pid[1]), lambda: record(f"data/{pid[2]}"))

    return run(BytesIO(bytes(record("data.pkl"))), MAKERS, storage)


def read_older(path: Path) -> Any:
    """What torch.save wrote before torch 1.6, or writes with `_use_new_zipfile_serialization=False`.

    Raises pickle.UnpicklingError and ValueError.
    """
    return _older(_stream(path), _mapped(path))


def read_plain(path: Path) -> Any:
    """What a pickle of `pickle.dump` holds; raises pickle.UnpicklingError and ValueError.

    Of the later protocols torch's older form begins like one.
    """
    held = run(_stream(path), PLAIN)
    return read_older(path) if held == MAGIC else held


def _stream(path: Path) -> mmap.mmap:
    """A file's bytes to read from; lengths past its end ask for no memory."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _mapped(path: Path) -> UInt8:
    return np.frombuffer(_stream(path), np.uint8)


def _record(content: UInt8, info: zipfile.ZipInfo) -> UInt8:
    """The bytes of a zip archive's record; its checksum is not looked at, since torch may leave it out."""
    header = bytes(content[info.header_offset : info.header_offset + 30])
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise ValueError("expected the header of a record, found other bytes")
    start = info.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    raw = content[start : start + info.compress_size]
    if info.compress_type == zipfile.ZIP_DEFLATED and not unpacks_to_much(info, len(raw)):
        raw = np.frombuffer(zlib.decompressobj(-15).decompress(bytes(raw), info.file_size), np.uint8)
    elif info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("expected records as torch.save stores them, found compressed ones")
    if len(raw) != info.file_size:
        raise ValueError(f"expected a record of {info.file_size} bytes, found {len(raw)}")
    return raw


def _is_storage(pid: Any, least: int) -> bool:
    """Whether an id is ("storage", class, key, location, count, ...)."""
    return (
        isinstance(pid, tuple)
        and len(pid) >= least
        and pid[0] in ("storage", b"storage")
        and isinstance(pid[2], str)
    )


def _older(stream: Stream, content: UInt8) -> Any:
    """Numbers that mark the form, the object, the keys of its storages, then those one by one."""
    storages: dict[str, Storage] = {}

    def storage(pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]  # a class with its source
        if not _is_storage(pid, 5):
            raise pickle.UnpicklingError("a reference to no storage")
        found = storages.setdefault(pid[2], Storage(storage_dtype(pid[1]), _nothing))
        view = pid[5] if len(pid) > 5 else None
        if view is None:
            return found
        start = view[1] if isinstance(view, tuple) and len(view) == 3 else None
        if type(start) is not int:
            raise pickle.UnpicklingError("a view of no known form")
        return Storage(found.dtype, lambda: found.content(), start)

    for _ in ("magic number", "version", "system"):
        run(stream, MAKERS)
    held = run(stream, MAKERS, storage)
    keys = run(stream, MAKERS)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("expected a list of storages, found another")
    for key in keys:
        _place(stream, content, storages[key])
    return held


def _nothing() -> UInt8:
    return np.zeros(0, np.uint8)


def _place(stream: Stream, content: UInt8, storage: Storage) -> None:
    """Note where a storage's bytes lie: its count of elements, then the elements."""
    if storage.dtype is None:
        raise ValueError("expected storages of plain numbers, found others")
    number = stream.read(8)
    count = int.from_bytes(number, "little", signed=True) if len(number) == 8 else -1
    start, size = stream.tell(), count * storage.dtype.itemsize  # type: ignore[attr-defined]
    if count < 0 or start + size > len(content):
        raise ValueError(f"expected {size} bytes of a storage, found the end of the file")
    storage.content = lambda: content[start : start + size]
    stream.seek(start + size)  # type: ignore[attr-defined]


def _storage_of_bytes(content: object = b"") -> Any:
    """`torch.storage._load_from_bytes`: a storage inside a plain pickle, as a file of its own."""
    try:
        raw = content if isinstance(content, (bytes, bytearray)) else b""
        held = _older(BytesIO(raw), np.frombuffer(raw, np.uint8))
    except (ValueError, LookupError, TypeError):
        held = None
    if not isinstance(held, Storage):  # torch also reads classes, for one
        raise pickle.UnpicklingError("GLOBAL torch.storage._load_from_bytes of other things")
    return held


PLAIN: Makers = {**MAKERS, "torch.storage._load_from_bytes": _storage_of_bytes}
"""What stands for calls in a pickle that torch.save did not write."""
