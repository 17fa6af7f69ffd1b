"""One whole run: recipe and data read, the network built, trained, written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sartorius_infer.checkpoints.files import named_network
from sartorius_infer.ensemble.device import keep_memory, resolve_device, resolve_precision
from sartorius_infer.run.ranks import Rank, this_rank
from training.errors import TrainingError
from training.legs import Leg, plan_legs
from training.loop import Place, Trainer
from training.model import build_learner
from training.processes import Stop, process_group
from training.recipe import Recipe, read_recipe
from training.runfolder import FINAL, STATE, copy_recipe, open_run, write_split
from training.sources import Example, parse_data, read_sources
from training.splits import describe_split, some_of_each, split_examples
from training.tables import draw_curves

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """The command line's options; see `cli.parser`."""

    recipe: Path
    data: tuple[str, ...]
    out: Path
    all_images: bool = False
    folds: int | None = None
    fold: int | None = None
    init: str | None = None
    seed: int | None = None
    minutes: float | None = None
    device: str = "auto"
    workers: int | None = None


def run(options: Options, tell: Tell) -> int:
    """Train; gives the exit code. `tell` gets each line of the report."""
    rank = this_rank()
    say: Tell = tell if rank.is_first else (lambda line: None)
    recipe = _recipe(options)
    device = resolve_device(options.device, rank.local if rank.count > 1 else None)
    keep_memory(device)
    with process_group(rank, device):
        examples, skipped = read_sources(parse_data(options.data), recipe)
        for line in skipped.lines():
            say(f"left out  {line}")
        train, held = (examples, ()) if options.all_images else split_examples(examples, recipe)
        if apart := {e.key for e in examples} - {e.key for e in (*train, *held)}:
            say(f"left out  {len(apart)} images that only train, their groups being held out: {min(apart)}")
        legs = plan_legs(recipe, train, held)
        trainer = _trainer(options, recipe, legs, held, device, rank)
        _describe(recipe, train, held, trainer, say)
        # RoIAlign's gradient on a GPU is summed in no fixed order; all else there repeats.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        with Stop(rank, device, options.minutes) as stop:
            ended = trainer.run(stop)
        if rank.is_first:
            _finish(trainer, options.out, ended, say)
        return 0 if ended or stop.signal is None else 128 + stop.signal


def _recipe(options: Options) -> Recipe:
    """The recipe with what the command line says otherwise."""
    recipe = read_recipe(options.recipe)
    update: dict[str, Any] = {}
    if options.folds is not None or options.fold is not None:
        folds = options.folds if options.folds is not None else recipe.split.folds
        fold = options.fold or 0
        if folds is None:
            raise TrainingError("--fold: expected --folds or a recipe with folds, found neither")
        if not 0 <= fold < folds or folds < 2:
            raise TrainingError(f"--fold: expected 0 to --folds - 1, found {fold} of {folds}")
        update["split"] = recipe.split.model_copy(update={"folds": folds, "fold": fold})
    if options.init is not None:
        # Absolute, since a recipe's own counts from the recipe; "imagenet" and "coco" are no files.
        given = Path(options.init)
        update["init"] = str(given.absolute()) if named_network(given)[0].is_file() else options.init
    for name, number in (("seed", options.seed), ("workers", options.workers)):
        if number is not None and number < 0:
            raise TrainingError(f"--{name}: expected 0 or more, found {number}")
    if options.seed is not None:
        update["seed"] = options.seed
    return recipe.model_copy(update=update)


def _trainer(
    options: Options,
    recipe: Recipe,
    legs: Sequence[Leg],
    held: Sequence[Example],
    device: torch.device,
    rank: Rank,
) -> Trainer:
    going_on = (options.out / STATE).is_file()
    if rank.is_first:
        open_run(options.out, options.recipe)
        train = tuple({e.key: e for leg in legs for e in leg.examples}.values())
        write_split(options.out, describe_split(train, held, recipe.split))
    workers = options.workers if options.workers is not None else (4 if device.type == "cuda" else 0)
    place = Place(options.out, device, training_precision(recipe.precision, device), rank, workers)
    # What the run began from does not matter to one that goes on.
    fresh = recipe.model_copy(update={"init": None}) if going_on else recipe
    learner = build_learner(fresh, options.recipe.parent)
    trainer = Trainer(recipe, learner, legs, some_of_each(held, recipe.validation.images), place)
    if going_on:
        trainer.resume()
        if rank.is_first:
            copy_recipe(options.out, options.recipe)
    return trainer


def training_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast; auto: bf16 where the device has it, else fp16 on a GPU and fp32 on a CPU."""
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return resolve_precision(name, device, holds_bf16=True)


def _describe(
    recipe: Recipe, train: Sequence[Example], held: Sequence[Example], trainer: Trainer, say: Tell
) -> None:
    for name, part in (("train", train), ("held out", held)):
        types = Counter(e.type or "several" for e in part)
        cells = sum(len(e.cells) for e in part)
        unsure = sum(len(e.masks) for e in part) - cells
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(types.items()))
        regions = f", {unsure} unsure regions" if unsure else ""
        say(f"{name:9} {len(part)} images, {cells} cells ({listed or 'none'}){regions}")
    parameters = sum(p.numel() for p in trainer.learner.parameters())
    start = f"from {Path(recipe.init).name}" if recipe.init else "from scratch"
    if trainer.iteration:
        start = f"going on from iteration {trainer.iteration}"
    say(f"network   {recipe.parts.body}, {parameters:,} parameters, {start}")
    place = trainer.place
    precision = str(place.precision).removeprefix("torch.")
    say(f"device    {place.device}, {precision}, {place.rank.count} process(es)")
    say(f"run       {trainer.total} iterations in {len(trainer.legs)} stage(s)")


def _finish(trainer: Trainer, out: Path, ended: bool, say: Tell) -> None:
    """The last weights, the curves, and what was reached."""
    draw_curves(out)
    if trainer.best is None:
        trainer.write(out, None)
    else:
        trainer.write(out / FINAL, None)
        say(f"best      mAP {trainer.best.score:.4f} at iteration {trainer.best_iteration}")
    say(f"{'ended' if ended else 'stopped':9} at iteration {trainer.iteration} of {trainer.total}")
    say(f"written   {out}")
