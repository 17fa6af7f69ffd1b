"""What torch.save wrote, in both forms: tensors are what torch reads, and sizes that lie are refused."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.errors import CheckpointError

FORMS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "older": {"_use_new_zipfile_serialization": False},
    "older, protocol 5": {"_use_new_zipfile_serialization": False, "pickle_protocol": 5},
}


def written(folder: Path, content: Any, form: str = "zip") -> Path:
    path = folder / "a.pth"
    torch.save(content, path, **FORMS[form])
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 500
    return said.removeprefix(f"{path}: ")


UNTYPED = (torch.uint16, torch.float8_e4m3fn)
"""What torch cannot write in its older form."""


def tensors() -> dict[str, Tensor]:
    """Every dtype that torch writes plainly, and every way to lie in a storage."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    kinds = (
        *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn),
    )
    one = torch.ones(1)
    return {
        **{str(kind).removeprefix("torch."): base.to(kind) for kind in kinds},
        "whole": base,
        "part": base[1:, 1:, ::2],
        "turned": base.permute(2, 0, 1),
        "last": base.to(memory_format=torch.contiguous_format)
        .unsqueeze(0)
        .to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 3),
        "none of many": base[:0],
        "repeated": one.expand(5, 7),
        "parameter": nn.Parameter(base.clone()),
    }


@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_what_torch_reads(tmp_path: Path, form: str) -> None:
    own = {k: t for k, t in tensors().items() if "older" not in form or t.dtype not in UNTYPED}
    path = written(tmp_path, {"w": own, "model": own}, form)
    theirs = torch.load(path, weights_only=True)["model"] if "protocol" not in form else own
    state = read_checkpoint(path).state
    assert state.keys() == theirs.keys()
    for key, tensor in theirs.items():
        mine = state[key]
        assert (mine.dtype, mine.shape, type(mine)) == (tensor.dtype, tensor.shape, Tensor), key
        assert not mine.requires_grad
        width = torch.uint8 if tensor.dtype == torch.float8_e4m3fn else tensor.dtype
        assert torch.equal(mine.view(width), tensor.detach().contiguous().view(width)), key


@pytest.mark.parametrize("form", FORMS)
def test_tensors_with_attributes(tmp_path: Path, form: str) -> None:
    tensor, parameter = torch.ones(2), nn.Parameter(torch.ones(3))
    tensor.note, parameter.rank = {"a": 1}, 4  # type: ignore[attr-defined]
    state = read_checkpoint(written(tmp_path, {"t": tensor, "p": parameter}, form)).state
    assert {key: t.tolist() for key, t in state.items()} == {"t": [1, 1], "p": [1, 1, 1]}


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_owns_its_memory(tmp_path: Path, form: str) -> None:
    one = torch.zeros(3)
    path = written(tmp_path, {"a": one, "b": one, "c": one[1:]}, form)
    before = path.read_bytes()
    state = read_checkpoint(path).state
    state["a"].fill_(7)
    assert not state["b"].any()
    assert not state["c"].any()
    assert path.read_bytes() == before


