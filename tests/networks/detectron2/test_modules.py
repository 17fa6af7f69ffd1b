"""Detectron2's keys: which a network has, which of a file's do not matter, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_factories import REFERENCE, config_of, network_of, spec_of
from detectron2_oracle import (
    CASCADE,
    DCONV_CASCADE,
    DEFORMABLE_RESNEST,
    MODULATED,
    RESNEST,
    Shapes,
    State,
    shapes,
    with_settings,
)

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks.detectron2.config import read_config
from sartorius_infer.networks.detectron2.modules import Detectron2Model
from sartorius_infer.networks.detectron2.rcnn import build_detectron2, foreground_classes, is_detectron2

BODY, BOX, MASK = "MODEL.RESNETS.", "MODEL.ROI_BOX_HEAD.", "MODEL.ROI_MASK_HEAD."
COUNTER = ".num_batches_tracked"


def state_of(changes: Mapping[str, Any] | None = None) -> State:
    """A file's weights, of any values."""
    return dict(_drawn(json.dumps(changes)))


@cache
def _drawn(changes: str) -> State:
    draw = torch.Generator().manual_seed(0)
    named = shapes(with_settings(json.loads(changes)))
    return {key: torch.randn(shape, generator=draw) for key, shape in named.items()}


def model_shapes(parts: Detectron2Parts, class_count: int, offset_groups: int = 1) -> Shapes:
    """Keys and shapes of a network's own, but for what counts batches in training."""
    with torch.device("meta"):
        state = Detectron2Model(parts, class_count, offset_groups).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(COUNTER)}


def small_shapes(folder: Path, changes: Mapping[str, Any] | None = None, offset_groups: int = 1) -> Shapes:
    settings = with_settings(changes)
    parts = config_of(settings, folder).parts
    return model_shapes(parts, settings["MODEL.ROI_HEADS.NUM_CLASSES"], offset_groups)


def under(found: Shapes, prefix: str) -> Shapes:
    """What begins with a prefix, without it."""
    return {key.removeprefix(prefix): shape for key, shape in found.items() if key.startswith(prefix)}


# Keys that a network has.


def test_keys_are_those_that_detectron2_wrote() -> None:
    if not REFERENCE.is_dir():
        pytest.skip("Detectron2's own outputs are not here")
    config = read_config(REFERENCE / "r50" / "config.yaml")
    written = json.loads((REFERENCE / "r50" / "shapes.json").read_text())
    assert model_shapes(config.parts, 3) == {key: tuple(shape) for key, shape in written.items()}


GROUPS = {
    **{BODY + name: 32 for name in ("WIDTH_PER_GROUP", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS")},
    **{"MODEL.FPN.OUT_CHANNELS": 32, BOX + "NUM_CONV": 1, BOX + "CONV_DIM": 32, MASK + "CONV_DIM": 32},
    **{f"MODEL.{part}.NORM": "GN" for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {BODY + "DEPTH": 18, BODY + "RES2_OUT_CHANNELS": 64},
        {BODY + "DEPTH": 34, BODY + "RES2_OUT_CHANNELS": 64, BODY + "STEM_OUT_CHANNELS": 64},
        {BODY + "DEPTH": 101, BODY + "STRIDE_IN_1X1": False},
        {BODY + "DEPTH": 101, BODY + "NUM_GROUPS": 32, BODY + "WIDTH_PER_GROUP": 8},
        {BODY + "DEPTH": 152},
        {BODY + "NORM": ""},
        GROUPS,
        {**CASCADE, **GROUPS},
        {"MODEL.ROI_HEADS.NUM_CLASSES": 80},
        {"MODEL.RPN.CONV_DIMS": [24, -1, 8], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1]]},
        {BOX + "CLS_AGNOSTIC_BBOX_REG": True, MASK + "CLS_AGNOSTIC_MASK": True},
        {BOX + "NUM_CONV": 3, BOX + "NUM_FC": 0, MASK + "NUM_CONV": 5},
        MODULATED,
        DCONV_CASCADE,
        {**RESNEST, BODY + "NORM": "LN"},
        *({**RESNEST, BODY + "DEPTH": depth} for depth in (50, 101, 152, 200, 269)),
        {**RESNEST, BODY + "WIDTH_PER_GROUP": 64, BODY + "BOTTLENECK_WIDTH": 40},
        {**DEFORMABLE_RESNEST, BODY + "WIDTH_PER_GROUP": 64, BODY + "DEPTH": 200},
    ],
    ids=lambda changes: ", ".join(key.removeprefix("MODEL.") for key in changes)[:50] or "plain",
)
def test_keys_and_shapes_are_those_of_the_oracle(changes: dict[str, Any], tmp_path: Path) -> None:
    expected = shapes(with_settings(changes))
    groups = with_settings(changes).get(BODY + "DEFORM_NUM_GROUPS", 1) if BODY + "RADIX" in changes else 1
    assert small_shapes(tmp_path, changes, groups) == expected


