"""How large images, and cells of another size than the networks know, are seen, as settings."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from sartorius_infer.errors import ManifestError

SMALLEST_TILE = 64

_TileSide = Annotated[int, Field(ge=SMALLEST_TILE)]

TileSize = tuple[_TileSide, _TileSide]
"""Height and width in pixels."""

TileRule = Annotated[
    Annotated[Literal["auto", "off"], Tag("name")] | Annotated[TileSize, Tag("size")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "size"),
]
"""auto: tiles of the size that the networks learned on; off: no tiles; else the tiles' height and width."""

Magnification = Annotated[float, Field(ge=1 / 16, le=16)]
"""How many times as large as in the networks' images the cells are."""


def require_tile(rule: Any) -> TileRule:
    """The rule itself, or that in a text: `auto`, `off` or `520x704`, height first.

    Raises ManifestError for what is none.
    """
    sides = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", rule) if isinstance(rule, str) else None
    try:
        size = (int(sides[1]), int(sides[2])) if sides else rule
        return TypeAdapter(TileRule).validate_python(size, strict=True)
    except ValidationError:
        raise ManifestError(
            f"tile: expected auto, off, or a height and a width from {SMALLEST_TILE} pixels, such as "
            f"520x704, found {rule!r}"
        ) from None


def require_magnification(value: Any) -> float:
    """The number itself; raises ManifestError for what is none, or out of range."""
    try:
        return TypeAdapter(Magnification).validate_python(value, strict=True)
    except ValidationError:
        raise ManifestError(f"magnification: expected a number from 1/16 to 16, found {value!r}") from None
