"""What stands for arrays and tensors in a file: their parts, out of which numbers are read once wanted.

Numpy's and torch's own constructors are not safe to lend to a file: `ndarray(1, "O", bytes)` takes bytes
for pointers, and a tensor may say that it is larger than its storage. Here every size is checked first.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sartorius_infer.checkpoints.pickles import Makers, Name, Thing, call
from sartorius_infer.errors import CheckpointError
from sartorius_infer.types import UInt8

_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}

_MOST_REPEATED = 1 << 20
"""Elements that a tensor may have beyond its storage's, one value standing for many."""


class NumpyDtype:
    """What stands for a dtype: its code, such as "f4", and byte order."""

    def __init__(self, code: object = "", *flags: object) -> None:
        self.code, self.order = code, "|"

    def fill(self, state: object) -> None:
        """Take (version, byte order, ...)."""
        if isinstance(state, tuple) and len(state) > 1:
            self.order = state[1]

    def numpy(self) -> np.dtype[Any] | None:
        """The dtype if it is one of numbers."""
        if not isinstance(self.code, str) or self.code not in _NUMBERS:
            return None
        return np.dtype(f"{'>' if self.order == '>' else '<'}{self.code}")


class NumpyArray:
    """What stands for an array: shape, dtype, order and bytes, as its pickle fills them in."""

    def __init__(self, *parts: object) -> None:
        """Take the class, shape and dtype of what is filled in later."""
        self.state: tuple[Any, ...] = ()

    @classmethod
    def from_buffer(cls, *parts: object) -> NumpyArray:
        """As protocol 5 writes an array: (bytes, dtype, shape, order) at once."""
        array = cls()
        raw, dtype, shape, order = parts if len(parts) == 4 else (b"", None, None, None)
        array.state = (shape, dtype, order == "F", raw)
        return array

    def fill(self, state: object) -> None:
        """Take (version, shape, dtype, whether in Fortran order, bytes)."""
        if isinstance(state, tuple) and len(state) == 5:
            self.state = state[1:]

    @property
    def kind(self) -> np.dtype[Any] | None:
        """The dtype of whole numbers or fractions in a shape; None for anything else."""
        if not self.state:
            return None
        shape, dtype = self.state[:2]
        whole = isinstance(shape, tuple) and all(type(n) is int for n in shape)
        return dtype.numpy() if whole and isinstance(dtype, NumpyDtype) else None

    def tensor(self) -> Tensor:
        """The array of a `kind` as a tensor of its own memory.

        Raises ValueError where shape and bytes do not agree.
        """
        shape, _, fortran, raw = self.state
        kind = self.kind
        if kind is None:
            raise ValueError("expected an array of numbers, found another")
        if isinstance(raw, str):  # Python 2 had no bytes
            raw = raw.encode("latin1")
        content = bytes(raw) if isinstance(raw, (bytes, bytearray)) else b""
        if min(shape, default=0) < 0 or len(content) != prod(shape) * kind.itemsize:
            raise ValueError(f"expected an array of {shape} {kind}, found {len(content)} bytes")
        values = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(values, kind.newbyteorder("="), order="C"))


@dataclass
class Storage:
    """What stands for the memory of tensors.

    dtype    of its elements; None for one that holds no plain numbers
    content  gives its bytes, uint8 (n,), which may lie in a file
    start    elements of a larger storage before it
    """

    dtype: torch.dtype | None
    content: Callable[[], UInt8]
    start: int = 0


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """What stands for a tensor: a storage, and where its elements lie in it."""

    storage: Storage
    offset: Any
    size: Any
    stride: Any
    dtype: torch.dtype

    def fill(self, state: object) -> None:
        """Attributes of a tensor are dropped."""

    def tensor(self) -> Tensor:
        """The tensor, contiguous, in memory of its own; raises ValueError for sizes that do not agree."""
        numbers = (self.offset, self.storage.start, *_numbers(self.size), *_numbers(self.stride))
        if len(self.size) != len(self.stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"expected a size and strides, found {str((self.size, self.stride))[:100]}")
        if 0 in self.size:
            return torch.empty(_limited(self.size), dtype=self.dtype)
        first = self.offset + self.storage.start
        last = first + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        content, width = self.storage.content(), self.dtype.itemsize
        found = len(content) // width
        if last >= found or prod(self.size) > max(found, _MOST_REPEATED):
            raise ValueError(
                f"expected a tensor of {str(self.size)[:99]}, found a storage of {found} elements"
            )
        part = torch.from_numpy(content[first * width : (last + 1) * width].copy())
        flat = part.ne(0) if self.dtype == torch.bool else part.view(self.dtype)
        return flat.as_strided(self.size, self.stride).contiguous()


