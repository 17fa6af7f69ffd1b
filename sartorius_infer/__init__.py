"""Mask R-CNN ensembles for cell instance segmentation: checkpoints in, a valid submission.csv out.

ensemble = load_ensemble([Path("weights_manifest.json")], resolve_device("auto"))
for file in find_images([Path("images")]):
    prediction, = predict(ensemble, [read_image(file)])
    instances = build_instances(prediction, ensemble.manifest.rules, ensemble.classes)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartorius_infer.device import resolve_device as resolve_device
    from sartorius_infer.ensemble import Ensemble as Ensemble
    from sartorius_infer.ensemble import load_ensemble as load_ensemble
    from sartorius_infer.errors import SartoriusError as SartoriusError
    from sartorius_infer.images import find_images as find_images
    from sartorius_infer.images import read_image as read_image
    from sartorius_infer.instances import build_instances as build_instances
    from sartorius_infer.looks import looks_of_found as looks_of_found
    from sartorius_infer.looks import looks_of_predictions as looks_of_predictions
    from sartorius_infer.networks import register_network as register_network
    from sartorius_infer.passes import predict as predict
    from sartorius_infer.predictions import load_prediction as load_prediction
    from sartorius_infer.render import match_overlay as match_overlay
    from sartorius_infer.render import overlay as overlay
    from sartorius_infer.report import report as report
    from sartorius_infer.rules import Rules as Rules
    from sartorius_infer.scoring import read_found as read_found
    from sartorius_infer.scoring import score as score
    from sartorius_infer.submission import check_submission as check_submission
    from sartorius_infer.submission import open_writer as open_writer
    from sartorius_infer.truth import read_truth as read_truth
    from sartorius_infer.tuning import tune as tune
    from sartorius_infer.types import CellImage as CellImage
    from sartorius_infer.types import Instances as Instances
    from sartorius_infer.types import Prediction as Prediction

__version__ = "0.1.0"

# Resolved on first use, so that the command line answers --help without importing torch.
_HOMES = {
    "resolve_device": "device",
    "Ensemble": "ensemble",
    "load_ensemble": "ensemble",
    "SartoriusError": "errors",
    "find_images": "images",
    "read_image": "images",
    "build_instances": "instances",
    "looks_of_found": "looks",
    "looks_of_predictions": "looks",
    "register_network": "networks",
    "predict": "passes",
    "load_prediction": "predictions",
    "match_overlay": "render",
    "overlay": "render",
    "report": "report",
    "Rules": "rules",
    "read_found": "scoring",
    "score": "scoring",
    "check_submission": "submission",
    "open_writer": "submission",
    "read_truth": "truth",
    "tune": "tuning",
    "CellImage": "types",
    "Instances": "types",
    "Prediction": "types",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
