"""Detectron2 configs: every key changes what it should, and what cannot be honoured is named."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2_runs import CASCADE, PARTS, SMALL, nested, write_config
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.settings import flatten
from sartorius_infer.networks.detectron2 import config_keys
from sartorius_infer.networks.detectron2.config import Detectron2Config, read_config

DUMP = SHARED / "reference/detectron2/r50/config.yaml"

# What Detectron2 0.6 itself says: detectron2/config/defaults.py and configs/Base-RCNN-FPN.yaml, read
# from https://github.com/facebookresearch/detectron2, as far as it decides something at test time.
GET_CFG: dict[str, Any] = {
    "VERSION": 2,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, False],
    "MODEL.RESNETS.DEFORM_MODULATED": False,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.FPN.IN_FEATURES": [],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.CONV_DIMS": [-1],
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.AUG.ENABLED": False,
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": [
        [10.0, 10.0, 5.0, 5.0],
        [20.0, 20.0, 10.0, 10.0],
        [30.0, 30.0, 15.0, 15.0],
    ],
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
}
BASE = GET_CFG | {
    "MODEL.MASK_ON": True,  # in the configs that stand on it, and in any checkpoint with masks
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
COMPETITION = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.PIXEL_MEAN": [127.965] * 3,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[24], [40], [80], [128], [256]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.33, 1.0, 3.0]],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 10000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 2000,
    "MODEL.RPN.NMS_THRESH": 0.75,
    "TEST.DETECTIONS_PER_IMAGE": 700,
}
CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"
SHORT = {CLASSES: 80}
"""Enough for a config on top of `BASE`."""
OF_FORKS = {f"MODEL.RESNETS.{name}" for name in ("RADIX", "BOTTLENECK_WIDTH", "DEEP_STEM", "AVD", "AVG_DOWN")}
LATER = {"MODEL.ANCHOR_GENERATOR.OFFSET", "MODEL.RPN.CONV_DIMS", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"}
"""Keys that came after version 0.1."""
LEFT = {key: value for key, value in BASE.items() if key != CLASSES}

GN, BN = {"kind": "group"}, {"kind": "batch"}


def read(folder: Path, what: Mapping[str, Any] | str | bytes) -> Detectron2Config:
    """A config of these dotted keys, or of this text, as it is read."""
    path = folder / "config.yaml"
    if isinstance(what, Mapping):
        write_config(path, what)
    else:
        path.write_bytes(what if isinstance(what, bytes) else what.encode())
    return read_config(path)


def refused(folder: Path, what: Mapping[str, Any] | str | bytes) -> str:
    """Why a config is refused, in one line after its name."""
    with pytest.raises(CheckpointError) as caught:
        read(folder, what)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'config.yaml'}: ")
    return message.removeprefix(f"{folder / 'config.yaml'}: ")


def known(config: Detectron2Config) -> dict[str, Any]:
    """Everything that a config decides, by dotted name."""
    seen = config.preprocessing.model_dump(exclude={"resize", "normalise"})
    resize = config.preprocessing.resize
    (step,) = config.preprocessing.normalise
    assert step != "imagenet"
    seen |= {"resize": resize and resize.model_dump(), "mean": step.mean, "std": step.std}
    return flatten(config.parts.model_dump()) | flatten(seen, "input.") | {"classes": config.class_count}


@functools.cache
def of_base() -> dict[str, Any]:
    """Everything that `BASE` decides."""
    with tempfile.TemporaryDirectory() as folder:
        return known(read(Path(folder), BASE))


def minus(keys: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The keys whose values differ, as someone writes a short config."""
    return {key: value for key, value in keys.items() if value != base[key]}


# Whole and short.


def expected_of_the_competition() -> dict[str, Any]:
    parts = Detectron2Parts.model_validate(
        {
            "anchors": {"sizes": ((24,), (40,), (80,), (128,), (256,)), "aspect_ratios": ((0.33, 1, 3),)},
            "rpn": {"pre_nms_top_n": 10000, "post_nms_top_n": 2000, "nms": 0.75},
            "detection": {"per_image": 700},
        }
    )
    resize = {"shortest_edge": 800, "longest_edge": 1333, "exact_hw": None}
    return flatten(parts.model_dump()) | {
        "input.colour": "keep",
        "input.channel_order": "bgr",
        "input.resize_before": None,
        "input.input_range": "0-255",
        "input.pad_multiple": 32,
        **{f"input.resize.{key}": value for key, value in resize.items()},
        "input.resize.interpolation": "pil",
        "input.resize.rounding": "nearest",
        "input.mean": (127.965,) * 3,
        "input.std": (1.0,) * 3,
        "classes": 3,
    }


@pytest.mark.skipif(not DUMP.is_file(), reason="Detectron2's own dump is not beside this checkout")
def test_detectron2_s_own_dump() -> None:
    config = read_config(DUMP)
    assert known(config) == expected_of_the_competition()
    assert config.source == "settings of config.yaml"
    assert {key: value for key, value in tree_of(DUMP).items() if key in GET_CFG} == BASE | COMPETITION


def tree_of(path: Path) -> dict[str, Any]:
    return flatten(yaml.safe_load(path.read_text()))


def test_whole_and_short_say_the_same(tmp_path: Path) -> None:
    whole = BASE | COMPETITION
    expected = expected_of_the_competition()
    assert known(read(tmp_path, whole)) == expected
    assert known(read(tmp_path, minus(whole, GET_CFG))) == expected
    assert known(read(tmp_path, minus(whole, BASE))) == expected


