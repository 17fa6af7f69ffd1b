"""The command line: `python -m training RECIPE.toml --data NAME=FOLDER ... --out runs/NAME`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sartorius_infer.errors import SartoriusError, one_line


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a Mask R-CNN by a recipe; what comes out is a checkpoint and a manifest that "
        "`python -m sartorius_infer --weights OUT` takes. The same command goes on where a run stopped.",
    )
    add = made.add_argument
    add("recipe", type=Path, metavar="RECIPE.toml")
    add("--data", nargs="+", required=True, metavar="NAME=FOLDER",
        help="annotated images: train.csv, a COCO JSON, or labels/ beside images/; a folder alone is called "
        "by its own name")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    add("--all", action="store_true", help="train on every image, hold none out")
    add("--folds", type=int, metavar="K", help="hold out one of K parts instead of the recipe's split")
    add("--fold", type=int, metavar="I", help="which of --folds, or of the recipe's folds, from 0")
    add(
        "--init",
        metavar="FILE",
        help="weights to start from instead of the recipe's; FILE::ema is one network of several in a file",
    )
    add("--seed", type=int, metavar="N", help="instead of the recipe's")
    add("--time-limit", type=float, metavar="MINUTES", help="stop then, with the state written")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that prepare batches (default: 4 with a GPU, else 0)",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a training; 0 when it ended or its time was up, 1 for bad input, 143 after SIGTERM."""
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        from training.run import Options, run

        options = Options(
            recipe=given.recipe,
            data=tuple(given.data),
            out=given.out,
            all_images=given.all,
            folds=given.folds,
            fold=given.fold,
            init=given.init,
            seed=given.seed,
            minutes=given.time_limit,
            device=given.device,
            workers=given.workers,
        )
        return run(options, print)
    except SartoriusError as error:
        print(one_line(error), file=sys.stderr)
        return 1
