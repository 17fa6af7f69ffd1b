"""The stages of a recipe laid out on a run: which iterations, which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.errors import TrainingError
from training.recipe import Recipe
from training.sources import Example
from training.stages import Stage


@dataclass(frozen=True, eq=False)
class Leg:
    """A stage with its place in the run: iterations `first` to `first + steps`, on these examples."""

    number: int
    stage: Stage
    first: int
    steps: int
    examples: tuple[Example, ...]

    @property
    def end(self) -> int:
        """The iteration after its last."""
        return self.first + self.steps

    def factor(self, iteration: int) -> float:
        """What the rate is multiplied by."""
        epoch_steps = len(self.examples) / self.stage.batch
        return self.stage.schedule.at(iteration - self.first, self.steps, epoch_steps)


def plan_legs(recipe: Recipe, train: Sequence[Example], held: Sequence[Example]) -> tuple[Leg, ...]:
    """The stages one after the other, each with its examples.

    Where nothing is held out, a pass over held-out images falls away. Raises TrainingError for a stage
    without images.
    """
    legs: list[Leg] = []
    for number, stage in enumerate(recipe.stages):
        if stage.images == "validation" and not held and legs:
            continue
        chosen = {"train": train, "validation": held, "all": [*train, *held]}[stage.images]
        named = {e.source for e in (*train, *held)}
        for where, said in (("sources", stage.sources or ()), ("mix.sources", stage.mix.sources)):
            if unknown := set(said) - named:
                raise TrainingError(
                    f"stages.{number}.{where}: expected names of --data ({', '.join(sorted(named))}), "
                    f"found {', '.join(sorted(unknown))}"
                )
        own = tuple(e for e in chosen if stage.sources is None or e.source in stage.sources)
        if not own:
            raise TrainingError(f"stages.{number}: expected {stage.images} images to train on, found none")
        first = legs[-1].end if legs else 0
        legs.append(Leg(number, stage, first, stage.steps(len(own)), own))
    return tuple(legs)
