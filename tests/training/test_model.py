"""Where a network starts, what of it learns, and the mean of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_factories import make_recipe

from sartorius_infer.errors import CheckpointError
from training import model as model_room
from training.errors import TrainingError
from training.model import build_learner, exported_state, freeze, set_modes, start_from
from training.optimise import Ema, clip, make_optimiser, set_rate
from training.stages import Optimiser, Stage


def _stage(**changes: Any) -> Stage:
    return Stage.model_validate({"iterations": 1, "optimiser": {"lr": 0.1}} | changes)


def test_a_checkpoint_of_fewer_classes_gives_their_rows(tmp_path: Path) -> None:
    first = build_learner(make_recipe(seed=1), tmp_path)
    torch.save(first.model.state_dict(), tmp_path / "three.pth")
    recipe = make_recipe(init="three.pth", extra_classes=["cell"])
    second = build_learner(recipe, tmp_path)
    before, after = first.model.state_dict(), second.model.state_dict()
    key = "roi_heads.box_predictor.bbox_pred.weight"
    assert torch.equal(after[key][:16], before[key])
    assert after[key].shape[0] == 20
    assert torch.equal(exported_state(after, 3)[key], before[key])
    assert all(torch.equal(exported_state(after, 3)[k], v) for k, v in before.items())


def test_one_network_of_several_in_a_file(tmp_path: Path) -> None:
    states = [build_learner(make_recipe(seed=seed), tmp_path).model.state_dict() for seed in (1, 2)]
    torch.save({"model": states[0], "ema": states[1]}, tmp_path / "two.pth")
    for init, state in (("two.pth", states[0]), ("two.pth::ema", states[1])):
        started = build_learner(make_recipe(init=init), tmp_path).model.state_dict()
        assert all(torch.equal(started[key], value) for key, value in state.items())
    with pytest.raises(CheckpointError, match="expected a network under 'swa'"):
        build_learner(make_recipe(init="two.pth::swa"), tmp_path)
    with pytest.raises(TrainingError, match=r"none.pth::ema: expected a checkpoint to start from"):
        build_learner(make_recipe(init="none.pth::ema"), tmp_path)


def test_a_classifier_gives_its_body(tmp_path: Path) -> None:
    import torchvision

    classifier = torchvision.models.resnet18(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "r18.pth")
    learner = build_learner(make_recipe(init="r18.pth"), tmp_path)
    own = learner.model.backbone.body.state_dict()
    assert all(torch.equal(own[k], v) for k, v in classifier.state_dict().items() if k in own)


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    learner = build_learner(make_recipe(), tmp_path)
    with pytest.raises(TrainingError, match="x: expected weights of the recipe's body, found none that fit"):
        start_from(learner.model, {}, "x")
    with pytest.raises(TrainingError, match="expected a checkpoint to start from"):
        build_learner(make_recipe(init="none.pth"), tmp_path)


def test_downloads_leave_foreign_classes_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    state = build_learner(make_recipe(seed=5), tmp_path).model.state_dict()

    def download(name: str) -> dict[str, torch.Tensor]:
        asked.append(name)
        return dict(state)

    monkeypatch.setattr(model_room, "_downloaded", download)
    learner = build_learner(make_recipe(init="coco"), tmp_path)
    key = "roi_heads.box_predictor.cls_score.weight"
    assert asked == ["maskrcnn_resnet50_fpn"]
    assert not torch.equal(learner.model.state_dict()[key], state[key])
    assert torch.equal(learner.model.rpn.head.cls_logits.weight, state["rpn.head.cls_logits.weight"])


def test_an_unknown_download_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="init: expected weights of resnext101_64x9d from torchvision"):
        model_room._downloaded("resnext101_64x9d")


def test_frozen_parts_keep_weights_and_statistics(tmp_path: Path) -> None:
    learner = build_learner(make_recipe(), tmp_path)
    heads = [name for name, _ in freeze(learner, _stage(trains="heads"))]
    assert not any(name.startswith("backbone.body.") for name in heads)
    assert "backbone.fpn.inner_blocks.0.0.weight" in heads
    set_modes(learner, _stage(trains="heads"))
    assert not learner.model.backbone.body.bn1.training
    assert learner.model.backbone.fpn.training
    names = [[name for name, _ in freeze(learner, _stage(freeze_at=k))] for k in range(4)]
    assert "backbone.body.conv1.weight" in names[0]
    assert "backbone.body.conv1.weight" not in names[1]
    assert any(name.startswith("backbone.body.layer1.") for name in names[1])
    assert not any(name.startswith("backbone.body.layer1.") for name in names[2])
    assert any(name.startswith("backbone.body.layer2.") for name in names[2])
    assert len(names[0]) == len(list(learner.parameters()))
    set_modes(learner, _stage())
    assert all(module.training for module in learner.modules())


def test_frozen_norms_keep_their_statistics_and_learn_their_weights(tmp_path: Path) -> None:
    learner = build_learner(make_recipe(), tmp_path)
    stage = _stage(norms="frozen")
    names = [name for name, _ in freeze(learner, stage)]
    set_modes(learner, stage)
    assert "backbone.body.bn1.weight" in names
    assert not learner.model.backbone.body.bn1.training
    assert learner.model.backbone.body.conv1.training
    assert learner.model.rpn.training  # it makes anchors and losses in training alone


def test_convnext_freezes_by_stage(tmp_path: Path) -> None:
    network = {"body": "convnext_tiny", "stages": [1, 2], "fpn": {"channels": 8},
               "anchors": {"sizes": [[8], [16], [32]]}}  # fmt: skip
    learner = build_learner(make_recipe(network=network), tmp_path)
    names = [[name for name, _ in freeze(learner, _stage(freeze_at=k))] for k in (0, 1, 2)]
    first = [{n.split(".")[2] for n in some if n.startswith("backbone.body.")} for some in names]
    assert first == [{"0", "1", "2", "3"}, {"1", "2", "3"}, {"2", "3"}]


def test_rates_and_decay_by_group(tmp_path: Path) -> None:
    learner = build_learner(make_recipe(), tmp_path)
    trained = freeze(learner, _stage())
    settings = Optimiser(kind="adamw", lr=1e-3, body_lr=1e-4, weight_decay=0.05, decay_norms=False)
    optimiser = make_optimiser(trained, settings)
    groups = {(g["lr"], g["weight_decay"]) for g in optimiser.param_groups}
    assert groups == {(1e-3, 0.05), (1e-3, 0.0), (1e-4, 0.05), (1e-4, 0.0)}
    assert sum(len(g["params"]) for g in optimiser.param_groups) == len(trained)
    assert set_rate(optimiser, 0.5) == 5e-4
    assert {g["lr"] for g in optimiser.param_groups} == {5e-4, 5e-5}
    for kind in ("sgd", "adam"):
        made = make_optimiser(
            trained, Optimiser.model_validate({"kind": kind, "lr": 0.1, "weight_decay": 0.2})
        )
        assert {g["weight_decay"] for g in made.param_groups} == {0.2}


def test_mean_of_weights() -> None:
    ema = Ema({"w": torch.zeros(2), "n": torch.zeros((), dtype=torch.int64)}, 0.9)
    plain = 0.0
    for step in range(1, 200):
        ema.update({"w": torch.full((2,), float(step)), "n": torch.tensor(step)})
        decay = min(0.9, (1 + step) / (10 + step))
        plain = decay * plain + (1 - decay) * step
    assert float(ema.state["w"][0]) == pytest.approx(plain, rel=1e-5)
    assert int(ema.state["n"]) == 199


def test_clipping_tells_the_norm() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 3.0)
    assert clip([weight], None) == pytest.approx(6)
    assert clip([weight], 2.0) == pytest.approx(6)
    assert float(weight.grad.norm()) == pytest.approx(2, rel=1e-4)
