"""The keys of an MMDetection config's `test_cfg`: limits of proposals and detections, and their suppression.

Defaults are those of MMDetection's and MMCV's own functions. Old names of 2.x stand beside today's.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from sartorius_infer.manifest.settings import Count, Fraction, Positive
from sartorius_infer.networks.mmdet.config_faults import Keys


class NmsKeys(Keys):
    """`nms`."""

    type: Literal["nms", "soft_nms"] = "nms"
    iou_threshold: Fraction | None = Field(None, validation_alias=AliasChoices("iou_threshold", "iou_thr"))
    class_agnostic: bool = False
    split_thr: Count = 10000
    offset: Literal[0] = 0
    score_threshold: Literal[0] = 0
    max_num: Literal[-1] = -1
    sigma: Positive = 0.5
    min_score: Fraction = 1e-3
    method: Literal["linear", "gaussian", "naive"] = "linear"

    @model_validator(mode="after")
    def _threshold(self) -> NmsKeys:
        if self.iou_threshold is None and self.type == "nms":
            raise ValueError("expected an iou_threshold")
        return self

    def settings(self) -> dict[str, Any]:
        """As `MmdetNms` has them; 0.3 is MMCV's own threshold of soft_nms."""
        return {
            "kind": self.type,
            "iou": 0.3 if self.iou_threshold is None else self.iou_threshold,
            "class_agnostic": self.class_agnostic,
            "split": self.split_thr,
            "method": self.method,
            "sigma": self.sigma,
            "min_score": self.min_score,
        }


class RpnTestKeys(Keys):
    """`test_cfg.rpn`; MMDetection before 2.5 had `nms_thr`, `max_num` and `nms_post`."""

    nms_pre: int = -1
    max_per_img: Count | None = None
    nms: NmsKeys | None = None
    min_bbox_size: float = -1.0
    nms_thr: Fraction | None = None
    max_num: Count | None = None
    nms_post: Count | None = None
    nms_across_levels: Literal[False] = False

    @model_validator(mode="after")
    def _limits(self) -> RpnTestKeys:
        if self.nms is None and self.nms_thr is None:
            raise ValueError("expected nms, or nms_thr as in older versions")
        old = {n for n in (self.max_num, self.nms_post) if n is not None}
        if self.max_per_img is None and len(old) != 1:
            raise ValueError(
                "expected max_per_img, or max_num and nms_post of one value as in older versions"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """As `MmdetRpn` has them."""
        return {
            "pre_nms": self.nms_pre if self.nms_pre > 0 else None,
            "nms": {"iou": self.nms_thr} if self.nms is None else self.nms.settings(),
            "per_image": self.max_per_img or self.max_num or self.nms_post,
            "min_size": self.min_bbox_size,
        }


class RcnnTestKeys(Keys):
    """`test_cfg.rcnn`; the threshold of masks is one of the manifest's rules."""

    training: ClassVar = frozenset({"mask_thr_binary"})

    score_thr: Fraction
    nms: NmsKeys
    max_per_img: int = 100

    def settings(self) -> dict[str, Any]:
        """As `MmdetLimits` has them."""
        most = self.max_per_img if self.max_per_img > 0 else None
        return {"score": self.score_thr, "nms": self.nms.settings(), "per_image": most}
