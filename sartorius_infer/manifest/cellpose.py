"""How a Cellpose network is run, as settings: what its `eval` takes, under the same names and defaults.

Its checkpoint tells the network, and from version 2.0 on the diameter of the cells that it learned from.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sartorius_infer.manifest.settings import Count, Positive, Settings

Percent = Annotated[float, Field(ge=0, le=100)]


class CellposeParts(Settings):
    """A Cellpose network at test time but for its weights. Flows are the network's, five to a pixel."""

    diameter: Positive | None = Field(
        None,
        description="of the cells, in pixels; the image is resized until they are as large as the network's "
        "mean (the file's `diam_mean`, else 30); null: the file's `diam_labels`, else no resizing",
    )
    percentile: tuple[Percent, Percent] = Field(
        (1.0, 99.0), description="of the image's pixels: what becomes 0 and 1"
    )
    tile: Annotated[int, Field(ge=32, multiple_of=16)] = Field(224, description="side of a tile, in pixels")
    tile_overlap: Annotated[float, Field(ge=0.05, le=0.5)] = Field(
        0.1, description="fraction of a tile's side on each of its edges that others see too"
    )
    augment: bool = Field(False, description="tiles overlap by half, and every other one is mirrored")
    resample: bool = Field(True, description="flows are followed in image pixels, not in the network's")
    steps: Count | None = Field(
        None, description="steps along the flow (`niter`); null: 200 in the network's pixels, and as far here"
    )
    cellprob_threshold: float = Field(0.0, description="pixels of cells have a logit above it")
    flow_threshold: Annotated[float, Field(ge=0)] = Field(
        0.4, description="cells go whose flow differs from that of their shape by more; 0: none goes"
    )
    min_size: Annotated[int, Field(ge=0)] = Field(15, description="cells of fewer pixels go")
    max_size_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="cells go that cover more of the image"
    )

    @model_validator(mode="after")
    def _ordered(self) -> CellposeParts:
        low, high = self.percentile
        if low >= high:
            raise ValueError(f"percentile: expected a lower and a higher one, found {low:g} and {high:g}")
        return self
