"""The keys of an MMDetection config's pyramid and heads, as `config` reads them.

Defaults are those of MMDetection's own classes. Old names of 2.x stand beside today's.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.manifest.settings import Count, Positive
from sartorius_infer.networks.mmdet.config_faults import Keys

Zero = Annotated[int, Field(ge=0)]
Four = tuple[float, float, float, float]
Off = Literal[None]


def _square(value: Any) -> Any:
    """A side, or two of the same length."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]
    return value[0] if pair else value


def _each(value: Any) -> Any:
    """One of something, or one for each stage."""
    return value if isinstance(value, (list, tuple)) else [value]


def _squares(value: Any) -> Any:
    return [_square(each) for each in value] if isinstance(value, (list, tuple)) else value


Side = Annotated[Count, BeforeValidator(_square)]
Strides = Annotated[tuple[Count, ...], Field(min_length=1), BeforeValidator(_squares)]


class NormKeys(Keys):
    """A `norm_cfg`; whether a norm was trained does not matter any more."""

    training: ClassVar = frozenset({"requires_grad", "momentum"})

    type: Literal["BN", "BN2d", "SyncBN", "MMSyncBN", "NaiveSyncBN", "GN"]
    eps: Annotated[float, Field(ge=0)] | None = None
    num_groups: Count = 32

    def settings(self) -> Norm:
        """The norm."""
        if self.type == "GN":
            return Norm(kind="group", eps=self.eps, groups=self.num_groups)
        return Norm(kind="batch", eps=self.eps)


def norm_of(keys: NormKeys | None) -> Norm:
    """The norm of a `norm_cfg`, which may be None."""
    return Norm() if keys is None else keys.settings()


class UpsampleKeys(Keys):
    """How the pyramid's maps become larger."""

    mode: Literal["nearest", "bilinear"] = "nearest"
    scale_factor: Literal[2] | None = None
    align_corners: Literal[False] | None = None


class FpnKeys(Keys):
    """`model.neck`."""

    type: Literal["FPN"]
    in_channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    out_channels: Count
    num_outs: Count
    start_level: Zero = 0
    end_level: int = -1
    add_extra_convs: Literal["on_input", "on_lateral", "on_output"] | bool = False
    extra_convs_on_inputs: bool = True
    relu_before_extra_convs: bool = False
    no_norm_on_lateral: bool = False
    conv_cfg: Off = None
    norm_cfg: NormKeys | None = None
    act_cfg: Off = None
    upsample_cfg: UpsampleKeys = UpsampleKeys()

    def settings(self) -> dict[str, Any]:
        """As `MmdetFpn` has them."""
        extra: str | bool = self.add_extra_convs or "pool"
        if extra is True:
            extra = "on_input" if self.extra_convs_on_inputs else "on_output"
        return {
            "channels": self.out_channels,
            "norm": norm_of(self.norm_cfg),
            "lateral_norm": not self.no_norm_on_lateral,
            "first": self.start_level,
            "last": None if self.end_level in (-1, len(self.in_channels) - 1) else self.end_level,
            "levels": self.num_outs,
            "extra": extra,
            "relu_before_extra": self.relu_before_extra_convs,
            "upsample": self.upsample_cfg.mode,
        }


class AnchorKeys(Keys):
    """`anchor_generator`."""

    training: ClassVar = frozenset({"use_box_type"})

    type: Literal["AnchorGenerator"]
    strides: Strides
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1)]
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    base_sizes: tuple[Positive, ...] | None = None
    scale_major: bool = True
    octave_base_scale: Positive | None = None
    scales_per_octave: Annotated[int, Field(ge=1, le=100)] | None = None
    centers: Off = None
    center_offset: float = 0.0

    @model_validator(mode="after")
    def _one_rule(self) -> AnchorKeys:
        octaves = self.octave_base_scale is not None and self.scales_per_octave is not None
        if octaves == (self.scales is not None):
            raise ValueError("expected scales, or octave_base_scale and scales_per_octave")
        return self

    def settings(self) -> dict[str, Any]:
        """As `MmdetAnchors` has them."""
        base, steps = self.octave_base_scale or 0.0, self.scales_per_octave or 0
        return {
            "strides": self.strides,
            "scales": self.scales or tuple(2 ** (i / steps) * base for i in range(steps)),
            "ratios": self.ratios,
            "base_sizes": self.base_sizes,
            "center_offset": self.center_offset,
            "scale_major": self.scale_major,
        }


