"""Runs with the network of `logged_plugin.py`: its weights, its images, its log, the command line."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from places import ROOT
from tiny import loose_rules
from tqdm import tqdm

from sartorius_infer.cli.main import main
from sartorius_infer.networks import registry

PLUGIN = ROOT / "tests" / "logged_plugin.py"
BROKEN = 250
"""The number of an image at which the network raises."""
SIZES = ((24, 40), (24, 40), (24, 40), (40, 24))


def write_weights(folder: Path, seconds: Sequence[float] = (0.0,), **manifest: Any) -> Path:
    """A manifest of one network for each of `seconds`: what it takes to look at an image once."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, some in enumerate(seconds):
        state = {"logged.seconds": torch.tensor(some), "logged.seed": torch.tensor(i)}
        torch.save(state, folder / f"{i}.pth")
        entries.append({"name": f"net{i}", "file": f"{i}.pth", "architecture": "logged", "weight": 1 + i})
    content = {"version": 1, "classes": list("abc"), "models": entries, "rules": loose_rules()} | manifest
    path = folder / "weights_manifest.json"
    path.write_text(json.dumps(content))
    return path


def write_numbered(folder: Path, numbers: Sequence[int], sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """Images whose first pixel is their number, in the sizes by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(numbers):
        pixels = np.random.default_rng(number).integers(0, 255, sizes[place % len(sizes)], np.uint8)
        pixels[0, 0] = number
        assert cv2.imwrite(str(folder / f"image{place:03}.png"), pixels)
    return folder


def words_of(weights: Path, images: Path, out: Path, *more: str | Path) -> list[str]:
    """The command line of a run, without the program."""
    words = ["--plugin", PLUGIN, "--weights", weights, "--images", images, "--out", out, *more]
    return [str(word) for word in words]


def run_here(words: Sequence[str], log: Path | None = None) -> int:
    """The command line in this process, as often as one likes: its plugin is gone after it."""
    with (
        mock.patch.object(registry, "_FAMILIES", dict(registry._FAMILIES)),
        mock.patch.dict(os.environ, {"LOGGED_TO": str(log)} if log else {}),
    ):
        return main(words)


def start(
    words: Sequence[str], *torchrun: str, boot: Sequence[str] = (), **env: str
) -> subprocess.Popen[str]:
    """The command line in a process on one thread, or in several under torchrun where it has options.

    `boot` are words before it, which put it on another host.
    """
    program = [*boot, sys.executable, "-m"]
    program += ["torch.distributed.run", *torchrun, "-m"] if torchrun else []
    return subprocess.Popen(
        [*program, "sartorius_infer", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Its exit code and everything it said; one that takes longer is ended, with those it started."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its own
        raise
    return process.returncode, said


class Child:
    """The command line in a fork of a process that has imported torch: it starts in no time.

    It kills itself before the `last`-th change that it makes to the file system, or is killed.
    """

    def __init__(self, words: Sequence[str], log: Path, last: int = 0) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["logged", "sartorius_infer.run.runs", "torchvision"])
        self._process = context.Process(target=_child, args=(list(words), str(log), last))
        self._process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, minus the signal that killed it; None where it still runs after this time."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> int | None:
        """As kill -9 does."""
        self._process.kill()
        return self.wait()


CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def _child(words: list[str], log: str, last: int) -> None:
    os.environ["LOGGED_TO"] = log
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    left = last

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if last:
        sys.addaudithook(watch)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaks
    os._exit(main(words))


def seen(log: Path) -> list[int]:
    """The numbers of the images that the network looked at."""
    return [number for some in seen_by_process(log) for number in some]


def seen_by_process(log: Path) -> list[list[int]]:
    """The same for each process, in the order in which they began."""
    found: dict[str, list[int]] = {}
    for line in log.read_text().splitlines() if log.is_file() else []:
        number, process = line.split()
        found.setdefault(process, []).append(int(number))
    return list(found.values())
