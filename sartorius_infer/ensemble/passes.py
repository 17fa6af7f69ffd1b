"""The two passes: boxes of every network and view are fused, then every mask head scores the fused boxes.

A large image goes through both tile by tile, each as an image of its own, so that its feature maps are there
for both and then gone. What concerns the whole image, its classes above all, waits until all tiles are seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sartorius_infer.cells.claim import Selector
from sartorius_infer.ensemble.fuse import Boxes, Fused, fuse
from sartorius_infer.ensemble.grids import SIDE, WeightedMean
from sartorius_infer.ensemble.member import Member
from sartorius_infer.ensemble.parts import Part, bounded_masks, join
from sartorius_infer.ensemble.scale import boxes_back, shown
from sartorius_infer.ensemble.tiles import Tiling, tile_size, tiling
from sartorius_infer.errors import PredictionError
from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.manifest.views import View, parse_view
from sartorius_infer.networks import Features
from sartorius_infer.networks.base import Abstains, require_finite
from sartorius_infer.types import Bool, CellImage, Float16, Float32, Int64, Prediction

Select = Callable[[Float32, Int64], Bool]
"""(scores (N,), labels (N,)) of an image -> which boxes are worth a mask, bool (N,)."""

OnLook = Callable[[str, str, float, int], None]
"""Told a network's name, a view, the seconds that it took to find boxes there, and in how many images."""


class Voters(Protocol):
    """Who votes, and how: an ensemble, as far as the passes are concerned."""

    @property
    def manifest(self) -> Manifest:
        """Classes, views and fusion."""

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks, all on one device."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    @property
    def one_class(self) -> bool:
        """Whether what they see is called by the manifest's only class, whatever theirs."""


FEATURE_BYTES = 2 << 30
"""Feature maps kept between the passes; beyond it the body runs a second time, memory before speed."""


_RESERVED = 1e-6
"""The share of its vote that a network has in a box where it saw no cell.

Beside another's vote half precision does not tell it from none, and where all have no more, it decides.
"""


@dataclass(frozen=True, eq=False)
class _Look:
    """One member in one view; its vote is relative to the greatest weight, so that float32 can hold it."""

    member: Member
    name: str
    view: View
    vote: float


@dataclass(eq=False)
class _FeatureStore:
    """Feature maps of each look, kept from the first pass while they fit into `limit` bytes."""

    images: Sequence[Tensor]
    limit: int
    kept: dict[int, Features] = field(default_factory=dict)
    used: int = 0

    def get(self, index: int, look: _Look) -> Features:
        if index in self.kept:
            return self.kept[index]
        views = [look.view.image(image) for image in self.images]
        features = look.member.network.features(views, look.view)
        if self.used + features.nbytes <= self.limit:
            self.kept[index] = features
            self.used += features.nbytes
        return features


def predict(
    ensemble: Voters,
    images: Sequence[CellImage],
    select: Select | None = None,
    roi_chunk: int | None = None,
    feature_bytes: int = FEATURE_BYTES,
    on_look: OnLook | None = None,
) -> list[Prediction]:
    """What the ensemble sees in each image, in their order.

    Images of one size enter the networks together; those of another have no say in what is seen in them.
    What is much larger than the manifest's tiles is seen in tiles, one after the other.
    `select` names the boxes that later rules could keep, so that no mask is computed for the others;
    None keeps every one. `roi_chunk` bounds how many RoIs one mask head call takes. Raises
    PredictionError, naming the network, where one puts out NaN or infinity.
    """
    how = How(select, roi_chunk, feature_bytes, on_look)
    groups: dict[tuple[int, int], list[int]] = {}
    found: dict[int, Prediction] = {}
    for row, image in enumerate(images):
        plan = tiling(image.size_hw, tile_size(ensemble.manifest))
        if len(plan) == 1:
            groups.setdefault(image.size_hw, []).append(row)
        else:
            parts = [predict_tiles(ensemble, image, plan, [tile], how)[0] for tile in range(len(plan))]
            found[row] = join(image.id, plan, parts, select)
    for rows in groups.values():
        found.update(zip(rows, _predict_alike(ensemble, [images[row] for row in rows], how), strict=True))
    return [found[row] for row in range(len(images))]


@dataclass(frozen=True)
class How:
    """How `predict` goes about it, by its arguments' names."""

    select: Select | None = None
    roi_chunk: int | None = None
    feature_bytes: int = FEATURE_BYTES
    on_look: OnLook | None = None

    def __post_init__(self) -> None:
        if self.roi_chunk is not None and self.roi_chunk < 1:
            raise ValueError(f"roi_chunk: expected at least 1, or None, found {self.roi_chunk}")


