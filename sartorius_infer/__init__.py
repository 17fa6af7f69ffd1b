"""Mask R-CNN ensembles for cell instance segmentation: checkpoints in, a valid submission.csv out."""

from sartorius_infer.errors import SartoriusError

__version__ = "0.1.0"
__all__ = ["SartoriusError", "__version__"]
