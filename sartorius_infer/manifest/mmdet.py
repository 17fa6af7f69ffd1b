"""The parts of an MMDetection Mask R-CNN, Cascade Mask R-CNN or Hybrid Task Cascade as settings.

An MMDetection checkpoint usually carries the config that tells how its weights are used;
`networks/mmdet/config` reads that into these. The bodies are in `mmdet_bodies`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sartorius_infer.manifest.mmdet_bodies import MmdetBody
from sartorius_infer.manifest.parts import Norm, Sizes
from sartorius_infer.manifest.settings import Count, Fraction, Positive, Settings

Zero = Annotated[int, Field(ge=0)]
Layers = Annotated[int, Field(ge=0, le=100)]
Strides = Annotated[tuple[Count, ...], Field(min_length=1)]
Means = tuple[float, float, float, float]
Stds = tuple[Positive, Positive, Positive, Positive]


class MmdetFpn(Settings):
    """The pyramid over the body's maps from `first` to `last` (null: all), `levels` maps in all.

    `extra` makes the levels above: by pooling, or convolutions on the last map of the body (`on_input`), on
    its lateral map or on the pyramid's own last one.
    """

    channels: Count = 256
    norm: Norm = Norm()
    lateral_norm: bool = Field(True, description="the norm stands after the lateral convolutions too")
    first: Zero = 0
    last: Zero | None = None
    levels: Count = 5
    extra: Literal["pool", "on_input", "on_lateral", "on_output"] = "pool"
    relu_before_extra: bool = False
    upsample: Literal["nearest", "bilinear"] = "nearest"

    def span(self, maps: int) -> range:
        """Which of the body's `maps` maps take part; raises ValueError where they do not fit."""
        last = maps - 1 if self.last is None else self.last
        if not self.first <= last < maps:
            raise ValueError(f"first: expected first <= last < {maps}, found {self.first} and {last}")
        count = last - self.first + 1
        if self.levels < count or (last < maps - 1 and self.levels > count):
            raise ValueError(f"levels: expected {count} for the body's maps in use, found {self.levels}")
        return range(self.first, last + 1)


class MmdetAnchors(Settings):
    """Anchors of a level: its base size (null: its stride) times each scale, at each ratio (height / width).

    `center_offset` moves the first anchor's centre from the corner, in base sizes. `scale_major` puts the
    scales of a ratio beside each other, else the ratios of a scale.
    """

    strides: Strides = (4, 8, 16, 32, 64)
    scales: Sizes = (8.0,)
    ratios: Sizes = (0.5, 1.0, 2.0)
    base_sizes: Sizes | None = None
    center_offset: float = 0.0
    scale_major: bool = True

    @model_validator(mode="after")
    def _sizes(self) -> MmdetAnchors:
        if self.base_sizes is not None and len(self.base_sizes) != len(self.strides):
            raise ValueError(f"base_sizes: expected {len(self.strides)}, found {len(self.base_sizes)}")
        return self

    @property
    def per_cell(self) -> int:
        """Anchors at each position."""
        return len(self.scales) * len(self.ratios)


class MmdetCoder(Settings):
    """How four numbers move a box: times `stds`, plus `means`; `clip` cuts the result at the image's edge."""

    means: Means = (0.0, 0.0, 0.0, 0.0)
    stds: Stds = (1.0, 1.0, 1.0, 1.0)
    clip: bool = True


class MmdetNms(Settings):
    """Suppression: boxes over `iou` are dropped, or by `soft_nms` lose score until under `min_score`.

    Classes, or levels of proposals, are looked at each by itself; with `class_agnostic` together, unless
    there are `split` boxes or more.
    """

    kind: Literal["nms", "soft_nms"] = "nms"
    iou: Fraction = 0.5
    class_agnostic: bool = False
    split: Count = 10000
    method: Literal["linear", "gaussian", "naive"] = "linear"
    sigma: Positive = 0.5
    min_score: Fraction = 1e-3


class MmdetRpn(Settings):
    """The region proposal network; a negative `min_size` drops no proposal for being small."""

    channels: Count = 256
    convs: Count = 1
    coder: MmdetCoder = MmdetCoder()
    scores: Literal["sigmoid", "softmax"] = "sigmoid"
    pre_nms: Count | None = Field(1000, description="per level; null: all")
    nms: MmdetNms = MmdetNms(iou=0.7)
    per_image: Count = 1000
    min_size: float = Field(0.0, description="both sides of a proposal are longer")


