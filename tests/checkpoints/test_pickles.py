"""Pickles of weights: numpy's arrays come out as they went in, and nothing in a file is run."""

from __future__ import annotations

import argparse
import asyncio
import codeop
import collections
import copyreg
import ctypes
import datetime
import decimal
import enum
import fractions
import importlib
import io
import logging.config
import operator
import os
import pickle
import random
import re
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import timeit
import types
import uuid
import webbrowser
import zoneinfo
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from sartorius_infer.checkpoints import pickles, stand_ins
from sartorius_infer.checkpoints.archives import PLAIN
from sartorius_infer.checkpoints.reading import Checkpoint, read_checkpoint
from sartorius_infer.errors import CheckpointError

Array = NDArray[Any]

PROTOCOLS = range(6)
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")
RECONSTRUCT = np._core.multiarray._reconstruct  # type: ignore[attr-defined]


def reading(folder: Path, content: Any, name: str = "a.pkl", protocol: int = 4) -> Checkpoint:
    """What is read of a file of these bytes, or of the pickle of this object."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return read_checkpoint(path)


def refused(folder: Path, content: Any, name: str = "a.pkl", protocol: int = 4) -> str:
    """Why a file is refused, in one line after its name."""
    with pytest.raises(CheckpointError) as caught:
        reading(folder, content, name, protocol)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert message.startswith(f"{folder / name}: ")
    return message.removeprefix(f"{folder / name}: ")


def packed(content: Any, old: bool = False) -> bytes:
    """What torch.save writes; `old`: as it did before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def marked(*arguments: object) -> None:
    raise AssertionError("a function of the file was called")


def equal(tensor: Tensor, array: Array) -> bool:
    """Whether a tensor is an array to the bit, in native order."""
    plain = np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("="))
    return (
        tensor.numpy().dtype == plain.dtype
        and tensor.shape == plain.shape
        and tensor.numpy().tobytes() == plain.tobytes()
        and tensor.is_contiguous()
    )


class Call:
    """Pickles as a call of a function, and a state that is given to its result."""

    def __init__(self, function: Callable[..., object], *arguments: object, state: object = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def forged(shape: object, raw: object, dtype: object = None, fortran: bool = False) -> Call:
    """An array as numpy pickles one, with any parts."""
    state = (1, shape, np.dtype("f4") if dtype is None else dtype, fortran, raw)
    return Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=state)


# Arrays.


def arrays() -> dict[str, Array]:
    draw = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for kind in NUMBERS:
        values = (draw.random((2, 3, 4)) * 200 - 60).astype(kind)
        found[kind] = values
        found[f">{kind}"] = values.astype(np.dtype(kind).newbyteorder(">"))
        found[f"fortran {kind}"] = np.asfortranarray(values)
        found[f"slice {kind}"] = values[::-1, 1:, ::2]
        found[f"scalar {kind}"] = np.array(values[0, 0, 0])
        found[f"empty {kind}"] = np.zeros((0, 3), kind)
        found[f"empty fortran {kind}"] = np.zeros((3, 0, 2), kind, order="F")
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_come_back_to_the_bit(tmp_path: Path, protocol: int) -> None:
    written = arrays()
    read = reading(tmp_path, {"model": written}, protocol=protocol)
    assert read.wrapper == "model"
    assert read.state.keys() == written.keys()
    for key, array in written.items():
        assert equal(read.state[key], array), key


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "new", "old"])
def test_arrays_of_numpy_1(tmp_path: Path, protocol: int | str) -> None:
    """Numpy 2 moved its builders to numpy._core; older files name numpy.core."""
    written = arrays()
    if isinstance(protocol, int):
        content, name = pickle.dumps(written, protocol), "a.pkl"
    else:
        content, name = packed(written, old=True), "a.pth"
    old = content
    for new, length in ((b"numpy._core.multiarray", 22), (b"numpy._core.numeric", 19)):
        # From protocol 4 on a name's length stands before it, and the length of all before all.
        old = old.replace(bytes([length]) + new, bytes([length - 1]) + new.replace(b"_", b""))
        old = old.replace(b"c" + new, b"c" + new.replace(b"_", b""))
    if old[2:3] == pickle.FRAME:
        old = old[:2] + old[11:]
    assert b"_core" not in old
    read = reading(tmp_path, old, name)
    assert all(equal(read.state[key], array) for key, array in written.items())


