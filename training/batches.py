"""Batches as tensors: crops drawn, varied, and made the network's input by the kit's own preprocessing."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sartorius_infer.ensemble.passes import image_tensor
from sartorius_infer.manifest.preprocessing import PAD_MULTIPLE, Preprocessing, Resize
from sartorius_infer.manifest.views import IDENTITY
from sartorius_infer.networks.inputs import network_input
from sartorius_infer.types import CellImage
from training.augment import change_grays, paste_cells, turn
from training.crops import Sample, boxes_of, cut, draw_window, draw_zoom
from training.draws import Draw, rng_of
from training.recipe import Augment
from training.sources import Example


@dataclass(frozen=True, eq=False)
class Target:
    """The cells of one crop.

    boxes   float32 (N, 4) xyxy in network pixels
    labels  int64 (N,)
    masks   uint8 (N, h, w) in image pixels, of which one is `scale` (x, y) network pixels wide and high
    unsure  float32 (K, 4), as `boxes`, of what may be a cell or not
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    scale: tuple[float, float]
    unsure: Tensor = field(default_factory=lambda: torch.zeros((0, 4)))

    def to(self, device: torch.device) -> Target:
        """The same on a device."""
        boxes, labels, masks, unsure = (
            t.to(device, non_blocking=True) for t in (self.boxes, self.labels, self.masks, self.unsure)
        )
        return Target(boxes, labels, masks, self.scale, unsure)


@dataclass(frozen=True, eq=False)
class Batch:
    """Float32 images (B, 3, H, W), padded with zeros, their own sizes in it, and their cells."""

    images: Tensor
    sizes_hw: tuple[tuple[int, int], ...]
    targets: tuple[Target, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        targets = tuple(target.to(device) for target in self.targets)
        return Batch(self.images.to(device, non_blocking=True), self.sizes_hw, targets)

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU reads by itself; a DataLoader calls it."""
        return Batch(self.images.pin_memory(), self.sizes_hw, self.targets)


def draw_sample(draw: Draw, settings: Augment, iteration: int, index: int) -> tuple[Example, Sample]:
    """The `index`-th crop of an iteration and the example it is from; a function of its arguments alone."""
    example = draw.example(iteration, index)
    rng = rng_of(draw.seed, iteration, index)
    zoom = draw_zoom(settings, rng)
    sample = _cut(example, settings, rng, zoom)
    if rng.random() < settings.copy_paste:
        alike = [e for e in draw.examples if e.type == example.type]
        donor = _cut(draw.one_of(alike, rng), settings, rng, zoom)
        sample = paste_cells(sample, donor, settings, rng)
    return example, change_grays(sample, settings, rng)


def _cut(example: Example, settings: Augment, rng: np.random.Generator, zoom: float) -> Sample:
    window = draw_window(example, settings, rng, zoom)
    return turn(cut(example, window, settings.min_visible, zoom), settings, rng)


def to_network(sample: Sample, image_hw: tuple[int, int], settings: Preprocessing) -> tuple[Tensor, Target]:
    """A crop of an image of `image_hw` as the network sees it: float32 (3, H, W), and its cells there.

    A whole image at zoom 1 gives what the kit's `network_input` gives at inference.
    """
    pixels = image_tensor(CellImage("crop", sample.pixels))
    if max(sample.pixels.shape[:2]) == max(image_hw) and min(sample.pixels.shape[:2]) == min(image_hw):
        image_hw = (int(sample.pixels.shape[0]), int(sample.pixels.shape[1]))  # turned, perhaps
    own = crop_preprocessing(settings, image_hw, sample)
    batch, ((height, width),) = network_input([pixels], own, IDENTITY)
    scale = (width / sample.pixels.shape[1], height / sample.pixels.shape[0])
    boxes = torch.from_numpy(boxes_of(sample.masks)) * torch.tensor([*scale, *scale])
    masks = torch.from_numpy(np.ascontiguousarray(sample.masks).view(np.uint8))
    labels = torch.from_numpy(sample.labels)
    known = labels > 0
    target = Target(boxes[known], labels[known], masks[known], scale, boxes[~known])
    return batch[0, :, :height, :width], target


def crop_preprocessing(settings: Preprocessing, image_hw: tuple[int, int], sample: Sample) -> Preprocessing:
    """The preprocessing that magnifies a crop as inference magnifies the whole image, times its zoom."""
    crop_hw = (int(sample.pixels.shape[0]), int(sample.pixels.shape[1]))
    if crop_hw == image_hw and sample.zoom == 1:
        return settings
    update: dict[str, Resize] = {}
    whole, part = image_hw, crop_hw
    resizes = [(name, getattr(settings, name)) for name in ("resize_before", "resize")]
    for name, rule in [(name, rule) for name, rule in resizes if rule is not None]:
        target = rule.target_hw(whole, IDENTITY)
        last = name == "resize" or settings.resize is None
        zoom = sample.zoom if last else 1.0
        part = _scaled(part, target, whole, zoom)
        update[name], whole = Resize(exact_hw=part, interpolation=rule.interpolation), target
    if not update and sample.zoom != 1:
        update["resize"] = Resize(exact_hw=_scaled(crop_hw, image_hw, image_hw, sample.zoom))
    return settings.model_copy(update=update)


def _scaled(
    part_hw: tuple[int, int], target_hw: tuple[int, int], whole_hw: tuple[int, int], zoom: float
) -> tuple[int, int]:
    height, width = (
        max(1, round(p * t / w * zoom)) for p, t, w in zip(part_hw, target_hw, whole_hw, strict=True)
    )
    return height, width


def collate(pieces: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Crops in one tensor, each at its upper left, with sides that are multiples of 32 as at inference."""
    sizes = tuple((int(image.shape[1]), int(image.shape[2])) for image, _ in pieces)
    height, width = (math.ceil(max(side) / PAD_MULTIPLE) * PAD_MULTIPLE for side in zip(*sizes, strict=True))
    images = torch.zeros((len(pieces), 3, height, width))
    for row, (image, _) in zip(images, pieces, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return Batch(images, sizes, tuple(target for _, target in pieces))


@dataclass(frozen=True, eq=False)
class Batches(Dataset[Batch]):
    """Batches by iteration: this process's part, `index` of `count`, of each."""

    draw: Draw
    augment: Augment
    preprocessing: Preprocessing
    index: int = 0
    count: int = 1

    def __getitem__(self, iteration: int) -> Batch:
        share = self.draw.batch // self.count
        drawn = range(self.index * share, (self.index + 1) * share)
        samples = [draw_sample(self.draw, self.augment, iteration, i) for i in drawn]
        return collate([to_network(s, e.size_hw, self.preprocessing) for e, s in samples])

    def run(self, first: int, workers: int, pin: bool) -> Iterator[Batch]:
        """The batches from iteration `first` on, prepared by `workers` processes ahead of time."""
        iterations = range(first, self.draw.first + self.draw.steps)
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=iterations,
                num_workers=workers,
                pin_memory=pin,
                worker_init_fn=_leave_signals,
            )
        )


def _leave_signals(worker: int) -> None:
    """In a process that prepares batches: `timeout` and torchrun signal it too, but `Stop` alone decides."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
