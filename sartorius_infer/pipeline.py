"""The order of the steps, for any number of images in bounded memory.

Images are decoded on worker threads, networks run on the calling thread, and pasting, rules and
pictures run on worker threads again while the next batch is in the networks. Results leave in the
order of the jobs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch

from sartorius_infer.ensemble import Ensemble
from sartorius_infer.errors import ImageError, PredictionError, SartoriusError, first_line
from sartorius_infer.images import ImageFile, read_image
from sartorius_infer.instances import build_instances, select
from sartorius_infer.passes import predict
from sartorius_infer.predictions import save_prediction
from sartorius_infer.render import save_overlay
from sartorius_infer.submission import ResultWriter
from sartorius_infer.types import Bool, CellImage, Float32, Instances, Int64, Prediction

log = logging.getLogger(__name__)

FIRST_ROI_CHUNK = 256
SMALLEST_ROI_CHUNK = 8


@dataclass(frozen=True)
class Job:
    """One image to write a result for; `file` is None where an id has no image."""

    id: str
    file: ImageFile | None


@dataclass(frozen=True)
class Options:
    """How a run goes about it.

    batch_size        images of one size that enter the networks together
    workers           threads for decoding, and as many for pasting and pictures
    on_error          what a failing image does: become blank, or stop the run
    save_predictions  folder for soft predictions before any rule, or None
    overlays          folder for pictures, or None
    """

    batch_size: int = 1
    workers: int = 2
    on_error: Literal["blank", "stop"] = "blank"
    save_predictions: Path | None = None
    overlays: Path | None = None


@dataclass
class Summary:
    """What a run did: counts, and the ids that need a look with the reason."""

    images: int = 0
    cells: Counter[str] = field(default_factory=Counter)
    blank: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def plan_jobs(files: Sequence[ImageFile], sample_ids: Sequence[str] | None) -> tuple[list[Job], list[str]]:
    """Jobs in output order, and the ids of images that the sample submission leaves out."""
    if sample_ids is None:
        return [Job(file.id, file) for file in files], []
    by_id = {file.id: file for file in files}
    wanted = set(sample_ids)
    return [Job(i, by_id.get(i)) for i in sample_ids], [f.id for f in files if f.id not in wanted]


def run(
    ensemble: Ensemble,
    jobs: Sequence[Job],
    writer: ResultWriter,
    options: Options,
    on_image: Callable[[str], None] = lambda image_id: None,
) -> Summary:
    """Predict every job and write it; `on_image` is told each finished id.

    Raises the image's SartoriusError with `on_error="stop"`, and SubmissionError where the result
    cannot be written.
    """
    summary = Summary()
    start = time.perf_counter()
    # The pools end by themselves when the run does; a failure must not wait for queued pictures.
    readers, finishers = ThreadPoolExecutor(options.workers), ThreadPoolExecutor(options.workers)
    try:
        decoded = _ahead(readers, _decode, jobs, options.batch_size + options.workers)
        seen = _predicted(_Runner(ensemble, options), _batches(decoded, options.batch_size))
        finish = _Finisher(ensemble, options)
        for outcome in _ahead(finishers, finish, seen, options.batch_size + options.workers):
            _record(outcome, writer, ensemble.classes, options, summary)
            on_image(outcome.id)
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
        finishers.shutdown(wait=True, cancel_futures=True)
    summary.seconds = time.perf_counter() - start
    return summary


@dataclass(frozen=True, eq=False)
class _Work:
    """A job on its way: what it has become so far, or why it failed."""

    id: str
    image: CellImage | None = None
    prediction: Prediction | None = None
    instances: Instances | None = None
    error: SartoriusError | None = None


A = TypeVar("A")
B = TypeVar("B")


def _ahead(pool: ThreadPoolExecutor, step: Callable[[A], B], items: Iterable[A], depth: int) -> Iterator[B]:
    """`step` of each item in order, with at most `depth` of them under way or waiting."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(step, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _decode(job: Job) -> _Work:
    if job.file is None:
        return _Work(job.id, error=ImageError(f"{job.id}: expected an image of this id, found none"))
    try:
        return _Work(job.id, image=read_image(job.file))
    except SartoriusError as error:
        return _Work(job.id, error=error)


def _batches(works: Iterable[_Work], size: int) -> Iterator[list[_Work]]:
    """Neighbours of one image size, at most `size` of them; one that failed is a batch of its own."""
    batch: list[_Work] = []
    for work in works:
        full = len(batch) == size
        if batch and (full or work.image is None or batch[0].image is None or not _same_size(batch[0], work)):
            yield batch
            batch = []
        batch.append(work)
    if batch:
        yield batch


def _same_size(a: _Work, b: _Work) -> bool:
    return a.image is not None and b.image is not None and a.image.size_hw == b.image.size_hw


def _predicted(runner: _Runner, batches: Iterable[list[_Work]]) -> Iterator[_Work]:
    for batch in batches:
        images = [work.image for work in batch if work.image is not None]
        if not images:
            yield from batch
            continue
        for work, outcome in zip(batch, runner(images), strict=True):
            if isinstance(outcome, Prediction):
                yield _Work(work.id, work.image, outcome)
            else:
                yield _Work(work.id, work.image, error=outcome)


class _Runner:
    """Runs batches, and adapts to the memory there is: smaller batches, then RoIs in chunks."""

    def __init__(self, ensemble: Ensemble, options: Options) -> None:
        self.ensemble = ensemble
        self.batch_size = options.batch_size
        self.roi_chunk: int | None = None
        rules, classes = ensemble.manifest.rules, ensemble.classes

        def worth_a_mask(scores: Float32, labels: Int64) -> Bool:
            return select(scores, labels, rules, classes)

        self.select = None if options.save_predictions else worth_a_mask

    def __call__(self, images: Sequence[CellImage]) -> list[Prediction | SartoriusError]:
        """Each image's prediction, or why there is none."""
        fits = self.batch_size  # may shrink during the first of the two calls
        if len(images) > fits:
            return self(images[:fits]) + self(images[fits:])
        try:
            return list(predict(self.ensemble, images, self.select, self.roi_chunk))
        except Exception as error:  # whatever a network does with one image, the others go on
            out_of_memory = _is_out_of_memory(error)
            reason = first_line(error)
        # Outside the handler, whose traceback would keep the failed batch's tensors alive.
        if out_of_memory and self._use_less_memory(len(images)):
            return self(images)
        if len(images) > 1:
            return [outcome for image in images for outcome in self([image])]
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
    """From prediction to cells, with the files that each image leaves beside the submission."""

    def __init__(self, ensemble: Ensemble, options: Options) -> None:
        self.rules, self.classes, self.options = ensemble.manifest.rules, ensemble.classes, options

    def __call__(self, work: _Work) -> _Work:
        if work.prediction is None or work.image is None:
            return work
        instances = build_instances(work.prediction, self.rules, self.classes)
        if self.options.save_predictions is not None:
            save_prediction(self.options.save_predictions, work.prediction)
        if self.options.overlays is not None:
            save_overlay(self.options.overlays, work.image, instances, self.classes)
        return _Work(work.id, instances=instances)


def _record(
    work: _Work, writer: ResultWriter, classes: Sequence[str], options: Options, summary: Summary
) -> None:
    if work.error is not None and options.on_error == "stop":
        raise work.error
    summary.images += 1
    if work.instances is None:
        summary.failed[work.id] = str(work.error)
        writer.blank(work.id)
        return
    writer.add(work.instances)
    summary.cells.update(classes[label - 1] for label in work.instances.labels)
    if not len(work.instances):
        summary.blank.append(work.id)
