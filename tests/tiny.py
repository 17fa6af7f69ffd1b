"""A tiny real Mask R-CNN, random but busy, as a checkpoint with its manifest, and images for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models.detection import MaskRCNN

from sartorius_infer.manifest.settings import merge
from sartorius_infer.manifest.torchvision import NetworkParts
from sartorius_infer.networks.torchvision.rcnn import build_model

PARTS: dict[str, Any] = {
    "body": "resnet18",
    "fpn": {"channels": 16},
    "anchors": {"sizes": ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))},
    "rpn": {"pre_nms_top_n": 100, "post_nms_top_n": 60},
    "box_head": {"fc_channels": (32, 32)},
    "mask_head": {"conv_channels": (16,), "hidden": 16},
    "detection": {"score": 0.02, "per_image": 40},
}


def tiny_model(seed: int = 0, classes: int = 3) -> MaskRCNN:
    """A network whose random outputs are spread wide enough to detect something everywhere."""
    torch.manual_seed(seed)
    parts = NetworkParts.model_validate(merge(NetworkParts().model_dump(), PARTS))
    model = build_model(parts, classes).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.5)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.normal_(0, 1.0)
        model.rpn.head.cls_logits.weight.normal_(0, 0.5)
    return model


def write_tiny(folder: Path, model: MaskRCNN | None = None, **manifest: Any) -> Path:
    """`tiny.safetensors` and `weights_manifest.json` in `folder`; returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file((model or tiny_model()).state_dict(), folder / "tiny.safetensors")
    network = {key: PARTS[key] for key in ("anchors", "rpn", "detection")}
    entry = {
        "name": "tiny",
        "file": "tiny.safetensors",
        "network": network,
        "preprocessing": {"resize": {"shortest_edge": 96, "longest_edge": 160}},
    }
    content = {"version": 1, "classes": ["a", "b", "c"], "models": [entry], "rules": loose_rules()} | manifest
    path = folder / "weights_manifest.json"
    path.write_text(json.dumps(content))
    return path


def loose_rules(score: float = 0.05) -> dict[str, Any]:
    """Rules under which a random network leaves some cells."""
    return {"per_class": {name: {"score": score, "mask": 0.3} for name in "abc"}, "overlap_survival": 0.1}


def write_image(path: Path, size_hw: tuple[int, int] = (64, 96), seed: int = 0) -> Path:
    """A gray PNG of smooth noise."""
    noise = np.random.default_rng(seed).normal(128, 60, size_hw)
    pixels = np.clip(cv2.GaussianBlur(noise, (7, 7), 2) * 2 - 128, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path
