"""Small configs of MMDetection 3.x, one of each kind, in its own names; and what makes them ones of 2.x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet_layers_oracle import Config, merged

RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
BN: Config = {"type": "BN", "requires_grad": True}
SYNC_BN: Config = {"type": "SyncBN", "requires_grad": True}
GN: Config = {"type": "GN", "num_groups": 8, "requires_grad": True}
STRIDES = [4, 8, 16, 32, 64]


def coder(*stds: float) -> Config:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def extractor(size: int) -> Config:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
        "out_channels": 16,
        "featmap_strides": STRIDES[:4],
    }


def box_head(kind: str = "Shared2FCBBoxHead", **changes: Any) -> Config:
    return {
        "type": kind,
        "in_channels": 16,
        "fc_out_channels": 32,
        "roi_feat_size": 7,
        "num_classes": 3,
        "bbox_coder": coder(0.1, 0.1, 0.2, 0.2),
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    } | changes


def mask_head(kind: str = "FCNMaskHead", **changes: Any) -> Config:
    return {
        "type": kind,
        "num_convs": 2,
        "in_channels": 16,
        "conv_out_channels": 16,
        "num_classes": 3,
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    } | changes


def pipeline(scale: tuple[int, int]) -> list[Config]:
    return [
        {"type": "LoadImageFromFile", "backend_args": None},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "ori_shape", "img_shape", "scale_factor")},
    ]


SMALL: Config = {
    "default_scope": "mmdet",
    "model": {
        "type": "MaskRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": RGB_MEAN,
            "std": RGB_STD,
            "bgr_to_rgb": True,
            "pad_mask": True,
            "pad_size_divisor": 32,
        },
        "backbone": {
            "type": "ResNet",
            "depth": 50,
            "base_channels": 8,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "frozen_stages": 1,
            "norm_cfg": BN,
            "norm_eval": True,
            "style": "pytorch",
        },
        "neck": {"type": "FPN", "in_channels": [32, 64, 128, 256], "out_channels": 16, "num_outs": 5},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": 16,
            "feat_channels": 16,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [2],
                "ratios": [0.5, 1.0, 2.0],
                "strides": STRIDES,
            },
            "bbox_coder": coder(1.0, 1.0, 1.0, 1.0),
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": extractor(7),
            "bbox_head": box_head(),
            "mask_roi_extractor": extractor(8),
            "mask_head": mask_head(),
        },
        "test_cfg": {
            "rpn": {
                "nms_pre": 80,
                "max_per_img": 60,
                "nms": {"type": "nms", "iou_threshold": 0.7},
                "min_bbox_size": 0,
            },
            "rcnn": {
                "score_thr": 0.05,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": 50,
                "mask_thr_binary": 0.5,
            },
        },
    },
    "test_dataloader": {
        "batch_size": 1,
        "dataset": {"type": "CocoDataset", "test_mode": True, "pipeline": pipeline((128, 80))},
    },
    "test_cfg": {"type": "TestLoop"},
}
"""Mask R-CNN on a narrow ResNet-50."""


def with_model(*changes: Config) -> Config:
    """SMALL with other parts of its model."""
    return merged(SMALL, *({"model": change} for change in changes))


def with_body(kind: str, widths: Sequence[int] = (32, 64, 128, 256), **changes: Any) -> Config:
    """SMALL on another body, which has maps of these widths."""
    resnet = SMALL["model"]["backbone"] if kind.startswith("Res") else {"out_indices": (0, 1, 2, 3)}
    config = with_model({"neck": {"in_channels": list(widths)}})
    config["model"]["backbone"] = merged(resnet, changes, {"type": kind})
    return config


DEFORMABLE: Config = {
    "dcn": {"type": "DCNv2", "deform_groups": 2, "fallback_on_stride": False},
    "stage_with_dcn": (False, True, True, True),
}
CAFFE = merged(
    with_body("ResNet", style="caffe"),
    {
        "model": {
            "data_preprocessor": {
                "mean": [103.53, 116.28, 123.675],
                "std": [1.0, 1.0, 1.0],
                "bgr_to_rgb": False,
            }
        }
    },
)
BASIC = with_body("ResNet", (8, 16, 32, 64), depth=18)
V1D = with_body("ResNetV1d")
RESNEXT = with_body("ResNeXt", groups=4, base_width=16)
DCN = with_body(
    "ResNeXt",
    groups=4,
    base_width=16,
    dcn={"type": "DCN", "deform_groups": 1, "fallback_on_stride": False},
    stage_with_dcn=(False, True, True, True),
    norm_cfg=SYNC_BN,
)
DCN_V2 = with_body("ResNet", **DEFORMABLE)
RES2NET = with_body("Res2Net", scales=4, base_width=4)
DCN_RES2NET = with_body(
    "Res2Net", scales=4, base_width=4, **DEFORMABLE | {"stage_with_dcn": (False, True, False, True)}
)
RESNEST = merged(
    with_body("ResNeSt", radix=2, reduction_factor=4, avg_down_stride=True, norm_cfg=SYNC_BN),
    {
        "model": {
            "backbone": {"stem_channels": 16},
            "roi_head": {
                "bbox_head": {"type": "Shared4Conv1FCBBoxHead", "conv_out_channels": 16, "norm_cfg": SYNC_BN},
                "mask_head": {"norm_cfg": SYNC_BN},
            },
        }
    },
)
DCN_RESNEST = merged(RESNEST, {"model": {"backbone": DEFORMABLE}})
SWIN = with_body(
    "SwinTransformer",
    (16, 32, 64, 128),
    embed_dims=16,
    depths=[2, 2, 2, 2],
    num_heads=[1, 2, 2, 4],
    window_size=7,
    mlp_ratio=4,
    qkv_bias=True,
    qk_scale=None,
    drop_path_rate=0.2,
    patch_norm=True,
    with_cp=False,
    convert_weights=True,
)
CONVNEXT = with_body(
    "mmpretrain.ConvNeXt",
    (16, 32, 64, 128),
    arch={"depths": [1, 1, 2, 1], "channels": [16, 32, 64, 128]},
    drop_path_rate=0.4,
    layer_scale_init_value=1.0,
    gap_before_final_norm=False,
)
GROUP_NORMS = with_model(
    {
        "neck": {"norm_cfg": GN},
        "roi_head": {
            "bbox_head": {"type": "Shared4Conv1FCBBoxHead", "conv_out_channels": 16, "norm_cfg": GN},
            "mask_head": {"norm_cfg": GN, "class_agnostic": True},
        },
    }
)
"""Group norms in the neck and the heads, and one mask for all classes."""
EXTRA_LEVELS = with_model(
    {
        "neck": {"start_level": 1, "add_extra_convs": "on_input", "num_outs": 5},
        "rpn_head": {"anchor_generator": {"strides": [8, 16, 32, 64, 128]}},
        "roi_head": {
            "bbox_roi_extractor": {"featmap_strides": [8, 16, 32, 64]},
            "mask_roi_extractor": {"featmap_strides": [8, 16, 32, 64]},
        },
    }
)
"""A pyramid that begins a level later and has convolutions for its last two."""
OUTPUT_LEVELS = merged(
    EXTRA_LEVELS,
    {"model": {"neck": {"add_extra_convs": "on_output", "relu_before_extra_convs": True, "norm_cfg": GN}}},
)
MANY_ANCHORS = with_model(
    {
        "rpn_head": {"num_convs": 2, "anchor_generator": {"scales": [1, 3], "ratios": [0.33, 1.0, 3.0]}},
        "roi_head": {
            "bbox_roi_extractor": {"finest_scale": 14},
            "mask_roi_extractor": {"finest_scale": 14},
        },
    }
)
"""Two scales of anchors at every position, and regions from all four levels."""
MANY = {"nms_pre": 200, "max_per_img": 100, "nms": {"iou_threshold": 0.9}}
SOFT_NMS = with_model({"test_cfg": {"rpn": MANY, "rcnn": {"nms": {"type": "soft_nms", "min_score": 0.05}}}})
GAUSSIAN = with_model(
    {"test_cfg": {"rpn": MANY, "rcnn": {"nms": {"type": "soft_nms", "method": "gaussian", "sigma": 0.7}}}}
)
"""Soft NMS on proposals that overlap; the config names its `iou_threshold`, 0.5, as well."""
OWN_BRANCHES = with_model(
    {
        "roi_head": {
            "bbox_head": {
                "type": "ConvFCBBoxHead",
                "num_shared_convs": 1,
                "num_shared_fcs": 0,
                "num_cls_convs": 1,
                "num_cls_fcs": 1,
                "num_reg_convs": 1,
                "num_reg_fcs": 0,
                "conv_out_channels": 16,
                "reg_class_agnostic": True,
            }
        }
    }
)
"""A box head with convolutions and layers of their own for classes and boxes."""

CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
CASCADE = with_model(
    {
        "type": "CascadeRCNN",
        "roi_head": {
            "type": "CascadeRoIHead",
            "num_stages": 3,
            "stage_loss_weights": [1, 0.5, 0.25],
            "bbox_head": [
                box_head(bbox_coder=coder(*stds), reg_class_agnostic=True) for stds in CASCADE_STDS
            ],
        },
    }
)
PER_CLASS_CASCADE = merged(
    CASCADE,
    {
        "model": {
            "roi_head": {
                "bbox_head": [
                    box_head("Shared4Conv1FCBBoxHead", bbox_coder=coder(*stds), conv_out_channels=16)
                    for stds in CASCADE_STDS
                ],
            }
        }
    },
)
HTC = merged(
    CASCADE,
    {
        "model": {
            "type": "HybridTaskCascade",
            "roi_head": {
                "type": "HybridTaskCascadeRoIHead",
                "interleaved": True,
                "mask_info_flow": True,
                "mask_head": [
                    mask_head("HTCMaskHead", with_conv_res=False),
                    mask_head("HTCMaskHead"),
                    mask_head("HTCMaskHead"),
                ],
            },
        }
    },
)

ALL: dict[str, Config] = {
    "ResNet": SMALL,
    "caffe": CAFFE,
    "ResNet-18": BASIC,
    "ResNetV1d": V1D,
    "ResNeXt": RESNEXT,
    "DCN": DCN,
    "DCNv2": DCN_V2,
    "Res2Net": RES2NET,
    "DCN Res2Net": DCN_RES2NET,
    "ResNeSt": RESNEST,
    "DCN ResNeSt": DCN_RESNEST,
    "Swin": SWIN,
    "ConvNeXt": CONVNEXT,
    "group norms": GROUP_NORMS,
    "extra levels": EXTRA_LEVELS,
    "levels of outputs": OUTPUT_LEVELS,
    "many anchors": MANY_ANCHORS,
    "soft NMS": SOFT_NMS,
    "soft NMS, gaussian": GAUSSIAN,
    "own branches": OWN_BRANCHES,
    "cascade": CASCADE,
    "cascade of classes": PER_CLASS_CASCADE,
    "HTC": HTC,
}


def as_2x(config: Config) -> Config:
    """The same network in a config of MMDetection 2.x."""
    model = dict(config["model"])
    said = model.pop("data_preprocessor")
    kind = model["backbone"]["type"].replace("mmpretrain.", "mmcls.")
    model["backbone"] = model["backbone"] | {"type": kind}
    resize = next(s for s in config["test_dataloader"]["dataset"]["pipeline"] if s["type"] == "Resize")
    steps = [
        {"type": "Resize", "keep_ratio": resize["keep_ratio"]},
        {"type": "RandomFlip"},
        {"type": "Normalize", "mean": said["mean"], "std": said["std"], "to_rgb": said["bgr_to_rgb"]},
        {"type": "Pad", "size_divisor": said["pad_size_divisor"]},
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    outer = {
        "type": "MultiScaleFlipAug",
        "img_scale": resize["scale"],
        "flip": False,
        "transforms": steps,
    }
    test = {"type": "CocoDataset", "pipeline": [{"type": "LoadImageFromFile"}, outer]}
    return {"model": model, "data": {"samples_per_gpu": 2, "test": test}}


def as_old_2x(config: Config) -> Config:
    """The same in a config of the first releases of 2.x: other names, and `test_cfg` beside the model."""
    config = as_2x(config)
    model = dict(config["model"])
    said = model.pop("test_cfg")
    rpn = {
        "nms_across_levels": False,
        "nms_pre": said["rpn"]["nms_pre"],
        "nms_post": said["rpn"]["max_per_img"],
        "max_num": said["rpn"]["max_per_img"],
        "nms_thr": said["rpn"]["nms"]["iou_threshold"],
        "min_bbox_size": said["rpn"]["min_bbox_size"],
    }
    return config | {"model": model, "test_cfg": said | {"rpn": rpn}}


def as_text(config: Config) -> str:
    """A config as the Python text that a checkpoint holds."""
    return "".join(f"{key} = {_text(value)}\n" for key, value in config.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={_text(inner)}' for key, inner in value.items())})"
    if isinstance(value, tuple):
        return f"({''.join(f'{_text(inner)}, ' for inner in value)})"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else repr(value)
