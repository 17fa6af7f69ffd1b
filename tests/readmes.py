"""README.md as its tests read it: fenced blocks, the commands in them, and a folder where they all run.

A new example is found by itself. Where it names a file that `write_world` does not make, make it there;
where it cannot be run, say why in `EXCUSED`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cellpose_cases import saved, small_state
from detectron2_runs import write_run
from kits import wheels_from_here
from mmdet_runs import write_run as write_mmdet
from places import ROOT, SAMPLES
from safetensors.torch import load_file
from shows import RULES, SIZE, Case, make_case, write_train
from tiny import write_image, write_tiny
from training_factories import write_recipe, write_sartorius

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.competition import COMPETITION_CLASSES
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.output.predictions import save_prediction

README = (ROOT / "README.md").read_text(encoding="utf-8")

RUN = ("python", "torchrun", "sartorius_infer", "make")
"""Programs that tests run; of `make` they ask only what it would do."""

EXCUSED = {
    "kaggle": "needs the network and an account",
    "pip install": "changes the environment that the tests run in; a wheel's content is tested in tests/kit",
    "git clone": "needs the network",
    "cd": "the tests choose the folder",
    "python -m pytest": "would run itself",
    "python -m benchmarks": "measures for a quarter of an hour; tests/benchmarks runs its parts",
}
"""Commands that are not run, and why not."""

SLOW = (
    "tune",
    "training",
    "torchrun",
    "build_dataset.py",
    "import",
    "fold0.pth fold1",
    "model_final",
    "epoch_12",
)
"""What a command says that takes long."""


@dataclass(frozen=True)
class Command:
    """A line that is typed, as its words, the program without its folder, and the lines shown under it."""

    words: tuple[str, ...]
    shown: tuple[str, ...] = ()

    @property
    def excuse(self) -> str | None:
        """Why it is not run, if so."""
        text = f"{self} "
        return next((why for start, why in EXCUSED.items() if text.startswith(f"{start} ")), None)

    @property
    def labels(self) -> list[str]:
        """The words that begin shown lines where a column follows, but for those that some results lack."""
        found = [re.match(r" *([a-z]+) {2,}\S", line) for line in self.shown]
        return [match[1] for match in found if match and match[1] not in ("advice", "left", "failed")]

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and the number of its first line."""

    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        """Its place and how it begins."""
        return f"line {self.line}: {' '.join(self.text.split())[:60]}"

    @property
    def commands(self) -> list[Command]:
        """The lines that are typed: those after `$`, or all where none is."""
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = any(line.startswith("$ ") for line in lines)
        found: list[Command] = []
        for line in lines:
            if line.startswith("$ ") or not typed:
                if words := _words(line.removeprefix("$ ")):
                    found.append(Command((Path(words[0]).name, *words[1:])))
            elif found:
                found[-1] = Command(found[-1].words, (*found[-1].shown, line))
        return found


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # no command at all
        return [line]


def blocks(text: str = README) -> list[Block]:
    """Every fenced block of a document."""
    found = re.finditer(r"^```([a-z]*)\n(.*?)^```$", text, re.S | re.M)
    return [Block(text[: each.start()].count("\n") + 2, each[1], each[2]) for each in found]


def run(command: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type a command in a folder, with this checkout and this interpreter."""
    program, *words = (re.sub(r"\bUSER\b", "someone", word) for word in command.words)
    python = [sys.executable, "-W", "error"]
    if program == "python" and words[0].endswith(".py"):
        words[0] = str(ROOT / words[0])
    starts = {
        "python": python,
        "sartorius_infer": [*python, "-m", "sartorius_infer"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
        "make": ["make", "--directory", str(ROOT), "--dry-run"],
    }
    # pip takes what is here, the pages draw without a screen.
    ours = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    ours |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels")}
    return subprocess.run(
        [*starts[program], *words], cwd=folder, env=os.environ | ours, capture_output=True, text=True
    )


def write_world(folder: Path) -> Path:
    """A folder with a small one of everything that README's examples name."""
    case = make_case(folder / "case", count=5)
    shutil.copytree(folder / "case" / "images", folder / "train")
    ids = [file.id for file in case.files[1:3]]
    for sample in SAMPLES.glob("*.tif"):
        write_image(folder / "samples" / sample.name, SIZE)
    for name in ("test", "plates"):
        (folder / name).mkdir()
        for image_id in ids:
            shutil.copy(folder / "train" / f"{image_id}.png", folder / name)
    for prediction in case.predictions:
        save_prediction(folder / "soft", prediction)
        few = prediction[np.arange(len(prediction)) < 8]  # a search takes long
        for name in ("held_out", "saved/resnet50", "saved/convnext"):
            save_prediction(folder / name, few)
    write_train(folder / "train.csv", case.truth)
    _write_submissions(folder, case, ids)
    _write_weights(folder)
    wheels_from_here(folder / "wheels")
    write_recipe(folder / "training" / "recipes" / "default.toml")
    write_sartorius(folder / "DIR")
    return folder


def _write_submissions(folder: Path, case: Case, ids: Sequence[str]) -> None:
    other = RULES.model_copy(update={"overlap_survival": 0.6})
    for name, rules in (("submission.csv", RULES), ("other.csv", other)):
        rows = [f"{p.image_id},{text}" for p in case.predictions for text in _texts(case, p.image_id, rules)]
        kept = [row for row in rows if row.split(",")[0] in ids]
        (folder / name).write_text("\n".join(["id,predicted", *kept, ""]))
    numbered = [{"file_name": f"{image_id}.tif", "id": k} for k, image_id in enumerate(ids, start=1)]
    (folder / "test_image_name_to_ids.json").write_text(json.dumps(numbered))
    (folder / "sample_submission.csv").write_text("\n".join(["id,predicted", *(f"{i},1 1" for i in ids), ""]))


def _texts(case: Case, image_id: str, rules: Rules) -> list[str]:
    (prediction,) = (p for p in case.predictions if p.image_id == image_id)
    cells = build_instances(prediction, rules, COMPETITION_CLASSES)
    return encode_label_map(cells.label_map, len(cells)) or [""]


def _write_weights(folder: Path) -> None:
    """A manifest, one of a pair, bare checkpoints, and ones as Detectron2, MMDetection and Cellpose leave."""
    rules = {"per_class": {name: {"score": 0.05, "mask": 0.3} for name in COMPETITION_CLASSES}}
    manifest = write_tiny(folder, classes=list(COMPETITION_CLASSES), rules=rules)
    content = json.loads(manifest.read_text())
    pair = [content["models"][0] | {"name": name} for name in ("resnet50", "convnext")]
    (folder / "pair.json").write_text(json.dumps(content | {"models": pair}))
    shutil.copy(folder / "tiny.safetensors", folder / "fold1.safetensors")
    torch.save(load_file(folder / "tiny.safetensors"), folder / "fold0.pth")
    (folder / "output").mkdir()
    write_run(folder / "output")
    write_mmdet(folder / "work_dirs")
    (folder / "models").mkdir()
    saved(folder / "models" / "cellpose_residual_on_style_on_train_2021_12_08.734155", small_state())
