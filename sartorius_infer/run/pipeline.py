"""The order of the steps, for any number of images in bounded memory.

Images are decoded on worker threads, networks run on the calling thread, and pasting, rules and
pictures run on worker threads again while the next batch is in the networks. Results leave in the
order of the jobs. A large image goes through the networks by as many tiles at once as there are images in
a batch; no other is read or pasted beside it.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from sartorius_infer.cells.claim import Selector, build_instances, build_overlapping
from sartorius_infer.cells.instances import Instances
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.parts import Part, join
from sartorius_infer.ensemble.passes import How, predict, predict_tiles
from sartorius_infer.ensemble.tiles import Tiling, tile_size, tiling
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
from sartorius_infer.run.parts import read_parts, save_part
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
    on_tiles: Callable[[int, str], None] = lambda tiles, image_id: None,
    tiles_of: Callable[[int], Path | None] = lambda batch: None,
    tables: TableWriter | None = None,
) -> Iterator[tuple[int, list[Result]]]:
    """Predict every batch; yields its number and its images' results, in the order of the batches.

    `encode` makes the text of an image, `tables` its lines; nothing is written to them. `on_tiles` is told
    of how many tiles more of an image are finished; one that is seen whole is one tile. `tiles_of` a batch is
    the folder for those of its only image, or None. Raises the image's SartoriusError with
    `on_error="stop"`.
    """
    # The pools end by themselves when the run does; a failure must not wait for queued pictures.
    readers, finishers = ThreadPoolExecutor(options.workers), ThreadPoolExecutor(options.workers)
    size = options.batch_size
    depth = size + options.workers
    told: Counter[str] = Counter()

    def tell(tiles: int, image_id: str) -> None:
        told[image_id] += tiles
        on_tiles(tiles, image_id)

    try:
        tasks = ((batch.number, job) for batch in batches for job in batch.jobs)
        read = partial(_decode, limits=ensemble.manifest.images.limits, keep=tables is not None)
        decoded = _ahead(readers, read, tasks, depth, lambda task: task[1].tiles)
        tiles = sum(job.tiles for batch in batches for job in batch.jobs)
        runner = _Runner(ensemble, options, budget, tiles, tell, tiles_of)
        finish = _Finisher(ensemble, options, encode, tables)
        predicted = _predicted(runner, decoded)
        outcomes = _ahead(finishers, finish, predicted, depth, lambda work: work.tiles, eager=True)
        for batch in batches:
            results = []
            for job, outcome in zip(batch.jobs, islice(outcomes, len(batch.jobs)), strict=True):
                if outcome.error is not None and options.on_error == "stop":
                    raise outcome.error
                results.append(outcome.result)
                on_tiles(job.tiles - told.pop(job.id, 0), job.id)
            yield batch.number, results
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
        finishers.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Work:
    """A job of a batch on its way to a result: what it has become so far, or why it failed, or in part.

    `values` are the image's stored pixels, where they are asked for.
    """

    batch: int
    id: str
    tiles: int
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
    pool: ThreadPoolExecutor,
    step: Callable[[A], B],
    items: Iterable[A],
    depth: int,
    size_of: Callable[[A], int],
    eager: bool = False,
) -> Iterator[B]:
    """`step` of each item in order, while items under way or waiting are at most `depth` by their sizes.

    `eager` hands out what is done before it takes the next item, rather than keeping a stock.
    """
    waiting: deque[tuple[Future[B], int]] = deque()
    held = 0
    for item in items:
        size = size_of(item)
        waiting.append((pool.submit(step, item), size))
        held += size
        while held > depth or (eager and waiting and waiting[0][0].done()):
            future, size = waiting.popleft()
            held -= size
            yield future.result()
    while waiting:
        yield waiting.popleft()[0].result()


def _decode(task: tuple[int, Job], limits: Limits | None, keep: bool) -> _Work:
    batch, job = task
    if job.file is None:
        return _Work(batch, job.id, job.tiles, error=job.fault)
    try:
        image, values = read_with_values(job.file, limits)
        return _Work(batch, job.id, job.tiles, image, values if keep else None)
    except SartoriusError as error:
        return _Work(batch, job.id, job.tiles, error=error)


def _predicted(runner: _Runner, works: Iterable[_Work]) -> Iterator[_Work]:
    """Each work with its prediction, or why there is none; the images of a batch together."""
    for _, neighbours in groupby(works, key=lambda work: work.batch):
        batch = list(neighbours)
        if batch[0].tiles > 1 and batch[0].image is not None:
            yield runner.in_tiles(batch[0], batch[0].image)
            continue
        outcomes = iter(runner([work.image for work in batch if work.image is not None]))
        runner.remaining -= sum(work.tiles for work in batch if work.image is None)
        for work in batch:
            outcome = work.error if work.image is None else next(outcomes)
            if isinstance(outcome, Prediction):
                yield replace(work, prediction=outcome)
            else:
                yield replace(work, error=outcome)


class _Runner:
    """Runs batches, and adapts to the memory there is: smaller batches, then RoIs in chunks.

    `tiles` is how many there are to see, of all images.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        options: Options,
        budget: Budget | None,
        tiles: int,
        tell: Callable[[int, str], None],
        tiles_of: Callable[[int], Path | None],
    ) -> None:
        self.ensemble = ensemble
        self.budget = budget
        self.remaining = tiles
        self.tell = tell
        self.tiles_of = tiles_of
        self.batch_size = options.batch_size
        self.roi_chunk: int | None = None
        rules = ensemble.manifest.rules
        self.select = None if options.save_predictions else Selector(rules, ensemble.classes)

    def __call__(self, images: Sequence[CellImage]) -> list[Prediction | SartoriusError]:
        """Each image's prediction, all seen whole, or why there is none."""
        if not images:
            return []
        if not self._may_go_on():
            return [PredictionError(f"{i.id}: not predicted: the time limit was reached") for i in images]
        found = self._see(self._see_whole, images)
        self._count(len(images))
        return [
            PredictionError(f"{image.id}: {outcome}") if isinstance(outcome, str) else outcome
            for image, outcome in zip(images, found, strict=True)
        ]

    def in_tiles(self, work: _Work, image: CellImage) -> _Work:
        """An image with its prediction, put together of its tiles: of some where the time was up."""
        plan, folder = tiling(image.size_hw, tile_size(self.ensemble.manifest)), self.tiles_of(work.batch)
        parts = {} if folder is None else read_parts(folder)
        todo = [some for some in _batched(len(plan), self.batch_size) if not parts.keys() >= set(some)]
        self._pass_over(len(plan) - sum(map(len, todo)), work.id)
        for place, some in enumerate(todo):
            if not self._may_go_on():
                return self._out_of_time(work, plan, parts, todo[place:])
            for tile, part in zip(some, self._see_tiles(image, plan, some), strict=True):
                if isinstance(part, str):
                    self._pass_over(sum(map(len, todo[place:])), work.id)
                    return replace(work, error=PredictionError(f"{work.id}: tile {tile + 1}: {part}"))
                parts[tile] = part
                if folder is not None:
                    save_part(folder, part)
            self._count(len(some))
            self.tell(len(some), work.id)
        return replace(work, prediction=self._joined(work, plan, parts))

    def _out_of_time(
        self, work: _Work, plan: Tiling, parts: Mapping[int, Part], left: Sequence[Sequence[int]]
    ) -> _Work:
        """What was seen until the time was up, and why it is not all."""
        self._pass_over(sum(map(len, left)), work.id)
        reason = f"{work.id}: seen in {len(parts)} of {len(plan)} tiles: the time limit was reached"
        prediction = self._joined(work, plan, parts) if parts else None
        return replace(work, prediction=prediction, error=PredictionError(reason))

    def _joined(self, work: _Work, plan: Tiling, parts: Mapping[int, Part]) -> Prediction:
        return join(work.id, plan, [parts[tile] for tile in sorted(parts)], self.select)

    def _see_whole(self, images: Sequence[CellImage]) -> list[Prediction]:
        how = self._how()
        return predict(self.ensemble, images, how.select, how.roi_chunk, on_look=how.on_look)

    def _see_tiles(self, image: CellImage, plan: Tiling, tiles: Sequence[int]) -> list[Part | str]:
        """What is seen in each of some tiles, or why nothing."""
        return self._see(lambda some: predict_tiles(self.ensemble, image, plan, some, self._how()), tiles)

    def _how(self) -> How:
        looked = None if self.budget is None else self.budget.looked
        return How(self.select, self.roi_chunk, on_look=looked)

    def _may_go_on(self) -> bool:
        """Whether there is time left; chooses what fits into it."""
        if self.budget is None:
            return True
        lighter = self.budget.choose(self.ensemble, self.remaining)
        if lighter is not None:
            self.ensemble = lighter
        return lighter is not None

    def _count(self, tiles: int) -> None:
        """Take note that so many more have been through the networks."""
        self.remaining -= tiles
        if self.budget is not None:
            self.budget.finished(tiles)

    def _pass_over(self, tiles: int, image_id: str) -> None:
        """Take note that so many of an image need not go through the networks, or cannot."""
        self.remaining -= tiles
        self.tell(tiles, image_id)

    def _see(self, look: Callable[[Sequence[A]], list[B]], items: Sequence[A]) -> list[B | str]:
        """What the networks see in each of some images or tiles, or in one line why nothing."""
        fits = self.batch_size  # may shrink during the first of the two calls
        if len(items) > fits:
            return self._see(look, items[:fits]) + self._see(look, items[fits:])
        try:
            return [*look(items)]
        except Exception as error:  # whatever a network does with one image, the others go on
            out_of_memory = _is_out_of_memory(error)
            reason = first_line(error)
        # Outside the handler, whose traceback would keep the failed batch's tensors alive.
        if out_of_memory and self._use_less_memory(len(items)):
            return self._see(look, items)
        if len(items) > 1:
            return [outcome for item in items for outcome in self._see(look, [item])]
        return [reason]

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


def _batched(tiles: int, size: int) -> list[list[int]]:
    """Numbers of tiles in batches: by their number alone, so that what is finished changes none."""
    return [list(range(start, min(start + size, tiles))) for start in range(0, tiles, size)]


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
        fault = "" if work.error is None else str(work.error)
        result = Result(work.id, self.encode.encode(cells), dict(Counter(names)), fault, tables=lines)
        return _Outcome(result, work.error)

    def _for_laboratories(self, cells: Instances, values: NDArray[Any] | None) -> TableLines | None:
        """Write the files that are asked for, and make the lines of the tables."""
        if self.options.labels is not None:
            cells.write_labels(self.options.labels / f"{as_id(cells.image_id)}.tif")
        if self.options.rois is not None:
            cells.write_rois(self.options.rois / f"{as_id(cells.image_id)}.zip")
        return None if self.tables is None or values is None else self.tables.encode(cells, values)
