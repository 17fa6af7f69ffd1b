"""Detectron2 0.6 at test time, slow and plain: its keys, its settings, one image, and no part of the package.

Every step is a function of a state dict and of settings by Detectron2's own dotted keys, written from what
Detectron2 does; loops stand where it batches. `calibrated` draws weights that give such a network something
to see: scores are spread, boxes move, no norm's statistics are 0 and 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from detectron2_bodies_oracle import (
    EPS,
    FORK,
    Maps,
    Net,
    Settings,
    Shapes,
    State,
    body,
    body_shapes,
    conv_shapes,
    norm_key,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import roi_align

Size = tuple[int, int]

LONGEST_STEP = math.log(1000 / 16)

SMALL: Settings = {
    "VERSION": 2,
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 80,
    "INPUT.MAX_SIZE_TEST": 128,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [57.0, 58.0, 59.0],
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, False],
    "MODEL.RESNETS.DEFORM_MODULATED": False,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[9], [18], [36], [72], [144]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.33, 1.0, 3.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.CONV_DIMS": [-1],
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 80,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": [
        [10.0, 10.0, 5.0, 5.0],
        [20.0, 20.0, 10.0, 10.0],
        [30.0, 30.0, 15.0, 15.0],
    ],
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "TEST.DETECTIONS_PER_IMAGE": 50,
}
"""A whole small network on a narrow ResNet-50."""

CASCADE = {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}

DEFORM = {
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}

MODULATED: Settings = DEFORM | {
    "MODEL.RESNETS.DEFORM_MODULATED": True,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 2,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.FPN.NORM": "GN",
}
"""A ResNet-50 with modulated deformable convolutions of two groups, group norms in its pyramid."""

DCONV_CASCADE: Settings = (
    CASCADE
    | DEFORM
    | {
        "MODEL.RESNETS.NUM_GROUPS": 4,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 8,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.ROI_MASK_HEAD.NORM": "GN",
    }
)
"""Like the zoo's X-152: grouped deformable convolutions of the first version, group norms in the heads."""

RESNEST: Settings = CASCADE | {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.68, 116.779, 103.939],
    "MODEL.PIXEL_STD": [58.393, 57.12, 57.375],
    "MODEL.RESNETS.RADIX": 2,
    "MODEL.RESNETS.BOTTLENECK_WIDTH": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}
"""Like the fork's ResNeSt-50 cascade."""

DEFORMABLE_RESNEST: Settings = DEFORM | {
    "MODEL.BACKBONE.NAME": "build_resneSt_fpn_backbone",
    "MODEL.PIXEL_MEAN": [128.0, 128.0, 128.0],
    "MODEL.PIXEL_STD": [11.578, 11.578, 11.578],
    "MODEL.RESNETS.RADIX": 2,
    "MODEL.RESNETS.DEFORM_MODULATED": True,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 2,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[4], [9], [17], [31], [64], [127]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.25, 0.5, 1.0, 2.0, 4.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p2", "p3", "p4", "p5", "p6"],
}
"""Like the 7th place's, but deformable: the finest map goes through the RPN twice, with two anchor sizes."""

