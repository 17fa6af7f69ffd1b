"""Test-time views: each an exact image transform with its exact inverse on boxes and RoI masks.

The eight flips and quarter-turns are the symmetries of the square, written as an optional
transposition followed by optional flips. A scale leaves the pixels alone: it asks the network to
work at a multiple of its usual input size, whose boxes come back in image pixels by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sartorius_infer.errors import ManifestError

if TYPE_CHECKING:
    from torch import Tensor

SCALE_LIMITS = (0.25, 4.0)

_SYMMETRIES = {
    # name: (transpose, hflip, vflip); turns are counter-clockwise
    "identity": (False, False, False),
    "hflip": (False, True, False),
    "vflip": (False, False, True),
    "rot180": (False, True, True),
    "transpose": (True, False, False),
    "rot90": (True, False, True),
    "rot270": (True, True, False),
    "transverse": (True, True, True),
}
_NAME = re.compile(r"([a-z0-9]+)(?:\+scale:([0-9]*\.?[0-9]+))?")


@dataclass(frozen=True)
class View:
    """One way to look at an image: transpose, then mirror columns, then mirror rows, then scale."""

    transpose: bool = False
    hflip: bool = False
    vflip: bool = False
    scale: float = 1.0

    def image(self, pixels: Tensor) -> Tensor:
        """The view of (..., H, W): (..., W, H) where it transposes."""
        if self.transpose:
            pixels = pixels.transpose(-1, -2)
        flips = [axis for axis, on in ((-1, self.hflip), (-2, self.vflip)) if on]
        return pixels.flip(flips) if flips else pixels

    def image_back(self, pixels: Tensor) -> Tensor:
        """The inverse of `image`; RoI masks (N, M, M) come back from the view by it."""
        flips = [axis for axis, on in ((-1, self.hflip), (-2, self.vflip)) if on]
        pixels = pixels.flip(flips) if flips else pixels
        return pixels.transpose(-1, -2) if self.transpose else pixels

    def boxes(self, xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Boxes (N, 4) of an image of `size_hw` in pixels of its view."""
        height, width = size_hw
        if self.transpose:
            xyxy = xyxy[:, [1, 0, 3, 2]]
            height, width = width, height
        return self._mirror(xyxy, height, width)

    def boxes_back(self, xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """The inverse of `boxes`; `size_hw` is the image's, not the view's."""
        height, width = size_hw
        if self.transpose:
            height, width = width, height
        xyxy = self._mirror(xyxy, height, width)
        return xyxy[:, [1, 0, 3, 2]] if self.transpose else xyxy

    def _mirror(self, xyxy: Tensor, height: int, width: int) -> Tensor:
        mirrored = xyxy.clone()
        if self.hflip:
            mirrored[:, 0], mirrored[:, 2] = width - xyxy[:, 2], width - xyxy[:, 0]
        if self.vflip:
            mirrored[:, 1], mirrored[:, 3] = height - xyxy[:, 3], height - xyxy[:, 1]
        return mirrored


IDENTITY = View()


def parse_view(text: str) -> View:
    """A view by name: a symmetry, `scale:F`, or both joined by `+` (`hflip+scale:1.25`).

    Raises ManifestError for anything else, and for scales outside 0.25 to 4.
    """
    found = _NAME.fullmatch(f"identity+{text}" if text.startswith("scale:") else text)
    if not found or found[1] not in _SYMMETRIES:
        names = ", ".join(_SYMMETRIES)
        raise ManifestError(f"view {text!r}: expected {names}, scale:F, or both as in hflip+scale:1.25")
    scale, (low, high) = float(found[2] or 1), SCALE_LIMITS
    if not low <= scale <= high:
        raise ManifestError(f"view {text!r}: expected a scale from {low} to {high}, found {scale:g}")
    return View(*_SYMMETRIES[found[1]], scale)


def require_views(names: Sequence[str]) -> None:
    """Raise ManifestError for no views, for what `parse_view` refuses, and for a view that is there twice.

    However it is named, it would vote twice.
    """
    if isinstance(names, str) or not names:
        raise ManifestError(f"views: expected a list of one or more names, found {names!r}")
    known: dict[View, str] = {}
    for name in names:
        view = parse_view(name)
        if view in known:
            alias = "" if known[view] == name else f", which is {known[view]!r}"
            raise ManifestError(f"view {name!r}: expected each view once, found it again{alias}")
        known[view] = name


def parse_views(text: str | None) -> list[str] | None:
    """The names in a list such as `identity, hflip`; None where none is given.

    Raises ManifestError as `require_views` does.
    """
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    require_views(names)
    return names
