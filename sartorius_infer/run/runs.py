"""One whole run: planned without torch; then what is finished, what is left, the output at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sartorius_infer.errors import ImageError, JournalError, SubmissionError, size_text, some
from sartorius_infer.images.read import image_size
from sartorius_infer.output.tables import TableLines, TableWriter
from sartorius_infer.output.writers import ResultWriter, open_writer
from sartorius_infer.run.budget import Budget
from sartorius_infer.run.jobs import Batch, Job, Options, Summary, plan_batches
from sartorius_infer.run.journal import ABOUT, Journal, Result, journal_folder
from sartorius_infer.run.ranks import Rank, together
from sartorius_infer.version import __version__

if TYPE_CHECKING:
    from sartorius_infer.ensemble.ensemble import Ensemble
    from sartorius_infer.manifest.manifest import Manifest

log = logging.getLogger(__name__)

_PROBE = 4096

Progress = Callable[[int, int, str], None]
"""Told how many of this process's images are done, how many it has, and which was the last, "" at first.

An image in tiles counts as that many.
"""


@dataclass(frozen=True)
class Run:
    """What a run is to do, whatever networks do it.

    jobs        the images, in the order of the output
    out         the file that is written; its journal lies beside it
    numbers     COCO's `image_id`s by image, or None: the images' own ids
    batch_size  images that enter the networks together; None is 4 on a GPU, 1 on a CPU
    plugins     files that registered networks, and
    precision   what the networks were asked to compute in: results depend on both
    rank        this process among those that torchrun started
    resume      keep a journal, and go on from the one that is there
    limit_s     seconds that it may take from `start` (of time.monotonic()), or None
    """

    jobs: tuple[Job, ...]
    out: Path
    format: Literal["kaggle", "coco"] = "kaggle"
    options: Options = field(default_factory=Options)
    numbers: Mapping[str, int] | None = None
    batch_size: int | None = None
    plugins: tuple[Path, ...] = ()
    precision: str = "auto"
    rank: Rank = field(default_factory=Rank)
    resume: bool = False
    limit_s: float | None = None
    start: float = field(default_factory=time.monotonic)

    @property
    def keeps_journal(self) -> bool:
        """Whether finished batches are kept: by wish, to share the work, or since torchrun may start over."""
        return self.resume or self.rank.count > 1 or bool(self.rank.agent)

    def prepare(self) -> None:
        """Make the folders; raise SubmissionError where a file cannot be written, OSError elsewhere.

        Images whose names already tell that they will fail are said, or, with `on_error="stop"`, raise
        ImageError, as does an extra that is not there ExtraError. It is all found out again later, but after
        networks were loaded, which takes long.
        """
        self.options.require_extra()
        faults = [fault for job in self.jobs if (fault := job.fault)]
        if faults and self.options.on_error == "stop":
            raise faults[0]
        if faults and self.rank.is_first:
            log.warning("left blank: %s", some(faults, between="; "))
        files = (self.out, *self.options.tables)
        for folder in (*(file.parent for file in files), *self.options.folders):
            folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            _require_writable(file)


def _require_writable(file: Path) -> None:
    place = file if file.exists() and not file.is_file() else file.parent
    if file.is_dir() or not os.access(place, os.W_OK):
        reason = os.strerror(errno.EISDIR if file.is_dir() else errno.EACCES)
        raise SubmissionError(f"{file}: cannot be written: {reason}")


def execute(
    run: Run, ensemble: Ensemble, progress: Progress = lambda done, count, image_id: None
) -> Summary | None:
    """Every job to the output, which appears whole or not at all; the summary, of the first process alone.

    Raises SubmissionError where the output cannot be written, JournalError, and an image's own error with
    `on_error="stop"`.
    """
    outputs = Outputs.of(run, ensemble.classes)
    with together(run.rank) as barrier:
        with outputs.opened() if run.rank.is_first else nullcontext():
            size = _batch_size(run, ensemble)
            jobs = _in_tiles(run, ensemble.manifest)
            options = replace(run.options, batch_size=size)
            work = _Work(run, ensemble, options, plan_batches(jobs, size), outputs, barrier, progress)
            journal = open_journal(run, ensemble, work.batches, barrier) if run.keeps_journal else None
            summary = work.directly() if journal is None else work.with_journal(journal)
        if journal is not None and summary is not None:
            journal.remove()
    return summary


@dataclass(frozen=True, eq=False)
class Outputs:
    """The files that hold something of every image."""

    results: ResultWriter
    tables: TableWriter | None

    @classmethod
    def of(cls, run: Run, classes: Sequence[str]) -> Outputs:
        """Those of a run, untouched."""
        table, size_um = run.options.table, run.options.pixel_size_um
        tables = None if table is None else TableWriter(table, classes, size_um)
        return cls(open_writer(run.out, run.format, run.numbers), tables)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Files that appear whole once the block ends well."""
        with self.results, self.tables or nullcontext():
            yield


