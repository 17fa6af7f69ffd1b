"""Deformable convolutions move their taps as they are told, and never lose a fraction of a pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from detectron2_bodies_oracle import deformed
from torch import Tensor

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.deformable import DeformableConv, OffsetConv

CHANNELS, OUTPUTS, HW = 12, 8, (9, 13)


def drawn(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("modulated", [False, True], ids=["plain", "modulated"])
@pytest.mark.parametrize(
    ("groups", "deformable_groups", "stride", "dilation"),
    [(1, 1, 1, 1), (4, 1, 1, 1), (1, 3, 2, 1), (2, 2, 2, 1), (2, 4, 1, 2)],
)
@torch.inference_mode()
def test_every_tap_is_sampled_where_it_is_told_to_be(
    groups: int, deformable_groups: int, stride: int, dilation: int, modulated: bool
) -> None:
    conv = DeformableConv(CHANNELS, OUTPUTS, 3, Norm(), stride=stride, groups=groups, dilation=dilation,
                          bias=False, modulated=modulated)  # fmt: skip
    x = drawn(2, CHANNELS, *HW)
    out_hw = tuple((n - 1) // stride + 1 for n in HW)
    offsets = drawn(2, 18 * deformable_groups, *out_hw, seed=1, spread=2)
    logits = drawn(2, 9 * deformable_groups, *out_hw, seed=2)
    moves = torch.cat((offsets, logits), dim=1) if modulated else offsets
    expected = deformed(x, conv.weight, offsets, logits.sigmoid() if modulated else None, stride, dilation)
    torch.testing.assert_close(conv(x, moves), expected, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_taps_that_stay_make_a_plain_convolution_and_its_norm() -> None:
    conv = DeformableConv(CHANNELS, OUTPUTS, 3, Norm(kind="batch"), modulated=False).eval()
    x = drawn(2, CHANNELS, *HW)
    assert conv.norm is not None
    expected = conv.norm(F.conv2d(x, conv.weight, padding=1))
    torch.testing.assert_close(conv(x, torch.zeros(2, 18, *HW)), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_taps_that_go_nowhere_give_nan_there_and_read_no_foreign_memory() -> None:
    conv = DeformableConv(CHANNELS, OUTPUTS, 3, Norm(), modulated=False)
    x, moves = drawn(1, CHANNELS, *HW), torch.zeros(1, 18, *HW)
    moves[0, 5, 2, 3] = torch.nan
    moves[0, 6, 4, 4], moves[0, 7, 4, 4], moves[0, 0, 7, 7] = torch.inf, -torch.inf, 1e30
    out = conv(x, moves)
    lost = out.isnan()
    assert lost[:, :, 2, 3].all()
    assert lost.sum() == OUTPUTS
    assert out[~lost].isfinite().all()


@pytest.mark.parametrize(("modulated", "outputs"), [(False, 36), (True, 54)])
@torch.inference_mode()
def test_the_moves_are_a_convolution_of_the_same_geometry(modulated: bool, outputs: int) -> None:
    moves = OffsetConv(CHANNELS, deformable_groups=2, modulated=modulated, stride=2, dilation=2, groups=2)
    x = drawn(2, CHANNELS, *HW)
    expected = F.conv2d(x, moves.weight, moves.bias, 2, 2, 2, 2)
    assert expected.shape[1] == outputs
    assert torch.equal(moves(x), expected)


@torch.inference_mode()
def test_half_precision_moves_taps_as_precisely() -> None:
    moves = OffsetConv(CHANNELS, deformable_groups=1, modulated=True)
    conv = DeformableConv(CHANNELS, OUTPUTS, 3, Norm(), modulated=True)
    x = drawn(1, CHANNELS, *HW).bfloat16()
    exact = moves(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        found, out = moves(x), conv(x, exact)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, conv(x.float(), exact).bfloat16(), rtol=0, atol=0)
