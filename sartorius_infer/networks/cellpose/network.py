"""A Cellpose network in the ensemble's four steps: its cells are its boxes, its flows its masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torchvision.ops import box_iou

from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks.base import Detections, Features, require_finite
from sartorius_infer.networks.cellpose.masks import Cells, cells_of
from sartorius_infer.networks.cellpose.tiles import flows_of, normalised, resized, resized_hw
from sartorius_infer.networks.cellpose.unet import UNet
from sartorius_infer.networks.cpu.arithmetic import quicken
from sartorius_infer.types import Float32

OWN_IOU = 0.3
"""A box that overlaps that of a cell by more is of this cell."""

_GRID_VALUES = 32 << 20
"""Values in the masks of all cells of an image: what bounds their grids."""

_SMALLEST_GRID = 28

_THREADS = 4
"""Images whose flows are followed at a time."""


@dataclass(frozen=True, eq=False)
class CellposeFeatures(Features):
    """Features that were followed to cells.

    `maps` has "style" (B, S, 1, 1); flows are not kept.
    """

    seen: tuple[Seen, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of maps and cells."""
        return super().nbytes + sum(each.cells.nbytes for each in self.seen)


@dataclass(frozen=True, eq=False)
class Seen:
    """The cells of one image, each by its box."""

    cells: Cells

    @cached_property
    def boxes(self) -> Float32:
        """Boxes float32 (N, 4), xyxy, around the cells in the order of their numbers."""
        places = ndimage.find_objects(self.cells.label_map)
        sides = [(x.start, y.start, x.stop, y.stop) for y, x in places]
        return np.array(sides, np.float32).reshape(-1, 4)

    @cached_property
    def side(self) -> int:
        """Of the grids of masks: two squares to a pixel of the longest cell, so that each pixel is met.

        Between the centres of such squares a paste finds at every pixel's centre the pixel's own value.
        """
        if len(self.boxes) == 0:
            return _SMALLEST_GRID
        longest = int((self.boxes[:, 2:] - self.boxes[:, :2]).max())
        return max(_SMALLEST_GRID, min(2 * longest, math.isqrt(_GRID_VALUES // len(self.boxes))))

    def owners(self, boxes: Tensor) -> Tensor:
        """For each of boxes (N, 4) the number of the cell that it is of, int64 (N,); 0 where of none."""
        if len(boxes) == 0 or len(self.boxes) == 0:
            return torch.zeros(len(boxes), dtype=torch.int64)
        best, row = box_iou(boxes, torch.from_numpy(self.boxes)).max(dim=1)
        return torch.where(best > OWN_IOU, row + 1, 0)

    def masks(self, boxes: Tensor) -> Tensor:
        """Probabilities, float32 (N, side, side), in boxes (N, 4)."""
        owners = self.owners(boxes).tolist()
        grids = np.zeros((len(boxes), self.side, self.side), np.float32)
        for grid, owner, (x0, y0, x1, y1) in zip(grids, owners, boxes.double().numpy(), strict=True):
            height, width = self.cells.label_map.shape
            (to_y, y), (to_x, x) = (self._squares(y0, y1, height), self._squares(x0, x1, width))
            values = self.cells.probabilities[np.ix_(y, x)]
            if owner:
                values = values * (self.cells.reach[np.ix_(y, x)] == owner)
            grid[np.ix_(to_y, to_x)] = values
        return torch.from_numpy(grids)

    def _squares(self, low: float, high: float, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Along one axis, which squares have their centre in the image, and in which pixel."""
        centres = low + (np.arange(self.side) + 0.5) * ((high - low) / self.side)
        inside = np.flatnonzero((centres >= 0) & (centres < size))
        return inside, centres[inside].astype(np.int64)


class CellposeNetwork(nn.Module):
    """A network as the ensemble sees it; see `base.Network` for the four steps' contracts.

    `rescale` is by how much an image grows on its way to the network. With a class count of None its cells
    are of no class of their own.
    """

    def __init__(
        self,
        model: UNet,
        parts: CellposeParts,
        rescale: float,
        class_count: int | None,
        precision: torch.dtype,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.parts = parts
        self.rescale = rescale
        self.class_count = class_count
        self.precision = precision
        self.memory_format = torch.contiguous_format
        if precision != torch.float32:
            self._lay_channels_last()

    def quicken(self) -> None:
        """On a CPU in float32: norms in convolutions, wide ones by Winograd's algorithm, channels last."""
        if self.precision == torch.float32 and next(self.parameters()).device.type == "cpu":
            quicken(self.model)
            self._lay_channels_last()

    def _lay_channels_last(self) -> None:
        self.memory_format = torch.channels_last
        self.model.to(memory_format=self.memory_format)

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> CellposeFeatures:
        """Tiles through the network, then the cells that its flows lead to, on threads of their own."""
        hws = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
        rescale = self.rescale * view.scale
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            styles, cells = [], []
            for maps, style in self.flows(images, view):
                styles.append(style[:, None, None])
                cells.append(pool.submit(cells_of, maps.cpu().numpy(), self.parts, hws[0], rescale))
                if len(cells) > _THREADS:
                    cells[-_THREADS - 1].result()  # so that no more flows wait than are followed
            seen = tuple(Seen(each.result()) for each in cells)
        input_hw = resized_hw(hws[0], rescale)
        return CellposeFeatures({"style": torch.stack(styles)}, hws, (input_hw,) * len(hws), input_hw, seen)

    def flows(self, images: Sequence[Tensor], view: View = IDENTITY) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each image flows and logit, float32 (3, h, w), at the network's size, and its style (S,)."""
        own = (self._pixels(image, self.rescale * view.scale) for image in images)
        for maps, style in flows_of(self._run, own, self.parts, images[0].device):
            require_finite("flows", maps)
            yield maps, style

    def _pixels(self, image: Tensor, rescale: float) -> Float32:
        """(2, h, w) of an image as its tiles are cut from it."""
        size_hw = resized_hw((int(image.shape[-2]), int(image.shape[-1])), rescale)
        return resized(normalised(image.cpu().numpy(), self.parts.percentile), size_hw)

    def _run(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(tiles.device.type, self.precision, enabled=self.precision != torch.float32):
            maps, styles = self.model(tiles.contiguous(memory_format=self.memory_format))
        return maps, styles

    def propose(self, features: Features) -> list[Tensor]:
        """The boxes of its cells: they are found already."""
        sizes = zip(_seen(features), features.input_hws, features.image_hws, strict=True)
        proposals = []
        for seen, (height, width), (image_height, image_width) in sizes:
            grown = torch.tensor([width / image_width, height / image_height] * 2)
            proposals.append((torch.from_numpy(seen.boxes) * grown).to(_device(features)))
        return proposals

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        """Its cells by their boxes, which are whole pixels, whatever became of the proposals."""
        return [self._detections(seen, _device(features)) for seen in _seen(features)]

    def _detections(self, seen: Seen, device: torch.device) -> Detections:
        order = np.argsort(-seen.cells.scores, kind="stable")
        boxes, scores = (torch.from_numpy(each[order]).to(device) for each in (seen.boxes, seen.cells.scores))
        labels = torch.full((len(order),), 0 if self.class_count is None else 1, device=device)
        return Detections(boxes, scores, labels)

    def saw(self, features: Features, boxes: list[Tensor]) -> list[Tensor]:
        """Which boxes are of one of its cells."""
        device = _device(features)
        seen = zip(_seen(features), boxes, strict=True)
        return [(s.owners(b.cpu()) > 0).to(device) for s, b in seen]

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        """In a box of one of its cells, the pixels that flow to it; elsewhere whatever is a cell's."""
        device = _device(features)
        return [s.masks(b.cpu()).to(device) for s, b in zip(_seen(features), boxes, strict=True)]


def _seen(features: Features) -> tuple[Seen, ...]:
    assert isinstance(features, CellposeFeatures)
    return features.seen


def _device(features: Features) -> torch.device:
    return features.maps["style"].device
