"""Keys of `model.backbone`: what each decides, which do not matter, and which are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from sartorius_infer.manifest.mmdet_bodies import (
    Deformable,
    MmdetBody,
    MmdetConvNext,
    MmdetRes2Net,
    MmdetResNeSt,
    MmdetResNet,
    MmdetSwin,
)
from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.mmdet import body_config
from sartorius_infer.networks.mmdet.body_config import read_body

RESNET = {"type": "ResNet", "depth": 50}
V1D = {"type": "ResNetV1d", "depth": 50}
RESNEXT = {"type": "ResNeXt", "depth": 101}
RES2NET = {"type": "Res2Net", "depth": 101}
RESNEST = {"type": "ResNeSt", "depth": 50}
SWIN = {"type": "SwinTransformer"}
CONVNEXT = {"type": "mmpretrain.ConvNeXt", "out_indices": [0, 1, 2, 3], "gap_before_final_norm": False}
BODIES = {"resnet": RESNET, "v1d": V1D, "resnext": RESNEXT, "res2net": RES2NET, "resnest": RESNEST,
          "swin": SWIN, "convnext": CONVNEXT}  # fmt: skip


def read(*said: dict[str, Any], **more: Any) -> MmdetBody:
    return read_body({key: value for part in (*said, more) for key, value in part.items()}, "3.x")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (RESNET, MmdetResNet()),
        (V1D, MmdetResNet(deep_stem=True, avg_down=True)),
        (RESNEXT, MmdetResNet(depth=101)),
        (RES2NET, MmdetRes2Net(depth=101)),
        (RESNEST, MmdetResNeSt()),
        (SWIN, MmdetSwin()),
        (CONVNEXT, MmdetConvNext()),
    ],
)
def test_a_body_of_few_words_is_mmdetections_own(said: dict[str, Any], expected: MmdetBody) -> None:
    assert read(said) == expected


PUBLISHED: dict[str, tuple[dict[str, Any], MmdetBody]] = {
    "the common R50": (
        {
            **{"type": "ResNet", "depth": 50, "num_stages": 4, "out_indices": [0, 1, 2, 3]},
            **{"frozen_stages": 1, "norm_cfg": {"type": "BN", "requires_grad": True}, "norm_eval": True},
            **{
                "style": "pytorch",
                "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet50"},
            },
        },
        MmdetResNet(),
    ),
    "caffe": (
        {**RESNET, "style": "caffe", "norm_cfg": {"type": "BN", "requires_grad": False}},
        MmdetResNet(stride_in_1x1=True),
    ),
    "X101 64x4d with DCN": (
        {
            **{**RESNEXT, "groups": 64, "base_width": 4, "stage_with_dcn": [False, True, True, True]},
            **{"dcn": {"type": "DCN", "deform_groups": 1, "fallback_on_stride": False}},
        },
        MmdetResNet(depth=101, groups=64, deformable=Deformable(modulated=False)),
    ),
    "Res2Net-101 v1b 26w 4s": (
        {**RES2NET, "scales": 4, "base_width": 26, "num_stages": 4, "norm_cfg": {"type": "BN"}},
        MmdetRes2Net(depth=101),
    ),
    "ResNeSt-101": (
        {
            **{"type": "ResNeSt", "stem_channels": 128, "depth": 101, "radix": 2, "reduction_factor": 4},
            **{"avg_down_stride": True, "norm_cfg": {"type": "SyncBN", "requires_grad": True}},
            **{"norm_eval": False, "style": "pytorch"},
        },
        MmdetResNeSt(depth=101, stem_channels=128),
    ),
    "Swin-L of 384 pixels": (
        {
            **{"type": "SwinTransformer", "pretrain_img_size": 384, "embed_dims": 192, "mlp_ratio": 4},
            **{"depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12, "qkv_bias": True},
            **{"qk_scale": None, "drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.2},
            **{"patch_norm": True, "out_indices": (0, 1, 2, 3), "with_cp": False, "convert_weights": True},
        },
        MmdetSwin(channels=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window_size=12),
    ),
    "ConvNeXt-B of 2.x": (
        {
            **{"type": "mmcls.ConvNeXt", "arch": "base", "out_indices": [0, 1, 2, 3], "drop_path_rate": 0.4},
            **{"layer_scale_init_value": 1.0, "gap_before_final_norm": False, "init_cfg": {}},
        },
        MmdetConvNext(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    ),
    "ConvNeXt V2": (
        {
            **{"type": "mmpretrain.ConvNeXt", "arch": "nano", "out_indices": (0, 1, 2, 3), "use_grn": True},
            **{"layer_scale_init_value": 0.0, "gap_before_final_norm": False, "linear_pw_conv": False},
        },
        MmdetConvNext(
            depths=(2, 2, 8, 2),
            channels=(80, 160, 320, 640),
            layer_scale=False,
            global_norm=True,
            linear_pointwise=False,
        ),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name: str) -> None:
    said, expected = PUBLISHED[name]
    assert read(said) == expected


EFFECTS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (RESNET, {"depth": 18}, {"depth": 18}),
    (RESNET, {"base_channels": 32}, {"base_channels": 32, "stem_channels": 32}),
    (RESNET, {"stem_channels": 32}, {"stem_channels": 32}),
    (RESNET, {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
     {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)}),
    (RESNET, {"num_stages": 3, "strides": [1, 2, 2], "dilations": [1, 1, 1], "out_indices": [2]},
     {"strides": (1, 2, 2), "dilations": (1, 1, 1), "out_indices": (2,)}),
    (RESNET, {"out_indices": [1, 2, 3]}, {"out_indices": (1, 2, 3)}),
    (RESNET, {"deep_stem": True}, {"deep_stem": True}),
    (RESNET, {"avg_down": True}, {"avg_down": True}),
    (RESNET, {"conv_cfg": {"type": "Conv2d"}, "in_channels": 3, "plugins": None}, {}),
    (RESNET, {"norm_cfg": {"type": "MMSyncBN", "eps": 1e-3, "momentum": 0.1}},
     {"norm": Norm(kind="batch", eps=1e-3)}),
    (RESNET, {"norm_cfg": {"type": "GN", "num_groups": 16, "requires_grad": True}},
     {"norm": Norm(kind="group", groups=16)}),
    (RESNET, {"dcn": {"type": "DCNv2", "deformable_groups": 4}, "stage_with_dcn": [False, False, True, True]},
     {"deformable": Deformable(groups=4, stages=(2, 3))}),
    (RESNET, {"dcn": {"type": "DCNv2"}}, {}),
    (RESNET, {"dcn": None, "stage_with_dcn": [False, True, True, True]}, {}),
    (V1D, {"style": "caffe"}, {"stride_in_1x1": True}),
    (RESNEXT, {"groups": 32, "base_width": 8, "deep_stem": True},
     {"groups": 32, "base_width": 8, "deep_stem": True}),
    (RES2NET, {"scales": 6, "base_width": 14}, {"scales": 6, "base_width": 14}),
    (RES2NET, {"style": "pytorch", "deep_stem": True, "avg_down": True}, {}),
    (RESNEST, {"radix": 1, "groups": 2, "base_width": 32}, {"radix": 1, "groups": 2, "base_width": 32}),
    (RESNEST, {"depth": 269, "avg_down_stride": False}, {"depth": 269, "avg_down_stride": False}),
    (SWIN, {"embed_dims": 128, "num_heads": [4, 8, 16, 32]}, {"channels": 128, "heads": (4, 8, 16, 32)}),
    (SWIN, {"patch_size": 2, "strides": [2, 2, 2, 2]}, {"patch_size": 2}),
    (SWIN, {"use_abs_pos_embed": True}, {"absolute_positions": (56, 56)}),
    (SWIN, {"use_abs_pos_embed": True, "pretrain_img_size": [384, 256]}, {"absolute_positions": (96, 64)}),
    (SWIN, {"patch_norm": False}, {"patch_norm": False}),
    (SWIN, {"qkv_bias": False, "qk_scale": 0.25}, {"qkv_bias": False, "qk_scale": 0.25}),
    (SWIN, {"mlp_ratio": 3}, {"mlp_ratio": 3.0}),
    (SWIN, {"window_size": 8, "out_indices": [1, 2, 3]}, {"window_size": 8, "out_indices": (1, 2, 3)}),
    (SWIN, {"norm_cfg": {"type": "LN", "eps": 1e-6}, "act_cfg": {"type": "GELU"}, "in_channels": 3},
     {"eps": 1e-6}),
    (SWIN, {"depths": [2, 2], "num_heads": [3, 6], "out_indices": [0, 1]},
     {"depths": (2, 2), "heads": (3, 6), "out_indices": (0, 1)}),
    (CONVNEXT, {"arch": {"depths": [1, 2], "channels": [8, 16]}, "out_indices": [-2, -1]},
     {"depths": (1, 2), "channels": (8, 16), "out_indices": (0, 1)}),
    (CONVNEXT, {"out_indices": 2}, {"out_indices": (2,)}),
    (CONVNEXT, {"stem_patch_size": 2, "act_cfg": {"type": "GELU"}}, {"stem_patch_size": 2}),
    (CONVNEXT, {"norm_cfg": {"type": "LN2d"}}, {"eps": 1e-5}),
    (CONVNEXT, {"layer_scale_init_value": 0}, {"layer_scale": False}),
]  # fmt: skip
"""A body, what a config says beyond it, and the settings that differ for it."""


@pytest.mark.parametrize(("body", "said", "changed"), EFFECTS, ids=lambda part: str(part)[:60])
def test_what_a_key_decides(body: dict[str, Any], said: dict[str, Any], changed: dict[str, Any]) -> None:
    assert read(body, said) == read(body).model_copy(update=changed)


def test_every_key_that_is_read_is_tested() -> None:
    bodies = [body for body, _ in PUBLISHED.values()] + [said for _, said, _ in EFFECTS]
    tried = {key for said in bodies for key in said}
    read_keys = {key for keys in body_config._TYPES.values() for key in keys.model_fields}
    assert read_keys <= tried


@pytest.mark.parametrize("key", sorted(body_config._TRAINING))
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_keys_of_training_say_nothing(body: dict[str, Any], key: str) -> None:
    assert read(body, {key: object()}) == read(body)


def test_lists_are_tuples() -> None:
    assert read(RESNET, out_indices=[1, 2]) == read(RESNET, out_indices=(1, 2))


def test_a_scope_may_stand_before_a_type_or_beside_it() -> None:
    assert read(RESNET, type="mmdet.ResNet") == read(RESNET, _scope_="mmdet") == read(RESNET)
    assert read(CONVNEXT, type="ConvNeXt", _scope_="mmpretrain") == read(CONVNEXT)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (RESNET, {"type": "CBSwinTransformer"}, "type = 'CBSwinTransformer' (expected ResNet, "),
    (RESNET, {"type": "DetectoRS_ResNet"}, "type = 'DetectoRS_ResNet' (expected ResNet, "),
    (RESNET, {"type": "mmpretrain.ResNet"}, "type = 'mmpretrain.ResNet' (expected "),
    (CONVNEXT, {"type": "ConvNeXt"}, "type = 'ConvNeXt' (expected "),
    (RESNET, {"type": None}, "type = None (expected "),
    (RESNET, {"type": ["ResNet"]}, "type = ['ResNet'] (expected "),
    (RESNET, {"depth": 77}, "depth = 77 (expected 18, 34, 50, 101 or 152)"),
    (RESNET, {"depth": "50"}, "depth = '50' (expected 18, 34, 50, 101 or 152)"),
    (RESNEXT, {"depth": 34}, "depth = 34 (expected 50, 101 or 152)"),
    (RESNET, {"in_channels": 1}, "in_channels = 1 (expected 3)"),
    (RESNET, {"style": "torch"}, "style = 'torch' (expected 'pytorch' or 'caffe')"),
    (RESNET, {"plugins": [{"cfg": 1}]}, "plugins = [{'cfg': 1}] (expected None)"),
    (RESNET, {"conv_cfg": {"type": "ConvWS"}}, "conv_cfg.type = 'ConvWS' (expected 'Conv2d' or 'Conv')"),
    (RESNET, {"norm_cfg": {"type": "IN"}},
     "norm_cfg.type = 'IN' (expected 'BN', 'BN2d', 'SyncBN', 'MMSyncBN' or 'GN')"),
    (RESNET, {"norm_cfg": {"type": "GN"}}, "norm_cfg.num_groups = None (expected a valid integer)"),
    (RESNET, {"norm_cfg": {"type": "BN", "track_running_stats": False}},
     "norm_cfg.track_running_stats = False (no key of MMDetection 3.x's ResNet; delete it "),
    (RESNET, {"groups": 32}, "groups = 32 (no key of MMDetection 3.x's ResNet; delete it "),
    (V1D, {"deep_stem": False}, "deep_stem = False (no key of MMDetection 3.x's ResNetV1d; delete it "),
    (RESNET, {"dcn": {"type": "DCNv3"}}, "dcn.type = 'DCNv3' (expected 'DCN' or 'DCNv2')"),
    (RESNET, {"dcn": {"type": "DCN", "fallback_on_stride": True}},
     "dcn.fallback_on_stride = True (expected False)"),
    (RESNET, {"depth": 18, "dcn": {"type": "DCN"}, "stage_with_dcn": [False, True, True, True]},
     "depth = 18 (expected groups 1 and no deformable with 18 and 34 layers)"),
    (RESNET, {"dcn": {"type": "DCN"}, "stage_with_dcn": [False, False, False, False, True]},
     "stage_with_dcn = [False, False, False, False, True] (expected stages of 0 to 3 in order"),
    (RESNET, {"dcn": {"type": "DCN", "deform_groups": 3}, "stage_with_dcn": [False, True, True, True]},
     "dcn.deform_groups = 3 (expected a divisor of 128 channels, found 3)"),
    (RESNET, {"num_stages": 3}, "strides = None (expected 3, as num_stages says)"),
    (RESNET, {"num_stages": 5}, "num_stages = 5 (expected less than or equal to 4)"),
    (RESNET, {"dilations": [1, 1]}, "dilations = [1, 1] (expected 4, as num_stages says)"),
    (RESNET, {"out_indices": [3, 2]}, "out_indices = [3, 2] (expected stages of 0 to 3 in order"),
    (RESNET, {"out_indices": [4]}, "out_indices = [4] (expected stages of 0 to 3 in order"),
    (RESNET, {"out_indices": []}, "out_indices = [] ("),
    (RES2NET, {"style": "caffe"}, "style = 'caffe' (expected 'pytorch')"),
    (RES2NET, {"depth": 18}, "depth = 18 (expected 50, 101 or 152)"),
    (RES2NET, {"scales": 1}, "scales = 1 (expected greater than or equal to 2)"),
    (RESNEST, {"reduction_factor": 8}, "reduction_factor = 8 (expected 4)"),
    (SWIN, {"strides": [4, 2, 2, 1]}, "strides = [4, 2, 2, 1] (expected (4, 2, 2, 2))"),
    (SWIN, {"num_heads": [3, 6, 12, 25]}, "num_heads = [3, 6, 12, 25] (expected a divisor of 768"),
    (SWIN, {"num_heads": [3]}, "depths = None (expected up to 6 and as many heads, found 4 and 1)"),
    (SWIN, {"depths": [2, 2, 1000, 2]}, "depths = [2, 2, 1000, 2] (expected less than or equal to 100)"),
    (SWIN, {"act_cfg": {"type": "ReLU"}}, "act_cfg.type = 'ReLU' (expected 'GELU')"),
    (SWIN, {"norm_cfg": {"type": "BN"}}, "norm_cfg.type = 'BN' (expected 'LN' or 'LN2d')"),
    (SWIN, {"embed_dim": 96}, "embed_dim = 96 (no key of MMDetection 3.x's SwinTransformer; delete it "),
    (SWIN, {"qk_scale": float("nan")}, "qk_scale = nan (expected a finite number)"),
    (CONVNEXT, {"arch": "mega"}, "arch = 'mega' (expected one of atto, femto, "),
    (CONVNEXT, {"arch": {"depths": [1]}}, "arch.channels = None (field required)"),
    (CONVNEXT, {"gap_before_final_norm": True}, "gap_before_final_norm = True (expected False: "),
    (CONVNEXT, {"out_indices": -5}, "out_indices = -5 (expected "),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said", "complaint"), REFUSED, ids=lambda part: str(part)[:60])
def test_what_is_refused_is_named(body: dict[str, Any], said: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(body, said)
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(f"model.backbone.{complaint}")
    assert "\n" not in str(caught.value)


def test_a_convnext_that_does_not_say_so_averages_its_maps_away() -> None:
    with pytest.raises(ValueError, match=r"model\.backbone\.gap_before_final_norm = None "):
        read(type="mmpretrain.ConvNeXt")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        read(RESNET, depth=1, style=2, foo=3)
    assert [part.split(" ")[0] for part in str(caught.value).split("; model.")] == [
        "model.backbone.depth",
        "backbone.style",
        "backbone.foo",
    ]


def test_long_values_are_cut() -> None:
    with pytest.raises(ValueError) as caught:
        read(RESNET, foo="x" * 10_000, depth=10**5000)
    assert len(str(caught.value)) < 500
