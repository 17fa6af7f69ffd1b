"""Which image is drawn, as a function of (seed, iteration, index) alone: a run that goes on sees the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.errors import TrainingError
from training.sources import Example
from training.stages import Mix


def rng_of(*key: int) -> np.random.Generator:
    """A generator that depends on these numbers, and nothing else."""
    return np.random.default_rng(key)


@dataclass(frozen=True, eq=False)
class Draw:
    """Draws examples for one stage: iterations `first` to `first + steps`, `batch` each."""

    examples: Sequence[Example]
    mix: Mix
    seed: int
    first: int
    steps: int
    batch: int

    def __post_init__(self) -> None:
        if not self.examples:
            raise TrainingError("a stage: expected images to train on, found none")

    def example(self, iteration: int, index: int) -> Example:
        """The `index`-th example of an iteration's batch."""
        if self.mix.by == "type":
            return self._by_type(iteration, index)
        if self.mix.sources:
            return self.one_of(self.examples, rng_of(self.seed, iteration, index, 1))
        epoch, place = divmod((iteration - self.first) * self.batch + index, len(self.examples))
        order = rng_of(self.seed, self.first, epoch).permutation(len(self.examples))
        return self.examples[int(order[place])]

    def _by_type(self, iteration: int, index: int) -> Example:
        rng = rng_of(self.seed, iteration, index, 1)
        types: dict[str, list[Example]] = defaultdict(list)
        for example in self.examples:
            types[example.type].append(example)
        names = sorted(types)
        progress = (iteration - self.first) / max(self.steps, 1)
        weights = np.array([self.mix.weight(name, progress) for name in names])
        if weights.sum() <= 0:
            raise TrainingError(f"mix.weights: expected one above 0 of {names}, found none")
        chosen = types[names[int(rng.choice(len(names), p=weights / weights.sum()))]]
        return self.one_of(chosen, rng)

    def one_of(self, examples: Sequence[Example], rng: np.random.Generator) -> Example:
        """One of some examples, by the weights of their sources."""
        if not self.mix.sources:
            return examples[int(rng.integers(len(examples)))]
        weights = np.array([self.mix.sources.get(example.source, 1.0) for example in examples])
        return examples[int(rng.choice(len(examples), p=weights / weights.sum()))]
