from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from annotated import CLASSES, HIDDEN, SIZE, examples, plain_scores, write_saved
from commands import Done, sartorius
from factories import random_prediction
from tiny import write_image, write_tiny

from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.cli.main import main
from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.manifest.manifest import Fusion, load_manifest
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.output.predictions import save_prediction
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.search import search, searches, tune
from sartorius_infer.tuning.trials import Example, Scorer

LOOSE = Choice(Rules(per_class={name: ClassRule(score=0.0) for name in CLASSES}, overlap_survival=0.0))


def test_search_never_loses_and_finds_good_rules() -> None:
    some = examples()
    scorer = Scorer(some, CLASSES)
    everything = np.arange(len(some))
    start = scorer(LOOSE).mean()
    found = search(scorer, LOOSE, everything)
    assert scorer(found).mean() > max(start, 0.9)
    best = Choice(HIDDEN)
    assert search(scorer, best, everything) == best, "nothing beats 1, and ties keep what is"


def test_a_member_that_says_nonsense_loses_its_vote() -> None:
    scorer = Scorer(examples(4, members=2), CLASSES)
    start = Choice(HIDDEN, weights=(1.0, 1.0))
    found = search(scorer, start, np.arange(4))
    assert scorer(start).mean() < 0.9
    assert scorer(found).mean() == 1
    assert found.weights[1] == 0 < found.weights[0]


@pytest.mark.slow
def test_tune_judges_on_unseen_images_and_repeats_itself() -> None:
    some = examples(9)
    tuned = tune(Scorer(some, CLASSES), LOOSE, folds=3, seed=5)
    np.testing.assert_allclose(tuned.before, plain_scores(some, LOOSE))
    assert tuned.seen == pytest.approx(np.mean(plain_scores(some, tuned.choice)))
    assert tuned.before.mean() < tuned.unseen.mean() <= tuned.seen + 1e-9
    assert tuned.gain.difference == pytest.approx(tuned.unseen.mean() - tuned.before.mean())
    kinds = tuned.by_type()
    assert list(kinds) == sorted({example.truth.cell_type for example in some})
    counts, before, unseen = np.array(list(kinds.values())).T
    assert (counts @ before / 9, counts @ unseen / 9) == pytest.approx(
        (tuned.before.mean(), tuned.unseen.mean())
    )
    again = tune(Scorer(some, CLASSES), LOOSE, folds=3, seed=5)
    assert (again.choice, again.gain) == (tuned.choice, tuned.gain)
    np.testing.assert_array_equal(again.unseen, tuned.unseen)


def test_folds_that_are_given_are_the_folds() -> None:
    scorer, groups = Scorer(examples(5), CLASSES), ("two", "one", "two", "one", "one")
    tuned = tune(scorer, LOOSE, groups=groups)
    for held, others in (([0, 2], [1, 3, 4]), ([1, 3, 4], [0, 2])):
        expected = scorer(search(scorer, LOOSE, np.array(others)), np.array(held))
        np.testing.assert_array_equal(tuned.unseen[held], expected)
    assert (tuned.folds, tuned.groups) == (2, groups)
    parts = tuned.by_fold()
    assert {name: count for name, (count, _, _) in parts.items()} == {"one": 3, "two": 2}
    assert parts["two"][1:] == pytest.approx((tuned.before[[0, 2]].mean(), tuned.unseen[[0, 2]].mean()))


def test_searches_that_go_together_find_what_each_finds_alone_and_combine_less() -> None:
    some, start = examples(4, members=2), Choice(HIDDEN, weights=(1.0, 1.0))
    parts = [np.array([0, 1, 2]), np.array([1, 2, 3]), np.arange(4)]
    room = Scorer(some, CLASSES)
    room(start)
    limit = 2 * room._store.used
    together, done = Scorer(some, CLASSES, limit), list[int]()
    found = searches(together, start, parts, done.append)
    assert sorted(done) == [0, 1, 2]
    apart = [Scorer(some, CLASSES, limit) for _ in parts]
    assert found == [search(scorer, start, part) for scorer, part in zip(apart, parts, strict=True)]
    assert together.combined < 0.7 * sum(scorer.combined for scorer in apart)