def test_the_source_tells_what_filled_the_gaps(tmp_path: Path) -> None:
    whole = BASE | COMPETITION
    assert read(tmp_path, whole).source == "settings of config.yaml"
    short = minus(whole, GET_CFG)
    gaps = len(whole.keys() - short.keys() - LATER)
    said = f"settings of config.yaml and, for {gaps} keys that it leaves out, of Detectron2's get_cfg()"
    assert read(tmp_path, short).source == said
    assert read(tmp_path, minus(whole, BASE)).source.endswith("of Detectron2's Base-RCNN-FPN.yaml")


def test_an_older_version_s_dump_is_whole_too(tmp_path: Path) -> None:
    config = read(tmp_path, {key: value for key, value in BASE.items() if key not in LATER})
    assert config.source == "settings of config.yaml"
    assert known(config) == of_base()


def test_the_class_count_is_said_or_left_to_the_checkpoint(tmp_path: Path) -> None:
    assert read(tmp_path, LEFT).class_count is None
    assert read(tmp_path, LEFT | {CLASSES: 8}).class_count == 8


# Every key.

POOL = "box_head.pool."
EFFECTS: list[tuple[str, Any, dict[str, Any]]] = [
    ("MODEL.PIXEL_MEAN", [1, 2.5, -3], {"input.mean": (1.0, 2.5, -3.0)}),
    ("MODEL.PIXEL_STD", [57.375, 57.12, 58.395], {"input.std": (57.375, 57.12, 58.395)}),
    ("INPUT.FORMAT", "RGB", {"input.channel_order": "rgb"}),
    ("INPUT.MIN_SIZE_TEST", 1024, {"input.resize.shortest_edge": 1024}),
    ("INPUT.MAX_SIZE_TEST", 2000, {"input.resize.longest_edge": 2000}),
    ("MODEL.RESNETS.DEPTH", 101, {"body.depth": 101}),
    ("MODEL.RESNETS.NUM_GROUPS", 32, {"body.groups": 32}),
    ("MODEL.RESNETS.WIDTH_PER_GROUP", 8, {"body.width_per_group": 8}),
    ("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, {"body.stem_channels": 32}),
    ("MODEL.RESNETS.RES2_OUT_CHANNELS", 128, {"body.res2_channels": 128}),
    ("MODEL.RESNETS.STRIDE_IN_1X1", False, {"body.stride_in_1x1": False}),
    ("MODEL.RESNETS.NORM", "GN", {"body.norm.kind": "group"}),
    ("MODEL.RESNETS.NORM", "BN", {"body.norm.kind": "batch"}),
    ("MODEL.RESNETS.NORM", "SyncBN", {"body.norm.kind": "batch"}),
    ("MODEL.RESNETS.NORM", "nnSyncBN", {"body.norm.kind": "batch"}),
    ("MODEL.RESNETS.NORM", "naiveSyncBN", {"body.norm.kind": "batch"}),
    ("MODEL.RESNETS.NORM", "naiveSyncBN_N", {"body.norm.kind": "batch"}),
    ("MODEL.RESNETS.NORM", "", {"body.norm.kind": "none"}),
    ("MODEL.RESNETS.NORM", "LN", {"body.norm.kind": "layer"}),
    ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, False, True], {"body.deformable": (3, 5)}),
    ("MODEL.RESNETS.DEFORM_MODULATED", True, {"body.modulated": True}),
    ("MODEL.RESNETS.DEFORM_NUM_GROUPS", 2, {"body.deformable_groups": 2}),
    ("MODEL.RESNETS.BOTTLENECK_WIDTH", 40, {}),
    ("MODEL.FPN.OUT_CHANNELS", 128, {"fpn.channels": 128}),
    ("MODEL.FPN.NORM", "GN", {"fpn.norm.kind": "group"}),
    ("MODEL.FPN.FUSE_TYPE", "avg", {"fpn.fuse": "avg"}),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32]], {"anchors.sizes": ((16.0, 32.0),)}),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [16, 32], {"anchors.sizes": ((16.0, 32.0),)}),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [1, 3], {"anchors.aspect_ratios": ((1.0, 3.0),)}),
    (
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        [[1], [2], [0.5], [1], [3]],
        {"anchors.aspect_ratios": ((1.0,), (2.0,), (0.5,), (1.0,), (3.0,))},
    ),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5, {"anchors.offset": 0.5}),
    ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 4, {"rpn.min_size": 4.0}),
    ("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"], {}),
    ("MODEL.RPN.IN_FEATURES", ["p2", "p2", "p3", "p4", "p5"], {"rpn.levels": (2, 2, 3, 4, 5)}),
    ("MODEL.RPN.IN_FEATURES", ["p6", "p5", "p4", "p3", "p2"], {"rpn.levels": (6, 5, 4, 3, 2)}),
    ("MODEL.RPN.CONV_DIMS", [-1, 128], {"rpn.conv_channels": (None, 128)}),
    ("MODEL.RPN.BBOX_REG_WEIGHTS", [1, 2, 3, 4], {"rpn.box_weights": (1.0, 2.0, 3.0, 4.0)}),
    ("MODEL.RPN.PRE_NMS_TOPK_TEST", 10000, {"rpn.pre_nms_top_n": 10000}),
    ("MODEL.RPN.POST_NMS_TOPK_TEST", 2000, {"rpn.post_nms_top_n": 2000}),
    ("MODEL.RPN.NMS_THRESH", 0.75, {"rpn.nms": 0.75}),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4"], {"roi_levels": (3, 4)}),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 7, {"classes": 7}),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3, {"detection.score": 0.3}),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.6, {"detection.nms": 0.6}),
    ("TEST.DETECTIONS_PER_IMAGE", 1000, {"detection.per_image": 1000}),
    ("TEST.DETECTIONS_PER_IMAGE", -1, {"detection.per_image": None}),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 9, {f"{POOL}size": 9}),
    ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2, {f"{POOL}sampling_ratio": 2}),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", {f"{POOL}aligned": False}),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", 1, {"box_head.fc_channels": (1024,)}),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", 512, {"box_head.fc_channels": (512, 512)}),
    ("MODEL.ROI_BOX_HEAD.NUM_CONV", 4, {"box_head.conv_channels": (256,) * 4}),
    ("MODEL.ROI_BOX_HEAD.CONV_DIM", 64, {}),
    ("MODEL.ROI_BOX_HEAD.NORM", "GN", {"box_head.norm.kind": "group"}),
    ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, {"box_head.class_agnostic": True}),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [5, 5, 2, 2], {"box_head.box_weights": ((5.0, 5.0, 2.0, 2.0),)}),
    ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, {"box_head.scores": "sigmoid"}),
    ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[1, 1, 1, 1]], {}),
    ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7, {"mask_head.pool.size": 7}),
    ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2, {"mask_head.pool.sampling_ratio": 2}),
    ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign", {"mask_head.pool.aligned": False}),
    ("MODEL.ROI_MASK_HEAD.NUM_CONV", 0, {"mask_head.conv_channels": ()}),
    (
        "MODEL.ROI_MASK_HEAD.CONV_DIM",
        64,
        {"mask_head.conv_channels": (64,) * 4, "mask_head.hidden": 64},
    ),
    ("MODEL.ROI_MASK_HEAD.NORM", "BN", {"mask_head.norm.kind": "batch"}),
    ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, {"mask_head.class_agnostic": True}),
]