def test_names_in_the_body_are_detectron2s(tmp_path: Path) -> None:
    body = under(small_shapes(tmp_path), "backbone.bottom_up.")
    assert body["stem.conv1.weight"] == (8, 3, 7, 7)
    norm = {f"norm.{name}": (16,) for name in ("weight", "bias", "running_mean", "running_var")}
    assert under(body, "res3.1.conv2.") == {"weight": (16, 16, 3, 3)} | norm
    assert body["res3.0.shortcut.weight"] == (64, 32, 1, 1)
    blocks = {tuple(key.split(".")[:2]) for key in body if key.startswith("res")}
    counts = [sum(stage == f"res{n}" for stage, _ in blocks) for n in range(2, 6)]
    assert counts == [3, 4, 6, 3]
    assert {key.split(".")[0] for key in body if ".shortcut." in key} == {"res2", "res3", "res4", "res5"}
    assert not any(".shortcut." in key and ".0." not in key for key in body)


def test_a_first_block_of_as_many_channels_has_no_shortcut(tmp_path: Path) -> None:
    body = under(small_shapes(tmp_path, {BODY + "STEM_OUT_CHANNELS": 32}), "backbone.bottom_up.")
    assert {key.split(".")[0] for key in body if ".shortcut." in key} == {"res3", "res4", "res5"}


