"""The rules that turn a soft `Prediction` into final cells, as strict, frozen settings.

Each is read from the manifest's `rules`; `instances` applies them. Thresholds are inclusive: a
cell whose score equals its threshold stays.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sartorius_infer.manifest.settings import Fraction, Settings

Pixels = Annotated[int, Field(ge=0)]


class EdgeThresholds(Settings):
    """What a cell on the image border must reach instead of its class's own thresholds."""

    score: Fraction
    min_area: Pixels


class ClassRule(Settings):
    """Thresholds of one class; areas in pixels."""

    score: Fraction = 0.5
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.5
    min_area: Pixels = 0
    edge: EdgeThresholds | None = Field(
        None, description="thresholds of cells on the image border; null: the class's own"
    )


EdgeMode = Literal["rule", "keep", "drop"]


class EdgeRule(Settings):
    """What becomes of cells with a pixel within `margin` pixels of the image border.

    `rule` holds them to their class's `edge` thresholds, `keep` treats them like the rest,
    `drop` removes them all. A margin of 0 means a pixel on the border itself.
    """

    mode: EdgeMode = "rule"
    margin: Pixels = 0


Consensus = Literal["off", "count", "score_sum", "surest"]


class Rules(Settings):
    """Everything decided after the networks have spoken.

    Of each cell the largest 8-connected part that higher scores leave it stays; `min_area` and the
    edge rule judge that part.
    """

    per_class: dict[str, ClassRule] = Field(default_factory=dict)
    rescore_by_mask: bool = Field(
        False, description="multiply each score by the mean probability inside its mask"
    )
    consensus: Consensus = Field(
        "off",
        description="keep only the image's leading class, by number, by summed score, or by the summed cubes "
        "of all scores, those below the thresholds too",
    )
    overlap_survival: Fraction = Field(
        0.5, description="drop a cell that keeps less than this fraction once higher scores have claimed"
    )
    fill_holes: bool = False
    edge: EdgeRule = EdgeRule()
    paste: Literal["exact", "torchvision"] = Field(
        "exact",
        description="exact: bilinear at pixel centres of the unrounded box; "
        "torchvision: box corners truncated to whole pixels as its own models do",
    )

    def of(self, class_name: str) -> ClassRule:
        """The rule of a class; the defaults where none is written."""
        return self.per_class.get(class_name, ClassRule())
