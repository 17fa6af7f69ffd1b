"""Several processes on one list of images, as torchrun starts them.

torchrun tells each process its rank through the environment. Batches are dealt out by their number, so
which process runs a batch changes nothing in it; the journal, in a folder that all of them see, carries
the results to rank 0. When a process dies torchrun restarts all of them, and they go on from the journal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

PATIENCE = timedelta(days=30)
"""How long a process waits for the others; torchrun ends the wait when one of them dies."""


@dataclass(frozen=True)
class Rank:
    """Which of `count` processes this is; `local` counts on its machine, `restarts` how often they died."""

    index: int = 0
    count: int = 1
    local: int = 0
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.index == 0


def this_rank() -> Rank:
    """This process's rank by torchrun's variables; the only one where they are not set."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Rank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    return Rank(*(int(os.environ.get(name, "0")) for name in names))


@contextmanager
def together(rank: Rank) -> Iterator[Callable[[], None]]:
    """A function that waits until every process has called it; does nothing where there is one."""
    if rank.count == 1:
        yield lambda: None
        return
    import torch.distributed as dist

    def wait() -> None:
        dist.barrier()

    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield wait
    finally:
        dist.destroy_process_group()
