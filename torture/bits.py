"""Mutations that know nothing of a format: bits, numbers, cuts, repetitions."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import TypeVar

T = TypeVar("T")
Mutation = Callable[[bytes, Random], bytes]
"""Other bytes in the place of some, decided by the generator alone."""

NUMBERS: tuple[int, ...] = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24)
NUMBERS += (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
"""Where sizes and counts tend to go wrong."""


def span(data: bytes, rng: Random) -> tuple[int, int]:
    """Start and end of a piece, mostly a short one."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 12)))


def _flip(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _noise(data: bytes, rng: Random) -> bytes:
    start, end = span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _number(data: bytes, rng: Random) -> bytes:
    value = pick_number(rng.choice("<>") + rng.choice("BHIQ"), rng)
    start = rng.randrange(len(data) + 1)
    return data[:start] + value + data[start + len(value) :]


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: Random) -> bytes:
    start, end = span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, end = span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _insert(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 100))) + data[start:]


def _zeros(data: bytes, rng: Random) -> bytes:
    start, end = span(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def _move(data: bytes, rng: Random) -> bytes:
    start, end = span(data, rng)
    rest = data[:start] + data[end:]
    to = rng.randrange(len(rest) + 1)
    return rest[:to] + data[start:end] + rest[to:]


_KINDS = (_flip, _flip, _noise, _number, _number, _cut, _remove, _repeat, _insert, _zeros, _move)


def mutate_bits(data: bytes, rng: Random) -> bytes:
    """One to four mutations, one after the other."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_KINDS)(data, rng)
    return data


def pick_number(layout: str, rng: Random) -> bytes:
    """One of `NUMBERS`, or a small one, packed as `layout` ("<I"), cut to its size."""
    value = rng.choice((*NUMBERS, rng.randrange(4096)))
    return struct.pack(layout, value & ((1 << 8 * struct.calcsize(layout)) - 1))


def shuffled(parts: list[T], rng: Random) -> list[T]:
    """One part lost, twice, or in another place."""
    if not parts:
        return parts
    at, kind = rng.randrange(len(parts)), rng.randrange(3)
    rest = parts[:at] + parts[at + 1 :]
    if kind == 0:
        return rest
    if kind == 1:
        return [*parts[: at + 1], *parts[at:]]
    to = rng.randrange(len(rest) + 1)
    return [*rest[:to], parts[at], *rest[to:]]
