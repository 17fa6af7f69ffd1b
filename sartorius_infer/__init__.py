"""Mask R-CNN ensembles for cell instance segmentation: checkpoints in, cells or a valid submission.csv out.

    from sartorius_infer import load_ensemble

    ensemble = load_ensemble("weights_manifest.json")  # or checkpoints, or nothing: the included one
    cells = ensemble.segment("image.png")              # a path, an array, or a list of them
    cells.label_map, cells.scores, cells.labels, cells.boxes, cells.areas, cells.polygons()

`load_ensemble` says what it takes, `Ensemble` and `Instances` what they give. What the command line does
beyond that: `score`, `tune`, `report`, `check_submission`; every error is a `SartoriusError`.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from sartorius_infer.version import __version__ as __version__

if TYPE_CHECKING:
    from sartorius_infer.cells.claim import build_instances as build_instances
    from sartorius_infer.cells.instances import Instances as Instances
    from sartorius_infer.ensemble.device import resolve_device as resolve_device
    from sartorius_infer.ensemble.ensemble import Ensemble as Ensemble
    from sartorius_infer.ensemble.loading import load_ensemble as load_ensemble
    from sartorius_infer.ensemble.passes import predict as predict
    from sartorius_infer.errors import SartoriusError as SartoriusError
    from sartorius_infer.evaluate.scoring import score as score
    from sartorius_infer.evaluate.submissions import read_found as read_found
    from sartorius_infer.evaluate.truth import read_truth as read_truth
    from sartorius_infer.images.find import find_images as find_images
    from sartorius_infer.images.read import read_image as read_image
    from sartorius_infer.manifest.rules import Rules as Rules
    from sartorius_infer.networks import register_network as register_network
    from sartorius_infer.output.check import check_submission as check_submission
    from sartorius_infer.output.predictions import load_prediction as load_prediction
    from sartorius_infer.output.render import overlay as overlay
    from sartorius_infer.output.writers import open_writer as open_writer
    from sartorius_infer.show.candidates import looks_of_found as looks_of_found
    from sartorius_infer.show.candidates import looks_of_predictions as looks_of_predictions
    from sartorius_infer.show.matches import match_overlay as match_overlay
    from sartorius_infer.show.report import report as report
    from sartorius_infer.tuning.search import tune as tune
    from sartorius_infer.types import CellImage as CellImage
    from sartorius_infer.types import Prediction as Prediction

# Resolved on first use, so that the command line answers --help without importing torch.
_HOMES = {
    "load_ensemble": "ensemble.loading",
    "Ensemble": "ensemble.ensemble",
    "Instances": "cells.instances",
    "find_images": "images.find",
    "read_image": "images.read",
    "build_instances": "cells.claim",
    "resolve_device": "ensemble.device",
    "predict": "ensemble.passes",
    "SartoriusError": "errors",
    "read_found": "evaluate.submissions",
    "score": "evaluate.scoring",
    "read_truth": "evaluate.truth",
    "Rules": "manifest.rules",
    "register_network": "networks",
    "load_prediction": "output.predictions",
    "overlay": "output.render",
    "check_submission": "output.check",
    "open_writer": "output.writers",
    "looks_of_found": "show.candidates",
    "looks_of_predictions": "show.candidates",
    "match_overlay": "show.matches",
    "report": "show.report",
    "tune": "tuning.search",
    "CellImage": "types",
    "Prediction": "types",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
