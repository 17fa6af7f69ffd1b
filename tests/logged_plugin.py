"""A plugin: a network that logs every image it looks at, sleeps for as long as its checkpoint says, and
whose cells depend on all images of a batch, so that a batch put together otherwise changes the result.

It is driven by the first pixel of an image, a number that the log repeats, with the process;
`BROKEN` makes it raise. `LOGGED_TO` is the log; with `LOGGED_DIES=n` rank 1 ends at its n-th image, the
first time it is started.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sartorius_infer import register_network
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks import Detections, Features

BROKEN = 250
CELLS = 6


class Logged:
    class_count = 3

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds, self.seed, self.seen = seconds, seed, 0

    def to(self, device: torch.device) -> Logged:
        return self

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        numbers = [int(image[0, 0, 0]) for image in images]
        if BROKEN in numbers:
            raise RuntimeError("broken")
        if view == IDENTITY:
            for number in numbers:
                self.note(number)
        time.sleep(self.seconds * len(images))
        together = sum(int(image.sum()) for image in images) + self.seed
        seeds = torch.tensor([together + int(image.sum()) for image in images])
        hw = (images[0].shape[1], images[0].shape[2])
        return Features({"seeds": seeds[:, None, None, None]}, (hw,) * len(images), (hw,) * len(images), hw)

    def note(self, number: int) -> None:
        if path := os.environ.get("LOGGED_TO"):
            with Path(path).open("a") as file:
                file.write(f"{number} {os.getpid()}\n")
        self.seen += 1
        first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if os.environ.get("RANK") == "1" and first_start and self.seen == int(os.getenv("LOGGED_DIES", "0")):
            os._exit(9)

    def propose(self, features: Features) -> list[Tensor]:
        return [torch.zeros((0, 4)) for _ in features.image_hws]

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        found = []
        for seed, (height, width) in zip(features.maps["seeds"].flatten(), features.image_hws, strict=True):
            rng = np.random.default_rng(int(seed))
            corner = rng.random((CELLS, 2)) * (width, height) * 0.8
            boxes = np.hstack([corner, corner + rng.uniform(4, 20, (CELLS, 2))]).astype(np.float32)
            labels = torch.from_numpy(rng.integers(1, 4, CELLS))
            scores = torch.from_numpy(rng.uniform(0.5, 1, CELLS).astype(np.float32))
            found.append(Detections(torch.from_numpy(boxes), scores, labels))
        return found

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        return [torch.ones((len(some), 28, 28)) for some in boxes]


register_network(
    "logged",
    lambda spec, state, precision: Logged(float(state["logged.seconds"]), int(state["logged.seed"])),
    lambda state: "logged.seconds" in state,
)
