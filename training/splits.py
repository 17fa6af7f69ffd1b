"""Which images are held out: whole groups, of all types alike, by a seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from training.errors import TrainingError
from training.recipe import Recipe, Split
from training.sources import Example


def split_examples(
    examples: Sequence[Example], recipe: Recipe
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Training and held-out examples, each in the given order; types that are cut off at export only train.

    What only trains, but shares its group with held-out examples, is in neither. Groups of a type are dealt
    out in a random order to the folds, the largest first, each to the fold that has fewest images of the
    type; without folds to the held-out part until it has its share. Raises TrainingError where the recipe
    splits none of the sources.
    """
    known = {e.source for e in examples}
    if recipe.split.sources is not None and not known & set(recipe.split.sources):
        raise TrainingError(
            f"split.sources: expected names of --data ({', '.join(sorted(known))}), "
            f"found {', '.join(recipe.split.sources)}; --all holds out nothing"
        )
    may_be_held = [e for e in examples if _may_be_held(e, recipe)]
    held = _held_groups(may_be_held, recipe.split)
    train = tuple(e for e in examples if (e.source, e.group) not in held)
    return train, tuple(e for e in may_be_held if (e.source, e.group) in held)


def _may_be_held(example: Example, recipe: Recipe) -> bool:
    settings, place = recipe.split, f"{example.source}/{example.told_in}/{example.file.id}"
    named = settings.sources is None or example.source in settings.sources
    kept = any(fnmatchcase(place, pattern) for pattern in settings.only_train)
    return named and not kept and example.type not in recipe.extra_classes


def _held_groups(examples: Sequence[Example], settings: Split) -> set[tuple[str, str]]:
    groups: dict[str, dict[tuple[str, str], int]] = defaultdict(lambda: defaultdict(int))
    placed: dict[tuple[str, str], str] = {}
    for example in examples:
        # A group that spans types counts where it was seen first.
        kind = placed.setdefault((example.source, example.group), example.type)
        groups[kind][(example.source, example.group)] += 1
    rng = np.random.default_rng(settings.seed)
    held: set[tuple[str, str]] = set()
    for kind in sorted(groups):
        keys = sorted(groups[kind])
        order = [keys[i] for i in rng.permutation(len(keys))]
        held |= _of_type(order, groups[kind], settings)
    return held


def _of_type(
    order: Sequence[tuple[str, str]], sizes: dict[tuple[str, str], int], settings: Split
) -> set[tuple[str, str]]:
    """The held-out groups of one type."""
    if settings.folds is not None:
        counts = [0] * settings.folds
        dealt: dict[tuple[str, str], int] = {}
        for key in sorted(order, key=lambda k: -sizes[k]):
            dealt[key] = int(np.argmin(counts))
            counts[dealt[key]] += sizes[key]
        return {key for key, fold in dealt.items() if fold == settings.fold}
    wanted, held, count = settings.share * sum(sizes.values()), set[tuple[str, str]](), 0
    for key in order[:-1]:  # of two groups one is held out and the other trains, whatever the share
        if not held or count + sizes[key] / 2 <= wanted:
            held.add(key)
            count += sizes[key]
    return held


def describe_split(train: Sequence[Example], held: Sequence[Example], settings: Split) -> dict[str, Any]:
    """What is recorded: the settings and every image by its key."""
    return {
        **settings.model_dump(mode="json"),
        "train": [example.key for example in train],
        "validation": [example.key for example in held],
    }


def some_of_each(examples: Sequence[Example], count: int | None) -> tuple[Example, ...]:
    """At most `count` examples, the types in turn."""
    if count is None or count >= len(examples):
        return tuple(examples)
    types: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        types[example.type].append(example)
    turns = [(place, name) for name, own in types.items() for place in range(len(own))]
    return tuple(types[name][place] for place, name in sorted(turns)[:count])
