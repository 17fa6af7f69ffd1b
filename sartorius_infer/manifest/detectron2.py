"""The parts of a Detectron2 Mask R-CNN or Cascade Mask R-CNN as settings, named as `parts` names them.

A Detectron2 checkpoint tells its weights but not how they are used; its config does, and
`detectron2_config` reads it into these. Defaults are those of Detectron2's `Base-RCNN-FPN.yaml`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sartorius_infer.manifest.parts import Fpn, Norm, Sizes
from sartorius_infer.manifest.settings import Count, Fraction, Positive, Settings

Level = Annotated[int, Field(ge=2, le=6)]
Stage = Annotated[int, Field(ge=2, le=5)]
BoxWeights = tuple[Positive, Positive, Positive, Positive]


class Detectron2Body(Settings):
    """A ResNet, a ResNeXt or, with a radix over 1, a ResNeSt, whose stem is deep and who halves by averaging.

    `stages` feed the pyramid: consecutive, up to 5 (res5).
    """

    depth: Literal[18, 34, 50, 101, 152, 200, 269] = 50
    groups: Count = 1
    width_per_group: Count = 64
    radix: Count = Field(1, description="maps that a ResNeSt's attention weighs against each other")
    stem_channels: Count = Field(64, description="of a plain stem; a ResNeSt's follow from its depth")
    res2_channels: Count = 256
    stride_in_1x1: bool = Field(True, description="halve in a block's first convolution, not in its 3 x 3")
    norm: Norm = Norm(kind="frozen")
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = (2, 3, 4, 5)
    deformable: tuple[Stage, ...] = Field((), description="stages whose 3 x 3 convolutions are deformable")
    modulated: bool = Field(False, description="each tap of a deformable convolution has a weight")
    deformable_groups: Count = Field(1, description="groups of channels whose taps move together")

    @model_validator(mode="after")
    def _possible(self) -> Detectron2Body:
        if list(self.stages) != list(range(self.stages[0], 6)):
            raise ValueError(f"stages: expected consecutive ones up to 5, found {self.stages}")
        if self.depth < 50 and (self.groups, self.res2_channels) != (1, 64):
            raise ValueError("depth: expected groups 1 and res2_channels 64 with 18 and 34 layers")
        if self.depth < 50 and (self.deformable or self.radix > 1):
            raise ValueError(
                f"depth: expected 50 or more with deformable stages or a radix, found {self.depth}"
            )
        if self.depth > 152 and self.radix == 1:
            raise ValueError(f"depth: expected a radix over 1 with {self.depth} layers, found 1")
        if self.radix > 1 and (self.groups > 1 or self.stride_in_1x1):
            raise ValueError(
                "radix: expected groups 1 and no stride_in_1x1 with a radix over 1, found others"
            )
        if self.width_per_group % self.radix:
            raise ValueError(f"radix: expected a divisor of {self.width_per_group}, found {self.radix}")
        if list(self.deformable) != sorted(set(self.deformable)):
            raise ValueError(f"deformable: expected different stages in order, found {self.deformable}")
        if self.deformable and self.groups * self.width_per_group % self.deformable_groups:
            raise ValueError(
                f"deformable_groups: expected a divisor of {self.groups * self.width_per_group}, "
                f"found {self.deformable_groups}"
            )
        return self


class Detectron2Fpn(Fpn):
    """The pyramid: top-down maps are summed with the lateral ones, or averaged."""

    extra: Literal["pool"] = "pool"
    fuse: Literal["sum", "avg"] = "sum"


class Detectron2Anchors(Settings):
    """Anchor sizes in network pixels and ratios (height / width), a list for each level or one for all.

    `offset` moves the first anchor's centre from the corner, in strides.
    """

    sizes: Annotated[tuple[Sizes, ...], Field(min_length=1)] = (
        (32.0,),
        (64.0,),
        (128.0,),
        (256.0,),
        (512.0,),
    )
    aspect_ratios: Annotated[tuple[Sizes, ...], Field(min_length=1)] = ((0.5, 1.0, 2.0),)
    offset: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Detectron2Rpn(Settings):
    """The region proposal network; a convolution of null channels keeps the pyramid's.

    A level that `levels` names twice is seen twice, each time with the anchors of its place in the list.
    """

    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (2, 3, 4, 5, 6)
    conv_channels: Annotated[tuple[Count | None, ...], Field(min_length=1)] = (None,)
    pre_nms_top_n: Count = Field(1000, description="per level")
    post_nms_top_n: Count = Field(1000, description="per image")
    nms: Fraction = 0.7
    min_size: Annotated[float, Field(ge=0)] = Field(0.0, description="both sides of a proposal are longer")
    box_weights: BoxWeights = (1.0, 1.0, 1.0, 1.0)


class Detectron2Pool(Settings):
    """RoIAlign; `sampling_ratio` 0 adapts to the RoI, `aligned` shifts by half a pixel (ROIAlignV2)."""

    size: Count
    sampling_ratio: Annotated[int, Field(ge=0)] = 0
    aligned: bool = True


class Detectron2BoxHead(Settings):
    """Convolutions, then fully connected layers; three `box_weights` make a cascade of three stages."""

    pool: Detectron2Pool = Detectron2Pool(size=7)
    conv_channels: tuple[Count, ...] = ()
    fc_channels: tuple[Count, ...] = (1024, 1024)
    norm: Norm = Norm()
    class_agnostic: bool = Field(False, description="one box for all classes")
    box_weights: Annotated[tuple[BoxWeights, ...], Field(min_length=1)] = ((10.0, 10.0, 5.0, 5.0),)
    cascade: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"

    @model_validator(mode="after")
    def _stages(self) -> Detectron2BoxHead:
        if not self.conv_channels and not self.fc_channels:
            raise ValueError("fc_channels: expected a convolution or a fully connected layer, found none")
        if self.cascade and not self.class_agnostic:
            raise ValueError("class_agnostic: expected true in a cascade, found false")
        if not self.cascade and len(self.box_weights) > 1:
            raise ValueError(f"box_weights: expected one entry, found {len(self.box_weights)}")
        return self


class Detectron2MaskHead(Settings):
    """Convolutions, an upsampling one of `hidden` channels, the predictor."""

    pool: Detectron2Pool = Detectron2Pool(size=14)
    conv_channels: tuple[Count, ...] = (256, 256, 256, 256)
    hidden: Count = 256
    norm: Norm = Norm()
    class_agnostic: bool = Field(False, description="one mask for all classes")


class Detectron2Limits(Settings):
    """What the box head's outputs must pass to become detections; `per_image` null is no limit."""

    score: Fraction = 0.05
    nms: Fraction = 0.5
    per_image: Count | None = 100