class MmdetPool(Settings):
    """RoIAlign on levels of these strides; a box of up to twice `finest` pixels takes the first."""

    size: Count
    strides: Strides = (4, 8, 16, 32)
    finest: Positive = 56.0
    sampling_ratio: Zero = 0
    aligned: bool = True


class MmdetBoxHead(Settings):
    """Shared convolutions and fully connected layers, then some of classes and of boxes alone.

    `average_pool` takes the mean of a region before the first fully connected layer.
    """

    pool: MmdetPool = MmdetPool(size=7)
    shared_convs: Layers = 0
    shared_fcs: Layers = 2
    class_convs: Layers = 0
    class_fcs: Layers = 0
    box_convs: Layers = 0
    box_fcs: Layers = 0
    conv_channels: Count = 256
    fc_channels: Count = 1024
    norm: Norm = Norm()
    average_pool: bool = False
    class_agnostic: bool = Field(False, description="one box for all classes")
    coder: MmdetCoder = MmdetCoder(stds=(0.1, 0.1, 0.2, 0.2))

    @model_validator(mode="after")
    def _order(self) -> MmdetBoxHead:
        if self.shared_fcs and (self.class_convs or self.box_convs):
            raise ValueError("shared_fcs: expected none before convolutions of classes or boxes alone")
        return self


class MmdetMaskHead(Settings):
    """Convolutions, upsampling by `factor`, the predictor.

    `previous` adds a 1 x 1 convolution of what the stage before made of the same region (HTC's mask flow).
    """

    pool: MmdetPool = MmdetPool(size=14)
    convs: Layers = 4
    kernel: Literal[1, 3, 5, 7] = 3
    channels: Count = 256
    norm: Norm = Norm()
    upsample: Literal["deconv", "nearest", "bilinear", "none"] = "deconv"
    factor: Count = 2
    class_agnostic: bool = Field(False, description="one mask for all classes")
    previous: bool = False


class MmdetLimits(Settings):
    """What the box head's outputs must pass to become detections; `per_image` null is no limit."""

    score: Fraction = 0.05
    nms: MmdetNms = MmdetNms()
    per_image: Count | None = 100


class MmdetParts(Settings):
    """A whole MMDetection network but for its weights and class count.

    `dialect` is the generation of MMDetection, 2 or 3: 2 suppresses boxes in pixels of the image, 3 in its
    input's, and of an HTC's stages 2 takes the mean of all masks, 3 the last. `heads` standard is a network
    of one stage. `mask_flow` hands each stage of an HTC what the one before made of a region.
    """

    dialect: Literal[2, 3] = 3
    body: MmdetBody
    fpn: MmdetFpn = MmdetFpn()
    anchors: MmdetAnchors = MmdetAnchors()
    rpn: MmdetRpn = MmdetRpn()
    heads: Literal["standard", "cascade", "htc"] = "standard"
    box_heads: Annotated[tuple[MmdetBoxHead, ...], Field(min_length=1, max_length=10)] = (MmdetBoxHead(),)
    mask_heads: Annotated[tuple[MmdetMaskHead, ...], Field(min_length=1, max_length=10)] = (MmdetMaskHead(),)
    mask_flow: bool = False
    detection: MmdetLimits = MmdetLimits()

    @model_validator(mode="after")
    def _consistent(self) -> MmdetParts:
        self.fpn.span(len(self.body.out_indices))
        levels, stages = self.fpn.levels, len(self.box_heads)
        if len(self.anchors.strides) != levels:
            raise ValueError(f"anchors.strides: expected {levels}, found {len(self.anchors.strides)}")
        if len(self.mask_heads) != stages or (self.heads == "standard" and stages > 1):
            raise ValueError(
                f"mask_heads: expected one for each box head, and one of each in a standard network, found "
                f"{len(self.mask_heads)} and {stages}"
            )
        pools = [head.pool for head in self.box_heads] + [head.pool for head in self.mask_heads]
        for pool in pools:
            if len(pool.strides) > levels:
                raise ValueError(f"pool.strides: expected up to {levels}, found {len(pool.strides)}")
        if len({(head.class_agnostic, _side(head)) for head in self.mask_heads}) > 1:
            raise ValueError("mask_heads: expected masks of one size, all class-agnostic or none")
        if self.mask_flow and (self.heads != "htc" or not all(head.previous for head in self.mask_heads[1:])):
            raise ValueError("mask_flow: expected an HTC whose mask heads after the first have `previous`")
        return self


def _side(head: MmdetMaskHead) -> int:
    return head.pool.size * (1 if head.upsample == "none" else head.factor)