@pytest.mark.parametrize(("key", "value", "effect"), EFFECTS, ids=[f"{k}={v}"[6:] for k, v, _ in EFFECTS])
def test_a_key_changes_its_setting_and_no_other(
    tmp_path: Path, key: str, value: Any, effect: dict[str, Any]
) -> None:
    assert known(read(tmp_path, BASE | {key: value})) == of_base() | effect
    assert known(read(tmp_path, SHORT | {key: value})) == of_base() | effect


TOGETHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"MODEL.ROI_BOX_HEAD.NUM_CONV": 2, "MODEL.ROI_BOX_HEAD.CONV_DIM": 64, "MODEL.ROI_BOX_HEAD.NUM_FC": 0},
        {"box_head.conv_channels": (64, 64), "box_head.fc_channels": ()},
    ),
    (
        CASCADE,
        {
            "box_head.cascade": True,
            "box_head.class_agnostic": True,
            "box_head.box_weights": (
                (10.0, 10.0, 5.0, 5.0),
                (20.0, 20.0, 10.0, 10.0),
                (30.0, 30.0, 15.0, 15.0),
            ),
        },
    ),
    (
        CASCADE | {"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": [[1, 1, 1, 1], [2, 2, 2, 2]]},
        {
            "box_head.cascade": True,
            "box_head.class_agnostic": True,
            "box_head.box_weights": ((1.0,) * 4, (2.0,) * 4),
        },
    ),
    (
        {
            "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
            "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5"],
            "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
            "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128]],
        },
        {
            "body.stages": (3, 4, 5),
            "rpn.levels": (3, 4, 5),
            "roi_levels": (3, 4, 5),
            "anchors.sizes": ((32.0,), (64.0,), (128.0,)),
        },
    ),
    (
        {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64},
        {"body.depth": 18, "body.res2_channels": 64},
    ),
    (
        {
            "MODEL.RESNETS.RADIX": 2,
            "MODEL.RESNETS.DEPTH": 269,
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.RESNETS.BOTTLENECK_WIDTH": 40,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 128,
        },
        {
            "body.radix": 2,
            "body.depth": 269,
            "body.stride_in_1x1": False,
            "body.width_per_group": 80,
        },
    ),
]


@pytest.mark.parametrize(("keys", "effect"), TOGETHER, ids=range(len(TOGETHER)))
def test_keys_that_go_together(tmp_path: Path, keys: dict[str, Any], effect: dict[str, Any]) -> None:
    assert known(read(tmp_path, BASE | keys)) == of_base() | effect