DEFAULTS: Settings = SMALL | {
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "MODEL.MASK_ON": False,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
"""What stands where a short config on top of `Base-RCNN-FPN.yaml` says nothing."""


def nested(settings: Settings) -> dict[str, Any]:
    """Settings as the tree that a config file holds."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> Settings:
    """Settings of the tree that a config file holds."""
    found: Settings = {}
    for key, value in tree.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        found |= inner
    return found


def shortened(settings: Settings) -> Settings:
    """What a config on top of Detectron2's `Base-RCNN-FPN.yaml`, or of the fork's, has to say of them."""
    silent = DEFAULTS | FORK
    changed = {key: value for key, value in settings.items() if value != silent[key]}
    return {"_BASE_": "../Base-RCNN-FPN.yaml"} | changed


def numbers(names: Sequence[str]) -> list[int]:
    """["res2", "res3"] or ["p2", "p3"] as [2, 3]."""
    return [int(name[-1]) for name in names]


# Keys and shapes.


def shapes(settings: Settings) -> Shapes:
    """Every key that a checkpoint of these settings has, but for counters of batches."""
    return body_shapes(settings) | _pyramid_shapes(settings) | _rpn_shapes(settings) | _roi_shapes(settings)


def _linear(key: str, inputs: int, outputs: int) -> Shapes:
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def _pyramid_shapes(settings: Settings) -> Shapes:
    found: Shapes = {}
    channels, norm = settings["MODEL.FPN.OUT_CHANNELS"], settings["MODEL.FPN.NORM"]
    for stage in numbers(settings["MODEL.FPN.IN_FEATURES"]):
        inputs = settings["MODEL.RESNETS.RES2_OUT_CHANNELS"] << (stage - 2)
        found |= conv_shapes(f"backbone.fpn_lateral{stage}", (channels, inputs, 1, 1), norm, True)
        found |= conv_shapes(f"backbone.fpn_output{stage}", (channels, channels, 3, 3), norm, True)
    return found


def _rpn_shapes(settings: Settings) -> Shapes:
    channels = settings["MODEL.FPN.OUT_CHANNELS"]
    anchors = len(cell_anchors(settings, 0))
    found: Shapes = {}
    for key, width in zip(rpn_convs(settings), settings["MODEL.RPN.CONV_DIMS"], strict=True):
        inputs, channels = channels, channels if width == -1 else width
        found |= conv_shapes(key, (channels, inputs, 3, 3), "", True)
    head = "proposal_generator.rpn_head"
    found |= conv_shapes(f"{head}.objectness_logits", (anchors, channels, 1, 1), "", True)
    return found | conv_shapes(f"{head}.anchor_deltas", (4 * anchors, channels, 1, 1), "", True)


def rpn_convs(settings: Settings) -> list[str]:
    """Keys of the RPN's convolutions: one goes by another name than several."""
    count = len(settings["MODEL.RPN.CONV_DIMS"])
    one = "proposal_generator.rpn_head.conv"
    return [one] if count == 1 else [f"{one}.conv{index}" for index in range(count)]


def _roi_shapes(settings: Settings) -> Shapes:
    classes = settings["MODEL.ROI_HEADS.NUM_CLASSES"]
    found: Shapes = {}
    for suffix, _ in box_stages(settings):
        found |= _box_shapes(settings, suffix, classes)
    c = {key.removeprefix("MODEL.ROI_MASK_HEAD."): value for key, value in settings.items()}
    channels, width = settings["MODEL.FPN.OUT_CHANNELS"], c["CONV_DIM"]
    for index in range(1, c["NUM_CONV"] + 1):
        found |= conv_shapes(f"roi_heads.mask_head.mask_fcn{index}", (width, channels, 3, 3), c["NORM"], True)
        channels = width
    found["roi_heads.mask_head.deconv.weight"] = (channels, width, 2, 2)
    found["roi_heads.mask_head.deconv.bias"] = (width,)
    outputs = 1 if c["CLS_AGNOSTIC_MASK"] else classes
    return found | conv_shapes("roi_heads.mask_head.predictor", (outputs, width, 1, 1), "", True)


def _box_shapes(settings: Settings, suffix: str, classes: int) -> Shapes:
    c = {key.removeprefix("MODEL.ROI_BOX_HEAD."): value for key, value in settings.items()}
    channels, found = settings["MODEL.FPN.OUT_CHANNELS"], {}
    for index in range(1, c["NUM_CONV"] + 1):
        key = f"roi_heads.box_head{suffix}.conv{index}"
        found |= conv_shapes(key, (c["CONV_DIM"], channels, 3, 3), c["NORM"], True)
        channels = c["CONV_DIM"]
    width = channels * c["POOLER_RESOLUTION"] ** 2
    for index in range(1, c["NUM_FC"] + 1):
        found |= _linear(f"roi_heads.box_head{suffix}.fc{index}", width, c["FC_DIM"])
        width = c["FC_DIM"]
    boxes = 1 if c["CLS_AGNOSTIC_BBOX_REG"] else classes
    found |= _linear(f"roi_heads.box_predictor{suffix}.cls_score", width, classes + 1)
    return found | _linear(f"roi_heads.box_predictor{suffix}.bbox_pred", width, 4 * boxes)


def box_stages(settings: Settings) -> list[tuple[str, Sequence[float]]]:
    """Of each stage, what its keys add to a name and its box weights."""
    if settings["MODEL.ROI_HEADS.NAME"] == "CascadeROIHeads":
        all_weights = settings["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"]
        return [(f".{index}", weights) for index, weights in enumerate(all_weights)]
    return [("", settings["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"])]


# From an image to maps.


def network_size(size_hw: Size, shortest: float, longest: float) -> Size:
    """The size to which the shortest edge is resized, unless the longest becomes too long."""
    height, width = size_hw
    if shortest == 0:
        return size_hw
    factor = shortest / min(height, width)
    new_h, new_w = (shortest, factor * width) if height < width else (factor * height, shortest)
    if max(new_h, new_w) > longest:
        factor = longest / max(new_h, new_w)
        new_h, new_w = new_h * factor, new_w * factor
    return int(new_h + 0.5), int(new_w + 0.5)


def network_image(pixels: NDArray[np.uint8], settings: Settings) -> Tensor:
    """Float (3, h, w): in the format's colour order, resized, normalised, not yet padded."""
    rgb = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)
    image = rgb if settings["INPUT.FORMAT"] == "RGB" else np.ascontiguousarray(rgb[:, :, ::-1])
    shortest, longest = settings["INPUT.MIN_SIZE_TEST"], settings["INPUT.MAX_SIZE_TEST"]
    size_hw = (pixels.shape[0], pixels.shape[1])
    height, width = network_size(size_hw, shortest, longest)
    if (height, width) != size_hw:
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    planes = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
    mean, std = (torch.tensor(settings[f"MODEL.PIXEL_{name}"]) for name in ("MEAN", "STD"))
    return (planes - mean[:, None, None]) / std[:, None, None]


