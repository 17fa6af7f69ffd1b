"""Checkpoints of other networks are refused with what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_runs import small_state as detectron2_state
from small import saved, small_state
from torch import nn
from torchvision import models

from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.errors import CheckpointError
from sartorius_infer.networks.others import what_it_is

detection = models.detection
BARE: dict[str, Any] = {"weights": None, "weights_backbone": None}


def keys(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones(2) for name in names}


OTHERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "torchvision's Faster R-CNN": (
        "a Faster R-CNN: no mask head",
        lambda: detection.fasterrcnn_mobilenet_v3_large_fpn(**BARE).state_dict(),
    ),
    "a Mask R-CNN without its masks": (
        "a Faster R-CNN: no mask head",
        lambda: {key: t for key, t in small_state().items() if "mask" not in key},
    ),
    "Detectron2's Faster R-CNN": (
        "a Faster R-CNN: no mask head",
        lambda: {key: t for key, t in detectron2_state().items() if "mask" not in key},
    ),
    "keypoints": (
        "a Keypoint R-CNN: no mask head",
        lambda: {
            **{key: t for key, t in small_state().items() if "mask" not in key},
            **keys("roi_heads.keypoint_predictor.kps_score_lowres.weight"),
        },
    ),
    "RetinaNet": ("a RetinaNet: no mask head", lambda: detection.retinanet_resnet50_fpn(**BARE).state_dict()),
    "Detectron2's RetinaNet": (
        "a RetinaNet: no mask head",
        lambda: keys("backbone.fpn.w", "head.cls_subnet.0.w"),
    ),
    "FCOS": ("an FCOS", lambda: detection.fcos_resnet50_fpn(**BARE).state_dict()),
    "SSD": ("an SSD", lambda: detection.ssd300_vgg16(**BARE).state_dict()),
    "YOLO": ("a YOLO", lambda: keys("model.0.conv.weight", "model.0.bn.bias", "model.22.dfl.conv.weight")),
    "an older YOLO": ("a YOLO", lambda: keys("model.0.conv.conv.weight", "model.24.m.0.weight")),
    "ResNet": ("an image classifier", lambda: models.resnet18().state_dict()),
    "MobileNet": ("an image classifier", lambda: models.mobilenet_v3_small().state_dict()),
    "ViT": (
        "an image classifier",
        lambda: keys("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "head.weight"),
    ),
    "a body": ("a body without a detector", lambda: keys("layer1.0.conv1.weight", "bn1.weight")),
    "U-Net": (
        "a U-Net",
        lambda: keys("encoder.conv1.weight", "decoder.blocks.0.w", "segmentation_head.0.weight"),
    ),
    "SAM": ("a Segment Anything model", lambda: keys("image_encoder.pos_embed", "mask_decoder.w")),
    "MMDetection": ("an MMDetection detector", lambda: keys("backbone.conv1.weight", "neck.w", "roi_head.w")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_is_refused_with_what_it_is(tmp_path: Path, name: str) -> None:
    expected, state = OTHERS[name]
    for content in (
        state(),
        {"state_dict": {f"net.{key}": t for key, t in state().items()}},
        {"teacher": state()},
    ):
        path = saved(tmp_path / "a.pth", content)
        with pytest.raises(CheckpointError) as caught:
            load_ensemble(path, "cpu")
        said = str(caught.value)
        assert said.startswith(f"{path}: no known Mask R-CNN: expected keys of backbone, rpn and roi_heads, ")
        assert f"found {expected} (" in said
        assert "\n" not in said
        assert len(said) < 700


def test_what_nobody_knows_is_told_by_its_keys() -> None:
    assert what_it_is(keys("b.w", "a.w")) == "a.w, b.w, ..."
    assert what_it_is([]) == ", ..."
    assert len(what_it_is(["x" * 10_000] * 9)) < 400
    assert what_it_is(nn.Linear(2, 2).state_dict()) == "bias, weight, ..."
