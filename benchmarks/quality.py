"""Whether the fast ways score as the usual notebook does, with the default checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import kit, opponents
from benchmarks.networks import LEAST_AREA, default_checkpoint
from sartorius_infer.cells.rle import decode
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.evaluate.scoring import score
from sartorius_infer.evaluate.submissions import Found, FoundCell
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.evaluate.truth import read_truth
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.types import CellImage

Find = Callable[[CellImage], list[str]]


def scores(images: Sequence[Path], truth: Sequence[Path], most: int) -> dict[str, float]:
    """The competition's mAP of each way on the first `most` annotated images."""
    true = {i: image for path in truth for i, image in read_truth(path).items()}
    files = [file for file in find_images(images) if file.id in true][:most]
    with TemporaryDirectory() as folder:
        subject = default_checkpoint(Path(folder))
        loaded = {name: kit.load(subject.manifest, kit.CPU, name) for name in kit.precisions(kit.CPU)}

    def notebook(image: CellImage) -> list[str]:
        return opponents.notebook(subject.model, image.pixels, subject.floors, LEAST_AREA)

    ways: dict[str, Find] = {"notebook": notebook} | {name: _kit(each) for name, each in loaded.items()}
    found = found_by(ways, [read_image(file) for file in files])
    return {name: score(true, of).mean for name, of in found.items()}


def found_by(ways: Mapping[str, Find], images: Sequence[CellImage]) -> dict[str, Found]:
    """The cells that each way finds in each image."""
    found: dict[str, dict[str, list[FoundCell]]] = {name: {} for name in ways}
    for image in images:
        for name, way in ways.items():
            masks = [decode(rle, image.size_hw) for rle in way(image) if rle]
            found[name][image.id] = [FoundCell(mask) for mask in masks]
    return dict(found)


def agreement(one: Found, other: Found, images: Sequence[CellImage]) -> float:
    """The competition's score of the other's cells, if the one's were the true ones."""
    true = {i.id: TrueImage(i.id, i.size_hw, "", tuple(cell.mask for cell in one[i.id])) for i in images}
    return score(true, other).mean


def score_of(found: Found, true: Mapping[str, TrueImage]) -> float | None:
    """The score of the images that have their truth; None where there is none."""
    annotated = {image_id: cells for image_id, cells in found.items() if image_id in true}
    return score(true, annotated).mean if annotated else None


def _kit(ensemble: Ensemble) -> Find:
    return lambda image: kit.rows(ensemble, image)