LIVECELL = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone", FREEZE_AT: 0}
  MASK_ON: True
  RESNETS:
    DEPTH: 200
    STRIDE_IN_1X1: False
    RADIX: 2
    DEFORM_ON_PER_STAGE: [False, True, True, True] # from res3 on
    DEFORM_MODULATED: True
    DEFORM_NUM_GROUPS: 2
    NORM: "SyncBN"
  FPN: {NORM: "SyncBN", IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR:
    SIZES: [[4], [9], [17], [31], [64], [127]]
    ASPECT_RATIOS: [[0.25, 0.5, 1.0, 2.0, 4.0]]
  ROI_HEADS: {NUM_CLASSES: 1, NAME: CascadeROIHeads, IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD:
    NAME: "FastRCNNConvFCHead"
    NUM_CONV: 4
    NUM_FC: 1
    NORM: "SyncBN"
    POOLER_RESOLUTION: 14
    CLS_AGNOSTIC_BBOX_REG: True
  ROI_MASK_HEAD: {NUM_CONV: 8, NORM: "SyncBN"}
  RPN: {IN_FEATURES: ["p2" ,"p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TEST: 6000, POST_NMS_TOPK_TEST: 3000}
  RETINANET: {NUM_CLASSES: 1, TOPK_CANDIDATES_TEST: 3000}
  PIXEL_MEAN: [128, 128, 128]
  PIXEL_STD: [11.578, 11.578, 11.578]
SOLVER: {STEPS: (17500, 20000)}
TEST: {DETECTIONS_PER_IMAGE: 3000, PRECISE_BN: {ENABLED: False}, AUG: {ENABLED: False}}
VERSION: 2
"""
"""What LIVECell's published config says at test time (sartorius-research/LIVECell, model/anchor_based)."""


def test_livecell_s_own_config(tmp_path: Path) -> None:
    config = read(tmp_path, LIVECELL)
    parts = config.parts
    assert parts.body.model_dump(exclude={"norm", "stages"}) == {
        "depth": 200,
        "groups": 1,
        "width_per_group": 64,
        "radix": 2,
        "stem_channels": 64,
        "res2_channels": 256,
        "stride_in_1x1": False,
        "deformable": (3, 4, 5),
        "modulated": True,
        "deformable_groups": 2,
    }
    assert parts.rpn.levels == (2, 2, 3, 4, 5, 6)
    assert parts.level_anchors[:2] == (
        ((4.0,), (0.25, 0.5, 1.0, 2.0, 4.0)),
        ((9.0,), (0.25, 0.5, 1.0, 2.0, 4.0)),
    )
    assert (parts.box_head.pool.size, parts.mask_head.pool.size) == (14, 14)
    assert config.source.endswith(
        "keys that it leaves out, of Detectron2's get_cfg() with ResNeSt's own defaults"
    )


@pytest.mark.parametrize("name", ["build_resnest_fpn_backbone", "build_resneSt_fpn_backbone"])
def test_resnest_s_add_on_has_defaults_of_its_own(tmp_path: Path, name: str) -> None:
    config = read(tmp_path, SHORT | {"MODEL.BACKBONE.NAME": name})
    assert known(config) == of_base() | {"body.radix": 2, "body.stride_in_1x1": False}
    assert config.source.endswith("of Detectron2's Base-RCNN-FPN.yaml with ResNeSt's own defaults")
    switched = SHORT | {"MODEL.BACKBONE.NAME": name, "MODEL.RESNETS.DEEP_STEM": False}
    assert known(read(tmp_path, switched)) == known(config)
    said = refused(tmp_path, SHORT | {"MODEL.BACKBONE.NAME": name, "MODEL.RESNETS.RADIX": 1})
    assert "MODEL.RESNETS.DEEP_STEM = True (expected False where RADIX is 1)" in said


def test_the_fork_needs_no_other_builder(tmp_path: Path) -> None:
    config = read(tmp_path, SHORT | {"MODEL.RESNETS.RADIX": 2})
    assert known(config) == of_base() | {"body.radix": 2, "body.stride_in_1x1": False}


def test_no_resizing(tmp_path: Path) -> None:
    assert read(tmp_path, BASE | {"INPUT.MIN_SIZE_TEST": 0}).preprocessing.resize is None


# A part that is not built otherwise, by its key.
OTHERS: dict[str, tuple[Any, ...]] = {
    "VERSION": (1,),
    "MODEL.META_ARCHITECTURE": ("RetinaNet", "PanopticFPN"),
    "MODEL.MASK_ON": (False,),
    "MODEL.KEYPOINT_ON": (True,),
    "MODEL.LOAD_PROPOSALS": (True,),
    "INPUT.FORMAT": ("L", "YUV-BT.601", None),
    "MODEL.BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnest_backbone",
        "build_swint_fpn_backbone",
    ),
    "MODEL.RESNETS.DEPTH": (26, True),
    "MODEL.RESNETS.NORM": ("IN", "none", None, ["BN"]),
    "MODEL.RESNETS.RES5_DILATION": (2,),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([True], [False, True, True, 2], 1),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": (0, None),
    "MODEL.RESNETS.RADIX": (0, 1.5),
    "MODEL.RESNETS.DEEP_STEM": (True, None),
    "MODEL.RESNETS.AVD": (True,),
    "MODEL.RESNETS.AVG_DOWN": (True,),
    "MODEL.FPN.NORM": ("BatchNorm",),
    "MODEL.FPN.FUSE_TYPE": ("max",),
    "MODEL.FPN.IN_FEATURES": (
        [],
        "res2",
        ["res1", "res2"],
        ["res5", "res6"],
        ["p2"],
        [["res2"]],
        [2, 3],
        None,
    ),
    "MODEL.ANCHOR_GENERATOR.NAME": ("RotatedAnchorGenerator",),
    "MODEL.ANCHOR_GENERATOR.SIZES": ([], [[]], 32, [[0]], [[-8]], [["a"]], ["a"], [[8], 9], None),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ([], [0.5, 0], [[0]]),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (1.0, -0.5),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RRPN", "PrecomputedProposals"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (-1,),
    "MODEL.RPN.HEAD_NAME": ("OwnHead",),
    "MODEL.RPN.IN_FEATURES": (["res4"], [], ["p2", "p7"]),
    "MODEL.RPN.CONV_DIMS": ([], [0], [-2], -1),
    "MODEL.RPN.BBOX_REG_WEIGHTS": ([1, 1, 1, 1, 1], [1, 1, 1, 0], [1, 1]),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (0, -1, 1.5),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (0, "many"),
    "MODEL.RPN.NMS_THRESH": (1.5, -0.1, float("nan")),
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "PointRendROIHeads", "RROIHeads"),
    "MODEL.ROI_HEADS.IN_FEATURES": (["res4"], []),
    "MODEL.ROI_HEADS.NUM_CLASSES": (0, -1, "three"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (2,),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (2,),
    "TEST.DETECTIONS_PER_IMAGE": (0,),
    "TEST.AUG.ENABLED": (True,),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "OwnHead"),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (0, [7, 7]),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": (-1,),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIPool", "ROIAlignRotated"),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (-1, 10**12),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (-1, 10**12),
    "MODEL.ROI_BOX_HEAD.NORM": ("ReLU",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": ([10, 10, 5, 5, 5], [10, 10, 5]),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ([[10, 10, 5]],),
    "MODEL.ROI_MASK_HEAD.NAME": ("PointRendMaskHead",),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("",),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": (-1, 10**12),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": (0,),
    "MODEL.ROI_MASK_HEAD.NORM": ("gn",),
    "INPUT.MIN_SIZE_TEST": (-1, [800], 0.5, None),
    "INPUT.MAX_SIZE_TEST": (0,),
    "MODEL.PIXEL_MEAN": ([127.5], [1, 2, 3, 4], [1, 2, float("inf")]),
    "MODEL.PIXEL_STD": ([0, 1, 1], [1.0]),
}


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(k, v, id=f"{k}={v}"[6:]) for k, some in OTHERS.items() for v in some]
)
def test_what_is_not_built_is_refused_by_its_key(tmp_path: Path, key: str, value: Any) -> None:
    said = refused(tmp_path, SHORT | {key: value})
    assert said.startswith(f"cannot honour {key} = {value!r} (")
    assert all(part.startswith(f"{key} = ") for part in said.removeprefix("cannot honour ").split("; "))
    assert "Input should" not in said


