"""Reading checkpoint files without ever running what is in them.

Safetensors hold tensors alone; what torch.save wrote goes through `torch.load(weights_only=True)`, which
builds tensors and plain containers and refuses everything else; plain pickles, such as Detectron2's model
zoo, go through `pickles`, which does the same. Content decides which it is, not the suffix. What comes out
is one flat mapping of tensors, without wrappers, training state and prefixes.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sartorius_infer.checkpoints.files import OLDER_TORCH, Format, file_format, is_pickle, zip_ends
from sartorius_infer.checkpoints.pickles import NUMPY, as_tensor, holds_weights, read_pickle
from sartorius_infer.checkpoints.storage import unpack
from sartorius_infer.errors import CheckpointError, first_line

WRAPPERS = (
    *("model_state_dict", "state_dict", "model", "net", "network", "weights", "params", "module"),
    *("model_ema_state_dict", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow"),
)
"""Keys under which training scripts keep the weights, in the order in which they are looked for."""

# Training scripts often save scores and step counters as numpy values, and some save weights as arrays.
_NUMPY_GLOBALS: list[Any] = [(stand_in, name) for name, stand_in in NUMPY.items()]

_PARTS = re.compile(r"^(|.*?\.)(backbone|rpn|proposal_generator|roi_heads)\.")

_NEEDS = re.compile(r"GLOBAL ([\w.]+)|<class '([\w.]+)|(operand \d+)")


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
    try:
        state, wrapper = _unwrap(content, path, "")
    except RecursionError:
        raise CheckpointError(f"{path}: expected tensors, found a mapping that holds itself") from None
    stripped, prefix = _strip_prefix(_uncompiled(state, path), path)
    return Checkpoint(stripped, wrapper, prefix)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a checkpoint file, found {'a folder' if path.is_dir() else 'none'}"
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, found an empty file")
    try:
        form = file_format(path) or _meant_as(path)
        if form == "safetensors":
            return unpack(load_file(path))
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_GLOBALS):
            warnings.simplefilter("ignore")  # torch warns of files that it then refuses
            if form == "pickle":
                return read_pickle(path)
            # A stream has no name, by which newer torch would decide what is in it.
            with path.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable file, found {first_line(error)[:200]}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: expected safetensors, found {first_line(error)[:200]}") from None
    except Exception as error:  # bytes that are not its own make torch.load fail in any way
        raise CheckpointError(f"{path}: {_fault(path, error)}") from None


def _meant_as(path: Path) -> Format:
    """What a file that is none by its content, so a damaged one, was to be by its name."""
    return {".safetensors": "safetensors", ".pkl": "pickle"}.get(path.suffix.lower(), "torch")  # type: ignore[return-value]


def _fault(path: Path, error: Exception) -> str:
    """Why torch.load refused a file, as "expected ..., found ..."."""
    kind, needs = _kind(path), _NEEDS.search(str(error))
    if needs and (needs[1] or kind in ("torch", "a pickle")):
        kind = f"a pickle that needs {needs[needs.lastindex or 0]}"
    elif kind == "torch":
        kind = f"a damaged one ({type(error).__name__}: {first_line(error)[:200]})"
    if not kind.startswith(("a pickle", "a TorchScript")):
        return f"expected a whole {'pickle' if 'pickle' in kind else 'torch checkpoint'}, found {kind}"
    return (
        f"expected tensors alone, found {kind}, which is never loaded; if you trust the file, "
        f'convert it once where it was made: torch.save(model.state_dict(), "{path.stem}.pth")'
    )


def _kind(path: Path) -> str:
    """What a file is by its bytes: "torch", or other words for the reader of an error."""
    with path.open("rb") as file:
        head = file.read(len(OLDER_TORCH))
    if head.startswith(b"PK"):
        return _zip_kind(path)
    if OLDER_TORCH.startswith(head):
        return "torch"
    if is_pickle(path):
        return "a pickle"
    return "a damaged pickle" if path.suffix.lower() == ".pkl" else f"a file that begins with {head!r}"


def _zip_kind(path: Path) -> str:
    ends = zip_ends(path)
    if ends is None:
        return "a zip archive that is cut off or damaged"
    if "data.pkl" not in ends:
        return "a zip archive of something else"
    return "a TorchScript archive" if "constants.pkl" in ends else "torch"


def _unwrap(content: Any, path: Path, trail: str) -> tuple[dict[str, Tensor], str]:
    """The innermost mapping of tensors along the known wrappers, and the way to it."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a mapping of tensors, found {type(content).__name__}")
    plain = dict(dict.items(content))  # a pickle may set an OrderedDict's attributes, its methods too
    for name in WRAPPERS:
        inner = plain.get(name)
        if isinstance(inner, dict) and holds_weights(inner):
            return _unwrap(inner, path, f"{trail}.{name}".lstrip("."))
    found = {key: as_tensor(value, path, key) for key, value in plain.items() if isinstance(key, str)}
    tensors = {key: value for key, value in found.items() if value is not None}
    if not tensors:
        some = [repr(key)[:60] if isinstance(key, str) else type(key).__name__ for key in list(plain)[:5]]
        keys = ", ".join(some) or "nothing"
        raise CheckpointError(f"{path}: expected tensors, or one of {', '.join(WRAPPERS)}, found {keys}")
    return tensors, trail


def _uncompiled(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state under the keys that it had before torch.compile."""
    plain: dict[str, Tensor] = {}
    for key, tensor in state.items():
        new = key.replace("_orig_mod.", "")
        if new in plain and not _same(plain[new], tensor):
            raise CheckpointError(f"{path}: expected one network, found two values of {new!r}; keep one")
        plain[new] = tensor.detach()
    return plain


def _strip_prefix(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """Remove what stands before backbone, rpn and roi_heads from every key, and copies of the same tensors.

    Keys that belong to no such network stay as they are, so that whoever builds the network names them.
    """
    parts: dict[str, set[str]] = defaultdict(set)
    for key in state:
        if found := _PARTS.match(key):
            parts[found[1]].add("rpn" if found[2] == "proposal_generator" else found[2])
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
    return inside | {k.removeprefix(prefix): t for k, t in outside.items() if k not in copies}, prefix


def _under(key: str, prefix: str) -> bool:
    found = _PARTS.match(key)
    return found is not None and found[1] == prefix


def _is_copy(key: str, tensor: Tensor, inside: Mapping[str, Tensor]) -> bool:
    found = _PARTS.match(key)
    twin = inside.get(key[len(found[1]) :]) if found else None
    return twin is not None and _same(twin, tensor)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
