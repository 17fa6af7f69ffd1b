"""Which network of a file is meant, through wrappers, prefixes and copies; `docs/formats.md` tells the rules.

Every tensor of a file has a place: the keys of the mappings that it lies in, then its own, with dots
between them. Under the head of a whole network, such as "ema.module.", lie all parts of one layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sartorius_infer.checkpoints.stand_ins import Leaf, StoredTensor, as_tensor, count, is_weight
from sartorius_infer.errors import CheckpointError

WRAPPERS = (
    *("model_state_dict", "state_dict", "model", "net", "network", "weights", "params", "module"),
    *("model_ema_state_dict", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow"),
)
"""Keys under which training scripts keep the weights, in the order in which they are looked for."""

LAYOUTS = (
    ("backbone", "rpn", "roi_heads"),
    ("backbone", "proposal_generator", "roi_heads"),
    ("backbone", "neck", "rpn_head", "roi_head"),
    ("downsample", "upsample", "output"),
)
"""The parts of a whole network, for each family."""

TOP = "."
"""The name of a network that lies under none."""

_NAMES = sorted({part for layout in LAYOUTS for part in layout})
_PARTS = re.compile(rf"^(|.*?\.)({'|'.join(_NAMES)})\.(.*)$", re.DOTALL)

# What torch.compile, FSDP, activation checkpointing and others put into keys; DDP puts "module" there.
_INNER = re.compile(r"(?:^|(?<=\.))_\w*mod(?:ule)?\.")
_MODULE = re.compile(r"(?:^|(?<=\.))module\.")

_LOSSES = re.compile(r"criterion|criteria|\w*loss(es)?(_\w+)?|\w*metrics?(_\w+)?", re.IGNORECASE)
_TEACHER = re.compile(r"(.*_)?teacher(_.*)?", re.IGNORECASE)
_AVERAGES = ("ema", "swa", "avg", "averaged", "shadow")
_COUNTERS = ("num_batches_tracked", "n_averaged")

# Where training scripts keep what is no network.
_RUN = re.compile(r"(optim|sched|lr_|scaler|amp|rng|random|callbacks|loops|cuda|message_hub)", re.IGNORECASE)

_DEEPEST = 50


class Place(NamedTuple):
    """A tensor in a file: the mapping that it lies in, and its key there."""

    trail: str
    key: str
    leaf: Leaf

    @property
    def full(self) -> str:
        """Both, with a dot between them, without what wraps modules; the "module" of DDP stays."""
        return _INNER.sub("", f"{self.trail}.{self.key}" if self.trail else self.key)


@dataclass(eq=False)
class Network:
    """The tensors under one head by their keys without it; `trail` is the mapping of the first."""

    head: str
    trail: str
    leaves: dict[str, Leaf] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether all parts of a layout are there."""
        parts = {key.partition(".")[0] for key in self.leaves}
        return any(parts.issuperset(layout) for layout in LAYOUTS)

    @property
    def name(self) -> str:
        """What it is chosen by."""
        return _short(self.head.removesuffix(".")) or TOP

    @property
    def is_of_one_mapping(self) -> bool:
        """Whether its parts lie in one mapping, not each in one of its own."""
        return f"{self.head}".startswith(f"{self.trail}." if self.trail else "")

    @property
    def wrapper(self) -> str:
        """The names of the mappings that it lies in."""
        return self.trail if self.is_of_one_mapping else self.head.removesuffix(".")

    @property
    def prefix(self) -> str:
        """What stands before its keys in that mapping."""
        return self.head[len(self.wrapper) :].removeprefix(".") if self.wrapper else self.head


@dataclass(frozen=True, eq=False)
class Chosen:
    """A network, what lies in the same mapping outside of it, and in words other networks of the file."""

    network: Network
    outside: Mapping[str, Leaf] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def left_out(self, most: int = 3) -> tuple[str, ...]:
        """What was left out, in words; counters are no loss."""
        said = [key for key in self.outside if not key.endswith(_COUNTERS)]
        words = [f"{_short(key)} ({_values(self.outside[key])})" for key in said[:most]]
        more = [f"{len(said) - most} more tensors"] if len(said) > most else []
        return (*words, *more, *self.others)


def _short(text: str, most: int = 80) -> str:
    """Text of a file in a message: on one line, and not too long."""
    return f"{text[:most]}{'...' * (len(text) > most)}" if text.isprintable() else repr(text[:most])


def _values(leaf: Leaf) -> str:
    number = count(leaf)
    return f"{number} value{'s' * (number != 1)}"


def places(content: Any) -> list[Place]:
    """Every tensor in mappings and lists of mappings, in order; what lies in several is found once."""
    found: list[Place] = []
    ahead = [("", content, 0)] if isinstance(content, (dict, list, tuple)) else []
    seen = {id(content)}
    while ahead:
        trail, here, depth = ahead.pop()
        inner = []
        for key, value in dict.items(here) if isinstance(here, dict) else enumerate(here):
            if isinstance(key, str) and is_weight(value):
                found.append(Place(trail, key, value))
            elif isinstance(value, (dict, list, tuple)) and id(value) not in seen and depth < _DEEPEST:
                seen.add(id(value))
                inner.append((f"{trail}.{_text(key)}" if trail else _text(key), value, depth + 1))
        ahead += reversed(inner)
    return found


