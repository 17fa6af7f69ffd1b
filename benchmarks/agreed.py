"""Random networks that agree: they do all of their work, then their boxes are exchanged for drawn cells.

Trained networks find the same cells in every view, and what an ensemble costs depends on that. Random
ones don't, and would make mask NMS look far slower than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks.base import Detections, Features, Network
from sartorius_infer.types import Prediction


class AgreedNetwork:
    """A network of the kit that detects drawn cells."""

    def __init__(self, network: Network, cells: Prediction) -> None:
        self.network, self.cells = network, cells
        self.class_count = network.class_count
        self._views: dict[int, View] = {}

    def to(self, device: torch.device) -> AgreedNetwork:
        """Where the network is, this is too."""
        self.network = self.network.to(device)
        return self

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        """The network's."""
        features = self.network.features(images, view)
        self._views[id(features)] = view
        return features

    def propose(self, features: Features) -> list[Tensor]:
        """The network's."""
        return self.network.propose(features)

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        """The network's work, the drawn cells' boxes as the view shows them."""
        own = self.network.detect(features, proposals)[0].boxes
        boxes = torch.from_numpy(self.cells.boxes).to(own)
        seen = self._views[id(features)].boxes(boxes, self.cells.size_hw)
        scores, labels = (torch.from_numpy(v).to(own.device) for v in (self.cells.scores, self.cells.labels))
        return [Detections(seen, scores, labels)]

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        """The network's."""
        return self.network.mask_probabilities(features, boxes, labels)


class AgreedModel:
    """A torchvision model that finds drawn cells; told the flip by the order of its calls."""

    def __init__(
        self, model: Any, cells: Prediction, flips: Sequence[tuple[int, ...]], device: torch.device
    ) -> None:
        self.model, self.cells, self.flips = model, cells, flips
        grids = torch.from_numpy(cells.masks).float()[:, None]
        self.canvases = paste_masks_in_image(grids, torch.from_numpy(cells.boxes), cells.size_hw).to(device)
        self._calls = 0

    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """As the model's own, which is asked and then not listened to."""
        self.model(images)
        axes = self.flips[self._calls % len(self.flips)]
        self._calls += 1
        return [
            {
                "masks": self.canvases.flip(axes) if axes else self.canvases,
                "scores": torch.from_numpy(self.cells.scores),
                "labels": torch.from_numpy(self.cells.labels),
            }
        ]