@pytest.mark.parametrize("old", [False, True])
def test_arrays_in_torch_s_own_files(tmp_path: Path, old: bool) -> None:
    written = arrays()
    for name in ("a.pth", "a.pkl", "A.PKL"):
        read = reading(tmp_path, packed({"model": written | {"t": torch.ones(2)}}, old), name)
        assert torch.equal(read.state.pop("t"), torch.ones(2))
        assert all(equal(read.state[key], array) for key, array in written.items())


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(NUMBERS),
    st.sampled_from("<>="),
    st.sampled_from("CF"),
    st.sampled_from(PROTOCOLS),
)
def test_any_array(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    kind: str,
    order: str,
    layout: Any,
    protocol: int,
) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape)
    array = np.asarray(values).astype(np.dtype(kind).newbyteorder(order), order=layout)  # type: ignore[arg-type]
    read = reading(tmp_path_factory.getbasetemp(), {"a": array, "b": torch.ones(1)}, protocol=protocol)
    assert equal(read.state["a"], array)


def test_an_array_owns_its_memory(tmp_path: Path) -> None:
    """Two keys of one array, and two arrays of one pickle, do not change each other."""
    one = np.zeros(3, "f4")
    read = reading(tmp_path, {"a": one, "b": one})
    read.state["a"].fill_(7)
    assert read.state["b"].eq(0).all()
    assert reading(tmp_path, {"a": one}).state["a"].eq(0).all()


# A pickle that Python 2 wrote: `str` is raw bytes there, and protocol 2 had no other kind.


