"""Reading checkpoint files without ever running what is in them.

Safetensors hold tensors alone. What torch.save and pickle.dump wrote goes through a reader of its own,
which builds containers, numbers, text and tensors, and lets inert stand-ins take the place of all else.
Content decides which it is, not the suffix. What comes out is one flat mapping of tensors, without
wrappers, training state and prefixes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sartorius_infer.checkpoints.archives import read_archive, read_older, read_plain
from sartorius_infer.checkpoints.files import (
    OLDER_TORCH,
    Format,
    format_to_try,
    head_of,
    is_pickle,
    zip_ends,
)
from sartorius_infer.checkpoints.pickles import Thing
from sartorius_infer.checkpoints.stand_ins import Leaf, as_tensor
from sartorius_infer.checkpoints.storage import unpack
from sartorius_infer.checkpoints.unwrapping import WRAPPERS, Chosen, choose, places, unwrap
from sartorius_infer.errors import CheckpointError, first_line

_NEEDS = re.compile(r"GLOBAL ([\w. ]+)")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a network by key, and the wrapper ("ema.module", or "") and prefix they came under.

    outside   tensors of the same mapping that are none of the network's
    left_out  what was left out, in words: those, and other networks
    meta      what a training run says of itself under "meta": values of any kind, all of them inert
    """

    state: dict[str, Tensor]
    wrapper: str
    prefix: str
    outside: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def with_outside(self) -> Checkpoint:
        """The same with nothing left out of its mapping, for a network of somebody's own."""
        return replace(self, state=self.state | dict(self.outside), outside={}, left_out=())


def read_checkpoint(path: Path, state: str | None = None) -> Checkpoint:
    """The weights in a checkpoint file, on the CPU, in their own dtype.

    state: which network of several, by the name of its wrapper ("ema") or prefix; "." for the one under
    no name. Raises CheckpointError for a file that is missing, truncated, of another kind, that holds no
    weights but an object which only a full unpickler could read, and where several networks differ.
    """
    content = _read(path)
    try:
        chosen = choose(content, path, state)
        if chosen is None:
            _require_tensors(content, path)
            chosen = Chosen(unwrap(content, path))
    except RecursionError:
        raise CheckpointError(f"{path}: expected tensors, found a mapping that holds itself") from None
    network, outside = chosen.network, _values(chosen.outside, path)
    return Checkpoint(
        state=_values(network.leaves, path),
        wrapper=network.wrapper,
        prefix=network.prefix,
        outside=outside,
        left_out=chosen.left_out(),
        meta=_meta(content),
    )


def _meta(content: Any) -> dict[str, Any]:
    meta = dict.get(content, "meta") if isinstance(content, dict) else None
    return {k: v for k, v in dict.items(meta) if isinstance(k, str)} if isinstance(meta, dict) else {}


def _values(leaves: Mapping[str, Leaf], path: Path) -> dict[str, Tensor]:
    return {key: as_tensor(leaf, path, key).detach() for key, leaf in leaves.items()}


def _require_tensors(content: Any, path: Path) -> None:
    """Where an object stands in the place of weights, and no weights beside it, it is what is meant."""
    held = [content]
    if isinstance(content, dict):
        held += [dict.get(content, name) for name in WRAPPERS]
    things = [each for each in held if isinstance(each, Thing)]
    if things and not any(places(each) for each in held[1:]):
        raise CheckpointError(f"{path}: {_unreadable(path, f'a pickle that needs {things[0].name}')}")


def _read(path: Path) -> Any:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else "none"
        raise CheckpointError(f"{path}: expected a checkpoint file, found {found}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, found an empty file")
    try:
        form = format_to_try(path)
        if form == "pickle" and path.suffix.lower() == ".safetensors" and not is_pickle(path):
            form = "safetensors"  # a damaged one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in text
            return _content(path, form)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable file, found {first_line(error)[:200]}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: expected safetensors, found {first_line(error)[:200]}") from None
    except Exception as error:  # bytes that are not its own make a reader fail in any way
        raise CheckpointError(f"{path}: {_fault(path, error)}") from None


def _content(path: Path, form: Format) -> Any:
    if form == "safetensors":
        return unpack(load_file(path))
    if form == "pickle":
        return read_plain(path)
    return read_archive(path) if head_of(path).startswith(b"PK") else read_older(path)


def _fault(path: Path, error: Exception) -> str:
    """Why a reader refused a file, as "expected ..., found ..."."""
    kind, needs = _kind(path), _NEEDS.search(str(error))
    if needs and kind in ("torch", "a pickle"):
        return _unreadable(path, f"a pickle that needs {needs[1]}")
    if kind == "a TorchScript archive":
        return _unreadable(path, kind)
    form = "pickle" if "pickle" in kind else "torch checkpoint"
    if kind in ("torch", "a pickle"):
        kind = f"a damaged one ({type(error).__name__}: {first_line(error)[:200]})"
    return f"expected a whole {form}, found {kind}"


def _unreadable(path: Path, kind: str) -> str:
    return (
        f"expected tensors alone, found {kind}, which is never loaded; if you trust the file, "
        f'convert it once where it was made: torch.save(model.state_dict(), "{path.stem}.pth")'
    )


def _kind(path: Path) -> str:
    """What a file is by its bytes: "torch", or other words for the reader of an error."""
    head = head_of(path)
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