class CoderKeys(Keys):
    """`bbox_coder`."""

    training: ClassVar = frozenset({"ctr_clamp", "use_box_type"})

    type: Literal["DeltaXYWHBBoxCoder"] = "DeltaXYWHBBoxCoder"
    target_means: Four = (0.0, 0.0, 0.0, 0.0)
    target_stds: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    clip_border: bool = True
    add_ctr_clamp: Literal[False] = False

    def settings(self) -> dict[str, Any]:
        """As `MmdetCoder` has them."""
        return {"means": self.target_means, "stds": self.target_stds, "clip": self.clip_border}


class LossKeys(Keys):
    """`loss_cls`, which says what scores are: any loss, but not one with classes of its own."""

    model_config = ConfigDict(extra="ignore")

    type: str = "CrossEntropyLoss"
    use_sigmoid: bool = False

    @model_validator(mode="after")
    def _plain(self) -> LossKeys:
        if self.type == "SeesawLoss":
            raise ValueError("expected a loss without scores of its own, found SeesawLoss")
        return self


class RpnKeys(Keys):
    """`model.rpn_head`."""

    training: ClassVar = frozenset({"loss_bbox", "reg_decoded_bbox", "test_cfg"})

    type: Literal["RPNHead"]
    in_channels: Count
    feat_channels: Count = 256
    num_convs: Count = 1
    num_classes: Literal[1] = 1
    anchor_generator: AnchorKeys
    bbox_coder: CoderKeys = CoderKeys()
    loss_cls: LossKeys = LossKeys(use_sigmoid=True)

    def settings(self) -> dict[str, Any]:
        """As `MmdetRpn` has them, but for the test's limits."""
        return {
            "channels": self.feat_channels,
            "convs": self.num_convs,
            "coder": self.bbox_coder.settings(),
            "scores": "sigmoid" if self.loss_cls.use_sigmoid else "softmax",
        }


class RoiLayerKeys(Keys):
    """`roi_layer`."""

    training: ClassVar = frozenset({"use_torchvision"})

    type: Literal["RoIAlign"]
    output_size: Side = Field(validation_alias=AliasChoices("output_size", "out_size"))
    sampling_ratio: Zero = Field(0, validation_alias=AliasChoices("sampling_ratio", "sample_num"))
    pool_mode: Literal["avg"] = "avg"
    aligned: bool = True


class ExtractorKeys(Keys):
    """`bbox_roi_extractor`, `mask_roi_extractor`."""

    type: Literal["SingleRoIExtractor"]
    roi_layer: RoiLayerKeys
    out_channels: Count
    featmap_strides: Strides
    finest_scale: Positive = 56.0

    def settings(self) -> dict[str, Any]:
        """As `MmdetPool` has them."""
        return {
            "size": self.roi_layer.output_size,
            "strides": self.featmap_strides,
            "finest": self.finest_scale,
            "sampling_ratio": self.roi_layer.sampling_ratio,
            "aligned": self.roi_layer.aligned,
        }


class _Linear(Keys):
    type: Literal["Linear"] = "Linear"


_SHARED = {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1)}


