"""From an image to a Cellpose network's flows: range, size, tiles, and the mean of tiles that overlap.

Source: Stringer et al., Nature Methods 18 (2021), and the package's behaviour (version 3.1.1).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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

CPU_BATCH, GPU_BATCH = 1, 32
"""Tiles that enter the network together: on a CPU the maps of one stay in its cache."""

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


def taper(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The weight of a tile's rows (height,) and of its columns (width,), whose product is that of a pixel.

    Float64: a sigmoid that falls towards both ends.
    """
    whole = max(_TAPER_SIDE, height, width)
    distance = np.abs(np.arange(whole) - (whole - 1) / 2)
    slope = 1 / (1 + np.exp((distance - (whole / 2 - _TAPER_MARGIN)) / _TAPER_WIDTH))
    rows, columns = (slope[whole // 2 - n // 2 : whole // 2 + n // 2 + n % 2] for n in (height, width))
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _cover(starts: Iterable[int], weight: Tensor, size: int) -> Tensor:
    """The sum of the weights of all tiles along one axis, float32 (size,)."""
    cover = weight.new_zeros(size)
    for start in starts:
        cover[start : start + len(weight)] += weight
    return cover.float()


class Mosaic:
    """An image (2, H, W) of its final size in padding, and what its tiles show so far."""

    def __init__(self, image: Float32, parts: CellposeParts, device: torch.device) -> None:
        self._image, self._corner = _padded(torch.from_numpy(image).to(device), parts)
        self._inner_hw = image.shape[1:]
        size_hw = int(self._image.shape[1]), int(self._image.shape[2])
        self.tile_hw = min(parts.tile, size_hw[0]), min(parts.tile, size_hw[1])
        self.tiles = tiles_of(size_hw, parts)
        self._taper = tuple(weight.to(device) for weight in taper(*self.tile_hw))
        self._cover = tuple(
            _cover(_starts(side, parts), weight, side)
            for weight, side in zip(self._taper, size_hw, strict=True)
        )
        self._total = self._image.new_zeros((OUTPUTS, *size_hw))
        self._style: Tensor | float = 0.0
        self._left = len(self.tiles)

    @property
    def whole(self) -> bool:
        """Whether each tile was seen."""
        return self._left == 0

    def cut(self, tile: Tile) -> Tensor:
        """A tile (2, h, w) as the network sees it."""
        return tile.mirrored(self._image[:, *self._place(tile)])

    def add(self, tile: Tile, maps: Tensor, style: Tensor) -> None:
        """What the network said of a tile: (3, h, w) and (S,)."""
        rows, columns = self._taper
        self._total[:, *self._place(tile)] += tile.flow_back(maps.float()) * rows[:, None] * columns
        self._style = self._style + style.float()
        self._left -= 1

    def _place(self, tile: Tile) -> tuple[slice, slice]:
        height, width = self.tile_hw
        return slice(tile.y, tile.y + height), slice(tile.x, tile.x + width)

    def result(self) -> tuple[Tensor, Tensor]:
        """Flows and logit, float32 (3, H, W), and the style (S,), when it is whole."""
        (top, left), (height, width), (rows, columns) = self._corner, self._inner_hw, self._cover
        mean = self._total[:, top : top + height, left : left + width]
        mean = (mean / rows[top : top + height, None]).div_(columns[left : left + width])
        style = torch.as_tensor(self._style)
        return mean, style / style.norm()


def flows_of(
    net: Net, images: Iterable[Float32], parts: CellposeParts, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each of images (2, H, W) of one size flows and logit, float32 (3, H, W), and the style (S,).

    Tiles enter the network together, those of the next image with the last of one; an image's come out as
    soon as all of its were seen.
    """
    waiting: list[tuple[Mosaic, Tile]] = []
    begun: deque[Mosaic] = deque()
    batch = GPU_BATCH if device.type == "cuda" else CPU_BATCH
    for image in images:
        begun.append(Mosaic(image, parts, device))
        for tile in begun[-1].tiles:
            waiting.append((begun[-1], tile))
            if len(waiting) == batch:
                _look(net, waiting)
                waiting = []
        while begun and begun[0].whole:
            yield begun.popleft().result()
    if waiting:
        _look(net, waiting)
    for mosaic in begun:
        yield mosaic.result()


def _look(net: Net, some: Sequence[tuple[Mosaic, Tile]]) -> None:
    """Put tiles through the network together."""
    maps, styles = net(torch.stack([mosaic.cut(tile) for mosaic, tile in some]))
    for (mosaic, tile), seen, style in zip(some, maps, styles, strict=True):
        mosaic.add(tile, seen, style)


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
