"""What bodies cost, each against its plain twin: body and pyramid of one image at 800 pixels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import alternate
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.networks.detectron2.modules import Detectron2Model
from sartorius_infer.networks.detectron2.rcnn import Detectron2Network

CLASSES = 3
DEFORMABLE = {"deformable": (3, 4, 5)}
MODULATED = {**DEFORMABLE, "modulated": True, "deformable_groups": 2}
X152 = {"depth": 152, "groups": 32, "width_per_group": 8}
RESNEST = {"radix": 2, "norm": {"kind": "batch"}}

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "R50 with deformable convolutions, against R50": ({}, DEFORMABLE),
    "R50 with modulated ones in two groups, against R50": ({}, MODULATED),
    "X-152 32x8d with deformable convolutions, against X-152": (X152, {**X152, **DEFORMABLE}),
    "ResNeSt-50, against R50": ({}, RESNEST),
    "ResNeSt-50 with modulated ones in two groups, against ResNeSt-50": (RESNEST, {**RESNEST, **MODULATED}),
}
"""Settings of the plain body and of the other; all halve in their 3 x 3 convolutions."""


def costs(image: Tensor, rounds: int) -> Iterator[tuple[str, float, float]]:
    """What, seconds of the plain body and of the other (medians), of a uint8 image (1, H, W)."""
    for what, (plain, other) in PAIRS.items():
        contenders = {"plain": _network(plain), "other": _network(other)}
        times = alternate({name: partial(n.features, [image]) for name, n in contenders.items()}, rounds)
        seconds = times["plain"].median, times["other"].median
        print(f"{what}: {seconds[0]:.3g} s and {seconds[1]:.3g} s", file=sys.stderr, flush=True)
        yield what, *seconds


def _network(body: dict[str, Any]) -> Detectron2Network:
    """Of random weights: how far taps move does not change what they cost."""
    torch.manual_seed(0)
    parts = Detectron2Parts.model_validate({"body": {"stride_in_1x1": False, **body}})
    network = Detectron2Network(
        Detectron2Model(parts, CLASSES), parts, CLASSES, Preprocessing(), torch.float32
    )
    network.requires_grad_(False)
    network.settle()
    return network
