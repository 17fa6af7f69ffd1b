"""What the notebook calls: whatever goes wrong, a valid submission is there, and what went wrong is told."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from places import ROOT
from tiny import write_image, write_tiny

from sartorius_infer import kaggle
from sartorius_infer.cli import main as cli
from sartorius_infer.errors import SartoriusError
from sartorius_infer.kaggle import Outcome, mend, pictures, png, predict
from sartorius_infer.output.check import check_submission
from sartorius_infer.output.submission import read_submission
from sartorius_infer.output.writers import encode_rows
from sartorius_infer.run.journal import ABOUT, Journal, Result, journal_folder
from sartorius_infer.types import UInt8

IDS = ("c", "a", "b")
SIZE_HW = (64, 96)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, as a dataset has it."""
    return write_tiny(tmp_path_factory.mktemp("kit")).parent


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A competition somewhere under /kaggle/input, its sample submission in an order of its own."""
    return mount(tmp_path / "input" / "competitions" / "sartorius-cell-instance-segmentation")


def mount(folder: Path, ids: Sequence[str] = IDS) -> Path:
    for seed, image_id in enumerate(ids):
        write_image(folder / "test" / f"{image_id}.png", SIZE_HW, seed)
    (folder / "sample_submission.csv").write_text("id,predicted\n" + "".join(f"{i},1 1\n" for i in ids))
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs take place in this process: one of its own takes seconds, and has a test of its own."""
    monkeypatch.setattr(kaggle, "_run", lambda words, processes, seconds: cli.main(list(words)))
    monkeypatch.chdir(tmp_path)


def run_as(monkeypatch: pytest.MonkeyPatch, *runs: Callable[[Sequence[str]], int]) -> list[tuple[int, str]]:
    """Let the first attempt be the first of `runs`, and so on; returns processes and time limit of each."""
    asked: list[tuple[int, str]] = []

    def attempt(words: Sequence[str], processes: int, seconds: int) -> int:
        asked.append((processes, words[-1]))
        return runs[len(asked) - 1](words)

    monkeypatch.setattr(kaggle, "_run", attempt)
    return asked


def crash(words: Sequence[str]) -> int:
    return 1


def journaled(*results: Result) -> Callable[[Sequence[str]], int]:
    """A run that dies once these images are finished."""

    def attempt(words: Sequence[str]) -> int:
        out = Path(words[list(words).index("--out") + 1])
        journal = Journal(journal_folder(out), {"weights": "some"})
        for number, result in enumerate(results):
            if number not in journal.finished:
                journal.add(number, [result])
        journal.close()
        return -9

    return attempt


def cells(image_id: str, *rles: str) -> Result:
    return Result(image_id, encode_rows(image_id, rles or [""]), {"a": len(rles)})


def assert_valid(submission: Path, competition: Path, ids: Sequence[str] = IDS) -> None:
    assert check_submission(submission, dict.fromkeys(ids, SIZE_HW), ids) == []


def loud(outcome: Outcome) -> str:
    """What stands between the exclamation marks."""
    lines = str(outcome).splitlines()
    assert outcome.problems
    first = lines.index("!" * 78)
    assert lines[first + 1] == "!! SOMETHING WENT WRONG"
    assert lines[-1] == "!" * 78
    assert lines[first + 2 : -1] == [f"!! {problem}" for problem in outcome.problems]
    return "\n".join(outcome.problems)


@pytest.mark.usefixtures("here")
def test_a_good_run_is_quiet_and_valid(kit: Path, mounted: Path, tmp_path: Path) -> None:
    outcome = predict(kit, root=tmp_path / "input")
    assert outcome.problems == ()
    assert list(outcome.cells) == list(IDS)
    assert sum(outcome.cells.values()) > 10
    assert_valid(outcome.submission, mounted)
    assert outcome.submission == Path("submission.csv")
    rows = read_submission(tmp_path / "submission.csv")
    assert {i: sum(row.id == i and row.predicted != "" for row in rows) for i in IDS} == outcome.cells
    assert str(outcome).splitlines()[0] == f"submission.csv: 3 images, {sum(outcome.cells.values())} cells"
    assert str(outcome).splitlines()[-1] == "valid"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "submission.csv"]