@torch.inference_mode()
def predict_tiles(
    ensemble: Voters, image: CellImage, plan: Tiling, tiles: Sequence[int], how: How
) -> list[Part]:
    """What the ensemble sees in some tiles of an image, which enter the networks together, for `parts.join`.

    Raises PredictionError, naming the network, where one puts out NaN or infinity.
    """
    sight = _Sight(ensemble, [replace(image, pixels=image.pixels[plan.window(t)]) for t in tiles], how)
    fused = sight.fused(whole=False)
    boxes = [plan.to_image(t, sight.to_image(f.boxes)) for t, f in zip(tiles, fused, strict=True)]
    called = [sight.called(f.labels) for f in fused]
    worth = [_worth_a_mask(f.scores, c, how.select) for f, c in zip(fused, called, strict=True)]
    kept = [w & plan.near(t, b) for t, b, w in zip(tiles, boxes, worth, strict=True)]
    faint = [~w & (plan.owners(b) == t) for t, b, w in zip(tiles, boxes, worth, strict=True)]
    masks = sight.masks([f[k] for f, k in zip(fused, kept, strict=True)])
    return [
        Part(t, b[k], f.scores[k], c[k], bounded_masks(m, len(plan)), f.scores[i], c[i])
        for t, f, c, b, k, i, m in zip(tiles, fused, called, boxes, kept, faint, masks, strict=True)
    ]


def _worth_a_mask(scores: Float32, labels: Int64, select: Select | None) -> Bool:
    """Of boxes in a tile, those that the whole image could keep: all, unless `select` can tell."""
    if isinstance(select, Selector):
        return select.of_part(scores, labels)
    return np.ones(len(scores), np.bool_)


@torch.inference_mode()
def _predict_alike(ensemble: Voters, images: Sequence[CellImage], how: How) -> list[Prediction]:
    """`predict` of at least one image, all of one size, each of them whole."""
    sight = _Sight(ensemble, images, how)
    fused = sight.fused()
    if how.select is not None:
        fused = [f[how.select(f.scores, sight.called(f.labels))] for f in fused]
    return [
        Prediction(image.id, image.size_hw, sight.to_image(f.boxes), f.scores, sight.called(f.labels), masks)
        for image, f, masks in zip(images, fused, sight.masks(fused), strict=True)
    ]


class _Sight:
    """At least one image, all of one size, as every network sees them in every view."""

    def __init__(self, ensemble: Voters, images: Sequence[CellImage], how: How) -> None:
        manifest, members = ensemble.manifest, ensemble.members
        seen = [shown(image, manifest.magnification) for image in images]
        self._size_hw, self._shown_hw = images[0].size_hw, seen[0].size_hw
        self._hws = [self._shown_hw] * len(images)
        self._fusion, self._how, self._one_class = manifest.fusion, how, ensemble.one_class
        top = max(member.weight for member in members)
        self._looks = [
            _Look(member, name, parse_view(name), member.weight / top)
            for member in members
            for name in manifest.views
        ]
        tensors = [image_tensor(image).to(ensemble.device) for image in seen]
        self._store = _FeatureStore(tensors, how.feature_bytes)

    def fused(self, whole: bool = True) -> list[Fused]:
        """The first pass: the boxes of each image as shown, `whole` or not; see `fuse`."""
        boxes = []
        for i, look in enumerate(self._looks):
            start = time.perf_counter()
            boxes.append(_look_for_boxes(look, self._store.get(i, look), self._hws))
            if self._how.on_look is not None:
                seconds = time.perf_counter() - start
                self._how.on_look(look.member.name, look.name, seconds, len(self._hws))
        per_image = zip(*boxes, strict=True)
        return [fuse(members, self._shown_hw, self._fusion, whole) for members in per_image]

    def masks(self, fused: Sequence[Fused]) -> list[Float16]:
        """The second pass: masks (N, M, M) of boxes of each image as shown."""
        chunk = self._how.roi_chunk or max(1, sum(map(len, fused)))
        return _mask_pass(self._looks, self._store, fused, self._hws, chunk)

    def called(self, labels: Int64) -> Int64:
        """What boxes of labels (N,) are called: the one class, where there is one for all."""
        return np.ones_like(labels) if self._one_class else labels

    def to_image(self, boxes: Float32) -> Float32:
        """Boxes (N, 4) of an image as shown, in its own pixels."""
        return boxes_back(boxes, self._shown_hw, self._size_hw)


