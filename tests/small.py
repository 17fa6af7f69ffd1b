"""A small torchvision Mask R-CNN, its state, its file, and manifests that name it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoint_factories import anchors, resnet_pyramid, tiny, write_manifest
from torch import Tensor
from torchvision.models import resnet
from torchvision.models.detection import MaskRCNN

State = dict[str, Tensor]


@functools.cache
def small(foreground: int = 3, sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,))) -> MaskRCNN:
    """Two stages of a ResNet-18 and heads of a few channels: 0.7 million parameters."""
    torch.manual_seed(foreground)
    body = resnet_pyramid(resnet.resnet18(), stages=(1, 2), channels=8)
    return tiny(
        body,
        foreground=foreground,
        generator=anchors(sizes),
        box_pool=2,
        mask_channels=(8,),
        hidden=8,
    )


def small_state(foreground: int = 3) -> State:
    return dict(small(foreground).state_dict())


def saved(path: Path, state: Any = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save(small_state() if state is None else state, path)
    return path


def manifest(folder: Path, *entries: dict[str, Any], **more: Any) -> Path:
    """A manifest of these entries, each of `a.pth` and three classes unless told."""
    told = [{"name": str(i), "file": "a.pth", "classes": ["x", "y", "z"], **e} for i, e in enumerate(entries)]
    return write_manifest(folder / "weights_manifest.json", told, **more)
