"""One process or several, as torchrun starts them; and when to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sartorius_infer.run.ranks import Rank

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others, which may be validating."""

T = TypeVar("T")


@contextmanager
def process_group(rank: Rank, device: torch.device) -> Iterator[None]:
    """Join the other processes while the block runs; nothing to do for one alone.

    After an error the group is left as it is: to close it would be to wait for processes that wait for this
    one, while torchrun ends them as soon as this one has ended.
    """
    if rank.count == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield
    dist.destroy_process_group()


def gather(own: Sequence[T], rank: Rank) -> list[T]:
    """The lists of all processes, one after the other, in each of them."""
    if rank.count == 1:
        return list(own)
    every: list[Any] = [None] * rank.count
    dist.all_gather_object(every, list(own))
    return [item for part in every for item in part]


def share(tensors: Sequence[Tensor], rank: Rank) -> None:
    """Give every process the first one's values."""
    if rank.count > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


class Stop:
    """Whether it is time to stop: a signal came, or the minutes are over. All processes agree on it."""

    def __init__(self, rank: Rank, device: torch.device, minutes: float | None) -> None:
        self.rank, self.device = rank, device
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.signal: int | None = None

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            os._exit(130)  # asked twice by hand: not even the state is worth the wait
        self.signal = number

    def now(self) -> bool:
        """Whether any process wants to stop; each must ask as often as the others."""
        own = self.signal is not None or (self.deadline is not None and time.monotonic() > self.deadline)
        if self.rank.count > 1:
            wish = torch.tensor(float(own), device=self.device)
            dist.all_reduce(wish, dist.ReduceOp.MAX)
            own = bool(wish > 0)
        return own
