"""MMDetection 2.x and 3.x at test time, slow and plain: its keys, its configs, one image, and no part of the
package.

Every step is a function of weights and of a config with MMDetection's own nested names, written from what
MMDetection and MMCV do; loops stand where they batch. A config is of 3.x where it has a `test_dataloader`.
`calibrated` draws weights that give such a network something to see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from detectron2_oracle import suppressed
from mmdet_bodies_oracle import body
from mmdet_layers_oracle import Config, Net, State, each
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

Size = tuple[int, int]

LONGEST_STEP = abs(math.log(16 / 1000))
SPLIT = 10000
"""From so many boxes on, NMS goes level by level, or class by class."""


def is_3x(config: Config) -> bool:
    return "test_dataloader" in config


# From an image to maps.


@dataclass(frozen=True)
class Input:
    """What happens to an image on its way to a network."""

    scale: Size
    keep_ratio: bool
    swap: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: int


def input_of(config: Config) -> Input:
    if is_3x(config):
        steps = {step["type"]: step for step in config["test_dataloader"]["dataset"]["pipeline"]}
        resize, c = steps["Resize"], config["model"]["data_preprocessor"]
        scale, swap, divisor = resize["scale"], c.get("bgr_to_rgb", False), c.get("pad_size_divisor", 1)
    else:
        outer = {step["type"]: step for step in config["data"]["test"]["pipeline"]}["MultiScaleFlipAug"]
        steps = {step["type"]: step for step in outer["transforms"]}
        resize, c, scale = steps["Resize"], steps["Normalize"], outer["img_scale"]
        swap, divisor = c.get("to_rgb", True), steps.get("Pad", {}).get("size_divisor") or 1
    keep_ratio = resize.get("keep_ratio", not is_3x(config))
    return Input(tuple(scale), keep_ratio, swap, tuple(c["mean"]), tuple(c["std"]), divisor)


def network_size(size_hw: Size, scale: Size, keep_ratio: bool) -> Size:
    """(Height, width) that an image is resized to: as large as both of the scale's sides allow."""
    height, width = size_hw
    if not keep_ratio:
        return scale[1], scale[0]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def network_image(pixels: NDArray[np.uint8], config: Config) -> Tensor:
    """Float (3, h, w) of gray (H, W) or RGB (H, W, 3) pixels: resized, normalised, not yet padded."""
    said = input_of(config)
    bgr = np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
    height, width = network_size((bgr.shape[0], bgr.shape[1]), said.scale, said.keep_ratio)
    bgr = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    image = np.ascontiguousarray(bgr[:, :, ::-1]) if said.swap else bgr
    if is_3x(config):
        planes = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()
        return (planes - torch.tensor(said.mean)[:, None, None]) / torch.tensor(said.std)[:, None, None]
    # OpenCV subtracts in float32 and multiplies in float64.
    shifted = image.astype(np.float32) - np.array(said.mean, np.float32)
    scaled = (shifted * (1 / np.array(said.std, np.float32).astype(np.float64))).astype(np.float32)
    return torch.from_numpy(scaled.transpose(2, 0, 1).copy())


def feature_maps(net: Net, config: Config, image: Tensor) -> list[Tensor]:
    """The neck's maps (1, C, h, w) of one image (3, h, w), padded at the right and the bottom."""
    down, right = (-side % input_of(config).divisor for side in image.shape[1:])
    model = config["model"]
    return pyramid(net, model["neck"], body(net, model["backbone"], F.pad(image[None], (0, right, 0, down))))


