"""Networks and checkpoints as their authors make them, and what the authors' own forward pass sees.

Nothing here uses the package but its value types: models are plain torchvision, weights are random
and calibrated so that a network finds many cells with spread scores and every statistic matters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from places import SAMPLES
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from torchvision.transforms.functional import normalize

from sartorius_infer.types import UInt8

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RATIOS = (0.5, 1.0, 2.0)

Transform = Callable[[UInt8], Tensor]
NormLayer = Callable[[int], nn.Module]
State = dict[str, Tensor]


# Images, and what the authors' data sets make of them.


def crop(size_hw: tuple[int, int], sample: int = 0) -> UInt8:
    """The middle of a sample image, gray."""
    path = sorted(SAMPLES.glob("*.tif"))[sample]
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    y, x = ((whole - part) // 2 for whole, part in zip(image.shape, size_hw, strict=True))
    return np.ascontiguousarray(image[y : y + size_hw[0], x : x + size_hw[1]], np.uint8)


def floats_255(pixels: UInt8) -> Tensor:
    """Float (3, H, W) from 0 to 255."""
    return torch.from_numpy(np.stack([pixels] * 3).astype(np.float32))


def floats_1(pixels: UInt8) -> Tensor:
    """Float (3, H, W) from 0 to 1, as `to_tensor` makes them."""
    return floats_255(pixels) / 255


def imagenet_floats(pixels: UInt8) -> Tensor:
    """Normalised in the data set."""
    return normalize(floats_1(pixels), *IMAGENET)


def resized_imagenet_floats(pixels: UInt8) -> Tensor:
    """Resized to 512 x 512 and normalised in the data set."""
    return imagenet_floats(np.asarray(cv2.resize(pixels, (512, 512)), np.uint8))


# What the authors see.


@dataclass(frozen=True)
class Reference:
    """The author's detections: boxes in image pixels, and masks (N, 1, H, W) on their own canvas."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    canvas_boxes: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def canvas_hw(self) -> tuple[int, int]:
        return self.masks.shape[-2], self.masks.shape[-1]


@torch.inference_mode()
def author_forward(model: MaskRCNN, images: Sequence[UInt8], dataset: Transform) -> list[Reference]:
    """`model(images)` on what the data set makes of them; boxes of resized images scaled back."""
    inputs = [dataset(pixels) for pixels in images]
    references = []
    for pixels, image, seen in zip(images, inputs, model.eval()(inputs), strict=True):
        back = torch.tensor([pixels.shape[1] / image.shape[2], pixels.shape[0] / image.shape[1]]).repeat(2)
        boxes = seen["boxes"]
        references.append(Reference(boxes * back, seen["scores"], seen["labels"], seen["masks"], boxes))
    return references


# Random weights that matter.

SPREADS = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.cls_score": 1.5,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
}
GROWTH = 1.0
"""Added to the logarithm of the proposals' sides, so that many overlap and few are left."""