class BoxHeadKeys(Keys):
    """`bbox_head`, one of a cascade's."""

    training: ClassVar = frozenset({"loss_bbox", "reg_decoded_bbox"})

    type: Literal["Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead"]
    in_channels: Count = 256
    conv_out_channels: Count = 256
    fc_out_channels: Count = 1024
    roi_feat_size: Side = 7
    num_classes: Count = 80
    num_shared_convs: Zero = 0
    num_shared_fcs: Zero = 0
    num_cls_convs: Zero = 0
    num_cls_fcs: Zero = 0
    num_reg_convs: Zero = 0
    num_reg_fcs: Zero = 0
    with_avg_pool: bool = False
    with_cls: Literal[True] = True
    with_reg: Literal[True] = True
    reg_class_agnostic: bool = False
    conv_cfg: Off = None
    norm_cfg: NormKeys | None = None
    bbox_coder: CoderKeys = CoderKeys(target_stds=(0.1, 0.1, 0.2, 0.2))
    cls_predictor_cfg: _Linear = _Linear()
    reg_predictor_cfg: _Linear = _Linear()
    loss_cls: LossKeys = LossKeys()

    def settings(self) -> dict[str, Any]:
        """As `MmdetBoxHead` has them, but for the pool."""
        convs, fcs = _SHARED.get(self.type, (self.num_shared_convs, self.num_shared_fcs))
        return {
            "shared_convs": convs,
            "shared_fcs": fcs,
            "class_convs": self.num_cls_convs,
            "class_fcs": self.num_cls_fcs,
            "box_convs": self.num_reg_convs,
            "box_fcs": self.num_reg_fcs,
            "conv_channels": self.conv_out_channels,
            "fc_channels": self.fc_out_channels,
            "norm": norm_of(self.norm_cfg),
            "average_pool": self.with_avg_pool,
            "class_agnostic": self.reg_class_agnostic,
            "coder": self.bbox_coder.settings(),
        }


class _MaskUpsample(Keys):
    type: Literal["deconv", "nearest", "bilinear"] | None = "deconv"
    scale_factor: Count = 2


class _Conv(Keys):
    type: Literal["Conv"] = "Conv"


class MaskHeadKeys(Keys):
    """`mask_head`, one of a cascade's."""

    training: ClassVar = frozenset({"loss_mask"})

    type: Literal["FCNMaskHead", "HTCMaskHead"]
    num_convs: Zero = 4
    roi_feat_size: Side = 14
    in_channels: Count = 256
    conv_kernel_size: Literal[1, 3, 5, 7] = 3
    conv_out_channels: Count = 256
    num_classes: Count = 80
    class_agnostic: bool = False
    upsample_cfg: _MaskUpsample = _MaskUpsample()
    conv_cfg: Off = None
    norm_cfg: NormKeys | None = None
    predictor_cfg: _Conv = _Conv()
    with_conv_res: bool = True

    def settings(self) -> dict[str, Any]:
        """As `MmdetMaskHead` has them, but for the pool."""
        return {
            "convs": self.num_convs,
            "kernel": self.conv_kernel_size,
            "channels": self.conv_out_channels,
            "norm": norm_of(self.norm_cfg),
            "upsample": self.upsample_cfg.type or "none",
            "factor": self.upsample_cfg.scale_factor,
            "class_agnostic": self.class_agnostic,
            "previous": self.type == "HTCMaskHead" and self.with_conv_res,
        }


class RoiHeadKeys(Keys):
    """`model.roi_head`; a dynamic one differs in training alone."""

    training: ClassVar = frozenset({"stage_loss_weights", "interleaved", "pretrained", "test_cfg"})

    type: Literal["StandardRoIHead", "DynamicRoIHead", "CascadeRoIHead", "HybridTaskCascadeRoIHead"]
    num_stages: Count | None = None
    bbox_roi_extractor: Annotated[tuple[ExtractorKeys, ...], BeforeValidator(_each)]
    bbox_head: Annotated[tuple[BoxHeadKeys, ...], BeforeValidator(_each)]
    mask_roi_extractor: Annotated[tuple[ExtractorKeys, ...], BeforeValidator(_each)] | None = None
    mask_head: Annotated[tuple[MaskHeadKeys, ...], BeforeValidator(_each)]
    mask_info_flow: bool = True
    shared_head: Off = None
    semantic_head: Off = None
    semantic_roi_extractor: Off = None
    semantic_fusion: Any = None


class ModelKeys(Keys):
    """`model` but for its body, inputs and limits, which are read by themselves."""

    training: ClassVar = frozenset(
        {"pretrained", "backbone", "test_cfg", "data_preprocessor", "data_sampler", "use_syncbn"}
    )

    type: Literal["MaskRCNN", "CascadeRCNN", "HybridTaskCascade", "FasterRCNN", "TwoStageDetector"]
    neck: FpnKeys
    rpn_head: RpnKeys
    roi_head: RoiHeadKeys