@pytest.mark.parametrize("grouped", [False, True], ids=["detectron2", "its fork"])
def test_the_checkpoint_tells_whether_the_convolutions_that_move_taps_are_grouped(
    grouped: bool, tmp_path: Path
) -> None:
    state = state_of(MODULATED)
    key = "backbone.bottom_up.res4.0.conv2_offset.weight"
    if grouped:
        for name in [name for name in state if name.endswith("conv2_offset.weight")]:
            state[name] = state[name][:, : state[name].shape[1] // 2].clone()
    network = network_of(with_settings(MODULATED), state, tmp_path)
    assert torch.equal(network.model.state_dict()[key], state[key])
    assert network.model.backbone.bottom_up.get_submodule("res4.0.conv2_offset").groups == 1 + grouped


def test_a_basic_block_has_two_convolutions(tmp_path: Path) -> None:
    changes = {BODY + "DEPTH": 18, BODY + "RES2_OUT_CHANNELS": 64}
    block = under(small_shapes(tmp_path, changes), "backbone.bottom_up.res4.0.")
    weights = {key: shape for key, shape in block.items() if len(shape) == 4}
    assert weights == {
        "shortcut.weight": (256, 128, 1, 1),
        "conv1.weight": (256, 128, 3, 3),
        "conv2.weight": (256, 256, 3, 3),
    }


def test_groups_divide_the_inner_convolution(tmp_path: Path) -> None:
    changes = {BODY + "NUM_GROUPS": 4, BODY + "WIDTH_PER_GROUP": 6}
    body = under(small_shapes(tmp_path, changes), "backbone.bottom_up.")
    assert body["res2.0.conv1.weight"] == (24, 8, 1, 1)
    assert body["res2.0.conv2.weight"] == (24, 6, 3, 3)
    assert body["res5.0.conv2.weight"] == (192, 48, 3, 3)


def test_pyramid_has_a_lateral_and_an_output_for_each_stage(tmp_path: Path) -> None:
    found = under(small_shapes(tmp_path), "backbone.fpn_")
    assert found == {
        f"{name}{stage}.{part}": shape
        for stage in (2, 3, 4, 5)
        for name, part, shape in (
            ("lateral", "weight", (16, 8 << stage, 1, 1)),
            ("lateral", "bias", (16,)),
            ("output", "weight", (16, 16, 3, 3)),
            ("output", "bias", (16,)),
        )
    }


def test_a_norm_takes_the_place_of_the_bias(tmp_path: Path) -> None:
    found = small_shapes(tmp_path, GROUPS)
    norm = {"norm.weight": (32,), "norm.bias": (32,)}
    for key, shape in {
        "backbone.bottom_up.stem.conv1": (32, 3, 7, 7),
        "backbone.fpn_lateral2": (32, 32, 1, 1),
        "backbone.fpn_output5": (32, 32, 3, 3),
        "roi_heads.box_head.conv1": (32, 32, 3, 3),
        "roi_heads.mask_head.mask_fcn2": (32, 32, 3, 3),
    }.items():
        assert under(found, f"{key}.") == {"weight": shape} | norm
    assert under(found, "roi_heads.mask_head.deconv.") == {"weight": (32, 32, 2, 2), "bias": (32,)}
    assert under(found, "roi_heads.mask_head.predictor.") == {"weight": (3, 32, 1, 1), "bias": (3,)}


HEAD = "proposal_generator.rpn_head."


def test_one_convolution_of_the_rpn_has_no_number(tmp_path: Path) -> None:
    assert under(small_shapes(tmp_path), HEAD) == {
        "conv.weight": (16, 16, 3, 3),
        "conv.bias": (16,),
        "objectness_logits.weight": (3, 16, 1, 1),
        "objectness_logits.bias": (3,),
        "anchor_deltas.weight": (12, 16, 1, 1),
        "anchor_deltas.bias": (12,),
    }


def test_several_convolutions_of_the_rpn_are_counted_from_0(tmp_path: Path) -> None:
    assert under(small_shapes(tmp_path, {"MODEL.RPN.CONV_DIMS": [24, -1, 20]}), HEAD) == {
        "conv.conv0.weight": (24, 16, 3, 3),
        "conv.conv0.bias": (24,),
        "conv.conv1.weight": (24, 24, 3, 3),
        "conv.conv1.bias": (24,),
        "conv.conv2.weight": (20, 24, 3, 3),
        "conv.conv2.bias": (20,),
        "objectness_logits.weight": (3, 20, 1, 1),
        "objectness_logits.bias": (3,),
        "anchor_deltas.weight": (12, 20, 1, 1),
        "anchor_deltas.bias": (12,),
    }


def test_convolutions_of_the_box_head_come_before_its_linear_layers(tmp_path: Path) -> None:
    changes = {BOX + "NUM_CONV": 2, BOX + "CONV_DIM": 10, BOX + "NUM_FC": 1, BOX + "POOLER_RESOLUTION": 5}
    assert under(small_shapes(tmp_path, changes), "roi_heads.box_") == {
        "head.conv1.weight": (10, 16, 3, 3),
        "head.conv1.bias": (10,),
        "head.conv2.weight": (10, 10, 3, 3),
        "head.conv2.bias": (10,),
        "head.fc1.weight": (32, 250),
        "head.fc1.bias": (32,),
        "predictor.cls_score.weight": (4, 32),
        "predictor.cls_score.bias": (4,),
        "predictor.bbox_pred.weight": (12, 32),
        "predictor.bbox_pred.bias": (12,),
    }


def test_a_cascade_numbers_its_heads(tmp_path: Path) -> None:
    stage = {
        "fc1.weight": (32, 784),
        "fc1.bias": (32,),
        "fc2.weight": (32, 32),
        "fc2.bias": (32,),
    }
    predictor = {
        "cls_score.weight": (4, 32),
        "cls_score.bias": (4,),
        "bbox_pred.weight": (4, 32),
        "bbox_pred.bias": (4,),
    }
    expected = {f"box_head.{n}.{key}": shape for n in range(3) for key, shape in stage.items()}
    expected |= {f"box_predictor.{n}.{key}": shape for n in range(3) for key, shape in predictor.items()}
    found = under(small_shapes(tmp_path, CASCADE), "roi_heads.")
    assert {key: shape for key, shape in found.items() if key.startswith("box_")} == expected
    assert found["mask_head.mask_fcn1.weight"] == (16, 16, 3, 3)


def test_class_agnostic_heads_have_one_box_and_one_mask(tmp_path: Path) -> None:
    changes = {BOX + "CLS_AGNOSTIC_BBOX_REG": True, MASK + "CLS_AGNOSTIC_MASK": True}
    found = under(small_shapes(tmp_path, changes), "roi_heads.")
    assert found["box_predictor.bbox_pred.weight"] == (4, 32)
    assert found["box_predictor.cls_score.weight"] == (4, 32)
    assert found["mask_head.predictor.weight"] == (1, 16, 1, 1)


# Keys of a file that do not matter.


def parameters(network: torch.nn.Module) -> State:
    return {key: tensor for key, tensor in network.state_dict().items() if not key.endswith(COUNTER)}


def check_same(state: State, expected: State, folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Both states make the same network."""
    settings = with_settings(changes)
    spec = spec_of(config_of(settings, folder))
    found, own = (parameters(build_detectron2(spec, dict(some), torch.float32)) for some in (state, expected))
    assert found.keys() == own.keys()
    assert all(torch.equal(tensor, own[key]) for key, tensor in found.items())


def test_a_network_has_the_values_of_its_file(tmp_path: Path) -> None:
    state = state_of()
    found = under_model(parameters(network_of(with_settings(), state, tmp_path)))
    assert found.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.items())


def under_model(state: State) -> State:
    return {key.removeprefix("model."): tensor for key, tensor in state.items()}


LEFTOVERS = {
    "pixel_mean": torch.zeros(3, 1, 1),
    "pixel_std": torch.ones(3, 1, 1),
    "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    "proposal_generator.anchor_generator.cell_anchors.4": torch.zeros(3, 4),
    "backbone.bottom_up.linear.weight": torch.zeros(1000, 256),
    "backbone.bottom_up.linear.bias": torch.zeros(1000),
    "backbone.bottom_up.stem.conv1.norm.num_batches_tracked": torch.tensor(7),
}


@pytest.mark.parametrize("key", LEFTOVERS)
def test_a_leftover_is_ignored(key: str, tmp_path: Path) -> None:
    state = state_of()
    check_same({**state, key: LEFTOVERS[key]}, state, tmp_path)


def test_all_leftovers_are_ignored_at_once(tmp_path: Path) -> None:
    state = state_of()
    check_same({**LEFTOVERS, **state}, state, tmp_path)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
def test_counters_of_batches_may_be_there_and_may_be_missing(norm: str, tmp_path: Path) -> None:
    norms = {BODY + "NORM": norm, "MODEL.FPN.NORM": norm}
    state = state_of(norms)
    counters = {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(90_000)
        for key in state
        if key.endswith("running_mean")
    }
    assert len(counters) > 50
    check_same({**state, **counters}, state, tmp_path, norms)


@pytest.mark.parametrize("changes", [{}, {**RESNEST, BODY + "NORM": "FrozenBN"}], ids=["plain", "resnest"])
@pytest.mark.parametrize("names", [("running_mean", "running_var"), ("running_mean",), ("running_var",)])
def test_a_frozen_norm_without_statistics_has_mean_0_and_variance_1(
    changes: dict[str, Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    state = state_of(changes)
    of_body = "backbone.bottom_up."
    old = {key: t for key, t in state.items() if not (key.startswith(of_body) and key.endswith(names))}
    neutral: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "running_mean": torch.zeros_like,
        "running_var": torch.ones_like,
    }
    full = {
        key: tensor if key in old else neutral[key.rpartition(".")[2]](tensor)
        for key, tensor in state.items()
    }
    assert len(old) < len(full)
    check_same(old, full, tmp_path, changes)


# Keys that are refused.


def refused(state: State, folder: Path, message: str, changes: Mapping[str, Any] | None = None) -> None:
    spec = spec_of(config_of(with_settings(changes), folder), "some/where.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        build_detectron2(spec, state, torch.float32)
    assert str(caught.value).startswith("some/where.pth")
    assert "\n" not in str(caught.value)


KEYS = (
    "backbone.bottom_up.res4.2.conv3.norm.bias",
    "backbone.fpn_lateral2.weight",
    "proposal_generator.rpn_head.anchor_deltas.bias",
    "roi_heads.box_head.fc2.weight",
    "roi_heads.box_predictor.bbox_pred.weight",
    "roi_heads.mask_head.deconv.weight",
)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    state = state_of()
    del state[key]
    refused(state, tmp_path, f"missing.*{key}")


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_shape_is_named_with_both(key: str, tmp_path: Path) -> None:
    state = state_of()
    expected, found = tuple(state[key].shape), (state[key].shape[0] + 1, *state[key].shape[1:])
    state[key] = torch.zeros(found)
    shape = [str(some).replace("(", r"\(").replace(")", r"\)") for some in (expected, tuple(found))]
    refused(state, tmp_path, f"{key}.*{shape[0]}.*{shape[1]}")


@pytest.mark.parametrize(
    "key",
    [
        "roi_heads.keypoint_head.conv_fcn1.weight",
        "roi_heads.mask_head.mask_fcn3.weight",
        "roi_heads.box_head.conv1.weight",
        "backbone.fpn_output6.weight",
        "backbone.bottom_up.res2.0.conv2_offset.weight",
        "proposal_generator.rpn_head.conv.conv0.weight",
        "sem_seg_head.predictor.weight",
        "backbone.bottom_up.res2.3.conv1.weight",
    ],
)
def test_an_unexpected_key_is_named(key: str, tmp_path: Path) -> None:
    state = state_of()
    refused({**state, key: torch.zeros(16, 16, 3, 3)}, tmp_path, f"unexpected.*{key}")


@pytest.mark.parametrize(
    "changes",
    [
        {BODY + "DEPTH": 101},
        {BODY + "NORM": "GN", **{BODY + n: 32 for n in ("WIDTH_PER_GROUP", "STEM_OUT_CHANNELS")}},
        CASCADE,
        {"MODEL.FPN.OUT_CHANNELS": 24},
        {BOX + "NUM_FC": 1},
        {MASK + "CLS_AGNOSTIC_MASK": True},
        {BOX + "CLS_AGNOSTIC_BBOX_REG": True},
        {"MODEL.RPN.CONV_DIMS": [-1, -1]},
        {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]]},
        {"MODEL.FPN.NORM": "BN"},
    ],
    ids=lambda changes: next(iter(changes)).removeprefix("MODEL."),
)
def test_the_settings_of_another_network_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    state = state_of()
    refused(state, tmp_path, "do not fit|expected", changes)


def test_a_batch_norm_without_statistics_is_refused(tmp_path: Path) -> None:
    norm = {BODY + "NORM": "BN"}
    state = state_of(norm)
    old = {key: tensor for key, tensor in state.items() if ".running_" not in key}
    refused(old, tmp_path, r"missing.*running_mean", norm)


def test_a_file_without_settings_is_refused() -> None:
    state = state_of()
    spec = ModelSpec(name="network", file="some/where.pth")
    with pytest.raises(CheckpointError, match=r"^some/where\.pth: .*settings"):
        build_detectron2(spec, state, torch.float32)


# What keys tell.


@pytest.mark.parametrize("parts", [{}, CASCADE, GROUPS, {BODY + "DEPTH": 101}], ids=str)
def test_a_network_is_recognised(parts: dict[str, Any]) -> None:
    assert is_detectron2(state_of(parts))


@pytest.mark.parametrize("prefix", ["backbone.", "proposal_generator.", "roi_heads."])
def test_a_part_alone_is_not_recognised(prefix: str) -> None:
    state = state_of()
    assert not is_detectron2({key: tensor for key, tensor in state.items() if key.startswith(prefix)})


@pytest.mark.parametrize("parts", [{}, CASCADE], ids=["plain", "cascade"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_classes_are_the_classifiers_rows_but_one(parts: dict[str, Any], count: int, tmp_path: Path) -> None:
    changes = {**parts, "MODEL.ROI_HEADS.NUM_CLASSES": count}
    state = state_of(changes)
    assert foreground_classes(state, "some/where.pth") == count
    assert network_of(with_settings(changes), state, tmp_path).class_count == count


def test_without_a_classifier_no_classes_are_told() -> None:
    with pytest.raises(CheckpointError, match=r"^some/where\.pth: .*cls_score"):
        foreground_classes({}, "some/where.pth")