def python2(array: Array, key: bytes = b"w") -> bytes:
    """{key: array} as numpy 1 under Python 2 wrote it with protocol 2, put together by hand."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value
            if len(value) < 256
            else b"T" + struct.pack("<i", len(value)) + value
        )

    code = array.dtype.newbyteorder("=").str[1:].encode()
    shape = b"(" + b"".join(b"K" + bytes([n]) for n in array.shape) + b"t"
    raw = array.tobytes("F" if np.isfortran(array) else "C")
    parts = [
        b"\x80\x02}q\x00",
        text(key),
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01",
        b"cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b") + b"\x87Rq\x03",
        b"(K\x01" + shape,
        b"cnumpy\ndtype\nq\x04" + text(code) + b"K\x00K\x01\x87Rq\x05",
        b"(K\x03"
        + text(b">" if array.dtype.str[0] == ">" else b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        b"\x89" if not np.isfortran(array) else b"\x88",
        text(raw),
        b"tbs.",
    ]
    return b"".join(parts)


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<i8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_pickle_of_python_2(tmp_path: Path, kind: str, order: Any) -> None:
    values = np.arange(-30, 90).reshape(4, 5, 6).astype(kind, order=order)
    content = python2(values)
    assert np.array_equal(pickle.loads(content, encoding="latin1")["w"], values)
    read = reading(tmp_path, content)
    assert read.state.keys() == {"w"}
    assert equal(read.state["w"], values)


def test_python_2_s_names_and_text(tmp_path: Path) -> None:
    ordered = b"ccollections\nOrderedDict\n(((U\x01wK\x01lltR"
    content = b"\x80\x02}(U\x05blobs" + ordered + b"U\x06author" + b"U\x04caf\xe9u."
    assert pickle.loads(content, encoding="latin1") == {"blobs": OrderedDict(w=1), "author": "café"}
    assert refused(tmp_path, content).endswith("found 'blobs', 'author'")
    assert reading(tmp_path, content[:-2] + python2(np.ones(2))[5:-2] + b"u.").state.keys() == {"w"}


# Layouts.


def test_the_model_zoo_s_layout(tmp_path: Path) -> None:
    written = {"backbone.w": np.ones((2, 2), "f4"), "roi_heads.b": np.zeros(3, "f4")}
    zoo = {"model": written, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    for model in (written, OrderedDict(written)):
        read = reading(tmp_path, zoo | {"model": model}, protocol=2)
        assert read.wrapper == "model"
        assert all(equal(read.state[key], array) for key, array in written.items())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_in_a_plain_pickle(tmp_path: Path, protocol: int) -> None:
    """As `pickle.dump(model.state_dict())` writes them, with the versions of the modules as state."""
    whole = torch.arange(12.0).reshape(3, 4)
    written = OrderedDict(nn.BatchNorm2d(2).state_dict())
    written |= {
        "half": whole.half(),
        "bf16": whole.bfloat16(),
        "part": whole.t()[1:],
        "same": whole,
        "none": whole[:0],
    }
    assert hasattr(nn.BatchNorm2d(2).state_dict(), "_metadata")
    for state in (written, nn.BatchNorm2d(2).state_dict()):
        read = reading(tmp_path, {"model": state, "iteration": 3}, protocol=protocol)
        assert read.state.keys() == state.keys()
        for key, tensor in state.items():
            assert read.state[key].dtype == tensor.dtype
            assert torch.equal(read.state[key], tensor)


def test_tensors_and_arrays_side_by_side(tmp_path: Path) -> None:
    read = reading(tmp_path, {"t": torch.ones(2), "a": np.ones(2)})
    assert read.state.keys() == {"t", "a"}


BESIDE: list[Any] = [
    np.array([None, "x", 3], dtype=object),
    np.array(["shsy5y", "µ"]),
    np.array([b"a", b"bc"]),
    np.zeros(2, [("score", "f4"), ("step", "i8")]),
    np.zeros(2, "c8"),
    np.zeros(2, "u2"),
    np.datetime64("2021-12-01"),
    np.zeros(2, "M8[D]"),
    np.float32(3),
    np.bool_(True),
    np.dtype("f4"),
    np.random.default_rng(0).bit_generator.state,
    [np.float64(1), {"deep": (np.ones(2), b"raw", 1 + 2**70)}],
    {(1, 2): 3, None: 4, 1.5: 5, b"raw": 6},
]


@pytest.mark.parametrize("value", BESIDE, ids=range(len(BESIDE)))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_lies_beside_the_weights_stays_inert(tmp_path: Path, value: Any, protocol: int) -> None:
    read = reading(
        tmp_path, {"model": {"w": np.ones(2), "own": value}, "best": value, 7: value}, protocol=protocol
    )
    assert read.state.keys() == {"w"}


def test_sets_bytes_and_long_numbers_beside_the_weights(tmp_path: Path) -> None:
    beside = {10**5000: 10**5000, "set": {1, 2}, "frozen": frozenset("a"), "bytes": bytearray(b"abc")}
    assert reading(tmp_path, {"w": np.ones(2)} | beside, protocol=5).state.keys() == {"w"}
    assert refused(tmp_path, beside, protocol=5).endswith("found int, 'set', 'frozen', 'bytes'")


@pytest.mark.parametrize("value", BESIDE[:11], ids=range(11))
def test_no_other_array_passes_for_weights(tmp_path: Path, value: Any) -> None:
    assert refused(tmp_path, {"w": value}).startswith("expected tensors, or one of model_state_dict, ")


# Sizes that do not agree.

DISAGREE: list[tuple[Any, Any]] = [
    ((3,), b"\0" * 8),
    ((3,), b"\0" * 16),
    ((3,), b""),
    ((-3,), b"\0" * 12),
    ((-1, -3), b"\0" * 12),
    ((), b""),
    ((), b"\0" * 8),
    ((2**62, 2**62), b"\0" * 4),
    ((0, 2**70), b""),
    ((0, 2**62, 2**62), b""),
    ((10**5000,), b"\0" * 4),
    ((1,) * 100, b"\0" * 4),
    ((3,), [0] * 12),
    ((3,), None),
    ((3,), "µ€" * 6),
]


@pytest.mark.parametrize(("shape", "raw"), DISAGREE, ids=range(len(DISAGREE)))
@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_an_array_whose_sizes_do_not_agree(tmp_path: Path, shape: Any, raw: Any, name: str) -> None:
    content: Any = {"w": forged(shape, raw), "v": np.ones(2)}
    try:
        said = refused(tmp_path, packed(content) if name == "a.pth" else content, name)
    except OverflowError:
        pytest.skip("torch.save does not write this one")
    assert said.startswith("w: ") or name == "a.pth"


@pytest.mark.parametrize("shape", [(True, 2), (2.0,), ("a",), None, [2], 2, ((2,),), (None,)])
def test_a_shape_of_anything_else_is_no_array(tmp_path: Path, shape: Any) -> None:
    read = reading(tmp_path, {"w": forged(shape, b"\0" * 8), "v": np.ones(2)})
    assert read.state.keys() == {"v"}


@pytest.mark.parametrize("dtype", [0, "f4", None, np.ndarray, np.dtype("O"), {"f4": 1}, np.float32(1)])
def test_a_dtype_of_anything_else_is_no_array(tmp_path: Path, dtype: Any) -> None:
    state = (1, (2,), dtype, False, b"\0" * 8)
    array = Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=state)
    assert reading(tmp_path, {"w": array, "v": np.ones(2)}).state.keys() == {"v"}


@pytest.mark.parametrize("state", [(), (1,), (1, 2, 3, 4, 5, 6), [], {}, "abcde", {"state": 3}])
def test_a_state_of_anything_else_is_no_array(tmp_path: Path, state: Any) -> None:
    array = Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=state)
    assert reading(tmp_path, {"w": array, "v": np.ones(2)}).state.keys() == {"v"}


def test_a_tensor_may_not_be_larger_than_its_storage(tmp_path: Path) -> None:
    """Torch would enlarge the storage, by memory that holds anything."""
    for size, stride, offset in (
        ((10,), (1,), 0),
        ((2,), (4,), 0),
        ((4,), (1,), 1),
        ((2**33,), (1,), 0),
        ((2,), (1,), -1),
    ):
        said = refused(tmp_path, {"w": rebuilt(torch.ones(4), size, stride, offset)})
        assert said.startswith("w: expected a ")
    read = reading(tmp_path, {"w": rebuilt(torch.arange(4.0), (2,), (2,), 1)})
    assert read.state["w"].tolist() == [1, 3]


def rebuilt(tensor: Tensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Call:
    """A tensor's pickle with another size, stride and offset."""
    storage = tensor.__reduce_ex__(2)[1][0]
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


