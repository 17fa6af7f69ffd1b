from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import random_prediction
from tiny import write_image, write_tiny

from sartorius_infer.errors import TruthError
from sartorius_infer.instances import build_instances
from sartorius_infer.manifest import load_manifest
from sartorius_infer.metric import score_image
from sartorius_infer.predictions import save_prediction
from sartorius_infer.rle import encode_label_map, split_label_map
from sartorius_infer.rules import ClassRule, EdgeRule, EdgeThresholds, Rules
from sartorius_infer.truth import TrueImage
from sartorius_infer.tuning import Example, Scorer, coordinates, curves, search, tune

CLASSES = ("a", "b", "c")
SIZE = (60, 80)
LOOSE = Rules(per_class={name: ClassRule(score=0.0) for name in CLASSES}, overlap_survival=0.0)
HIDDEN = Rules(
    per_class={"a": ClassRule(score=0.5), "b": ClassRule(score=0.3, min_area=30), "c": ClassRule(score=0.7)}
)


def examples(count: int = 6, seed: int = 0) -> list[Example]:
    """Predictions, and as truth what hidden rules make of them: good rules exist, and can be found."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        prediction = random_prediction(rng, 25, SIZE)
        cells = build_instances(prediction, HIDDEN, CLASSES)
        masks = tuple(split_label_map(cells.label_map, len(cells)))
        made.append(Example(prediction, TrueImage(f"i{i}", SIZE, CLASSES[i % 3], masks)))
    return made


def plain_scores(some: list[Example], rules: Rules) -> list[float]:
    scores = []
    for example in some:
        cells = build_instances(example.prediction, rules, CLASSES)
        found = split_label_map(cells.label_map, len(cells))
        scores.append(score_image("", example.truth.masks, found, SIZE[0] * SIZE[1]).ap)
    return scores


def any_rules(rng: np.random.Generator) -> Rules:
    per_class = {}
    for name in CLASSES:
        edge = EdgeThresholds(score=round(rng.random(), 1), min_area=int(rng.integers(0, 40)))
        rule = ClassRule(score=round(rng.random(), 1), min_area=int(rng.integers(0, 60)), mask=0.4)
        per_class[name] = rule.model_copy(update={"edge": edge if rng.random() < 0.5 else None})
    return Rules(
        per_class=per_class,
        consensus=("off", "count", "score_sum")[rng.integers(3)],
        overlap_survival=round(rng.random(), 1),
        rescore_by_mask=bool(rng.random() < 0.5),
        fill_holes=bool(rng.random() < 0.5),
        edge=EdgeRule(mode=("rule", "keep", "drop")[rng.integers(3)]),
    )


def test_what_is_remembered_is_what_the_rules_give() -> None:
    some, rng = examples(), np.random.default_rng(1)
    scorer = Scorer(some, CLASSES)
    for _ in range(40):
        rules = any_rules(rng)
        assert scorer(rules).tolist() == plain_scores(some, rules)
    assert scorer(HIDDEN).tolist() == [1.0] * len(some)


def test_search_never_loses_and_finds_good_rules() -> None:
    some = examples()
    scorer = Scorer(some, CLASSES)
    everything = np.arange(len(some))
    start = scorer(LOOSE).mean()
    found = search(scorer, LOOSE, everything)
    assert scorer(found).mean() > max(start, 0.9)
    assert search(scorer, HIDDEN, everything) == HIDDEN, "nothing beats 1, and ties keep what is"


def test_every_setting_moves_alone() -> None:
    for fine in (False, True):
        for name, candidates in coordinates(CLASSES, fine):
            for candidate in candidates(HIDDEN):
                other = HIDDEN.model_dump()
                moved = candidate.model_dump()
                changed = [k for k in other if k != "per_class" and other[k] != moved[k]]
                changed += [c for c in CLASSES if HIDDEN.of(c) != candidate.of(c)]
                assert len(changed) <= 1, name


@pytest.mark.slow
def test_tune_judges_on_unseen_images_and_repeats_itself() -> None:
    some = examples(9)
    tuned = tune(Scorer(some, CLASSES), LOOSE, folds=3, seed=5)
    assert tuned.start == pytest.approx(np.mean(plain_scores(some, LOOSE)))
    assert tuned.seen == pytest.approx(np.mean(plain_scores(some, tuned.rules)))
    assert tuned.start < tuned.unseen <= tuned.seen + 1e-9
    assert tuned.gain.difference == pytest.approx(tuned.unseen - tuned.start)
    again = tune(Scorer(some, CLASSES), LOOSE, folds=3, seed=5)
    assert (again.rules, again.unseen, again.gain) == (tuned.rules, tuned.unseen, tuned.gain)


def test_labels_that_say_nothing_give_no_real_gain() -> None:
    rng = np.random.default_rng(3)
    noise = []
    for i in range(8):
        masks = tuple(split_label_map(rng.integers(0, 2, SIZE).astype(np.int32), 1))
        noise.append(Example(random_prediction(rng, 10, SIZE), TrueImage(f"i{i}", SIZE, "a", masks)))
    tuned = tune(Scorer(noise, CLASSES), LOOSE, folds=4)
    assert not (tuned.gain.is_real and tuned.gain.low > 0)


def test_too_few_images() -> None:
    with pytest.raises(TruthError, match="at least 5"):
        tune(Scorer(examples(3), CLASSES), LOOSE)
    with pytest.raises(TruthError, match="at least 2"):
        tune(Scorer([], CLASSES), LOOSE, folds=1)


def test_curves_pass_through_the_chosen_point() -> None:
    some = examples()
    scorer = Scorer(some, CLASSES)
    drawn = curves(scorer, HIDDEN)
    expected = {(name, setting) for name in CLASSES for setting in ("score", "min_area")}
    assert {(curve.class_name, curve.setting) for curve in drawn} == expected
    for curve in drawn:
        assert curve.scores[curve.values.index(curve.chosen)] == 1


def command(*words: Any) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-W", "error", "-m", "sartorius_infer", "tune", *map(str, words)]
    return subprocess.run(run, capture_output=True, text=True, check=False)


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A manifest of a tiny network, saved predictions, and train.csv."""
    manifest = write_tiny(tmp_path / "kit")
    plan = load_manifest(manifest).manifest
    rng, rows = np.random.default_rng(0), []
    for i in range(4):
        made = random_prediction(rng, 12, SIZE)
        prediction = type(made)(f"i{i}", *[getattr(made, n) for n in list(made.__dataclass_fields__)[1:]])
        save_prediction(tmp_path / "saved", prediction)
        cells = build_instances(prediction, HIDDEN, plan.classes)
        rows += [
            (f"i{i}", t, SIZE[1], SIZE[0], "a") for t in encode_label_map(cells.label_map, len(cells)) if t
        ]
    columns = ["id", "annotation", "width", "height", "cell_type"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train.csv", index=False)
    return manifest, tmp_path / "saved", tmp_path / "train.csv"


@pytest.mark.slow
def test_the_command_writes_a_manifest_that_loads(case: tuple[Path, Path, Path]) -> None:
    manifest, saved, train = case
    out = manifest.parent / "tuned.json"
    words = ("--weights", manifest, "--predictions", saved, "--truth", train, "--out", out, "--folds", 2)
    run = command(*words)
    assert run.returncode == 0, run.stderr
    assert "unseen" in run.stdout
    tuned = load_manifest(out).manifest
    assert tuned.evidence is not None
    assert tuned.evidence.images == 4
    assert tuned.models == load_manifest(manifest).manifest.models
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    first = out.read_bytes()
    assert command(*words).returncode == 0
    assert out.read_bytes() == first


@pytest.mark.slow
def test_the_command_runs_the_networks(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    manifest, _, train = case
    for i in range(4):
        write_image(tmp_path / "images" / f"i{i}.png", SIZE, seed=i)
    out = tmp_path / "tuned.json"
    run = command(
        *(
            "--weights",
            manifest,
            "--images",
            tmp_path / "images",
            "--truth",
            train,
            "--out",
            out,
            "--folds",
            2,
        )
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(out.read_text())["models"][0]["file"].startswith("kit/")


def test_one_line_on_an_error(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    manifest, saved, train = case
    words = ("--weights", manifest, "--truth", train, "--out", tmp_path / "elsewhere" / "t.json")
    for more, said in (
        ((), "--images or --predictions"),
        (("--predictions", tmp_path / "none"), "found none"),
        (("--predictions", saved), "expected --out in a folder above"),
    ):
        run = command(*words, *more)
        assert run.returncode == 1
        assert said in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1
