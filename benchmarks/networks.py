"""The networks that are timed, each as torchvision's own model and as a manifest for the kit.

Random R50s have the work of trained ones: as many boxes, scores and masks as dense images give. The
default checkpoint stands for a trained network, whose cells agree between views.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.ensemble.weights import default_manifest
from sartorius_infer.manifest.manifest import MANIFEST_NAME, load_manifest
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.networks.torchvision.rcnn import TorchvisionNetwork, build_network

SCORE = 0.5
"""The random networks' threshold; as many cells as were asked for reach it."""

CLASSES = ("shsy5y", "astro", "cort")
LEAST_AREA = 30


@dataclass(frozen=True, eq=False)
class Subject:
    """A network as the opponents run it, and a manifest of it for the kit with the opponents' rules."""

    model: Any
    manifest: Path
    floors: tuple[float, ...]


@torch.no_grad()
def random_r50(image: Tensor, cells: int, folder: Path, seed: int = 0) -> Subject:
    """An R50-FPN that finds about `cells` cells in an image, uint8 (1, H, W), and fainter boxes up to 700.

    Norms are set to what the image gives, so that signals neither fade nor explode; then the background's
    bias is moved until enough boxes reach the threshold. Masks fill their boxes.
    """
    torch.manual_seed(seed)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    model = MaskRCNN(body, num_classes=len(CLASSES) + 1, box_detections_per_img=700).eval()
    network = TorchvisionNetwork(model, Preprocessing(), torch.float32)
    predictor, mask_logits = model.roi_heads.box_predictor, model.roi_heads.mask_predictor.mask_fcn_logits
    nn.init.normal_(predictor.cls_score.weight, std=0.02)
    nn.init.normal_(predictor.bbox_pred.weight, std=1e-3)
    nn.init.normal_(mask_logits.weight, std=1e-4)
    mask_logits.bias.fill_(1.0)
    _settle_norms(model, network, image)
    features = network.features([image])
    proposals = network.propose(features)
    low, high = -20.0, 20.0
    for _ in range(12):  # more background, fewer cells
        predictor.cls_score.bias.copy_(torch.tensor([(low + high) / 2, 0.0, -6.0, -6.0]))
        found = int((network.detect(features, proposals)[0].scores >= SCORE).sum())
        low, high = ((low + high) / 2, high) if found > cells else (low, (low + high) / 2)
    save_file(model.state_dict(), folder / "r50.safetensors")
    entry = {
        "name": "r50",
        "file": "r50.safetensors",
        "architecture": "resnet50_fpn",
        "network": {
            "detection": {"score": 0.05, "nms": 0.5, "per_image": 700},
            "body_norm": {"kind": "frozen", "eps": 1e-5},
        },
    }
    floors = (SCORE,) * len(CLASSES)
    return Subject(model, _write(folder, [entry], floors), floors)


def _settle_norms(model: nn.Module, network: TorchvisionNetwork, image: Tensor) -> None:
    """Give each frozen norm the statistics of what comes to it, in one pass."""

    def settle(norm: Any, inputs: tuple[Tensor]) -> None:
        values = inputs[0]
        norm.running_mean.copy_(values.mean(dim=(0, 2, 3)))
        norm.running_var.copy_(values.var(dim=(0, 2, 3)).clamp(min=1e-6))

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(settle) for norm in norms]
    network.features([image])
    for handle in handles:
        handle.remove()


def default_checkpoint(folder: Path, copies: int = 1, views: Sequence[str] = ("identity",)) -> Subject:
    """The checkpoint that comes with the kit, `copies` times over, under the opponents' rules."""
    return first_of(default_manifest(), folder, copies, views)


def first_of(manifest: Path, folder: Path, copies: int = 1, views: Sequence[str] = ("identity",)) -> Subject:
    """The first network of a manifest, `copies` times over, under the opponents' rules.

    One of torchvision's, of the competition's classes, that normalises gray by means of its own.
    """
    plan = load_manifest(manifest)
    spec = plan.manifest.models[0]
    model = build_network(spec, read_checkpoint(plan.path(spec)).state, torch.float32).model
    settings = spec.preprocessing
    (step,), resize = settings.normalise, settings.resize
    assert resize is not None and step != "imagenet"
    model.transform = GeneralizedRCNNTransform(
        resize.shortest_edge, resize.longest_edge, list(step.mean) * 3, list(step.std) * 3
    ).eval()
    copy = folder / plan.path(spec).name
    copy.write_bytes(plan.path(spec).read_bytes())
    entry = spec.model_dump(mode="json", exclude_unset=True) | {"file": copy.name}
    entries = [entry | {"name": f"member{number}"} for number in range(copies)]
    floors = tuple(plan.manifest.rules.of(name).score for name in CLASSES)
    return Subject(model, _write(folder, entries, floors, views), floors)


def _write(
    folder: Path,
    entries: Sequence[dict[str, Any]],
    floors: Sequence[float],
    views: Sequence[str] = ("identity",),
) -> Path:
    """A manifest with the rules that the opponents have: thresholds, an area, no vote, no rule for edges."""
    per_class = {
        name: {"score": score, "min_area": LEAST_AREA} for name, score in zip(CLASSES, floors, strict=True)
    }
    rules = {
        "per_class": per_class,
        "consensus": "off",
        "overlap_survival": 0.0,
        "edge": {"mode": "keep"},
        "paste": "torchvision",
    }
    content = {"version": 1, "classes": CLASSES, "models": entries, "views": list(views), "rules": rules}
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(content))
    return path
