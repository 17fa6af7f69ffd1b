"""The order of the steps, for any number of images in bounded memory.

Images are decoded on worker threads, networks run on the calling thread, and pasting, rules and
pictures run on worker threads again while the next batch is in the networks. Results leave in the
order of the jobs.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from sartorius_infer.cells.claim import build_instances, build_overlapping, selector
from sartorius_infer.cells.instances import Instances
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import PredictionError, SartoriusError, first_line
from sartorius_infer.files import as_id
from sartorius_infer.images.read import Limits, read_with_values
from sartorius_infer.output.predictions import save_prediction
from sartorius_infer.output.render import overlay, save_overlay
from sartorius_infer.output.tables import TableLines, TableWriter
from sartorius_infer.output.writers import ResultWriter
from sartorius_infer.run.budget import Budget
from sartorius_infer.run.jobs import Batch, Job, Options
from sartorius_infer.run.journal import Result
from sartorius_infer.types import CellImage, Prediction

log = logging.getLogger(__name__)

FIRST_ROI_CHUNK = 256
SMALLEST_ROI_CHUNK = 8


def run(
    ensemble: Ensemble,
    batches: Sequence[Batch],
    encode: ResultWriter,
    options: Options,
    budget: Budget | None = None,
    on_image: Callable[[str], None] = lambda image_id: None,
    tables: TableWriter | None = None,
) -> Iterator[tuple[int, list[Result]]]:
    """Predict every batch; yields its number and its images' results, in the order of the batches.

    `encode` makes the text of an image, `tables` its lines; nothing is written to them. `on_image` is told
    each finished id. Raises the image's SartoriusError with `on_error="stop"`.
    """
    # The pools end by themselves when the run does; a failure must not wait for queued pictures.
    readers, finishers = ThreadPoolExecutor(options.workers), ThreadPoolExecutor(options.workers)
    size = max((len(batch.jobs) for batch in batches), default=1)
    depth = size + options.workers
    try:
        tasks = ((batch.number, job) for batch in batches for job in batch.jobs)
        read = partial(_decode, limits=ensemble.manifest.images.limits, keep=tables is not None)
        decoded = _ahead(readers, read, tasks, depth)
        runner = _Runner(ensemble, options, budget, size, sum(len(batch.jobs) for batch in batches))
        finish = _Finisher(ensemble, options, encode, tables)
        outcomes = _ahead(finishers, finish, _predicted(runner, decoded), depth, eager=True)
        for batch in batches:
            results = []
            for outcome in islice(outcomes, len(batch.jobs)):
                if outcome.error is not None and options.on_error == "stop":
                    raise outcome.error
                results.append(outcome.result)
                on_image(outcome.result.id)
            yield batch.number, results
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
        finishers.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Work:
    """A job of a batch on its way to a result: what it has become so far, or why it failed.

    `values` are the image's stored pixels, where they are asked for.
    """

    batch: int
    id: str
    image: CellImage | None = None
    values: NDArray[Any] | None = None
    prediction: Prediction | None = None
    error: SartoriusError | None = None


@dataclass(frozen=True, eq=False)
class _Outcome:
    """A result, and the error behind it."""

    result: Result
    error: SartoriusError | None


A = TypeVar("A")
B = TypeVar("B")


def _ahead(
    pool: ThreadPoolExecutor, step: Callable[[A], B], items: Iterable[A], depth: int, eager: bool = False
) -> Iterator[B]:
    """`step` of each item in order, with at most `depth` of them under way or waiting.

    `eager` hands out what is done before it takes the next item, rather than keeping a stock.
    """
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(step, item))
        while len(waiting) > depth or (eager and waiting and waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _decode(task: tuple[int, Job], limits: Limits | None, keep: bool) -> _Work:
    batch, job = task
    if job.file is None:
        return _Work(batch, job.id, error=job.fault)
    try:
        image, values = read_with_values(job.file, limits)
        return _Work(batch, job.id, image, values if keep else None)
    except SartoriusError as error:
        return _Work(batch, job.id, error=error)


def _predicted(runner: _Runner, works: Iterable[_Work]) -> Iterator[_Work]:
    """Each work with its prediction, or why there is none; the images of a batch together."""
    for _, neighbours in groupby(works, key=lambda work: work.batch):
        batch = list(neighbours)
        images = [work.image for work in batch if work.image is not None]
        outcomes = iter(runner(images) if images else ())
        runner.count(len(batch))
        for work in batch:
            outcome = work.error if work.image is None else next(outcomes)
            if isinstance(outcome, Prediction):
                yield replace(work, prediction=outcome)
            else:
                yield replace(work, error=outcome)


class _Runner:
    """Runs batches, and adapts to the memory there is: smaller batches, then RoIs in chunks."""

    def __init__(
        self, ensemble: Ensemble, options: Options, budget: Budget | None, batch_size: int, images: int
    ) -> None:
        self.ensemble = ensemble
        self.budget = budget
        self.remaining = images
        self.batch_size = batch_size
        self.roi_chunk: int | None = None
        rules = ensemble.manifest.rules
        self.select = None if options.save_predictions else selector(rules, ensemble.classes)

    def __call__(self, images: Sequence[CellImage]) -> list[Prediction | SartoriusError]:
        """Each image's prediction, or why there is none."""
        if self.budget is not None:
            lighter = self.budget.choose(self.ensemble, self.remaining)
            if lighter is None:
                return [PredictionError(f"{i.id}: not predicted: the time limit was reached") for i in images]
            self.ensemble = lighter
        return self._predict(images)

    def count(self, images: int) -> None:
        """Take note that so many images are through."""
        self.remaining -= images
        if self.budget is not None:
            self.budget.finished(images)

    def _predict(self, images: Sequence[CellImage]) -> list[Prediction | SartoriusError]:
        fits = self.batch_size  # may shrink during the first of the two calls
        if len(images) > fits:
            return self._predict(images[:fits]) + self._predict(images[fits:])
        looked = None if self.budget is None else self.budget.looked
        try:
            return list(predict(self.ensemble, images, self.select, self.roi_chunk, on_look=looked))
        except Exception as error:  # whatever a network does with one image, the others go on
            out_of_memory = _is_out_of_memory(error)
            reason = first_line(error)
        # Outside the handler, whose traceback would keep the failed batch's tensors alive.
        if out_of_memory and self._use_less_memory(len(images)):
            return self._predict(images)
        if len(images) > 1:
            return [outcome for image in images for outcome in self._predict([image])]
        return [PredictionError(f"{images[0].id}: {reason}")]

    def _use_less_memory(self, batch: int) -> bool:
        """Choose a smaller batch or RoI chunk, and say so; False where there is no smaller one."""
        if self.ensemble.device.type == "cuda":
            torch.cuda.empty_cache()
        if batch > 1:
            self.batch_size = batch // 2
            log.warning("out of memory: going on with batches of %d", self.batch_size)
            return True
        if self.roi_chunk is None or self.roi_chunk > SMALLEST_ROI_CHUNK:
            self.roi_chunk = FIRST_ROI_CHUNK if self.roi_chunk is None else self.roi_chunk // 2
            log.warning("out of memory: going on with mask heads on %d RoIs at a time", self.roi_chunk)
            return True
        return False


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch's CPU allocator reports by a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


