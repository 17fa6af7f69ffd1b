"""Random networks with the work of trained ones: as many boxes, scores and masks as dense images have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.opponents import as_tensor

SCORE = 0.5
"""The threshold that the wanted number of cells is to reach."""


@torch.no_grad()
def random_r50(pixels: NDArray[np.uint8], cells: int, seed: int) -> Any:
    """Torchvision's R50-FPN for three classes, eval mode, that finds about `cells` in this image (H, W).

    Norms are set to what the image gives, so that signals neither fade nor explode; then the class
    and mask biases are moved until scores and masks are like a trained network's.
    """
    torch.manual_seed(seed)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    model = MaskRCNN(body, num_classes=4, box_detections_per_img=700).eval()
    image = as_tensor(pixels)
    _settle_norms(model, image)
    predictor = model.roi_heads.box_predictor
    nn.init.normal_(predictor.cls_score.weight, std=0.02)
    low, high = -20.0, 20.0
    for _ in range(12):  # more background, fewer cells
        predictor.cls_score.bias.copy_(torch.tensor([(low + high) / 2, 0.0, -6.0, -6.0]))
        found = int((model([image])[0]["scores"] >= SCORE).sum())
        low, high = ((low + high) / 2, high) if found > cells else (low, (low + high) / 2)
    nn.init.normal_(predictor.bbox_pred.weight, std=1e-3)
    nn.init.normal_(model.roi_heads.mask_predictor.mask_fcn_logits.weight, std=1e-4)
    model.roi_heads.mask_predictor.mask_fcn_logits.bias.fill_(1.0)
    return model


def _settle_norms(model: nn.Module, image: Tensor) -> None:
    """Give each frozen norm the statistics of what comes to it, in one pass."""

    def settle(norm: Any, inputs: tuple[Tensor]) -> None:
        values = inputs[0]
        norm.running_mean.copy_(values.mean(dim=(0, 2, 3)))
        norm.running_var.copy_(values.var(dim=(0, 2, 3)).clamp(min=1e-6))

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(settle) for norm in norms]
    model([image])
    for handle in handles:
        handle.remove()


def save_manifest(folder: Path, models: Sequence[Any], views: Sequence[str] = ("identity",)) -> Path:
    """Write the networks as checkpoints, and a manifest by which the kit runs them as the opponents do."""
    entries = []
    for number, model in enumerate(models):
        torch.save(model.state_dict(), folder / f"r50_{number}.pth")
        detection = {"score": 0.05, "nms": 0.5, "per_image": 700}
        entries.append(
            {
                "name": f"r50_{number}",
                "file": f"r50_{number}.pth",
                "architecture": "resnet50_fpn",
                "network": {"detection": detection, "body_norm": {"kind": "frozen", "eps": 1e-5}},
            }
        )
    classes = ["shsy5y", "astro", "cort"]
    rules = {
        "per_class": {name: {"score": SCORE, "min_area": 30} for name in classes},
        "overlap_survival": 0.0,
    }
    content = {"version": 1, "classes": classes, "models": entries, "views": list(views), "rules": rules}
    path = folder / "weights_manifest.json"
    path.write_text(json.dumps(content))
    return path
