"""What a run is to do, and what it has done: jobs in their order, their batches, a summary. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sartorius_infer.errors import ImageError
from sartorius_infer.files import as_id
from sartorius_infer.images.find import ImageFile, naming, require_text
from sartorius_infer.laboratory.extra import LABELS, MEASUREMENTS, ROIS, require
from sartorius_infer.output.tables import images_path
from sartorius_infer.run.journal import Result


@dataclass(frozen=True)
class Job:
    """One image to write a result for; `file` is None where an id has no image.

    `tiles` is in how many it is seen: 1 where it is seen whole, or cannot be.
    """

    id: str
    file: ImageFile | None
    tiles: int = 1

    @property
    def fault(self) -> ImageError | None:
        """Why it will fail, as far as its name tells: no image, or a file's name that is not UTF-8."""
        if self.file is None:
            return ImageError(f"{self.id}: expected an image of this id, found none")
        try:
            with naming(self.file.path):
                require_text(self.file.path)
        except ImageError as error:
            return error
        return None


@dataclass(frozen=True)
class Options:
    """How images are read, what is made of each, and what it leaves beside the output.

    batch_size        images or tiles that enter the networks together
    workers           threads for decoding, and as many for pasting and pictures
    on_error          what a failing image does: become blank, or stop the run
    save_predictions  folder for soft predictions before any rule, or None
    overlays          folder for pictures, or None
    labels            folder for label maps, or None
    rois              folder for ImageJ's regions, or None
    table             the table of cells, beside which lies that of images, or None
    pixel_size_um     the side of a pixel for the tables, or None: they are in pixels
    keep_overlaps     whether cells may share pixels
    """

    batch_size: int = 1
    workers: int = 2
    on_error: Literal["blank", "stop"] = "blank"
    save_predictions: Path | None = None
    overlays: Path | None = None
    labels: Path | None = None
    rois: Path | None = None
    table: Path | None = None
    pixel_size_um: float | None = None
    keep_overlaps: bool = False

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that are written to, a file an image."""
        every = (self.overlays, self.labels, self.rois, self.save_predictions)
        return tuple(folder for folder in every if folder is not None)

    @property
    def tables(self) -> tuple[Path, ...]:
        """The tables of cells and of images, if they are asked for."""
        return () if self.table is None else (self.table, images_path(self.table))

    def require_extra(self) -> None:
        """Raise ExtraError where an output is asked for and the package that makes it is not there."""
        asked = {"--labels": self.labels, "--rois": self.rois, "--table": self.table}
        for (option, place), package in zip(asked.items(), (LABELS, ROIS, MEASUREMENTS), strict=True):
            if place is not None:
                require(package, option)


@dataclass
class Summary:
    """What a run did: counts, and the ids that need a look with the reason.

    `cells` has every class that the networks know, in label order.
    """

    images: int = 0
    cells: Counter[str] = field(default_factory=Counter)
    blank: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        """Count one image."""
        self.images += 1
        self.cells.update(result.cells)
        if result.error:
            self.failed[result.id] = result.error
        elif not result.cells:
            self.blank.append(result.id)


def plan_jobs(files: Sequence[ImageFile], sample_ids: Sequence[str] | None) -> tuple[list[Job], list[str]]:
    """Jobs in output order, and the ids of images that the sample submission leaves out.

    Ids are found as `files.as_id` spells them, and written as the sample submission does.
    """
    if sample_ids is None:
        return [Job(file.id, file) for file in files], []
    by_id = {file.id: file for file in files}
    found = [(i, by_id.get(as_id(i))) for i in sample_ids]
    wanted = {as_id(i) for i in sample_ids}
    jobs = [Job(i, None if file is None else replace(file, id=i)) for i, file in found]
    return jobs, [file.id for file in files if file.id not in wanted]


@dataclass(frozen=True)
class Batch:
    """Consecutive jobs that enter the networks together; `number` counts from the start of the list.

    An image that is seen in tiles is alone in its batch. Batches are made from the list alone, so that
    neither what a journal has finished nor how many processes share the work changes which images go
    together, and with it a number.
    """

    number: int
    jobs: tuple[Job, ...]


def plan_batches(jobs: Sequence[Job], size: int) -> list[Batch]:
    """The jobs in batches of `size`, shorter before an image in tiles and at the end."""
    batches: list[list[Job]] = []
    for job in jobs:
        before = batches[-1] if batches else []
        if not before or len(before) == size or job.tiles > 1 or before[-1].tiles > 1:
            batches.append([])
        batches[-1].append(job)
    return [Batch(i, tuple(some)) for i, some in enumerate(batches)]
