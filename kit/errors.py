"""What goes wrong while packing."""

from __future__ import annotations

from sartorius_infer.errors import SartoriusError


class KitError(SartoriusError):
    """A dataset that cannot be built, or is not what it should be."""
