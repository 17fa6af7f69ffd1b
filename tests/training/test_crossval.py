"""What folds held out is predicted by the network that did not see it, once each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_factories import write_recipe, write_sartorius

from sartorius_infer.cli import main as cli
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.output.predictions import load_prediction
from sartorius_infer.types import Prediction
from training.crossval import main
from training.run import Options, run


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sartorius(tmp_path_factory.mktemp("data") / "d", images=8)


@pytest.fixture(name="runs", scope="module")
def _runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder / "r.toml")
    outs = [folder / f"fold{fold}" for fold in range(2)]
    for fold, out in enumerate(outs):
        run(Options(recipe, (f"d={data}",), out, folds=2, fold=fold, device="cpu"), lambda line: None)
    return outs


def _seen(weights: Path, image: Path, *views: str) -> Prediction:
    ensemble = load_ensemble([weights], torch.device("cpu")).with_overrides(views=list(views) or None)
    return predict(ensemble, [read_image(find_images([image])[0])])[0]


@pytest.mark.parametrize("views", [[], ["identity", "hflip"]])
def test_each_image_is_seen_by_the_fold_that_held_it_out(
    tmp_path: Path, data: Path, runs: list[Path], views: list[str]
) -> None:
    out = tmp_path / "pooled"
    words = [*map(str, runs), "--images", str(data / "images"), "--out", str(out), "--device", "cpu"]
    assert main([*words, "--views", ",".join(views)] if views else words) == 0
    assert {path.stem for path in out.iterdir()} == {f"im{i}" for i in range(8)}
    for fold in runs:
        keys = json.loads((fold / "split.json").read_text())["validation"]
        assert keys
        for key in keys:
            name = key.removeprefix("d/")
            expected = _seen(fold / "final", data / "images" / f"{name}.png", *views)
            found = load_prediction(out / f"{name}.npz")
            np.testing.assert_array_equal(found.boxes, expected.boxes)
            np.testing.assert_array_equal(found.scores, expected.scores)


def test_tune_takes_the_pooled_predictions(
    tmp_path: Path, data: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pooled, out = tmp_path / "pooled", runs[0] / "final" / "tuned.json"
    assert main([*map(str, runs), "--images", str(data / "images"), "--out", str(pooled)]) == 0
    assert f"written   {pooled}, 8 images of 2 runs" in capsys.readouterr().out
    words = ["tune", "--weights", str(runs[0] / "final"), "--predictions", str(pooled), "--folds", "2"]
    assert cli.main([*words, "--truth", str(data / "train.csv"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "images    8, 2 folds" in told
    assert "unseen, 4 images" in told


def test_runs_that_do_not_fit_together(
    tmp_path: Path, data: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        assert main([*map(str, words), "--out", str(tmp_path / "p")]) == 1
        return capsys.readouterr().err

    images = ("--images", data / "images")
    copy = shutil.copytree(runs[0], tmp_path / "again")
    assert "expected images that no other run held out, found im" in refused(*runs, copy, *images)
    (first, *_) = sorted((data / "images").iterdir())
    assert "held-out images, found none of im" in refused(*runs, "--images", first)
    (copy / "split.json").write_text(json.dumps({"validation": []}))
    assert f"{copy}/split.json: expected images that were held out, found none" in refused(copy, *images)
    for text in ("{", "[]", '{"validation": [7]}', '{"validation": 3}', '{"validation": ["im0"]}'):
        (copy / "split.json").write_text(text)
        assert f"{copy}/split.json: expected the split of a run, found" in refused(copy, *images)
    (copy / "split.json").unlink()
    assert f"{copy}/split.json: expected the split of a run, found" in refused(copy, *images)
    assert not (tmp_path / "p").exists()
