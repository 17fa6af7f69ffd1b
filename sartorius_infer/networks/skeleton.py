"""Networks built without weights, to be given a checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_}


class _Unfilled(TorchFunctionMode):
    """Skips initial values: for a tensor without storage torch would import its compiler to draw them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        tensor = (kwargs or {}).get("tensor", args[0] if args else None)
        fills = func in _FILLS or getattr(func, "__module__", None) == "torch.nn.init"
        if fills and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def skeleton() -> Iterator[None]:
    """Modules made inside have shapes and no storage, on the meta device.

    ConvNeXt and Swin compute with such tensors as they are made, which imports the compiler all the same.
    """
    with torch.device("meta"), _Unfilled():
        yield
