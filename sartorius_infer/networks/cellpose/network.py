"""A Cellpose network in the ensemble's four steps: its cells are its boxes, its flows its masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from sartorius_infer.types import Float32

OWN_IOU = 0.3
"""A box that overlaps that of a cell by more is of this cell."""

_GRID_VALUES = 32 << 20
"""Values in the masks of all cells of an image: what bounds their grids."""

_SMALLEST_GRID = 28


@dataclass(frozen=True, eq=False)
class CellposeFeatures(Features):
    """Features that were followed to cells.

    `maps` has "flows", flows and logit (B, 3, h, w) before any resampling, and "style" (B, S, 1, 1).
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

    def masks(self, boxes: Tensor) -> Tensor:
        """Probabilities, float32 (N, side, side), in boxes (N, 4)."""
        owners = _owners(boxes, torch.from_numpy(self.boxes))
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


def _owners(boxes: Tensor, own: Tensor) -> list[int]:
    """For each of boxes (N, 4) the number of the cell, from 1, that it is of; 0 where of none."""
    if len(boxes) == 0 or len(own) == 0:
        return [0] * len(boxes)
    best, row = box_iou(boxes, own).max(dim=1)
    return [int(n) for n in torch.where(best > OWN_IOU, row + 1, 0)]


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

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> CellposeFeatures:
        """Tiles through the network, then the cells that its flows lead to, on threads of their own."""
        hws = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        rescale = self.rescale * view.scale
        with ThreadPoolExecutor(max_workers=4) as pool:
            maps, styles, cells = [], [], []
            for image, hw in zip(images, hws, strict=True):
                seen_maps, style = self._maps(image, resized_hw(hw, rescale))
                maps.append(seen_maps)
                styles.append(style[:, None, None])
                cells.append(pool.submit(cells_of, seen_maps.cpu().numpy(), self.parts, hw, rescale))
            seen = tuple(Seen(each.result()) for each in cells)
        input_hws = tuple((int(each.shape[1]), int(each.shape[2])) for each in maps)
        stacked = {"flows": torch.stack(maps), "style": torch.stack(styles)}
        return CellposeFeatures(stacked, tuple(hws), input_hws, input_hws[0], seen)

    def _maps(self, image: Tensor, input_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Flows and logit (3, h, w) of an image at the network's size, and its style (S,)."""
        pixels = resized(normalised(image.cpu().numpy(), self.parts.percentile), input_hw)
        maps, style = flows_of(self._run, pixels, self.parts, image.device)
        require_finite("flows", maps)
        return maps, style

    def _run(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(tiles.device.type, self.precision, enabled=self.precision != torch.float32):
            maps, styles = self.model(tiles)
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
    return features.maps["flows"].device