def pyramid(net: Net, c: Config, inputs: list[Tensor]) -> list[Tensor]:
    """FPN: from fine to coarse, `num_outs` of them."""
    assert c["type"] == "FPN" and c.get("end_level", -1) == -1
    assert [x.shape[1] for x in inputs] == list(c["in_channels"])
    start, channels, norm = c.get("start_level", 0), c["out_channels"], c.get("norm_cfg")
    of_lateral = None if c.get("no_norm_on_lateral", False) else norm
    laterals = [
        net.conv_module(f"neck.lateral_convs.{index}", x, channels, 1, of_lateral)
        for index, x in enumerate(inputs[start:])
    ]
    for index in range(len(laterals) - 1, 0, -1):
        size = laterals[index - 1].shape[2:]
        laterals[index - 1] = laterals[index - 1] + F.interpolate(laterals[index], size, mode="nearest")
    found = [
        net.conv_module(f"neck.fpn_convs.{index}", x, channels, 3, norm) for index, x in enumerate(laterals)
    ]
    extra = c.get("add_extra_convs", False)
    source = {False: None, True: inputs[-1], "on_input": inputs[-1], "on_lateral": laterals[-1]}
    for index in range(len(found), c["num_outs"]):
        if not extra:
            found.append(found[-1][:, :, ::2, ::2])
            continue
        first = index == len(laterals)
        x = source.get(extra, found[-1]) if first else found[-1]
        x = x.relu() if c.get("relu_before_extra_convs", False) and not first else x
        found.append(net.conv_module(f"neck.fpn_convs.{index}", x, channels, 3, norm, stride=2))
    return found


# Boxes.


def cell_anchors(c: Config, level: int) -> Tensor:
    """(A, 4) of one position around the origin: every scale of every ratio (height over width)."""
    base = float((c.get("base_sizes") or c["strides"])[level])
    if c.get("scales") is not None:
        scales = torch.tensor(c["scales"], dtype=torch.float32)
    else:
        steps = np.array([2 ** (i / c["scales_per_octave"]) for i in range(c["scales_per_octave"])])
        scales = torch.tensor(steps * c["octave_base_scale"], dtype=torch.float32)
    rows = []
    for ratio in torch.tensor(c["ratios"], dtype=torch.float32):
        root = ratio.sqrt()
        for scale in scales:
            width, height = base * (1 / root) * scale, base * root * scale
            rows.append(torch.stack([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height]))
    return torch.stack(rows)


def all_anchors(grid_hw: Size, stride: int, cells: Tensor) -> Tensor:
    """Anchors (h * w * A, 4) of a level, position by position."""
    rows = []
    for i in range(grid_hw[0]):
        at = torch.arange(grid_hw[1])[:, None] * torch.tensor([stride, 0, stride, 0])
        rows.append(cells[None] + (at + torch.tensor([0, i * stride, 0, i * stride]))[:, None])
    return torch.cat(rows).reshape(-1, 4)


def moved(boxes: Tensor, deltas: Tensor, coder: Config, size_hw: Size) -> Tensor:
    """Boxes (N, 4) moved and stretched by deltas (N, 4), cut at the border."""
    assert coder["type"] == "DeltaXYWHBBoxCoder"
    assert coder.get("clip_border", True) and not coder.get("add_ctr_clamp", False)
    stds, means = (torch.tensor(coder[f"target_{name}"], dtype=deltas.dtype) for name in ("stds", "means"))
    steps = deltas * stds + means
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + sides * steps[:, :2]
    sides = sides * steps[:, 2:].clamp(-LONGEST_STEP, LONGEST_STEP).exp()
    low, high = centres - sides * 0.5, centres + sides * 0.5
    (height, width) = size_hw
    x = [low[:, 0].clamp(0, width), high[:, 0].clamp(0, width)]
    y = [low[:, 1].clamp(0, height), high[:, 1].clamp(0, height)]
    return torch.stack([x[0], y[0], x[1], y[1]], dim=1)


def soft_suppressed(boxes: Tensor, scores: Tensor, nms: Config) -> tuple[list[int], Tensor]:
    """Rows that stay, best first, and what is left of their scores: each takes from those it overlaps."""
    threshold, sigma = nms.get("iou_threshold", 0.3), nms.get("sigma", 0.5)
    method, least = nms.get("method", "linear"), nms.get("min_score", 1e-3)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    scores, left = scores.clone(), list(range(len(scores)))
    rows, values = [], []
    while left:
        best = max(left, key=lambda row: float(scores[row]))
        left.remove(best)
        rows.append(best)
        values.append(scores[best])
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        inter = (high - low).clamp(min=0).prod(1)
        overlap = inter / (areas[best] + areas[left] - inter)
        if method == "gaussian":
            factors = (-(overlap**2) / sigma).exp()
        else:
            kept = 1 - overlap if method == "linear" else torch.zeros_like(overlap)
            factors = torch.where(overlap >= threshold, kept, torch.ones_like(overlap))
        scores[left] = scores[left] * factors
        left = [row for row in left if not scores[row] < least]
    return rows, torch.stack(values) if values else scores


