"""The kit as it is called in measurements: one image from pixels to rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sartorius_infer.cells.claim import Selector, build_instances
from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.ensemble.device import cpu_multiplies
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import Select, predict
from sartorius_infer.types import CellImage, Prediction

CPU = torch.device("cpu")


def precisions(device: torch.device) -> tuple[str, ...]:
    """The precisions that are worth a measurement by their names on the command line, the plain one first."""
    if device.type == "cuda":
        return ("fp16",)
    return ("fp32", "fp32-fast", *(("bf16",) if cpu_multiplies("bf16") else ()))


def load(manifest: Path, device: torch.device, precision: str | None = None) -> Ensemble:
    """A manifest's networks in a precision, by default the first of `precisions`."""
    return load_ensemble([manifest], device, precision or precisions(device)[0])


def rows(ensemble: Ensemble, image: CellImage) -> list[str]:
    """Run lengths of every cell."""
    return rows_of_batch(ensemble, [image])[0]


def rows_of_batch(ensemble: Ensemble, images: Sequence[CellImage]) -> list[list[str]]:
    """Run lengths of every cell of each image, whose networks see them at once."""
    return [decide(ensemble, seen) for seen in predict(ensemble, images, worth_a_mask(ensemble))]


def worth_a_mask(ensemble: Ensemble) -> Select:
    """Which boxes the rules could keep."""
    return Selector(ensemble.manifest.rules, ensemble.classes)


def decide(ensemble: Ensemble, prediction: Prediction) -> list[str]:
    """From a prediction to run lengths."""
    cells = build_instances(prediction, ensemble.manifest.rules, ensemble.classes)
    return encode_label_map(cells.label_map, len(cells))