def feature_maps(net: Net, image: Tensor) -> Maps:
    """Level -> (1, C, h, w) of one image (3, h, w), padded at the right and the bottom."""
    down, right = (-side % 32 for side in image.shape[1:])
    return pyramid(net, body(net, F.pad(image[None], (0, right, 0, down))))


def pyramid(net: Net, stages: Maps) -> Maps:
    """Level -> map, from coarse to fine, and level 6, every other position of level 5."""
    norm = net["FPN.NORM"]
    assert net["RESNETS.RES5_DILATION"] == 1, "Detectron2 builds no pyramid on two maps of one stride"
    out: Maps = {}
    above = None
    for stage in sorted(numbers(net["FPN.IN_FEATURES"]), reverse=True):
        here = net.conv(f"backbone.fpn_lateral{stage}", stages[stage], norm)
        if above is not None:
            here = here + above.repeat_interleave(2, -1).repeat_interleave(2, -2)
            here = here / 2 if net["FPN.FUSE_TYPE"] == "avg" else here
        out[stage] = net.conv(f"backbone.fpn_output{stage}", here, norm)
        above = here
    out[6] = out[5][:, :, ::2, ::2]
    return out


# Boxes.


def cell_anchors(settings: Settings, index: int) -> list[tuple[float, float]]:
    """(Width, height) of each anchor at a position of the `index`-th level: every ratio of every size."""
    of_level = []
    for name in ("SIZES", "ASPECT_RATIOS"):
        lists = settings[f"MODEL.ANCHOR_GENERATOR.{name}"]
        of_level.append(lists[0] if len(lists) == 1 else lists[index])
    found = []
    for size in of_level[0]:
        for ratio in of_level[1]:
            width = math.sqrt(size**2 / ratio)
            found.append((width, ratio * width))
    return found


