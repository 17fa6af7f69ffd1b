"""ResNets, ResNetV1d and ResNeXt: torchvision's where it has them, else the blocks written down plainly."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from mmdet_bodies import (
    State,
    check_maps,
    images,
    norm,
    plain_3x3,
    settled,
    shapes,
)
from places import SHARED
from torch import Tensor

from sartorius_infer.manifest.mmdet_bodies import Deformable, MmdetResNet
from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.mmdet.resnet import ResNet
from sartorius_infer.networks.skeleton import skeleton

SMALL = {"base_channels": 8, "stem_channels": 8}
REFERENCE = SHARED / "reference" / "mmdet" / "mask_rcnn_r50"


def resnet(**settings: Any) -> ResNet:
    return settled(ResNet(MmdetResNet.model_validate(settings)))


def test_keys_are_those_that_mmdetection_wrote() -> None:
    if not REFERENCE.is_dir():
        pytest.skip("MMDetection's own outputs are not here")
    written = json.loads((REFERENCE / "shapes.json").read_text())
    body = {k.removeprefix("backbone."): tuple(s) for k, s in written.items() if k.startswith("backbone.")}
    assert shapes(ResNet(MmdetResNet()), counters=True) == body


THEIRS: dict[str, dict[str, Any]] = {
    "resnet18": {"depth": 18},
    "resnet34": {"depth": 34},
    "resnet50": {},
    "resnet101": {"depth": 101},
    "resnet152": {"depth": 152},
    "resnext50_32x4d": {"groups": 32},
    "resnext101_32x8d": {"depth": 101, "groups": 32, "base_width": 8},
    "resnext101_64x4d": {"depth": 101, "groups": 64},
}


@pytest.mark.parametrize("name", THEIRS)
def test_keys_are_torchvisions(name: str) -> None:
    with skeleton():
        theirs = getattr(torchvision.models, name)(weights=None)
        ours = ResNet(MmdetResNet.model_validate(THEIRS[name]))
    expected = {k: s for k, s in shapes(theirs, counters=True).items() if not k.startswith("fc.")}
    assert shapes(ours, counters=True) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvisions_weights_give_torchvisions_maps(name: str) -> None:
    theirs = settled(getattr(torchvision.models, name)(weights=None, num_classes=1))
    ours = resnet(**THEIRS[name])
    ours.load_state_dict({k: t for k, t in theirs.state_dict().items() if not k.startswith("fc.")})
    batch = images(1, 49, 70)
    with torch.inference_mode():
        found = ours(batch)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(batch))))
        for stage, level in enumerate(found, start=1):
            x = getattr(theirs, f"layer{stage}")(x)
            assert torch.equal(level, x)
    assert ours.channels == tuple(level.shape[1] for level in found)
    assert ours.strides == (4, 8, 16, 32)


def plain_residual(
    state: State, prefix: str, body: MmdetResNet, stage: int, stride: int, x: Tensor
) -> Tensor:
    dilation = body.dilations[stage]
    name = f"{prefix}.{'gn' if body.norm.kind == 'group' else 'bn'}"
    if body.depth < 50:
        out = F.conv2d(x, state[f"{prefix}.conv1.weight"], None, stride, dilation, dilation)
        out = F.relu(norm(state, f"{name}1", body.norm, out))
        return norm(state, f"{name}2", body.norm, F.conv2d(out, state[f"{prefix}.conv2.weight"], padding=1))
    first, second = (stride, 1) if body.stride_in_1x1 else (1, stride)
    out = F.conv2d(x, state[f"{prefix}.conv1.weight"], stride=first)
    out = F.relu(norm(state, f"{name}1", body.norm, out))
    out = plain_3x3(state, f"{prefix}.conv2", body, stage, second, body.groups, out)
    out = F.relu(norm(state, f"{name}2", body.norm, out))
    return norm(state, f"{name}3", body.norm, F.conv2d(out, state[f"{prefix}.conv3.weight"]))


CASES: dict[str, dict[str, Any]] = {
    "caffe": {"stride_in_1x1": True},
    "basic": {"depth": 18},
    "basic, dilated, averaging": {"depth": 18, "dilations": (1, 2, 1, 3), "avg_down": True},
    "deep stem": {"deep_stem": True},
    "averaging": {"avg_down": True},
    "v1d": {"deep_stem": True, "avg_down": True},
    "groups": {"groups": 4, "base_width": 3},
    "groups, caffe": {"groups": 4, "base_width": 3, "stride_in_1x1": True},
    "stem stride 1": {"stem_stride": 1},
    "deep stem of stride 1": {"stem_stride": 1, "deep_stem": True},
    "dilated": {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
    "three stages": {"strides": (1, 2, 2), "dilations": (1, 1, 1), "out_indices": (0, 2)},
    "some maps": {"out_indices": (1, 3)},
    "group norm": {"norm": {"kind": "group", "groups": 4, "eps": 1e-3}},
    "group norm, v1d": {"norm": {"kind": "group", "groups": 4}, "deep_stem": True, "avg_down": True},
    "frozen": {"norm": {"kind": "frozen", "eps": 1e-2}},
    "dcn": {"deformable": {"modulated": False}},
    "dcn v2": {"deformable": {}},
    "dcn v2, groups": {"deformable": {"groups": 2, "stages": (2, 3)}, "groups": 4, "base_width": 4},
    "dcn, caffe, dilated": {"deformable": {"groups": 4}, "stride_in_1x1": True, "dilations": (1, 1, 2, 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_plain_arithmetic(case: str) -> None:
    body = MmdetResNet.model_validate({**SMALL, **CASES[case]})
    check_maps(ResNet(body), body, plain_residual, deep_stem=body.deep_stem, avg_down=body.avg_down)


def test_keys_of_a_deformable_block() -> None:
    found = shapes(resnet(**SMALL, deformable={"groups": 2, "stages": (3,)}))
    assert found["layer4.1.conv2.weight"] == (64, 64, 3, 3)
    assert found["layer4.1.conv2.conv_offset.weight"] == (54, 64, 3, 3)
    assert found["layer4.1.conv2.conv_offset.bias"] == (54,)
    assert {key.split(".")[0] for key in found if "offset" in key} == {"layer4"}


def test_norms_by_groups_have_names_of_their_own() -> None:
    found = shapes(resnet(**SMALL, norm={"kind": "group", "groups": 4}))
    assert found["gn1.weight"] == (8,) and found["layer1.0.gn3.bias"] == (32,)
    assert found["layer2.0.downsample.1.weight"] == (64,)
    assert not any("bn" in key for key in found)


def test_averaging_moves_the_shortcuts_keys() -> None:
    found = shapes(resnet(**SMALL, deep_stem=True, avg_down=True))
    assert found["stem.0.weight"] == (4, 3, 3, 3) and found["stem.6.weight"] == (8, 4, 3, 3)
    assert found["layer1.0.downsample.1.weight"] == (32, 8, 1, 1)
    assert found["layer1.0.downsample.2.running_mean"] == (32,)
    assert "conv1.weight" not in found


def test_moved_taps_are_found_in_float32_whatever_the_precision() -> None:
    """In half precision only what the taps see is rounded: no offset is."""
    torch.manual_seed(0)
    body = MmdetResNet(deformable=Deformable(stages=(0,)), norm=Norm(kind="batch"), **SMALL)
    module = settled(ResNet(body))
    offset = module.get_submodule("layer1.0.conv2.conv_offset")
    seen: list[Tensor] = []
    hook = offset.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        maps = module(images(1, 33, 47))
    hook.remove()
    assert seen[0].dtype == torch.float32 and maps[0].dtype == torch.bfloat16
    assert not torch.equal(seen[0], seen[0].bfloat16().float())
