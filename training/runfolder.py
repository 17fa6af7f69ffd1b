"""What a run leaves in its folder: the state to go on from, tables, and curves."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sartorius_infer.files import atomic_file
from training.errors import TrainingError

STATE = "last.pt"
LOG = "log.csv"
VALIDATION = "validation.csv"
CURVES = "curves.png"
SPLIT = "split.json"
RECIPE = "recipe.toml"


def open_run(out: Path, recipe: Path) -> bool:
    """Make the folder and copy the recipe; whether there is a state to go on from.

    Raises TrainingError where the folder holds a run of another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept = out / RECIPE
    if (out / STATE).is_file():
        if not kept.is_file() or kept.read_bytes() != recipe.read_bytes():
            raise TrainingError(f"{out}: expected a run of {recipe}, found one of another recipe; choose another --out")
        return True
    if any((out / name).exists() for name in (LOG, VALIDATION)):
        for name in (LOG, VALIDATION):
            (out / name).unlink(missing_ok=True)
    if kept.resolve() != recipe.resolve():
        shutil.copyfile(recipe, kept)
    return False


def save_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write the state whole or not at all."""
    with atomic_file(out / STATE, "wb") as file:
        torch.save(dict(state), file)


def load_state(out: Path, device: torch.device) -> dict[str, Any]:
    """The state that `save_state` wrote; raises TrainingError for a file that is none."""
    try:
        state: dict[str, Any] = torch.load(out / STATE, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file fails in any way
        raise TrainingError(f"{out / STATE}: expected the state of a run, found {error}") from None
    return state


def write_split(out: Path, split: Mapping[str, Any]) -> None:
    """Write which images train and which are held out; raises TrainingError if a run began with others."""
    path, text = out / SPLIT, json.dumps(split, indent=2)
    if (out / STATE).is_file() and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise TrainingError(f"{path}: expected the images that the run began with, found others; choose another --out")
    with atomic_file(path, "w") as file:
        file.write(text)


class Table:
    """A CSV file that grows row by row; rows after a given iteration are forgotten on going on."""

    def __init__(self, path: Path, columns: Sequence[str], after: int = 0) -> None:
        self.path, self.columns = path, tuple(columns)
        kept = [row for row in read_table(path) if int(float(row["iteration"])) <= after] if path.exists() else []
        with atomic_file(path, "w") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row; fractions with six digits."""
        told = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(told)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw_curves(out: Path) -> None:
    """The losses and the held-out score against iterations, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    log, validation = read_table(out / LOG), read_table(out / VALIDATION)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
    terms = [name for name in (log[0] if log else ()) if name.startswith("loss")]
    for axis, rows, names in ((left, log, terms), (right, validation, _scores(validation))):
        for number, name in enumerate(names):
            told = [(float(row["iteration"]), float(row[name])) for row in rows if row[name]]
            x, y = zip(*told, strict=True) if told else ((), ())
            marker = "" if axis is left else "o"
            axis.plot(x, y, marker=marker, markersize=3, color=colours[number % 6], label=name)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        if names:
            axis.legend()
    left.set_ylabel("loss")
    right.set_ylabel("mean average precision, held-out images")
    with atomic_file(out / CURVES, "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _scores(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [name for name in (rows[0] if rows else ()) if name not in ("iteration", "seconds", "cells")]