@torch.no_grad()
def calibrate(model: MaskRCNN, image: Tensor, background: float, seed: int = 0) -> MaskRCNN:
    """Set every norm and head layer by what it sees in one forward pass, and shuffle by `seed`.

    Running variances lie between 1e-5 and 1e-2, so that an epsilon of 0, 1e-5 or 1e-3 is another
    network; outputs of each channel of pyramid and heads get mean 0 and the spread asked for.
    """
    draw = torch.Generator().manual_seed(seed)
    seen: set[nn.Module] = set()

    def normal(size: int) -> Tensor:
        return torch.randn(size, generator=draw)

    def settle_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm in seen:
            return
        seen.add(norm)
        weight, bias = norm.weight, norm.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        weight.copy_(1 + 0.2 * normal(len(weight)))
        bias.copy_(0.3 * normal(len(bias)))
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
            spread = variance.sqrt().clamp(min=1e-4)
            pretended = 10 ** (-5 + 3 * torch.rand(len(weight), generator=draw))
            norm.running_mean.copy_(mean + 0.3 * spread * normal(len(mean)))
            norm.running_var.copy_(pretended)
            weight.mul_((pretended + norm.eps).sqrt() / spread)

    def standardise(spread: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if layer in seen:
                return None
            seen.add(layer)
            channel = min(1, out.dim() - 1)
            others = [axis for axis in range(out.dim()) if axis != channel]
            variance, mean = torch.var_mean(out, others)
            scale = spread / variance.sqrt().clamp(min=1e-4)
            weight, bias = layer.weight, layer.bias
            assert isinstance(weight, Tensor)
            assert isinstance(bias, Tensor)
            inner = (
                (1, -1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (-1, *[1] * (weight.dim() - 1))
            )
            weight.mul_(scale.view(inner))
            bias.copy_((bias - mean) * scale)
            shape = [-1 if axis == channel else 1 for axis in range(out.dim())]
            return (out - mean.view(shape)) * scale.view(shape)

        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            hooks.append(module.register_forward_pre_hook(settle_norm))
        elif (
            isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            and not name.startswith("backbone.body")
            and module.bias is not None
        ):
            hooks.append(module.register_forward_hook(standardise(SPREADS.get(name, 1.0))))
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            parameter.copy_(0.1 + 0.3 * torch.rand(parameter.shape, generator=draw))
        elif name.endswith("relative_position_bias_table"):
            parameter.mul_(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.transform, "min_size", (min(*model.transform.min_size, 256),))
        patch.setitem(model.rpn._post_nms_top_n, "testing", 200)
        patch.setattr(model.roi_heads, "detections_per_img", 20)
        model.eval()([image])
    model.roi_heads.box_predictor.cls_score.bias[0] += background
    model.rpn.head.bbox_pred.bias.view(-1, 4)[:, 2:] += GROWTH
    for hook in hooks:
        hook.remove()
    return model


# The parts that authors put together.


def body_pyramid(
    features: nn.Module,
    stages: Mapping[str, int],
    channels: int = 256,
    norm_layer: NormLayer | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    kind: type[BackboneWithFPN] = BackboneWithFPN,
) -> BackboneWithFPN:
    """Children of `features` by name, with their channels, under a feature pyramid."""
    return kind(
        features,
        {name: str(level) for level, name in enumerate(stages)},
        list(stages.values()),
        channels,
        extra_blocks or LastLevelMaxPool(),
        norm_layer,
    )


def resnet_pyramid(
    body: resnet.ResNet,
    stages: Iterable[int] = (1, 2, 3, 4),
    channels: int = 256,
    norm_layer: NormLayer | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
) -> BackboneWithFPN:
    """A ResNet of any kind, stages from 1, under a pyramid."""
    first = body.inplanes // 8
    named = {f"layer{stage}": first << (stage - 1) for stage in stages}
    return body_pyramid(body, named, channels, norm_layer, extra_blocks)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with the groups that its paper has."""
    return nn.GroupNorm(32, channels)


class NoExtra(ExtraFPNBlock):
    """Leaves the pyramid without a pooled level."""

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        return results, names


class ChannelsLast(BackboneWithFPN):
    """What Swin's users write: its stages put out (B, H, W, C)."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {name: map_.permute(0, 3, 1, 2).contiguous() for name, map_ in self.body(x).items()}
        return dict(self.fpn(maps))


def anchors(sizes: Sequence[Sequence[float]], ratios: Sequence[float] = RATIOS) -> AnchorGenerator:
    """These sizes for each level, and all ratios for every one."""
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))