def image_tensor(image: CellImage) -> Tensor:
    """Uint8 (1 or 3, H, W) of an image's pixels."""
    pixels = image.pixels[None] if image.pixels.ndim == 2 else image.pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(pixels, order="C"))  # a copy: torch refuses read-only arrays


def _look_for_boxes(look: _Look, features: Features, hws: Sequence[tuple[int, int]]) -> list[Boxes]:
    """First pass of one look: detections of each image in its own pixels and the manifest's labels."""
    network, member = look.member.network, look.member
    with _naming(member):
        detected = network.detect(features, network.propose(features))
        require_finite("detections", *(t for d in detected for t in (d.boxes, d.scores)))
    found = []
    for detections, size_hw in zip(detected, hws, strict=True):
        labels = member.to_manifest[detections.labels]
        known = labels >= 0
        boxes = look.view.boxes_back(detections.boxes[known], size_hw)
        found.append(
            Boxes(
                boxes.float().cpu().numpy().reshape(-1, 4),
                detections.scores[known].float().cpu().numpy(),
                labels[known].cpu().numpy(),
                look.vote,
            )
        )
    return found


@contextmanager
def _naming(member: Member) -> Iterator[None]:
    """Put the member's name before what a PredictionError says."""
    try:
        yield
    except PredictionError as error:
        raise PredictionError(f"{member.name}: {error}") from None


def _mask_pass(
    looks: Sequence[_Look],
    store: _FeatureStore,
    fused: Sequence[Fused],
    hws: Sequence[tuple[int, int]],
    roi_chunk: int,
) -> list[Float16]:
    """Second pass: float16 (N, M, M) of each image, the weighted mean over the looks that know the class."""
    device = store.images[0].device
    boxes = [torch.from_numpy(f.boxes).to(device) for f in fused]
    labels = [torch.from_numpy(f.labels).to(device) for f in fused]
    if not any(len(b) for b in boxes):
        return [np.zeros((0, SIDE, SIDE), np.float16) for _ in fused]
    mean = WeightedMean(len(fused))
    for index, look in enumerate(looks):
        features = store.get(index, look)
        own = [look.member.from_manifest[label] for label in labels]
        seen = [look.view.boxes(b, hw) for b, hw in zip(boxes, hws, strict=True)]
        says = _says(look, features, seen)
        for row, probabilities in enumerate(_chunked_masks(look.member, features, seen, own, roi_chunk)):
            upright = look.view.image_back(probabilities)
            mean.add(row, upright, says[row] * (own[row] > 0))
    return [mean.result(row) for row in range(len(fused))]


def _says(look: _Look, features: Features, boxes: list[Tensor]) -> list[Tensor]:
    """The vote of a look about each of an image's boxes, float32 (N,)."""
    network = look.member.network
    if not isinstance(network, Abstains):
        return [torch.full((len(some),), look.vote, device=some.device) for some in boxes]
    saw = network.saw(features, boxes)
    return [look.vote * torch.where(each, 1.0, _RESERVED) for each in saw]


def _chunked_masks(
    member: Member, features: Features, boxes: list[Tensor], labels: list[Tensor], roi_chunk: int
) -> list[Tensor]:
    """`mask_probabilities` of every box, in calls of at most `roi_chunk` RoIs."""
    parts: list[list[Tensor]] = [[] for _ in boxes]
    for slices in _chunks([len(b) for b in boxes], roi_chunk):
        some_boxes = [b[s] for b, s in zip(boxes, slices, strict=True)]
        some_labels = [label[s] for label, s in zip(labels, slices, strict=True)]
        with _naming(member):
            masks = member.network.mask_probabilities(features, some_boxes, some_labels)
            require_finite("masks", *masks)
        for part, mask in zip(parts, masks, strict=True):
            part.append(mask)
    return [torch.cat(part) for part in parts]


def _chunks(counts: Sequence[int], limit: int) -> Iterator[list[slice]]:
    """Slices of each image's boxes such that one round holds at most `limit` in all."""
    starts = [0] * len(counts)
    while True:
        room, slices = limit, []
        for row, count in enumerate(counts):
            take = min(room, count - starts[row])
            slices.append(slice(starts[row], starts[row] + take))
            starts[row] += take
            room -= take
        yield slices
        if all(start == count for start, count in zip(starts, counts, strict=True)):
            return