def test_labels_that_say_nothing_give_no_real_gain() -> None:
    rng = np.random.default_rng(3)
    noise = []
    for i in range(8):
        masks = tuple(split_label_map(rng.integers(0, 2, SIZE).astype(np.int32), 1))
        prediction = replace(random_prediction(rng, 10, SIZE), image_id=f"i{i}")
        noise.append(Example((prediction,), TrueImage(f"i{i}", SIZE, "a", masks)))
    tuned = tune(Scorer(noise, CLASSES), LOOSE, folds=4)
    assert not (tuned.gain.is_real and tuned.gain.low > 0)


def test_too_few_images() -> None:
    with pytest.raises(TruthError, match="at least 5"):
        tune(Scorer(examples(3), CLASSES), LOOSE)
    with pytest.raises(TruthError, match="at least 2"):
        tune(Scorer([], CLASSES), LOOSE, folds=1)


def command(*words: object) -> Done:
    return sartorius("tune", *words)


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A manifest of a tiny network, saved predictions, and train.csv."""
    return write_tiny(tmp_path / "kit"), *write_saved(tmp_path)


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


def write_pair(manifest: Path, **models: Any) -> None:
    """Make the manifest one of two networks, `tiny` and `twin`, of the same checkpoint."""
    content = json.loads(manifest.read_text())
    content["models"].append(content["models"][0] | {"name": "twin"} | models)
    manifest.write_text(json.dumps(content))


@pytest.mark.slow
def test_members_that_were_saved_apart_get_their_weights(case: tuple[Path, Path, Path]) -> None:
    manifest, saved, train = case
    write_pair(manifest, weight=2.0)
    rng = np.random.default_rng(1)
    for file in saved.glob("*.npz"):  # the other network is no use
        save_prediction(saved.parent / "tiny", replace(random_prediction(rng, 12, SIZE), image_id=file.stem))
    out = manifest.parent / "tuned.json"
    run = command(
        *("--weights", manifest, "--truth", train, "--out", out, "--folds", 2),
        *("--predictions", saved, saved.parent / "tiny"),
    )
    assert run.returncode == 0, run.stderr
    assert f"network   tiny: {saved.parent / 'tiny'}\nnetwork   twin: {saved}\n" in run.stdout
    assert "weights tiny 1.0 -> 0.0, twin 2.0" in run.stdout
    assert "left out  tiny" in run.stdout
    tuned = load_manifest(out).manifest
    assert [(model.name, model.weight) for model in tuned.models] == [("twin", 2.0)]
    assert "iou" in json.loads(out.read_text())["fusion"]


@pytest.mark.slow
def test_the_command_runs_the_networks(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    manifest, _, train = case
    write_pair(manifest)
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
    content = json.loads(out.read_text())
    assert content["models"][0]["file"].startswith("kit/")
    assert all(model["weight"] > 0 for model in content["models"])
    assert "  weights tiny 1.0" in run.stdout


@pytest.mark.slow
def test_one_line_on_an_error(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    manifest, saved, train = case
    words = ("--weights", manifest, "--truth", train, "--out", tmp_path / "elsewhere" / "t.json")
    for more, said in (
        (("--predictions", tmp_path / "none"), "found none"),
        (("--predictions", saved), "t.json: expected a file in a folder that can be written, found none at"),
    ):
        run = command(*words, *more)
        assert run.returncode == 1
        assert said in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "one of the arguments --images --predictions is required"),
        (("--images", "i", "--predictions", "p"), "--predictions: not allowed with argument --images"),
    ],
)
def test_images_or_predictions_is_a_matter_of_usage(
    more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--truth", "t.csv", "--out", "t.json", *more])
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().endswith(said)


def test_a_member_that_is_left_alone_keeps_the_fusion_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def coordinates(*_: Any, again: bool) -> list[tuple[str, Any]]:
        moved = Choice(HIDDEN, Fusion(iou=0.3), (1.0, 0.0))
        return [("both", lambda choice: iter((moved,)))]

    monkeypatch.setattr("sartorius_infer.tuning.search.coordinates", coordinates)
    start = Choice(HIDDEN, Fusion(iou=0.7), (1.0, 1.0))
    found = search(Scorer(examples(4, members=2), CLASSES), start, np.arange(4))
    assert (found.weights, found.fusion) == ((1.0, 0.0), start.fusion)


def test_what_cannot_be_is_told_before_networks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_tiny(tmp_path / "kit")
    for i in range(2):
        write_image(tmp_path / "images" / f"i{i}.png", SIZE, seed=i)
    train, header = tmp_path / "train.csv", "id,annotation,width,height,cell_type\n"
    monkeypatch.setattr("sartorius_infer.ensemble.passes.predict", lambda *_: pytest.fail("a network ran"))
    both = header + "".join(f"i{i},,{SIZE[1]},{SIZE[0]},a\n" for i in range(2))
    words = ["tune", "--weights", manifest, "--images", tmp_path / "images", "--truth", train]
    for text, out, more, said in (
        (header, "t.json", (), "found none of i0"),
        (both, "t.json", (), "at least 5 annotated images"),
        (both, "t.json", ("--folds", 2, "--seed", -1), "seed of 0 or more, found -1"),
        (both, "kit", ("--folds", 2), "found a folder"),
        (both, "none/t.json", ("--folds", 2), "none/t.json: expected a file in a folder that can be written"),
    ):
        train.write_text(text)
        assert main([str(word) for word in (*words, "--out", tmp_path / out, *more)]) == 1
        error = capsys.readouterr().err.strip()
        assert said in error.splitlines()[-1]
        assert "Traceback" not in error


@pytest.mark.slow
def test_images_without_truth_are_skipped_with_a_line(
    tmp_path: Path, case: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of predictions as of images, of which no network sees them."""
    manifest, saved, train = case
    for i in range(4):
        write_image(tmp_path / "images" / f"i{i}.png", SIZE, seed=i)
    table = pd.read_csv(train)
    table[table["id"] != "i2"].to_csv(train, index=False)
    out = manifest.parent / "tuned.json"
    words = ["tune", "--weights", manifest, "--truth", train, "--folds", 3, "--out", out]
    for source in (["--predictions", saved], ["--images", tmp_path / "images"]):
        assert main([str(word) for word in (*words, *source)]) == 0
        said = capsys.readouterr().out
        assert said.startswith("skipped   1 image without truth: i2\nimages    3, 3 folds\n")


