"""Runs that are killed, shared and resumed: the same bytes, and nothing done twice."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hosts import CABLE, Host, require_hosts, two_hosts
from logged import (
    BROKEN,
    PLUGIN,
    Child,
    ended,
    run_here,
    seen,
    seen_by_process,
    start,
    words_of,
    write_numbered,
    write_weights,
)
from tiny import write_image, write_tiny
from torch.distributed import HashStore

from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.errors import ImageError, JournalError, SubmissionError
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.manifest.rules import ClassRule
from sartorius_infer.networks import registry
from sartorius_infer.networks.plugins import load_plugin
from sartorius_infer.output.writers import SubmissionWriter
from sartorius_infer.run import pipeline, ranks, runs
from sartorius_infer.run.jobs import Job, Options, Summary, plan_batches, plan_jobs
from sartorius_infer.run.journal import Journal, Result, journal_folder
from sartorius_infer.run.ranks import Rank, this_rank, together

COUNT = 9
BROKEN_PLACE = 4
"""The network raises at this image; the one after it is cut short, and cannot be decoded."""


@dataclass(frozen=True)
class Scene:
    """Weights and images of a run, and a folder for what it writes."""

    weights: Path
    images: Path
    folder: Path
    name: str = "s.csv"

    @property
    def out(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def words(self, *more: str, out: Path | None = None) -> list[str]:
        return words_of(self.weights, self.images, out or self.out, *more)

    def run(self, *more: str, out: Path | None = None) -> int:
        """In this process; the log tells of this run alone."""
        self.log.unlink(missing_ok=True)
        return run_here(self.words(*more, out=out), self.log)

    def undisturbed(self, *more: str) -> bytes:
        """What a run without a journal writes."""
        run_here(self.words(*more, out=self.folder / "undisturbed"))
        return (self.folder / "undisturbed").read_bytes()

    def finished(self) -> list[str]:
        """The images in the journal."""
        return [result.id for result in Journal.salvage(journal_folder(self.out))]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Images of two sizes, all of them good."""
    weights = write_weights(tmp_path / "w")
    return Scene(weights, write_numbered(tmp_path / "images", range(COUNT)), tmp_path)


@pytest.fixture
def troubled(scene: Scene) -> Scene:
    """The same with two failing images."""
    numbers = [BROKEN if place == BROKEN_PLACE else place for place in range(COUNT)]
    write_numbered(scene.images, numbers)
    cut = scene.images / f"image{BROKEN_PLACE + 1:03}.png"
    cut.write_bytes(cut.read_bytes()[:100])
    return scene


def of_any_format(scene: Scene) -> Scene:
    """Its output has no suffix, which would tell one."""
    return replace(scene, name="s")


def numbers_of(ids: Sequence[str]) -> list[int]:
    """What the network logs of these images: those that it can look at."""
    numbers = [int(image_id.removeprefix("image")) for image_id in ids]
    return [number for number in numbers if number not in (BROKEN_PLACE, BROKEN_PLACE + 1)]


class Killed(BaseException):
    """Ends a run where it stands."""


@contextmanager
def killed_after(batches: int) -> Iterator[None]:
    """A run inside ends as soon as so many batches are recorded, by it or before, and another one is done."""
    add = Journal.add

    def until(journal: Journal, number: int, results: Sequence[Result]) -> None:
        if len(journal.finished) == batches:
            raise Killed
        add(journal, number, results)

    with mock.patch.object(Journal, "add", until), pytest.raises(Killed):
        yield