class _Finisher:
    """From prediction to text, with the files that each image leaves beside the output."""

    def __init__(
        self, ensemble: Ensemble, options: Options, encode: ResultWriter, tables: TableWriter | None
    ) -> None:
        self.rules, self.classes, self.options = ensemble.manifest.rules, ensemble.classes, options
        self.encode, self.tables = encode, tables

    def __call__(self, work: _Work) -> _Outcome:
        if work.prediction is None or work.image is None:
            error = str(work.error)
            lines = None if self.tables is None else self.tables.encode_failure(work.id, error)
            result = Result(work.id, self.encode.encode_blank(work.id), error=error, tables=lines)
            return _Outcome(result, work.error)
        build = build_overlapping if self.options.keep_overlaps else build_instances
        cells = build(work.prediction, self.rules, self.classes)
        if self.options.save_predictions is not None:
            save_prediction(self.options.save_predictions, work.prediction)
        if self.options.overlays is not None:
            seen = cells if isinstance(cells, Instances) else cells.flattened()
            save_overlay(self.options.overlays, work.image.id, overlay(work.image, seen))
        lines = self._for_laboratories(cells, work.values) if isinstance(cells, Instances) else None
        names = [self.classes[label - 1] for label in cells.labels]
        result = Result(work.id, self.encode.encode(cells), dict(Counter(names)), tables=lines)
        return _Outcome(result, None)

    def _for_laboratories(self, cells: Instances, values: NDArray[Any] | None) -> TableLines | None:
        """Write the files that are asked for, and make the lines of the tables."""
        if self.options.labels is not None:
            cells.write_labels(self.options.labels / f"{as_id(cells.image_id)}.tif")
        if self.options.rois is not None:
            cells.write_rois(self.options.rois / f"{as_id(cells.image_id)}.zip")
        return None if self.tables is None or values is None else self.tables.encode(cells, values)
