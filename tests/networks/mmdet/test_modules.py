"""MMDetection's pyramid and heads beside plain functions of their weights, the options the oracle lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sartorius_infer.manifest.mmdet import MmdetBoxHead, MmdetFpn, MmdetMaskHead, MmdetPool, MmdetRpn
from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.mmdet.modules import BoxHead, MaskHead, Pyramid, RpnHead

CHANNELS = (3, 4, 5)
SIZES = ((17, 22), (9, 11), (5, 6))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def conv(state: dict[str, Tensor], key: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{key}.conv.weight"]
    return F.conv2d(x, weight, state[f"{key}.conv.bias"], stride, weight.shape[-1] // 2)


def slow_pyramid(state: dict[str, Tensor], maps: Sequence[Tensor], fpn: MmdetFpn) -> list[Tensor]:
    used = list(maps[fpn.first : len(maps) if fpn.last is None else fpn.last + 1])
    laterals = [conv(state, f"lateral_convs.{i}", x) for i, x in enumerate(used)]
    for i in reversed(range(len(laterals) - 1)):
        size = laterals[i].shape[-2:]
        if fpn.upsample == "nearest":
            above = F.interpolate(laterals[i + 1], size, mode="nearest")
        else:
            above = F.interpolate(laterals[i + 1], size, mode="bilinear", align_corners=False)
        laterals[i] = laterals[i] + above
    outs = [conv(state, f"fpn_convs.{i}", x) for i, x in enumerate(laterals)]
    source = {"on_input": used[-1], "on_lateral": laterals[-1], "on_output": outs[-1]}.get(fpn.extra)
    for i in range(len(used), fpn.levels):
        if fpn.extra == "pool":
            outs.append(outs[-1][:, :, ::2, ::2])
            continue
        below = source if i == len(used) else outs[-1]
        below = F.relu(below) if i > len(used) and fpn.relu_before_extra else below
        assert below is not None
        outs.append(conv(state, f"fpn_convs.{i}", below, 2))
    return outs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": 3},
        {"first": 1, "levels": 4},
        {"last": 1, "levels": 2},
        {"upsample": "bilinear"},
        *({"extra": extra} for extra in ("on_input", "on_lateral", "on_output")),
        {"extra": "on_output", "relu_before_extra": True, "first": 1},
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_pyramid_is_what_its_weights_make(options: dict[str, Any]) -> None:
    fpn = MmdetFpn(channels=6, **options)
    torch.manual_seed(0)
    module = Pyramid(CHANNELS, fpn)
    maps = [noise(2, channels, *size) for channels, size in zip(CHANNELS, SIZES, strict=True)]
    found = module(maps)
    assert len(found) == fpn.levels
    for level, expected in zip(found, slow_pyramid(dict(module.state_dict()), maps, fpn), strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"first": 3}, "first: "),
        ({"last": 3}, "first: "),
        ({"last": 1, "levels": 3}, "levels: "),
        ({"levels": 2}, "levels: "),
    ],
)
def test_spans_that_do_not_fit(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MmdetFpn(**options).span(3)


def test_norms_stand_where_they_are_told() -> None:
    keys = Pyramid(CHANNELS, MmdetFpn(norm=Norm(kind="batch"), lateral_norm=False)).state_dict().keys()
    assert {"lateral_convs.0.conv.bias", "fpn_convs.0.bn.running_var"} <= keys
    assert not {"lateral_convs.0.bn.weight", "fpn_convs.0.conv.bias"} & keys
    keys = Pyramid(CHANNELS, MmdetFpn(channels=32, norm=Norm(kind="group"))).state_dict().keys()
    assert {"lateral_convs.0.gn.weight", "fpn_convs.2.gn.bias"} <= keys


@torch.inference_mode()
def test_two_logits_an_anchor_and_several_convolutions() -> None:
    rpn = MmdetRpn(channels=7, convs=2, scores="softmax")
    torch.manual_seed(0)
    module = RpnHead(4, 3, rpn)
    state, x = dict(module.state_dict()), noise(2, 4, 5, 6)
    (logits,), (deltas,) = module([x])
    hidden = F.relu(conv(state, "rpn_conv.1", F.relu(conv(state, "rpn_conv.0", x))))
    scores = F.conv2d(hidden, state["rpn_cls.weight"], state["rpn_cls.bias"])
    boxes = F.conv2d(hidden, state["rpn_reg.weight"], state["rpn_reg.bias"])
    assert (logits.shape, deltas.shape) == ((2, 5 * 6 * 3, 2), (2, 5 * 6 * 3, 4))
    for row, column, anchor in ((0, 0, 0), (2, 3, 1), (4, 5, 2)):
        index = (row * 6 + column) * 3 + anchor
        expected = scores[1, anchor * 2 : anchor * 2 + 2, row, column]
        torch.testing.assert_close(logits[1, index], expected, rtol=1e-5, atol=1e-6)
        expected = boxes[1, anchor * 4 : anchor * 4 + 4, row, column]
        torch.testing.assert_close(deltas[1, index], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({"shared_fcs": 0}, (5 * 9, 5 * 9)),
        ({"shared_fcs": 0, "average_pool": True}, (5, 5)),
        ({"shared_fcs": 1}, (8, 8)),
        ({"shared_fcs": 1, "average_pool": True}, (8, 8)),
        ({"shared_convs": 1, "shared_fcs": 0, "class_fcs": 1, "box_convs": 2}, (8, 6 * 9)),
        ({"shared_fcs": 1, "class_fcs": 1}, (8, 8)),
    ],
)
@torch.inference_mode()
def test_branches_of_box_heads(options: dict[str, Any], inputs: tuple[int, int]) -> None:
    head = MmdetBoxHead(pool=MmdetPool(size=3), conv_channels=6, fc_channels=8, **options)
    torch.manual_seed(0)
    module, x = BoxHead(5, 4, head), noise(2, 5, 3, 3)
    assert (module.fc_cls.in_features, module.fc_reg.in_features) == inputs
    logits, deltas = module(x)
    assert (logits.shape, deltas.shape) == ((2, 5), (2, 16))
    state = dict(module.state_dict())
    for convs in range(head.shared_convs):
        x = F.relu(conv(state, f"shared_convs.{convs}", x))
    for branch, layer, out in (("cls", "fc_cls", logits), ("reg", "fc_reg", deltas)):
        y = x
        fcs = [f"shared_fcs.{i}" for i in range(head.shared_fcs)]
        for i in range(head.class_convs if branch == "cls" else head.box_convs):
            y = F.relu(conv(state, f"{branch}_convs.{i}", y))
        y = F.avg_pool2d(y, 3).flatten(1) if head.average_pool else y.flatten(1)
        for fc in fcs + [
            f"{branch}_fcs.{i}" for i in range(head.class_fcs if branch == "cls" else head.box_fcs)
        ]:
            y = F.relu(F.linear(y, state[f"{fc}.weight"], state[f"{fc}.bias"]))
        expected = F.linear(y, state[f"{layer}.weight"], state[f"{layer}.bias"])
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("upsample", ["deconv", "nearest", "bilinear", "none"])
@pytest.mark.parametrize("convs", [0, 2])
@torch.inference_mode()
def test_masks_grow_as_they_are_told(upsample: Any, convs: int) -> None:
    head = MmdetMaskHead(
        pool=MmdetPool(size=4), convs=convs, channels=6, kernel=5, upsample=upsample, factor=3
    )
    torch.manual_seed(0)
    module, x = MaskHead(5, 2, head), noise(2, 5, 4, 4)
    found = module(module.features(x))
    state = dict(module.state_dict())
    for i in range(convs):
        x = F.relu(conv(state, f"convs.{i}", x))
    if upsample == "deconv":
        x = F.relu(F.conv_transpose2d(x, state["upsample.weight"], state["upsample.bias"], stride=3))
    elif upsample != "none":
        align = None if upsample == "nearest" else False
        x = F.interpolate(x, scale_factor=3, mode=upsample, align_corners=align)
    expected = F.conv2d(x, state["conv_logits.weight"], state["conv_logits.bias"])
    assert found.shape == (2, 2, *(2 * [4 if upsample == "none" else 12]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_stage_adds_what_the_one_before_made() -> None:
    head = MmdetMaskHead(pool=MmdetPool(size=4), convs=1, channels=5, previous=True)
    torch.manual_seed(0)
    module, x, before = MaskHead(5, 2, head), noise(2, 5, 4, 4), noise(2, 5, 4, 4) + 1
    state = dict(module.state_dict())
    expected = F.relu(conv(state, "convs.0", x + F.relu(conv(state, "conv_res", before))))
    torch.testing.assert_close(module.features(x, before), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.features(x), F.relu(conv(state, "convs.0", x)), rtol=1e-5, atol=1e-5)
