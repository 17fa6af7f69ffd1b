"""What is killed, starved and disturbed: every command that writes, and whether its output is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from logged import PLUGIN, write_numbered, write_weights

from torture.contract import EARLIER, contents
from torture.scene import make_scene

IMAGES = 10
SECONDS = 0.03
"""That the network of these runs takes for an image."""


@dataclass(frozen=True)
class Act:
    """A command and what it writes: the words lead to a scene, outputs lie in the current folder.

    outputs   files and folders ("o/") below the current folder
    resumes   whether it goes on from a journal
    torchrun  whether two processes share it
    once      whether it refuses what it wrote itself
    """

    words: tuple[str, ...]
    outputs: tuple[str, ...]
    resumes: bool = False
    torchrun: bool = False
    once: bool = False

    @property
    def journal(self) -> str:
        """Where its journal lies."""
        return f"{self.outputs[0]}.journal"


def make_acts(scene: Path) -> dict[str, Act]:
    """Every act over a scene that is made in `scene`."""
    make_scene(scene)
    weights = write_weights(scene / "slow", [SECONDS])
    images = write_numbered(scene / "numbered", range(IMAGES))
    run = ("--plugin", str(PLUGIN), "--weights", str(weights), "--images", str(images), "--workers", "2")
    whole = ("--save-predictions", "p", "--overlays", "o")
    network = str(scene / "w" / "weights_manifest.json")
    truth, saved, cells = (str(scene / name) for name in ("train.csv", "saved", "cells"))
    return {
        "run": Act((*run, "--out", "s.csv"), ("s.csv",)),
        "resumed": Act((*run, "--resume", "--out", "s.csv"), ("s.csv",), resumes=True),
        "resumed, batches of 3": Act(
            (*run, "--resume", "--batch-size", "3", "--out", "r.json"), ("r.json",), resumes=True
        ),
        "time limit": Act(
            (*run, "--resume", "--time-limit", "1h", "--views", "identity,hflip", "--out", "r.zip"),
            ("r.zip",),
            resumes=True,
        ),
        "every output": Act(
            (*run, "--resume", *whole, "--out", "s.csv"), ("s.csv", "p/", "o/"), resumes=True
        ),
        "torchrun": Act((*run, "--resume", "--out", "s.csv"), ("s.csv",), resumes=True, torchrun=True),
        "import": Act(
            ("import", str(scene / "ck" / "run.pth"), "--classes", "a,b,c", "--out", "w"), ("w/",), once=True
        ),
        "show": Act(
            ("show", "--predictions", saved, "--weights", network, "--images", cells, "--truth", truth,
             "--out", "page.html", "--overlays", "o"),
            ("page.html", "o/"),
        ),
        "score": Act(
            ("score", "--truth", truth, "--submission", str(scene / "submission.csv"), "--json", "s.json",
             "--per-image", "i.csv"),
            ("s.json", "i.csv"),
        ),
    }  # fmt: skip


def prepare(folder: Path, act: Act) -> Path:
    """A new folder with earlier outputs in it."""
    folder.mkdir()
    for name in act.outputs:
        if not name.endswith("/"):
            (folder / name).write_bytes(EARLIER)
    return folder


def broken_outputs(folder: Path, act: Act, expected: Mapping[str, bytes]) -> list[str]:
    """Outputs that are neither the earlier nor the expected ones, and files that have no business here.

    Hidden files that end in ".part" are what a kill may leave, besides a journal.
    """
    found = []
    for path, content in contents(folder).items():
        if path.startswith(f"{act.journal}/") or (Path(path).name[0] == "." and path.endswith(".part")):
            continue
        if content not in (expected.get(path), EARLIER):
            found.append(f"{path} is neither the earlier nor the whole one")
    return found
