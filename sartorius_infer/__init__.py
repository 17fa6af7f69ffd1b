"""Mask R-CNN ensembles for cell instance segmentation: checkpoints in, a valid submission.csv out.

ensemble = load_ensemble([Path("weights_manifest.json")], resolve_device("auto"))
for file in find_images([Path("images")]):
    prediction, = predict(ensemble, [read_image(file)])
    instances = build_instances(prediction, ensemble.manifest.rules, ensemble.classes)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sartorius_infer.version import __version__ as __version__

if TYPE_CHECKING:
    from sartorius_infer.cells.claim import build_instances as build_instances
    from sartorius_infer.ensemble.device import resolve_device as resolve_device
    from sartorius_infer.ensemble.ensemble import Ensemble as Ensemble
    from sartorius_infer.ensemble.loading import load_ensemble as load_ensemble
    from sartorius_infer.ensemble.passes import predict as predict
    from sartorius_infer.errors import SartoriusError as SartoriusError
    from sartorius_infer.evaluate.scoring import read_found as read_found
    from sartorius_infer.evaluate.scoring import score as score
    from sartorius_infer.evaluate.truth import read_truth as read_truth
    from sartorius_infer.images.find import find_images as find_images
    from sartorius_infer.images.read import read_image as read_image
    from sartorius_infer.manifest.rules import Rules as Rules
    from sartorius_infer.networks import register_network as register_network
    from sartorius_infer.output.predictions import load_prediction as load_prediction
    from sartorius_infer.output.render import overlay as overlay
    from sartorius_infer.output.submission import check_submission as check_submission
    from sartorius_infer.output.submission import open_writer as open_writer
    from sartorius_infer.show.candidates import looks_of_found as looks_of_found
    from sartorius_infer.show.candidates import looks_of_predictions as looks_of_predictions
    from sartorius_infer.show.matches import match_overlay as match_overlay
    from sartorius_infer.show.report import report as report
    from sartorius_infer.tuning.search import tune as tune
    from sartorius_infer.types import CellImage as CellImage
    from sartorius_infer.types import Instances as Instances
    from sartorius_infer.types import Prediction as Prediction

# Resolved on first use, so that the command line answers --help without importing torch.
_HOMES = {
    "resolve_device": "ensemble.device",
    "Ensemble": "ensemble.ensemble",
    "load_ensemble": "ensemble.loading",
    "SartoriusError": "errors",
    "find_images": "images.images",
    "read_image": "images.images",
    "build_instances": "cells.claim",
    "looks_of_found": "show.candidates",
    "looks_of_predictions": "show.candidates",
    "register_network": "networks",
    "predict": "ensemble.passes",
    "load_prediction": "output.predictions",
    "match_overlay": "output.render",
    "overlay": "output.render",
    "report": "show.report",
    "Rules": "manifest.rules",
    "read_found": "evaluate.scoring",
    "score": "evaluate.scoring",
    "check_submission": "output.submission",
    "open_writer": "output.submission",
    "read_truth": "evaluate.truth",
    "tune": "tuning.search",
    "CellImage": "types",
    "Instances": "types",
    "Prediction": "types",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
