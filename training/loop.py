"""The loop: stages of iterations, with validation, the best kept, and a state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from sartorius_infer.run.ranks import Rank
from training.batches import Batch, Batches
from training.draws import Draw, rng_of
from training.errors import TrainingError
from training.export import write_checkpoint
from training.legs import Leg
from training.model import Learner, freeze, set_modes
from training.optimise import Ema, clip, make_optimiser, set_rate
from training.processes import Stop, gather, share
from training.recipe import Recipe, fingerprint, renewed
from training.runfolder import load_state, require_same, save_state
from training.sources import Example
from training.tables import LOG, LOG_COLUMNS, VALIDATION, Meter, Table, draw_curves
from training.validate import Held, summarise, try_images, with_scores

LOG_EVERY = 20


@dataclass(frozen=True)
class Place:
    """Where a run computes and what it leaves there."""

    out: Path
    device: torch.device
    precision: torch.dtype
    rank: Rank
    workers: int
    bar: bool = True


class Trainer:
    """One run of a recipe, from its state if there is one."""

    def __init__(
        self, recipe: Recipe, learner: Learner, legs: Sequence[Leg], held: Sequence[Example], place: Place
    ) -> None:
        for leg in legs:
            if leg.stage.batch % place.rank.count:
                raise TrainingError(
                    f"stages.{leg.number}.batch: expected a multiple of {place.rank.count} processes, "
                    f"found {leg.stage.batch}"
                )
        self.recipe, self.legs, self.held, self.place = recipe, legs, held, place
        self.learner = learner.to(place.device)
        if place.device.type == "cuda":  # a fifth slower on a CPU, in the backward pass
            self.learner.to(memory_format=torch.channels_last)
        self.ema = Ema(self.learner.model.state_dict(), recipe.ema.decay)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.precision == torch.float16)
        self.iteration, self.seconds = 0, 0.0
        self.best: Held | None = None
        self.best_iteration = 0
        self._optimiser_state: dict[str, Any] | None = None
        self._meter = Meter()

    @property
    def total(self) -> int:
        """Iterations of all stages."""
        return self.legs[-1].end

    def resume(self) -> None:
        """Go on from the folder's state."""
        # Adam's counters must stay in main memory, or each would be fetched from the GPU in every iteration.
        state = load_state(self.place.out)
        require_same(self.place.out, "recipe", renewed(state.get("recipe")), fingerprint(self.recipe))
        self.learner.model.load_state_dict(state["model"])
        self.ema.load(state["ema"], state["ema_updates"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.best_iteration = state["best_iteration"]
        self.best = Held(**state["best"]) if state["best"] else None
        self._optimiser_state = state["optimiser"]
        if state["scaler"]:  # empty where the run began in another precision
            self.scaler.load_state_dict(state["scaler"])

    def run(self, stop: Stop) -> bool:
        """Train until the end or until told to stop; whether the end was reached."""
        self._open_tables()
        bar = tqdm(
            total=self.total, initial=self.iteration, unit="it", dynamic_ncols=True,
            disable=not (self.place.rank.is_first and self.place.bar),
        )  # fmt: skip
        with bar:
            for leg in self.legs:
                if self.iteration < leg.end and not self._run_leg(leg, stop, bar):
                    return self.iteration == self.total  # told to stop after the last
        return True

    def _run_leg(self, leg: Leg, stop: Stop, bar: Any) -> bool:
        place, stage = self.place, leg.stage
        trained = freeze(self.learner, stage)
        optimiser = make_optimiser(trained, stage.optimiser)
        if self._optimiser_state is not None and self.iteration > leg.first:
            optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        set_modes(self.learner, stage)
        module: nn.Module = DistributedDataParallel(self.learner) if place.rank.count > 1 else self.learner
        draw = Draw(leg.examples, stage.mix, self.recipe.seed, leg.first, leg.steps, stage.batch)
        batches = Batches(
            draw, self.recipe.augment, self.recipe.preprocessing, place.rank.index, place.rank.count
        )
        begun = time.monotonic()
        for batch in batches.run(self.iteration, place.workers, place.device.type == "cuda"):
            self._step(module, optimiser, leg, batch, [p for _, p in trained])
            self.seconds += time.monotonic() - begun
            begun = time.monotonic()
            bar.update()
            bar.set_postfix(self._meter.postfix(), refresh=False)
            if self._after(optimiser, leg, stop):
                return False
        return True

    def _step(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        leg: Leg,
        batch: Batch,
        parameters: Sequence[nn.Parameter],
    ) -> None:
        # Anchors and RoIs are drawn by torch; so are they the same in a run that goes on.
        own = rng_of(self.recipe.seed, self.iteration, self.place.rank.index, 2)
        torch.manual_seed(int(own.integers(2**62)))
        rate = set_rate(optimiser, leg.factor(self.iteration))
        optimiser.zero_grad(set_to_none=True)
        with self._autocast():
            losses = module(batch.to(self.place.device))
        loss = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(loss)):
            told = ", ".join(f"{name} {float(term.detach()):.3g}" for name, term in losses.items())
            raise TrainingError(
                f"iteration {self.iteration}: expected a finite loss, found {told}; lower the rate"
            )
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(optimiser)
        norm = clip(parameters, leg.stage.optimiser.clip)
        # A scaler leaves such a step out; without one it would be the end of all weights, and of the state.
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise TrainingError(
                f"iteration {self.iteration}: expected finite gradients, found a norm of {norm}"
            )
        self.scaler.step(optimiser)
        self.scaler.update()
        self.ema.update(self.learner.model.state_dict())
        self.iteration += 1
        self._meter.add(losses, rate, norm)

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self.place.precision
        return torch.autocast(self.place.device.type, precision, enabled=precision != torch.float32)

    def _after(self, optimiser: torch.optim.Optimizer, leg: Leg, stop: Stop) -> bool:
        """What is due between two iterations; whether to stop."""
        stopping = stop.now()
        at_end = self.iteration == leg.end
        if self.place.rank.is_first and (self.iteration % LOG_EVERY == 0 or at_end or stopping):
            self.log.add({"iteration": self.iteration, "seconds": self.seconds, **self._meter.take()})
        if self._is_unseen(leg) and (self.iteration % self.recipe.validation.every == 0 or at_end):
            self._validate()
        if self.iteration % self.recipe.save_every == 0 or at_end or stopping:
            self._save(optimiser)
        return stopping

    def _is_unseen(self, leg: Leg) -> bool:
        """Whether there are held-out images, and neither this stage nor an earlier one trains on them."""
        stages = self.recipe.stages[: leg.number + 1]
        return bool(self.held) and all(stage.images == "train" for stage in stages)

    def _validate(self) -> None:
        """Score the mean of weights; write it down if it is the best so far."""
        begun, rank = time.monotonic(), self.place.rank
        share(list(self.ema.state.values()), rank)
        own = self.held[rank.index :: rank.count]
        found = summarise(
            self.recipe, gather(try_images(self.recipe, self.ema.state, own, self.place.device), rank)
        )
        is_best = self.best is None or found.score > self.best.score
        if is_best:
            self.best, self.best_iteration = found, self.iteration
        if not rank.is_first:
            return
        seconds = time.monotonic() - begun
        row = {"iteration": self.iteration, "mAP": found.score, "cells": found.cells, "seconds": seconds}
        self.validation.add({**row, **found.by_type})
        draw_curves(self.place.out)
        if is_best:
            self.write(self.place.out, found)

    def write(self, out: Path, found: Held | None) -> None:
        """Write the mean of weights as a checkpoint, with what is known of it."""
        recipe = self.recipe
        if found is not None and found.thresholds:
            own = {name: t for name, t in found.thresholds.items() if name in recipe.classes}
            recipe = recipe.model_copy(update={"rules": with_scores(recipe.final_rules, own)})
        write_checkpoint(out, recipe, self.ema.state, self._provenance(found), self._learned_hw())

    def _learned_hw(self) -> tuple[int, int]:
        """The usual size of the images so far, each side by itself."""
        sizes = [e.size_hw for leg in self.legs if leg.first < max(1, self.iteration) for e in leg.examples]
        height, width = np.median(sizes, axis=0).astype(int).tolist()
        return height, width

    def _provenance(self, found: Held | None) -> str:
        counts: dict[str, set[str]] = {}
        for leg in self.legs:
            if leg.first < self.iteration:
                for example in leg.examples:
                    counts.setdefault(example.source, set()).add(example.key)
        data = ", ".join(f"{len(keys)} images of {source}" for source, keys in sorted(counts.items()))
        start = f"from {Path(self.recipe.init).name}" if self.recipe.init else "from scratch"
        run = f"Recipe {self.recipe.name}, seed {self.recipe.seed}, {self.iteration} iterations"
        text = f"{run} {start} on {data}"
        if found is None:
            return f"{text}; not validated."
        types = ", ".join(f"{name} {score:.4f}" for name, score in found.by_type.items())
        chosen = "; score thresholds chosen on them" if found.thresholds else ""
        return f"{text}; mAP {found.score:.4f} on {found.images} held-out images ({types}){chosen}."

    def _save(self, optimiser: torch.optim.Optimizer) -> None:
        if not self.place.rank.is_first:
            return
        best = None if self.best is None else {k: _plain(v) for k, v in vars(self.best).items()}
        save_state(
            self.place.out,
            {
                "recipe": fingerprint(self.recipe),
                "model": self.learner.model.state_dict(),
                "ema": self.ema.state,
                "ema_updates": self.ema.updates,
                "optimiser": optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "iteration": self.iteration,
                "seconds": self.seconds,
                "best": best,
                "best_iteration": self.best_iteration,
            },
        )

    def _open_tables(self) -> None:
        if not self.place.rank.is_first:
            return
        self.log = Table(self.place.out / LOG, LOG_COLUMNS, self.iteration)
        types = sorted({example.type or "several" for example in self.held})
        names = ["iteration", "mAP", *types, "cells", "seconds"]
        if self.held:
            self.validation = Table(self.place.out / VALIDATION, names, self.iteration)


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value
