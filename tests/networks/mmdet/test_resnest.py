"""ResNeSts: their blocks written down plainly, split by split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from mmdet_bodies import (
    State,
    check_maps,
    norm,
    plain_3x3,
    shapes,
)
from torch import Tensor

from sartorius_infer.manifest.mmdet_bodies import MmdetResNeSt
from sartorius_infer.networks.mmdet.resnest import ResNeSt
from sartorius_infer.networks.skeleton import skeleton

SMALL = {"base_channels": 16, "stem_channels": 8}


def plain_residual(
    state: State, prefix: str, body: MmdetResNeSt, stage: int, stride: int, x: Tensor
) -> Tensor:
    first, second = (stride, 1) if body.stride_in_1x1 else (1, stride)
    averages = body.avg_down_stride and second > 1
    letters = "gn" if body.norm.kind == "group" else "bn"
    out = F.conv2d(x, state[f"{prefix}.conv1.weight"], stride=first)
    out = F.relu(norm(state, f"{prefix}.{letters}1", body.norm, out))
    out = plain_attention(state, f"{prefix}.conv2", body, stage, 1 if averages else second, out)
    if averages:
        out = F.avg_pool2d(out, 3, second, padding=1)
    return norm(state, f"{prefix}.{letters}3", body.norm, F.conv2d(out, state[f"{prefix}.conv3.weight"]))


def plain_attention(
    state: State, prefix: str, body: MmdetResNeSt, stage: int, stride: int, x: Tensor
) -> Tensor:
    """Group by group and split by split."""
    radix, groups, letters = body.radix, body.groups, "gn" if body.norm.kind == "group" else "bn"
    x = plain_3x3(state, f"{prefix}.conv", body, stage, stride, groups * radix, x)
    splits = F.relu(norm(state, f"{prefix}.{letters}0", body.norm, x)).chunk(radix, dim=1)
    seen = sum(splits[1:], splits[0]).mean(dim=(2, 3), keepdim=True)
    seen = F.conv2d(seen, state[f"{prefix}.fc1.weight"], state[f"{prefix}.fc1.bias"], groups=groups)
    seen = F.relu(norm(state, f"{prefix}.{letters}1", body.norm, seen))
    logits = F.conv2d(seen, state[f"{prefix}.fc2.weight"], state[f"{prefix}.fc2.bias"], groups=groups)
    if radix == 1:
        return splits[0] * logits.sigmoid()
    out = [torch.zeros_like(part) for part in splits[0].chunk(groups, dim=1)]
    for group, of_group in enumerate(logits.chunk(groups, dim=1)):
        shares = torch.stack(of_group.chunk(radix, dim=1)).softmax(dim=0)
        for split, share in zip(splits, shares, strict=True):
            out[group] = out[group] + share * split.chunk(groups, dim=1)[group]
    return torch.cat(out, dim=1)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one split": {"radix": 1},
    "three splits of two groups": {"radix": 3, "groups": 2, "base_width": 6},
    "stride in the 3 x 3": {"avg_down_stride": False},
    "stride in the first": {"stride_in_1x1": True},
    "stem stride 1": {"stem_stride": 1},
    "dilated": {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
    "group norm": {"norm": {"kind": "group", "groups": 4}},
    "some maps": {"out_indices": (1, 3)},
    "dcn v2": {"deformable": {}},
    "dcn": {"deformable": {"modulated": False, "stages": (3,), "groups": 2}},
}


@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_plain_arithmetic(case: str) -> None:
    body = MmdetResNeSt.model_validate({**SMALL, **CASES[case]})
    check_maps(ResNeSt(body), body, plain_residual)


def resnest_shapes(**settings: Any) -> dict[str, tuple[int, ...]]:
    with skeleton():
        return shapes(ResNeSt(MmdetResNeSt.model_validate(settings)))


def test_shapes_of_the_published_networks() -> None:
    """ResNeSt-101 of radix 2: a stem of 128 channels."""
    found = resnest_shapes(depth=101, stem_channels=128)
    assert found["stem.0.weight"] == (64, 3, 3, 3) and found["stem.6.weight"] == (128, 64, 3, 3)
    block = {
        k.removeprefix("layer3.4.conv2."): s for k, s in found.items() if k.startswith("layer3.4.conv2.")
    }
    assert {key: shape for key, shape in block.items() if "bn" not in key} == {
        "conv.weight": (512, 128, 3, 3),
        "fc1.weight": (128, 256, 1, 1),
        "fc1.bias": (128,),
        "fc2.weight": (512, 128, 1, 1),
        "fc2.bias": (512,),
    }
    assert block["bn0.running_mean"] == (512,) and block["bn1.weight"] == (128,)
    assert "layer3.4.bn2.weight" not in found and "layer3.4.bn3.weight" in found
    assert found["layer1.0.conv2.fc1.weight"] == (32, 64, 1, 1)
    assert found["layer1.0.downsample.1.weight"] == (256, 128, 1, 1)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (50, [3, 4, 6, 3]),
        (101, [3, 4, 23, 3]),
        (152, [3, 8, 36, 3]),
        (200, [3, 24, 36, 3]),
        (269, [3, 30, 48, 8]),
    ],
)
def test_blocks_of_a_depth(depth: int, blocks: list[int]) -> None:
    found = {tuple(key.split(".")[:2]) for key in resnest_shapes(depth=depth) if key.startswith("layer")}
    assert [sum(stage == f"layer{n}" for stage, _ in found) for n in range(1, 5)] == blocks


def test_the_splits_convolution_moves_its_taps() -> None:
    found = resnest_shapes(**SMALL, deformable={"stages": (1,)})
    assert found["layer2.1.conv2.conv.conv_offset.weight"] == (27, 32, 3, 3)
    assert not any("offset" in key for key in found if not key.startswith("layer2."))
