"""Torchvision's RPN and RoI heads with losses of the recipe's choice.

Both are rebuilt from the parts of a built model, so that weights keep their names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou, generalized_box_iou_loss, roi_align

from training.batches import Target
from training.recipe import Loss, Sampling

BETA = 1 / 9
"""Where smooth L1 turns from a parabola to a line, as in torchvision's own losses."""

Losses = dict[str, Tensor]


def box_loss(kind: str, deltas: Tensor, wanted: Tensor, weights: Sequence[float]) -> Tensor:
    """Summed loss of offsets (N, 4) against the wanted ones, both as a BoxCoder of `weights` encodes.

    A ratio of areas does not change when each axis is moved and scaled, so GIoU needs no anchors: it
    is taken of the boxes that the offsets make of the unit square.
    """
    if kind == "smooth_l1":
        return F.smooth_l1_loss(deltas, wanted, beta=BETA, reduction="sum")
    loss: Tensor = generalized_box_iou_loss(
        _unit_boxes(deltas, weights), _unit_boxes(wanted, weights), reduction="sum"
    )
    return loss


def _unit_boxes(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes xyxy (N, 4) that offsets (N, 4) make of a unit square around the origin."""
    scaled = deltas.float() / deltas.new_tensor(weights, dtype=torch.float32)
    half = scaled[:, 2:].clamp(max=4.0).exp() / 2
    return torch.cat([scaled[:, :2] - half, scaled[:, :2] + half], dim=1)


def mask_targets(target: Target, boxes: Tensor, matched: Tensor, side: int) -> Tensor:
    """Float32 (R, side, side): each RoI's share of its cell's mask; boxes (R, 4) in network pixels.

    Sampled at the continuous positions at which the kit's exact paste puts the grid back, from masks in
    image pixels: they are smaller than the network's.
    """
    cells, index = torch.unique(matched, return_inverse=True)
    masks = target.masks[cells][:, None].float()
    rois = torch.cat(
        [index[:, None].float(), boxes / boxes.new_tensor([*target.scale, *target.scale])], dim=1
    )
    shares: Tensor = roi_align(masks, rois, (side, side), 1.0, sampling_ratio=2, aligned=True)
    return shares[:, 0]


def on_unsure(boxes: Tensor, unsure: Tensor) -> Tensor:
    """Which boxes (N, 4) lie with more than half of their area in one of `unsure` (K, 4), bool (N,).

    The measure by which COCO's evaluation forgives what is found in crowd regions.
    """
    if not len(unsure):
        return boxes.new_zeros(len(boxes), dtype=torch.bool)
    low = torch.maximum(boxes[:, None, :2], unsure[:, :2])
    high = torch.minimum(boxes[:, None, 2:], unsure[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2).amax(dim=1)
    return shared > 0.5 * (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def _widened(head: object, inputs: object, outputs: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    return tuple([level.float() for level in levels] for levels in outputs)


class TrainingRpn(RegionProposalNetwork):  # type: ignore[misc]
    """The RPN of a model, with the recipe's draws and box loss."""

    def __init__(self, rpn: RegionProposalNetwork, settings: Sampling, loss: Loss) -> None:
        super().__init__(
            rpn.anchor_generator,
            rpn.head,
            settings.rpn_iou[1],
            settings.rpn_iou[0],
            settings.anchors,
            settings.anchor_positives,
            {"training": settings.pre_nms_top_n, "testing": rpn._pre_nms_top_n["testing"]},
            {"training": settings.post_nms_top_n, "testing": rpn._post_nms_top_n["testing"]},
            rpn.nms_thresh,
            rpn.score_thresh,
        )
        self.loss = loss
        # Under autocast the head computes in halves, in which neither boxes nor losses may be.
        self.head.register_forward_hook(_widened)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's, but of background on what may be a cell nothing is said (-1)."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for own, label, target in zip(anchors, labels, targets, strict=True):
            label[(label == 0) & on_unsure(own, target["unsure"])] = -1
        return labels, boxes

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss of drawn anchors, each weighted."""
        positive, negative = (torch.cat(drawn).bool() for drawn in self.fg_bg_sampler(labels))
        drawn = positive | negative
        wanted = torch.cat(labels)[drawn]
        # Summed and divided: where all is unsure nothing is drawn, and the mean of nothing is NaN.
        count = drawn.sum().clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(
            objectness.flatten()[drawn].float(), wanted, reduction="sum"
        )
        boxes = box_loss(
            self.loss.box,
            pred_bbox_deltas[positive].float(),
            torch.cat(regression_targets)[positive],
            self.box_coder.weights,
        )
        return (
            entropy / count * self.loss.objectness_weight,
            boxes / count * self.loss.rpn_box_weight,
        )


class TrainingHeads(RoIHeads):  # type: ignore[misc]
    """The RoI heads of a model, with the recipe's draws and losses."""

    def __init__(self, heads: RoIHeads, settings: Sampling, loss: Loss) -> None:
        super().__init__(
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            settings.roi_iou[1],
            settings.roi_iou[0],
            settings.rois,
            settings.roi_positives,
            heads.box_coder.weights,
            heads.score_thresh,
            heads.nms_thresh,
            heads.detections_per_img,
            heads.mask_roi_pool,
            heads.mask_head,
            heads.mask_predictor,
        )
        self.settings = settings
        self.loss = loss

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes_hw: list[tuple[int, int]],
        targets: Sequence[Target],
    ) -> Losses:
        """The weighted terms of class, box and mask over a batch of images padded to `sizes_hw`."""
        told = [{"boxes": t.boxes, "labels": t.labels, "masks": t.masks} for t in targets]
        proposals = [p[~self._untold(p, t)] for p, t in zip(proposals, targets, strict=True)]
        rois, matched, labels, offsets = self.select_training_samples(proposals, told)
        pooled = self.box_head(self.box_roi_pool(features, rois, sizes_hw))
        logits, deltas = (out.float() for out in self.box_predictor(pooled))
        classes, wanted = torch.cat(labels), torch.cat(offsets)
        positive = torch.where(classes > 0)[0]
        chosen = deltas.view(len(deltas), logits.shape[1], 4)[positive, classes[positive]]
        boxes = box_loss(self.loss.box, chosen, wanted[positive], self.box_coder.weights)
        count = max(1, len(classes))
        return {
            "class": F.cross_entropy(logits, classes, reduction="sum") / count * self.loss.class_weight,
            "box": boxes / count * self.loss.box_weight,
            "mask": self._mask_loss(features, rois, matched, labels, sizes_hw, targets)
            * self.loss.mask_weight,
        }

    def _untold(self, proposals: Tensor, target: Target) -> Tensor:
        """Proposals on what may be a cell that would be drawn as background, bool (P,)."""
        found = on_unsure(proposals, target.unsure)
        if len(target.boxes) and bool(found.any()):
            found &= box_iou(proposals, target.boxes).amax(dim=1) < self.proposal_matcher.low_threshold
        return found

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        rois: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        sizes_hw: list[tuple[int, int]],
        targets: Sequence[Target],
    ) -> Tensor:
        """Mean binary cross entropy of the positive RoIs' masks; 0 without any."""
        kept = [torch.where(label > 0)[0][: self.settings.mask_rois] for label in labels]
        if not sum(len(k) for k in kept):
            # Every parameter takes part, or several processes would wait for its gradient.
            heads = (*self.mask_head.parameters(), *self.mask_predictor.parameters())
            return torch.stack([p.sum() for p in heads]).sum() * 0
        boxes = [roi[k] for roi, k in zip(rois, kept, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes_hw)))
        side = int(logits.shape[-1])
        wanted = torch.cat(
            [
                mask_targets(t, b, m[k], side)
                for t, b, m, k in zip(targets, boxes, matched, kept, strict=True)
                if len(k)
            ]
        )
        classes = torch.cat([label[k] for label, k in zip(labels, kept, strict=True)])
        chosen = logits[torch.arange(len(classes), device=classes.device), classes].float()
        return F.binary_cross_entropy_with_logits(chosen, wanted)


def with_losses(model: MaskRCNN, settings: Sampling, loss: Loss) -> MaskRCNN:
    """The same model with an RPN and heads that can be trained; keys and weights do not change."""
    model.rpn = TrainingRpn(model.rpn, settings, loss)
    model.roi_heads = TrainingHeads(model.roi_heads, settings, loss)
    return model
