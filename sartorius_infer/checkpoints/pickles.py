"""Reading pickles of weights without running them: numpy arrays and tensors, and nothing else.

Numpy's own constructors are not safe to lend to a pickle: `ndarray(1, "O", bytes)` takes bytes for
pointers. So inert classes stand for them that only collect what an array is made of; `as_tensor`
then reads numbers out of the bytes.
"""

from __future__ import annotations

import pickle
import pickletools
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sartorius_infer.errors import CheckpointError

_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class NumpyValue:
    """What stands for a numpy scalar, or for anything else of numpy's beside the weights."""

    def __init__(self, *parts: object) -> None:
        """Take what the pickle would call numpy with."""

    def __setstate__(self, state: object) -> None:
        """Take what the pickle would fill the value with."""


class NumpyDtype(NumpyValue):
    """What stands for a dtype: its code, such as "f4", and byte order."""

    code: object = ""  # of one that is made without a call
    order: object = "|"

    def __init__(self, code: object = "", *flags: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Take (version, byte order, ...)."""
        if isinstance(state, tuple) and len(state) > 1:
            self.order = state[1]

    def numpy(self) -> np.dtype[Any] | None:
        """The dtype if it is one of numbers."""
        if not isinstance(self.code, str) or self.code not in _NUMBERS:
            return None
        return np.dtype(f"{'>' if self.order == '>' else '<'}{self.code}")


class NumpyArray(NumpyValue):
    """What stands for an array: shape, dtype, order and bytes, as its pickle fills them in."""

    state: tuple[Any, ...] = ()

    def __init__(self, *parts: object) -> None:
        """Take the class, shape and dtype of what is filled in later."""

    def __setstate__(self, state: object) -> None:
        """Take (version, shape, dtype, whether in Fortran order, bytes)."""
        if isinstance(state, tuple) and len(state) == 5:
            self.state = state[1:]

    def tensor(self) -> Tensor | None:
        """The array as a tensor of its own memory; None for anything but whole numbers and fractions.

        Raises ValueError where shape and bytes do not agree.
        """
        if not self.state:
            return None
        shape, dtype, fortran, raw = self.state
        kind = dtype.numpy() if isinstance(dtype, NumpyDtype) else None
        if kind is None or not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
            return None
        if isinstance(raw, str):  # Python 2 had no bytes
            raw = raw.encode("latin1")
        content = bytes(raw) if isinstance(raw, (bytes, bytearray)) else b""
        if min(shape, default=0) < 0 or len(content) != prod(shape) * kind.itemsize:
            raise ValueError(f"expected an array of {shape} {kind}, found {len(content)} bytes")
        values = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(values, kind.newbyteorder("="), order="C"))


class NumpyBuffer(NumpyArray):
    """An array as protocol 5 writes it: (bytes, dtype, shape, order) at once."""

    def __init__(self, *parts: object) -> None:
        raw, dtype, shape, order = parts if len(parts) == 4 else (b"", None, None, None)
        self.state = (shape, dtype, order == "F", raw)


class _Ordered(dict[Any, Any]):
    """What stands for an OrderedDict, whose attributes, its methods too, a pickle could set."""

    def __setstate__(self, state: object) -> None:
        """Drop the version numbers that a module's state carries."""


class _Encoded:
    """What stands for `_codecs.encode`, by which protocol 2 writes bytes as text."""

    def __new__(cls, text: str = "", codec: str = "") -> Any:
        if codec != "latin1":
            raise pickle.UnpicklingError(f"GLOBAL _codecs.encode to {codec}")
        return text.encode(codec)

    def __setstate__(self, state: object) -> None:
        """Nothing to take."""


class _Storage:
    """What stands for torch's own reader of a storage inside a plain pickle: the restricted one."""

    def __new__(cls, content: bytes) -> Any:
        storage = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):  # torch also reads classes, for one
            raise pickle.UnpicklingError(f"expected a storage, found {type(storage).__name__}")
        return storage

    def __setstate__(self, state: object) -> None:
        """Nothing to take."""


class _Tensor:
    """What stands for the constructor of tensors, which enlarges a storage that is too small."""

    def __new__(cls, storage: Any, *parts: Any) -> Any:
        size = storage._untyped_storage.nbytes()
        tensor = torch._utils._rebuild_tensor_v2(storage, *parts)  # type: ignore[no-untyped-call]
        if storage._untyped_storage.nbytes() != size:
            raise pickle.UnpicklingError("a tensor that is larger than its storage")
        return tensor

    def __setstate__(self, state: object) -> None:
        """Nothing to take."""


NUMPY: dict[str, type] = {
    "numpy.dtype": NumpyDtype,
    "numpy.ndarray": NumpyValue,
    **{f"numpy.{core}.multiarray.scalar": NumpyValue for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": NumpyBuffer for core in ("core", "_core")},
    "builtins.bytes": NumpyValue,  # an array of no elements takes its bytes from bytes()
}
"""Names in a pickle and what stands for them; before numpy 2 another module built its values."""

# Classes only, each with a __setstate__ of its own: a pickle can neither call nor change more.
_LENT: dict[str, type] = NUMPY | {
    "__builtin__.bytes": NumpyValue,
    "_codecs.encode": _Encoded,
    "collections.OrderedDict": _Ordered,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch.storage._load_from_bytes": _Storage,
}


class _Unpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text, tensors and numpy arrays; Python 2's files too."""

    def find_class(self, module: str, name: str) -> Any:
        """The class that stands for a global name."""
        if f"{module}.{name}" not in _LENT:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _LENT[f"{module}.{name}"]


def read_pickle(path: Path) -> Any:
    """What a plain pickle file (`.pkl`) holds; raises pickle.UnpicklingError for more than weights."""
    content = path.read_bytes()
    for count, (opcode, index, _) in enumerate(pickletools.genops(content)):
        # The unpickler makes room for as many memories as the greatest index says.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(index or 0) > count:
            raise pickle.UnpicklingError(f"memory {index} after {count} steps")
        if opcode.name in ("EXT1", "EXT2", "EXT4"):  # by number, perhaps past find_class
            raise pickle.UnpicklingError(f"GLOBAL {opcode.name} {index}")
    return _Unpickler(BytesIO(content), encoding="latin1").load()


def as_tensor(value: object, path: Path, key: str) -> Tensor | None:
    """A tensor, or an array as one; None for anything else. Raises CheckpointError for a broken array."""
    if isinstance(value, NumpyArray):
        try:
            return value.tensor()
        except ValueError as error:
            raise CheckpointError(f"{path}: {key}: {error}") from None
    return value if isinstance(value, Tensor) else None


def holds_weights(content: dict[Any, Any]) -> bool:
    """Whether a tensor or an array stands anywhere in a mapping of mappings, each looked at once."""
    ahead, seen = [content], set()
    while ahead:
        here = ahead.pop()
        seen.add(id(here))
        for value in dict.values(here):
            if isinstance(value, (Tensor, NumpyArray)):
                return True
            if isinstance(value, dict) and id(value) not in seen:
                ahead.append(value)
    return False