# What is never run.


LENT = [*sorted(PLAIN), "argparse.Namespace", "numpy.ndarray", "somebody.Own"]
LENDERS = (collections.Counter, OrderedDict, torch.Tensor, torch.storage.TypedStorage, nn.Parameter)
OWN = (pickles.Thing, pickles.Name, stand_ins.NumpyArray, stand_ins.NumpyDtype, stand_ins.StoredTensor)


def classes() -> dict[type, dict[str, Any]]:
    """What every class holds that a pickle may come near."""
    return {kind: dict(vars(kind)) for kind in (*OWN, *LENDERS)}


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A folder that a payload would make; nothing ran, and no class is changed."""
    before = classes()
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()
    assert classes() == before


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "place", ["value", "nested", "key", "state", "dtype", "shape", "raw", "in an argument"]
)
def test_a_payload_does_not_run(tmp_path: Path, marker: Path, protocol: int, place: str) -> None:
    payload: Any = Call(os.mkdir, str(marker))
    content = {
        "value": payload,
        "nested": {"model": {"w": np.ones(2)}, "x": [({"deep": [payload]},)]},
        "key": {payload: 1},
        "state": {"w": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=payload)},
        "dtype": {"w": forged((2,), b"\0" * 8, dtype=payload)},
        "shape": {"w": forged(payload, b"\0" * 8)},
        "raw": {"w": forged((2,), payload)},
        "in an argument": {"w": Call(RECONSTRUCT, payload, (0,), b"b")},
    }[place]
    assert f"needs {os.mkdir.__module__}.mkdir, which is never loaded" in refused(
        tmp_path, content, protocol=protocol
    )


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


EVIL: dict[str, Callable[[str], bytes]] = {
    "REDUCE": lambda path: b"cos\nmkdir\n(" + text(path) + b"tR.",
    "STACK_GLOBAL": lambda path: b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(" + text(path) + b"tR.",
    "a dotted name": lambda path: b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.mkdir\x93(" + text(path) + b"tR.",
    "a name of a lent class": lambda path: (
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93(" + text(path) + b"tR."
    ),
    "INST": lambda path: b"(" + text(path) + b"ios\nmkdir\n.",
    "OBJ": lambda path: b"(cos\nmkdir\n" + text(path) + b"o.",
    "NEWOBJ": lambda path: b"\x80\x02cos\nmkdir\n(" + text(path) + b"t\x81.",
    "NEWOBJ_EX": lambda path: b"\x80\x04cos\nmkdir\n(" + text(path) + b"t}\x92.",
    "eval": lambda path: b"cbuiltins\neval\n(" + text(f"__import__('os').mkdir({path!r})") + b"tR.",
    "eval of Python 2": lambda path: (
        b"c__builtin__\neval\n(" + text(f"__import__('os').mkdir({path!r})") + b"tR."
    ),
    "getattr": lambda path: b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("x") + b"tR.",
    "copyreg": lambda path: b"ccopyreg\n_reconstructor\n(cos\nPathLike\ncbuiltins\nobject\nNtR.",
    "torch.load": lambda path: b"ctorch.serialization\nload\n(" + text(path) + b"tR.",
    "torch's hub": lambda path: b"ctorch.hub\nload\n(" + text(path) + b"tR.",
    "numpy's loader": lambda path: b"cnumpy\nload\n(" + text(path) + b"tR.",
    "the module of the stand-ins": lambda path: (
        b"csartorius_infer.checkpoints.pickles\nread_pickle\n(" + text(path) + b"tR."
    ),
    "PERSID": lambda path: b"Pabc\n.",
    "BINPERSID": lambda path: text(path) + b"Q.",
    "EXT1": lambda path: b"\x80\x02\x82\xf0(" + text(path) + b"tR.",
    "EXT2": lambda path: b"\x80\x02\x83\xf0\xf0(" + text(path) + b"tR.",
    "EXT4": lambda path: b"\x80\x02\x84\xf0\xf0\xf0\x70(" + text(path) + b"tR.",
    "NEXT_BUFFER": lambda path: b"\x80\x05\x97.",
    "encode to another codec": lambda path: b"c_codecs\nencode\n(" + text(path) + text("idna") + b"tR.",
}


@pytest.mark.parametrize("form", EVIL)
def test_evil_pickles_are_refused(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    # What another library may have registered, and used: the unpickler asks nobody about these.
    for code in (0xF0, 0xF0F0, 0x70F0F0F0):
        monkeypatch.setitem(copyreg._extension_cache, code, os.mkdir)  # type: ignore[attr-defined]
    content = EVIL[form](str(marker))
    for whole in (content, b"(dI0\n" + content[2 * (content[:1] == b"\x80") : -1] + b"s."):
        said = refused(tmp_path, whole)
        assert said.startswith("expected tensors alone, found a pickle")
        assert "which is never loaded" in said


def test_the_forms_do_run_where_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would say nothing."""
    monkeypatch.setitem(copyreg._extension_cache, 0xF0, os.mkdir)  # type: ignore[attr-defined]
    for form in ("REDUCE", "STACK_GLOBAL", "INST", "OBJ", "eval", "eval of Python 2", "EXT1"):
        path = tmp_path / form.replace(" ", "")
        pickle.loads(EVIL[form](str(path)))
        assert path.is_dir()


