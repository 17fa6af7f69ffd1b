"""Winograd convolutions against plain ones, and networks in the form for CPUs against themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sartorius_infer.networks.cpu import winograd
from sartorius_infer.networks.cpu.winograd import WinogradConv2d


def plain(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum as it is written, in float64."""
    wide = None if bias is None else bias.double()
    return nn.functional.conv2d(images.double(), weight.double(), wide, padding=1)


def layer(inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight and bias that keep the variance of what comes in."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn((outputs, inputs, 3, 3), generator=made) / (3 * inputs**0.5), torch.randn(
        outputs, generator=made
    )


@settings(max_examples=60)
@given(
    batch=st.integers(0, 5),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    size_hw=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    with_bias=st.booleans(),
    tiles=st.sampled_from((1, 3, 16, 256)),
    channels_last=st.booleans(),
)
def test_winograd_is_the_convolution(
    batch: int,
    inputs: int,
    outputs: int,
    size_hw: tuple[int, int],
    with_bias: bool,
    tiles: int,
    channels_last: bool,
) -> None:
    weight, bias = layer(inputs, outputs)
    images = torch.randn((batch, inputs, *size_hw), generator=torch.Generator().manual_seed(1))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(winograd, "TILES", tiles)
        found = WinogradConv2d(weight, bias if with_bias else None)(images)
    expected = plain(images, weight, bias if with_bias else None)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_rounding_is_a_few_times_that_of_the_plain_sum() -> None:
    weight, bias = layer(256, 256)
    images = torch.randn((2, 256, 14, 14), generator=torch.Generator().manual_seed(2)).relu()
    with torch.inference_mode():
        exact = plain(images, weight, bias)
        usual = nn.functional.conv2d(images, weight, bias, padding=1)
        found = WinogradConv2d(weight, bias)(images)

    def error(values: Tensor) -> float:
        return float((values - exact).square().mean().sqrt())

    assert error(found) < 8 * error(usual)


@pytest.mark.parametrize("spoil", [lambda x: x.fill_(torch.nan), lambda x: x[0, 0, 5, 5].fill_(torch.inf)])
def test_no_nan_is_lost(spoil: Callable[[Tensor], Tensor]) -> None:
    weight, bias = layer(4, 4)
    images = torch.zeros((1, 4, 9, 9))
    spoil(images)
    with torch.inference_mode():
        assert not torch.isfinite(WinogradConv2d(weight, bias)(images)[0, :, 5, 5]).any()
