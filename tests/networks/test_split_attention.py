"""Split attention weighs maps of one pixel against each other, channel by channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.split_attention import SplitAttention


def attention(channels: int, radix: int, cardinality: int) -> SplitAttention:
    torch.manual_seed(3)
    conv = nn.Conv2d(channels, channels * radix, 3, padding=1, groups=radix * cardinality, bias=False)
    made = SplitAttention(conv, channels, radix, cardinality, Norm(kind="batch")).eval()
    for norm in (made.bn0, made.bn1):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.normal_(norm.running_mean, 0, 0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return made


def channel_by_channel(made: SplitAttention, x: Tensor) -> Tensor:
    """One image (C, h, w) by loops."""
    radix, groups = made.radix, made.cardinality
    assert made.bn0 is not None
    assert made.bn1 is not None
    splits = made.bn0(made.conv(x[None])).relu()[0]
    channels = len(splits) // radix
    seen = torch.stack([sum(splits[r * channels + c].mean() for r in range(radix)) for c in range(channels)])
    worth = made.fc2(made.bn1(made.fc1(seen[None, :, None, None])).relu())[0, :, 0, 0]
    own = channels // groups
    out = torch.zeros(channels, *x.shape[1:])
    for channel in range(channels):
        group, place = divmod(channel, own)
        # Logits lie group by group, within a group map by map.
        logits = torch.stack([worth[(group * radix + r) * own + place] for r in range(radix)])
        shares = logits.softmax(0) if radix > 1 else logits.sigmoid()
        for r in range(radix):
            out[channel] += shares[r] * splits[r * channels + channel]
    return out


@pytest.mark.parametrize(("radix", "cardinality"), [(1, 1), (2, 1), (4, 1), (2, 2), (3, 4), (1, 2)])
@torch.inference_mode()
def test_each_channel_of_each_map_has_its_weight(radix: int, cardinality: int) -> None:
    made = attention(24, radix, cardinality)
    x = torch.randn((2, 24, 6, 7), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([channel_by_channel(made, image) for image in x])
    torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "radix", "hidden"), [(24, 2, 32), (128, 2, 64), (96, 4, 96)])
def test_its_neck_is_a_quarter_of_all_maps_but_never_narrow(channels: int, radix: int, hidden: int) -> None:
    assert attention(channels, radix, 1).fc1.out_channels == hidden
