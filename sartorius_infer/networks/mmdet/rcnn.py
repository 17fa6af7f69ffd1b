"""MMDetection's Mask R-CNN, Cascade Mask R-CNN and HTC on `torchvision.ops` alone, run in four steps.

Each step does what MMDetection does at test time, so that one network without views gives its boxes,
scores and masks; what differs is that masks can be asked for any boxes.
Source: MMDetection 3.3 and 2.28 (https://github.com/open-mmlab/mmdetection), the RPN head and the standard,
cascade and HTC RoI heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sartorius_infer.manifest.mmdet import MmdetBoxHead, MmdetParts
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.networks.base import Detections, Features, require_finite
from sartorius_infer.networks.boxes import finite_rows, is_longer
from sartorius_infer.networks.mmdet.boxes import apply_deltas, grid_anchors, pool_rois
from sartorius_infer.networks.mmdet.keys import canonical_state, foreground_classes, parts_of
from sartorius_infer.networks.mmdet.modules import MmdetModel
from sartorius_infer.networks.mmdet.nms import suppress
from sartorius_infer.networks.pyramid import PyramidNetwork
from sartorius_infer.networks.skeleton import skeleton
from sartorius_infer.networks.state import load_state

if TYPE_CHECKING:
    from sartorius_infer.manifest.manifest import ModelSpec

Size = tuple[int, int]


class MmdetNetwork(PyramidNetwork):
    """A network as the ensemble sees it; see `base.Network` for the four steps' contracts."""

    def __init__(
        self,
        model: MmdetModel,
        parts: MmdetParts,
        class_count: int,
        preprocessing: Preprocessing,
        precision: torch.dtype,
    ) -> None:
        super().__init__(model, class_count, preprocessing, precision)
        self.parts = parts

    def pyramid(self, batch: Tensor) -> dict[str, Tensor]:
        """The neck's maps of the body's, "0" the finest."""
        return {str(index): level for index, level in enumerate(self.model.neck(self.model.backbone(batch)))}

    @property
    def mask_head(self) -> nn.Module:
        """All stages' mask heads."""
        head: nn.Module = self.model.roi_head.mask_head
        return head

    def propose(self, features: Features) -> list[Tensor]:
        """RPN head, per-level top-n, decoding, one NMS that keeps levels apart."""
        maps = list(features.maps.values())
        with self.autocast(maps[0].device):
            logits, deltas = self.model.rpn_head(maps)
        found = []
        for image, input_hw in enumerate(features.input_hws):
            best = [
                self._best(index, level, logits[index][image].float(), deltas[index][image].float(), input_hw)
                for index, level in enumerate(maps)
            ]
            boxes, scores = (torch.cat(parts) for parts in zip(*best, strict=True))
            found.append(self._keep(boxes, scores, [len(some) for _, some in best]))
        return found

    def _best(
        self, index: int, level: Tensor, logits: Tensor, deltas: Tensor, input_hw: Size
    ) -> tuple[Tensor, Tensor]:
        """The boxes (P, 4) and scores (P,) of a level's best anchors in one image."""
        rpn = self.parts.rpn
        scores = logits[:, 0].sigmoid() if rpn.scores == "sigmoid" else logits.softmax(dim=-1)[:, 0]
        # Sigmoids of float32 are often 1: of equal ones the first anchor comes first.
        order = scores.argsort(descending=True, stable=True)[: rpn.pre_nms]
        anchors = grid_anchors((level.shape[-2], level.shape[-1]), index, self.parts.anchors, level.device)
        return apply_deltas(deltas[order], anchors[order], rpn.coder, input_hw)[:, 0], scores[order]

    def _keep(self, boxes: Tensor, scores: Tensor, counts: Sequence[int]) -> Tensor:
        """One image's proposals, best first."""
        rpn = self.parts.rpn
        owner = torch.arange(len(counts), device=boxes.device).repeat_interleave(
            torch.tensor(counts, device=boxes.device)
        )
        usable = finite_rows("proposals", boxes, scores[:, None])
        if rpn.min_size >= 0:
            usable &= is_longer(boxes, rpn.min_size)
        boxes, scores, owner = boxes[usable], scores[usable], owner[usable]
        rows, _ = suppress(boxes, scores, owner, rpn.nms)
        return boxes[rows[: rpn.per_image]]

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        """Every stage's box head, softmax of the mean logits, per-class NMS and top-k, in image pixels."""
        maps, counts = list(features.maps.values()), [len(p) for p in proposals]
        heads, modules = self.parts.box_heads, self.model.roi_head.box_heads()
        every = list(proposals)
        found: list[tuple[Tensor, Tensor]] = []
        for head, module in zip(heads, modules, strict=True):
            rois = pool_rois(maps, every, head.pool)
            with self.autocast(rois.device):
                logits, deltas = (out.float() for out in module(rois))
            found.append((logits, deltas))
            if len(found) < len(heads):  # what one stage of a cascade found is where the next one looks
                every = list(self._refined(head, every, logits, deltas, features.input_hws))
        mean = reduce(torch.add, [logits for logits, _ in found]) / float(len(found))
        last = found[-1][1]
        rows = zip(
            every,
            mean.split_with_sizes(counts),
            last.split_with_sizes(counts),
            features.input_hws,
            features.image_hws,
            strict=True,
        )
        return [self._detections(*row) for row in rows]

    def _refined(
        self,
        head: MmdetBoxHead,
        every: Sequence[Tensor],
        logits: Tensor,
        deltas: Tensor,
        input_hws: Sequence[Size],
    ) -> Iterator[Tensor]:
        """Each image's boxes moved by the deltas of their likeliest class of the foreground."""
        if not head.class_agnostic:
            label = logits[:, :-1].argmax(dim=1)
            rows = torch.arange(len(label), device=label.device)
            deltas = deltas.reshape(len(deltas), -1, 4)[rows, label]
        counts = [len(boxes) for boxes in every]
        for boxes, some, input_hw in zip(every, deltas.split_with_sizes(counts), input_hws, strict=True):
            yield apply_deltas(some, boxes, head.coder, input_hw)[:, 0]

    def _detections(
        self, boxes: Tensor, logits: Tensor, deltas: Tensor, input_hw: Size, image_hw: Size
    ) -> Detections:
        """One image's detections from boxes (R, 4), logits (R, K + 1), background last, and deltas."""
        limits, head = self.parts.detection, self.parts.box_heads[-1]
        scores = logits.softmax(dim=-1)
        moved = apply_deltas(deltas, boxes, head.coder, input_hw)  # (R, K or 1, 4)
        finite = finite_rows("detections", moved.flatten(1), scores)
        moved, scores = moved[finite], scores[finite][:, :-1]
        factor = _scale_factor(moved, image_hw, input_hw)
        if self.parts.dialect == 2:
            moved = moved / factor
        row, label = torch.nonzero(scores > limits.score, as_tuple=True)
        some = moved[row, label if moved.shape[1] > 1 else torch.zeros_like(label)]
        kept, left = suppress(some, scores[row, label], label, limits.nms)
        kept, left = kept[: limits.per_image], left[: limits.per_image]
        found = some[kept] if self.parts.dialect == 2 else some[kept] / factor
        return Detections(found, left, label[kept] + 1)

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        """Mask heads on the given boxes; the sigmoid of each label's own channel, as the stages share it."""
        scaled = [
            some * _scale_factor(some, *hws)
            for some, *hws in zip(boxes, features.image_hws, features.input_hws, strict=True)
        ]
        channel = torch.cat(labels).clamp(min=1) - 1
        masks = [
            self._own_masks(logits, channel)
            for logits in self._mask_logits(list(features.maps.values()), scaled)
        ]
        mean = torch.stack(masks).mean(dim=0) if len(masks) > 1 else masks[0]
        return list(mean.split_with_sizes([len(b) for b in boxes]))

    def _mask_logits(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Iterator[Tensor]:
        """Of each stage whose masks count (N, K or 1, M, M)."""
        heads, modules, flow = self.parts.mask_heads, self.model.roi_head.mask_heads(), self.parts.mask_flow
        htc, last = self.parts.heads == "htc", len(heads) - 1
        pools = [heads[-1].pool if htc else head.pool for head in heads]
        only_last = htc and self.parts.dialect == 3
        previous: Tensor | None = None
        rois: Tensor | None = None
        for index, (pool, module) in enumerate(zip(pools, modules, strict=True)):
            if only_last and not flow and index < last:
                continue
            if rois is None or pool != pools[index - 1]:
                rois = pool_rois(maps, boxes, pool)
            with self.autocast(rois.device):
                previous = module.features(rois, previous if flow else None)
                logits = None if only_last and index < last else module(previous)
            if logits is not None:
                yield logits

    def _own_masks(self, logits: Tensor, channel: Tensor) -> Tensor:
        """Probabilities (N, M, M) of each row's channel."""
        if self.parts.mask_heads[-1].class_agnostic:
            channel = torch.zeros_like(channel)
        chosen = logits[torch.arange(len(logits), device=logits.device), channel].float()
        require_finite("masks", chosen)
        return chosen.sigmoid()


def _scale_factor(boxes: Tensor, image_hw: Size, input_hw: Size) -> Tensor:
    """What image pixels are multiplied by to be the input's, float32 (4,): another factor for each axis."""
    y, x = (inner / outer for inner, outer in zip(input_hw, image_hw, strict=True))
    return boxes.new_tensor([x, y, x, y])


def build_mmdet(spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> MmdetNetwork:
    """The network of a manifest entry with the checkpoint's weights, on the CPU."""
    parts, class_count = parts_of(spec), foreground_classes(state, spec.file)
    with skeleton():
        model = MmdetModel(parts, class_count)
    load_state(model, canonical_state(state), spec.file, "Likely the config of another checkpoint.")
    model.requires_grad_(False)
    return MmdetNetwork(model, parts, class_count, spec.preprocessing, precision)
