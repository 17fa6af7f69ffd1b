"""What an ensemble saw in many images, kept in a folder so that no image is looked at twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sartorius_infer.cells.claim import Selector
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import weights_sha256
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import first_line
from sartorius_infer.files import as_id, atomic_file
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.read import read_image
from sartorius_infer.output.predictions import load_prediction, save_prediction
from sartorius_infer.types import CellImage, Prediction
from training.errors import TrainingError
from training.runfolder import require_same
from training.sources import Skipped

ABOUT = "about.json"


class Look(NamedTuple):
    """An image, what all networks see in it together, and what each sees by itself, if that was asked for."""

    image: CellImage
    together: Prediction
    alone: list[Prediction]


@dataclass(frozen=True, eq=False)
class Seen:
    """What an ensemble saw, and, with `alone`, each of its networks by itself, kept in `folder`.

    `channel` is the one of the images that is looked at, None for all.
    """

    folder: Path
    ensemble: Ensemble
    alone: bool
    channel: int | None = None

    @cached_property
    def about(self) -> dict[str, object]:
        """All that the predictions depend on."""
        said = self.ensemble.manifest.model_dump(mode="json", include={"views", "fusion", "rules", "images"})
        return {"weights": weights_sha256(self.ensemble), "channel": self.channel, **said}

    def open(self) -> None:
        """Make the folder; raises TrainingError where it cannot be, or holds what another ensemble saw."""
        path, now = self.folder / ABOUT, json.dumps(self.about)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            then = path.read_text(encoding="utf-8") if path.is_file() else None
            if not isinstance(json.loads(then or "{}"), dict):
                raise ValueError("no object")
            require_same(self.folder, "ensemble", then, now)
            with atomic_file(path, "w") as file:
                file.write(now)
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path}: expected a folder to go on in, found {first_line(error)}") from None

    def images(self, files: Sequence[ImageFile], skipped: Skipped) -> Iterator[Look]:
        """Every image with what is seen in it; one that cannot be read or predicted is skipped."""
        for file in tqdm(files, unit=" image", dynamic_ncols=True):
            try:
                look = self._look(read_image(file, self.ensemble.manifest.images.limits))
            except Exception as error:  # whatever a network does with one image, the others go on
                skipped.add("images that failed", f"{file.id} ({first_line(error)})")
                continue
            yield look

    def _look(self, image: CellImage) -> Look:
        members = self.ensemble.members if self.alone else ()
        apart = [replace(self.ensemble, members=(member,)) for member in members]
        together = self._seen("all", self.ensemble, image)
        return Look(image, together, [self._seen(str(i), own, image) for i, own in enumerate(apart)])

    def _seen(self, name: str, ensemble: Ensemble, image: CellImage) -> Prediction:
        path = self.folder / name / f"{as_id(image.id)}.npz"
        if path.is_file() and (kept := load_prediction(path)).size_hw == image.size_hw:
            return kept
        (seen,) = predict(ensemble, [image], Selector(ensemble.rules, ensemble.classes))
        save_prediction(path.parent, seen)
        return seen