@dataclass(frozen=True, eq=False)
class _Work:
    """A run, and what it needs once its networks are there."""

    run: Run
    ensemble: Ensemble
    options: Options
    batches: Sequence[Batch]
    outputs: Outputs
    barrier: Callable[[], None]
    progress: Progress

    def directly(self) -> Summary:
        """Every job by this process, written as it goes."""
        summary, start = self._summary(), time.perf_counter()
        for _, results in self._predict(self.batches, budget_of(self.run)):
            write(results, self.outputs, summary)
        summary.seconds = time.perf_counter() - start
        return summary

    def with_journal(self, journal: Journal) -> Summary | None:
        """This process's share of the jobs, into the journal; the first process then writes everything."""
        start = time.perf_counter()
        mine = unfinished(self.batches, journal, self.run.rank)
        # Each process must have seen what is unfinished before the first one finishes more of it.
        self.barrier()
        with closing(journal):
            for number, results in self._predict(mine, budget_of(self.run, journal), journal.tiles_of):
                journal.add(number, results)
        self.barrier()
        if not self.run.rank.is_first:
            return None
        summary = self._summary()
        write(_all_results(journal, self.batches), self.outputs, summary)
        summary.seconds = time.perf_counter() - start
        return summary

    def _summary(self) -> Summary:
        return Summary(cells=Counter(dict.fromkeys(self.ensemble.classes, 0)))

    def _predict(
        self,
        batches: Sequence[Batch],
        budget: Budget | None,
        tiles_of: Callable[[int], Path | None] = lambda batch: None,
    ) -> Iterator[tuple[int, list[Result]]]:
        from sartorius_infer.run import pipeline

        count, done = sum(job.tiles for batch in batches for job in batch.jobs), 0
        if budget is not None and count > sum(len(batch.jobs) for batch in batches):
            budget.what = "tiles"

        def told(tiles: int, image_id: str) -> None:
            nonlocal done
            done += tiles
            self.progress(done, count, image_id)

        told(0, "")
        outputs = self.outputs
        return pipeline.run(
            self.ensemble, batches, outputs.results, self.options, budget, told, tiles_of, outputs.tables
        )


def _batch_size(run: Run, ensemble: Ensemble) -> int:
    return run.batch_size or (4 if ensemble.device.type == "cuda" else 1)


def _in_tiles(run: Run, manifest: Manifest) -> list[Job]:
    """The jobs, each with the number of its tiles; says which are seen in tiles."""
    from sartorius_infer.ensemble.tiles import tile_size, tiling

    tile_hw = tile_size(manifest)
    if tile_hw is None:
        return list(run.jobs)
    jobs = [replace(job, tiles=len(tiling(_size_hw(job), tile_hw))) for job in run.jobs]
    large = [f"{job.id} (in {job.tiles})" for job in jobs if job.tiles > 1]
    if large and run.rank.is_first:
        log.warning("seen in tiles of %s pixels, unless by --tile off: %s", size_text(tile_hw), some(large))
    return jobs


def _size_hw(job: Job) -> tuple[int, int]:
    """By the image's header; of one pixel where it cannot be read, which it fails for by itself, later."""
    try:
        return (1, 1) if job.file is None else image_size(job.file)
    except (ImageError, OSError):
        return 1, 1


def write(results: Iterable[Result], outputs: Outputs, summary: Summary) -> None:
    """Write results in their order and count them; raises SubmissionError where that fails."""
    for result in results:
        outputs.results.write(result.pieces)
        if outputs.tables is not None and result.tables is not None:
            outputs.tables.write(TableLines(*result.tables))
        summary.add(result)


def _all_results(journal: Journal, batches: Sequence[Batch]) -> Iterator[Result]:
    """What all processes have recorded; raises JournalError unless that is every image, in its order."""
    journal.reread()
    if missing := len(batches) - len(journal.finished):
        raise JournalError(
            f"{journal.folder}: expected {len(batches)} finished batches, found {missing} too few; "
            "the folder of --out must be one that every machine sees"
        )
    return _in_order(journal, (job.id for batch in batches for job in batch.jobs))


