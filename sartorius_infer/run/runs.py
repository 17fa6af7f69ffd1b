"""One whole run: what is done already, which part of the rest is this process's, the output at the end."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import weights_sha256
from sartorius_infer.errors import JournalError
from sartorius_infer.output.submission import ResultWriter
from sartorius_infer.run.budget import Budget
from sartorius_infer.run.journal import ABOUT, Journal, journal_folder
from sartorius_infer.run.pipeline import Batch, Job, Options, Summary, plan_batches, run, write
from sartorius_infer.run.ranks import Rank
from sartorius_infer.version import __version__

log = logging.getLogger(__name__)

_PROBE = 4096


@dataclass(frozen=True)
class Plan:
    """What a run needs beside the networks and the images.

    resume   keep a journal beside the output, and go on from the one that is there
    rank     this process among those that torchrun started
    barrier  waits for all of them
    limit_s  seconds that the run may take from `start` (of time.monotonic()), or None
    """

    resume: bool
    rank: Rank
    barrier: Callable[[], None]
    limit_s: float | None
    start: float


def run_directly(
    ensemble: Ensemble,
    jobs: Sequence[Job],
    writer: ResultWriter,
    options: Options,
    budget: Budget | None = None,
    on_image: Callable[[str], None] = lambda image_id: None,
) -> Summary:
    """Every job by this process, written as it goes; raises what `pipeline.run` and `write` raise."""
    summary, start = Summary(), time.perf_counter()
    batches = plan_batches(jobs, options.batch_size)
    for _, results in run(ensemble, batches, writer, options, budget, on_image):
        write(results, writer, summary)
    summary.seconds = time.perf_counter() - start
    return summary


def run_with_journal(
    ensemble: Ensemble,
    jobs: Sequence[Job],
    writer: ResultWriter,
    options: Options,
    journal: Journal,
    plan: Plan,
    on_image: Callable[[str], None] = lambda image_id: None,
) -> Summary | None:
    """This process's share of the jobs, into the journal; the first process then writes everything.

    Returns the summary there, None elsewhere.
    """
    start = time.perf_counter()
    batches = plan_batches(jobs, options.batch_size)
    mine = unfinished(batches, journal, plan.rank)
    # Each process must have seen what is unfinished before the first one finishes more of it.
    plan.barrier()
    with closing(journal):
        for number, results in run(ensemble, mine, writer, options, budget_of(plan, journal), on_image):
            journal.add(number, results)
    plan.barrier()
    if not plan.rank.is_first:
        return None
    journal.reread()
    if missing := len(batches) - len(journal.finished):
        raise JournalError(
            f"{journal.folder}: expected {len(batches)} finished batches, found {missing} too few; "
            "the folder of --out must be one that every machine sees"
        )
    summary = Summary()
    write(journal.results(), writer, summary)
    summary.seconds = time.perf_counter() - start
    return summary


def images_left(jobs: Sequence[Job], options: Options, journal: Journal, rank: Rank) -> int:
    """How many images this process has still to predict."""
    batches = plan_batches(jobs, options.batch_size)
    return sum(len(batch.jobs) for batch in unfinished(batches, journal, rank))


def unfinished(batches: Sequence[Batch], journal: Journal, rank: Rank) -> list[Batch]:
    """The batches left for this process: every `rank.count`-th of those that no process has finished."""
    left = [batch for batch in batches if batch.number not in journal.finished]
    return left[rank.index :: rank.count]


def open_journal(ensemble: Ensemble, jobs: Sequence[Job], out: Path, about: dict[str, str], plan: Plan,
                 options: Options) -> Journal:  # fmt: skip
    """The journal of this run, fresh unless it goes on; says what is finished. Raises JournalError."""
    about = {
        "version": __version__,
        "classes and rules": _sha256(ensemble.manifest.model_dump_json(include={"classes", "rules"})),
        "fusion": _sha256(ensemble.manifest.model_dump_json(include={"fusion"})),
        "views": ",".join(ensemble.manifest.views),
        "images": images_sha256(jobs),
        "batch size": str(options.batch_size),
        "folders": f"overlays {options.overlays}, predictions {options.save_predictions}",
        **about,
    }
    folder = journal_folder(out)
    if plan.rank.is_first:
        restarted = plan.rank.agent and _mark(folder, plan.rank).is_file()
        journal = Journal(folder, about, fresh=not plan.resume and not restarted)
    plan.barrier()
    if not plan.rank.is_first:
        if not (folder / ABOUT).is_file():
            raise JournalError(f"{folder}: expected a folder that every machine sees, found none here")
        journal = Journal(folder, about)
    if plan.rank.agent:
        _note_start(_mark(folder, plan.rank), plan)
    if journal.finished and plan.rank.is_first:
        done = sum(
            len(b.jobs) for b in plan_batches(jobs, options.batch_size) if b.number in journal.finished
        )
        log.warning("going on: %d of %d images are finished", done, len(jobs))
    return journal


def about_weights(ensemble: Ensemble, plugins: Sequence[Path], precision: str, format: str) -> dict[str, str]:
    """What else the results depend on, for `open_journal`."""
    return {
        "weights": weights_sha256(ensemble),
        "plugins": _sha256("".join(_sha256(p.read_text(encoding="utf-8")) for p in plugins)),
        "precision": precision,
        "format": format,
    }


def budget_of(plan: Plan, journal: Journal | None = None) -> Budget | None:
    """The time that is left; a restarted process counts from when it was started first."""
    if plan.limit_s is None:
        return None
    start = plan.start
    if journal is not None and plan.rank.agent:
        start = time.monotonic() - (time.time() - _mark(journal.folder, plan.rank).stat().st_mtime)
    return Budget(plan.limit_s, start)


def _mark(folder: Path, rank: Rank) -> Path:
    """A file in the journal that says when a torchrun first started a process of this run."""
    return folder / f"{rank.agent}.agent"


def _note_start(mark: Path, plan: Plan) -> None:
    """Make the mark, unless a process that was started earlier has."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    began = time.time() - (time.monotonic() - plan.start)
    os.utime(mark, (began, began))


def images_sha256(jobs: Sequence[Job]) -> str:
    """A hash of ids, sizes and three samples of the bytes of every image: cheap, and enough to notice."""
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(f"{job.id!r} ".encode())
        # One that cannot be read fails by itself, later.
        with suppress(OSError):
            if job.file is not None and job.file.path.is_file():
                digest.update(_probe(job.file.path))
    return digest.hexdigest()


def _probe(path: Path) -> bytes:
    """The size of a file, and bytes from its beginning, middle and end."""
    size = path.stat().st_size
    found = b"%d " % size
    with path.open("rb") as file:
        for place in (0, size // 2, max(0, size - _PROBE)):
            file.seek(place)
            found += file.read(_PROBE)
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