def _text(key: Any) -> str:
    return key if isinstance(key, str) else str(key) if type(key) is int and abs(key) < 1 << 60 else "?"


def choose(content: Any, path: Path, state: str | None) -> Chosen | None:
    """The network that is meant; None where no layout is known, and nothing was asked for by name.

    state: the name of one, or a part of it, such as "ema" for "ema.module"; None for the only one. Raises
    CheckpointError where there is none of that name, or several that differ.
    """
    found = places(content)
    networks = sorted(_networks(found, path), key=_rank)
    wanted = networks if state is None else _named(networks, state)
    if not wanted:
        return None if state is None else _by_name(found, networks, path, state)
    chosen, others = _only(wanted, path)
    _require_complete(chosen, networks, path)
    beside = [n for n in networks if n not in wanted and not _is_copy(n, chosen, path)]
    others += tuple(f"{n.name} (another network)" for n in beside)
    return Chosen(chosen, _split_off(found, chosen, networks, path), others)


def _networks(found: Sequence[Place], path: Path) -> list[Network]:
    """Every whole network, with what else lies under its head."""
    networks: dict[str, Network] = {}
    for place in found:
        if match := _PARTS.match(place.full):
            network = networks.setdefault(match[1], Network(match[1], place.trail))
            _add(network, f"{match[2]}.{_MODULE.sub('', match[3])}", place, path)
    whole = {head: network for head, network in networks.items() if network.is_whole}
    for place in found:
        heads = [head for head in whole if place.full.startswith(head)]
        if heads and not _PARTS.match(place.full):
            network = whole[max(heads, key=len)]
            apart = not network.is_of_one_mapping and not _RUN.match(place.full.removeprefix(network.head))
            if apart or place.trail == network.trail:
                _add(network, _MODULE.sub("", place.full.removeprefix(network.head)), place, path)
    return list(whole.values())


def _add(network: Network, key: str, place: Place, path: Path) -> None:
    if key in network.leaves and not _same(network.leaves[key], place.leaf, path):
        raise CheckpointError(
            f"{path}: expected one network, found two values of {_short(network.head + key)!r}; keep one"
        )
    network.leaves[key] = place.leaf


def _rank(network: Network) -> tuple[int, int]:
    first = network.head.partition(".")[0]
    known = WRAPPERS.index(first) if first in WRAPPERS else len(WRAPPERS)
    return (-1 if not network.head else known, len(network.head))


def _named(networks: Sequence[Network], state: str) -> list[Network]:
    """Those of exactly this name, else under it, else with it somewhere in it; "ema" is in "model_ema"."""
    wanted = f"{state.strip('.')}." if state != TOP else ""
    exact = [n for n in networks if n.head == wanted]
    under = [n for n in networks if wanted and n.head.startswith(wanted)]
    inside = [n for n in networks if wanted and f".{wanted}" in f".{n.head}"]
    word = state.lower() if state.lower() in _AVERAGES else None
    return exact or under or inside or [n for n in networks if word in re.split(r"[._]", n.head.lower())]


def _by_name(found: Sequence[Place], networks: Sequence[Network], path: Path, state: str) -> Chosen:
    """The tensors under a name, of whatever network."""
    wanted = f".{state.strip('.')}."
    inside = [(f".{place.full}".partition(wanted), place) for place in found]
    under = {rest: place for (_, dot, rest), place in inside if dot and rest}
    if not under:
        names = [n.name for n in networks] or list(dict.fromkeys(p.trail or TOP for p in found))
        some = ", ".join(repr(name)[:60] for name in names[:4]) or "no tensors"
        raise CheckpointError(f"{path}: expected a network under {_short(state)!r}, found {some}")
    network = Network(f"{state.strip('.')}.", next(iter(under.values())).trail)
    network.leaves = {key: place.leaf for key, place in under.items()}
    return Chosen(network)


def _only(networks: Sequence[Network], path: Path) -> tuple[Network, tuple[str, ...]]:
    """The first of several, where the known wrappers tell an order, or the others are no rivals of it.

    Such are copies, averages that lack what it has, and teachers beside what is plainly the network.
    """
    complete = [n for n in networks if not any(_lacking(n, other) for other in networks)]
    chosen = complete[0]
    others = [n for n in complete[1:] if not _is_copy(n, chosen, path)]
    rivals = [n for n in others if not (_has_plain_name(chosen) and _is_teacher(n))]
    order = [_rank(n)[0] if n.wrapper else len(WRAPPERS) for n in (chosen, *rivals)]
    if rivals and not order[0] < order[1] <= order[-1] < len(WRAPPERS):
        names = [n.name for n in (chosen, *rivals)]
        many = "two" if len(names) == 2 else str(len(names))
        raise CheckpointError(
            f"{path}: expected one network, found {many} that differ: {', '.join(map(repr, names[:4]))}; "
            f"choose one as in {path.name}::{names[-1]}, or by `state` of a manifest entry"
        )
    lacking = [n for n in networks if n not in complete]
    return chosen, (
        *(f"{n.name} (another network, which {path.name}::{n.name} takes)" for n in others),
        *(f"{n.name} (without the running statistics of norms)" for n in lacking),
    )


