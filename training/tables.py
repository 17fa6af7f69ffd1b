"""What is measured along a run: tables that grow row by row, and their picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sartorius_infer.files import atomic_file

LOG = "log.csv"
VALIDATION = "validation.csv"
CURVES = "curves.png"

TERMS = ("objectness", "rpn_box", "class", "box", "mask")
LOG_COLUMNS = ("iteration", "loss", *(f"loss_{term}" for term in TERMS), "lr", "gradient_norm", "seconds")


class Meter:
    """Means of what was measured since the last row."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._last = 0.0

    def add(self, losses: dict[str, Tensor], rate: float, norm: float) -> None:
        """One iteration."""
        told = {f"loss_{name}": float(term.detach()) for name, term in losses.items()}
        told |= {"loss": sum(told.values()), "lr": rate, "gradient_norm": norm}
        for name, value in told.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._last = 0.9 * self._last + 0.1 * told["loss"] if self._last else told["loss"]

    def postfix(self) -> dict[str, str]:
        """What the progress bar shows: a running mean of the loss."""
        return {"loss": f"{self._last:.3f}"}

    def take(self) -> dict[str, float]:
        """The means, forgotten afterwards."""
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class Table:
    """A CSV file that grows row by row; rows after a given iteration are forgotten on going on."""

    def __init__(self, path: Path, columns: Sequence[str], after: int = 0) -> None:
        self.path, self.columns = path, tuple(columns)
        kept = (
            [row for row in read_table(path) if int(float(row["iteration"])) <= after]
            if path.exists()
            else []
        )
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
