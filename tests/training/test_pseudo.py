"""Pseudo-labels: what a real network is sure of becomes a folder that a recipe trains on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from commands import python
from places import ROOT, SAMPLES
from safetensors.torch import save_file
from tiny import tiny_model, write_image, write_tiny
from training_factories import make_recipe, write_recipe, write_sartorius

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.evaluate.truth import read_truth
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.manifest import load_manifest
from sartorius_infer.output.predictions import load_prediction
from training.pseudo import main
from training.sources import parse_data, read_sources

SHSY5Y = SAMPLES / "SHSY5Y_Phase_D10_1_02d08h00m_4.tif"


def _table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "images.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


SURE = 0.4
"""A score that a good part of the included network's cells reach in the sample."""


def test_the_default_labels_a_livecell_image_and_a_recipe_trains_on_it(tmp_path: Path) -> None:
    out, pictures = tmp_path / "pseudo", tmp_path / "pictures"
    words = ["--images", SHSY5Y, "--out", out, "--device", "cpu", "--sure", f"shsy5y={SURE}"]
    done = python("training.pseudo", *words, "--overlays", pictures)
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(ROOT / "weights_manifest.json").manifest
    seen = load_prediction(out / f"seen/all/{SHSY5Y.stem}.npz")
    cells = build_instances(seen, manifest.rules, manifest.classes)
    sure = int((cells.scores >= SURE).sum())
    assert set(cells.labels.tolist()) == {1}
    assert 20 < sure < len(cells)
    assert done.stdout.splitlines() == [
        f"kept      1 of 1 images (shsy5y 1), {sure} sure cells (shsy5y {sure}), {len(cells) - sure} unsure",
        f"written   {out}",
        f'next      --data {out}; recipe: split.only_train = ["pseudo/*"], mix.sources.pseudo = 0.3',
    ]
    kept = read_image(out / f"images/{SHSY5Y.stem}.png")
    assert np.array_equal(kept.pixels, read_image(SHSY5Y).pixels)
    assert cv2.imread(str(pictures / f"{SHSY5Y.stem}.png")) is not None

    (image,) = read_truth(out / "pseudo.json").values()
    assert (image.cell_type, len(image.masks)) == ("shsy5y", sure)
    assert image.coco is not None
    assert [region.is_crowd for region in image.coco.regions] == (cells.scores < SURE).tolist()
    for region, runs in zip(image.coco.regions, cells.rle(), strict=True):
        pairs = np.array(runs.split(), np.int64).reshape(-1, 2)
        assert np.array_equal(region.mask[0], pairs[:, 0] - 1)
        assert np.array_equal(region.mask[1], pairs[:, 1])

    true = write_sartorius(tmp_path / "true", images=4)
    mix = {"by": "type", "sources": {"pseudo": 0.5}}
    stage = {"iterations": 3, "batch": 2, "mix": mix, "optimiser": {"kind": "adamw", "lr": 1e-3}}
    recipe = write_recipe(tmp_path / "r.toml", stages=[stage], split={"only_train": ["pseudo/*"]})
    words = [recipe, "--data", f"true={true}", f"pseudo={out}", "--out", tmp_path / "run", "--device", "cpu"]
    trained = python("training", *words)
    assert trained.returncode == 0, trained.stderr
    assert f"shsy5y 1), {len(cells) - sure} unsure regions" in trained.stdout.splitlines()[0]
    split = json.loads((tmp_path / "run/split.json").read_text())
    assert f"pseudo/{SHSY5Y.stem}" in split["train"]
    assert not any(key.startswith("pseudo/") for key in split["validation"])


@pytest.fixture(name="images", scope="module")
def _images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(4):
        write_image(folder / f"im{seed}.png", seed=seed)
    return folder


def _pair(folder: Path) -> Path:
    """A manifest of two networks that share much: the second is the first with a little noise."""
    other = tiny_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.roi_heads.parameters():
            parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    manifest = write_tiny(folder)
    save_file(other.state_dict(), folder / "other.safetensors")
    content = json.loads(manifest.read_text())
    content["models"].append(content["models"][0] | {"name": "other", "file": "other.safetensors"})
    manifest.write_text(json.dumps(content))
    return manifest


def _label(weights: Path, images: Path, out: Path, *more: object) -> int:
    words = ["--weights", weights, "--images", images, "--out", out, "--device", "cpu", "--min-cells", 1]
    return main([*map(str, words), *map(str, more)])