def _numbers(value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise ValueError(f"expected a size, found a {type(value).__name__}")
    return value


def _limited(size: tuple[int, ...]) -> tuple[int, ...]:
    """A size of no elements that torch can hold."""
    if max(size) > 2**31 or len(size) > 64:
        raise ValueError("expected a size of no elements, found one past all limits")
    return size


_KINDS = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8},
    **{"Byte": torch.uint8, "Bool": torch.bool},
    **{"ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64},
}
_STORAGES = {
    f"torch.{place}{kind}Storage": dtype for kind, dtype in _KINDS.items() for place in ("", "cuda.")
} | {"torch.storage.UntypedStorage": torch.uint8}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def storage_dtype(kind: object) -> torch.dtype | None:
    """The dtype of the elements of a storage class; None for one of other things than numbers."""
    return _STORAGES.get(kind.text) if isinstance(kind, Name) else None


def _tensor(*parts: Any) -> Any:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`: (storage, offset, size, stride, ...)."""
    if len(parts) < 4 or not isinstance(parts[0], Storage) or parts[0].dtype is None:
        return Thing("torch.Tensor")
    storage, offset, size, stride = parts[:4]
    return StoredTensor(storage, offset, size, stride, storage.dtype)


def _typed_tensor(*parts: Any) -> Any:
    """`_rebuild_tensor_v3`, which says the dtype of an untyped storage."""
    dtype = parts[6] if len(parts) > 6 else None
    if not isinstance(dtype, Name) or dtype.text not in _DTYPES or not isinstance(parts[0], Storage):
        return Thing("torch.Tensor")
    storage, offset, size, stride = parts[:4]
    return StoredTensor(storage, offset, size, stride, _DTYPES[dtype.text])


def _first(*parts: Any) -> Any:
    """What wraps a tensor that is its first part."""
    return parts[0] if parts else Thing("torch.Tensor")


def _encoded(text: object = "", codec: object = "") -> Any:
    """`_codecs.encode`, by which protocol 2 writes bytes as text."""
    if not isinstance(text, str) or codec != "latin1":
        raise pickle.UnpicklingError("GLOBAL _codecs.encode to another codec than latin1")
    return text.encode("latin1")


def _of_type(*parts: Any) -> Any:
    """`_rebuild_from_type_v2`: a tensor with attributes is (function, type, arguments, state)."""
    known = len(parts) > 2 and isinstance(parts[0], Name) and isinstance(parts[2], tuple)
    return call(parts[0], parts[2], _TENSORS) if known else Thing("torch.Tensor")


def _empty_dict(*parts: Any) -> dict[Any, Any]:
    """What stands for an OrderedDict; from Python 2 it comes as a list of pairs."""
    pairs = parts[0] if parts and isinstance(parts[0], list) else []
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
    }


_TENSORS: Makers = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
}

MAKERS: Makers = {
    "numpy.dtype": NumpyDtype,
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": NumpyArray.from_buffer for core in ("core", "_core")},
    "builtins.bytes": lambda *parts: b"",  # an array of no elements takes its bytes from bytes()
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _empty_dict,
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}
"""What stands for calls of these; before numpy 2 another module built its values."""

Leaf = StoredTensor | NumpyArray | Tensor
"""What may be weights."""


def is_weight(value: object) -> bool:
    """Whether something is a tensor, or an array of numbers."""
    return isinstance(value, (StoredTensor, Tensor)) or (
        isinstance(value, NumpyArray) and value.kind is not None
    )


def count(value: Leaf) -> int:
    """How many elements a weight says that it has."""
    if isinstance(value, Tensor):
        return value.numel()
    size = value.size if isinstance(value, StoredTensor) else value.state[0]
    return prod(n for n in size if type(n) is int) if isinstance(size, tuple) else 0


def as_tensor(value: Leaf, path: Path, key: str) -> Tensor:
    """A tensor of a weight; raises CheckpointError for one whose parts do not agree."""
    if isinstance(value, Tensor):
        return value
    try:
        return value.tensor()
    except (ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {key[:100] if key.isprintable() else repr(key[:100])}: {error}"
        ) from None
