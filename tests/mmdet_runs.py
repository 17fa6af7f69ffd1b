"""Small MMDetection checkpoints and their configs, as a training run of either generation leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from places import SHARED
from torch import Tensor, nn

from sartorius_infer.networks.mmdet.config import MmdetConfig, read_config
from sartorius_infer.networks.mmdet.modules import MmdetModel

State = dict[str, Tensor]
Values = dict[str, Any]

REFERENCE = SHARED / "reference" / "mmdet"
"""What MMDetection itself made; its README.md tells of it."""

CLASSES = ("shsy5y", "astro", "cort")

_POOL = {"type": "SingleRoIExtractor", "out_channels": 16, "featmap_strides": [4, 8, 16, 32]}
_BOX_HEAD = {
    "type": "Shared2FCBBoxHead",
    "in_channels": 16,
    "fc_out_channels": 32,
    "roi_feat_size": 7,
    "num_classes": 3,
    "reg_class_agnostic": False,
    "bbox_coder": {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0, 0.0, 0.0, 0.0],
        "target_stds": [0.1, 0.1, 0.2, 0.2],
    },
    "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
}
_MASK_HEAD = {
    "type": "FCNMaskHead",
    "num_convs": 1,
    "in_channels": 16,
    "conv_out_channels": 16,
    "num_classes": 3,
    "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
}
MODEL: Values = {
    "type": "MaskRCNN",
    "backbone": {
        "type": "ResNet",
        "depth": 18,
        "base_channels": 8,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": 1,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": True,
        "style": "pytorch",
    },
    "neck": {"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 16, "num_outs": 5},
    "rpn_head": {
        "type": "RPNHead",
        "in_channels": 16,
        "feat_channels": 16,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [6],
            "ratios": [0.5, 1.0, 2.0],
            "strides": [4, 8, 16, 32, 64],
        },
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0, 0.0, 0.0, 0.0],
            "target_stds": [1.0, 1.0, 1.0, 1.0],
        },
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    },
    "roi_head": {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _POOL
        | {"roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}},
        "bbox_head": _BOX_HEAD,
        "mask_roi_extractor": _POOL
        | {"roi_layer": {"type": "RoIAlign", "output_size": 14, "sampling_ratio": 0}},
        "mask_head": _MASK_HEAD,
    },
    "train_cfg": {"rpn": {"pos_weight": -1}, "rcnn": {"mask_size": 28}},
    "test_cfg": {
        "rpn": {
            "nms_pre": 100,
            "max_per_img": 60,
            "nms": {"type": "nms", "iou_threshold": 0.7},
            "min_bbox_size": 0,
        },
        "rcnn": {
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": 40,
            "mask_thr_binary": 0.5,
        },
    },
}
"""A network on a narrow ResNet-18, without how it sees images."""

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

_STDS = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
_HEADS = [
    _BOX_HEAD
    | {"reg_class_agnostic": True, "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": stds}}
    for stds in _STDS
]
CASCADE: Values = {
    "model.type": "CascadeRCNN",
    "model.roi_head.type": "CascadeRoIHead",
    "model.roi_head.num_stages": 3,
    "model.roi_head.stage_loss_weights": [1, 0.5, 0.25],
    "model.roi_head.bbox_head": _HEADS,
}
HTC: Values = CASCADE | {
    "model.type": "HybridTaskCascade",
    "model.roi_head.type": "HybridTaskCascadeRoIHead",
    "model.roi_head.interleaved": True,
    "model.roi_head.mask_info_flow": True,
    "model.roi_head.mask_head": [
        _MASK_HEAD | {"type": "HTCMaskHead", "with_conv_res": False},
        _MASK_HEAD | {"type": "HTCMaskHead"},
        _MASK_HEAD | {"type": "HTCMaskHead"},
    ],
}
"""What the configs of a cascade and of an HTC say otherwise."""


def values_of(dialect: int = 3, changes: Mapping[str, Any] | None = None) -> Values:
    """The config of a small network; `changes` are by dotted keys, None takes a key away."""
    scale = (160, 96)
    if dialect == 3:
        preprocessor = {"type": "DetDataPreprocessor", "mean": MEAN, "std": STD, "bgr_to_rgb": True}
        pipeline = [
            {"type": "LoadImageFromFile", "backend_args": None},
            {"type": "Resize", "scale": scale, "keep_ratio": True},
            {"type": "PackDetInputs", "meta_keys": ("img_id", "scale_factor")},
        ]
        values = {
            "default_scope": "mmdet",
            "model": MODEL | {"data_preprocessor": preprocessor | {"pad_mask": True, "pad_size_divisor": 32}},
            "test_dataloader": {"batch_size": 1, "dataset": {"type": "CocoDataset", "pipeline": pipeline}},
            "test_cfg": {"type": "TestLoop"},
        }
    else:
        transforms = [
            {"type": "Resize", "keep_ratio": True},
            {"type": "RandomFlip"},
            {"type": "Normalize", "mean": MEAN, "std": STD, "to_rgb": True},
            {"type": "Pad", "size_divisor": 32},
            {"type": "ImageToTensor", "keys": ["img"]},
            {"type": "Collect", "keys": ["img"]},
        ]
        around = {"type": "MultiScaleFlipAug", "img_scale": scale, "flip": False, "transforms": transforms}
        pipeline = [{"type": "LoadImageFromFile"}, around]
        values = {"model": dict(MODEL), "data": {"samples_per_gpu": 2, "test": {"pipeline": pipeline}}}
    return changed(values, changes or {})


def changed(values: Values, changes: Mapping[str, Any]) -> Values:
    """The values with others by dotted keys; numbers are places of lists, None takes a key away."""
    values = deepcopy(values)
    for key, value in changes.items():
        *above, last = key.split(".")
        node: Any = values
        for name in above:
            node = node[int(name)] if isinstance(node, (list, tuple)) else node.setdefault(name, {})
        if isinstance(node, list):
            node[int(last)] = deepcopy(value)
        elif value is None:
            node.pop(last, None)
        else:
            node[last] = deepcopy(value)
    return values


def dumped(values: Mapping[str, Any]) -> str:
    """The values as `cfg.dump()` writes them."""
    return "".join(f"{name} = {_spelled(value)}\n" for name, value in sorted(values.items()))


def _spelled(value: Any) -> str:
    if isinstance(value, dict) and all(str(key).isidentifier() for key in value):
        return f"dict({', '.join(f'{key}={_spelled(inner)}' for key, inner in sorted(value.items()))})"
    if isinstance(value, list):
        lines = "".join(f"    {_spelled(inner)},\n" for inner in value)
        return f"[\n{lines}]"
    if isinstance(value, tuple):
        return f"({''.join(f'{_spelled(inner)}, ' for inner in value)})"
    return repr(value)


def write_config(path: Path, values: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumped(values), encoding="utf-8")
    return path


def config_of(values: Mapping[str, Any], folder: Path) -> MmdetConfig:
    return read_config(write_config(folder / "config.py", values))


SPREADS = {"rpn_cls": 3.0, "fc_cls": 3.0, "conv_logits": 20.0}
"""Of the weights of the layers that decide."""


def state_of(config: MmdetConfig, seed: int = 4) -> State:
    """Weights under MMDetection's keys, random but busy: something is detected everywhere."""
    torch.manual_seed(seed)
    model = MmdetModel(config.parts, config.class_count)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("backbone."):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.4, 0.8)
        elif (last := name.rpartition(".")[2]) in SPREADS:
            nn.init.normal_(module.weight, 0, SPREADS[last])  # type: ignore[arg-type]
    return {key: tensor.detach() for key, tensor in model.state_dict().items()}


