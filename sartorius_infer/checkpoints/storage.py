"""How weights are stored: whole, as halves, or as bytes with a scale for each output channel.

Convolutions and matrices hold nearly all bytes; norms' statistics and biases stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sartorius_infer.errors import CheckpointError

Store = Literal["float32", "float16", "int8"]

SCALE = "::scale"
"""Ends the key under which the scale of an int8 tensor is stored."""

_LEVELS = 127
_INPUTS_FIRST = ("deconv.", "conv5_mask.")  # transposed convolutions, whose second axis is the output's


def pack(state: Mapping[str, Tensor], store: Store, file: str) -> dict[str, Tensor]:
    """The tensors as they are stored, contiguous, each in memory of its own.

    int8: round(w / scale) with scale = max |w| / 127 of each output channel. Raises CheckpointError,
    naming `file` and the key, for values that float16 or int8 cannot hold.
    """
    packed: dict[str, Tensor] = {}
    for key, tensor in sorted(state.items()):
        wide = tensor.float() if tensor.is_floating_point() else tensor
        if store == "float32" or tensor.ndim < 2 or not tensor.numel() or not tensor.is_floating_point():
            kept = tensor if tensor.dtype == torch.float16 and store != "float32" else wide
            packed[key] = kept.clone().contiguous()
            continue
        if not bool(wide.isfinite().all()):
            raise CheckpointError(f"{file}: {key}: expected finite values to store as {store}, found others")
        if store == "float16":
            packed[key] = wide.half().contiguous()
            if not bool(packed[key].isfinite().all()):
                raise CheckpointError(f"{file}: {key}: expected values within +-65504, found larger ones")
        else:
            axis = 1 if any(name in key for name in _INPUTS_FIRST) else 0
            others = [dim for dim in range(tensor.ndim) if dim != axis]
            scale = wide.abs().amax(dim=others, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            scale = scale / _LEVELS
            packed[key] = (wide / scale).round().clamp(-_LEVELS, _LEVELS).to(torch.int8).contiguous()
            packed[key + SCALE] = scale.contiguous()
    return packed


def unpack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with int8 ones widened to float32 by their scales; others as they are."""
    return {
        key: tensor.float() * state[key + SCALE] if key + SCALE in state else tensor
        for key, tensor in state.items()
        if not key.endswith(SCALE)
    }
