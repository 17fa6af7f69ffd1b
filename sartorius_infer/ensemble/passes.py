"""The two passes: boxes of every network and view are fused, then every mask head scores the fused boxes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sartorius_infer.ensemble.fuse import Boxes, Fused, fuse
from sartorius_infer.ensemble.member import Member
from sartorius_infer.errors import PredictionError
from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.manifest.views import View, parse_view
from sartorius_infer.networks import Features
from sartorius_infer.networks.base import Abstains, require_finite
from sartorius_infer.types import Bool, CellImage, Float16, Float32, Int64, Prediction

Select = Callable[[Float32, Int64], Bool]
"""(scores (N,), labels (N,)) -> which boxes are worth a mask, bool (N,)."""

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


@torch.inference_mode()
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
    `select` names the boxes that later rules could keep, so that no mask is computed for the others;
    None keeps every one. `roi_chunk` bounds how many RoIs one mask head call takes. Raises
    PredictionError, naming the network, where one puts out NaN or infinity.
    """
    if roi_chunk is not None and roi_chunk < 1:
        raise ValueError(f"roi_chunk: expected at least 1, or None, found {roi_chunk}")
    groups: dict[tuple[int, int], list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault(image.size_hw, []).append(row)
    found: dict[int, Prediction] = {}
    for rows in groups.values():
        alike = [images[row] for row in rows]
        seen = _predict_alike(ensemble, alike, select, roi_chunk, feature_bytes, on_look)
        found.update(zip(rows, seen, strict=True))
    return [found[row] for row in range(len(images))]


def _predict_alike(
    ensemble: Voters,
    images: Sequence[CellImage],
    select: Select | None,
    roi_chunk: int | None,
    feature_bytes: int,
    on_look: OnLook | None,
) -> list[Prediction]:
    """`predict` of at least one image, all of one size."""
    tensors = [image_tensor(image).to(ensemble.device) for image in images]
    top = max(member.weight for member in ensemble.members)
    looks = [
        _Look(member, name, parse_view(name), member.weight / top)
        for member in ensemble.members
        for name in ensemble.manifest.views
    ]
    store = _FeatureStore(tensors, feature_bytes)
    hws = [image.size_hw for image in images]
    boxes = []
    for i, look in enumerate(looks):
        start = time.perf_counter()
        boxes.append(_look_for_boxes(look, store.get(i, look), hws))
        if on_look is not None:
            on_look(look.member.name, look.name, time.perf_counter() - start, len(images))
    called = np.ones_like if ensemble.one_class else np.asarray
    fused = []
    for row, size_hw in enumerate(hws):
        members = [look_boxes[row] for look_boxes in boxes]
        found = fuse(members, size_hw, ensemble.manifest.fusion)
        fused.append(found if select is None else found[select(found.scores, called(found.labels))])
    masks = _mask_pass(looks, store, fused, hws, roi_chunk or max(1, sum(map(len, fused))))
    return [
        Prediction(image.id, image.size_hw, f.boxes, f.scores, called(f.labels), m)
        for image, f, m in zip(images, fused, masks, strict=True)
    ]


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
        return [np.zeros((0, 28, 28), np.float16) for _ in fused]
    mean = _WeightedMean(len(fused))
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


class _WeightedMean:
    """Weighted mean of RoI masks per image; the network with the finest grid sets the size."""

    def __init__(self, rows: int) -> None:
        self._sums: list[dict[int, Tensor]] = [{} for _ in range(rows)]
        self._weights: list[list[Tensor]] = [[] for _ in range(rows)]

    def add(self, row: int, masks: Tensor, weights: Tensor) -> None:
        """masks float32 (N, M, M); weights float32 (N,), 0 where this network has no say."""
        sums, side = self._sums[row], masks.shape[-1]
        term = masks * weights[:, None, None]
        sums[side] = sums[side] + term if side in sums else term
        self._weights[row].append(weights)

    def result(self, row: int) -> Float16:
        """Float16 (N, M, M)."""
        sums = self._sums[row]
        total = torch.stack([_to_side(masks, max(sums)) for masks in sums.values()]).sum(0)
        mean = total / torch.stack(self._weights[row]).sum(0)[:, None, None]
        halves: Float16 = mean.half().cpu().numpy()
        return halves


def _to_side(masks: Tensor, side: int) -> Tensor:
    """(N, M, M) resampled to (N, side, side)."""
    if masks.shape[-1] == side or len(masks) == 0:
        return masks if masks.shape[-1] == side else masks.new_zeros((0, side, side))
    return F.interpolate(masks[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
