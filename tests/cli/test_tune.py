"""`tune --out` anywhere: what it writes loads there, its weights are what they were."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from annotated import CLASSES, write_saved
from commands import Done, sartorius
from kits import contents
from places import ROOT
from tiny import tiny_model, write_tiny

from sartorius_infer.checkpoints.files import verify_files
from sartorius_infer.cli.main import main
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.manifest import load_manifest
from sartorius_infer.manifest.overrides import override_rules
from sartorius_infer.manifest.rules import Rules

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


def write_folds(folder: Path, classes: Sequence[str] = CLASSES) -> tuple[Path, Path]:
    """`folds/one` and `folds/two` of two images each, and train.csv."""
    saved, train = write_saved(folder, classes)
    for number, file in enumerate(sorted(saved.iterdir())):
        place = folder / "folds" / ("one" if number < 2 else "two")
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    return folder / "folds", train


def test_a_folder_of_folds_is_judged_by_fold_and_its_rules_can_be_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds, train = write_folds(tmp_path)
    words = ("--weights", write_tiny(tmp_path / "kit"), "--predictions", folds, "--truth", train)
    assert main(["tune", *map(str, words), "--out", str(tmp_path / "far.json")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("images    4, 2 folds\n")
    line = r"[\d.]+ -> [\d.]+ unseen, 2 images\n"
    found = re.search(rf"^by fold   .*\n  one +{line}  two +{line}gain ", said, re.M)
    assert found, said
    tuned = load_manifest(tmp_path / "far.json").manifest
    assert tuned.evidence is not None and tuned.evidence.folds == 2
    other = write_tiny(tmp_path / "other", tiny_model(1))
    assert main(["models", "--weights", str(other), "--rules", str(tmp_path / "far.json")]) == 0
    assert "rules     from --rules far.json" in capsys.readouterr().out
    assert with_rules_of(other, tmp_path / "far.json") == tuned.rules


def with_rules_of(manifest: Path, file: Path) -> Rules:
    plan = load_manifest(manifest).manifest
    return override_rules(plan.rules, plan.classes, file=file).rules


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--folds", "3"), 2, "--folds: expected the folds of --predictions alone, found 3 too"),
        (
            ("--truth", "half.csv"),
            1,
            "annotated images of two folds or more, found those of one alone",
        ),
        (("--predictions", "twice"), 1, "twice: expected each image in one fold, found i0 in one and two"),
    ],
)
def test_folds_that_are_none_are_told_in_one_line(
    more: tuple[str, str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folds, train = write_folds(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = train.read_text().splitlines(keepends=True)
    Path("half.csv").write_text("".join(line for line in lines if not line.startswith(("i2", "i3"))))
    for name in ("one", "two"):
        shutil.copytree(folds / "one", Path("twice") / name)
    manifest = write_tiny(tmp_path / "kit")
    words = ("--weights", manifest, "--predictions", folds, "--truth", train, "--out", "t.json")
    monkeypatch.setattr("sartorius_infer.tuning.search.tune", lambda *_: pytest.fail("it was searched"))
    try:
        ended = main(["tune", *map(str, words), *more])
    except SystemExit as error:  # argparse's own end
        ended = int(error.code or 0)
    assert ended == code
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)
    assert not Path("t.json").exists()