SETTINGS = [
    ("--batch-size", "1"),
    ("--batch-size", "2"),
    ("--batch-size", "4", "--workers", "1"),
    ("--batch-size", "20"),
    ("--batch-size", "2", "--format", "coco"),
    ("--batch-size", "3", "--views", "identity,hflip,rot90"),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_journal_changes_no_byte_and_is_gone_afterwards(troubled: Scene, setting: tuple[str, ...]) -> None:
    troubled = of_any_format(troubled)
    assert troubled.run(*setting, "--resume") == 3
    assert troubled.out.read_bytes() == troubled.undisturbed(*setting)
    assert not journal_folder(troubled.out).exists()
    assert troubled.run(*setting) == 3
    assert not journal_folder(troubled.out).exists()


def test_batches_change_the_bytes_of_these_tests(scene: Scene) -> None:
    """Else they could not tell whether a batch was put together otherwise."""
    sizes = ["1", "2", "3", "4"]
    assert len({scene.undisturbed("--batch-size", size) for size in sizes}) == len(sizes)


@pytest.mark.parametrize("setting", SETTINGS)
def test_from_every_number_of_finished_batches_it_goes_on_to_the_same_bytes(
    troubled: Scene, setting: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Looking only at what is left, and each of it once, but for those that a failing one takes with it."""
    troubled = of_any_format(troubled)
    expected = troubled.undisturbed(*setting)
    report = capsys.readouterr().out.split("cells", 1)[1].replace("undisturbed", "s")
    size = int(setting[1])
    ids = [file.id for file in find_images([troubled.images])]
    first = BROKEN_PLACE // size * size
    neighbours = numbers_of(ids[first : first + size])
    for batches in range(-(-COUNT // size)):
        with killed_after(batches):
            troubled.run(*setting, "--resume")
        assert troubled.finished() == ids[: batches * size]
        assert not troubled.out.exists()
        capsys.readouterr()
        assert troubled.run(*setting, "--resume") == 3
        assert troubled.out.read_bytes() == expected
        looked = Counter(seen(troubled.log))
        assert set(looked) == set(numbers_of(ids[batches * size :]))
        assert {number for number, times in looked.items() if times > 1} <= set(neighbours)
        assert capsys.readouterr().out.split("cells", 1)[1] == report
        troubled.out.unlink()


def test_killed_and_resumed_again_and_again_nothing_is_done_twice(troubled: Scene) -> None:
    ids = [file.id for file in find_images([troubled.images])]
    for batches in range(1, 5):
        before = troubled.finished()
        with killed_after(batches):
            troubled.run("--batch-size", "2", "--resume")
        assert troubled.finished()[: len(before)] == before
        assert not set(seen(troubled.log)) & set(numbers_of(before))
    assert troubled.finished() == ids[:8]
    assert troubled.run("--batch-size", "2", "--resume") == 3
    assert seen(troubled.log) == [8]
    assert troubled.out.read_bytes() == troubled.undisturbed("--batch-size", "2")


def test_it_says_how_much_is_finished(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with killed_after(2):
        scene.run("--batch-size", "2", "--resume")
    assert caplog.messages == []
    assert scene.run("--batch-size", "2", "--resume") == 0
    assert caplog.messages == ["going on: 4 of 9 images are finished"]


def test_killed_while_everything_is_written_it_looks_at_nothing_again(scene: Scene) -> None:
    scene.out.write_text("earlier")
    with mock.patch.object(runs, "write", side_effect=Killed), pytest.raises(Killed):
        scene.run("--resume")
    assert scene.out.read_text() == "earlier"
    assert scene.run("--resume") == 0
    assert seen(scene.log) == []
    assert scene.out.read_bytes() == scene.undisturbed()


def test_without_resume_a_journal_is_neither_made_nor_touched(scene: Scene) -> None:
    with killed_after(3):
        scene.run("--resume")
    before = {path: path.read_bytes() for path in journal_folder(scene.out).iterdir()}
    assert scene.run() == 0
    assert seen(scene.log) == list(range(COUNT))
    assert {path: path.read_bytes() for path in journal_folder(scene.out).iterdir()} == before


def test_overlays_and_predictions_are_all_there_after_a_resume(scene: Scene) -> None:
    words = ["--save-predictions", str(scene.folder / "p"), "--overlays", str(scene.folder / "o")]
    with killed_after(4):
        scene.run("--resume", *words)
    assert scene.run("--resume", *words) == 0
    for name in ("p", "o"):
        assert len(list((scene.folder / name).iterdir())) == COUNT


def test_what_laboratories_take_home_is_the_same_after_a_kill_and_shared(
    troubled: Scene, ensemble: Ensemble
) -> None:
    """Killed and resumed, and by three processes of which one was killed."""

    def words(name: str) -> list[str]:
        kinds = {"--labels": "l", "--rois": "r", "--table": "cells.csv"}
        return [word for k, v in kinds.items() for word in (k, str(troubled.folder / name / v))]

    def content(name: str) -> dict[str, bytes]:
        found = (troubled.folder / name).rglob("*")
        return {str(path.name) + path.parent.name: path.read_bytes() for path in found if path.is_file()}

    assert troubled.run(*words("x")) == 3
    with killed_after(4):
        troubled.run("--resume", *words("x2"))
    assert not (troubled.folder / "x2" / "cells.csv").exists()
    assert troubled.run("--resume", *words("x2")) == 3
    (troubled.folder / "x2").rename(troubled.folder / "resumed")
    shared = troubled.folder / "x3"
    options = Options(labels=shared / "l", rois=shared / "r", table=shared / "cells.csv")
    plans = [replace(run_of_rank(troubled, Rank(i, 3, i, "agent")), options=options) for i in range(3)]
    plans[0].prepare()
    with meeting_by(threading.Barrier(3, timeout=30).wait), ThreadPoolExecutor(3) as pool:
        list(pool.map(partial(one_of, ensemble), plans))
    expected = {k.replace("x", ""): v for k, v in content("x").items()}
    assert len(expected) == 2 * (COUNT - 2) + 2
    assert {k.replace("resumed", ""): v for k, v in content("resumed").items()} == expected
    assert {k.replace("x3", ""): v for k, v in content("x3").items()} == expected


def test_no_finished_batch_waits_for_more_than_the_next_two(scene: Scene) -> None:
    """What is done goes to the journal while the networks are busy, not when the stock is full."""
    slow = write_weights(scene.folder / "slow", [0.05])
    scene = replace(scene, weights=slow)
    behind = []
    add = Journal.add

    def count(journal: Journal, number: int, results: Sequence[Result]) -> None:
        behind.append(len(seen(scene.log)) - number)
        add(journal, number, results)

    with mock.patch.object(Journal, "add", count):
        assert scene.run("--resume", "--workers", "4") == 0
    assert sorted(behind)[len(behind) // 2] <= 2


def edit_manifest(scene: Scene, **changed: object) -> None:
    content = json.loads(scene.weights.read_text())
    scene.weights.write_text(json.dumps(content | changed))


def new_weights(scene: Scene) -> None:
    write_weights(scene.weights.parent, [1e-6])


def new_vote(scene: Scene) -> None:
    (model,) = json.loads(scene.weights.read_text())["models"]
    edit_manifest(scene, models=[model | {"weight": 2}])


def new_plugin(scene: Scene) -> None:
    (scene.folder / "plugin.py").write_text(PLUGIN.read_text() + "\n# changed\n")


def one_more_image(scene: Scene) -> None:
    shutil.copy(scene.images / "image000.png", scene.images / "image9.png")


def one_image_less(scene: Scene) -> None:
    (scene.images / "image008.png").unlink()


def another_name(scene: Scene) -> None:
    (scene.images / "image008.png").rename(scene.images / "image9.png")


def other_pixels(scene: Scene) -> None:
    write_numbered(scene.images, [*range(COUNT - 1), 77])


def two_swapped(scene: Scene) -> None:
    write_numbered(scene.images, [1, 0, *range(2, COUNT)])


def other_rules(scene: Scene) -> None:
    (scene.folder / "rules.json").write_text('{"overlap_survival": 0.9}')


def with_ids(scene: Scene, *words: str) -> None:
    """A list of image ids, in the order of the names, or from 5 on."""
    first = 5 if words else 0
    entries = [{"file_name": f"image{k:03}.png", "id": first + k} for k in range(COUNT)]
    (scene.folder / "ids.json").write_text(json.dumps(entries))


Change = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    pass


REFUSED: list[tuple[Change, list[str], str]] = [
    (lambda s: edit_manifest(s, rules={"per_class": {"a": {"score": 0.4}}}), [], "classes and rules"),
    (lambda s: edit_manifest(s, classes=["a", "c", "b"]), [], "classes and rules"),
    (nothing, ["--edge", "drop"], "classes and rules"),
    (nothing, ["--score", "a=0.4"], "classes and rules"),
    (nothing, ["--min-area", "b=7,c=1"], "classes and rules"),
    (other_rules, ["--rules", "rules.json"], "classes and rules"),
    (lambda s: edit_manifest(s, fusion={"iou": 0.5}), [], "fusion"),
    (lambda s: edit_manifest(s, views=["identity", "hflip"]), [], "views"),
    (nothing, ["--views", "hflip"], "views"),
    (new_weights, [], "weights"),
    (new_vote, [], "weights"),
    (new_plugin, [], "plugins"),
    (one_more_image, [], "images"),
    (one_image_less, [], "images"),
    (another_name, [], "images"),
    (other_pixels, [], "images"),
    (two_swapped, [], "images"),
    (nothing, ["--batch-size", "3"], "batch size"),
    (nothing, ["--format", "coco"], "format"),
    (nothing, ["--precision", "bf16"], "precision"),
    (nothing, ["--overlays", "pictures"], "folders"),
    (nothing, ["--save-predictions", "predictions"], "folders"),
    (nothing, ["--labels", "pictures"], "folders"),
    (nothing, ["--table", "t.csv"], "table"),
    (lambda s: new_vote(s) or edit_manifest(s, views=["rot180"]), [], "views, weights"),  # type: ignore[func-returns-value]
]


@pytest.mark.parametrize(("change", "words", "named"), REFUSED)
def test_a_journal_of_another_configuration_is_refused_by_its_name(
    scene: Scene,
    change: Change,
    words: list[str],
    named: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(scene.folder)
    shutil.copy(PLUGIN, scene.folder / "plugin.py")
    scene = of_any_format(scene)
    own = ["--plugin", str(scene.folder / "plugin.py")]
    base_words = [word for word in scene.words("--batch-size", "2", "--resume") if word != str(PLUGIN)]
    base_words = [*own, *base_words[1:]]
    with killed_after(2):
        run_here(base_words)
    before = {path: path.read_bytes() for path in journal_folder(scene.out).iterdir()}
    capfd.readouterr()
    change(scene)
    assert run_here([*base_words, *words]) == 1
    assert f"{journal_folder(scene.out)}: expected the journal of this run, found " in (
        line := capfd.readouterr().err.splitlines()[-1]
    )
    assert f" it differs in {named}; remove the folder, or " in line
    assert {path: path.read_bytes() for path in journal_folder(scene.out).iterdir()} == before
    assert not scene.out.exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--image-ids", "ids.json"], "image ids"), (["--overlaps", "keep"], "overlaps")],
)
def test_a_journal_of_other_ids_or_overlaps_is_refused(
    scene: Scene,
    words: list[str],
    named: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(scene.folder)
    with_ids(scene)
    for name in ("r.zip", "r.json"):
        scene = replace(scene, name=name)
        with killed_after(2):
            scene.run("--resume")
        assert scene.run("--resume", *words) == 1
        assert f" it differs in {named}; remove the folder" in capfd.readouterr().err.splitlines()[-1]
    with killed_after(2):
        scene.run(*(words := ["--image-ids", "ids.json"]), "--resume", out=scene.folder / "numbers.zip")
    with_ids(scene, "others")
    assert scene.run("--resume", *words, out=scene.folder / "numbers.zip") == 1
    assert " it differs in image ids; " in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["r.json", "r.zip"])
def test_results_with_ids_and_overlaps_go_on_to_the_same_bytes(
    troubled: Scene, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(troubled.folder)
    with_ids(troubled)
    scene, words = replace(troubled, name=name), ["--image-ids", "ids.json", "--overlaps", "keep"]
    run_here(scene.words(*words, out=scene.folder / f"undisturbed-{name}"))
    with killed_after(4):
        scene.run("--resume", *words)
    assert not scene.out.exists()
    assert scene.run("--resume", *words) == 3
    assert scene.out.read_bytes() == (scene.folder / f"undisturbed-{name}").read_bytes()
    assert not journal_folder(scene.out).exists()


def test_the_first_and_last_bytes_of_a_large_image_its_size_and_its_id_are_told_apart(tmp_path: Path) -> None:
    content = bytes(50_000)
    variants = [content, b"1" + content[1:], content[:-1] + b"1", content + b"\0", content[:100]]
    jobs = [Job("a", None), Job("a", ImageFile("a", tmp_path / "absent"))]
    for i, data in enumerate(variants):
        (tmp_path / f"{i}").write_bytes(data)
        jobs.append(Job("a", ImageFile("a", tmp_path / f"{i}")))
    jobs.append(replace(jobs[2], id="b"))
    hashes = [runs.images_sha256([job]) for job in jobs]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[1:])) == len(hashes) - 1
    assert runs.images_sha256(jobs[2:4]) != runs.images_sha256(jobs[3:1:-1])
    assert runs.images_sha256([]) != runs.images_sha256(jobs[:1]) != runs.images_sha256(jobs[:1] * 2)


def test_a_journal_of_another_version_is_refused(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    with killed_after(2):
        scene.run("--resume")
    with mock.patch.object(runs, "__version__", "99"):
        assert scene.run("--resume") == 1
    assert "it differs in version;" in capfd.readouterr().err


def test_the_order_of_a_sample_submission_belongs_to_the_images(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    sample = scene.folder / "sample.csv"
    sample.write_text("id,predicted\nimage003,\nimage001,\nabsent,\n")
    with killed_after(1):
        scene.run("--resume", "--sample-submission", str(sample))
    assert scene.finished() == ["image003"]
    sample.write_text("id,predicted\nimage001,\nimage003,\nabsent,\n")
    assert scene.run("--resume", "--sample-submission", str(sample)) == 1
    assert "it differs in images;" in capfd.readouterr().err


def test_what_changes_no_result_is_no_other_configuration(scene: Scene) -> None:
    expected = scene.undisturbed("--batch-size", "2")
    with killed_after(2):
        scene.run("--resume", "--batch-size", "2")
    moved = replace(scene, images=scene.images.rename(scene.folder / "moved"))
    assert moved.run("--resume", "--batch-size", "2", "--workers", "7", "--time-limit", "1h") == 0
    assert seen(moved.log) == [4, 5, 6, 7, 8]
    assert moved.out.read_bytes() == expected


def test_stop_keeps_the_journal_and_blank_goes_on_from_it(troubled: Scene) -> None:
    """The same images, so that what is finished stays what it is."""
    assert troubled.run("--resume", "--on-error", "stop") == 1
    assert troubled.finished() == [f"image{i:03}" for i in range(BROKEN_PLACE)]
    assert not troubled.out.exists()
    assert troubled.run("--resume") == 3
    assert seen(troubled.log) == [6, 7, 8]
    assert troubled.out.read_bytes() == troubled.undisturbed()


def test_an_image_that_cannot_be_read_is_blank_with_a_journal_too(scene: Scene) -> None:
    """Reading /proc/self/mem from its start is an input/output error."""
    (scene.images / "image9.png").symlink_to("/proc/self/mem")
    assert scene.run("--resume") == 3
    assert scene.out.read_bytes() == scene.undisturbed()
    assert scene.out.read_text().endswith("\nimage9,\n")


# Several processes, played by threads.


@pytest.fixture
def ensemble(scene: Scene) -> Ensemble:
    with mock.patch.object(registry, "_FAMILIES", dict(registry._FAMILIES)):
        load_plugin(PLUGIN)
        return load_ensemble([scene.weights], torch.device("cpu"))


def run_of_rank(scene: Scene, rank: Rank, batch_size: int = 1, **more: Any) -> runs.Run:
    jobs, _ = plan_jobs(find_images([scene.images]), None)
    return runs.Run(tuple(jobs), scene.out, batch_size=batch_size, rank=rank, **more)


def meeting_by(barrier: Callable[[], object]) -> Any:
    """Processes inside wait for each other by this, not by torch's."""
    return mock.patch.object(runs, "together", lambda rank: nullcontext(barrier))


def one_of(ensemble: Ensemble, run: runs.Run) -> tuple[Summary | None, list[str]]:
    """A whole run of one process, and what it predicts."""
    looked: list[str] = []
    summary = runs.execute(run, ensemble, lambda done, count, image_id: looked.append(image_id))
    assert looked[0] == ""
    return summary, looked[1:]


def run_ranks(
    ensemble: Ensemble, scene: Scene, count: int, size: int = 1, agent: str = "agent"
) -> tuple[Summary, list[list[str]]]:
    """All of `count` processes; the first one's summary, and what each predicted."""
    plans = [run_of_rank(scene, Rank(i, count, i, agent), size) for i in range(count)]
    with meeting_by(threading.Barrier(count, timeout=30).wait), ThreadPoolExecutor(count) as pool:
        ends = list(pool.map(partial(one_of, ensemble), plans))
    assert [summary for summary, _ in ends[1:]] == [None] * (count - 1)
    assert ends[0][0] is not None
    return ends[0][0], [looked for _, looked in ends]


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_processes_give_the_bytes_of_one(
    troubled: Scene, ensemble: Ensemble, count: int, size: int
) -> None:
    summary, looked = run_ranks(ensemble, troubled, count, size)
    assert troubled.out.read_bytes() == troubled.undisturbed("--batch-size", str(size))
    assert summary.images == COUNT
    assert len(summary.failed) == 2
    assert sorted(i for some in looked for i in some) == [f"image{i:03}" for i in range(COUNT)]
    shares = [-(-len(some) // size) for some in looked]
    assert max(shares) - min(shares) <= 1


def test_a_process_that_is_late_to_read_the_journal_still_takes_its_own_share(
    scene: Scene, ensemble: Ensemble
) -> None:
    """The first one is done with a batch by then, unless it waits."""

    class Late(Journal):
        def __init__(self, folder: Path, *more: Any, **named: Any) -> None:
            time.sleep(0.3 * folder.exists())
            super().__init__(folder, *more, **named)

    with mock.patch.object(runs, "Journal", Late):
        _, looked = run_ranks(ensemble, scene, 2)
    assert list(map(len, looked)) == [5, 4]


def finish(ensemble: Ensemble, run: runs.Run, *numbers: int) -> None:
    """Leave these batches finished in a journal, by a process that is gone."""
    batches = plan_batches(run.jobs, run.batch_size or 1)
    journal = runs.open_journal(run, ensemble, batches, lambda: None)
    some = [batches[number] for number in numbers]
    options = Options(batch_size=run.batch_size or 1)
    for done, results in pipeline.run(ensemble, some, SubmissionWriter(run.out), options):
        journal.add(done, results)
    journal.close()


def opened(ensemble: Ensemble, run: runs.Run) -> Journal:
    return runs.open_journal(run, ensemble, plan_batches(run.jobs, 1), lambda: None)


def test_processes_of_another_number_go_on_from_what_is_finished(scene: Scene, ensemble: Ensemble) -> None:
    """As three ranks leave it, of which one has died."""
    finish(ensemble, run_of_rank(scene, Rank(0, 3, 0, "agent"), 2), 0, 1, 3)
    _, looked = run_ranks(ensemble, scene, 2, 2)
    assert looked == [["image004", "image005"], ["image008"]]
    assert scene.out.read_bytes() == scene.undisturbed("--batch-size", "2")


def test_more_processes_than_batches(scene: Scene, ensemble: Ensemble) -> None:
    _, looked = run_ranks(ensemble, scene, 4, 5)
    assert [len(some) for some in looked] == [5, 4, 0, 0]


def test_a_restarted_process_goes_on_and_a_new_one_begins_anew(scene: Scene, ensemble: Ensemble) -> None:
    """Restarted by the same torchrun, that is; without --resume."""
    finish(ensemble, run_of_rank(scene, Rank(0, 2, 0, "mine")), 0)
    _, looked = run_ranks(ensemble, scene, 2, agent="mine")
    assert sum(map(len, looked)) == COUNT - 1
    finish(ensemble, run_of_rank(scene, Rank(0, 2, 0, "mine")), 0)
    _, looked = run_ranks(ensemble, scene, 2, agent="another")
    assert sum(map(len, looked)) == COUNT


def test_a_new_one_that_dies_before_it_begins_does_not_go_on_from_what_it_did_not_make(
    scene: Scene, ensemble: Ensemble
) -> None:
    """A restart, by torchrun's count, that finds the journal of another configuration."""
    Journal(journal_folder(scene.out), {"weights": "other"})
    journal = opened(ensemble, run_of_rank(scene, Rank(0, 2, 0, "mine")))
    assert journal.finished == frozenset()


def test_a_restart_counts_its_time_from_the_first_start_and_a_resume_does_not(
    scene: Scene, ensemble: Ensemble
) -> None:
    an_hour_ago = time.monotonic() - 3600
    mine = Rank(1, 2, 0, "mine")
    finish(ensemble, run_of_rank(scene, Rank(0, 2, 0, "mine"), start=an_hour_ago), 0)

    def started(rank: Rank) -> float:
        run = run_of_rank(scene, rank, resume=True, limit_s=7200.0)
        budget = runs.budget_of(run, opened(ensemble, run))
        assert budget is not None
        return budget.start

    assert started(mine) == pytest.approx(an_hour_ago, abs=5)
    assert started(Rank(0, 2, 0, "another")) == pytest.approx(time.monotonic(), abs=5)
    assert started(Rank()) == pytest.approx(time.monotonic(), abs=5)
    assert runs.budget_of(run_of_rank(scene, Rank())) is None


def test_a_folder_that_is_not_shared_is_a_named_error(scene: Scene, ensemble: Ensemble) -> None:
    """Seen from the process that finds none, and from the first one, which misses the other's share."""
    with meeting_by(lambda: None):
        with pytest.raises(JournalError, match=r"s\.csv\.journal: expected a folder that every machine sees"):
            one_of(ensemble, run_of_rank(scene, Rank(1, 2)))
        with pytest.raises(JournalError, match=r"journal: expected 9 finished batches, found 4 too few"):
            one_of(ensemble, run_of_rank(scene, Rank(0, 2)))
    assert not scene.out.exists()


@pytest.mark.parametrize("resume", [False, True])
def test_progress_begins_at_nothing_and_ends_with_all_that_is_left(
    troubled: Scene, ensemble: Ensemble, resume: bool
) -> None:
    run, told = run_of_rank(troubled, Rank(), 2, resume=resume), []
    if resume:
        finish(ensemble, run, 0)
    runs.execute(run, ensemble, lambda *step: told.append(step))
    ids = [job.id for job in run.jobs][2 * resume :]
    assert told == [(i, len(ids), image_id) for i, image_id in enumerate(["", *ids])]


def test_what_cannot_be_written_is_told_before_networks_are_loaded(scene: Scene) -> None:
    run = replace(run_of_rank(scene, Rank()), options=Options(overlays=scene.folder / "new" / "o"))
    with pytest.raises(SubmissionError, match="images: cannot be written: Is a directory"):
        replace(run, out=scene.images).prepare()
    with mock.patch.object(os, "access", return_value=False), pytest.raises(SubmissionError) as caught:
        run.prepare()
    assert str(caught.value) == f"{scene.out}: cannot be written: Permission denied"
    replace(run, out=scene.folder / "a" / "s.csv").prepare()
    assert (scene.folder / "a").is_dir()
    assert (scene.folder / "new" / "o").is_dir()
    for device in ("/dev/null", "/dev/stdout"):
        replace(run, out=Path(device)).prepare()
    with pytest.raises(OSError, match=r"f\.png"):
        replace(run, out=write_image(scene.folder / "f.png") / "s.csv").prepare()


def test_images_that_will_fail_are_told_before_networks_are_loaded(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """By a name that is no text, which only the bytes of a file system can hold; and where there is none."""
    run = run_of_rank(scene, Rank())
    odd = Job(r"\udce9", ImageFile(r"\udce9", Path("\udce9.png")))
    bad = replace(run, jobs=(odd, *run.jobs, Job("gone", None)))
    stopping = replace(bad, options=replace(run.options, on_error="stop"))
    with pytest.raises(ImageError, match="expected a file name in UTF-8"):
        stopping.prepare()
    run.prepare()
    replace(bad, rank=Rank(1, 2)).prepare()
    assert caplog.messages == []
    bad.prepare()
    (told,) = caplog.messages
    assert told == (
        r"left blank: \udce9.png: expected a file name in UTF-8, found other bytes; rename the file; "
        "gone: expected an image of this id, found none"
    )


def test_a_summary_counts_every_class_in_label_order(scene: Scene, ensemble: Ensemble) -> None:
    strict = ensemble.manifest.rules.model_copy(update={"per_class": {"a": ClassRule(score=1)}})
    none = replace(ensemble, manifest=ensemble.manifest.model_copy(update={"rules": strict}))
    summary, _ = one_of(none, run_of_rank(scene, Rank()))
    assert summary is not None
    assert [*summary.cells] == list("abc")
    assert summary.cells["a"] == 0


def test_the_rank_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other launchers set some of its variables, but not all."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert this_rank() == Rank(0, 1, 0, "")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    rank = this_rank()
    assert (rank.index, rank.count, rank.local, rank.is_first) == (5, 8, 1, False)
    assert f"-{os.getppid()}-" in rank.agent
    assert this_rank() == rank
    with together(Rank()) as wait:
        wait()


def test_processes_meet_under_a_new_name_whatever_dead_ones_left_behind() -> None:
    """In torchrun's store, three times in a row."""
    store = HashStore()
    names = set()
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            found = {pool.submit(late, store, Rank(i, 3), 0.1 * (2 - i)) for i in range(3)}
            (name,) = {future.result() for future in found}
        names.add(name)
    assert len(names) == 3


def late(store: HashStore, rank: Rank, seconds: float) -> str:
    time.sleep(seconds)
    return ranks._meet(store, rank)


@pytest.fixture
def one_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single process that torchrun started."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("one_under_torchrun")
def test_a_single_process_of_torchrun_ends_with_0_where_images_failed(troubled: Scene) -> None:
    """Any other code makes torchrun start it all over."""
    assert troubled.run() == 0


@pytest.mark.usefixtures("one_under_torchrun")
def test_a_single_process_of_torchrun_goes_on_when_it_is_restarted(scene: Scene) -> None:
    with killed_after(4):
        scene.run()
    assert scene.run() == 0
    assert seen(scene.log) == [4, 5, 6, 7, 8]


# Processes that are really killed.


def resumed_to_the_end(scene: Scene, *setting: str) -> None:
    """Nothing that was finished before is looked at, and the bytes are those of an undisturbed run."""
    before = scene.finished()
    assert scene.run("--resume", *setting) == 0
    assert not set(seen(scene.log)) & set(numbers_of(before))
    assert scene.out.read_bytes() == scene.undisturbed(*setting)
    assert {path.name for path in scene.folder.glob("s.csv*")} == {"s.csv"}


@pytest.mark.slow
def test_killed_before_any_change_of_the_file_system_it_goes_on_to_the_same_bytes(scene: Scene) -> None:
    """And another configuration is refused, or begins anew; never does it take what is not its own."""
    other = ("--batch-size", "5", "--edge", "drop")
    expected = scene.undisturbed("--batch-size", "3"), scene.undisturbed(*other)
    for change in range(1, 100):
        words = scene.words("--batch-size", "3", "--resume")
        if Child(words, scene.folder / "child", change).wait() == 0:
            break
        assert not scene.out.exists() or scene.out.read_bytes() == expected[0]
        shutil.copytree(scene.folder, copied := scene.folder.parent / f"{scene.folder.name}-{change}")
        resumed_to_the_end(scene, "--batch-size", "3")
        again = replace(scene, folder=copied)
        if again.run("--resume", *other) == 0:
            assert again.out.read_bytes() == expected[1]
        else:
            assert not again.out.exists() or again.out.read_bytes() == expected[0]
            assert journal_folder(again.out).is_dir()
            resumed_to_the_end(again, "--batch-size", "3")
        scene.out.unlink()
        shutil.rmtree(copied)
    assert change > 15


@pytest.mark.slow
def test_killed_at_random_moments_in_a_row_it_ends_with_the_same_bytes(scene: Scene) -> None:
    """Until it ends by itself, three times over."""
    slow = replace(scene, weights=write_weights(scene.folder / "slow", [0.03]))
    words = slow.words("--batch-size", "2", "--resume")
    for start_over in range(3):
        for kills in range(20):
            before, log = slow.finished(), slow.folder / f"log{start_over}-{kills}"
            child = Child(words, log)
            code = child.wait(random.uniform(0, 0.4))
            child.kill()
            assert not set(seen(log)) & set(numbers_of(before))
            if code is not None:
                assert code == 0
                break
        resumed_to_the_end(slow, "--batch-size", "2")
        slow.out.unlink()


# torchrun, and a network that is one.


@pytest.fixture
def real(tmp_path: Path) -> Scene:
    """A tiny Mask R-CNN, images of two sizes and one cut short."""
    images = tmp_path / "images"
    for place in range(12):
        write_image(images / f"image{place:03}.png", (48, 64) if place % 3 else (64, 48), seed=place)
    cut = images / "image007.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return Scene(write_tiny(tmp_path / "w"), images, tmp_path)


TORCHRUN = ("--standalone", "--nproc-per-node=2")


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(real: Scene) -> None:
    """torchrun ends well where an image failed, as it would otherwise start all over."""
    code, said = ended(start(real.words("--batch-size", "2")))
    assert code == 3, said
    expected = real.out.read_bytes()
    assert expected.count(b"\n") > 100
    real.out.unlink()
    code, said = ended(start(real.words("--batch-size", "2"), *TORCHRUN))
    assert code == 0, said
    assert "failed    1\n  image007: " in said
    assert said.count("images    12 in ") == 1
    assert real.out.read_bytes() == expected
    assert {path.name for path in real.folder.glob("*s.csv*")} == {"s.csv"}


@pytest.mark.slow
def test_a_real_process_killed_in_its_work_ends_with_the_same_bytes(real: Scene) -> None:
    for place in range(12, 60):
        write_image(real.images / f"image{place:03}.png", (96, 128), seed=place)
    words = real.words("--batch-size", "2", "--resume")
    code, said = ended(start(words))
    assert code == 3, said
    expected = real.out.read_bytes()
    real.out.unlink()
    for _ in range(3):
        before = len(real.finished())
        process = start(words)
        while process.poll() is None and len(real.finished()) == before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        assert ended(process)[0] == -signal.SIGKILL
    finished = len(real.finished())
    code, said = ended(start(words))
    assert code == 3, said
    assert f"going on: {finished} of 60 images are finished" in said
    assert real.out.read_bytes() == expected


@pytest.mark.slow
def test_a_rank_that_dies_is_restarted_and_all_go_on_from_what_is_finished(scene: Scene) -> None:
    """Once, and not once more because the new ones take what the dead ones left for their own."""
    write_numbered(scene.images, range(20))
    slow = replace(scene, weights=write_weights(scene.folder / "slow", [0.15]))
    expected = slow.undisturbed("--batch-size", "2")
    words = slow.words("--batch-size", "2")
    torchrun = [*TORCHRUN, "--max-restarts=1"]
    code, said = ended(start(words, *torchrun, LOGGED_TO=str(slow.log), LOGGED_DIES="6"))
    assert code == 0, said
    assert slow.out.read_bytes() == expected
    went_on_from_what_was_finished(slow, said)


def went_on_from_what_was_finished(scene: Scene, said: str) -> None:
    """20 images in batches of two: the second two processes looked at what was not finished, once."""
    first, second = seen_by_process(scene.log)[:2], seen_by_process(scene.log)[2:]
    assert len(second) == 2, said
    before, after = [*chain(*first)], [*chain(*second)]
    (finished,) = map(int, re.findall(r"going on: (\d+) of 20 images are finished", said))
    assert len(after) == 20 - finished
    assert sorted({*before, *after}) == list(range(20))
    assert len(set(before)) == len(before)
    assert len(set(after)) == len(after)
    assert len(set(before) & set(after)) <= 8  # two batches of each that were under way


@pytest.mark.slow
def test_a_journal_of_another_configuration_ends_all_processes(scene: Scene) -> None:
    with killed_after(2):
        scene.run("--resume")
    code, said = ended(start(scene.words("--resume", "--edge", "drop"), *TORCHRUN, "--max-restarts=0"))
    assert code == 1
    assert "it differs in classes and rules" in said
    assert len(scene.finished()) == 2


@pytest.mark.slow
def test_a_process_that_dies_on_one_of_two_machines(scene: Scene) -> None:
    """On the other one torchrun counts no restart, and its store outlives the processes."""
    write_numbered(scene.images, range(20))
    slow = replace(scene, weights=write_weights(scene.folder / "slow", [0.15]))
    expected = slow.undisturbed("--batch-size", "2")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d"]
    torchrun += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=1"]
    words = slow.words("--batch-size", "2")
    both = [start(words, *torchrun, LOGGED_TO=str(slow.log), LOGGED_DIES="6") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(ended, both))
    said = "".join(text for _, text in ends)
    assert [code for code, _ in ends] == [0, 0], said
    assert slow.out.read_bytes() == expected
    went_on_from_what_was_finished(slow, said)


@pytest.mark.slow
def test_one_of_two_hosts_is_killed_and_started_again(scene: Scene) -> None:
    """Two processes on each, a network between them and one folder: no finished image is looked at again."""
    require_hosts()
    write_numbered(scene.images, range(60))
    slow = replace(scene, weights=write_weights(scene.folder / "slow", [0.3]))
    expected = slow.undisturbed("--batch-size", "2")
    words = slow.words("--batch-size", "2", "--resume")
    torchrun = ["--nnodes=2", "--nproc-per-node=2", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=1"]

    def begin(host: Host) -> subprocess.Popen[str]:
        meeting = [f"--rdzv-endpoint={first.address}:29400", f"--local-addr={host.address}"]
        # torchrun's agents that were there before tell a new one no address in the store that they share.
        shared = {"GLOO_SOCKET_IFNAME": CABLE, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return start(words, *torchrun, *meeting, boot=host.enter, LOGGED_TO=str(slow.log), **shared)

    with two_hosts(scene.folder) as (first, second):
        stays, dies = begin(first), begin(second)
        while len(slow.finished()) < 10 and stays.poll() is None:
            time.sleep(0.05)
        second.crash()
        assert ended(dies)[0] == -signal.SIGKILL
        finished = {int(name.removeprefix("image")) for name in slow.finished()}
        before = slow.log.read_text().count("\n")
        assert len(finished) < 50
        ends = [ended(process) for process in (begin(second), stays)]
    said = "".join(text for _, text in ends)
    assert [code for code, _ in ends] == [0, 0], said
    assert slow.out.read_bytes() == expected
    after = {int(line.split()[0]) for line in slow.log.read_text().splitlines()[before:]}
    assert set(seen(slow.log)) == {*range(60)}
    assert not after & finished


@pytest.mark.parametrize(("ids", "said"), [("ac", "of b, found that of c"), ("a", "of b, found none"),
                                           ("abc", "of no other image, found that of c")])  # fmt: skip
def test_a_journal_of_other_images_is_refused(ids: str, said: str) -> None:
    """Its checksums are right, so that it was written by somebody who wanted it so."""
    journal: Any = SimpleNamespace(folder=Path("j"), results=lambda: (Result(i, []) for i in ids))
    with pytest.raises(JournalError, match=f"^j: expected the result {said}; remove it to begin anew$"):
        list(runs._in_order(journal, ["a", "b"]))
    assert [r.id for r in runs._in_order(journal, list(ids))] == list(ids)
