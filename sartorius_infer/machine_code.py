"""Loops over numbers as machine code, by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def machine_code(loop: F) -> F:
    """A loop that lets other threads run; compiled once for this installation where its files may be kept.

    numba takes long to load: a room with such loops is imported where it is used.
    """
    from numba import njit

    try:
        return cast(F, njit(nogil=True, cache=True)(loop))
    except RuntimeError:  # neither beside its file nor in the user's cache
        return cast(F, njit(nogil=True)(loop))
