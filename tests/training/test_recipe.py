"""Recipes: those that come along, and faults told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from training_factories import make_recipe, write_recipe

from sartorius_infer.networks.torchvision.rcnn import build_model, resolve_parts
from training.errors import TrainingError
from training.export import manifest_of
from training.model import exported_state
from training.recipe import fingerprint, read_recipe, renewed
from training.stages import Mix, Schedule, Stage

RECIPES = sorted((ROOT / "training" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_exports_what_the_kit_reads_back(path: Path) -> None:
    recipe = read_recipe(path)
    with torch.device("meta"):
        model = build_model(recipe.parts, len(recipe.all_classes))
    spec = manifest_of(recipe).models[0]
    parts, _ = resolve_parts(spec, exported_state(model.state_dict(), len(recipe.classes)))
    assert parts == recipe.parts
    assert recipe.name == path.stem or path.stem == "default"


def test_the_last_default_recipe_is_the_network_of_the_default_checkpoint() -> None:
    from sartorius_infer.checkpoints.reading import read_checkpoint
    from sartorius_infer.ensemble.weights import default_manifest
    from sartorius_infer.manifest.manifest import load_manifest

    recipe = read_recipe(next(path for path in RECIPES if path.stem == "default_second"))
    plan = load_manifest(default_manifest())
    spec = plan.manifest.models[0]
    parts, _ = resolve_parts(spec, read_checkpoint(plan.path(spec)).state)
    assert (parts, spec.preprocessing) == (recipe.parts, recipe.preprocessing)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nam": "x"}, "nam: Extra inputs are not permitted"),
        ({"stages": []}, "stages: "),
        ({"stages": [{"optimiser": {"lr": 1.0}}]}, "stages.0: expected iterations or epochs, found"),
        ({"stages": [{"epochs": 1, "optimiser": {"lr": -1.0}}]}, "stages.0.optimiser.lr: "),
        ({"labels": {"x/*": "neuron"}}, "expected a class of ('shsy5y', 'astro', 'cort'), found 'neuron'"),
        ({"extra_classes": ["cort"]}, "classes: expected each once"),
        ({"architecture": "unet"}, "architecture: expected one of"),
        ({"network": {"anchors": {"sizes": [[8], [16]]}}}, "one length for 5 levels, found 2"),
        ({"augment": {"scale": [1.2, 0.8]}}, "augment: scale: expected two rising numbers"),
        ({"split": {"folds": 3, "fold": 3}}, "split: fold: expected one below folds = 3, found 3"),
        ({"network": {"body": "vgg16"}}, "network.body: "),
        ({"sampling": {"rpn_iou": [0.7, 0.3]}}, "sampling: rpn_iou: expected the lower limit first"),
        ({"rules": {"per_class": {"neuron": {"score": 0.5}}}}, "rules.per_class.neuron: expected a class of"),
        ({"split": {"seed": -1}}, "split.seed: "),
        ({"stages": [{"epochs": 1, "optimiser": {"lr": 1.0, "betas": [0.9, 1.0]}}]}, "optimiser.betas.1: "),
    ],
)  # fmt: skip
def test_faults_name_file_and_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write_recipe(tmp_path / "r.toml", **changes)
    with pytest.raises(TrainingError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["name = ", "\x00", 'name = "x"\nname = "y"', "x = " + "[" * 100_000])
def test_what_is_no_toml_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match="expected a readable TOML file"):
        read_recipe(path)
    with pytest.raises(TrainingError, match="expected a readable TOML file"):
        read_recipe(tmp_path / "none.toml")


def test_toml_says_that_nothing_is_resized(tmp_path: Path) -> None:
    assert read_recipe(write_recipe(tmp_path / "r.toml")).preprocessing.resize is None


def test_fingerprint_leaves_out_what_does_not_change_the_weights() -> None:
    assert fingerprint(make_recipe(validation={"every": 7})) == fingerprint(make_recipe())
    assert fingerprint(make_recipe(seed=7)) != fingerprint(make_recipe())


def test_a_run_of_before_goes_on_with_settings_that_came_since() -> None:
    now = fingerprint(make_recipe())
    before = json.loads(now)
    del before["stages"][0]["mix"]["sources"]
    assert renewed(json.dumps(before)) == now
    assert renewed(now) == now
    assert renewed(None) is None
    assert renewed('{"gone": 1}') == '{"gone": 1}'


def test_schedules() -> None:
    step = Schedule(kind="step", every=1000, start=2000, factor=0.8)
    assert [round(step.at(i, 9999, 1), 3) for i in (0, 1999, 2000, 2999, 3000)] == [1, 1, 0.8, 0.8, 0.64]
    epochs = Schedule(kind="step", every=3, unit="epochs")
    assert [round(epochs.at(i, 99, 10), 6) for i in (0, 29, 30, 60)] == [1, 1, 0.1, 0.01]
    cosine = Schedule(kind="cosine", warmup=4, floor=0.1)
    assert [round(cosine.at(i, 100, 1), 3) for i in (0, 1, 50, 100)] == [0.25, 0.5, 0.55, 0.1]
    wsd = Schedule(kind="wsd", share=0.5)
    assert [round(wsd.at(i, 100, 1), 3) for i in (0, 50, 100)] == [1, 1, 0]
    assert Schedule(warmup=500).at(0, 10, 1) == 1 / 500


def test_stage_lengths_and_fading() -> None:
    stage = Stage.model_validate({"epochs": 1.5, "batch": 4, "optimiser": {"lr": 1.0}})
    assert stage.steps(10) == 4
    mix = Mix(by="type", weights={"cort": 2.0}, fade=("cell",))
    assert [mix.weight(name, 0.25) for name in ("cort", "astro", "cell")] == [2, 1, 0.75]
