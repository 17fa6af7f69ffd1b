"""What a run leaves in its folder: the state to go on from, tables, and curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sartorius_infer.errors import first_line
from sartorius_infer.files import atomic_file
from sartorius_infer.manifest.settings import flatten
from training.errors import TrainingError
from training.tables import LOG, VALIDATION

STATE = "last.pt"
SPLIT = "split.json"
RECIPE = "recipe.toml"
FINAL = "final"
"""The last weights, where the best are told by held-out images."""


def open_run(out: Path, recipe: Path) -> None:
    """Make the folder of a new run: the recipe lies in it, tables of one that left no state do not.

    A run that goes on keeps its recipe until the given one is known to be its own.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / STATE).is_file():
            for name in (LOG, VALIDATION):
                (out / name).unlink(missing_ok=True)
            copy_recipe(out, recipe)
    except OSError as error:
        raise TrainingError(
            f"{out}: expected a folder to write to, found {error.strerror or error}"
        ) from None


def copy_recipe(out: Path, recipe: Path) -> None:
    """Lay the recipe into the run's folder, unless it is the one there."""
    if (out / RECIPE).resolve() != recipe.resolve():
        shutil.copyfile(recipe, out / RECIPE)


def save_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write the state whole or not at all."""
    with atomic_file(out / STATE, "wb") as file:
        torch.save(dict(state), file)


def load_state(out: Path) -> dict[str, Any]:
    """The state that `save_state` wrote, in main memory; raises TrainingError for a file that is none."""
    try:
        state: dict[str, Any] = torch.load(out / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way
        raise TrainingError(f"{out / STATE}: expected the state of a run, found {error}") from None
    return state


def require_same(out: Path, key: str, then: str | None, now: str) -> None:
    """Raise TrainingError, naming the first difference, unless a run goes on as it began; both are JSON."""
    if then in (None, now):
        return
    before, after = (flatten(json.loads(text or "{}")) for text in (then, now))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    raise TrainingError(
        f"{out}: expected the {key} that the run began with, found another {', '.join(names[:3])}; "
        "choose another --out"
    )


def write_split(out: Path, split: Mapping[str, Any]) -> None:
    """Write which images train and which are held out; raises TrainingError if a run began with others."""
    path, text = out / SPLIT, json.dumps(split, indent=2)
    if (out / STATE).is_file() and path.is_file():
        require_same(path, "images", path.read_text(encoding="utf-8"), text)
    with atomic_file(path, "w") as file:
        file.write(text)


def read_held_out(out: Path) -> tuple[str, ...]:
    """The ids of the images that a run held out; raises TrainingError where it tells of none."""
    path = out / SPLIT
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))["validation"]
        ids = tuple(str(key).split("/", 1)[1] for key in keys)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TrainingError(f"{path}: expected the split of a run, found {first_line(error)}") from None
    if not ids:
        raise TrainingError(f"{path}: expected images that were held out, found none")
    return ids
