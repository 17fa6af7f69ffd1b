"""The convolution of a ResNeSt: several of it side by side, weighed against each other for each channel.

Source: Zhang et al., ResNeSt: Split-Attention Networks, 2020 (arXiv 2004.08955).
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.layers import NormedBlock, norm_layer


class SplitAttention(NormedBlock):
    """`conv` gives `radix` maps one after another; for each channel a softmax says what each map is worth.

    conv       a convolution of (B, C, h, w) to (B, radix C, h', w') in radix x cardinality groups
    norm_name  of the norms, before their numbers 0 and 1
    """

    def __init__(self, conv: nn.Module, channels: int, radix: int, cardinality: int, norm: Norm, *,
                 norm_name: str = "bn") -> None:  # fmt: skip
        super().__init__()
        self.radix, self.cardinality, self.norm_name = radix, cardinality, norm_name
        hidden = max(channels * radix // 4, 32)
        self.conv = conv
        self.add_module(f"{norm_name}0", norm_layer(norm, channels * radix))
        self.fc1 = nn.Conv2d(channels, hidden, 1, groups=cardinality)
        self.add_module(f"{norm_name}1", norm_layer(norm, hidden))
        self.fc2 = nn.Conv2d(hidden, channels * radix, 1, groups=cardinality)

    def forward(self, x: Tensor, *moves: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h', w'); `moves` are handed to a deformable `conv`."""
        splits = self.conv(x, *moves)
        splits = F.relu(self._normed(0, splits))
        batch, channels, height, width = splits.shape
        splits = splits.view(batch, self.radix, channels // self.radix, height, width)
        seen = self.fc1(splits.sum(dim=1).mean(dim=(2, 3), keepdim=True))
        worth = self.fc2(F.relu(self._normed(1, seen)))
        return (splits * self._weights(worth)).sum(dim=1)

    def norm_pairs(self) -> list[tuple[str, str]]:
        """Of the convolution, and of what weighs."""
        pairs = (("conv", f"{self.norm_name}0"), ("fc1", f"{self.norm_name}1"))
        return [(conv, norm) for conv, norm in pairs if self._modules[norm] is not None]

    def _normed(self, number: int, x: Tensor) -> Tensor:
        norm = self._modules[f"{self.norm_name}{number}"]
        return x if norm is None else norm(x)

    def _weights(self, worth: Tensor) -> Tensor:
        """Logits (B, radix C, 1, 1), cardinality before radix, as weights (B, radix, C, 1, 1)."""
        batch = len(worth)
        if self.radix == 1:
            return worth.sigmoid()[:, None]
        by_group = worth.view(batch, self.cardinality, self.radix, -1).transpose(1, 2)
        return by_group.softmax(dim=1).reshape(batch, self.radix, -1, 1, 1)
