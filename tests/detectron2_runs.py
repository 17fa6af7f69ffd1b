"""Small Detectron2 checkpoints and their configs, as a training run leaves them in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.networks.detectron2.modules import Detectron2Model

State = dict[str, Tensor]
Keys = Mapping[str, Any]

PARTS: dict[str, Any] = {
    "body": {"stem_channels": 8, "res2_channels": 32, "width_per_group": 8},
    "fpn": {"channels": 16},
    "anchors": {"sizes": ((24.0,), (36.0,), (48.0,), (64.0,), (96.0,))},
    "rpn": {"pre_nms_top_n": 100, "post_nms_top_n": 60},
    "box_head": {"fc_channels": (32, 32)},
    "mask_head": {"conv_channels": (16,), "hidden": 16},
    "detection": {"score": 0.02, "per_image": 40},
}

SMALL: dict[str, Any] = {
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[24], [36], [48], [64], [96]],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.02,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "TEST.DETECTIONS_PER_IMAGE": 40,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
}
"""What the config of `PARTS` says on top of `Base-RCNN-FPN.yaml`."""

CASCADE: dict[str, Any] = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}

SPREADS = {"objectness_logits": 3.0, "cls_score": 3.0, "predictor": 30.0}
"""Of the weights of the layers that decide."""


def nested(keys: Keys) -> dict[str, Any]:
    """Dotted keys as the tree that a YAML file holds."""
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def write_config(path: Path, keys: Keys = SMALL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(nested(keys)))
    return path


def small_state(classes: int = 3, seed: int = 4, **parts: Any) -> State:
    """Weights under Detectron2's keys, random but busy: something is detected everywhere."""
    torch.manual_seed(seed)
    model = Detectron2Model(Detectron2Parts.model_validate(PARTS | parts), classes)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("backbone.bottom_up."):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.4, 0.8)
        elif (last := name.rpartition(".")[2]) in SPREADS:
            nn.init.normal_(module.weight, 0, SPREADS[last])  # type: ignore[arg-type]
    # Frozen norms count no batches.
    return {k: t.detach() for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def run_of(state: State) -> dict[str, Any]:
    """A training run's checkpoint: weights among the states of optimizer, scheduler and averages."""
    parameters = {i: t for i, t in enumerate(state.values()) if t.is_floating_point()}
    return {
        "model": state,
        "optimizer": {
            "state": {i: {"momentum_buffer": torch.zeros_like(t)} for i, t in parameters.items()},
            "param_groups": [{"lr": 0.0025, "params": list(parameters)}],
        },
        "scheduler": {"milestones": (1000, 1500), "last_epoch": 1999, "base_lrs": [np.float64(0.0025)]},
        "ema": {"model": {key: t + 1 for key, t in state.items()}},
        "iteration": 1999,
    }


def write_run(folder: Path, keys: Keys = SMALL, content: Mapping[str, Any] | None = None) -> Path:
    """`model_final.pth` of this content, by default weights alone, and `config.yaml`; returns the first."""
    write_config(folder / "config.yaml", keys)
    torch.save(small_state() if content is None else content, folder / "model_final.pth")
    return folder / "model_final.pth"
