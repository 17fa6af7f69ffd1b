"""Cellpose networks for tests: the reference case beside the checkout, and small ones of any numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from places import DATA, SHARED
from torch import Tensor

from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks.cellpose.family import CellposeFamily
from sartorius_infer.networks.cellpose.network import CellposeNetwork
from sartorius_infer.networks.cellpose.unet import UNet
from sartorius_infer.types import Float32, UInt8

REFERENCE = SHARED / "reference" / "cellpose"
QUARTER = REFERENCE / "cellpose_quarter"
IMAGES = DATA / "public_test"

needs_reference = pytest.mark.skipif(
    not (QUARTER.is_file() and IMAGES.is_dir()), reason="Cellpose's own outputs are not beside the checkout"
)


def image_of(name: str) -> UInt8:
    """Uint8 (H, W) of a public test image."""
    return read_image(IMAGES / f"{name}.png").pixels


def quarter(parts: CellposeParts | None = None, precision: torch.dtype = torch.float32) -> CellposeNetwork:
    """The reference checkpoint's network."""
    spec = ModelSpec(name="a", file=str(QUARTER), cellpose=parts)
    network = CellposeFamily().build(spec, dict(read_checkpoint(QUARTER).with_outside.state), precision)
    assert isinstance(network, CellposeNetwork)
    return network


@cache
def seen_by_quarter(name: str, diameter: float | None, augment: bool) -> tuple[Float32, Float32]:
    """Flows and logit (3, h, w) and the style (S,) of a public test image; computed once."""
    network = quarter(CellposeParts(diameter=diameter, augment=augment))
    with torch.inference_mode():
        ((maps, style),) = network.flows([torch.from_numpy(image_of(name).copy())[None]])
    return maps.numpy(), style.numpy()


def small_state(widths: tuple[int, ...] = (4, 6, 8), seed: int = 0, outputs: int = 3) -> dict[str, Tensor]:
    """A state dict of any numbers, with what version 2.0 and later keep of diameters."""
    torch.manual_seed(seed)
    state = UNet(widths).state_dict()
    last = state["output.2.weight"]
    state["output.2.weight"] = torch.randn(outputs, *last.shape[1:])
    state["output.2.bias"] = torch.randn(outputs)
    return state | {"diam_mean": torch.tensor([30.0]), "diam_labels": torch.tensor([20.0])}


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    """As the package saves one: no suffix, nothing but the state."""
    torch.save(state, path)
    return path


def radial_maps(size_hw: tuple[int, int], discs: list[tuple[float, float, float]]) -> Float32:
    """Flows and logit (3, H, W) of discs (y, x, radius), whose flow points to their centres."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float64)
    maps = np.zeros((3, *size_hw))
    maps[2] = -6
    for cy, cx, radius in discs:
        distance = np.hypot(y - cy, x - cx)
        near = distance < radius + 4
        maps[0][near] = (5 * (cy - y) / np.maximum(distance, 1e-6))[near]
        maps[1][near] = (5 * (cx - x) / np.maximum(distance, 1e-6))[near]
        maps[2][near] = (radius - distance)[near]
    return maps.astype(np.float32)