class Detectron2Parts(Settings):
    """A whole Detectron2 network but for its weights and class count."""

    body: Detectron2Body = Detectron2Body()
    fpn: Detectron2Fpn = Detectron2Fpn()
    anchors: Detectron2Anchors = Detectron2Anchors()
    rpn: Detectron2Rpn = Detectron2Rpn()
    roi_levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (2, 3, 4, 5)
    box_head: Detectron2BoxHead = Detectron2BoxHead()
    mask_head: Detectron2MaskHead = Detectron2MaskHead()
    detection: Detectron2Limits = Detectron2Limits()

    @model_validator(mode="after")
    def _levels(self) -> Detectron2Parts:
        available = (*self.body.stages, 6)
        for name, levels in (("rpn.levels", self.rpn.levels), ("roi_levels", self.roi_levels)):
            if not set(levels) <= set(available):
                raise ValueError(f"{name}: expected levels of {available}, found {levels}")
        if list(self.roi_levels) != list(range(self.roi_levels[0], self.roi_levels[-1] + 1)):
            raise ValueError(f"roi_levels: expected consecutive levels, found {self.roi_levels}")
        for name in ("sizes", "aspect_ratios"):
            found = len(getattr(self.anchors, name))
            if found not in (1, len(self.rpn.levels)):
                raise ValueError(f"anchors.{name}: expected 1 or {len(self.rpn.levels)} lists, found {found}")
        if len(set(self.anchors_per_cell)) > 1:
            raise ValueError(f"anchors: expected as many on each level, found {self.anchors_per_cell}")
        return self

    @property
    def anchors_per_cell(self) -> tuple[int, ...]:
        """Anchors at each position of each level that the RPN sees."""
        return tuple(len(sizes) * len(ratios) for sizes, ratios in self.level_anchors)

    @property
    def level_anchors(self) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
        """Sizes and aspect ratios of each level that the RPN sees."""
        count = len(self.rpn.levels)
        sizes, ratios = self.anchors.sizes, self.anchors.aspect_ratios
        return tuple(
            zip(
                sizes * (count if len(sizes) == 1 else 1),
                ratios * (count if len(ratios) == 1 else 1),
                strict=True,
            )
        )
