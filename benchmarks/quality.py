"""Whether the fast ways score as the usual notebook does, with the default checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import kit, opponents
from benchmarks.networks import LEAST_AREA, default_checkpoint
from sartorius_infer.ensemble import Ensemble
from sartorius_infer.images import find_images, read_image
from sartorius_infer.metric import score_image
from sartorius_infer.rle import decode
from sartorius_infer.scoring import Score
from sartorius_infer.truth import TrueImage, read_truth
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
    found: dict[str, list[tuple[TrueImage, list[str]]]] = {name: [] for name in ways}
    for file in files:
        image = read_image(file)
        for name, way in ways.items():
            found[name].append((true[file.id], way(image)))
    return {name: _score(of) for name, of in found.items()}


def _kit(ensemble: Ensemble) -> Find:
    return lambda image: kit.rows(ensemble, image)


def _score(found: Sequence[tuple[TrueImage, list[str]]]) -> float:
    images = [
        score_image(
            truth.id,
            truth.masks,
            [decode(rle, truth.size_hw) for rle in rles if rle],
            truth.size_hw[0] * truth.size_hw[1],
        )
        for truth, rles in found
    ]
    return Score(tuple(images), tuple(truth.cell_type for truth, _ in found)).mean
