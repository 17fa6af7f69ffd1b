"""The first step of every network that comes with the package: its input, its body and pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sartorius_infer.networks.base import Features
from sartorius_infer.networks.preprocess import Preprocessing, network_input
from sartorius_infer.views import IDENTITY, View


class PyramidNetwork(nn.Module):
    """A model with a `backbone`, which gives maps by name, and how its images are made."""

    def __init__(
        self, model: nn.Module, class_count: int, preprocessing: Preprocessing, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.model: Any = model.eval()
        self.class_count = class_count
        self.preprocessing = preprocessing
        self.precision = precision

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        """Resize, normalise, pad; body and pyramid."""
        batch, input_hws = network_input(images, self.preprocessing, view)
        with self.autocast(batch.device):
            maps = self.model.backbone(batch)
        return Features(
            maps={name: level.float() for name, level in maps.items()},
            image_hws=tuple((int(i.shape[-2]), int(i.shape[-1])) for i in images),
            input_hws=input_hws,
            padded_hw=(int(batch.shape[-2]), int(batch.shape[-1])),
        )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Computing in the network's precision on a device."""
        return torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32)