def test_every_key_that_is_read_is_tested() -> None:
    assert {key for key, _, _ in EFFECTS} | OTHERS.keys() == config_keys.READ
    assert GET_CFG.keys() == config_keys.READ - OF_FORKS


def test_several_faults_are_one_line(tmp_path: Path) -> None:
    wrong = {
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignRotated",
        "TEST.AUG.ENABLED": True,
        "MODEL.POINT_HEAD.NUM_FC": 3,
    }
    said = refused(tmp_path, BASE | wrong).removeprefix("cannot honour ").split("; ", 3)
    assert {part.partition(" = ")[0] for part in said[:3]} == set(list(wrong)[:3])
    assert said[3].startswith("MODEL.POINT_HEAD.NUM_FC = 3 (no key of Detectron2 0.6")


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    (
        "MODEL.FPN.IN_FEATURES",
        {"MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4"]},
        "expected consecutive ones up",
    ),
    (
        "MODEL.FPN.IN_FEATURES",
        {"MODEL.FPN.IN_FEATURES": ["res2", "res4", "res5"]},
        "expected consecutive ones up",
    ),
    (
        "MODEL.RPN.IN_FEATURES",
        {"MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"]},
        "expected levels of (3, 4, 5, 6)",
    ),
    (
        "MODEL.ROI_HEADS.IN_FEATURES",
        {"MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p4", "p3", "p5"]},
        "expected consecutive levels, found (2, 4, 3, 5)",
    ),
    (
        "MODEL.ROI_HEADS.IN_FEATURES",
        {"MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p2"]},
        "expected consecutive levels, found (2, 2)",
    ),
    (
        "MODEL.RESNETS.DEPTH",
        {
            "MODEL.RESNETS.DEPTH": 34,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True],
        },
        "expected 50 or more with deformable stages",
    ),
    ("MODEL.RESNETS.DEPTH", {"MODEL.RESNETS.DEPTH": 200}, "expected a radix over 1 with 200 layers"),
    (
        "MODEL.RESNETS.DEFORM_NUM_GROUPS",
        {
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True],
            "MODEL.RESNETS.DEFORM_NUM_GROUPS": 3,
        },
        "expected a divisor of 64, found 3",
    ),
    (
        "MODEL.RESNETS.RADIX",
        {"MODEL.RESNETS.RADIX": 2, "MODEL.RESNETS.STRIDE_IN_1X1": True},
        "expected groups 1 and no stride_in_1x1",
    ),
    (
        "MODEL.RESNETS.RADIX",
        {"MODEL.RESNETS.RADIX": 2, "MODEL.RESNETS.STRIDE_IN_1X1": False, "MODEL.RESNETS.NUM_GROUPS": 2},
        "expected groups 1 and no stride_in_1x1",
    ),
    ("MODEL.RESNETS.RADIX", {"MODEL.RESNETS.RADIX": 3}, "expected a divisor of 64, found 3"),
    (
        "MODEL.ROI_HEADS.IN_FEATURES",
        {"MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p4"]},
        "expected consecutive levels",
    ),
    (
        "MODEL.ANCHOR_GENERATOR.SIZES",
        {"MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16]]},
        "expected 1 or 5 lists, found 2",
    ),
    (
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1]] * 4},
        "expected 1 or 5 lists, found 4",
    ),
    (
        "MODEL.ANCHOR_GENERATOR",
        {"MODEL.ANCHOR_GENERATOR.SIZES": [[8, 9], [16], [32], [64], [128]]},
        "expected as many on each level, found (6, 3, 3, 3, 3)",
    ),
    ("MODEL.RESNETS.DEPTH", {"MODEL.RESNETS.DEPTH": 34}, "expected groups 1 and res2_channels 64"),
    (
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"},
        "expected true in a cascade, found false",
    ),
    (
        "MODEL.ROI_BOX_HEAD.NUM_FC",
        {"MODEL.ROI_BOX_HEAD.NUM_FC": 0},
        "expected a convolution or a fully connected",
    ),
]


@pytest.mark.parametrize(("key", "keys", "why"), CONTRADICTIONS, ids=range(len(CONTRADICTIONS)))
def test_keys_that_contradict_each_other(tmp_path: Path, key: str, keys: dict[str, Any], why: str) -> None:
    said = refused(tmp_path, SHORT | keys)
    assert said.startswith(f"{key}: ")
    assert why in said