def run_of(state: State, values: Mapping[str, Any] | None, dialect: int = 3,
           classes: tuple[str, ...] = CLASSES) -> Values:  # fmt: skip
    """A checkpoint of MMDetection's trainer; without `values` one that holds no config."""
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02}]}
    if dialect == 2:
        meta: Values = {"epoch": 12, "mmdet_version": "2.28.2", "CLASSES": classes}
        text = {} if values is None else {"config": dumped(values)}
        return {"meta": meta | text, "state_dict": state, "optimizer": optimizer}
    meta = {"epoch": 12, "mmengine_version": "0.10.7", "dataset_meta": {"classes": classes}}
    text = {} if values is None else {"cfg": dumped(values)}
    hub = {"runtime_info": {"epoch": 11}, "resumed_keys": {"train/loss": True}}
    return {"meta": meta | text, "state_dict": state, "message_hub": hub, "optimizer": optimizer}


def write_run(
    folder: Path,
    dialect: int = 3,
    changes: Mapping[str, Any] | None = None,
    *,
    name: str = "epoch_12.pth",
    classes: tuple[str, ...] = CLASSES,
    seed: int = 4,
) -> Path:
    """A checkpoint with its config inside."""
    folder.mkdir(parents=True, exist_ok=True)
    values = values_of(dialect, changes)
    state = state_of(config_of(values, folder / "configs"), seed)
    torch.save(run_of(state, values, dialect, classes), folder / name)
    return folder / name
