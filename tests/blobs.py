"""Networks that see bright blobs exactly, images of such blobs, and ensembles of any networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from factories import CLASSES
from scipy import ndimage
from torch import Tensor
from torchvision.ops import roi_align

from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.member import Member
from sartorius_infer.manifest.manifest import Fusion, Manifest, ModelSpec
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks import Detections, Features, Network
from sartorius_infer.types import Bool, CellImage, Prediction

WORLD = (*CLASSES, "debris")
SIZE_HW = (39, 52)
TILE = 13


def class_at(level: int) -> str:
    """What a blob of this brightness is."""
    return WORLD[level % len(WORLD)]


@dataclass
class BlobNetwork:
    """Sees exactly the connected bright blobs of the classes that it knows, in any view and at whole scales.

    A blob's score is its brightness; its mask is the blob in its box times the firmness of its class.
    """

    classes: tuple[str, ...] = CLASSES
    grid: int = 28
    firmness: float = 0.9
    dimmest: int = 1
    looks: list[View] = field(default_factory=list)

    @property
    def class_count(self) -> int:
        return len(self.classes)

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        self.looks.append(view)
        gray = torch.stack([image[:1] for image in images]).float()  # (B, 1, H, W)
        scale = int(view.scale)
        maps = F.interpolate(gray, scale_factor=scale) if scale > 1 else gray
        hw, input_hw = _hw(gray), _hw(maps)
        return Features({"0": maps}, (hw,) * len(images), (input_hw,) * len(images), input_hw)

    def propose(self, features: Features) -> list[Tensor]:
        return [self._boxes(level[0].numpy() > 0) for level in features.maps["0"]]

    @staticmethod
    def _boxes(blobs: Bool) -> Tensor:
        parts, _ = ndimage.label(blobs, np.ones((3, 3)))
        found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(parts)]
        return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        upright = self._upright(features)
        scale = features.input_hws[0][0] / features.image_hws[0][0]
        return [self._classify(u[0], boxes / scale) for u, boxes in zip(upright, proposals, strict=True)]

    def _classify(self, pixels: Tensor, boxes: Tensor) -> Detections:
        levels = [int(pixels[y0:y1, x0:x1].max()) for x0, y0, x1, y1 in boxes.long().tolist()]
        seen = [i for i, v in enumerate(levels) if class_at(v) in self.classes and v >= self.dimmest]
        seen.sort(key=lambda i: -levels[i])
        scores = torch.tensor([levels[i] / 255 for i in seen], dtype=torch.float32)
        labels = [self.classes.index(class_at(levels[i])) + 1 for i in seen]
        return Detections(boxes[seen], scores, torch.tensor(labels, dtype=torch.int64))

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        inside = (self._upright(features) > 0).float()
        rois = roi_align(inside, boxes, self.grid, sampling_ratio=1, aligned=True)[:, 0]
        firm = [1.0, *(self.firmness * (0.5 + 0.1 * WORLD.index(name)) for name in self.classes)]
        masks = rois * torch.tensor(firm)[torch.cat(labels)][:, None, None]
        return list(masks.split([len(b) for b in boxes]))

    @staticmethod
    def _upright(features: Features) -> Tensor:
        step = features.input_hws[0][0] // features.image_hws[0][0]
        return features.maps["0"][..., ::step, ::step]


def _hw(maps: Tensor) -> tuple[int, int]:
    return int(maps.shape[-2]), int(maps.shape[-1])


def blobs(seed: int, size_hw: tuple[int, int] = SIZE_HW, image_id: str = "blobs") -> CellImage:
    """Crooked blobs of different brightness, none touching another, some on the border."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros(size_hw, np.uint8)
    tiles = [(y, x) for y in range(0, size_hw[0], TILE) for x in range(0, size_hw[1], TILE)]
    levels = rng.permutation(np.arange(30, 250))
    for (y, x), level in zip(tiles, levels, strict=False):
        if rng.random() < 0.7:
            tile = pixels[y : y + TILE - 1, x : x + TILE - 1]
            for _ in range(2):  # both parts hold the tile's middle
                (y0, x0), (y1, x1) = rng.integers(0, 6, 2), rng.integers(6, 12, 2)
                tile[y0 : y1 + 1, x0 : x1 + 1] = level
    return CellImage(image_id, pixels)


def blank(size_hw: tuple[int, int] = SIZE_HW) -> CellImage:
    return CellImage("blank", np.zeros(size_hw, np.uint8))


def maps_between(own: Sequence[str], other: Sequence[str], none: int) -> Tensor:
    return torch.tensor([none, *(other.index(name) + 1 if name in other else none for name in own)])


def ensemble_of(
    *networks: Network,
    views: Sequence[str] = ("identity",),
    weights: Sequence[float] | None = None,
    fusion: Fusion | None = None,
) -> Ensemble:
    """These networks, of `CLASSES` unless they say otherwise, as a manifest would join them."""
    weights = [1.0] * len(networks) if weights is None else weights
    specs = tuple(ModelSpec(name=f"n{i}", file=f"n{i}.pt", weight=w) for i, w in enumerate(weights))
    manifest = Manifest(
        version=1, classes=CLASSES, models=specs, views=tuple(views), fusion=fusion or Fusion()
    )
    members = []
    for spec, network in zip(specs, networks, strict=True):
        own = getattr(network, "classes", CLASSES)
        to_manifest, from_manifest = maps_between(own, CLASSES, -1), maps_between(CLASSES, own, 0)
        members.append(Member(spec.name, network, spec.weight, to_manifest, from_manifest))
    return Ensemble(manifest, tuple(members), torch.device("cpu"))


def assert_same(a: Prediction, b: Prediction, masks: float = 2e-3) -> None:
    """Equal but for rounding; a mask may differ by 2 steps of a float16."""
    assert a.image_id == b.image_id and a.size_hw == b.size_hw
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=2e-3)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    np.testing.assert_allclose(a.masks.astype(np.float32), b.masks.astype(np.float32), atol=masks)
