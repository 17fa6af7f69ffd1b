"""Whole runs of a tiny network: the loss falls, the kit loads what comes out, a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from training_factories import SIZE_HW, read_examples, write_recipe, write_sartorius

from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import SartoriusError
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.preprocessing import Resize
from sartorius_infer.run.ranks import Rank
from training.cli import main
from training.errors import TrainingError
from training.legs import plan_legs
from training.loop import Place, Trainer
from training.model import build_learner
from training.processes import Stop
from training.recipe import read_recipe
from training.run import Options, _recipe, run, training_precision
from training.runfolder import open_run
from training.tables import read_table

RECIPES = sorted((ROOT / "training" / "recipes").glob("*.toml"))


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sartorius(tmp_path_factory.mktemp("data") / "d", images=6)


def _stage(iterations: int, **changes: Any) -> dict[str, Any]:
    optimiser = {"kind": "adamw", "lr": 2e-3, "clip": 5.0}
    return {"iterations": iterations, "batch": 2, "optimiser": optimiser, **changes}


def _train(recipe: Path, data: Path, out: Path, **options: Any) -> list[str]:
    told: list[str] = []
    options = {"device": "cpu"} | options
    assert run(Options(recipe, (f"d={data}",), out, **options), told.append) == 0
    return told


def _weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "last.pt", weights_only=True)["model"]
    return state


def test_the_loss_falls_and_the_kit_loads_the_result(tmp_path: Path, data: Path) -> None:
    stage = _stage(40, batch=4, schedule={"kind": "wsd", "warmup": 5})
    recipe = write_recipe(tmp_path / "r.toml", stages=[stage], extra_classes=["cell"], ema={"decay": 0.9})
    out = tmp_path / "run"
    told = _train(recipe, data, out)
    losses = [float(row["loss"]) for row in read_table(out / "log.csv")]
    assert losses[-1] < 0.85 * losses[0]
    ensemble = load_ensemble([out], torch.device("cpu"))
    assert ensemble.classes == ("shsy5y", "astro", "cort")
    (prediction,) = predict(ensemble, [read_image(find_images([data / "images"])[0])])
    assert len(prediction) > 0
    assert ensemble.manifest.learned_hw == SIZE_HW
    spec = ensemble.manifest.models[0]
    assert spec.sha256 is not None
    (row,) = read_table(out / "validation.csv")
    assert f"mAP {float(row['mAP']):.4f} on 2 held-out images" in spec.provenance
    assert told[-3:] == [f"best      mAP {float(row['mAP']):.4f} at iteration 40",
                         "ended     at iteration 40 of 40", f"written   {out}"]  # fmt: skip
    names = {path.name for path in out.iterdir()}
    assert names == {"recipe.toml", "split.json", "log.csv", "validation.csv", "curves.png", "last.pt",
                     "tiny.safetensors", "weights_manifest.json", "final"}  # fmt: skip
    assert load_ensemble([out / "final"], torch.device("cpu")).classes == ensemble.classes


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_weights(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [_stage(3, trains="heads"), _stage(4, mix={"by": "type", "fade": ["cort"]})]
    recipe = write_recipe(tmp_path / "r.toml", stages=stages, save_every=1)
    _train(recipe, data, tmp_path / "whole")
    for upto in (3, 5):  # between two stages, within the second

        def later(self: Stop, upto: int = upto) -> bool:
            self.asked = getattr(self, "asked", 0) + 1
            return bool(self.asked >= upto)

        out = tmp_path / f"parts{upto}"
        with monkeypatch.context() as patch:
            patch.setattr(Stop, "now", later)
            told = _train(recipe, data, out)
        assert f"stopped   at iteration {upto} of 7" in told
        torch.rand(upto)
        np.random.default_rng().random()
        told = _train(recipe, data, out)
        assert any(line.endswith(f"going on from iteration {upto}") for line in told)
        whole, parts = _weights(tmp_path / "whole"), _weights(out)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
        assert (out / "final/tiny.safetensors").read_bytes() == (
            tmp_path / "whole/final/tiny.safetensors"
        ).read_bytes()
        assert [row["iteration"] for row in read_table(out / "log.csv")][-1] == "7"


def test_a_run_goes_on_under_its_own_recipe_and_images_alone(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", stages=[_stage(1)])
    _train(recipe, data, tmp_path / "run")
    with pytest.raises(
        TrainingError, match="expected the recipe that the run began with, found another seed"
    ):
        _train(recipe, data, tmp_path / "run", seed=7)
    with pytest.raises(
        TrainingError, match="expected the images that the run began with, found another train"
    ):
        _train(recipe, data, tmp_path / "run", all_images=True)
    told = _train(
        write_recipe(tmp_path / "r.toml", stages=[_stage(1)], store="float32"), data, tmp_path / "run"
    )
    assert "ended     at iteration 1 of 1" in told
    kept = (tmp_path / "run" / "recipe.toml").read_text()
    with pytest.raises(TrainingError, match="found another stages"):
        _train(write_recipe(tmp_path / "r.toml", stages=[_stage(2)]), data, tmp_path / "run")
    assert (tmp_path / "run" / "recipe.toml").read_text() == kept
    (tmp_path / "run" / "last.pt").write_bytes(b"cut")
    with pytest.raises(TrainingError, match=r"last\.pt: expected the state of a run"):
        _train(recipe, data, tmp_path / "run")


def test_all_images_train_without_validation(tmp_path: Path, data: Path) -> None:
    stages = [_stage(2), _stage(2, images="validation")]
    out = tmp_path / "run"
    told = _train(write_recipe(tmp_path / "r.toml", stages=stages), data, out, all_images=True)
    assert "held out  0 images, 0 cells (none)" in told
    assert not (out / "validation.csv").exists()
    entry = load_ensemble([out], torch.device("cpu")).manifest.models[0]
    assert entry.provenance.endswith("2 iterations from scratch on 6 images of d; not validated.")


@pytest.mark.slow
def test_nothing_is_validated_once_held_out_images_train(tmp_path: Path, data: Path) -> None:
    stages = [_stage(2), _stage(2, images="validation")]
    recipe = write_recipe(
        tmp_path / "r.toml", stages=stages, validation={"every": 1, "thresholds": [0.1, 0.5]}
    )
    out = tmp_path / "run"
    _train(recipe, data, out, folds=2, fold=1)
    assert [row["iteration"] for row in read_table(out / "validation.csv")] == ["1", "2"]
    split = json.loads((out / "split.json").read_text())
    assert (split["folds"], split["fold"]) == (2, 1)
    assert set(split["train"]) & set(split["validation"])


def test_time_is_up_before_the_end(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", stages=[_stage(1000)])
    told = _train(recipe, data, tmp_path / "run", minutes=0.0)
    assert "stopped   at iteration 1 of 1000" in told
    assert load_ensemble([tmp_path / "run"], torch.device("cpu")).members


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, data: Path) -> None:
    stage = {"iterations": 50, "batch": 2, "optimiser": {"kind": "sgd", "lr": 1e12}}
    with pytest.raises(TrainingError, match=r"iteration \d+: expected a finite loss, found objectness"):
        _train(write_recipe(tmp_path / "r.toml", stages=[stage]), data, tmp_path / "run")


def test_gradients_that_are_not_finite_end_the_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.loop.clip", lambda *_: float("nan"))
    with pytest.raises(TrainingError, match="iteration 0: expected finite gradients, found a norm of nan"):
        _train(write_recipe(tmp_path / "r.toml", precision="fp32"), data, tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_state_of_another_precision_and_a_stop_at_the_end(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", stages=[_stage(1)], precision="fp32")
    told = _train(recipe, data, tmp_path / "run", minutes=0.0)
    assert "ended     at iteration 1 of 1" in told
    own, examples = read_recipe(recipe), read_examples(data)
    place = Place(tmp_path / "run", torch.device("cpu"), torch.float16, Rank(), 0, bar=False)
    trainer = Trainer(own, build_learner(own, tmp_path), plan_legs(own, examples, ()), (), place)
    trainer.resume()
    assert (trainer.iteration, trainer.scaler.is_enabled()) == (1, True)


def test_a_batch_that_processes_cannot_share_is_told_at_once(tmp_path: Path, data: Path) -> None:
    path = write_recipe(tmp_path / "r.toml", stages=[_stage(1), _stage(1, batch=3)])
    recipe, examples = read_recipe(path), read_examples(data)
    place = Place(tmp_path / "run", torch.device("cpu"), torch.float32, Rank(0, 2), 0, bar=False)
    with pytest.raises(TrainingError, match=r"stages.1.batch: expected a multiple of 2 processes, found 3"):
        Trainer(recipe, build_learner(recipe, tmp_path), plan_legs(recipe, examples, ()), (), place)


def test_a_fold_of_the_recipes_own(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.toml", split={"folds": 3})
    assert _recipe(Options(path, (), tmp_path, fold=2)).split.fold == 2
    assert _recipe(Options(path, (), tmp_path, folds=4)).split.folds == 4


def test_a_start_is_found_from_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path / "recipes" / "r.toml")
    (tmp_path / "a.pth").touch()
    monkeypatch.chdir(tmp_path)
    for said in ("a.pth", "a.pth::ema"):
        assert _recipe(Options(path, (), tmp_path, init=said)).init == str(tmp_path / said)
    for said in ("imagenet", "none.pth"):
        assert _recipe(Options(path, (), tmp_path, init=said)).init == said


def test_bad_input_is_one_line(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    faults = [
        [str(tmp_path / "none.toml"), "--data", str(data), *out],
        [str(recipe), "--data", "nowhere", *out],
        [str(recipe), "--data", str(data), *out, "--folds", "1"],
        [str(recipe), "--data", str(data), *out, "--folds", "3", "--fold", "3"],
        [str(recipe), "--data", str(data), *out, "--fold", "1"],
        [str(recipe), "--data", str(data), *out, "--seed", "-1"],
        [str(recipe), "--data", str(data), *out, "--workers", "-1"],
        [str(recipe), "--data", str(data), *out, "--init", "none.pth"],
        [str(recipe), "--data", str(data), "--out", str(recipe), "--device", "cpu"],
        [str(recipe), "--data", str(data), "--out", str(tmp_path / "x"), "--device", "tpu"],
    ]
    for arguments in faults:
        assert main(arguments) == 1, arguments
        told = capsys.readouterr().err
        assert told.count("\n") == 1, told


def test_precision_by_device() -> None:
    assert training_precision("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert training_precision("fp32", torch.device("cpu")) == torch.float32
    with pytest.raises(SartoriusError):
        training_precision("fp8", torch.device("cpu"))


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_with_bfloat16_trains_in_it(
    monkeypatch: pytest.MonkeyPatch, able: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("sartorius_infer.ensemble.device.cpu_multiplies", lambda name: able)
    assert training_precision("auto", torch.device("cpu")) == dtype


def _command(recipe: Path, data: Path, out: Path) -> list[str]:
    return ["-m", "training", str(recipe), "--data", f"d={data}", "--out", str(out), "--device", "cpu"]


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_terminated_run_saves_and_goes_on(tmp_path: Path, data: Path) -> None:
    recipe, out = write_recipe(tmp_path / "r.toml", stages=[_stage(400)]), tmp_path / "run"
    command = [sys.executable, *_command(recipe, data, out)]
    process = subprocess.Popen(command, cwd=tmp_path, env=_environment())
    deadline = time.monotonic() + 120
    while len(read_table(out / "log.csv")) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    state = torch.load(out / "last.pt", weights_only=True)
    assert 20 <= state["iteration"] < 400
    again = subprocess.run([*command, "--time-limit", "0"], cwd=tmp_path, env=_environment(), check=False,
                           capture_output=True, text=True)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert f"going on from iteration {state['iteration']}" in again.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, data: Path) -> None:
    # Frozen norms: two processes take the statistics of a batch each from its half.
    from training_factories import TINY

    network = TINY["network"] | {"body_norm": {"kind": "frozen"}, "fpn": {"channels": 8}}
    stage = _stage(6, batch=2)
    recipe = write_recipe(tmp_path / "r.toml", stages=[stage], network=network)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run(
        start + _command(recipe, data, tmp_path / "two"), cwd=tmp_path, env=_environment(), check=True
    )
    _train(recipe, data, tmp_path / "one")
    tables = [read_table(tmp_path / name / "validation.csv") for name in ("one", "two")]
    assert [len(table) for table in tables] == [1, 1]
    # Their draws of anchors differ, their images do not: they learn nearly the same.
    one, two = (_weights(tmp_path / name) for name in ("one", "two"))
    key = "backbone.fpn.layer_blocks.0.0.weight"
    assert float((one[key] - two[key]).norm() / one[key].norm()) < 0.2


def test_training_is_not_in_the_wheel() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["sartorius_infer"]
    assert not any("training" in path for path in wheel["force-include"])
    assert project["project"]["optional-dependencies"]["train"] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_and_is_loaded(tmp_path: Path, path: Path) -> None:
    """Each stage for one iteration from scratch, on small images."""
    recipe = read_recipe(path)
    small = {"resize": Resize(shortest_edge=96, longest_edge=192)}
    stages = [
        stage.model_copy(update={"iterations": 1, "epochs": None, "batch": 1, "sources": None})
        for stage in recipe.stages
    ]
    update = {"preprocessing": recipe.preprocessing.model_copy(update=small), "stages": tuple(stages)}
    recipe = recipe.model_copy(update=update | {"init": None, "labels": {}})
    examples = read_examples(write_sartorius(tmp_path / "d", images=2))
    place = Place(tmp_path / "run", torch.device("cpu"), torch.float32, Rank(), 0, bar=False)
    open_run(place.out, path)
    trainer = Trainer(
        recipe, build_learner(recipe, tmp_path), plan_legs(recipe, examples, examples[:1]), (), place
    )
    with Stop(Rank(), place.device, None) as stop:
        assert trainer.run(stop)
    trainer.write(place.out, None)
    spec = load_ensemble([place.out], place.device).manifest.models[0]
    assert spec.architecture == recipe.architecture