def all_anchors(grid_hw: Size, stride: int, cells: Sequence[tuple[float, float]], offset: float) -> Tensor:
    """Anchors (h * w * A, 4) of a level."""
    rows = []
    for i in range(grid_hw[0]):
        for j in range(grid_hw[1]):
            x, y = (j + offset) * stride, (i + offset) * stride
            rows += [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for w, h in cells]
    return torch.tensor(rows)


def moved(boxes: Tensor, deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes (N, 4) moved and stretched by deltas (N, 4)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sides / 2
    steps = deltas / torch.tensor(weights, dtype=deltas.dtype)
    centres = centres + steps[:, :2] * sides
    sides = sides * steps[:, 2:].clamp(max=LONGEST_STEP).exp()
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1)


def clipped(boxes: Tensor, size_hw: Size) -> Tensor:
    """Boxes (N, 4) cut at the border."""
    height, width = size_hw
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Rows that stay, best first: each removes those after it that overlap it by more than `threshold`."""
    left = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    while len(left):
        best, rest = left[0], left[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        inter = (high - low).clamp(min=0).prod(1)
        left = rest[~(inter / (areas[best] + areas[rest] - inter) > threshold)]
    return kept


# Proposals.


def rpn_outputs(net: Net, feature: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (h * w * A,) and deltas (h * w * A, 4) of a level."""
    head = "proposal_generator.rpn_head"
    for key in rpn_convs(net.settings):
        feature = net.conv(key, feature).relu()
    logits = net.conv(f"{head}.objectness_logits", feature)[0]
    deltas = net.conv(f"{head}.anchor_deltas", feature)[0]
    return logits.permute(1, 2, 0).reshape(-1), deltas.permute(1, 2, 0).reshape(-1, 4)


def proposed(net: Net, maps: Maps, input_hw: Size) -> tuple[Tensor, Tensor]:
    """Proposals (P, 4) and their logits, best first."""
    boxes, scores = [], []
    for index, level in enumerate(numbers(net["RPN.IN_FEATURES"])):
        grid_hw = (maps[level].shape[2], maps[level].shape[3])
        cells = cell_anchors(net.settings, index)
        anchors = all_anchors(grid_hw, 2**level, cells, net["ANCHOR_GENERATOR.OFFSET"])
        logits, deltas = rpn_outputs(net, maps[level])
        best = logits.argsort(descending=True, stable=True)[: net["RPN.PRE_NMS_TOPK_TEST"]]
        some = moved(anchors[best], deltas[best], net["RPN.BBOX_REG_WEIGHTS"])
        logits = logits[best]
        finite = some.isfinite().all(1) & logits.isfinite()
        some, logits = clipped(some[finite], input_hw), logits[finite]
        least = net["PROPOSAL_GENERATOR.MIN_SIZE"]
        long = ((some[:, 2:] - some[:, :2]) > least).all(1)
        some, logits = some[long], logits[long]
        kept = suppressed(some, logits, net["RPN.NMS_THRESH"])
        boxes.append(some[kept])
        scores.append(logits[kept])
    all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
    order = all_scores.argsort(descending=True, stable=True)[: net["RPN.POST_NMS_TOPK_TEST"]]
    return all_boxes[order], all_scores[order]


# Regions.