def test_other_limits_need_no_network_again(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = write_tiny(tmp_path / "w"), tmp_path / "out"
    wide, narrow = "a=0.06,b=0.06,c=0.06", "a=0.3,b=0.3,c=0.3"
    assert _label(weights, images, out, "--sure", wide, "--min-share", 0) == 0
    first = json.loads((out / "pseudo.json").read_text())
    whole = (out / "pseudo.json").read_bytes()

    def refuse(*words: object, **more: object) -> None:
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr("training.seen.predict", refuse)
        assert _label(weights, images, out, "--sure", narrow, "--min-share", 0) == 0
        second = json.loads((out / "pseudo.json").read_text())
        assert _label(weights, images, out, "--sure", wide, "--min-share", 0) == 0
        assert (out / "pseudo.json").read_bytes() == whole
    sure = [sum(not a["iscrowd"] for a in content["annotations"]) for content in (first, second)]
    assert 0 < sure[1] < sure[0]
    # What was not finished is looked at, and nothing else.
    (out / "seen/all/im1.npz").unlink()
    capsys.readouterr()
    looked: list[str] = []

    def watched(ensemble: Any, some: Any, *more: Any) -> Any:
        looked.extend(image.id for image in some)
        return predict(ensemble, some, *more)

    monkeypatch.setattr("training.seen.predict", watched)
    assert _label(weights, images, out, "--sure", wide, "--min-share", 0) == 0
    assert looked == ["im1"]
    assert (out / "pseudo.json").read_bytes() == whole
    assert f"written   {out}" in capsys.readouterr().out


def test_several_networks_must_agree(tmp_path: Path, images: Path) -> None:
    weights, out = _pair(tmp_path / "w"), tmp_path / "out"
    wide = ("--sure", "a=0.05,b=0.05,c=0.05", "--min-share", 0)

    def sure(*more: object) -> int:
        assert _label(weights, images, out, *wide, *more) == 0
        told = json.loads((out / "pseudo.json").read_text())["annotations"]
        return sum(not annotation["iscrowd"] for annotation in told)

    loose = sure("--agree", 0)
    assert not (out / "seen/0").exists()
    agreed = sure()
    assert (len(list((out / "seen/0").iterdir())), len(list((out / "seen/1").iterdir()))) == (4, 4)
    assert 0 < agreed < loose
    assert sure("--agree", 2) == agreed <= sure("--agree", 1) <= loose
    ensemble = load_ensemble(weights, "cpu")
    for file in sorted(images.iterdir()):
        (seen,) = predict(ensemble, [read_image(file)])
        cells = build_instances(seen, ensemble.rules, ensemble.classes)
        row = _table(out)[file.stem]
        assert int(row["found"]) == len(cells)


def test_what_is_left_out_is_told(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out, mine = write_tiny(tmp_path / "w"), tmp_path / "out", tmp_path / "mine"
    shutil.copytree(images, mine)
    (mine / "im3.png").write_bytes((images / "im3.png").read_bytes()[:300])
    (tmp_path / "train.csv").write_text(
        "id,annotation,width,height,cell_type\nim0,1 4,96,64,cort\nelsewhere,1 4,96,64,cort\n"
    )
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copy(tmp_path / "train.csv", shared)
    for annotated in (tmp_path / "train.csv", shared):
        words = ("--annotated", annotated, "--sure", "a=0.06,b=0.06,c=0.06", "--min-share", 0)
        assert _label(weights, mine, out, *words) == 0
        told = capsys.readouterr().out
        assert "left out  1 images that are annotated: im0\n" in told
        assert "left out  1 images that failed: im3 (" in told
        assert "kept      2 of 4 images" in told
        assert set(_table(out)) == {"im1", "im2"}
        assert {image["file_name"] for image in json.loads((out / "pseudo.json").read_text())["images"]} == {
            "im1.png",
            "im2.png",
        }
    examples, skipped = read_sources(
        parse_data([f"p={out}"]), make_recipe(labels={"p/*": "cort"}, extra_classes=["a", "b", "c"])
    )
    assert [e.key for e in examples] == ["p/im1", "p/im2"]
    assert skipped.lines() == []


def test_faults_are_told_in_a_line(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = write_tiny(tmp_path / "w"), tmp_path / "out"

    def refused(*more: object) -> str:
        assert _label(weights, images, out, *more) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert refused("--sure", "x=0.5") == "--sure x=0.5: expected one of the classes a, b, c"
    assert refused("--sure", "a=0.01").startswith("--sure a=0.01: expected a score from the rules' threshold")
    assert refused("--min-share", 1.5) == "--min-share: expected a number from 0 to 1, found 1.5"
    assert refused("--min-share", "nan") == "--min-share: expected a number from 0 to 1, found nan"
    assert refused("--agree", 2) == "--agree: expected a number from 0 to 1, found 2"
    assert refused("--min-cells", -1) == "--min-cells: expected 0 or more, found -1"
    missing = tmp_path / "none.csv"
    assert refused("--annotated", missing) == (
        f"{missing}: expected annotations or a folder of them, found nothing there"
    )
    assert not out.exists()
    assert refused("--sure", "a=1,b=1,c=1") == (
        f"{out}: expected images with enough sure cells, found none of 4; see images.csv"
    )
    assert {row["left_out"] for row in _table(out).values()} <= {
        "with fewer than 1 sure cells",
        "without a cell",
    }
    assert not (out / "pseudo.json").exists()
    assert refused("--score", "a=0.2") == (
        f"{out}/seen: expected the ensemble that the run began with, found another rules.per_class.a.score; "
        "choose another --out"
    )
    assert f"{out}/seen: expected the ensemble that the run began with" in refused("--channel", 0)
    (out / "seen/about.json").write_text("[")
    assert refused().startswith(f"{out}/seen/about.json: expected a folder to go on in, found")
    (out / "seen/about.json").write_text("[]")
    assert refused().startswith(f"{out}/seen/about.json: expected a folder to go on in, found")
    with pytest.raises(SystemExit, match="2"):
        _label(weights, images, out, "--sure", "a")
    assert refused("--out", weights).startswith(f"{weights}/seen/about.json: expected a folder to go on in")
    loose = ("--out", tmp_path / "full", "--sure", "a=0.06,b=0.06,c=0.06", "--min-share", 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/images").write_text("in the way")
    assert refused(*loose) == f"{tmp_path}/full: cannot be written: File exists"
