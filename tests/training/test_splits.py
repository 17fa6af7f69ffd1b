"""Splits and draws: whole groups, every type, and the same whatever went before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from training_factories import make_recipe, read_examples, write_sartorius

from training.draws import Draw
from training.errors import TrainingError
from training.legs import plan_legs
from training.splits import describe_split, some_of_each, split_examples
from training.stages import Mix


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sartorius(tmp_path_factory.mktemp("d") / "d", images=12)


def test_groups_stay_together(folder: Path) -> None:
    examples = read_examples(folder)
    train, held = split_examples(examples, make_recipe())
    assert {e.group for e in train}.isdisjoint({e.group for e in held})
    assert len(train) + len(held) == 12
    assert 2 <= len(held) <= 6


def test_folds_hold_out_each_image_once(folder: Path) -> None:
    recipe = make_recipe(split={"group": []})
    examples = read_examples(folder, recipe)
    parts = []
    for fold in range(3):
        own = make_recipe(split={"group": [], "folds": 3, "fold": fold})
        _, held = split_examples(examples, own)
        assert Counter(e.type for e in held) == {"cort": 2, "astro": 2}
        parts += [e.key for e in held]
    assert sorted(parts) == sorted(e.key for e in examples)


def test_types_that_are_cut_off_only_train(folder: Path) -> None:
    recipe = make_recipe(extra_classes=["cell"], labels={"*/astro/*": "cell"}, split={"group": []})
    train, held = split_examples(read_examples(folder, recipe), recipe)
    assert {e.type for e in held} == {"cort"}
    assert sum(e.type == "cell" for e in train) == 6


def test_some_images_are_never_held_out(folder: Path) -> None:
    recipe = make_recipe(split={"share": 0.99, "group": [], "only_train": ["data/train/im[0-5]"]})
    _, held = split_examples(read_examples(folder, recipe), recipe)
    assert {e.file.id for e in held} < {f"im{i}" for i in range(6, 12)}
    assert len(held) == 4  # one of each type trains in any case


def test_what_only_trains_is_left_out_where_its_group_is_held_out(folder: Path) -> None:
    recipe = make_recipe(split={"share": 0.6, "only_train": ["data/train/im*[02468]"]})
    examples = read_examples(folder)
    train, held = split_examples(examples, recipe)
    assert {int(e.file.id[2:]) % 2 for e in held} == {1}
    assert {e.group for e in train}.isdisjoint({e.group for e in held})
    assert len(train) + len(held) == len(examples) - len(held)  # two images a group


def test_a_split_of_none_of_the_sources_is_an_error(folder: Path) -> None:
    recipe = make_recipe(split={"sources": ["sartorius"]})
    with pytest.raises(TrainingError, match=r"split.sources: expected names of --data \(data\), found sarto"):
        split_examples(read_examples(folder), recipe)


def test_one_of_two_is_held_out_whatever_the_share(tmp_path: Path) -> None:
    recipe = make_recipe(split={"share": 0.01, "group": []})
    train, held = split_examples(read_examples(write_sartorius(tmp_path / "d", images=4)), recipe)
    assert Counter(e.type for e in held) == Counter(e.type for e in train) == {"cort": 1, "astro": 1}


def test_a_split_is_recorded_and_repeats(folder: Path) -> None:
    recipe = make_recipe()
    examples = read_examples(folder)
    first, again = (describe_split(*split_examples(examples, recipe), recipe.split) for _ in range(2))
    assert first == again
    assert sorted(first["train"] + first["validation"]) == sorted(e.key for e in examples)


def test_some_of_each_takes_the_types_in_turn(folder: Path) -> None:
    examples = read_examples(folder)
    assert Counter(e.type for e in some_of_each(examples, 4)) == {"cort": 2, "astro": 2}
    assert some_of_each(examples, None) == examples
    assert some_of_each((), 3) == ()


def test_an_epoch_draws_each_image_once(folder: Path) -> None:
    examples = read_examples(folder)
    draw = Draw(examples, Mix(), 0, 10, 6, 4)
    drawn = [draw.example(10 + i // 4, i % 4).key for i in range(24)]
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == sorted(e.key for e in examples)
    assert drawn[:12] != drawn[12:]


def test_types_are_drawn_by_weight_and_fade(folder: Path) -> None:
    examples = read_examples(folder)
    draw = Draw(examples, Mix(by="type", fade=("astro",)), 0, 0, 400, 2)
    early = Counter(draw.example(i, 0).type for i in range(100))
    late = Counter(draw.example(i, 0).type for i in range(300, 400))
    assert 30 < early["astro"] < 65
    assert late["astro"] < 25
    assert draw.example(7, 1) is draw.example(7, 1)
    nothing = Draw(examples, Mix(by="type", weights={"cort": 0.0, "astro": 0.0}), 0, 0, 4, 1)
    with pytest.raises(TrainingError, match="expected one above 0"):
        nothing.example(0, 0)


@pytest.mark.parametrize("by", ["image", "type"])
def test_a_source_is_drawn_by_its_weight(folder: Path, by: Literal["image", "type"]) -> None:
    """Each of its images a quarter as often as one of the others, whatever the numbers of both."""
    images = read_examples(folder)
    examples = [replace(e, source="pseudo" if i < 8 else "true") for i, e in enumerate(images)]
    draw = Draw(examples, Mix(by=by, sources={"pseudo": 0.25}), 0, 0, 2000, 1)
    drawn = Counter(draw.example(i, 0).source for i in range(2000))
    assert drawn["pseudo"] / 2000 == pytest.approx(8 * 0.25 / (8 * 0.25 + 4), abs=0.04)
    assert draw.example(7, 0) is draw.example(7, 0)
    none = Draw(examples, Mix(by=by), 0, 0, 300, 1)
    even = Draw(examples, Mix(by=by, sources={"pseudo": 1.0}), 0, 0, 300, 1)
    for one in (none, even):
        found = Counter(one.example(i, 0).source for i in range(300))
        assert found["pseudo"] / 300 == pytest.approx(8 / 12, abs=0.1)


def test_pasted_cells_come_from_sources_by_their_weights(folder: Path) -> None:
    images = read_examples(folder)
    examples = [replace(e, source="pseudo" if i < 8 else "true") for i, e in enumerate(images)]
    draw = Draw(examples, Mix(sources={"pseudo": 1e-9}), 0, 0, 10, 1)
    assert {draw.one_of(examples, np.random.default_rng(i)).source for i in range(50)} == {"true"}


def test_legs_follow_each_other(folder: Path) -> None:
    stage = {"batch": 2, "optimiser": {"lr": 0.1}}
    stages = [stage | {"epochs": 1}, stage | {"iterations": 3, "images": "validation"}]
    recipe = make_recipe(stages=stages)
    train, held = split_examples(read_examples(folder), recipe)
    legs = plan_legs(recipe, train, held)
    assert [(leg.first, leg.end) for leg in legs] == [
        (0, len(train) // 2),
        (len(train) // 2, len(train) // 2 + 3),
    ]
    assert legs[1].examples == held
    assert len(plan_legs(recipe, train, ())) == 1
    with pytest.raises(TrainingError, match=r"stages.0.sources: expected names of --data \(data\), found x"):
        plan_legs(make_recipe(stages=[stage | {"epochs": 1, "sources": ["x"]}]), train, held)
    mixed = make_recipe(stages=[stage | {"epochs": 1, "mix": {"sources": {"x": 0.5}}}])
    with pytest.raises(TrainingError, match=r"stages.0.mix.sources: expected names of --data \(data\)"):
        plan_legs(mixed, train, held)
    with pytest.raises(TrainingError, match=r"stages.0: expected train images to train on, found none"):
        plan_legs(recipe, (), held)
