"""`tune --out` anywhere: what it writes loads there, its weights are what they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from annotated import write_saved
from commands import Done, sartorius
from kits import contents
from places import ROOT
from tiny import tiny_model, write_tiny

from sartorius_infer.checkpoints.files import verify_files
from sartorius_infer.cli.main import main
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.manifest import load_manifest

INCLUDED = load_manifest(ROOT / "weights_manifest.json")


def tune(cwd: Path, *words: object) -> Done:
    return sartorius("tune", *words, cwd=cwd)


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


@pytest.mark.slow
def test_checkpoints_of_equal_names(tmp_path: Path) -> None:
    saved, train = write_saved(tmp_path)
    for seed, name in enumerate(("one", "two")):
        listing = write_tiny(tmp_path / "kit" / name, tiny_model(seed))
    content = json.loads(listing.read_text())
    models = [content["models"][0] | {"name": n, "file": f"{n}/tiny.safetensors"} for n in ("one", "two")]
    (tmp_path / "kit" / "pair.json").write_text(json.dumps(content | {"models": models}))
    (tmp_path / "far").mkdir()
    words = ("--weights", "kit/pair.json", "--predictions", saved, "--truth", train, "--folds", 2)
    code, said, errors = tune(tmp_path, *words, "--out", "far/t.json")
    assert code == 0, errors
    places = [f"t_weights/tiny{end}.safetensors" for end in ("", "_2")]
    assert "\n          ".join(["written   far/t.json", *(f"far/{place}" for place in places)]) in said
    plan = load_manifest(tmp_path / "far" / "t.json")
    verify_files(plan)
    assert [spec.file for spec in plan.manifest.models] == places
    for name, place in zip(("one", "two"), places, strict=True):
        assert file_sha256(tmp_path / "far" / place) == file_sha256(
            tmp_path / "kit" / name / "tiny.safetensors"
        )


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
