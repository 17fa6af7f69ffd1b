"""The stages of a training as settings: how long, on what, which parts learn, and how fast."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sartorius_infer.manifest.settings import Count, Fraction, Positive, Settings

Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimiser(Settings):
    """How weights follow their gradients; `body_lr` is the body's rate where it differs.

    `clip` bounds the norm of all gradients together. `decay_norms` says whether weight decay pulls at
    biases and norms too, as torch does by itself.
    """

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive
    body_lr: Positive | None = None
    momentum: Fraction = 0.9
    betas: Annotated[tuple[Decay, ...], Field(min_length=2, max_length=2)] = (0.9, 0.999)
    weight_decay: Weight = 0.0
    decay_norms: bool = True
    clip: Positive | None = None


class Schedule(Settings):
    """The rate's factor over a stage, after `warmup` iterations in which it rises from 0 to 1.

    constant; step: x `factor` every `every`, first at `start` (null: `every`), in `unit`s; cosine: falls to
    `floor` by half a cosine; wsd: constant, then falls to `floor` over the last `share` as 1 - sqrt does
    (Haegele et al. 2024).
    """

    kind: Literal["constant", "step", "cosine", "wsd"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    every: Count = 1
    start: Annotated[int, Field(ge=0)] | None = None
    unit: Literal["iterations", "epochs"] = "iterations"
    factor: Positive = 0.1
    floor: Fraction = 0.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.2

    def at(self, step: int, steps: int, epoch_steps: float) -> float:
        """The factor in iteration `step` of `steps`, where an epoch has `epoch_steps`."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * self._fall(step, steps, epoch_steps)

    def _fall(self, step: int, steps: int, epoch_steps: float) -> float:
        done = step / max(steps, 1)
        if self.kind == "step":
            at = step if self.unit == "iterations" else int(step / epoch_steps)
            start = self.every if self.start is None else self.start
            return float(self.factor ** max(0, (at - start) // self.every + 1))
        if self.kind == "cosine":
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
        if self.kind == "wsd":
            late = max(0.0, (done - (1 - self.share)) / self.share)
            return self.floor + (1 - self.floor) * (1 - math.sqrt(late))
        return 1.0


class Mix(Settings):
    """Which images are drawn.

    `by` image: each once an epoch; by type: first the type, by `weights` (1 where none is written), then
    one of its images. The weights of the types in `fade` fall to 0 over the stage. An image of a source
    with a weight in `sources` is drawn that many times as often as one of the others; by image all are
    drawn at random then, and an epoch is as many of them as there are.
    """

    by: Literal["image", "type"] = "image"
    weights: dict[str, Weight] = Field(default_factory=dict)
    fade: tuple[str, ...] = ()
    sources: dict[str, Positive] = Field(default_factory=dict)

    def weight(self, name: str, progress: float) -> float:
        """The weight of a type when `progress` of the stage, in [0, 1], is done."""
        return self.weights.get(name, 1.0) * (1 - progress if name in self.fade else 1.0)


class Stage(Settings):
    """One stretch of a training, with an optimiser of its own.

    `trains`: all, or the heads alone (everything but the body; the pyramid counts as a head).
    `freeze_at` leaves the first parts of the body as they are: 0 none, 1 the stem, 2 the first stage too,
    and so on to 5, as Detectron2's FREEZE_AT. `norms` frozen: batch norms use and keep the statistics that
    inference will use, where else they take those of the few crops at hand; their weights learn.
    """

    iterations: Count | None = None
    epochs: Positive | None = None
    batch: Count = Field(4, description="crops an iteration, over all processes")
    sources: tuple[str, ...] | None = Field(None, description="by name; null: all")
    images: Literal["train", "validation", "all"] = "train"
    trains: Literal["all", "heads"] = "all"
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    norms: Literal["batch", "frozen"] = "batch"
    mix: Mix = Mix()
    optimiser: Optimiser
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _one_length(self) -> Stage:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("expected iterations or epochs, found both or neither")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """Classes that the mix names."""
        return (*self.mix.weights, *self.mix.fade)

    def steps(self, images: int) -> int:
        """Iterations, with an epoch of so many images."""
        return self.iterations or max(1, math.ceil((self.epochs or 0) * images / self.batch))