def tiny(
    backbone: BackboneWithFPN | None = None,
    *,
    foreground: int = 3,
    generator: AnchorGenerator | None = None,
    rpn_depth: int = 1,
    box_pool: int = 7,
    box_head: nn.Module | None = None,
    mask_channels: Sequence[int] = (32, 32, 32, 32),
    mask_norm: NormLayer | None = None,
    mask_dilation: int = 1,
    hidden: int = 32,
    min_size: int = 128,
    **settings: Any,
) -> MaskRCNN:
    """A small Mask R-CNN, on ResNet-18 unless told, that runs in a fraction of a second."""
    backbone = backbone or resnet_pyramid(resnet.resnet18(), channels=64)
    channels = backbone.out_channels
    generator = generator or anchors([[side] for side in (32, 64, 128, 256, 512)])
    return MaskRCNN(
        backbone,
        min_size=min_size,
        max_size=1333,
        rpn_anchor_generator=generator,
        rpn_head=RPNHead(channels, generator.num_anchors_per_location()[0], rpn_depth),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], box_pool, 2),
        box_head=box_head or TwoMLPHead(channels * box_pool**2, 64),
        box_predictor=FastRCNNPredictor(64, foreground + 1),
        mask_head=MaskRCNNHeads(channels, mask_channels, mask_dilation, mask_norm),
        mask_predictor=MaskRCNNPredictor(mask_channels[-1], hidden, foreground + 1),
        **settings,
    )


def conv_box_head(norm_layer: NormLayer, channels: int = 64) -> FastRCNNConvFCHead:
    """Two convolutions and one linear layer."""
    return FastRCNNConvFCHead((channels, 7, 7), [32, 32], [64], norm_layer)


# What the authors keep.


def training_dict(model: MaskRCNN, **more: Any) -> dict[str, Any]:
    """The weights among a training run's other state, numpy scalars included."""
    part = list(model.roi_heads.box_predictor.parameters())
    optimizer = torch.optim.SGD(part, lr=0.005, momentum=0.9)
    for parameter in part:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    return {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "epoch": 7,
        "loss": np.float64(0.731),
        **more,
    }


def old_names(state: Mapping[str, Tensor]) -> State:
    """The names that torchvision used before 0.13."""
    renamed = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if key.startswith("backbone.fpn."):
            parts = [*parts[:4], parts[-1]]
        elif key.startswith("rpn.head.conv."):
            parts = [*parts[:3], parts[-1]]
        elif key.startswith("roi_heads.mask_head."):
            parts = [*parts[:2], f"mask_fcn{int(parts[2]) + 1}", parts[-1]]
        renamed[".".join(parts)] = tensor
    return renamed


def rounded(model: MaskRCNN, dtype: torch.dtype) -> State:
    """The weights in fewer bits; the model takes them back, as its author's next run would."""
    state = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    return state


def prefixed(state: Mapping[str, Tensor], *prefixes: str) -> State:
    """The state under each of the prefixes."""
    return {prefix + key: tensor for prefix in prefixes for key, tensor in state.items()}


@dataclass(frozen=True)
class Told:
    """What a manifest says of one network."""

    classes: tuple[str, ...]
    normalise: Sequence[Any] = ("imagenet",)
    resize: Mapping[str, Any] | None = field(
        default_factory=lambda: {"shortest_edge": 128, "longest_edge": 1333}
    )
    resize_before: Mapping[str, Any] | None = None
    input_range: str = "0-1"
    network: Mapping[str, Any] | None = None
    architecture: str | None = None

    def entry(self, file: Path) -> dict[str, Any]:
        """As an entry of a manifest's `models`."""
        return {
            "name": file.stem,
            "file": file.name,
            "architecture": self.architecture,
            "classes": self.classes,
            "preprocessing": {
                "resize_before": self.resize_before,
                "input_range": self.input_range,
                "normalise": self.normalise,
                "resize": self.resize,
            },
            "network": self.network,
        }


def write_manifest(path: Path, entries: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """A manifest of these entries, with the first one's classes unless told; rules discard nothing."""
    classes = more.get("classes", entries[0]["classes"])
    rules = {"per_class": {name: {"score": 0.0} for name in classes}, "paste": "torchvision"}
    content = {"version": 1, "classes": classes, "models": entries, "rules": rules, **more}
    path.write_text(json.dumps(content))
    return path