def group_suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, nms: Config) -> tuple[Tensor, Tensor]:
    """Rows that stay and their scores, best first; boxes of other groups (N,) count as far away."""
    apart = boxes
    if not nms.get("class_agnostic", False):
        apart = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    alone = [torch.arange(len(boxes))]
    if len(boxes) >= nms.get("split_thr", SPLIT):
        alone = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    rows, values = [], []
    for some in alone:
        if nms.get("type", "nms") == "soft_nms":
            kept, left = soft_suppressed(apart[some], scores[some], nms)
        else:
            assert nms.get("type", "nms") == "nms"
            kept = suppressed(apart[some], scores[some], nms["iou_threshold"])
            left = scores[some][kept]
        rows.append(some[kept])
        values.append(left)
    order = torch.cat(values).argsort(descending=True, stable=True)
    return torch.cat(rows)[order], torch.cat(values)[order]


# Proposals.


def rules_of(config: Config, part: str) -> Config:
    """`rpn` or `rcnn` of what holds at test time, which has had several places."""
    model = config["model"]
    head = model["rpn_head" if part == "rpn" else "roi_head"].get("test_cfg")
    if head is not None:
        return dict(head)
    found = model.get("test_cfg") or config["test_cfg"]
    return dict(found[part])


def proposal_rules(config: Config) -> Config:
    """nms_pre, nms, max_per_img and min_bbox_size, whatever they were called."""
    said = rules_of(config, "rpn")
    nms = said.get("nms") or {"type": "nms", "iou_threshold": said["nms_thr"]}
    most = said.get("max_per_img", said.get("max_num", said.get("nms_post")))
    least = said.get("min_bbox_size", -1)
    return {"nms_pre": said["nms_pre"], "nms": nms, "max_per_img": most, "min_bbox_size": least}