def pooled(net: Net, maps: Maps, boxes: Tensor, head: str) -> Tensor:
    """(N, C, size, size): each box from the level of its size."""
    size = net[f"{head}.POOLER_RESOLUTION"]
    ratio, kind = net[f"{head}.POOLER_SAMPLING_RATIO"], net[f"{head}.POOLER_TYPE"]
    levels = numbers(net["ROI_HEADS.IN_FEATURES"])
    found = [torch.zeros(0, maps[levels[0]].shape[1], size, size)]
    for box in boxes:
        side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
        level = int(torch.floor(4 + torch.log2(side / 224 + 1e-8)).clamp(min(levels), max(levels)))
        roi = [box[None].to(maps[level].dtype)]
        aligned = kind == "ROIAlignV2"
        found.append(roi_align(maps[level], roi, size, 1 / 2**level, ratio, aligned))
    return torch.cat(found)


def box_outputs(net: Net, suffix: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits (N, K + 1), background last, and deltas (N, 4 K) or (N, 4) of pooled regions."""
    for index in range(1, net["ROI_BOX_HEAD.NUM_CONV"] + 1):
        x = net.conv(f"roi_heads.box_head{suffix}.conv{index}", x, net["ROI_BOX_HEAD.NORM"]).relu()
    x = x.flatten(1)
    for index in range(1, net["ROI_BOX_HEAD.NUM_FC"] + 1):
        x = net.linear(f"roi_heads.box_head{suffix}.fc{index}", x).relu()
    predictor = f"roi_heads.box_predictor{suffix}"
    return net.linear(f"{predictor}.cls_score", x), net.linear(f"{predictor}.bbox_pred", x)


def classified(net: Net, maps: Maps, proposals: Tensor, input_hw: Size) -> tuple[Tensor, list[Tensor]]:
    """Mean scores (N, K + 1) of all stages, and the last one's boxes (N, 4) of each class."""
    scores = []
    boxes = [proposals]
    for suffix, weights in box_stages(net.settings):
        start = boxes[0] if not scores else clipped(boxes[0], input_hw)
        logits, deltas = box_outputs(net, suffix, pooled(net, maps, start, "ROI_BOX_HEAD"))
        scores.append(logits.sigmoid() if net["ROI_BOX_HEAD.USE_SIGMOID_CE"] else logits.softmax(1))
        boxes = [moved(start, some, weights) for some in deltas.split(4, dim=1)]
    return torch.stack(scores).mean(0), boxes


def detected(net: Net, maps: Maps, proposals: Tensor, input_hw: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (D, 4) in network pixels, scores and classes of what is left, best first."""
    scores, class_boxes = classified(net, maps, proposals, input_hw)
    finite = scores.isfinite().all(1) & torch.stack([b.isfinite().all(1) for b in class_boxes]).all(0)
    rows: list[tuple[float, int, Tensor]] = []
    for label in range(scores.shape[1] - 1):
        boxes = class_boxes[label if len(class_boxes) > 1 else 0]
        sure = finite & (scores[:, label] > net["ROI_HEADS.SCORE_THRESH_TEST"])
        boxes, some = clipped(boxes[sure], input_hw), scores[sure, label]
        for row in suppressed(boxes, some, net["ROI_HEADS.NMS_THRESH_TEST"]):
            rows.append((float(some[row]), label, boxes[row]))
    rows.sort(key=lambda row: -row[0])
    most = net.settings["TEST.DETECTIONS_PER_IMAGE"]
    rows = rows[:most] if most >= 0 else rows
    boxes = torch.stack([row[2] for row in rows]) if rows else torch.zeros(0, 4)
    return boxes, torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]).long()


def mask_logits(net: Net, maps: Maps, boxes: Tensor) -> Tensor:
    """(N, K or 1, 2 size, 2 size) of boxes in network pixels."""
    x = pooled(net, maps, boxes, "ROI_MASK_HEAD")
    for index in range(1, net["ROI_MASK_HEAD.NUM_CONV"] + 1):
        x = net.conv(f"roi_heads.mask_head.mask_fcn{index}", x, net["ROI_MASK_HEAD.NORM"]).relu()
    key = "roi_heads.mask_head.deconv"
    x = F.conv_transpose2d(x, net.state[f"{key}.weight"], net.state[f"{key}.bias"], stride=2)
    return net.conv("roi_heads.mask_head.predictor", net.settle(key, x).relu())


def own_masks(logits: Tensor, classes: Tensor) -> Tensor:
    """Probabilities (N, M, M) of each row's class."""
    one = logits.shape[1] == 1
    chosen = [row[0 if one else int(label)] for row, label in zip(logits, classes, strict=True)]
    return torch.stack(chosen).sigmoid() if chosen else logits[:, 0]


def pasted(probabilities: Tensor, boxes: Tensor, size_hw: Size) -> Tensor:
    """Probabilities (N, H, W) at the centres of an image's pixels; 0 outside a grid."""
    height, width = size_hw
    found = [torch.zeros(0, height, width)]
    for grid, (x0, y0, x1, y1) in zip(probabilities, boxes, strict=True):
        x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)
        found.append(F.grid_sample(grid[None, None], places[None], align_corners=False)[0])
    return torch.cat(found)


# The whole.


@dataclass(frozen=True)
class Seen:
    """What a network sees in an image, and on the way there.

    boxes (N, 4) in image pixels, scores (N,), classes (N,) from 0, probabilities (N, M, M), soft and masks
    (N, H, W): what the threshold of 0.5 sees, and what it leaves.
    """

    input_hw: Size
    maps: Maps
    proposals: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    probabilities: Tensor
    soft: Tensor

    @property
    def masks(self) -> Tensor:
        return self.soft >= 0.5

    def __len__(self) -> int:
        return len(self.scores)


@torch.inference_mode()
def see(state: State, settings: Settings, pixels: NDArray[np.uint8], maps: Maps | None = None) -> Seen:
    """Detectron2's predictor on gray (H, W) or RGB (H, W, 3) pixels; or on these `maps` of them."""
    net = Net(state, settings)
    image = network_image(pixels, net.settings)
    input_hw = (image.shape[1], image.shape[2])
    size_hw = (pixels.shape[0], pixels.shape[1])
    maps = maps or feature_maps(net, image)
    proposals, _ = proposed(net, maps, input_hw)
    inner, scores, classes = detected(net, maps, proposals, input_hw)
    probabilities = own_masks(mask_logits(net, maps, inner), classes)
    there = torch.tensor([size_hw[1] / input_hw[1], size_hw[0] / input_hw[0]] * 2)
    boxes = clipped(inner * there, size_hw)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, classes, probabilities = (t[solid] for t in (boxes, scores, classes, probabilities))
    soft = pasted(probabilities, boxes, size_hw)
    return Seen(input_hw, maps, proposals, boxes, scores, classes, probabilities, soft)


# Weights.

SPREADS = {
    "objectness_logits": 2.0,
    "anchor_deltas": 0.3,
    "cls_score": 1.5,
    "bbox_pred": 1.5,
    "predictor": 2.0,
    "conv2_offset": 0.8,
}
"""Of each output of these layers; 1 of any other."""
BRANCH, DEFORMABLE_BRANCH = 0.2, 0.1
"""Size of what a residual block adds to its shortcut: larger ones make rounding grow with the depth.

Deformable convolutions move their samples by what was rounded, too: at 0.2 it grows thirty times as much as
without them, at 0.1 twice.
"""
BACKGROUND = 1.5
"""Added to the background's score, or taken from the others where each has its own."""


@torch.no_grad()
def calibrated(settings: Settings, pixels: NDArray[np.uint8], seed: int = 0) -> State:
    """Weights of a network that sees tens of cells in this image, and in others like it.

    Layers are set one after another by what they put out; running variances lie between 1e-5 and 1e-2, so
    that the epsilon of a norm matters. Deformable convolutions look 0.8 pixels away, some a few.
    """
    draw = torch.Generator().manual_seed(seed)
    branch = DEFORMABLE_BRANCH if any(settings["MODEL.RESNETS.DEFORM_ON_PER_STAGE"]) else BRANCH
    state = {key: _drawn(key, shape, draw, branch) for key, shape in shapes(settings).items()}
    seen: set[str] = set()

    def settle(key: str, out: Tensor) -> Tensor:
        if key in seen or not len(out):
            return out
        seen.add(key)
        spread, mean = _spread_and_mean(out)
        norm = norm_key(key)
        if f"{norm}.running_var" in state:
            pretended = 10 ** (-5 + 3 * torch.rand(len(mean), generator=draw))
            state[f"{norm}.running_mean"] = mean + 0.3 * spread * torch.randn(len(mean), generator=draw)
            state[f"{norm}.running_var"] = pretended
            state[f"{norm}.weight"] = state[f"{norm}.weight"] * (pretended + EPS).sqrt() / spread
        elif f"{key}.bias" in state:
            scale = SPREADS.get(key.rpartition(".")[2], 1.0) / spread
            weight = state[f"{key}.weight"]
            inner = (1, -1, 1, 1) if key.endswith("deconv") else (-1, *[1] * (weight.dim() - 1))
            state[f"{key}.weight"] = weight * scale.view(inner)
            state[f"{key}.bias"] = (state[f"{key}.bias"] - mean) * scale + _shift(settings, key, len(mean))
            across = [-1 if axis == 1 else 1 for axis in range(out.dim())]
            return (out - mean.view(across)) * scale.view(across) + _shift(settings, key, len(mean)).view(
                across
            )
        return out

    net, image = Net(state, settings, settle), network_image(pixels, settings)
    input_hw = (image.shape[1], image.shape[2])
    maps = feature_maps(net, image)
    proposals, _ = proposed(net, maps, input_hw)
    classified(net, maps, proposals, input_hw)
    mask_logits(net, maps, proposals)
    return state


def _spread_and_mean(out: Tensor) -> tuple[Tensor, Tensor]:
    """Of each output (N, C, *); of all together where there is one value of each, as in split attention."""
    values = out.transpose(0, 1).flatten(1)
    values = values if values.shape[1] > 1 else values.T.expand(len(values), -1)
    return values.std(1).clamp(min=1e-4), values.mean(1)


def _drawn(key: str, shape: tuple[int, ...], draw: torch.Generator, branch: float) -> Tensor:
    values = torch.randn(shape, generator=draw)
    if len(shape) > 1:
        inputs = list(range(1, len(shape)))
        return (values - values.mean(inputs, keepdim=True)) * math.sqrt(2 / math.prod(shape[1:]))
    if key.endswith("running_var"):
        return torch.ones(shape)
    if not re.search(r"\.(norm|bn[01])\.", key):
        return 0.3 * values if key.endswith("fc1.bias") else torch.zeros(shape)
    values = 1 + 0.2 * values if key.endswith("weight") else 0.3 * values
    return branch * values if re.search(r"bottom_up\..*conv[23]\.norm", key) else values


def _shift(settings: Settings, key: str, outputs: int) -> Tensor:
    shift = torch.zeros(outputs)
    if key.endswith("cls_score"):
        sigmoid = settings["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"]
        shift = torch.full((outputs,), -BACKGROUND if sigmoid else 0.0)
        shift[-1] = BACKGROUND
    return shift


def with_settings(changes: Mapping[str, Any] | None = None) -> Settings:
    """A small network's settings with some others."""
    unknown = set(changes or {}) - set(SMALL | FORK)
    assert not unknown, f"the oracle reads no {unknown}"
    return SMALL | dict(changes or {})


def scaled(settings: Settings, factor: float) -> Settings:
    """Settings of the same network at another input size."""
    edges = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
    return settings | {edge: settings[edge] * factor for edge in edges}
