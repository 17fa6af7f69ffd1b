"""What goes wrong while training."""

from __future__ import annotations

from sartorius_infer.errors import SartoriusError


class TrainingError(SartoriusError):
    """A recipe, data or a run's folder that no network can be trained from."""