STATES = {
    "a dict": b"}" + text("evil") + b"K\x01s",
    "slots": b"N}" + text("evil") + b"K\x01s\x86",
    "methods": b"}(" + text("__init__") + b"K\x01" + text("__setstate__") + b"K\x01u",
    "slots of methods": b"N}(" + text("__new__") + b"K\x01" + text("numpy") + b"K\x01u\x86",
    "nothing": b"N",
}


@pytest.mark.parametrize("name", LENT)
@pytest.mark.parametrize("state", STATES)
def test_no_state_is_given_to_a_lent_class(tmp_path: Path, marker: Path, name: str, state: str) -> None:
    module, _, last = name.rpartition(".")
    build = b"c" + f"{module}\n{last}\n".encode() + STATES[state] + b"b"
    assert "which is never loaded" in refused(tmp_path, b"\x80\x02}" + text("x") + build + b"s.")


@pytest.mark.parametrize("name", LENT)
@pytest.mark.parametrize("state", STATES)
def test_a_state_given_to_an_instance_is_its_own(tmp_path: Path, marker: Path, name: str, state: str) -> None:
    module, _, last = name.rpartition(".")
    build = b"c" + f"{module}\n{last}\n".encode() + b")R" + STATES[state] + b"b"
    content = b"\x80\x02}(" + text("w") + pickle.dumps(np.ones(2), 2)[2:-1] + text("x") + build + b"u."
    try:
        assert reading(tmp_path, content).state["w"].tolist() == [1, 1]
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_torch_s_reader_inside_a_pickle_reads_storages_alone(tmp_path: Path, marker: Path) -> None:
    """Torch lends that reader classes and functions, which the pickle around it could change."""
    for thing in (
        collections.Counter,
        nn.Parameter,
        torch.Size,
        torch._utils._rebuild_tensor_v2,
        torch.ones(2),
        {"a": 1},
        None,
    ):
        inside = Call(torch.storage._load_from_bytes, packed(thing, old=True), state=(None, {"evil": 1}))
        assert "which is never loaded" in refused(tmp_path, {"w": np.ones(2), "x": inside})
    for content in (packed(Call(os.mkdir, str(marker)), old=True), packed(torch.ones(2)), b"hello"):
        evil = Call(torch.storage._load_from_bytes, content)
        assert "which is never loaded" in refused(tmp_path, {"w": np.ones(2), "x": evil})


def test_methods_that_a_pickle_sets_are_not_called(tmp_path: Path, marker: Path) -> None:
    """A state goes into an OrderedDict's attributes, where it hides the methods of that name."""
    methods = dict.fromkeys(("get", "items", "keys", "values", "__iter__", "__contains__"), OrderedDict)
    odd = Call(OrderedDict, [("w", torch.ones(2))], state=methods)
    for content, name in (
        (odd, "a.pkl"),
        (packed({"model": odd}), "a.pth"),
        (packed(odd, old=True), "b.pth"),
    ):
        assert reading(tmp_path, content, name).state.keys() == {"w"}


