"""Res2Nets: their blocks written down plainly, part by part."""

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

from sartorius_infer.manifest.mmdet_bodies import MmdetRes2Net
from sartorius_infer.networks.mmdet.res2net import Res2Net
from sartorius_infer.networks.skeleton import skeleton

SMALL = {"base_channels": 16, "stem_channels": 8, "base_width": 6}


def plain_residual(
    state: State, prefix: str, body: MmdetRes2Net, stage: int, stride: int, x: Tensor
) -> Tensor:
    first, second = (stride, 1) if body.stride_in_1x1 else (1, stride)
    letters = "gn" if body.norm.kind == "group" else "bn"
    out = F.conv2d(x, state[f"{prefix}.conv1.weight"], stride=first)
    out = F.relu(norm(state, f"{prefix}.{letters}1", body.norm, out))
    width = out.shape[1] // body.scales
    stage_type = "stage" if prefix.endswith(".0") else "normal"
    given = []
    for part in range(body.scales - 1):
        seen = out[:, part * width : (part + 1) * width]
        if part > 0 and stage_type == "normal":
            seen = seen + given[part - 1]
        seen = plain_3x3(state, f"{prefix}.convs.{part}", body, stage, second, 1, seen)
        given.append(F.relu(norm(state, f"{prefix}.bns.{part}", body.norm, seen)))
    last = out[:, -width:]
    if stage_type == "stage" and second != 1:
        last = F.avg_pool2d(last, 3, second, padding=1)
    out = F.conv2d(torch.cat([*given, last], dim=1), state[f"{prefix}.conv3.weight"])
    return norm(state, f"{prefix}.{letters}3", body.norm, out)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "three scales": {"scales": 3},
    "six scales": {"scales": 6, "base_width": 4},
    "two scales": {"scales": 2},
    "stem stride 1": {"stem_stride": 1},
    "dilated": {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
    "group norm": {"norm": {"kind": "group", "groups": 2}, "base_width": 8},
    "some maps": {"out_indices": (1, 3)},
    "three stages": {"strides": (1, 2, 2), "dilations": (1, 1, 1), "out_indices": (0, 2)},
    "stride in the first": {"stride_in_1x1": True},
    "dcn v2": {"deformable": {}},
    "dcn": {"deformable": {"modulated": False, "stages": (3,), "groups": 2}},
}


@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_plain_arithmetic(case: str) -> None:
    body = MmdetRes2Net.model_validate({**SMALL, **CASES[case]})
    check_maps(Res2Net(body), body, plain_residual)


def res2net_shapes(**settings: Any) -> dict[str, tuple[int, ...]]:
    with skeleton():
        return shapes(Res2Net(MmdetRes2Net.model_validate(settings)))


def test_widths_of_the_published_networks() -> None:
    """Res2Net-101 v1b 26w 4s: 26, 52, 104 and 208 channels a part."""
    found = res2net_shapes(depth=101)
    for stage in range(4):
        width = 26 << stage
        prefix = f"layer{stage + 1}.1"
        assert found[f"{prefix}.conv1.weight"] == (4 * width, 256 << stage, 1, 1)
        assert found[f"{prefix}.bn1.weight"] == (4 * width,)
        assert found[f"{prefix}.conv3.weight"] == (256 << stage, 4 * width, 1, 1)
        for part in range(3):
            assert found[f"{prefix}.convs.{part}.weight"] == (width, width, 3, 3)
            assert found[f"{prefix}.bns.{part}.running_var"] == (width,)
        assert f"{prefix}.convs.3.weight" not in found and f"{prefix}.conv2.weight" not in found
    assert found["stem.6.weight"] == (64, 32, 3, 3)
    assert found["layer2.0.downsample.1.weight"] == (512, 256, 1, 1)
    assert found["layer2.0.downsample.2.bias"] == (512,)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3])]
)
def test_blocks_of_a_depth(depth: int, blocks: list[int]) -> None:
    found = {tuple(key.split(".")[:2]) for key in res2net_shapes(depth=depth) if key.startswith("layer")}
    assert [sum(stage == f"layer{n}" for stage, _ in found) for n in range(1, 5)] == blocks


def test_every_part_moves_its_own_taps() -> None:
    found = res2net_shapes(**SMALL, deformable={"stages": (1,)})
    moving = {key for key in found if key.startswith("layer2.1.") and "offset" in key}
    assert moving == {
        f"layer2.1.convs.{part}.conv_offset.{kind}" for part in range(3) for kind in ("weight", "bias")
    }
    assert found["layer2.1.convs.0.conv_offset.weight"][0] == 27
