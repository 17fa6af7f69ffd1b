"""`tune --out` anywhere: what it writes loads there, its weights are what they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from annotated import SIZE, write_saved
from kits import contents
from places import ROOT
from tiny import write_image, write_tiny

from sartorius_infer.checkpoints.files import verify_files
from sartorius_infer.cli.main import main
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.manifest import load_manifest

INCLUDED = load_manifest(ROOT / "weights_manifest.json")


def tune(cwd: Path, *words: Any) -> tuple[int, str, str]:
    run = [sys.executable, "-W", "error", "-m", "sartorius_infer", "tune", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_included_checkpoint_anywhere(tmp_path: Path) -> None:
    write_saved(tmp_path / "data", INCLUDED.manifest.classes)
    (tmp_path / "far").mkdir()
    words = ("--predictions", "../data/saved", "--truth", "../data/train.csv", "--folds", 2)
    code, said, _ = tune(tmp_path / "far", *words, "--out", "tuned.json")
    assert code == 0
    place = "tuned_weights/resnet18_fpn96.safetensors"
    assert said.endswith(f"written   tuned.json\n          {place}\n          tuned.png\n")
    assert set(contents(tmp_path / "far")) == {"tuned.json", "tuned.png", place}
    plan = load_manifest(tmp_path / "far" / "tuned.json")
    verify_files(plan)
    (old,), (new,) = INCLUDED.manifest.models, plan.manifest.models
    assert (new.sha256, new.bytes, new.network) == (old.sha256, old.bytes, old.network)
    assert file_sha256(tmp_path / "far" / place) == old.sha256
    assert plan.manifest.evidence is not None and plan.manifest.evidence.images == 4
    before = contents(tmp_path / "far")
    assert tune(tmp_path / "far", *words, "--out", "tuned.json")[0] == 0
    assert contents(tmp_path / "far") == before, "the same again gives the same"


@pytest.mark.slow
def test_bare_checkpoints_of_equal_names(tmp_path: Path) -> None:
    """They run, each by itself, and come along under names that differ."""
    _, train = write_saved(tmp_path)
    for i in range(4):
        write_image(tmp_path / "images" / f"i{i}.png", SIZE, seed=i)
    for name in ("one", "two"):
        write_tiny(tmp_path / name)
        (tmp_path / name / "weights_manifest.json").unlink()
    (tmp_path / "far").mkdir()
    words = ("--images", "images", "--truth", train, "--folds", 2, "--out", tmp_path / "far" / "t.json")
    code, _, errors = tune(tmp_path, "--weights", "one/tiny.safetensors", "two/tiny.safetensors", *words)
    assert code == 0, errors
    plan = load_manifest(tmp_path / "far" / "t.json")
    verify_files(plan)
    places = [f"t_weights/tiny{end}.safetensors" for end in ("", "_2")]
    assert {spec.file for spec in plan.manifest.models} <= set(places)
    assert set(contents(tmp_path / "far")) == {"t.json", "t.png", *(s.file for s in plan.manifest.models)}


@pytest.mark.slow
def test_in_place_names_stay(tmp_path: Path) -> None:
    saved, train = write_saved(tmp_path)
    manifest = write_tiny(tmp_path / "kit", **{"$schema": "docs/weights_manifest.schema.json"})
    before = contents(manifest.parent)
    words = ("--weights", manifest, "--predictions", saved, "--truth", train, "--folds", 2)
    code, said, _ = tune(tmp_path, *words, "--out", "kit/tuned.json")
    assert code == 0
    assert said.endswith("written   kit/tuned.json\n          kit/tuned.png\n")
    tuned = json.loads((manifest.parent / "tuned.json").read_text())
    assert tuned["models"] == json.loads(manifest.read_text())["models"]
    after = contents(manifest.parent)
    assert set(after) == {*before, "tuned.json", "tuned.png"}
    assert {name: after[name] for name in before} == before


def test_a_folder_that_cannot_be_written_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, train = write_saved(tmp_path)
    manifest = write_tiny(tmp_path / "kit")
    out = tmp_path / "far" / "t.json"
    out.parent.mkdir(mode=0o555)
    monkeypatch.setattr("sartorius_infer.tuning.search.tune", lambda *_: pytest.fail("it was searched"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # an administrator may write into any folder
    words = ["tune", "--weights", manifest, "--predictions", saved, "--truth", train, "--folds", 2]
    assert main([*map(str, words), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    expected = f"{out}: expected a file in a folder that can be written, found none at {out.parent}"
    assert error == f"error: {expected}\n"
    assert list(out.parent.iterdir()) == []