def _in_order(journal: Journal, ids: Iterable[str]) -> Iterator[Result]:
    for wanted, result in zip_longest(ids, journal.results()):
        if result is None or result.id != wanted:
            expected, found = wanted or "no other image", "none" if result is None else f"that of {result.id}"
            raise JournalError(
                f"{journal.folder}: expected the result of {expected}, found {found}; remove it to begin anew"
            )
        yield result


def unfinished(batches: Sequence[Batch], journal: Journal, rank: Rank) -> list[Batch]:
    """The batches left for this process: every `rank.count`-th of those that no process has finished."""
    left = [batch for batch in batches if batch.number not in journal.finished]
    return left[rank.index :: rank.count]


def open_journal(
    run: Run, ensemble: Ensemble, batches: Sequence[Batch], barrier: Callable[[], None]
) -> Journal:
    """The journal of this run, fresh unless it goes on; says what is finished. Raises JournalError."""
    folder, about = journal_folder(run.out), _about(run, ensemble, batches)
    if run.rank.is_first:
        restarted = run.rank.agent and _mark(folder, run.rank).is_file()
        journal = Journal(folder, about, fresh=not run.resume and not restarted)
    barrier()
    if not run.rank.is_first:
        if not (folder / ABOUT).is_file():
            raise JournalError(f"{folder}: expected a folder that every machine sees, found none here")
        journal = Journal(folder, about)
    if run.rank.agent:
        _note_start(_mark(folder, run.rank), run)
    if journal.finished and run.rank.is_first:
        done = sum(len(batch.jobs) for batch in batches if batch.number in journal.finished)
        log.warning("going on: %d of %d images are finished", done, len(run.jobs))
    return journal


def _about(run: Run, ensemble: Ensemble, batches: Sequence[Batch]) -> dict[str, str]:
    """What the results depend on, by short names."""
    from sartorius_infer.ensemble.loading import weights_sha256
    from sartorius_infer.ensemble.tiles import tile_size

    manifest, options = ensemble.manifest, run.options
    tiled = any(job.tiles > 1 for batch in batches for job in batch.jobs)
    return {
        "version": __version__,
        "classes and rules": _sha256(manifest.model_dump_json(include={"classes", "rules"})),
        "fusion": _sha256(manifest.model_dump_json(include={"fusion"})),
        "views": ",".join(manifest.views),
        "images": images_sha256(run.jobs),
        "range of 16 bits": str(manifest.images.limits),
        "tiles": f"{tile_size(manifest)}, magnification {manifest.magnification}",
        "batch size": str(_batch_size(run, ensemble) if tiled else len(batches[0].jobs) if batches else 0),
        "folders": f"overlays {options.overlays}, labels {options.labels}, rois {options.rois}, "
        f"predictions {options.save_predictions}",
        "table": f"{options.table}, {options.pixel_size_um} um",
        "weights": weights_sha256(ensemble),
        "plugins": _sha256("".join(_sha256(p.read_text(encoding="utf-8")) for p in run.plugins)),
        "precision": run.precision,
        "format": run.format,
        "image ids": _sha256(json.dumps(run.numbers, sort_keys=True)),
        "overlaps": "keep" if options.keep_overlaps else "cut",
    }


def budget_of(run: Run, journal: Journal | None = None) -> Budget | None:
    """The time that is left; a restarted process counts from when it was started first."""
    if run.limit_s is None:
        return None
    start = run.start
    if journal is not None and run.rank.agent:
        start = time.monotonic() - (time.time() - _mark(journal.folder, run.rank).stat().st_mtime)
    return Budget(run.limit_s, start)


def _mark(folder: Path, rank: Rank) -> Path:
    """A file in the journal that says when a torchrun first started a process of this run."""
    return folder / f"{rank.agent}.agent"


def _note_start(mark: Path, run: Run) -> None:
    """Make the mark, unless a process that was started earlier has."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    began = time.time() - (time.monotonic() - run.start)
    os.utime(mark, (began, began))


def images_sha256(jobs: Sequence[Job]) -> str:
    """A hash of ids, sizes and three samples of the bytes of every image: cheap, and enough to notice."""
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(f"{job.id!r} {_part(job)}".encode())
        # One that cannot be read fails by itself, later.
        with suppress(OSError):
            if job.file is not None and job.file.path.is_file():
                digest.update(_probe(job.file.path))
    return digest.hexdigest()


def _part(job: Job) -> str:
    """Which part of a file the image is; "" for the whole."""
    if job.file is None or (job.file.page is None and job.file.channel is None):
        return ""
    return f"{job.file.page} {job.file.channel} "


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