# What else a config says.


def test_training_settings_change_nothing(tmp_path: Path) -> None:
    told = {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "MODEL.DEVICE": "cuda",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.6],
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 128,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True,
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": [0.4, 0.5, 0.6],
        "MODEL.RETINANET.NUM_CLASSES": 3,
        "MODEL.SEM_SEG_HEAD.NORM": "LN",
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 4,
        "TEST.AUG.MIN_SIZES": [400, 800],
        "TEST.AUG.FLIP": True,
        "TEST.EVAL_PERIOD": 500,
        "TEST.EXPECTED_RESULTS": [["bbox", "AP", 38.5, 0.2]],
        "TEST.PRECISE_BN.ENABLED": True,
        "SOLVER.BASE_LR": 0.0005,
        "SOLVER.OWN": "anything",
        "DATASETS.TRAIN": ["sartorius_train"],
        "INPUT.MIN_SIZE_TRAIN": [640, 800],
        "INPUT.MASK_FORMAT": "bitmask",
        "OUTPUT_DIR": "./output",
        "CUDNN_BENCHMARK": True,
        "GLOBAL.HACK": 1.0,
    }
    assert known(read(tmp_path, BASE | told)) == of_base()


@pytest.mark.parametrize("key", ["MODEL.POINT_HEAD.NUM_FC", "MODEL.FPN.TOP_LEVELS", "MODEL.NEW", "TEST.TTA"])
@pytest.mark.parametrize("value", [3, True, "on", [1], [[0]], -0.5])
def test_an_unknown_key_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    why = "no key of Detectron2 0.6; delete it if it says nothing at test time"
    assert refused(tmp_path, SHORT | {key: value}) == f"cannot honour {key} = {value!r} ({why})"


@pytest.mark.parametrize("value", [None, False, "", [], {}, 0, 0.0])
def test_an_unknown_key_that_is_switched_off_is_not(tmp_path: Path, value: Any) -> None:
    config = read(tmp_path, BASE | {"MODEL.POINT_HEAD.ENABLED": value, "MODEL.NEW": value})
    assert known(config) == of_base()


def test_a_mapping_in_place_of_a_value_is_no_silence(tmp_path: Path) -> None:
    assert refused(tmp_path, BASE | {"MODEL.RESNETS.NORM": {}}).startswith(
        "cannot honour MODEL.RESNETS.NORM = {} ("
    )
    said = refused(tmp_path, BASE | {"MODEL.RESNETS.NORM": {"KIND": "GN"}})
    assert said.startswith("cannot honour MODEL.RESNETS.NORM.KIND = 'GN' (no key of Detectron2")


# Spellings.


@pytest.mark.parametrize(("key", "value", "effect"), EFFECTS, ids=[f"{k}={v}"[6:] for k, v, _ in EFFECTS])
def test_literals_in_quotes_are_what_detectron2_makes_of_them(
    tmp_path: Path, key: str, value: Any, effect: dict[str, Any]
) -> None:
    for text in (repr(value), repr(tuples(value))):
        assert known(read(tmp_path, SHORT | {key: text})) == of_base() | effect


