"""The keys of Detectron2's configs: every one that decides something at test time, and those that do not.

`Keys` is the whole list. A key that stands there with one possible value is a part that is not built
otherwise; any other value is refused by the key's name. What is not there is a training setting, known
by name in `IGNORED`, or unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from sartorius_infer.manifest.settings import Count, Fraction, Positive

ADD_ONS = ("build_resnest_fpn_backbone", "build_resneSt_fpn_backbone")
"""ResNeSt's own builders of a pyramid; its fork of Detectron2 builds it under Detectron2's name."""

_NORMS = {
    "": "none",
    "FrozenBN": "frozen",
    "GN": "group",
    "LN": "layer",
    **dict.fromkeys(("BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"), "batch"),
}


def _features(letters: str, last: int) -> BeforeValidator:
    """Feature names such as ["res2", "res3"] as their numbers, from 2 to `last`."""

    def numbers(value: Any) -> Any:
        names = [f"{letters}{n}" for n in range(2, last + 1)]
        if isinstance(value, (list, tuple)) and all(name in names for name in value):
            return [names.index(name) + 2 for name in value]
        raise ValueError(f"expected names of {', '.join(names)}")

    return BeforeValidator(numbers)


def _norm(value: Any) -> Any:
    if not isinstance(value, str) or value not in _NORMS:
        raise ValueError(f"expected one of {', '.join(map(repr, _NORMS))}")
    return _NORMS[value]


def _limit(value: int) -> int:
    if value == 0:
        raise ValueError("expected 1 or more, or -1 for no limit")
    return value


_Backbone = Literal["build_resnet_fpn_backbone", "build_resnest_fpn_backbone", "build_resneSt_fpn_backbone"]
_Norm = Annotated[Literal["none", "frozen", "group", "batch", "layer"], BeforeValidator(_norm)]
_Levels = Annotated[tuple[int, ...], Field(min_length=1), _features("p", 6)]
_Stages = Annotated[tuple[int, ...], Field(min_length=1), _features("res", 5)]


def _nested(value: Any) -> Any:
    """A list of numbers is one for all levels, as Detectron2 reads it."""
    flat = isinstance(value, (list, tuple)) and value and not isinstance(value[0], (list, tuple))
    return [value] if flat else value


_List = Annotated[tuple[Positive, ...], Field(min_length=1)]
_Lists = Annotated[tuple[_List, ...], Field(min_length=1), BeforeValidator(_nested)]
_Weights = tuple[Positive, Positive, Positive, Positive]
_Colour = tuple[float, float, float]
_Pooler = Literal["ROIAlignV2", "ROIAlign"]
_Zero = Annotated[int, Field(ge=0)]
_Layers = Annotated[int, Field(ge=0, le=100)]
_Flags = tuple[()] | tuple[bool, bool, bool, bool]


class Keys(BaseModel):
    """Keys with a say at test time, with the defaults of Detectron2's own `get_cfg()`; forks have more."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    version: Literal[2] = Field(2, alias="VERSION")
    meta_architecture: Literal["GeneralizedRCNN"] = Field("GeneralizedRCNN", alias="MODEL.META_ARCHITECTURE")
    mask_on: Literal[True] = Field(True, alias="MODEL.MASK_ON")
    keypoint_on: Literal[False] = Field(False, alias="MODEL.KEYPOINT_ON")
    load_proposals: Literal[False] = Field(False, alias="MODEL.LOAD_PROPOSALS")
    pixel_mean: _Colour = Field((103.53, 116.28, 123.675), alias="MODEL.PIXEL_MEAN")
    pixel_std: tuple[Positive, Positive, Positive] = Field((1.0, 1.0, 1.0), alias="MODEL.PIXEL_STD")
    colours: Literal["BGR", "RGB"] = Field("BGR", alias="INPUT.FORMAT")
    shortest: _Zero = Field(800, alias="INPUT.MIN_SIZE_TEST")
    longest: Count = Field(1333, alias="INPUT.MAX_SIZE_TEST")

    backbone: _Backbone = Field(alias="MODEL.BACKBONE.NAME")
    depth: Literal[18, 34, 50, 101, 152, 200, 269] = Field(50, alias="MODEL.RESNETS.DEPTH")
    groups: Count = Field(1, alias="MODEL.RESNETS.NUM_GROUPS")
    width_per_group: Count = Field(64, alias="MODEL.RESNETS.WIDTH_PER_GROUP")
    stem_channels: Count = Field(64, alias="MODEL.RESNETS.STEM_OUT_CHANNELS")
    res2_channels: Count = Field(256, alias="MODEL.RESNETS.RES2_OUT_CHANNELS")
    stride_in_1x1: bool = Field(True, alias="MODEL.RESNETS.STRIDE_IN_1X1")
    body_norm: _Norm = Field("frozen", alias="MODEL.RESNETS.NORM")
    dilation: Literal[1] = Field(1, alias="MODEL.RESNETS.RES5_DILATION")
    deformable: _Flags = Field((), alias="MODEL.RESNETS.DEFORM_ON_PER_STAGE")
    modulated: bool = Field(False, alias="MODEL.RESNETS.DEFORM_MODULATED")
    deformable_groups: Count = Field(1, alias="MODEL.RESNETS.DEFORM_NUM_GROUPS")
    radix: Count = Field(1, alias="MODEL.RESNETS.RADIX")
    bottleneck_width: Count = Field(64, alias="MODEL.RESNETS.BOTTLENECK_WIDTH")
    deep_stem: bool = Field(False, alias="MODEL.RESNETS.DEEP_STEM")
    avd: bool = Field(False, alias="MODEL.RESNETS.AVD")
    avg_down: bool = Field(False, alias="MODEL.RESNETS.AVG_DOWN")

    stages: _Stages = Field(alias="MODEL.FPN.IN_FEATURES")
    fpn_channels: Count = Field(256, alias="MODEL.FPN.OUT_CHANNELS")
    fpn_norm: _Norm = Field("none", alias="MODEL.FPN.NORM")
    fuse: Literal["sum", "avg"] = Field("sum", alias="MODEL.FPN.FUSE_TYPE")

    anchor_generator: Literal["DefaultAnchorGenerator"] = Field(
        "DefaultAnchorGenerator", alias="MODEL.ANCHOR_GENERATOR.NAME"
    )
    sizes: _Lists = Field(((32.0, 64.0, 128.0, 256.0, 512.0),), alias="MODEL.ANCHOR_GENERATOR.SIZES")
    aspect_ratios: _Lists = Field(((0.5, 1.0, 2.0),), alias="MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
    offset: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, alias="MODEL.ANCHOR_GENERATOR.OFFSET")

    proposal_generator: Literal["RPN"] = Field("RPN", alias="MODEL.PROPOSAL_GENERATOR.NAME")
    min_size: Annotated[float, Field(ge=0)] = Field(0.0, alias="MODEL.PROPOSAL_GENERATOR.MIN_SIZE")
    rpn_head: Literal["StandardRPNHead"] = Field("StandardRPNHead", alias="MODEL.RPN.HEAD_NAME")
    rpn_levels: _Levels = Field(alias="MODEL.RPN.IN_FEATURES")
    rpn_channels: Annotated[tuple[Count | Literal[-1], ...], Field(min_length=1)] = Field(
        (-1,), alias="MODEL.RPN.CONV_DIMS"
    )
    rpn_weights: _Weights = Field((1.0, 1.0, 1.0, 1.0), alias="MODEL.RPN.BBOX_REG_WEIGHTS")
    pre_nms_top_n: Count = Field(6000, alias="MODEL.RPN.PRE_NMS_TOPK_TEST")
    post_nms_top_n: Count = Field(1000, alias="MODEL.RPN.POST_NMS_TOPK_TEST")
    rpn_nms: Fraction = Field(0.7, alias="MODEL.RPN.NMS_THRESH")

    roi_heads: Literal["StandardROIHeads", "CascadeROIHeads"] = Field(alias="MODEL.ROI_HEADS.NAME")
    roi_levels: _Levels = Field(alias="MODEL.ROI_HEADS.IN_FEATURES")
    classes: Count | None = Field(None, alias="MODEL.ROI_HEADS.NUM_CLASSES")
    score: Fraction = Field(0.05, alias="MODEL.ROI_HEADS.SCORE_THRESH_TEST")
    nms: Fraction = Field(0.5, alias="MODEL.ROI_HEADS.NMS_THRESH_TEST")
    per_image: Annotated[int, AfterValidator(_limit)] = Field(100, alias="TEST.DETECTIONS_PER_IMAGE")
    tta: Literal[False] = Field(False, alias="TEST.AUG.ENABLED")

    box_head: Literal["FastRCNNConvFCHead"] = Field(alias="MODEL.ROI_BOX_HEAD.NAME")
    box_size: Count = Field(14, alias="MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION")
    box_sampling: _Zero = Field(0, alias="MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO")
    box_pooler: _Pooler = Field("ROIAlignV2", alias="MODEL.ROI_BOX_HEAD.POOLER_TYPE")
    box_fcs: _Layers = Field(0, alias="MODEL.ROI_BOX_HEAD.NUM_FC")
    box_fc_channels: Count = Field(1024, alias="MODEL.ROI_BOX_HEAD.FC_DIM")
    box_convs: _Layers = Field(0, alias="MODEL.ROI_BOX_HEAD.NUM_CONV")
    box_conv_channels: Count = Field(256, alias="MODEL.ROI_BOX_HEAD.CONV_DIM")
    box_norm: _Norm = Field("none", alias="MODEL.ROI_BOX_HEAD.NORM")
    box_agnostic: bool = Field(False, alias="MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")
    box_weights: _Weights = Field((10.0, 10.0, 5.0, 5.0), alias="MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")
    sigmoid: bool = Field(False, alias="MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE")
    cascade_weights: tuple[_Weights, ...] = Field(
        ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        alias="MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS",
    )

    mask_head: Literal["MaskRCNNConvUpsampleHead"] = Field(
        "MaskRCNNConvUpsampleHead", alias="MODEL.ROI_MASK_HEAD.NAME"
    )
    mask_size: Count = Field(14, alias="MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION")
    mask_sampling: _Zero = Field(0, alias="MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO")
    mask_pooler: _Pooler = Field("ROIAlignV2", alias="MODEL.ROI_MASK_HEAD.POOLER_TYPE")
    mask_convs: _Layers = Field(0, alias="MODEL.ROI_MASK_HEAD.NUM_CONV")
    mask_channels: Count = Field(256, alias="MODEL.ROI_MASK_HEAD.CONV_DIM")
    mask_norm: _Norm = Field("none", alias="MODEL.ROI_MASK_HEAD.NORM")
    mask_agnostic: bool = Field(False, alias="MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK")

    @field_validator("deep_stem", "avd", "avg_down")
    @classmethod
    def _goes_with_radix(cls, value: bool, info: ValidationInfo) -> bool:
        """With a radix over 1 the forks do all three whatever the config says, else nothing here does."""
        if value and info.data.get("radix") == 1:
            raise ValueError("expected False where RADIX is 1")
        return value

    @field_validator("bottleneck_width")
    @classmethod
    def _is_whole(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("radix", 1) > 1 and info.data.get("width_per_group", 64) * value % 64:
            raise ValueError("expected 64 to divide its product with WIDTH_PER_GROUP")
        return value

    @property
    def width(self) -> int:
        """Channels of a group in a block of the first stage."""
        return self.width_per_group * self.bottleneck_width // 64 if self.radix > 1 else self.width_per_group


_OF_FORKS = {
    f"MODEL.RESNETS.{name}" for name in ("RADIX", "BOTTLENECK_WIDTH", "DEEP_STEM", "AVD", "AVG_DOWN")
}

SELDOM = {
    *("MODEL.ANCHOR_GENERATOR.OFFSET", "MODEL.RPN.CONV_DIMS", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"),
    *_OF_FORKS,
}
"""Keys that not every version of Detectron2 has."""

READ = {str(field.alias) for field in Keys.model_fields.values()}

# What Detectron2's configs/Base-RCNN-FPN.yaml, on which all its FPN networks stand, says at test time.
BASE_RCNN_FPN: dict[str, Any] = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
RESNEST: dict[str, Any] = {
    "MODEL.RESNETS.RADIX": 2,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    **dict.fromkeys(("MODEL.RESNETS.DEEP_STEM", "MODEL.RESNETS.AVD", "MODEL.RESNETS.AVG_DOWN"), True),
}
"""What ResNeSt's add-on, `add_resnest_config()`, says otherwise than `get_cfg()`."""

WITHOUT_DEFAULT = {str(f.alias) for f in Keys.model_fields.values() if f.is_required()}
"""Keys whose `get_cfg()` default fits no pyramid: a config that says them all stands by itself."""

# Keys of MODEL and TEST that say nothing about a trained network at test time.
IGNORED = {
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.OUT_FEATURES"),
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    *(
        f"MODEL.RPN.{name}"
        for name in (
            *("BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION", "IOU_THRESHOLDS", "IOU_LABELS"),
            *("BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "LOSS_WEIGHT", "SMOOTH_L1_BETA"),
            *("BOUNDARY_THRESH", "PRE_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TRAIN"),
        )
    ),
    *(
        f"MODEL.ROI_HEADS.{name}"
        for name in (
            *("BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION", "IOU_THRESHOLDS", "IOU_LABELS"),
            "PROPOSAL_APPEND_GT",
        )
    ),
    *(
        f"MODEL.ROI_BOX_HEAD.{name}"
        for name in (
            *("BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "SMOOTH_L1_BETA", "TRAIN_ON_PRED_BOXES"),
            *("USE_FED_LOSS", "FED_LOSS_FREQ_WEIGHT_POWER", "FED_LOSS_NUM_CLASSES"),
        )
    ),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
    *("TEST.EXPECTED_RESULTS", "TEST.EVAL_PERIOD", "TEST.KEYPOINT_OKS_SIGMAS"),
}
IGNORED_SECTIONS = (
    *("MODEL.RETINANET.", "MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN.", "MODEL.ROI_KEYPOINT_HEAD."),
    *("TEST.AUG.", "TEST.PRECISE_BN."),
)