def _has_plain_name(network: Network) -> bool:
    """Whether nothing but known wrappers stands before its keys."""
    return all(part in WRAPPERS for part in network.head.split(".") if part)


def _is_teacher(network: Network) -> bool:
    return any(_TEACHER.fullmatch(part) for part in network.head.split("."))


def _lacking(network: Network, other: Network) -> set[str]:
    """Tensors of norms that `other` has and `network` lacks, where that is all in which their keys differ.

    So is an average over `named_parameters()` beside its model: it leaves out buffers.
    """
    own, whole = (
        {key for key in n.leaves if not key.endswith(_COUNTERS) and _is_part(key)} for n in (network, other)
    )
    norms = {key.removesuffix("running_mean") for key in whole if key.endswith(".running_mean")}
    missing = whole - own
    alike = own <= whole and all(key[: key.rfind(".") + 1] in norms for key in missing)
    return missing if alike else set()


def _require_complete(chosen: Network, networks: Sequence[Network], path: Path) -> None:
    for other in networks:
        if missing := sorted(_lacking(chosen, other)):
            raise CheckpointError(
                f"{path}: {chosen.name}: expected the running statistics of norms, found none, as in an "
                f"average over named_parameters(): {_short(missing[0])} and {len(missing) - 1} more are in "
                f"{other.name!r}; choose {path.name}::{other.name}, or save the average with its buffers"
            )


def _is_part(key: str) -> bool:
    return key.partition(".")[0] in _NAMES


def _split_off(
    found: Sequence[Place], chosen: Network, networks: Sequence[Network], path: Path
) -> dict[str, Leaf]:
    """Take losses, metrics and single numbers out of a network; give them, and what lies beside it."""
    strange = {
        key: leaf
        for key, leaf in chosen.leaves.items()
        if not _is_part(key) and (count(leaf) <= 1 or _LOSSES.fullmatch(key.partition(".")[0]))
    }
    for key in strange:
        del chosen.leaves[key]
    heads = tuple(n.head for n in networks)
    for place in found:
        if place.trail == chosen.trail and not place.full.startswith(heads):
            match = _PARTS.match(place.full)
            twin = chosen.leaves.get(f"{match[2]}.{match[3]}") if match else None
            if twin is None or not _same(twin, place.leaf, path):
                strange[_INNER.sub("", place.key)] = place.leaf
    return strange


def _is_copy(network: Network, other: Network, path: Path) -> bool:
    """Whether everything in a network is in another one too."""
    return all(
        key in other.leaves and _same(leaf, other.leaves[key], path)
        for key, leaf in network.leaves.items()
        if _is_part(key) and not key.endswith(_COUNTERS)
    )


def _same(one: Leaf, other: Leaf, path: Path) -> bool:
    if one is other:
        return True
    a, b = as_tensor(one, path, "a tensor"), as_tensor(other, path, "a tensor")
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def unwrap(content: Any, path: Path, trail: str = "") -> Network:
    """The tensors of a file of no known layout: the innermost along the known wrappers, else the only ones.

    Raises CheckpointError where there are none.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a mapping of tensors, found {_kind(content)}")
    for name in WRAPPERS:
        inner = dict.get(content, name)
        if isinstance(inner, dict) and places(inner):
            return unwrap(inner, path, f"{trail}.{name}".lstrip("."))
    tensors = {k: v for k, v in dict.items(content) if isinstance(k, str) and is_weight(v)}
    if not tensors and not trail:
        return _only_mapping(content, path)
    network = Network(f"{trail}." if trail else "", trail)
    for key, leaf in tensors.items():
        _add(network, _INNER.sub("", key), Place(trail, key, leaf), path)
    return network


def _only_mapping(content: Any, path: Path) -> Network:
    """The only mapping that holds tensors, but for a training run's own."""
    found = [place for place in places(content) if not _RUN.match(place.trail)]
    trails = {place.trail for place in found}
    if len(trails) != 1:
        some = [repr(k)[:60] if isinstance(k, str) else type(k).__name__ for k in list(dict(content))[:5]]
        keys = ", ".join(some) or "nothing"
        raise CheckpointError(f"{path}: expected tensors, or one of {', '.join(WRAPPERS)}, found {keys}")
    (trail,) = trails
    network = Network(f"{trail}.", trail)
    for place in found:
        _add(network, _INNER.sub("", place.key), place, path)
    return network


def _kind(content: object) -> str:
    return "Tensor" if isinstance(content, StoredTensor) else type(content).__name__