def tuples(value: Any) -> Any:
    """A value with tuples for its lists."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def test_tuples_of_python(tmp_path: Path) -> None:
    text = yaml.dump(nested(BASE | {"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (1.0, 2.0, 3.0, 4.0)}))
    assert "!!python/tuple" in text
    assert read(tmp_path, text).parts.box_head.box_weights == ((1.0, 2.0, 3.0, 4.0),)
    text = yaml.dump(nested(BASE | CASCADE | {"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ((1.0,) * 4,)}))
    assert read(tmp_path, text).parts.box_head.box_weights == ((1.0,) * 4,)


def test_anchors_and_merges_of_yaml(tmp_path: Path) -> None:
    text = """
    MODEL:
      RPN: &rpn {NMS_THRESH: 0.6, BBOX_REG_WEIGHTS: &w [1, 1, 2, 2]}
      ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: *w}
      ROI_MASK_HEAD: {<<: {NUM_CONV: 2}, CONV_DIM: 8}
    """
    parts = read(tmp_path, text).parts
    assert parts.rpn.nms == 0.6
    assert parts.rpn.box_weights == parts.box_head.box_weights[0] == (1.0, 1.0, 2.0, 2.0)
    assert parts.mask_head.conv_channels == (8, 8)


def test_an_editor_s_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + yaml.safe_dump(nested(BASE))
    assert known(read(tmp_path, text)) == of_base()


# Bases.


def test_a_chain_of_bases(tmp_path: Path) -> None:
    write_config(tmp_path / "configs" / "base.yaml", LEFT | {"MODEL.RPN.NMS_THRESH": 0.5})
    middle = {"_BASE_": "../configs/base.yaml", "MODEL.RPN.NMS_THRESH": 0.6, "MODEL.RESNETS.DEPTH": 101}
    write_config(tmp_path / "other" / "middle.yaml", middle)
    config = read(tmp_path, {"_BASE_": "other/middle.yaml", CLASSES: 3, "MODEL.RESNETS.NORM": "GN"})
    effect = {"classes": 3, "rpn.nms": 0.6, "body.depth": 101, "body.norm.kind": "group"}
    assert known(config) == of_base() | effect
    assert config.source == "settings of config.yaml"


def test_a_base_by_its_whole_path(tmp_path: Path) -> None:
    base = write_config(tmp_path / "far" / "base.yaml", {"MODEL.RPN.NMS_THRESH": 0.5})
    assert read(tmp_path, {"_BASE_": str(base), "MODEL.MASK_ON": True}).parts.rpn.nms == 0.5


def test_lists_of_a_base_are_replaced_not_joined(tmp_path: Path) -> None:
    write_config(tmp_path / "base.yaml", {"MODEL.ANCHOR_GENERATOR.SIZES": [[8, 9]]})
    config = read(tmp_path, {"_BASE_": "base.yaml", "MODEL.ANCHOR_GENERATOR.SIZES": [[7]]})
    assert config.parts.anchors.sizes == ((7.0,),)


def test_base_rcnn_fpn_is_known_where_it_is_missing(tmp_path: Path) -> None:
    """Also below a config that would stand by itself, whose gaps get_cfg() would fill otherwise."""
    for keys in (COMPETITION, BASE, {key: BASE[key] for key in config_keys.WITHOUT_DEFAULT}):
        less = {key: value for key, value in keys.items() if key != "MODEL.RPN.PRE_NMS_TOPK_TEST"}
        config = read(tmp_path, {"_BASE_": "../../configs/Base-RCNN-FPN.yaml"} | less)
        assert known(config) == known(read(tmp_path, LEFT | less)) | {"classes": less.get(CLASSES)}
        assert config.parts.rpn.pre_nms_top_n == 1000


def test_base_rcnn_fpn_may_be_the_base_of_a_base(tmp_path: Path) -> None:
    write_config(tmp_path / "middle.yaml", {"_BASE_": "Base-RCNN-FPN.yaml", "MODEL.RPN.NMS_THRESH": 0.6})
    parts = read(tmp_path, {"_BASE_": "middle.yaml", "MODEL.RESNETS.DEPTH": 101}).parts
    assert (parts.body.depth, parts.rpn.nms, parts.rpn.pre_nms_top_n) == (101, 0.6, 1000)


def test_base_rcnn_fpn_that_is_there_is_read(tmp_path: Path) -> None:
    write_config(tmp_path / "Base-RCNN-FPN.yaml", {"MODEL.RPN.NMS_THRESH": 0.5})
    assert read(tmp_path, {"_BASE_": "Base-RCNN-FPN.yaml", "MODEL.MASK_ON": True}).parts.rpn.nms == 0.5


@pytest.mark.parametrize(
    "base",
    ["absent.yaml", ".", "", "https://host/base.yaml", ["a.yaml"], {"a": 1}, 3, "a" * 300, "a\0b", True],
)
def test_a_base_that_is_not_there(tmp_path: Path, base: Any) -> None:
    said = refused(tmp_path, yaml.safe_dump({"_BASE_": base, "MODEL": {"MASK_ON": True}}))
    assert said.startswith("_BASE_: expected a file beside the config, found ")
    assert said.endswith("dump the whole config with cfg.dump()")
    assert len(said) < 250


@pytest.mark.parametrize("ring", [["config.yaml"], ["b.yaml", "config.yaml"], ["b.yaml", "c.yaml", "b.yaml"]])
def test_bases_in_a_ring(tmp_path: Path, ring: list[str]) -> None:
    for name, base in zip(["config.yaml", *ring], ring, strict=False):
        write_config(tmp_path / name, {"_BASE_": base, "MODEL.MASK_ON": True})
    with pytest.raises(CheckpointError, match="_BASE_: expected a file beside the config"):
        read_config(tmp_path / "config.yaml")


def test_a_broken_base_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("- no mapping")
    with pytest.raises(CheckpointError, match=r"base\.yaml: expected a mapping of keys, found list"):
        read(tmp_path, {"_BASE_": "base.yaml", "MODEL.MASK_ON": True})


# What is no config.

LAZY = """
model: {_target_: detectron2.modeling.GeneralizedRCNN, backbone: {_target_: detectron2.modeling.FPN}}
train: {output_dir: ./output}
"""
NO_CONFIGS: list[tuple[str | bytes, str]] = [
    ("", "expected a mapping of keys, found NoneType"),
    ("# a comment alone", "expected a mapping of keys, found NoneType"),
    ("just text", "expected a mapping of keys, found str"),
    ("- MODEL", "expected a mapping of keys, found list"),
    ("1: 2", "expected a mapping of keys, found dict"),
    ("{}", "expected a Detectron2 config with keys under MODEL, found nothing"),
    ("MODEL: {}", "expected a Detectron2 config with keys under MODEL, found MODEL"),
    ("MODEL: null", "expected a Detectron2 config with keys under MODEL, found MODEL"),
    ("MODEL: [1]", "expected a Detectron2 config with keys under MODEL, found MODEL"),
    (LAZY, "expected a Detectron2 config with keys under MODEL, found model._target_, model.backbone"),
    ("model: {name: maskrcnn}", "expected a Detectron2 config with keys under MODEL, found model.name"),
    (b"\xff\xfeM\0", "expected a Detectron2 config, found 'utf-8' codec can't decode byte 0xff"),
    (b"PK\3\4\0\0", "expected the YAML of cfg.dump(), found unacceptable character"),
    ("MODEL: {RPN: ", "expected the YAML of cfg.dump(), found while parsing a flow "),
    ("MODEL:\n\tRPN: {}", "expected the YAML of cfg.dump(), found while scanning for the next token"),
    ("MODEL: *absent", "expected the YAML of cfg.dump(), found found undefined alias 'absent'"),
    ("MODEL: {1: 2}\n---\nMODEL: {}", "expected the YAML of cfg.dump(), found expected a single document"),
    ("? [a]\n: b", "expected the YAML of cfg.dump(), found while constructing a mapping"),
    ("MODEL: {X: !!int ''}", "expected the YAML of cfg.dump(), found "),
    ("MODEL: {X: !!float ''}", "expected the YAML of cfg.dump(), found "),
    ("MODEL: {X: !!bool x}", "expected the YAML of cfg.dump(), found "),
    ("MODEL: {X: !!timestamp x}", "expected the YAML of cfg.dump(), found "),
    ("MODEL: {X: 2021-99-99}", "expected the YAML of cfg.dump(), found "),
    (f"MODEL: {{X: {'9' * 5000}}}", "expected the YAML of cfg.dump(), found "),
    ("MODEL: " + "[" * 1200, "expected the YAML of cfg.dump(), found "),
    ("MODEL: {X: " + "{a: " * 2000 + "}" * 2001, "expected the YAML of cfg.dump(), found "),
    ("MODEL: &a {X: *a}", "expected a config, found a mapping that holds itself"),
    ("&a {MODEL: {X: 1}, Y: *a}", "expected a config, found a mapping that holds itself"),
]


@pytest.mark.parametrize(("text", "why"), NO_CONFIGS, ids=range(len(NO_CONFIGS)))
def test_what_is_no_config(tmp_path: Path, text: str | bytes, why: str) -> None:
    said = refused(tmp_path, text)
    assert said.startswith(why)
    assert len(said) < 400
    if text == LAZY:
        assert "LazyConfig" in said


def test_a_list_that_holds_itself_is_refused_by_its_key(tmp_path: Path) -> None:
    for key in ("SIZES", "OWN"):
        said = refused(tmp_path, f"MODEL: {{ANCHOR_GENERATOR: {{{key}: &a [*a]}}}}")
        assert said.startswith(f"cannot honour MODEL.ANCHOR_GENERATOR.{key} = [")
        assert len(said) < 300


def test_places_without_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    for path in (tmp_path / "config.yaml", tmp_path / "absent.yaml"):
        with pytest.raises(CheckpointError, match="expected a Detectron2 config, found "):
            read_config(path)


OBJECTS = [
    "!!python/object/apply:os.mkdir [{}]",
    "!!python/object/apply:os.mkdir {{args: [{}]}}",
    "!!python/object/new:os.mkdir [{}]",
    "!!python/object:pathlib.Path {{}}",
    "!!python/name:os.mkdir x",
    "!!python/module:os x",
    '!!python/object/apply:builtins.eval [\'__import__("os").mkdir("{}")\']',
    "!!python/tuple [!!python/object/apply:os.mkdir [{}]]",
]


@pytest.mark.parametrize("tag", OBJECTS, ids=range(len(OBJECTS)))
@pytest.mark.parametrize(
    "place", ["MODEL: {{RPN: {{X: {}}}}}", "OUTPUT_DIR: {}", "_BASE_: {}", "{}", "? {}\n: 1"]
)
def test_objects_are_never_built(tmp_path: Path, tag: str, place: str) -> None:
    marker = tmp_path / "ran"
    said = refused(tmp_path, place.format(tag.format(marker)))
    assert not marker.exists()
    assert said.startswith(
        "expected the YAML of cfg.dump(), found could not determine a constructor for the tag"
    )


def doubled(first: str, depth: int) -> str:
    """Names for values each of which holds the one before it twice."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize("leaf", ["{}", "{x: 1}", "[]", "1"])