def rpn_outputs(net: Net, c: Config, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (h * w * A,) and deltas (h * w * A, 4) of a level."""
    count, width = c.get("num_convs", 1), c["feat_channels"]
    for index in range(count):
        key = "rpn_head.rpn_conv" if count == 1 else f"rpn_head.rpn_conv.{index}.conv"
        x = net.conv(key, x, width, 3, bias=True).relu()
    anchors = len(cell_anchors(c["anchor_generator"], 0))
    single = c["loss_cls"].get("use_sigmoid", False)
    outputs = anchors * (1 if single else 2)
    logits = net.conv("rpn_head.rpn_cls", x, outputs, 1, bias=True, spread=2.0)[0].permute(1, 2, 0)
    deltas = net.conv("rpn_head.rpn_reg", x, 4 * anchors, 1, bias=True, spread=0.3)[0].permute(1, 2, 0)
    scores = logits.reshape(-1).sigmoid() if single else logits.reshape(-1, 2).softmax(1)[:, 0]
    return scores, deltas.reshape(-1, 4)


def proposed(net: Net, config: Config, maps: Sequence[Tensor], input_hw: Size) -> tuple[Tensor, Tensor]:
    """Proposals (P, 4) and their scores, best first."""
    c, rules = config["model"]["rpn_head"], proposal_rules(config)
    anchor_cfg = c["anchor_generator"]
    assert len(maps) == len(anchor_cfg["strides"])
    boxes, scores, levels = [], [], []
    for level, x in enumerate(maps):
        anchors = all_anchors(
            (x.shape[2], x.shape[3]), anchor_cfg["strides"][level], cell_anchors(anchor_cfg, level)
        )
        some, deltas = rpn_outputs(net, c, x)
        if 0 < rules["nms_pre"] < len(some):
            best = some.argsort(descending=True, stable=True)[: rules["nms_pre"]]
            anchors, some, deltas = anchors[best], some[best], deltas[best]
        boxes.append(moved(anchors, deltas, c["bbox_coder"], input_hw))
        scores.append(some)
        levels.append(torch.full((len(some),), level))
    all_boxes, all_scores, all_levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
    if rules["min_bbox_size"] >= 0:
        long = ((all_boxes[:, 2:] - all_boxes[:, :2]) > rules["min_bbox_size"]).all(1)
        all_boxes, all_scores, all_levels = all_boxes[long], all_scores[long], all_levels[long]
    if not len(all_boxes):
        return all_boxes, all_scores
    rows, values = group_suppressed(all_boxes, all_scores, all_levels, rules["nms"])
    most = rules["max_per_img"]
    return all_boxes[rows][:most], values[:most]


# Regions.


def pooled(c: Config, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(N, C, size, size): SingleRoIExtractor, each box from the level of its size."""
    assert c["type"] == "SingleRoIExtractor" and c["roi_layer"]["type"] == "RoIAlign"
    layer, strides = c["roi_layer"], c["featmap_strides"]
    size, ratio, aligned = layer["output_size"], layer.get("sampling_ratio", 0), layer.get("aligned", True)
    finest = c.get("finest_scale", 56)
    found = [torch.zeros(0, c["out_channels"], size, size)]
    for box in boxes:
        side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
        level = int(torch.floor(torch.log2(side / finest + 1e-6)).clamp(0, len(strides) - 1))
        found.append(roi_align(maps[level], [box[None]], size, 1 / strides[level], ratio, aligned))
    return torch.cat(found)


BRANCHES: dict[str, Config] = {
    "Shared2FCBBoxHead": {"num_shared_fcs": 2},
    "Shared4Conv1FCBBoxHead": {"num_shared_convs": 4, "num_shared_fcs": 1},
    "ConvFCBBoxHead": {},
}
BACKGROUND = 1.5
"""Added to the background's score."""


def stages(config: Config, name: str) -> list[tuple[str, Config]]:
    """Of each stage's `bbox_head` or `mask_head`, what its keys start with and its part of the config.

    The stages of a cascade have heads of their own also where one part of the config speaks for all.
    """
    heads = config["model"]["roi_head"]
    if heads["type"] == "StandardRoIHead":
        return [(f"roi_head.{name}", heads[name])]
    assert heads["type"] in ("CascadeRoIHead", "HybridTaskCascadeRoIHead")
    parts = each(heads[name], heads["num_stages"])
    return [(f"roi_head.{name}.{index}", c) for index, c in enumerate(parts)]


def box_outputs(net: Net, key: str, c: Config, x: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits (N, K + 1), background last, and deltas (N, 4 K) or (N, 4) of pooled regions."""
    c = BRANCHES[c["type"]] | c
    assert not c.get("with_avg_pool", False)
    x = _branch(net, f"{key}.shared", c, x, c.get("num_shared_convs", 0), c.get("num_shared_fcs", 0))
    said = []
    for name in ("cls", "reg"):
        convs, fcs = c.get(f"num_{name}_convs", 0), c.get(f"num_{name}_fcs", 0)
        said.append(_branch(net, f"{key}.{name}", c, x, convs, fcs).flatten(1))
    shift = torch.tensor([0.0] * c["num_classes"] + [BACKGROUND])
    logits = net.linear(f"{key}.fc_cls", said[0], c["num_classes"] + 1, spread=1.5, shift=shift)
    outputs = 4 if c.get("reg_class_agnostic", False) else 4 * c["num_classes"]
    return logits, net.linear(f"{key}.fc_reg", said[1], outputs, spread=1.5)


def _branch(net: Net, key: str, c: Config, x: Tensor, convs: int, fcs: int) -> Tensor:
    for index in range(convs):
        width = c.get("conv_out_channels", 256)
        x = net.conv_module(f"{key}_convs.{index}", x, width, 3, c.get("norm_cfg")).relu()
    x = x.flatten(1) if fcs else x
    for index in range(fcs):
        x = net.linear(f"{key}_fcs.{index}", x, c.get("fc_out_channels", 1024)).relu()
    return x


def classified(
    net: Net, config: Config, maps: Sequence[Tensor], proposals: Tensor, input_hw: Size
) -> tuple[Tensor, list[Tensor]]:
    """Scores (N, K + 1) of all stages, and the last one's boxes (N, 4) of each class."""
    said, boxes = [], proposals
    all_stages = stages(config, "bbox_head")
    extractors = each(config["model"]["roi_head"]["bbox_roi_extractor"], len(all_stages))
    class_boxes: list[Tensor] = []
    for (key, c), extractor in zip(all_stages, extractors, strict=True):
        logits, deltas = box_outputs(net, key, c, pooled(extractor, maps, boxes))
        said.append(logits)
        class_boxes = [moved(boxes, some, c["bbox_coder"], input_hw) for some in deltas.split(4, dim=1)]
        labels = logits[:, :-1].argmax(1)
        rows = [
            class_boxes[int(label) if len(class_boxes) > 1 else 0][row] for row, label in enumerate(labels)
        ]
        boxes = torch.stack(rows) if rows else boxes
    logits = sum(said[1:], start=said[0]) / float(len(said))
    return logits.softmax(1), class_boxes


def detected(scores: Tensor, class_boxes: Sequence[Tensor], rules: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (D, 4), scores and classes of what is left, best first."""
    rows = [
        (row, label)
        for row in range(len(scores))
        for label in range(scores.shape[1] - 1)
        if scores[row, label] > rules["score_thr"]
    ]
    if not rows:
        return torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)
    boxes = torch.stack([class_boxes[label if len(class_boxes) > 1 else 0][row] for row, label in rows])
    labels = torch.tensor([label for _, label in rows])
    kept, values = group_suppressed(boxes, torch.stack([scores[at] for at in rows]), labels, rules["nms"])
    most = rules["max_per_img"] if rules["max_per_img"] > 0 else len(kept)
    return boxes[kept][:most], values[:most], labels[kept][:most]


# Masks.


def mask_probabilities(net: Net, config: Config, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(N, K or 1, 2 size, 2 size) of boxes in network pixels."""
    heads = config["model"]["roi_head"]
    all_stages = stages(config, "mask_head")
    extractors = each(heads["mask_roi_extractor"], len(all_stages))
    hybrid = heads["type"] == "HybridTaskCascadeRoIHead"
    assert not heads.get("semantic_head")
    said, before = [], None
    for (key, c), extractor in zip(all_stages, extractors, strict=True):
        x = pooled(extractors[-1] if hybrid else extractor, maps, boxes)
        flowing = hybrid and heads.get("mask_info_flow", True) and before is not None
        logits, before = mask_outputs(net, key, c, x, before if flowing else None)
        said.append(logits.sigmoid())
    if hybrid and is_3x(config):
        return said[-1]
    return torch.stack(said).mean(0)


def mask_outputs(net: Net, key: str, c: Config, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits of pooled regions, and what HTC's next stage gets to see."""
    width, norm = c["conv_out_channels"], c.get("norm_cfg")
    if before is not None:
        assert c["type"] == "HTCMaskHead" and c.get("with_conv_res", True)
        x = x + net.conv_module(f"{key}.conv_res", before, width, 1, norm).relu()
    for index in range(c.get("num_convs", 4)):
        x = net.conv_module(f"{key}.convs.{index}", x, width, 3, norm).relu()
    up = _doubled(net, f"{key}.upsample", x, width).relu()
    outputs = 1 if c.get("class_agnostic", False) else c["num_classes"]
    return net.conv(f"{key}.conv_logits", up, outputs, 1, bias=True, spread=2.0), x


def _doubled(net: Net, key: str, x: Tensor, width: int) -> Tensor:
    """A 2 x 2 deconvolution of stride 2."""
    fresh = net.missing(f"{key}.weight")
    weight = net.filters(f"{key}.weight", x.shape[1], width, 2, 2)
    if fresh:
        net.state[f"{key}.weight"] = weight = weight / F.conv_transpose2d(x, weight, stride=2).std()
    return F.conv_transpose2d(x, weight, net.vector(f"{key}.bias", width), stride=2)


def own_masks(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Probabilities (N, M, M) of each row's class."""
    one = probabilities.shape[1] == 1
    chosen = [row[0 if one else int(label)] for row, label in zip(probabilities, classes, strict=True)]
    return torch.stack(chosen) if chosen else probabilities[:, 0]


def pasted(probabilities: Tensor, boxes: Tensor, size_hw: Size) -> Tensor:
    """Probabilities (N, H, W) at the centres of an image's pixels, as MMDetection pastes without a GPU.

    Only pixels up to two away from a box are looked at. Where a box has no width, all of them are at the
    middle of its grid, and the same with its height.
    """
    height, width = size_hw
    found = torch.zeros(len(boxes), height, width)
    for row, (grid, box) in enumerate(zip(probabilities, boxes, strict=True)):
        x0, y0, x1, y1 = box
        left, top = (int(max(v.floor() - 1, 0)) for v in (x0, y0))
        right, bottom = int(min(x1.ceil() + 1, width)), int(min(y1.ceil() + 1, height))
        x = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
        x, y = (torch.where(v.isinf(), torch.zeros_like(v), v) for v in (x, y))
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)
        values = F.grid_sample(grid[None, None], places[None], align_corners=False)[0, 0]
        found[row, top:bottom, left:right] = values
    return found


# The whole.


@dataclass(frozen=True)
class Seen:
    """What a network sees in an image, and on the way there.

    raw_boxes (N, 4) in network pixels, from which the masks come; boxes in image pixels, scores (N,),
    classes (N,) from 0, probabilities (N, M, M), soft (N, H, W): what `threshold` sees.
    """

    input_hw: Size
    maps: list[Tensor]
    proposals: Tensor
    objectness: Tensor
    raw_boxes: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    probabilities: Tensor
    soft: Tensor
    threshold: float

    @property
    def masks(self) -> Tensor:
        assert self.threshold >= 0
        return self.soft >= self.threshold

    def __len__(self) -> int:
        return len(self.scores)


@torch.inference_mode()
def see(
    state: State, config: Config, pixels: NDArray[np.uint8], maps: Sequence[Tensor] | None = None
) -> Seen:
    """MMDetection's `inference_detector` on gray (H, W) or RGB (H, W, 3) pixels; or on these maps of them."""
    net, rules = Net(state), rules_of(config, "rcnn")
    image = network_image(pixels, config)
    input_hw, size_hw = (image.shape[1], image.shape[2]), (pixels.shape[0], pixels.shape[1])
    found = list(maps) if maps is not None else feature_maps(net, config, image)
    proposals, objectness = proposed(net, config, found, input_hw)
    scores, class_boxes = classified(net, config, found, proposals, input_hw)
    factor = torch.tensor([input_hw[1] / size_hw[1], input_hw[0] / size_hw[0]] * 2)
    if is_3x(config):
        raw, values, classes = detected(scores, class_boxes, rules)
        boxes = pasting = raw / factor
    else:
        boxes, values, classes = detected(scores, [some / factor for some in class_boxes], rules)
        raw = boxes * factor
        pasting = raw / factor
    probabilities = own_masks(mask_probabilities(net, config, found, raw), classes)
    return Seen(
        input_hw=input_hw,
        maps=found,
        proposals=proposals,
        objectness=objectness,
        raw_boxes=raw,
        boxes=boxes,
        scores=values,
        classes=classes,
        probabilities=probabilities,
        soft=pasted(probabilities, pasting, size_hw),
        threshold=rules["mask_thr_binary"],
    )


# Weights.


@torch.no_grad()
def calibrated(config: Config, pixels: NDArray[np.uint8], seed: int = 0) -> State:
    """Weights of a network that sees tens of cells in this image, and in others like it.

    Layers are drawn one after another by what those before them put out.
    """
    return _filled(config, network_image(pixels, config), seed)


@torch.no_grad()
def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every key of a checkpoint of this config, and its shape."""
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    return {key: tuple(value.shape) for key, value in _filled(config, image, 0).items()}


def with_old_offsets(state: State) -> State:
    """The same weights in a file from before MMCV gave its deformable convolutions their own offsets."""
    return {key.replace(".conv_offset.", "_offset."): value for key, value in state.items()}


def _filled(config: Config, image: Tensor, seed: int) -> State:
    net = Net({}, torch.Generator().manual_seed(seed))
    input_hw = (image.shape[1], image.shape[2])
    maps = feature_maps(net, config, image)
    # A hundred say what each layer puts out.
    proposals = proposed(net, config, maps, input_hw)[0][:100]
    classified(net, config, maps, proposals, input_hw)
    mask_probabilities(net, config, maps, proposals)
    return net.state
