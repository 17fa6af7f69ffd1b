"""The parts of a torchvision Mask R-CNN as settings: what a checkpoint's keys tell and what they don't.

`NetworkParts` describes a whole network. Its fields come, in rising order, from the defaults here
(torchvision's own), from a preset, from the keys and shapes of the checkpoint, and from the
manifest's `network`, which may name any subset of them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from sartorius_infer.manifest.parts import Fpn, Norm, Sizes
from sartorius_infer.manifest.settings import (
    Count,
    Fraction,
    Positive,
    Settings,
)

BODY_PATTERN = (
    r"^(resnet(18|34|50|101|152)|resnext(50|101|152)_[1-9][0-9]*x[1-9][0-9]*d|wide_resnet(50|101)_[1-9][0-9]*"
    r"|convnext_(tiny|small|base|large)|swin(_v2)?_[tsb]|mobilenet_v3_large)$"
)


class Anchors(Settings):
    """Anchor sizes in network pixels, a list for each level, and ratios (height / width) for all."""

    sizes: Annotated[tuple[Sizes, ...], Field(min_length=1)] = (
        (32.0,),
        (64.0,),
        (128.0,),
        (256.0,),
        (512.0,),
    )
    aspect_ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)


class Rpn(Settings):
    """The region proposal network and how many proposals it passes on at test time."""

    conv_depth: Count = 1
    pre_nms_top_n: Count = Field(1000, description="per level")
    post_nms_top_n: Count = Field(1000, description="per image")
    nms: Fraction = 0.7
    score: Fraction = 0.0


class RoiPool(Settings):
    """RoIAlign over the pyramid; `levels` null means all but the extra one."""

    size: Count
    sampling_ratio: Annotated[int, Field(ge=0)] = 2
    levels: tuple[Annotated[int, Field(ge=0)], ...] | None = None


class BoxHead(Settings):
    """Convolutions (none: two fully connected layers alone), then fully connected layers."""

    conv_channels: tuple[Count, ...] = ()
    fc_channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (1024, 1024)
    norm: Norm = Norm()


class MaskHead(Settings):
    """Convolutions on the pooled RoI, then the predictor's `hidden` channels at twice the size."""

    conv_channels: tuple[Count, ...] = (256, 256, 256, 256)
    dilation: Count = 1
    norm: Norm = Norm()
    hidden: Count = 256


class DetectionLimits(Settings):
    """What the box head's outputs must pass to become detections."""

    score: Fraction = 0.05
    nms: Fraction = 0.5
    per_image: Count = 100


class NetworkParts(Settings):
    """A whole Mask R-CNN but for its weights and class count."""

    body: Annotated[str, Field(pattern=BODY_PATTERN)] = "resnet50"
    body_norm: Norm = Norm(kind="batch")
    stages: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        (1, 2, 3, 4), description="stages of the body that feed the pyramid, from 1"
    )
    fpn: Fpn = Fpn()
    anchors: Anchors = Anchors()
    rpn: Rpn = Rpn()
    box_pool: RoiPool = RoiPool(size=7)
    box_head: BoxHead = BoxHead()
    mask_pool: RoiPool = RoiPool(size=14)
    mask_head: MaskHead = MaskHead()
    detection: DetectionLimits = DetectionLimits()

    @model_validator(mode="after")
    def _levels_exist(self) -> NetworkParts:
        levels = len(self.stages)
        for name, pool in (("box_pool", self.box_pool), ("mask_pool", self.mask_pool)):
            if pool.levels is not None and (not pool.levels or max(pool.levels) >= levels):
                raise ValueError(f"{name}.levels: expected levels 0..{levels - 1}, found {pool.levels}")
        return self

    @property
    def levels(self) -> int:
        """Number of feature maps that the RPN sees."""
        return len(self.stages) + (self.fpn.extra == "pool")


_V2_BATCH = {"kind": "batch"}
_V2: dict[str, Any] = {
    "fpn": {"channels": 256, "norm": _V2_BATCH},
    "rpn": {"conv_depth": 2},
    "box_head": {"conv_channels": (256, 256, 256, 256), "fc_channels": (1024,), "norm": _V2_BATCH},
    "mask_head": {"conv_channels": (256, 256, 256, 256), "norm": _V2_BATCH, "hidden": 256},
}

PRESETS: dict[str, dict[str, Any]] = {
    "torchvision_rcnn": {},
    "resnet50_fpn": {"body": "resnet50"},
    "resnet50_fpn_v2": {"body": "resnet50", "body_norm": _V2_BATCH, **_V2},
    "resnet101_fpn": {"body": "resnet101"},
    "resnext101_32x8d_fpn": {"body": "resnext101_32x8d"},
    "mobilenet_v3_large_fpn": {
        "body": "mobilenet_v3_large",
        "stages": (5, 6),
        "anchors": {"sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3},
    },
}
"""Well-known systems as the parts in which they differ from the defaults."""

PRESETS |= {f"maskrcnn_{name}": PRESETS[name] for name in ("resnet50_fpn", "resnet50_fpn_v2")}
