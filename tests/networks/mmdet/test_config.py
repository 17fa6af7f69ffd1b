"""MMDetection configs: every key changes what it should, and what cannot be honoured is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mmdet_runs import CASCADE, HTC, REFERENCE, changed, config_of, dumped, values_of

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.mmdet import MmdetParts
from sartorius_infer.manifest.settings import flatten
from sartorius_infer.networks.mmdet.config import MmdetConfig, class_names, read_config, read_config_text

Values = dict[str, Any]


def flat(config: MmdetConfig) -> Values:
    """The settings that a config decides, by dotted names; numbers are places of lists."""
    tree = config.parts.model_dump()
    for name in ("box_heads", "mask_heads"):
        tree[name] = {str(index): head for index, head in enumerate(tree[name])}
    return flatten(tree)


def effect(folder: Path, changes: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Values:
    """The settings that differ, as they are then."""
    before, after = (flat(config_of(changed(values_of(3, base), more), folder)) for more in ({}, changes))
    return {name: value for name, value in after.items() if before.get(name, "absent") != value}


def refused(folder: Path, values: Mapping[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        config_of(values, folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'config.py'}: ")
    assert "\n" not in message
    return message.partition(": ")[2]


NECK, RPN, ROI = "model.neck.", "model.rpn_head.", "model.roi_head."
BOX, MASK, LIMITS = f"{ROI}bbox_head.", f"{ROI}mask_head.", "model.test_cfg.rcnn."
POOL = f"{ROI}bbox_roi_extractor."

EFFECTS: list[tuple[str, Any, Values]] = [
    (NECK + "norm_cfg", {"type": "GN", "num_groups": 8}, {"fpn.norm.kind": "group", "fpn.norm.groups": 8}),
    (NECK + "norm_cfg", {"type": "SyncBN", "eps": 1e-3}, {"fpn.norm.kind": "batch", "fpn.norm.eps": 1e-3}),
    (NECK + "no_norm_on_lateral", True, {"fpn.lateral_norm": False}),
    (NECK + "add_extra_convs", True, {"fpn.extra": "on_input"}),
    (NECK + "add_extra_convs", "on_lateral", {"fpn.extra": "on_lateral"}),
    (NECK + "add_extra_convs", "on_output", {"fpn.extra": "on_output"}),
    (NECK + "relu_before_extra_convs", True, {"fpn.relu_before_extra": True}),
    (NECK + "upsample_cfg", {"mode": "bilinear", "align_corners": False}, {"fpn.upsample": "bilinear"}),
    (NECK + "upsample_cfg", {"mode": "nearest", "scale_factor": 2}, {}),
    (RPN + "feat_channels", 24, {"rpn.channels": 24}),
    (RPN + "num_convs", 2, {"rpn.convs": 2}),
    (RPN + "loss_cls", {"type": "CrossEntropyLoss"}, {"rpn.scores": "softmax"}),
    (RPN + "loss_cls", {"type": "FocalLoss", "use_sigmoid": True, "alpha": 0.25}, {}),
    (RPN + "bbox_coder.target_stds", [1.0, 1.0, 2.0, 2.0], {"rpn.coder.stds": (1.0, 1.0, 2.0, 2.0)}),
    (RPN + "bbox_coder.clip_border", False, {"rpn.coder.clip": False}),
    (RPN + "anchor_generator.scales", [4, 8], {"anchors.scales": (4.0, 8.0)}),
    (RPN + "anchor_generator.ratios", [1.0], {"anchors.ratios": (1.0,)}),
    (RPN + "anchor_generator.strides", [[4, 4], 8, 16, 32, 128], {"anchors.strides": (4, 8, 16, 32, 128)}),
    (RPN + "anchor_generator.base_sizes", [1, 2, 3, 4, 5], {"anchors.base_sizes": (1.0, 2.0, 3.0, 4.0, 5.0)}),
    (RPN + "anchor_generator.center_offset", 0.5, {"anchors.center_offset": 0.5}),
    (RPN + "anchor_generator.scale_major", False, {"anchors.scale_major": False}),
    ("model.test_cfg.rpn.nms_pre", 7, {"rpn.pre_nms": 7}),
    ("model.test_cfg.rpn.nms_pre", -1, {"rpn.pre_nms": None}),
    ("model.test_cfg.rpn.max_per_img", 9, {"rpn.per_image": 9}),
    ("model.test_cfg.rpn.min_bbox_size", 3, {"rpn.min_size": 3.0}),
    ("model.test_cfg.rpn.nms", {"type": "soft_nms"}, {"rpn.nms.kind": "soft_nms", "rpn.nms.iou": 0.3}),
    ("model.test_cfg.rpn.nms.iou_threshold", 0.6, {"rpn.nms.iou": 0.6}),
    (ROI + "type", "DynamicRoIHead", {}),
    (POOL + "roi_layer.sampling_ratio", 2, {"box_heads.0.pool.sampling_ratio": 2}),
    (POOL + "roi_layer.aligned", False, {"box_heads.0.pool.aligned": False}),
    (POOL + "roi_layer", {"type": "RoIAlign", "out_size": 7, "sample_num": 2},
     {"box_heads.0.pool.sampling_ratio": 2}),
    (POOL + "featmap_strides", [4, 8], {"box_heads.0.pool.strides": (4, 8)}),
    (POOL + "finest_scale", 28, {"box_heads.0.pool.finest": 28.0}),
    (ROI + "mask_roi_extractor.roi_layer.output_size", [10, 10], {"mask_heads.0.pool.size": 10}),
    (ROI + "mask_roi_extractor", None, {"mask_heads.0.pool.size": 7}),
    (BOX + "type", "Shared4Conv1FCBBoxHead", {"box_heads.0.shared_convs": 4, "box_heads.0.shared_fcs": 1}),
    (BOX + "fc_out_channels", 64, {"box_heads.0.fc_channels": 64}),
    (BOX + "conv_out_channels", 64, {"box_heads.0.conv_channels": 64}),
    (BOX + "with_avg_pool", True, {"box_heads.0.average_pool": True}),
    (BOX + "reg_class_agnostic", True, {"box_heads.0.class_agnostic": True}),
    (BOX + "norm_cfg", {"type": "BN"}, {"box_heads.0.norm.kind": "batch"}),
    (BOX + "bbox_coder.target_means", [0.1, 0, 0, 0], {"box_heads.0.coder.means": (0.1, 0.0, 0.0, 0.0)}),
    (BOX + "bbox_coder", None, {}),
    (BOX + "loss_cls.use_sigmoid", True, {}),  # scores are softmaxes all the same
    (MASK + "num_convs", 4, {"mask_heads.0.convs": 4}),
    (MASK + "conv_kernel_size", 5, {"mask_heads.0.kernel": 5}),
    (MASK + "conv_out_channels", 24, {"mask_heads.0.channels": 24}),
    (MASK + "class_agnostic", True, {"mask_heads.0.class_agnostic": True}),
    (MASK + "norm_cfg", {"type": "GN", "num_groups": 4},
     {"mask_heads.0.norm.kind": "group", "mask_heads.0.norm.groups": 4}),
    (MASK + "upsample_cfg", {"type": "bilinear", "scale_factor": 4},
     {"mask_heads.0.upsample": "bilinear", "mask_heads.0.factor": 4}),
    (MASK + "upsample_cfg", {"type": None}, {"mask_heads.0.upsample": "none"}),
    (LIMITS + "score_thr", 0.2, {"detection.score": 0.2}),
    (LIMITS + "max_per_img", -1, {"detection.per_image": None}),
    (LIMITS + "nms", {"type": "nms", "iou_thr": 0.4}, {"detection.nms.iou": 0.4}),
    (LIMITS + "nms", {"type": "soft_nms", "iou_threshold": 0.5, "method": "gaussian", "sigma": 0.7,
                      "min_score": 0.05},
     {"detection.nms.kind": "soft_nms", "detection.nms.method": "gaussian", "detection.nms.sigma": 0.7,
      "detection.nms.min_score": 0.05}),
    (LIMITS + "nms.class_agnostic", True, {"detection.nms.class_agnostic": True}),
    (LIMITS + "nms.split_thr", 5000, {"detection.nms.split": 5000}),
    (LIMITS + "mask_thr_binary", 0.4, {}),
    ("model.train_cfg", {"rcnn": {"sampler": {"type": "OHEMSampler"}}}, {}),
    ("model.init_cfg", {"type": "Pretrained", "checkpoint": "x.pth"}, {}),
    ("model.type", "TwoStageDetector", {}),
    ("optim_wrapper", {"type": "OptimWrapper"}, {}),
    ("model.backbone.depth", 34, {"body.depth": 34}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), EFFECTS, ids=[f"{k}={v}" for k, v, _ in EFFECTS])
def test_a_key_changes_what_it_should(key: str, value: Any, expected: Values, tmp_path: Path) -> None:
    assert effect(tmp_path, {key: value}) == expected


def test_octaves_are_scales(tmp_path: Path) -> None:
    generator = RPN + "anchor_generator."
    changes = {
        generator + "scales": None,
        generator + "octave_base_scale": 4,
        generator + "scales_per_octave": 2,
    }
    assert effect(tmp_path, changes) == {"anchors.scales": (4.0, 4 * 2**0.5)}


def test_levels_begin_and_end_where_they_are_told(tmp_path: Path) -> None:
    found = effect(tmp_path, {NECK + "start_level": 1, NECK + "extra_convs_on_inputs": False,
                              NECK + "add_extra_convs": True})  # fmt: skip
    assert found == {"fpn.first": 1, "fpn.extra": "on_output"}
    short = {
        **{NECK + "end_level": 2, NECK + "num_outs": 3, RPN + "anchor_generator.strides": [4, 8, 16]},
        **{f"{ROI}{head}_roi_extractor.featmap_strides": [4, 8, 16] for head in ("bbox", "mask")},
    }
    found = effect(tmp_path, short)
    assert (found["fpn.last"], found["fpn.levels"]) == (2, 3)
    assert effect(tmp_path, {NECK + "end_level": 3}) == {}


def test_a_cascade_and_an_htc(tmp_path: Path) -> None:
    parts = config_of(values_of(3, CASCADE), tmp_path).parts
    assert (parts.heads, len(parts.box_heads), len(parts.mask_heads)) == ("cascade", 3, 3)
    assert [head.coder.stds[0] for head in parts.box_heads] == [0.1, 0.05, 0.033]
    assert len(set(parts.mask_heads)) == 1
    parts = config_of(values_of(3, HTC), tmp_path).parts
    assert (parts.heads, parts.mask_flow) == ("htc", True)
    assert [head.previous for head in parts.mask_heads] == [False, True, True]
    assert not config_of(values_of(3, HTC | {ROI + "mask_info_flow": False}), tmp_path).parts.mask_flow


@pytest.mark.parametrize("dialect", [2, 3])
def test_both_generations_say_the_same(dialect: int, tmp_path: Path) -> None:
    config = config_of(values_of(dialect), tmp_path)
    assert config.parts == config_of(values_of(3), tmp_path).parts.model_copy(update={"dialect": dialect})
    assert config.preprocessing == config_of(values_of(3), tmp_path).preprocessing
    assert (config.class_count, config.classes) == (3, ())
    assert config.source == f"settings of config.py, of MMDetection {dialect}"
    text = read_config_text(dumped(values_of(dialect)), Path("a.pth"), "meta.cfg")
    assert text.parts == config.parts
    assert text.source == f"settings of meta.cfg, of MMDetection {dialect}"


@pytest.mark.parametrize("part", ["rpn", "rcnn"])
def test_limits_are_found_where_each_version_has_them(part: str, tmp_path: Path) -> None:
    head = {"rpn": RPN, "rcnn": ROI}[part] + "test_cfg"
    values = values_of(2)
    limits = values["model"]["test_cfg"][part]
    expected = config_of(values, tmp_path).parts
    for place in (head, f"test_cfg.{part}"):
        moved = changed(values, {f"model.test_cfg.{part}": None, place: limits})
        assert config_of(moved, tmp_path).parts == expected
    other = {"nms": {"type": "nms", "iou_threshold": 0.1}}
    assert config_of(changed(values, {head: limits | other}), tmp_path).parts == expected
    message = refused(tmp_path, changed(values, {f"model.test_cfg.{part}": None}))
    assert f"model.test_cfg.{part} = None (expected dict(...))" in message


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (
            {"nms_pre": 50, "nms_post": 20, "max_num": 20, "nms_thr": 0.6, "nms_across_levels": False},
            (0.6, 20),
        ),
        ({"nms_pre": 50, "max_num": 20, "nms_thr": 0.6}, (0.6, 20)),
        ({"nms_pre": 50, "max_num": 30, "nms_post": 20, "max_per_img": 10, "nms_thr": 0.6}, (0.6, 10)),
    ],
)
def test_limits_by_their_old_names(limits: Values, expected: tuple[float, int], tmp_path: Path) -> None:
    rpn = config_of(values_of(2, {"model.test_cfg.rpn": limits}), tmp_path).parts.rpn
    assert (rpn.nms.iou, rpn.per_image) == expected
    assert rpn.min_size == -1


REFUSED: list[tuple[Values, str]] = [
    ({"model.type": "SOLOv2"}, "model.type = 'SOLOv2' (expected 'MaskRCNN', "),
    ({"model.type": "MaskScoringRCNN"}, "model.type = 'MaskScoringRCNN'"),
    ({"model.type": "PointRend"}, "model.type = 'PointRend'"),
    ({"model.type": "Mask2Former"}, "model.type = 'Mask2Former'"),
    ({"model.backbone.type": "CBSwinTransformer"}, "model.backbone.type = 'CBSwinTransformer'"),
    ({"model.backbone.type": "DetectoRS_ResNet"}, "model.backbone.type = 'DetectoRS_ResNet'"),
    ({NECK + "type": "RFP"}, "model.neck.type = 'RFP' (expected 'FPN')"),
    (
        {"model.neck": [{"type": "FPN"}, {"type": "BFP"}]},
        "model.neck = [{'type': 'FPN'}, {'type': 'BFP'}] (expected dict(...))",
    ),
    ({NECK + "conv_cfg": {"type": "ConvWS"}}, "model.neck.conv_cfg = {'type': 'ConvWS'} (expected None)"),
    ({NECK + "act_cfg": {"type": "ReLU"}}, "model.neck.act_cfg"),
    ({NECK + "norm_cfg": {"type": "LN"}}, "model.neck.norm_cfg.type = 'LN'"),
    ({RPN + "type": "GARPNHead"}, "model.rpn_head.type = 'GARPNHead'"),
    ({RPN + "in_channels": 256}, "model.rpn_head.in_channels = 256 (expected 16)"),
    ({RPN + "anchor_generator.type": "LegacyAnchorGenerator"}, "model.rpn_head.anchor_generator.type"),
    ({RPN + "anchor_generator.centers": [[1, 1]]}, "model.rpn_head.anchor_generator.centers"),
    ({RPN + "anchor_generator.scales": None}, "(expected scales, or octave_base_scale and "),
    ({RPN + "anchor_generator.strides": [4, 8]}, "anchors.strides: expected 5, found 2"),
    ({RPN + "bbox_coder.type": "TBLRBBoxCoder"}, "model.rpn_head.bbox_coder.type = 'TBLRBBoxCoder'"),
    ({BOX + "bbox_coder.add_ctr_clamp": True}, "model.roi_head.bbox_head.bbox_coder.add_ctr_clamp = True"),
    ({BOX + "type": "DoubleConvFCBBoxHead"}, "model.roi_head.bbox_head.type = 'DoubleConvFCBBoxHead'"),
    ({BOX + "loss_cls": {"type": "SeesawLoss"}}, "model.roi_head.bbox_head.loss_cls"),
    (
        {BOX + "cls_predictor_cfg": {"type": "NormedLinear"}},
        "bbox_head.cls_predictor_cfg.type = 'NormedLinear'",
    ),
    ({BOX + "roi_feat_size": 14}, "model.roi_head.bbox_head.roi_feat_size = 14 (expected 7)"),
    (
        {BOX + "type": "ConvFCBBoxHead", BOX + "num_shared_fcs": 1, BOX + "num_cls_convs": 1},
        "shared_fcs: expected none",
    ),
    ({MASK + "type": "CoarseMaskHead"}, "model.roi_head.mask_head.type = 'CoarseMaskHead'"),
    ({MASK + "upsample_cfg": {"type": "carafe"}}, "model.roi_head.mask_head.upsample_cfg.type = 'carafe'"),
    ({MASK + "predictor_cfg": {"type": "NormedConv2d"}}, "mask_head.predictor_cfg.type = 'NormedConv2d'"),
    ({ROI + "type": "MaskScoringRoIHead"}, "model.roi_head.type = 'MaskScoringRoIHead'"),
    ({ROI + "mask_iou_head": {"type": "MaskIoUHead"}}, "model.roi_head.mask_iou_head"),
    ({ROI + "semantic_head": {"type": "FusedSemanticHead"}}, "model.roi_head.semantic_head = "),
    ({ROI + "shared_head": {"type": "ResLayer"}}, "model.roi_head.shared_head"),
    ({ROI + "mask_head": None}, "model.roi_head.mask_head = None (expected a value)"),
    (
        {POOL + "type": "GenericRoIExtractor"},
        "model.roi_head.bbox_roi_extractor.type = 'GenericRoIExtractor'",
    ),
    ({POOL + "roi_layer.type": "RoIPool"}, "model.roi_head.bbox_roi_extractor.roi_layer.type = 'RoIPool'"),
    ({POOL + "featmap_strides": [4] * 6}, "pool.strides: expected up to 5, found 6"),
    ({LIMITS + "nms.type": "nms_match"}, "model.test_cfg.rcnn.nms.type = 'nms_match'"),
    ({LIMITS + "nms": {"type": "nms"}}, "model.test_cfg.rcnn.nms"),
    ({LIMITS + "nms.offset": 1}, "model.test_cfg.rcnn.nms.offset = 1"),
    ({LIMITS + "score_thr": None}, "model.test_cfg.rcnn.score_thr = None (expected a value)"),
    ({LIMITS + "fusion": "yes"}, "model.test_cfg.rcnn.fusion = 'yes' (not a key that is known"),
    (
        {"model.test_cfg.rpn": {"nms_thr": 0.7, "max_num": 9, "nms_post": 8}},
        "of one value as in older versions",
    ),
    ({"model.test_cfg.rpn.nms_across_levels": True}, "model.test_cfg.rpn.nms_across_levels = True"),
    ({"model.extra_branch": {"type": "X"}}, "model.extra_branch = {'type': 'X'} (not a key that is known"),
    ({"tta_model": {"type": "DetTTAModel"}}, "tta_model = {'type': 'DetTTAModel'} (expected none: test-time"),
    (CASCADE | {ROI + "num_stages": 2}, "model.roi_head.bbox_head = 3 (expected 2)"),
    (
        HTC | {ROI + "mask_head": {"type": "FCNMaskHead", "in_channels": 16, "num_classes": 3}},
        "mask_flow: expected",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=[e for _, e in REFUSED])
def test_what_cannot_be_honoured_is_named(changes: Values, expected: str, tmp_path: Path) -> None:
    assert expected in refused(tmp_path, values_of(3, changes))


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    changes = {"model.backbone.type": "HRNet", LIMITS + "nms.offset": 1, "tta_model": {"type": "X"}}
    message = refused(tmp_path, values_of(3, changes))
    for key in ("model.backbone.type", "model.test_cfg.rcnn.nms.offset", "tta_model"):
        assert key in message


def test_what_is_switched_off_may_stand_anywhere(tmp_path: Path) -> None:
    changes = {ROI + "point_head": False, "model.semantic": "", LIMITS + "keep_all_stages": False}
    assert effect(tmp_path, changes) == {}


@pytest.mark.parametrize("text", ["", "x = 1", "model = 3", "model = dict()", "model = f()"])
def test_what_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path / "a.py")
    assert str(caught.value).startswith(f"{tmp_path / 'a.py'}: ")


def test_values_that_were_not_read_are_refused_where_they_decide(tmp_path: Path) -> None:
    text = dumped(values_of(3)).replace("num_outs=5", "num_outs=count(5)")
    (tmp_path / "a.py").write_text("from somewhere import count\nother = count(3)\n" + text)
    with pytest.raises(CheckpointError, match=r"model\.neck\.num_outs = count\(5\)"):
        read_config(tmp_path / "a.py")


@pytest.mark.parametrize(
    ("dialect", "place"),
    [(3, "test_dataloader.dataset.metainfo"), (3, "metainfo"), (2, "data.test"), (2, "")],
)
def test_class_names_are_the_data_set_s(dialect: int, place: str, tmp_path: Path) -> None:
    changes = {f"{place}.classes".lstrip("."): ("a", "b", "c")}
    assert config_of(values_of(dialect, changes), tmp_path).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("a", "b"), ("a", "b")),
        (["a"], ("a",)),
        ("cell", ("cell",)),
        (("a", "a"), ()),
        (("a", ""), ()),
        (("a", 1), ()),
        (None, ()),
        ({"a": 1}, ()),
    ],
)
def test_names(value: object, expected: tuple[str, ...]) -> None:
    assert class_names(value) == expected


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="MMDetection's own dump is not beside this checkout")
def test_mmdetection_s_own_dump() -> None:
    config = read_config(REFERENCE / "mask_rcnn_r50" / "config.py")
    parts = config.parts
    assert (config.class_count, config.classes) == (3, ("shsy5y", "astro", "cort"))
    assert (parts.dialect, parts.heads, parts.detection.per_image) == (3, "standard", 700)
    assert (parts.rpn.pre_nms, parts.rpn.per_image, parts.rpn.nms.iou) == (2000, 2000, 0.7)
    assert parts.fpn.channels == 256
    assert parts == MmdetParts.model_validate_json(parts.model_dump_json())