@pytest.mark.parametrize("name", LENT)
def test_an_instance_made_without_a_call_is_no_weight(tmp_path: Path, marker: Path, name: str) -> None:
    """NEWOBJ leaves out __init__."""
    module, _, last = name.rpartition(".")
    made = f"c{module}\n{last}\n".encode() + b")\x81"
    dtype = b"(K\x01K\x02\x85" + made + b"\x89C\x08" + b"\0" * 8 + b"t"
    array = b"cnumpy._core.multiarray\n_reconstruct\n)\x81" + dtype + b"b"
    for odd in (made, array):
        content = b"\x80\x03}(" + text("w") + pickle.dumps(np.ones(2), 2)[2:-1] + text("x") + odd + b"u."
        try:
            assert reading(tmp_path, content).state.keys() == {"w"}
        except CheckpointError as error:
            assert "which is never loaded" in str(error)


# Objects beside the weights.


class Settings(dict[str, Any]):
    """As yacs, addict and others keep settings: a mapping with attributes and methods of its own."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__["frozen"] = True

    def __setitem__(self, key: str, value: object) -> None:
        raise AssertionError("a method of the file was called")


class Colour(enum.Enum):
    RED = 1


class Own:
    """Anything at all, with slots and methods that would run on the way in."""

    __slots__ = ("left", "right")

    class Inner:
        pass

    def __init__(self) -> None:
        self.left, self.right = 1, Own.Inner()

    def __setstate__(self, state: object) -> None:
        raise AssertionError("a method of the file was called")


OBJECTS: dict[str, Any] = {
    "settings of argparse": argparse.Namespace(lr=0.1, out=Path("runs/1"), func=marked),
    "paths": [Path("x"), PurePosixPath("a/b"), PureWindowsPath("c:/d"), {Path("key"): 1}],
    "dates": [
        datetime.datetime(2021, 12, 1, tzinfo=datetime.UTC),
        datetime.date(2021, 12, 1),
        datetime.timedelta(3),
        zoneinfo.ZoneInfo("UTC"),
    ],
    "numbers": [decimal.Decimal("0.1"), fractions.Fraction(1, 3), uuid.UUID(int=3), 1 + 2j, random.Random(3)],
    "collections": [
        defaultdict(list, a=[1]),
        collections.Counter("abc"),
        collections.deque([1, 2], maxlen=3),
        collections.ChainMap({"a": 1}),
        collections.UserDict(a=1),
        OrderedDict(b=1),
    ],
    "types": [
        int,
        list,
        Own,
        Own.Inner,
        torch.float32,
        torch.Size([1]),
        torch.device("cpu"),
        slice(1, 2),
        range(3),
    ],
    "functions": [len, marked, nn.functional.relu, partial(marked, 3), operator.itemgetter(1)],
    "settings of others": Settings(a=1, b=Settings(c=2)),
    "members": [Colour.RED, re.compile("a+", re.IGNORECASE), {Colour.RED: Colour}],
    "an object": Own(),
    "a module": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(3)),
    "a simple one": types.SimpleNamespace(a=1),
    "an error": ValueError("x"),
}
FORMS = ["zip", "older", *PROTOCOLS]


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("form", FORMS)
def test_objects_beside_the_weights_stay_inert(tmp_path: Path, marker: Path, name: str, form: Any) -> None:
    if name == "an object" and form in (0, 1):
        pytest.skip("slots take protocol 2")
    run = {"model": {"w": torch.ones(2)}, "args": OBJECTS[name], "epoch": 3}
    content = packed(run, form == "older") if isinstance(form, str) else pickle.dumps(run, form)
    read = reading(tmp_path, content, "a.pth")
    assert read.state["w"].tolist() == [1, 1]
    assert read.wrapper == "model"


def test_weights_in_a_mapping_of_any_class(tmp_path: Path) -> None:
    for form in ("zip", "older", 2, 5):
        run = Settings(model=Settings(w=torch.ones(2)), epoch=3)
        content = packed(run, form == "older") if isinstance(form, str) else pickle.dumps(run, form)
        assert reading(tmp_path, content).state["w"].tolist() == [1, 1]


HOSTILE = {
    "os.system": Call(os.system, "true"),
    "subprocess.Popen": Call(subprocess.Popen, "true"),
    "subprocess.call": Call(subprocess.call, "true"),
    "builtins.exec": Call(exec, "1"),
    "builtins.eval": Call(eval, "1"),
    "builtins.open": Call(open, "/dev/null"),
    "builtins.__import__": Call(__import__, "this"),
    "shutil.rmtree": Call(shutil.rmtree, "/nowhere"),
    "webbrowser.open": Call(webbrowser.open, "x"),
    "importlib.import_module": Call(importlib.import_module, "this"),
    "runpy.run_path": Call(runpy.run_path, "x"),
    "socket.create_connection": Call(socket.create_connection, ("x", 1)),
    "ctypes.CDLL": Call(ctypes.CDLL, None),
    "pickle.loads": Call(pickle.loads, b"N."),
    "codeop": Call(codeop.compile_command, "1"),
    "timeit.timeit": Call(timeit.timeit, "1"),
    "torch.load": Call(torch.load, "x"),
    "torch.hub.load": Call(torch.hub.load, "x", "y"),
    "numpy.load": Call(np.load, "x"),
    "asyncio": Call(asyncio.run, None),
    "logging.config.listen": Call(logging.config.listen),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_names_what_no_checkpoint_needs_is_refused(
    tmp_path: Path, marker: Path, name: str, form: Any
) -> None:
    """Nothing of it would run; but nobody should trust the rest."""
    run = {"model": {"w": torch.ones(2)}, "args": HOSTILE[name]}
    content = packed(run, form == "older") if isinstance(form, str) else pickle.dumps(run, form)
    said = refused(tmp_path, content, "a.pth")
    assert "found a pickle that needs " in said
    assert "which is never loaded" in said


def test_names_are_never_imported(tmp_path: Path) -> None:
    """Not even those that stay inert: importing is running."""
    for number, module in enumerate(("antigravity_of_somebody", "those.and.that", "__main__")):
        content = b"\x80\x02}(" + text("w") + pickle.dumps(np.ones(2), 2)[2:-1] + text("x")
        content += f"c{module}\nThing{number}\n)Ru.".encode()
        before = set(sys.modules)
        assert reading(tmp_path, content).state.keys() == {"w"}
        assert set(sys.modules) == before


ODD_CALLS = [b")", b"N\x85", b"K\x01\x85", b"]\x85", b"}\x85", b"(K\x01K\x02K\x03K\x04K\x05K\x06K\x07t"]
ODD_CALLS += [b"(J\xff\xff\xff\x7f" * 3 + b"t" * 3, b"\x8a\x08\0\0\0\0\0\0\0\x40\x85"]


@pytest.mark.parametrize("name", [*LENT, "builtins.bytearray", "builtins.list", "collections.Counter"])
@pytest.mark.parametrize("arguments", ODD_CALLS, ids=range(len(ODD_CALLS)))
def test_calls_with_any_arguments_are_refused_or_harmless(
    tmp_path: Path, marker: Path, name: str, arguments: bytes
) -> None:
    module, _, last = name.rpartition(".")
    for end in (b"R", b"\x81", b"}\x92", b"RN)\x86b", b"R]a", b"R}s", b"R)R"):
        call = f"c{module}\n{last}\n".encode() + arguments + end
        content = b"\x80\x04}(" + text("w") + pickle.dumps(np.ones(2), 2)[2:-1] + text("x") + call + b"u."
        try:
            assert reading(tmp_path, content).state["w"].tolist() == [1, 1]
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_keys_of_any_depth_are_not_hashed(tmp_path: Path) -> None:
    """Hashing a tuple of tuples takes the C stack, however deep they lie."""
    w = text("w") + pickle.dumps(np.ones(2), 2)[2:-1]
    for deep in (b")" + b"\x85" * 10**5, b")" + b"2\x86" * 10**4, b"(" * 10**4 + b"\x91" * 10**4):
        for content in (
            b"\x80\x04}(" + w + deep + b"K\x01u.",
            b"\x80\x04}(" + w + text("s") + b"\x8f(" + deep + b"\x90u.",
        ):
            assert reading(tmp_path, content).state.keys() == {"w"}


# Files that mean more than they hold.


def test_a_memory_of_any_index_takes_no_room(tmp_path: Path) -> None:
    for content in (
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x02]r\x00\x00\x00\x10.",
        b"(lp99999999\n.",
        b"]q\xff.",
    ):
        assert refused(tmp_path, content) == "expected a mapping of tensors, found list"


def test_lengths_past_the_end_take_no_memory(tmp_path: Path) -> None:
    for code, form in (
        (b"\x8e", "<Q"),
        (b"\x8d", "<Q"),
        (b"\x96", "<Q"),
        (b"B", "<I"),
        (b"X", "<I"),
        (b"\x8b", "<i"),
    ):
        for size in (2**31 - 1, 2**62) if form == "<Q" else (2**31 - 1,):
            refused(tmp_path, b"\x80\x05" + code + struct.pack(form, size) + b"abc.")


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_mappings_that_multiply_are_looked_at_once(tmp_path: Path, name: str) -> None:
    tree: dict[str, Any] = {}
    for _ in range(60):
        tree = {"a": tree, "b": tree, "model": 1}
    for content in ({"model": tree}, {"model": tree, "ema": {"w": torch.ones(2)}}):
        whole = packed(content) if name == "a.pth" else pickle.dumps(content)
        if "ema" in content:
            assert reading(tmp_path, whole, name).wrapper == "ema"
        else:
            assert refused(tmp_path, whole, name).startswith("expected tensors, or one of ")


def test_a_mapping_that_holds_itself(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"w": np.ones(2)}
    endless["model"] = endless
    assert refused(tmp_path, endless) == "expected tensors, found a mapping that holds itself"
    endless = {"w": 1}
    endless["model"] = endless
    assert refused(tmp_path, endless).startswith("expected tensors, or one of ")


def test_depth(tmp_path: Path) -> None:
    deep = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    assert refused(tmp_path, deep) == "expected a mapping of tensors, found list"
    wrapped = b"}" + text("model")
    whole = b"\x80\x02" + wrapped * 1500 + pickle.dumps({"w": np.ones(2)}, 2)[2:-1] + b"s" * 1500 + b"."
    assert refused(tmp_path, whole).startswith("expected tensors, or one of ")


# Damage.

WHOLE = {
    f"protocol {n}": pickle.dumps({"model": {"w": np.arange(6.0), "t": torch.ones(3)}, "x": [1, (2, "a")]}, n)
    for n in PROTOCOLS
} | {"python 2": python2(np.arange(6.0))}


@pytest.mark.parametrize("name", WHOLE)
def test_cut_off_anywhere(tmp_path: Path, name: str) -> None:
    whole = WHOLE[name]
    reading(tmp_path, whole)
    for length in [*range(1, min(300, len(whole))), *range(300, len(whole), 17), len(whole) - 1]:
        refused(tmp_path, whole[:length])


def test_other_files_under_the_suffix(tmp_path: Path) -> None:
    assert refused(tmp_path, b"") == "expected a checkpoint, found an empty file"
    for content in (
        b"hello",
        b"<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\0" * 100,
    ):
        assert refused(tmp_path, content) == "expected a whole pickle, found a damaged pickle"
    assert refused(tmp_path, b"PK\3\4" + b"\0" * 50).startswith(
        "expected a whole torch checkpoint, found a zip archive"
    )
    assert refused(tmp_path, [np.ones(2)]) == "expected a mapping of tensors, found list"
    assert refused(tmp_path, np.ones(2)) == "expected a mapping of tensors, found NumpyArray"


CODES = b"(.0123FIJKLMNPQRSTUVX]abcde}ghijloprqstu)" + bytes([*range(0x80, 0x99)])


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255) | st.sampled_from(CODES)),
        min_size=1,
        max_size=6,
    ),
)
def test_any_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[float, int]]
) -> None:
    content = bytearray(WHOLE[name])
    for place, byte in flips:
        content[int(place * len(content))] = byte
    before = classes()
    try:
        for tensor in reading(tmp_path_factory.getbasetemp(), bytes(content)).state.values():
            tensor.sum()
    except CheckpointError as error:
        assert "\n" not in str(error)
    assert classes() == before


GLOBALS = [f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n".encode() for name in LENT]
WORDS = [bytes([code]) for code in b"(.0012]}abdeolstu)RN\x81\x85\x86\x87\x88\x89\x94\x92\x8f\x90"]
WORDS += [
    b"K\x01",
    b"h\x00",
    b"q\x00",
    b"U\x02f4",
    b"U\x01<",
    b"U\x05model",
    b"C\x04\0\0\x80?",
    text("w"),
    b"I5\n",
]


@settings(max_examples=250)
@given(st.lists(st.sampled_from(WORDS + GLOBALS * 2), min_size=1, max_size=25))
def test_any_program_of_the_lent_names_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, words: list[bytes]
) -> None:
    before = classes()
    content = b"\x80\x02" + b"".join(words) + b"."
    for whole in (content, b"\x80\x02}" + text("model") + content[2:-1] + b"s."):
        try:
            reading(tmp_path_factory.getbasetemp(), whole)
        except CheckpointError as error:
            assert "\n" not in str(error)
    assert classes() == before
