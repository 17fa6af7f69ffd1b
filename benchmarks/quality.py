"""Whether the fast ways score as the usual notebook does, with the default checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import kit, opponents
from benchmarks.networks import LEAST_AREA, default_checkpoint
from sartorius_infer.cells.rle import decode
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.evaluate.scoring import score
from sartorius_infer.evaluate.submissions import FoundCell
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
        plain, fast = (kit.load(subject.manifest, kit.CPU, quick) for quick in (False, True))

    def notebook(image: CellImage) -> list[str]:
        return opponents.notebook(subject.model, image.pixels, subject.floors, LEAST_AREA)

    ways: dict[str, Find] = {"notebook": notebook, "fp32": _kit(plain), "fp32-fast": _kit(fast)}
    found: dict[str, dict[str, list[FoundCell]]] = {name: {} for name in ways}
    for file in files:
        image = read_image(file)
        for name, way in ways.items():
            masks = [decode(rle, true[file.id].size_hw) for rle in way(image) if rle]
            found[name][file.id] = [FoundCell(mask) for mask in masks]
    return {name: score(true, of).mean for name, of in found.items()}


def _kit(ensemble: Ensemble) -> Find:
    return lambda image: kit.rows(ensemble, image)
