"""How image files are read, before any network sees them, as settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sartorius_infer.manifest.settings import Settings

_Stored = Annotated[int, Field(ge=0, le=65535)]


class ImageReading(Settings):
    """Which stored values of 16-bit images are black and white; images of 8 bits are read as they are.

    Where neither is said, each image tells by itself, as `read_image` describes.
    """

    bits: Annotated[int, Field(ge=8, le=16)] | None = Field(
        None, description="of the camera: 0 is black, 2^bits - 1 white"
    )
    range: tuple[_Stored, _Stored] | None = Field(
        None, description="the stored values that are black and white; what lies outside saturates"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ImageReading:
        if self.bits is not None and self.range is not None:
            raise ValueError("$.images: expected `bits` or `range`, found both")
        if self.range is not None and self.range[0] >= self.range[1]:
            low, high = self.range
            raise ValueError(f"$.images.range: expected black below white, found {low} and {high}")
        return self

    @property
    def limits(self) -> tuple[int, int] | None:
        """The stored values that are black and white, or None where each image tells by itself."""
        return self.range if self.bits is None else (0, 2**self.bits - 1)
