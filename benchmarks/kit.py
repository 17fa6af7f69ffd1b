"""The kit as it is called in measurements: one image from pixels to rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sartorius_infer.cells.claim import Selector, build_instances
from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import Select, predict
from sartorius_infer.types import CellImage, Prediction

CPU = torch.device("cpu")


def kinds(device: torch.device) -> tuple[bool, ...]:
    """Whether by fast arithmetic: no and yes on a CPU; a GPU has one way."""
    return (False,) if device.type == "cuda" else (False, True)


def words(device: torch.device, fast: bool) -> str:
    """The precision by its name on the command line."""
    return "fp16" if device.type == "cuda" else "fp32-fast" if fast else "fp32"


def load(manifest: Path, device: torch.device, fast: bool = False) -> Ensemble:
    """A manifest's networks, by plain float32 arithmetic on a CPU or the fast one, in half on a GPU."""
    half = device.type == "cuda"
    ensemble = load_ensemble([manifest], device, torch.float16 if half else torch.float32)
    if fast:
        ensemble.quicken()
    return ensemble


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