def test_what_is_no_plain_tensor_is_left_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    odd = {
        "quantized": quantized,
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "size": torch.Size([2]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "w": torch.ones(2),
    }
    assert read_checkpoint(written(tmp_path, odd)).state.keys() == {"w"}


# Archives that were packed by others.


def repacked(path: Path, change: Callable[[str, bytes], bytes] = lambda name, raw: raw, **how: Any) -> Path:
    """The archive once more, its records changed, under `how` of ZipFile."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, raw in records.items():
            archive.writestr(name, change(name, raw))
    return path


def test_an_archive_that_was_packed_again(tmp_path: Path) -> None:
    state = {"w": torch.randn(50), "v": torch.ones(3, 3)}
    for how in ({}, {"compression": zipfile.ZIP_DEFLATED}):
        read = read_checkpoint(repacked(written(tmp_path, state), **how)).state
        assert all(torch.equal(read[key], state[key]) for key in state)
    path = repacked(written(tmp_path, state), compression=zipfile.ZIP_BZIP2)
    assert refused(path).endswith("found compressed ones)")


def test_records_that_unpack_without_end_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"w": torch.zeros(10_000_000)})
    assert "found compressed ones" in refused(repacked(path, compression=zipfile.ZIP_DEFLATED))


def test_another_byte_order(tmp_path: Path) -> None:
    path = repacked(
        written(tmp_path, {"w": torch.ones(2)}), lambda name, raw: b"big" if "byteorder" in name else raw
    )
    assert "byte order little" in refused(path)


def test_without_checksums(tmp_path: Path) -> None:
    """Torch may leave them out, and never looks at them."""
    path = written(tmp_path, {"w": torch.tensor([1.0, 2.0])})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        checksums = {struct.pack("<I", info.CRC) for info in archive.infolist() if info.CRC}
    for checksum in checksums:
        content = content.replace(checksum, b"\0\0\0\0")
    path.write_bytes(content)
    assert read_checkpoint(path).state["w"].tolist() == [1, 2]


@pytest.mark.parametrize("by", [0, 1, 4, 11])
def test_a_record_of_another_size(tmp_path: Path, by: int) -> None:
    path = repacked(
        written(tmp_path, {"w": torch.ones(3)}), lambda name, raw: raw[:by] if "/data/" in name else raw
    )
    assert refused(path).startswith(f"w: expected a tensor of (3,), found a storage of {by // 4} ")


def test_a_record_that_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, {"w": torch.ones(3)})
    with zipfile.ZipFile(path) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist() if "/data/" not in i.filename}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in records.items():
            archive.writestr(name, raw)
    assert "reference to no record" in refused(path)


# Ids that are no storages.

PIDS: list[Any] = [
    (),
    ("storage",),
    ("module", 1, 2, 3, 4),
    ("storage", torch.FloatStorage, 0, "cpu", 3),
    ("storage", torch.FloatStorage, "../data.pkl", "cpu", 3),
    ("storage", torch.FloatStorage, "9", "cpu", 3),
    3,
    None,
    "storage",
    ["storage"],
]


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, _Outside) else None


class _Outside:
    def __init__(self, pid: Any) -> None:
        self.pid = pid


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


@pytest.mark.parametrize("pid", PIDS, ids=range(len(PIDS)))
def test_ids_of_no_storage(tmp_path: Path, pid: Any) -> None:
    path = written(tmp_path, {"w": torch.ones(3)})
    repacked(path, lambda name, raw: pickled({"w": _Outside(pid)}) if "data.pkl" in name else raw)
    assert refused(path)


@pytest.mark.parametrize("kind", [torch.FloatStorage, torch.QInt8Storage, int, "FloatStorage", None])
@pytest.mark.parametrize("count", [-1, 0, 2**70, "3", None])
def test_what_an_id_says_of_a_storage_is_not_believed(tmp_path: Path, kind: Any, count: Any) -> None:
    path = written(tmp_path, {"w": torch.ones(3)})
    pid = ("storage", kind, "0", "cuda:7", count)
    repacked(path, lambda name, raw: pickled({"x": _Outside(pid), "b": [1]}) if "data.pkl" in name else raw)
    assert "found 'x', 'b'" in refused(path)


WORDS: list[Any] = [
    0,
    1,
    -1,
    3,
    2**40,
    2**70,
    True,
    None,
    "a",
    1.5,
    (),
    (3,),
    (2, 2),
    (2**40,),
    (-1,),
    ("a",),
]


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from(WORDS), max_size=5),
    st.sampled_from(["_tensor", "_tensor_v2", "_tensor_v3", "_parameter"]),
)
def test_any_parts_of_a_tensor_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, words: list[Any], name: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), {"w": torch.ones(3)})
    storage = _Outside(("storage", torch.FloatStorage, "0", "cpu", 3))

    class Odd:
        def __reduce__(self) -> Any:
            return getattr(torch._utils, f"_rebuild{name}"), (storage, *words)

    repacked(path, lambda entry, raw: pickled({"w": Odd()}) if "data.pkl" in entry else raw)
    try:
        for tensor in read_checkpoint(path).state.values():
            tensor.sum()
    except CheckpointError as error:
        assert "\n" not in str(error)


# The older form.


def older(path: Path) -> bytearray:
    return bytearray(written(path, {"w": torch.arange(3.0)}, "older").read_bytes())


@pytest.mark.parametrize("count", [-1, 4, 2**40, 2**62, -(2**63)])
def test_a_storage_past_the_end(tmp_path: Path, count: int) -> None:
    content = older(tmp_path)
    assert content[-20:-12] == struct.pack("<q", 3)
    content[-20:-12] = struct.pack("<q", count)
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert "found the end of the file" in refused(path)


def test_a_storage_that_is_smaller_than_its_tensor(tmp_path: Path) -> None:
    content = older(tmp_path)
    content[-20:] = struct.pack("<q", 2) + np.arange(2, dtype="<f4").tobytes()
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert refused(path) == "w: expected a tensor of (3,), found a storage of 2 elements"


def test_optimizers_of_any_size_are_not_read(tmp_path: Path) -> None:
    """Their storages may even be broken."""
    run = {"model": {"w": torch.ones(3)}, "optimizer": {"state": {0: {"m": torch.ones(64)}}}}
    path = repacked(
        written(tmp_path, run), lambda name, raw: raw[:8] if "/data/" in name and len(raw) == 256 else raw
    )
    assert read_checkpoint(path).state["w"].tolist() == [1, 1, 1]
