"""Several processes on one list of images, as torchrun starts them.

torchrun tells each process its rank through the environment. Batches are dealt out by their number, so
which process runs a batch changes nothing in it; the journal, in a folder that all of them see, carries
the results to rank 0. When a process dies torchrun restarts all of them, and they go on from the journal.
A restart is known by torchrun's own process, not by its count of restarts, which only the machine on which
a process died counts up.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PATIENCE = timedelta(days=30)
"""How long a process waits for the others; torchrun ends the wait when one of them dies."""


@dataclass(frozen=True)
class Rank:
    """Which of `count` processes this is; `local` counts on its machine, `agent` names the torchrun there."""

    index: int = 0
    count: int = 1
    local: int = 0
    agent: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.index == 0


def this_rank() -> Rank:
    """This process's rank by torchrun's variables; the only one where they are not set."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Rank()
    index, count, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Rank(index, count, local, _agent())


def _agent() -> str:
    """The process that started this one, by a name that no other had or will have."""
    parent = os.getppid()
    fields = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    return f"{socket.gethostname()}-{parent}-{fields.split()[19]}"  # its start, in ticks since boot


@contextmanager
def together(rank: Rank) -> Iterator[Callable[[], None]]:
    """A function that waits until every process has called it; does nothing where there is one."""
    if rank.count == 1:
        yield lambda: None
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    def wait() -> None:
        dist.barrier()

    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    own = PrefixStore(_meet(store, rank), store)
    dist.init_process_group("gloo", store=own, rank=rank.index, world_size=rank.count, timeout=PATIENCE)
    try:
        yield wait
    finally:
        dist.destroy_process_group()


def _meet(store: Store, rank: Rank) -> str:
    """A name that the processes of this start agree on, and those of an earlier one did not have.

    torchrun's store outlives the processes: what is in it may have been written by dead ones, and
    connecting to those fails or never ends.
    """
    me = secrets.token_hex(8)
    store.set(f"here/{rank.index}", me)
    others = range(1, rank.count)
    while True:
        if rank.is_first:
            store.set("all", " ".join([me, *(store.get(f"here/{i}").decode() for i in others)]))
            if all(store.check([f"seen/{i}"]) and store.get(f"seen/{i}").decode() == me for i in others):
                return me
        else:
            names = store.get("all").decode().split()
            if names[rank.index : rank.index + 1] == [me]:
                store.set(f"seen/{rank.index}", names[0])
                return names[0]
        time.sleep(0.05)
