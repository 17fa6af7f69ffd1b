"""What a run tells and writes: scores, tables, curves, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training_factories import make_recipe, read_examples, write_sartorius

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.evaluate.metric import mean_ap, score_image
from sartorius_infer.manifest.manifest import load_manifest
from sartorius_infer.run.ranks import Rank
from sartorius_infer.types import CellImage
from training.errors import TrainingError
from training.export import write_checkpoint
from training.model import build_learner
from training.processes import Stop, gather, process_group, share
from training.runfolder import open_run, require_same, write_split
from training.tables import CURVES, LOG, VALIDATION, Meter, Table, draw_curves, read_table
from training.validate import Tried, summarise, try_images, with_scores


def test_the_best_threshold_counts_for_each_type() -> None:
    recipe = make_recipe(validation={"thresholds": [0.6, 0.3]})
    tried = [
        Tried("cort", (0.2, 0.5), (9, 5)),
        Tried("cort", (0.4, 0.3), (7, 4)),
        Tried("astro", (0.1, 0.0), (3, 1)),
    ]
    held = summarise(recipe, tried)
    assert held.thresholds == {"cort": 0.6, "astro": 0.3}
    assert held.by_type == {"cort": pytest.approx(0.4), "astro": pytest.approx(0.1)}
    assert (held.score, held.images, held.cells) == (pytest.approx(0.3), 3, 12)
    assert summarise(recipe, []).score == 0


def test_validation_is_the_kits_own_prediction_and_score(tmp_path: Path) -> None:
    recipe = make_recipe(store="float32", extra_classes=["cell"])
    examples = read_examples(write_sartorius(tmp_path / "d", images=3), recipe)
    state = build_learner(recipe, tmp_path).model.state_dict()
    held = summarise(recipe, try_images(recipe, state, examples, torch.device("cpu")))
    write_checkpoint(tmp_path / "run", recipe, state, "")
    ensemble = load_ensemble([tmp_path / "run"], torch.device("cpu"))
    scores, cells = [], 0
    for example in examples:
        (prediction,) = predict(ensemble, [CellImage(example.file.id, example.pixels())])
        found: Instances = build_instances(prediction, ensemble.manifest.rules, ensemble.classes)
        masks = split_label_map(found.label_map, len(found))
        scores.append(score_image(example.file.id, example.masks, masks))
        cells += len(found)
    assert (held.score, held.cells) == (pytest.approx(mean_ap(scores)), cells)


def test_each_threshold_finds_its_own_consensus(tmp_path: Path) -> None:
    thresholds = [0.05, 0.2, 0.25, 0.26, 0.27, 0.28, 0.3]
    recipe = make_recipe(store="float32", rules={"consensus": "count"}, validation={"thresholds": thresholds})
    examples = read_examples(write_sartorius(tmp_path / "d", images=4), recipe)
    torch.manual_seed(1)
    state = build_learner(recipe, tmp_path).model.state_dict()
    tried = try_images(recipe, state, examples, torch.device("cpu"))
    write_checkpoint(tmp_path / "run", recipe, state, "")
    ensemble = load_ensemble([tmp_path / "run"], torch.device("cpu"))
    winners: list[set[int]] = []
    for example, known in zip(examples, tried, strict=True):
        (prediction,) = predict(ensemble, [CellImage(example.file.id, example.pixels())])
        every = [with_scores(recipe.final_rules, dict.fromkeys(recipe.classes, t)) for t in thresholds]
        some = [build_instances(prediction, rules, recipe.classes) for rules in every]
        assert known.cells == tuple(map(len, some))
        winners.append({int(found.labels[0]) for found in some if len(found)})
    assert max(map(len, winners)) > 1, "else nothing was tested"


@pytest.mark.parametrize("store", ["float32", "float16", "int8"])
def test_checkpoints_say_what_they_are(tmp_path: Path, store: str) -> None:
    recipe = make_recipe(store=store, licence="none")
    rules = with_scores(recipe.final_rules, {"cort": 0.7})
    recipe = recipe.model_copy(update={"rules": rules})
    spec = write_checkpoint(
        tmp_path / "run", recipe, build_learner(recipe, tmp_path).model.state_dict(), "why"
    )
    manifest = load_manifest(tmp_path / "run" / "weights_manifest.json").manifest
    assert manifest.models == (spec,)
    assert (spec.provenance, spec.licence, spec.preprocessing) == ("why", "none", recipe.preprocessing)
    assert manifest.rules.of("cort").score == 0.7
    assert spec.bytes == (tmp_path / "run" / "tiny.safetensors").stat().st_size
    assert len(load_ensemble([tmp_path / "run"], torch.device("cpu")).members) == 1


def test_tables_forget_what_came_after_the_state(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ("iteration", "loss"))
    for number in (20, 40, 60):
        table.add({"iteration": number, "loss": 1 / 3})
    Table(tmp_path / "t.csv", ("iteration", "loss"), after=40)
    assert read_table(tmp_path / "t.csv") == [
        {"iteration": "20", "loss": "0.333333"},
        {"iteration": "40", "loss": "0.333333"},
    ]
    assert read_table(tmp_path / "none.csv") == []


def test_curves_of_a_run_and_of_none(tmp_path: Path) -> None:
    draw_curves(tmp_path)
    empty = (tmp_path / CURVES).stat().st_size
    Table(tmp_path / LOG, ("iteration", "loss")).add({"iteration": 1, "loss": 2.0})
    scores = Table(tmp_path / VALIDATION, ("iteration", "mAP", "cort", "cells", "seconds"))
    scores.add({"iteration": 1, "mAP": 0.2, "cells": 3, "seconds": 1.0})
    draw_curves(tmp_path)
    assert (tmp_path / CURVES).stat().st_size > empty


def test_meter_gives_means_and_forgets() -> None:
    meter = Meter()
    for loss in (1.0, 3.0):
        meter.add({"box": torch.tensor(loss), "mask": torch.tensor(1.0)}, 0.1, 5.0)
    assert meter.postfix() == {"loss": "2.200"}
    assert meter.take() == {"loss_box": 2, "loss_mask": 1, "loss": 3, "lr": pytest.approx(0.1),
                            "gradient_norm": 5}  # fmt: skip
    assert meter.take() == {}


def test_a_new_run_forgets_tables_without_a_state(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("name = 'x'")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOG).write_text("iteration\n5\n")
    open_run(tmp_path / "run", recipe)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.toml"]
    write_split(tmp_path / "run", {"train": ["a"]})
    assert json.loads((tmp_path / "run" / "split.json").read_text()) == {"train": ["a"]}
    with pytest.raises(TrainingError, match="expected a folder to write to"):
        open_run(recipe, recipe)


def test_differences_are_named() -> None:
    require_same(Path("o"), "recipe", None, "{}")
    require_same(Path("o"), "recipe", '{"a": 1}', '{"a": 1}')
    with pytest.raises(TrainingError, match=r"found another a\.b, c; choose another --out"):
        require_same(Path("o"), "recipe", '{"a": {"b": 1}}', '{"a": {"b": 2}, "c": 1}')


def test_an_error_does_not_wait_for_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(1))
    with pytest.raises(TrainingError), process_group(Rank(0, 2), torch.device("cpu")):
        raise TrainingError("x")
    assert not ended
    with process_group(Rank(0, 2), torch.device("cpu")):
        pass
    assert ended


def test_one_process_has_nothing_to_share() -> None:
    tensor = torch.ones(2)
    share([tensor], Rank())
    assert gather([1, 2], Rank()) == [1, 2]
    with Stop(Rank(), torch.device("cpu"), None) as stop:
        assert not stop.now()
        stop._note(15, None)
        assert stop.now()
    with Stop(Rank(), torch.device("cpu"), 0.0) as stop:
        assert stop.now()
