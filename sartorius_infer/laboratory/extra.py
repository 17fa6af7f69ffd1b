"""The packages of the extra `lab`: whether they are there, told before any work is done."""

from __future__ import annotations

from importlib.util import find_spec

from sartorius_infer.errors import ExtraError

LABELS, ROIS, MEASUREMENTS = "tifffile", "roifile", "scikit-image"
"""What each output is made by."""

_MODULES = {LABELS: "tifffile", ROIS: "roifile", MEASUREMENTS: "skimage"}


def require(package: str, purpose: str) -> None:
    """Raise ExtraError unless `package` is installed, without importing it; `purpose` asks for it."""
    if find_spec(_MODULES[package]) is None:
        raise ExtraError(
            f"{purpose}: expected the package {package}, found none; pip install {package}, or "
            f"{' '.join(_MODULES)} for all of the extra [lab]"
        )