def test_it_starts_from_the_rules_that_are_given(
    case: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says them, when everything else is in order."""
    begun: list[Choice] = []

    def tune(scorer: Scorer, start: Choice, *_: Any) -> None:
        begun.append(start)
        raise TruthError("enough")

    monkeypatch.setattr("sartorius_infer.tuning.search.tune", tune)
    manifest, saved, train = case
    words = ["tune", "--weights", manifest, "--predictions", saved, "--truth", train, "--folds", 2, "--out"]
    more = ["--score", "a=0.123", "--min-area", "b=4", "--edge", "drop"]
    assert main([str(word) for word in (*words, manifest.parent / "t.json", *more)]) == 1
    (start,) = begun
    assert (start.rules.of("a").score, start.rules.of("b").min_area) == (0.123, 4)
    assert start.rules.edge.mode == "drop"
    assert "  a       0.123 (--score)  0 (default)     0.3\n" in capsys.readouterr().err
    assert main([str(word) for word in (*words, manifest.parent / "t.json", "--score", "x=1")]) == 1
    assert capsys.readouterr().err == "error: --score x=1.0: expected one of the classes a, b, c\n"


def test_predictions_of_other_classes_than_the_manifests(
    case: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, saved, train = case
    words = ["tune", "--weights", manifest, "--predictions", saved, "--truth", train, "--folds", 2, "--out"]
    content = json.loads(manifest.read_text()) | {"classes": ["a"], "rules": {}}
    manifest.write_text(json.dumps(content))
    assert main([str(word) for word in (*words, manifest.parent / "t.json")]) == 1
    assert "expected labels of the manifest's classes, 1..1, found 3" in capsys.readouterr().err
