"""From an image to a Cellpose network's flows: range, size, tiles, and the mean of tiles that overlap.

Source: Stringer et al., Nature Methods 18 (2021), and the package's behaviour (version 3.1.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.networks.cellpose.unet import CHANNELS, OUTPUTS
from sartorius_infer.types import Float32, UInt8

Net = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Tiles (B, 2, h, w) -> flows and logit (B, 3, h, w), styles (B, S)."""

BATCH = 8
"""Tiles that enter the network together."""

_MULTIPLE = 16
_TAPER_MARGIN, _TAPER_WIDTH = 20, 7.5
_TAPER_SIDE = 224
"""The taper of a smaller tile is the middle of this one's."""


def normalised(pixels: UInt8, percentile: tuple[float, float]) -> Float32:
    """Float32 (2, H, W) of an image (1 or 3, H, W): gray whose percentiles become 0 and 1, and nothing.

    Channels of colour are averaged. Where the percentiles are the same all is 0, but a plain image stays.
    """
    both = np.zeros((CHANNELS, *pixels.shape[1:]), np.float32)
    gray = both[0]
    gray[:] = pixels.astype(np.float32).mean(axis=0)
    low, high = np.percentile(gray, percentile)
    if high - low > 1e-3:
        gray[:] = (gray - low) / (high - low)
    elif np.ptp(gray) > 0:
        gray[:] = 0
    return both


def resized_hw(size_hw: tuple[int, int], rescale: float) -> tuple[int, int]:
    """The size of an image at `rescale` times its own, cut off to whole pixels, in float32 arithmetic."""
    height, width = (max(1, int(side * np.float32(rescale))) for side in size_hw)
    return height, width


def resized(maps: Float32, size_hw: tuple[int, int]) -> Float32:
    """(C, H, W) at another size, bilinear between the centres of pixels.

    OpenCV's kernel for one channel rounds otherwise than that for several, so two go in together where the
    package has two.
    """
    if maps.shape[-2:] == size_hw:
        return maps
    together = cv2.resize(
        np.ascontiguousarray(maps.transpose(1, 2, 0)), size_hw[::-1], interpolation=cv2.INTER_LINEAR
    )
    return np.ascontiguousarray(together.transpose(2, 0, 1), dtype=np.float32)


@dataclass(frozen=True)
class Tile:
    """Where a tile of the padded image begins, and whether the network sees it mirrored."""

    y: int
    x: int
    mirror_y: bool
    mirror_x: bool

    def mirrored(self, maps: Tensor) -> Tensor:
        """(C, h, w) as the network sees them, and back."""
        axes = [axis for axis, on in ((-2, self.mirror_y), (-1, self.mirror_x)) if on]
        return maps.flip(axes) if axes else maps

    def flow_back(self, maps: Tensor) -> Tensor:
        """Flow down, flow right and logit (3, h, w), as the network saw them, upright."""
        signs = [-1.0 if self.mirror_y else 1.0, -1.0 if self.mirror_x else 1.0, 1.0]
        return self.mirrored(maps) * maps.new_tensor(signs)[:, None, None]


def tiles_of(size_hw: tuple[int, int], parts: CellposeParts) -> list[Tile]:
    """The tiles that cover a padded image, row by row."""
    rows, columns = (_starts(size, parts) for size in size_hw)
    turn = parts.augment
    return [
        Tile(y, x, mirror_y=turn and i % 2 == 1, mirror_x=turn and j % 2 == 1)
        for j, y in enumerate(rows)
        for i, x in enumerate(columns)
    ]


def _starts(size: int, parts: CellposeParts) -> list[int]:
    tile = min(parts.tile, size)
    if parts.augment:
        count = max(2, math.ceil(2 * size / parts.tile))
    else:
        count = 1 if size <= parts.tile else math.ceil((1 + 2 * parts.tile_overlap) * size / parts.tile)
    return [int(start) for start in np.linspace(0, size - tile, count)]


def taper(height: int, width: int) -> Tensor:
    """The weight of a tile's pixels, float64 (height, width): a sigmoid that falls towards the edges."""
    whole = max(_TAPER_SIDE, height, width)
    distance = np.abs(np.arange(whole) - (whole - 1) / 2)
    slope = 1 / (1 + np.exp((distance - (whole / 2 - _TAPER_MARGIN)) / _TAPER_WIDTH))
    rows, columns = (slope[whole // 2 - n // 2 : whole // 2 + n // 2 + n % 2] for n in (height, width))
    return torch.from_numpy(np.outer(rows, columns))


def flows_of(net: Net, image: Float32, parts: CellposeParts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Flows and logit, float32 (3, H, W), and the style (S,), of (2, H, W) that has its final size."""
    padded, (top, left) = _padded(torch.from_numpy(image).to(device), parts)
    size_hw = int(padded.shape[1]), int(padded.shape[2])
    height, width = (min(parts.tile, side) for side in size_hw)
    weight = taper(height, width).to(device)
    total, cover = padded.new_zeros((OUTPUTS, *size_hw)), weight.new_zeros(size_hw)
    styles = []
    for some in _batches(tiles_of(size_hw, parts)):
        places = [(slice(tile.y, tile.y + height), slice(tile.x, tile.x + width)) for tile in some]
        batch = [tile.mirrored(padded[:, y, x]) for tile, (y, x) in zip(some, places, strict=True)]
        maps, style = net(torch.stack(batch))
        styles.append(style.float().sum(dim=0))
        for tile, (y, x), seen in zip(some, places, maps.float(), strict=True):
            total[:, y, x] += tile.flow_back(seen) * weight
            cover[y, x] += weight
    mean = (total / cover).float()[:, top : top + image.shape[1], left : left + image.shape[2]]
    style = torch.stack(styles).sum(dim=0)
    return mean.contiguous(), style / style.norm()


def _padded(image: Tensor, parts: CellposeParts) -> tuple[Tensor, tuple[int, int]]:
    """(C, H, W) in zeros, 8 or more on each side, sides multiples of 16; where it begins.

    For `augment` sides are a tile long at least, by more zeros at the end.
    """
    pads = []
    for size in image.shape[1:]:
        more = (-size) % _MULTIPLE
        before, after = _MULTIPLE // 2 + more // 2, _MULTIPLE // 2 + more - more // 2
        short = parts.tile - (before + size + after)
        pads.append((before, after + max(0, short) * parts.augment))
    (top, bottom), (left, right) = pads
    return F.pad(image, (left, right, top, bottom)), (top, left)


def _batches(tiles: list[Tile]) -> Iterator[list[Tile]]:
    for first in range(0, len(tiles), BATCH):
        yield tiles[first : first + BATCH]
