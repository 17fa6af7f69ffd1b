"""The first step of every network that comes with the package: its input, its body and pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks.base import Features
from sartorius_infer.networks.cpu.arithmetic import fold_norms, halve, quicken, use_stem_pool, use_winograd
from sartorius_infer.networks.inputs import network_input


class PyramidNetwork(nn.Module):
    """A model with a `backbone`, which gives maps by name, and `roi_heads.mask_head`; how images are made.

    A model with other names overrides `pyramid` and `mask_head`.
    """

    def __init__(
        self, model: nn.Module, class_count: int, preprocessing: Preprocessing, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.model: Any = model.eval()
        self.class_count = class_count
        self.preprocessing = preprocessing
        self.precision = precision
        self.memory_format = torch.contiguous_format
        self.maps_dtype = torch.float32

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        """Resize, normalise, pad; body and pyramid."""
        batch, input_hws = network_input(images, self.preprocessing, view)
        with self.autocast(batch.device):
            maps = self.pyramid(batch.contiguous(memory_format=self.memory_format))
        return Features(
            maps={
                name: level.to(self.maps_dtype).contiguous(memory_format=self.memory_format)
                for name, level in maps.items()
            },
            image_hws=tuple((int(i.shape[-2]), int(i.shape[-1])) for i in images),
            input_hws=input_hws,
            padded_hw=(int(batch.shape[-2]), int(batch.shape[-1])),
        )

    def pyramid(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Maps by name, finest first, of images (B, 3, H, W)."""
        maps: Mapping[str, Tensor] = self.model.backbone(batch)
        return maps

    @property
    def mask_head(self) -> nn.Module:
        """What decides on masks alone."""
        head: nn.Module = self.model.roi_heads.mask_head
        return head

    def settle(self) -> None:
        """Once it stands on its device, and nobody asks for its checkpoint's tensors any more.

        On a CPU its mask head changes its arithmetic for speed. Nothing depends on the last bits of
        masks; those of boxes and scores decide who survives NMS, so there `quicken` waits to be asked.
        """
        if self._on_cpu_in(torch.float32):
            use_stem_pool(self.model)
            fold_norms(self.mask_head)
            use_winograd(self.mask_head)
        elif self._on_cpu_in(torch.bfloat16):
            halve(self.model)
            self.memory_format, self.maps_dtype = torch.channels_last, torch.bfloat16

    def quicken(self) -> None:
        """On a CPU in float32, do everything by faster arithmetic that differs in the last bits."""
        if self._on_cpu_in(torch.float32):
            quicken(self.model)
            self.memory_format = torch.channels_last

    def _on_cpu_in(self, precision: torch.dtype) -> bool:
        return self.precision == precision and next(self.parameters()).device.type == "cpu"

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Computing in the network's precision on a device."""
        return torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32)
