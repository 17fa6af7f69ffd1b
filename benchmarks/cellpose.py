"""What a Cellpose network of the published widths costs on one image, by stages, in seconds of a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import kit
from sartorius_infer.ensemble.device import PRECISIONS
from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.networks.cellpose.dynamics import FLOW_SCALE, shape_flow
from sartorius_infer.networks.cellpose.family import MEAN_DIAMETER
from sartorius_infer.networks.cellpose.masks import cells_of
from sartorius_infer.networks.cellpose.network import CellposeNetwork
from sartorius_infer.networks.cellpose.unet import UNet
from sartorius_infer.types import Float32

WIDTHS = (32, 64, 128, 256)
PARTS = CellposeParts(diameter=19)
RESCALE = MEAN_DIAMETER / 19


def costs(image: Tensor, cells: int, rounds: int) -> Iterator[tuple[str, float]]:
    """Stage and seconds (medians) of a uint8 image (1, H, W), and of `cells` discs in one of its size."""
    contenders: dict[str, Callable[[], object]] = {}
    for precision in kit.precisions(kit.CPU):
        torch.manual_seed(0)
        model, dtype = UNet(WIDTHS).requires_grad_(False), PRECISIONS[precision]
        network = CellposeNetwork(model, PARTS, RESCALE, None, dtype)
        if precision == "fp32-fast":
            network.quicken()
        contenders[f"tiles, {precision}"] = partial(_exhaust, network, image)
    height, width = int(image.shape[-2]), int(image.shape[-1])
    maps = _discs((height, width), cells)
    contenders["flows to cells"] = partial(cells_of, maps, PARTS, (height, width), RESCALE)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1 + rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            if number:  # the first compiles, and does not count
                taken[name].append(time.process_time() - start)
    yield from ((name, statistics.median(seconds)) for name, seconds in taken.items())


def _exhaust(network: CellposeNetwork, image: Tensor) -> None:
    for _ in network.flows([image]):
        pass


def _discs(size_hw: tuple[int, int], count: int) -> Float32:
    """Flows and logit (3, h, w), at the network's size, of discs as wide as its cells in rows and columns."""
    height, width = (int(side * RESCALE) for side in size_hw)
    step = int((height * width / count) ** 0.5)
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(y % step - step / 2, x % step - step / 2) < min(MEAN_DIAMETER, step - 2) / 2
    numbers = (1 + y // step * (width // step + 1) + x // step) * inside
    flow = shape_flow(numbers.astype(np.int32)) * FLOW_SCALE
    return np.concatenate([flow, np.where(inside, 4.0, -4.0)[None]]).astype(np.float32)