@pytest.mark.usefixtures("here")
def test_the_whole_time_is_the_runs_limit_and_options_are_passed_on(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[str]] = []
    monkeypatch.setattr(kaggle, "_run", lambda words, processes, seconds: seen.append(words) or 1)  # type: ignore[func-returns-value]
    predict(kit, tmp_path / "s.csv", hours=2, options=["--views", "identity,hflip"], root=tmp_path / "input")
    for words in seen:
        assert words[:4] == [
            "--weights",
            str(kit / "weights_manifest.json"),
            "--images",
            str(mounted / "test"),
        ]
        assert words[4:6] == ["--sample-submission", str(mounted / "sample_submission.csv")]
        assert words[6:] == [
            *("--out", str(tmp_path / "s.csv"), "--resume", "--views", "identity,hflip"),
            *("--time-limit", words[-1]),
        ]
        assert 7195 <= int(words[-1].removesuffix("s")) <= 7200
    assert len(seen) == 2


def test_options_that_are_refused_are_not_tried_twice(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(kaggle, "_run", lambda words, processes, seconds: asked.append(processes) or 2)  # type: ignore[func-returns-value]
    outcome = predict(kit, tmp_path / "s.csv", options=["--score", "cort"], root=tmp_path / "input")
    assert asked == [1]
    assert "the options --score cort were refused; see the output above" in loud(outcome)


STRICT = {"per_class": {name: {"score": 1.0} for name in "abc"}}


@pytest.mark.usefixtures("here")
def test_rules_of_the_settings_are_written_beside_the_submission(
    kit: Path, mounted: Path, tmp_path: Path
) -> None:
    loose = predict(kit, tmp_path / "a.csv", root=tmp_path / "input")
    strict = predict(kit, tmp_path / "b.csv", rules=STRICT, root=tmp_path / "input")
    assert sum(strict.cells.values()) == 0 < sum(loose.cells.values())
    assert strict.problems == ()
    assert json.loads((tmp_path / "b.rules.json").read_text()) == STRICT
    assert not (tmp_path / "a.rules.json").exists()
    assert_valid(strict.submission, mounted)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("place", "name", "as_manifest"),
    [
        ("my-rules", "rules.json", False),
        ("datasets/someone/my-rules", "my-rules/rules.json", False),
        ("my-rules", "{path}", True),
    ],
)
def test_rules_of_another_dataset_leave_the_weights_where_they_are(
    kit: Path, mounted: Path, tmp_path: Path, place: str, name: str, as_manifest: bool
) -> None:
    path = tmp_path / "input" / place / "rules.json"
    path.parent.mkdir(parents=True)
    manifest = json.loads((kit / "weights_manifest.json").read_text())
    path.write_text(json.dumps(manifest | {"rules": STRICT} if as_manifest else STRICT))
    before = path.read_bytes()
    outcome = predict(kit, rules=name.format(path=path), root=tmp_path / "input")
    assert (outcome.problems, sum(outcome.cells.values())) == ((), 0)
    assert path.read_bytes() == before
    assert_valid(tmp_path / outcome.submission, mounted)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"per_class": {"a": {"score": 2}}}, "s.rules.json: $.per_class.a.score: "),
        ({"per_klass": {}}, "s.rules.json: $.per_klass: "),
        ({"per_class": {"cort": {"score": 0.4}}}, "s.rules.json: cort: expected one of the classes a, b, c"),
        ({"consensus": {1, 2}}, "RULES: expected what JSON can hold, found Object of type set "),
        ("rules.json", "RULES: expected rules.json in an attached dataset, found none; is its dataset "),
        ("", "RULES: expected . in an attached dataset, found none"),
        ("/none/rules.json", "RULES: expected /none/rules.json in an attached dataset, found none"),
        ("twice.json", "RULES: expected one twice.json in attached datasets, found "),
        ("one/twice.json", "one/twice.json: expected JSON, found "),
    ],
)
def test_rules_that_are_refused_are_told_in_one_line_and_nothing_runs(
    rules: Any, said: str, kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run_as(monkeypatch)
    for name in ("one", "two"):
        (tmp_path / "input" / name).mkdir()
        (tmp_path / "input" / name / "twice.json").write_text("{")
    (tmp_path / "s.csv").write_text("id,predicted\nc,\na,\nb,\n")
    outcome = predict(kit, tmp_path / "s.csv", rules=rules, root=tmp_path / "input")
    assert asked == []
    assert said in loud(outcome)
    assert "\n" not in loud(outcome)
    assert sum(outcome.cells.values()) == 0
    assert_valid(outcome.submission, mounted)


@pytest.mark.usefixtures("here")
def test_rules_are_held_against_the_weights_that_run(kit: Path, mounted: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "input" / "other", classes=["x", "y", "z"], rules={})
    words = {"options": ["--weights", str(other)], "root": tmp_path / "input"}
    good = predict(kit, tmp_path / "s.csv", rules={"per_class": {"x": {"score": 1}}}, **words)  # type: ignore[arg-type]
    assert good.problems == ()
    bad = predict(kit, tmp_path / "s.csv", rules=STRICT, **words)  # type: ignore[arg-type]
    assert "s.rules.json: a: expected one of the classes x, y, z" in loud(bad)
    assert_valid(bad.submission, mounted)


def test_no_competition_is_an_error(kit: Path, tmp_path: Path) -> None:
    said = rf"^{tmp_path}: expected sample_submission.csv beside test/, found neither$"
    with pytest.raises(SartoriusError, match=said):
        predict(kit, tmp_path / "s.csv", root=tmp_path)
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.usefixtures("here")
def test_what_fails_on_all_gpus_is_tried_once_more_by_one_process(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two GPUs that are pretended."""
    one = kaggle._run
    monkeypatch.setattr(kaggle, "gpu_count", lambda: 2)
    asked = run_as(monkeypatch, crash, lambda words: one(words, 1, 0))
    outcome = predict(kit, root=tmp_path / "input")
    assert [processes for processes, _ in asked] == [2, 1]
    assert loud(outcome) == "2 process(es) ended with code 1; see the output above"
    assert sum(outcome.cells.values()) > 10
    assert_valid(outcome.submission, mounted)


def test_finished_images_of_a_failed_run_are_salvaged(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(monkeypatch, *[journaled(cells("c", "1 5", "10 2"), cells("a"))] * 2)
    outcome = predict(kit, tmp_path / "s.csv", root=tmp_path / "input")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\nc,1 5\nc,10 2\na,\nb,\n"
    assert_valid(outcome.submission, mounted)
    assert outcome.cells == {"c": 2, "a": 0, "b": 0}
    assert "the run did not end: 2 images were finished, the others are blank" in loud(outcome)
    assert "no cells in 2 images: a, b" in str(outcome)


@pytest.mark.parametrize("earlier", [None, "id,predicted\nc,\na,\nb,\n", "cut o", "id,predicted\nc,1 5 3\n"])
def test_a_run_that_finishes_nothing_leaves_blank_rows(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str | None
) -> None:
    """Whatever lay there before it: the notebook's own blank submission, or half of one."""
    if earlier is not None:
        (tmp_path / "s.csv").write_text(earlier)
    run_as(monkeypatch, crash, crash)
    outcome = predict(kit, tmp_path / "s.csv", root=tmp_path / "input")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\nc,\na,\nb,\n"
    assert "the run did not end: 0 images were finished" in loud(outcome)
    assert_valid(outcome.submission, mounted)


@pytest.mark.parametrize("about", [b"", b"{", b"[]", b'"text"', b"\xff"])
def test_a_damaged_journal_is_no_hindrance(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: bytes
) -> None:
    journal = journal_folder(tmp_path / "s.csv")
    journal.mkdir()
    (journal / ABOUT).write_bytes(about)
    (journal / "0.part").write_bytes(b"00000000 {}\nhalf a li")
    run_as(monkeypatch, crash, crash)
    outcome = predict(kit, tmp_path / "s.csv", root=tmp_path / "input")
    assert "the run did not end" in loud(outcome)
    assert_valid(outcome.submission, mounted)


def test_salvaged_rows_that_are_invalid_are_left_blank(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(
        monkeypatch, *[journaled(cells("c", "1 5", "5 2"), cells("a", "7 1"), cells("stranger", "1 1"))] * 2
    )
    outcome = predict(kit, tmp_path / "s.csv", root=tmp_path / "input")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\nc,\na,7 1\nb,\n"
    said = loud(outcome)
    assert "line 3: c: shares 1 pixel(s) with line 2: left blank" in said
    assert "stranger: unknown id" in said


def test_the_time_is_not_spent_twice(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a first attempt took is missing in the second; where it took all there is no second."""
    for took, limits in ((3600.0, ["7200s", "3600s"]), (7201.0, ["7200s"])):
        clock = iter([0.0, 0.0, took])
        monkeypatch.setattr(kaggle, "time", SimpleNamespace(monotonic=partial(next, clock)))
        asked = run_as(monkeypatch, crash, crash)
        outcome = predict(kit, tmp_path / "s.csv", hours=2, root=tmp_path / "input")
        assert [limit for _, limit in asked] == limits
        assert_valid(outcome.submission, mounted)
        assert loud(outcome)


@pytest.mark.usefixtures("here")
def test_images_that_fail_are_blank_and_told(kit: Path, mounted: Path, tmp_path: Path) -> None:
    (mounted / "test" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    outcome = predict(kit, tmp_path / "s.csv", root=tmp_path / "input")
    assert outcome.cells["a"] == 0
    assert outcome.cells["b"] > 0
    assert "some images failed and are blank; see the output above" in loud(outcome)
    assert "ended with code" not in loud(outcome)  # it is not tried again
    assert check_submission(tmp_path / "s.csv", None, IDS) == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("damage", ["none", "cut off", "no manifest"])
def test_a_kit_without_whole_weights_gives_blank_rows(
    kit: Path, mounted: Path, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "kit"
    if damage != "none":
        shutil.copytree(kit, broken)
        weights = broken / "tiny.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    if damage == "no manifest":
        (broken / "weights_manifest.json").unlink()
    outcome = predict(broken, tmp_path / "s.csv", root=tmp_path / "input")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\nc,\na,\nb,\n"
    assert "1 process(es) ended with code 1" in loud(outcome)


def test_a_folder_without_images_gives_blank_rows(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(mounted / "test")
    (mounted / "test").mkdir()
    run_as(monkeypatch, crash, crash)
    outcome = predict(kit, tmp_path / "s.csv", root=tmp_path / "input")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\nc,\na,\nb,\n"
    assert loud(outcome)


GOOD = "id,predicted\nc,1 5\nc,10 2\na,\nb,6144 1\n"


def mended(mounted: Path, submission: Path, text: str) -> tuple[str, list[str]]:
    submission.write_text(text)
    said = mend(submission, mounted / "test", mounted / "sample_submission.csv")
    assert_valid(submission, mounted)
    return submission.read_text(), said


def test_a_valid_submission_is_not_touched(mounted: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(GOOD)
    os.utime(path, (1, 1))
    assert mend(path, mounted / "test", mounted / "sample_submission.csv") == []
    assert path.stat().st_mtime == 1


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        (GOOD.replace("b,6144 1\n", ""), GOOD.replace("6144 1", ""), ["b: missing id"]),
        (
            GOOD.replace("6144 1", "6144 2"),
            GOOD.replace("6144 1", ""),
            ["b: pair 1 (6144 2): it ends past pixel"],
        ),
        (
            GOOD.replace("10 2", "5 2"),
            "id,predicted\nc,\na,\nb,6144 1\n",
            ["c: shares 1 pixel(s) with line 2"],
        ),
        (GOOD.replace("10 2", "1 5"), "id,predicted\nc,\na,\nb,6144 1\n", ["c: same mask as line 2"]),
        (GOOD + "d,1 1\n", GOOD, ["d: unknown id"]),
        (GOOD + ",1 1\n", GOOD, ["empty id"]),
        (GOOD.replace("a,\n", "a,0 1\n"), GOOD, ["a: '0 1' is no mask"]),
        ("id,predicted\n", "id,predicted\nc,\na,\nb,\n", ["c: missing", "a: missing", "b: missing"]),
        ("", "id,predicted\nc,\na,\nb,\n", ["every row is blank"]),
        ("id,rle\nc,1 5\n", "id,predicted\nc,\na,\nb,\n", ["every row is blank"]),
        ("id,predicted\nc,1 5,7\n", "id,predicted\nc,\na,\nb,\n", ["every row is blank"]),
    ],
)
def test_what_is_wrong_is_left_blank_and_the_rest_kept(
    mounted: Path, tmp_path: Path, text: str, expected: str, said: list[str]
) -> None:
    found, faults = mended(mounted, tmp_path / "s.csv", text)
    assert found == expected
    assert len(faults) == len(said)
    for fault, part in zip(faults, said, strict=True):
        assert part in fault
        assert "blank" in fault


def test_no_submission_becomes_a_blank_one(mounted: Path, tmp_path: Path) -> None:
    said = mend(tmp_path / "s.csv", mounted / "test", mounted / "sample_submission.csv")
    assert len(said) == 1
    assert (tmp_path / "s.csv").read_text() == "id,predicted\nc,\na,\nb,\n"


def test_images_that_the_sample_leaves_out_are_no_fault(mounted: Path, tmp_path: Path) -> None:
    write_image(mounted / "test" / "more.png")
    assert mended(mounted, tmp_path / "s.csv", GOOD) == (GOOD, [])


def test_ids_with_commas_and_quotes_stay_theirs(tmp_path: Path) -> None:
    competition = mount(tmp_path / "competition", ["a,b", 'c"d'])
    (competition / "sample_submission.csv").write_text('id,predicted\n"a,b",\n"c""d",\n')
    mend(tmp_path / "s.csv", competition / "test", competition / "sample_submission.csv")
    assert [row.id for row in read_submission(tmp_path / "s.csv")] == ["a,b", 'c"d']


def test_an_outcome_names_a_few_blank_images(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path / "s.csv", {str(i): int(i == 3) for i in range(9)}, ())
    assert (
        str(outcome) == f"{tmp_path}/s.csv: 9 images, 1 cells\nno cells in 8 images: 0, 1, 2, 4, 5 ...\nvalid"
    )


@pytest.mark.parametrize(
    ("cells", "problems", "said"),
    [
        ({"a": 3, "b": 0}, (), "then Submit to Competition"),
        ({"a": 0, "b": 0}, (), "try lower thresholds"),
        ({"a": 3}, ("line 2: a: overlap",), "see above what went wrong"),
        ({"a": 0}, ("the run did not end",), "see above what went wrong"),
        ({}, (), "try lower thresholds"),
    ],
)
def test_an_outcome_tells_what_to_do_next(
    cells: dict[str, int], problems: tuple[str, ...], said: str
) -> None:
    step = Outcome(Path("s.csv"), cells, problems).next_step
    assert said in step
    assert "\n" not in step


def test_gpus_count_if_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pretended cards, the second without kernels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr("sartorius_infer.ensemble.device._runs", lambda device: device.index != 1)
    assert kaggle.gpu_count() == 2


def test_a_broken_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that a driver lists here where there is none: a convolution on it fails by itself."""
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert kaggle.gpu_count() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_real_gpu_counts() -> None:
    assert kaggle.gpu_count() == torch.cuda.device_count()


def test_pictures_show_the_images_with_the_most_cells(mounted: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,predicted\nc,1 5\na,\nb,1 40\nb,200 60\n")
    drawn = pictures(path, most=2, root=tmp_path / "input")
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in drawn)
    assert len(drawn) == 2
    assert len(pictures(path, root=tmp_path / "input")) == 3
    assert pictures(path, most=0, root=tmp_path / "input") == []
    assert png(drawn[0]).startswith(b"\x89PNG\r\n\x1a\n")
    path.write_text("id,predicted\nb,1 40\nb,200 60\n")
    np.testing.assert_array_equal(drawn[0], pictures(path, root=tmp_path / "input")[0])
    path.write_text("id,predicted\nb,\n")
    assert (drawn[0] != pictures(path, root=tmp_path / "input")[0]).any()


def test_pictures_are_of_what_the_networks_saw(mounted: Path, tmp_path: Path) -> None:
    """The manifest's range of 16 bits, under which all above 100 is white."""
    submission, file = tmp_path / "s.csv", mounted / "test" / "a.png"
    submission.write_text("id,predicted\na,1 5\n")
    stored = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) // 8

    def drawn(pixels: NDArray[Any], weights: Path | None = None) -> UInt8:
        assert cv2.imwrite(str(file), pixels)
        (picture,) = pictures(submission, root=tmp_path / "input", weights=weights)
        return picture

    fixed = write_tiny(tmp_path / "fixed", images={"range": [0, 100]})
    seen = ((np.minimum(stored, 100) * 51 + 10) // 20).astype(np.uint8)
    for weights in (fixed, fixed.parent):
        np.testing.assert_array_equal(drawn(stored, weights), drawn(seen))
    own = drawn(stored)
    assert (own != drawn(seen)).any()
    np.testing.assert_array_equal(drawn(stored, write_tiny(tmp_path / "free")), own)


def test_without_images_there_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,predicted\nc,1 5\n")
    assert pictures(path, root=tmp_path) == []
    path.write_text("id,predicted\n")
    assert pictures(path, root=tmp_path) == []


def test_a_process_of_its_own_tells_its_code(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert kaggle._run(["--images", str(tmp_path / "nowhere"), "--out", str(tmp_path / "s.csv")], 1, 60) == 1


HANGS = """
import os, pathlib, time
folder = pathlib.Path(os.environ["HANGING"])
(folder / str(os.getpid())).touch()
time.sleep(600)
"""


@pytest.mark.slow
def test_a_run_that_hangs_is_ended_with_all_its_processes(
    mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in a plugin; torchrun's processes are not of its session."""
    (tmp_path / "hangs.py").write_text(HANGS)
    (tmp_path / "pids").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HANGING", str(tmp_path / "pids"))
    monkeypatch.setattr(kaggle, "GRACE_S", 0)
    words = [*("--plugin", str(tmp_path / "hangs.py")), *("--images", str(mounted / "test"))]
    code = kaggle._run([*words, "--out", str(tmp_path / "s.csv"), "--resume"], 2, 30)
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    assert code != 0
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


DIES = """
import os
from sartorius_infer.run import pipeline
whole = pipeline.predict
def predict(ensemble, images, *more, **named):
    if images[0].id == "05":
        os.kill(os.getpid(), 9)
    return whole(ensemble, images, *more, **named)
pipeline.predict = predict
"""


@pytest.mark.slow
def test_what_a_run_finished_before_it_was_killed_is_there(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same image in both attempts; the second goes on from the first."""
    ids = [f"{i:02}" for i in range(7)]
    mount(tmp_path / "input" / "competition", ids)
    (tmp_path / "dies.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["--plugin", str(tmp_path / "dies.py"), "--workers", "1"]
    outcome = predict(kit, tmp_path / "s.csv", options=words, root=tmp_path / "input")
    said = loud(outcome)
    assert said.count("1 process(es) ended with code -9") == 2
    told = re.search(r"(\d) images were finished, the others are blank", said)
    assert told is not None
    finished = int(told[1])
    assert 2 <= finished <= 5
    assert [image_id for image_id, count in outcome.cells.items() if count] == ids[:finished]
    assert check_submission(tmp_path / "s.csv", dict.fromkeys(ids, SIZE_HW), ids) == []


@pytest.mark.slow
def test_two_processes_write_what_one_writes(
    kit: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torchrun, as if each had a GPU of its own; a thread each, since sums depend on their number."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for count in (1, 2):
        monkeypatch.setattr(kaggle, "gpu_count", lambda count=count: count)
        outcome = predict(kit, tmp_path / f"{count}.csv", root=tmp_path / "input")
        assert outcome.problems == ()
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()
    assert_valid(tmp_path / "2.csv", mounted)
