"""Detectron2's Mask R-CNN and Cascade Mask R-CNN on `torchvision.ops` alone, run in four steps.

Each step does what Detectron2 0.6 does at test time, so that one network without views gives its
boxes, scores and masks; what differs is that masks can be asked for any boxes.
Source: https://github.com/facebookresearch/detectron2, `modeling/proposal_generator/proposal_utils.py`,
`roi_heads/fast_rcnn.py`, `roi_heads/cascade_rcnn.py`, `postprocessing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.networks.base import Detections, Features, require_finite
from sartorius_infer.networks.boxes import clip, finite_rows, is_longer
from sartorius_infer.networks.detectron2.boxes import apply_deltas, grid_anchors, pool_rois
from sartorius_infer.networks.detectron2.modules import Detectron2Model
from sartorius_infer.networks.pyramid import PyramidNetwork
from sartorius_infer.networks.skeleton import skeleton
from sartorius_infer.networks.state import load_state

if TYPE_CHECKING:
    from sartorius_infer.manifest.manifest import ModelSpec

ARCHITECTURE = "detectron2_rcnn"

Size = tuple[int, int]

# What other versions keep beside the weights: constants that the config decides, the classifier of
# an ImageNet body, counters of training batches.
_LEFTOVERS = re.compile(
    r"^pixel_(mean|std)$|anchor_generator\.cell_anchors|^backbone\.bottom_up\.linear\.|\.num_batches_tracked$"
)

_NORM_WEIGHTS = (".norm.weight", ".bn0.weight", ".bn1.weight")


class Detectron2Network(PyramidNetwork):
    """A network as the ensemble sees it; see `base.Network` for the four steps' contracts."""

    def __init__(
        self,
        model: Detectron2Model,
        parts: Detectron2Parts,
        class_count: int,
        preprocessing: Preprocessing,
        precision: torch.dtype,
    ) -> None:
        super().__init__(model, class_count, preprocessing, precision)
        self.parts = parts

    def propose(self, features: Features) -> list[Tensor]:
        """RPN head, anchors, decoding, per-level top-n and NMS."""
        rpn = self.parts.rpn
        maps = [features.maps[f"p{level}"] for level in rpn.levels]
        with self.autocast(maps[0].device):
            logits, deltas = self.model.proposal_generator.rpn_head(maps)
        best = [
            self._best(level, *found) for level, found in enumerate(zip(maps, logits, deltas, strict=True))
        ]
        boxes, scores = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))  # (B, P, 4), (B, P)
        counts = [level_scores.shape[1] for _, level_scores in best]
        owner = torch.arange(len(counts), device=boxes.device).repeat_interleave(
            torch.tensor(counts, device=boxes.device)
        )
        return [
            self._keep(image_boxes, image_scores, owner, input_hw)
            for image_boxes, image_scores, input_hw in zip(boxes, scores, features.input_hws, strict=True)
        ]

    def _best(self, level: int, maps: Tensor, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes (B, P, 4) and logits (B, P) of a level's best anchors."""
        rpn, anchors = self.parts.rpn, self.parts.anchors
        sizes, ratios = self.parts.level_anchors[level]
        height, width = (int(n) for n in maps.shape[-2:])
        cells = grid_anchors(
            (height, width), 2 ** rpn.levels[level], sizes, ratios, anchors.offset, maps.device
        )
        scores, index = logits.float().topk(min(rpn.pre_nms_top_n, logits.shape[1]), dim=1)
        rows = torch.arange(len(logits), device=maps.device)[:, None]
        chosen = deltas[rows, index].float()  # (B, P, 4)
        boxes = apply_deltas(chosen.flatten(0, 1), cells[index].flatten(0, 1), rpn.box_weights)
        return boxes.reshape(chosen.shape), scores

    def _keep(self, boxes: Tensor, scores: Tensor, level: Tensor, input_hw: Size) -> Tensor:
        """One image's proposals, best first."""
        rpn = self.parts.rpn
        finite = finite_rows("proposals", boxes, scores[:, None])
        boxes = clip(boxes, input_hw)
        kept = torch.nonzero(finite & is_longer(boxes, rpn.min_size))[:, 0]
        order = batched_nms(boxes[kept], scores[kept], level[kept], rpn.nms)
        return boxes[kept][order[: rpn.post_nms_top_n]]

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        """Every stage's box head, softmax, per-class NMS and top-k; boxes scaled back to the image."""
        head, counts = self.parts.box_head, [len(p) for p in proposals]
        every = list(proposals)
        scores: list[Tensor] = []
        for (box_head, predictor), weights in zip(
            self.model.roi_heads.stages(), head.box_weights, strict=True
        ):
            if scores:  # what one stage of a cascade found is where the next one looks
                every = [clip(b, hw) for b, hw in zip(every, features.input_hws, strict=True)]
            rois = pool_rois(features.maps, self.parts.roi_levels, every, head.pool)
            with self.autocast(rois.device):
                logits, deltas = predictor(box_head(rois))
            logits = logits.float()
            scores.append(logits.sigmoid() if head.scores == "sigmoid" else logits.softmax(dim=-1))
            every = list(apply_deltas(deltas.float(), torch.cat(every), weights).split_with_sizes(counts))
        mean: Tensor = reduce(torch.add, scores) * (1.0 / len(scores))
        sizes = zip(every, mean.split_with_sizes(counts), features.input_hws, features.image_hws, strict=True)
        return [self._detections(*found) for found in sizes]

    def _detections(self, boxes: Tensor, scores: Tensor, input_hw: Size, image_hw: Size) -> Detections:
        """One image's detections: boxes (R, 4 K) or (R, 4) and scores (R, K + 1), background last."""
        limits = self.parts.detection
        finite = finite_rows("detections", boxes, scores)
        boxes = clip(boxes[finite].reshape(int(finite.sum()), boxes.shape[1] // 4, 4), input_hw)
        scores = scores[finite][:, :-1]
        row, label = torch.nonzero(scores > limits.score, as_tuple=True)
        boxes, scores = boxes[row, label if boxes.shape[1] > 1 else 0], scores[row, label]
        kept = batched_nms(boxes, scores, label, limits.nms)[: limits.per_image]
        boxes = _rescale(boxes[kept], input_hw, image_hw)
        solid = is_longer(boxes, 0)
        return Detections(boxes[solid], scores[kept][solid], label[kept][solid] + 1)

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        """Mask head on the given boxes; the sigmoid of each label's own channel."""
        head, sizes = self.parts.mask_head, zip(features.image_hws, features.input_hws, strict=True)
        scaled = [_rescale(b, *hws) for b, hws in zip(boxes, sizes, strict=True)]
        rois = pool_rois(features.maps, self.parts.roi_levels, scaled, head.pool)
        with self.autocast(rois.device):
            logits = self.model.roi_heads.mask_head(rois)  # (N, K or 1, M, M)
        channel = torch.cat(labels).clamp(min=1) - 1
        channel = torch.zeros_like(channel) if head.class_agnostic else channel
        chosen = logits[torch.arange(len(logits), device=logits.device), channel].float()
        require_finite("masks", chosen)
        return list(chosen.sigmoid().split([len(b) for b in boxes]))


def _rescale(boxes: Tensor, from_hw: Size, to_hw: Size) -> Tensor:
    """Boxes (N, 4) of an image of one size in pixels of the same image at another, clipped to it."""
    y, x = (to / of for to, of in zip(to_hw, from_hw, strict=True))
    return clip(boxes * boxes.new_tensor([x, y, x, y]), to_hw)


def is_detectron2(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a Detectron2 Mask R-CNN."""
    return any(k.startswith("proposal_generator.rpn_head.") for k in state) and any(
        k.startswith("roi_heads.mask_head.") for k in state
    )


def foreground_classes(state: Mapping[str, Tensor], file: str) -> int:
    """Number of classes without background, from the classifier's rows."""
    for key in ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.0.cls_score.weight"):
        if key in state and state[key].ndim == 2 and state[key].shape[0] > 1:
            return int(state[key].shape[0]) - 1
    raise CheckpointError(
        f"{file}: expected roi_heads.box_predictor.cls_score.weight of (classes + 1, channels), found none"
    )


def canonical_state(state: Mapping[str, Tensor], parts: Detectron2Parts) -> dict[str, Tensor]:
    """The network's own tensors; a frozen norm without statistics (of 2019) stands for mean 0, variance 1."""
    kept = {key: tensor for key, tensor in state.items() if not _LEFTOVERS.search(key)}
    if parts.body.norm.kind == "frozen":
        for key, weight in list(kept.items()):
            if key.startswith("backbone.bottom_up.") and key.endswith(_NORM_WEIGHTS):
                prefix = key.removesuffix("weight")
                kept.setdefault(f"{prefix}running_mean", torch.zeros_like(weight))
                kept.setdefault(f"{prefix}running_var", torch.ones_like(weight))
    return kept


def _offset_groups(state: Mapping[str, Tensor]) -> int:
    """Groups of the convolutions that move taps, of which no config tells."""
    for key, moves in state.items():
        if key.endswith(".conv2_offset.weight") and moves.ndim == 4:
            before = state.get(key.replace("conv2_offset", "conv1"))
            if before is not None and len(before) > moves.shape[1] > 0:
                return len(before) // moves.shape[1]
    return 1


def parts_of(spec: ModelSpec) -> Detectron2Parts:
    """The settings of a manifest entry; raises CheckpointError where it has none."""
    if spec.detectron2 is None:
        raise CheckpointError(
            f"{spec.file}: a Detectron2 checkpoint: expected its settings as `detectron2` in the manifest "
            "entry, found none; `sartorius_infer import --config config.yaml` writes them"
        )
    return spec.detectron2


def build_detectron2(spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Detectron2Network:
    """The network of a manifest entry with the checkpoint's weights, on the CPU."""
    parts, class_count = parts_of(spec), foreground_classes(state, spec.file)
    with skeleton():
        model = Detectron2Model(parts, class_count, _offset_groups(state))
    load_state(model, canonical_state(state, parts), spec.file, "Likely the config of another checkpoint.")
    model.requires_grad_(False)
    return Detectron2Network(model, parts, class_count, spec.preprocessing, precision)
