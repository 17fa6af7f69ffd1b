"""3 x 3 convolutions with fewer multiplications, for CPUs: Winograd's F(4 x 4, 3 x 3).

A tile of 4 x 4 outputs needs 36 products a channel pair instead of 144. Both transforms are small
matrix products, and the 36 products are matrix products over tiles and channels, so that nearly all
the time goes to the linear algebra library. Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2016 (arXiv 1509.09308); the interpolation points are 0, +-1, +-2 and infinity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

OUT, IN = 4, 6
"""Side of a tile of outputs, and of the inputs that it sees."""

TILES = 256
"""Tiles that are transformed at once: their products stay in a processor's cache."""

FEWEST_CHANNELS = 128
"""Below, the transforms cost more than the products save."""


def pays() -> bool:
    """Whether this processor gains: with AVX512 oneDNN's convolution is as fast, on small maps faster."""
    return torch.backends.cpu.get_cpu_capability() != "AVX512"


_INPUT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_KERNEL = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    dtype=torch.float64,
)


class WinogradConv2d(nn.Module):
    """A 3 x 3 convolution of stride 1 and padding 1, for inference; its output lies channels last.

    Its rounding error is about three times that of the plain sum.
    """

    kernel: Tensor
    bias: Tensor
    to_products: Tensor
    from_products: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        kernel = torch.einsum("ai,ocij,bj->abco", _KERNEL, weight.detach().double(), _KERNEL)
        self.register_buffer("kernel", kernel.float().reshape(IN * IN, *kernel.shape[2:]))
        self.register_buffer("bias", weight.new_zeros(len(weight)) if bias is None else bias.detach())
        self.register_buffer("to_products", torch.kron(_INPUT, _INPUT).float())
        self.register_buffer("from_products", torch.kron(_OUTPUT, _OUTPUT).float())

    def forward(self, x: Tensor) -> Tensor:
        """Float32 (B, C, H, W) -> (B, O, H, W)."""
        batch, _, height, width = x.shape
        down, across = -(-height // OUT), -(-width // OUT)
        out = x.new_empty(batch, OUT * down, OUT * across, len(self.bias))
        images, rows = max(1, TILES // (down * across)), max(1, min(down, TILES // across))
        for b in range(0, batch, images):
            for r in range(0, down, rows):
                some = slice(b, b + images), slice(OUT * r, OUT * (r + rows))
                self._strip(x.permute(0, 2, 3, 1)[some[0]], OUT * r, out[some])
        return out[:, :height, :width].permute(0, 3, 1, 2)

    def _strip(self, x: Tensor, top: int, out: Tensor) -> None:
        """Fill out (b, h, w, O), whole tiles, with the rows from `top` on of what x (b, H, W, C) gives."""
        batch, height, width, _ = out.shape
        down, across = height // OUT, width // OUT
        seen = x[:, max(0, top - 1) : top + height + 1]
        above = int(top == 0)
        rim = (0, 0, 1, width + 1 - x.shape[2], above, height + 2 - above - seen.shape[1])
        tiles = F.pad(seen, rim).unfold(1, IN, OUT).unfold(2, IN, OUT).permute(4, 5, 0, 1, 2, 3)
        spread = self.to_products @ tiles.reshape(IN * IN, -1)
        products = torch.bmm(spread.view(IN * IN, batch * down * across, -1), self.kernel)
        sums = (self.from_products @ products.view(IN * IN, -1)).view(OUT, OUT, batch, down, across, -1)
        target = out.view(batch, down, OUT, across, OUT, -1).permute(2, 4, 0, 1, 3, 5)
        torch.add(sums, self.bias, out=target)
