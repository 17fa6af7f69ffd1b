"""Settings of parts that networks of several families have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sartorius_infer.manifest.settings import (
    Count,
    Positive,
    Settings,
)

Sizes = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Norm(Settings):
    """A normalisation layer.

    `eps` null means 1e-5 (1e-6 for layer norm, 1e-3 for batch norm in a MobileNetV3 body). Torchvision models
    that were fine-tuned from its COCO weights have frozen norm with eps 0; the file does not tell.
    """

    kind: Literal["none", "frozen", "batch", "group", "layer"] = "none"
    eps: Annotated[float, Field(ge=0)] | None = None
    groups: Count = Field(32, description="of group norm")


class Fpn(Settings):
    """The feature pyramid on top of the body's stages."""

    channels: Count = 256
    norm: Norm = Norm()
    extra: Literal["pool", "none"] = Field("pool", description="a last level by max pooling")
