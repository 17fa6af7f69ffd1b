"""Reading checkpoint files without ever running what is in them.

`.safetensors` holds tensors alone; `.pth` and `.pt` go through `torch.load(weights_only=True)`, which
builds tensors and plain containers and refuses everything else. What comes out is one flat mapping
of tensors, without wrappers, training state and prefixes.
"""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sartorius_infer.errors import CheckpointError

SUFFIXES = (".pth", ".pt", ".safetensors")

WRAPPERS = (
    *("model_state_dict", "state_dict", "model", "net", "network", "weights", "params", "module"),
    *("model_ema_state_dict", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow"),
)
"""Keys under which training scripts keep the weights, in the order in which they are looked for."""

# Scores and step counters are often saved with numpy; these two build arrays and nothing else. Before
# numpy 2 they lived in another module, under whose name older files call them.
_NUMPY_BUILDERS: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
_NUMPY_GLOBALS: list[Any] = [
    *_NUMPY_BUILDERS,
    *((build, f"numpy.core.multiarray.{build.__name__}") for build in _NUMPY_BUILDERS),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
]

_PARTS = re.compile(r"^(|.*?\.)(backbone|rpn|roi_heads)\.")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a file by key, and the wrapper ("ema.module", or "") and prefix they came under."""

    state: dict[str, Tensor]
    wrapper: str
    prefix: str


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a checkpoint file, on the CPU, in their own dtype.

    Raises CheckpointError for a file that is missing, truncated, of another kind, or that only a
    full unpickler could read.
    """
    content = _read(path)
    state, wrapper = _unwrap(content, path, "")
    state = {key.replace("_orig_mod.", ""): tensor.detach() for key, tensor in state.items()}
    stripped, prefix = _strip_prefix(state, path)
    return Checkpoint(stripped, wrapper, prefix)


def _read(path: Path) -> Any:
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path}: expected {', '.join(SUFFIXES)}, found {path.suffix or 'no suffix'}")
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a checkpoint file, found {'a folder' if path.is_dir() else 'none'}"
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, found an empty file")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: expected safetensors, found {_line(error)}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise CheckpointError(f"{path}: expected a whole torch checkpoint, found {_line(error)}") from None


def _refusal(path: Path, reason: str) -> str:
    name = re.search(r"GLOBAL (\S+)|Unsupported (?:global|class):? (\S+)", reason)
    needs = f"needs {next(g for g in name.groups() if g)}" if name else _line(reason)
    return (
        f"{path}: expected tensors alone, found a pickle that {needs}, which is never loaded; if you trust "
        f'the file, convert it once where it was made: torch.save(model.state_dict(), "{path.name}")'
    )


def _line(error: object) -> str:
    """The first line of a message, without the advice that follows it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _unwrap(content: Any, path: Path, trail: str) -> tuple[dict[str, Tensor], str]:
    """The innermost mapping of tensors along the known wrappers, and the way to it."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a mapping of tensors, found {type(content).__name__}")
    for name in WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and _holds_tensors(inner):
            return _unwrap(inner, path, f"{trail}.{name}".lstrip("."))
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(repr(str(key)) for key in list(content)[:5]) or "nothing"
        raise CheckpointError(f"{path}: expected tensors, or one of {', '.join(WRAPPERS)}, found {keys}")
    return tensors, trail


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value))
        for value in content.values()
    )


def _strip_prefix(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """Remove what stands before backbone, rpn and roi_heads, and copies of the same tensors.

    Keys that belong to no such network stay as they are, so that whoever builds the network names them.
    """
    parts: dict[str, set[str]] = defaultdict(set)
    for key in state:
        if found := _PARTS.match(key):
            parts[found[1]].add(found[2])
    whole = sorted((p for p, seen in parts.items() if len(seen) == 3), key=len)
    if not whole:
        return state, ""
    prefix = whole[0]
    inside = {k.removeprefix(prefix): t for k, t in state.items() if _under(k, prefix)}
    outside = {k: t for k, t in state.items() if not _under(k, prefix) and t.numel() > 1}
    copies = {k for k, t in outside.items() if _is_copy(k, t, inside)}
    for other in whole[1:]:
        if any(_under(k, other) and k not in copies for k in outside):
            raise CheckpointError(
                f"{path}: expected one network, found two that differ, {prefix!r} and {other!r}; keep one"
            )
    return inside | {k: t for k, t in outside.items() if k not in copies}, prefix


def _under(key: str, prefix: str) -> bool:
    found = _PARTS.match(key)
    return found is not None and found[1] == prefix


def _is_copy(key: str, tensor: Tensor, inside: Mapping[str, Tensor]) -> bool:
    found = _PARTS.match(key)
    twin = inside.get(key[len(found[1]) :]) if found else None
    return twin is not None and twin.shape == tensor.shape and torch.equal(twin, tensor)