def test_mappings_that_multiply_are_refused(tmp_path: Path, leaf: str) -> None:
    text = doubled(leaf, 40) + "\nMODEL: *a39"  # a trillion mappings: whoever walks them never ends
    assert refused(tmp_path, text) == "expected a Detectron2 config, found 10,000 keys or more"


@pytest.mark.parametrize("key", ["MODEL.OWN", "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.WEIGHTS"])
def test_lists_that_multiply_are_not_written_out(tmp_path: Path, key: str) -> None:
    value: Any = [1]
    for _ in range(30):
        value = [value] * 9
    text = yaml.safe_dump(nested({key: value, "MODEL.MASK_ON": True}))
    if key == "MODEL.WEIGHTS":
        read(tmp_path, text)
    else:
        assert len(refused(tmp_path, text)) < 3000


def test_long_values_are_cut(tmp_path: Path) -> None:
    for value in ("x" * 10**4, "(" * 10**4, ["x" * 1000] * 20, "9" * 5000):
        assert len(refused(tmp_path, BASE | {"MODEL.BACKBONE.NAME": value})) < 1500
    assert "MODEL.BACKBONE.NAME = a int" in refused(
        tmp_path, "MODEL: {BACKBONE: {NAME: 0x" + "f" * 5000 + "}}"
    )


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text("aA01([{,}])'\"_\\.pres2 ", max_size=12)
    | st.sampled_from(["res2", "p6", "GN", "ROIAlign", "(1, 2)", "{[]: 1}", "RGB"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(GET_CFG)), anything, min_size=1, max_size=3))
def test_any_values_are_settings_or_refused(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Any]
) -> None:
    folder, keys = tmp_path_factory.getbasetemp(), {"MODEL.MASK_ON": True} | keys
    try:
        known(read(folder, keys))
    except CheckpointError:
        said = refused(folder, keys)
        assert any(key in said or key.rpartition(".")[0] in said for key in keys)


@settings(max_examples=150)
@given(st.text() | st.binary() | st.text("MODEL:{}[]&*!<>-#,'\" \n\t%@`|?a1"))
def test_any_text_is_a_config_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    for content in (data, b"MODEL: {MASK_ON: true}\n" + data):
        try:
            read(folder, content)
        except CheckpointError:
            continue


def test_the_small_network_s_config(tmp_path: Path) -> None:
    """What the other tests stand on."""
    assert read(tmp_path, SMALL).parts == Detectron2Parts.model_validate(PARTS)
