"""Torchvision's Mask R-CNN, built from parts and run in four steps.

Each step calls the modules that torchvision's own `model(images)` calls, in the same order, so that
one network without views reproduces it; what differs is that masks can be asked for any boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.settings import flatten, merge
from sartorius_infer.manifest.torchvision import PRESETS, NetworkParts, RoiPool
from sartorius_infer.networks.base import Detections, Features, require_finite
from sartorius_infer.networks.layers import make_norm
from sartorius_infer.networks.pyramid import PyramidNetwork
from sartorius_infer.networks.roi_align import Rois, pool_rois
from sartorius_infer.networks.skeleton import skeleton
from sartorius_infer.networks.state import load_state
from sartorius_infer.networks.torchvision.bodies import make_backbone
from sartorius_infer.networks.torchvision.keys import (
    anchors_per_cell,
    assumed_norms,
    canonical_keys,
    foreground_classes,
    infer_parts,
)

if TYPE_CHECKING:
    from sartorius_infer.manifest.manifest import ModelSpec

log = logging.getLogger(__name__)


class TorchvisionNetwork(PyramidNetwork):
    """A Mask R-CNN as the ensemble sees it; see `base.Network` for the four steps' contracts."""

    def __init__(self, model: MaskRCNN, preprocessing: Preprocessing, precision: torch.dtype) -> None:
        classes = int(model.roi_heads.box_predictor.cls_score.out_features) - 1
        super().__init__(model, classes, preprocessing, precision)

    def propose(self, features: Features) -> list[Tensor]:
        """RPN head, anchors, decoding, per-level top-n and NMS."""
        rpn, maps = self.model.rpn, list(features.maps.values())
        with self.autocast(maps[0].device):
            objectness, deltas = rpn.head(maps)
        objectness, deltas = [o.float() for o in objectness], [d.float() for d in deltas]
        require_finite("proposals", *objectness, *deltas)
        placeholder = torch.empty((len(features.input_hws), 1, *features.padded_hw), device="meta")
        # Anchors are of the dtype of what they stand on, and coordinates want float32.
        anchors = rpn.anchor_generator(ImageList(placeholder, list(features.input_hws)), objectness)
        per_level = [o[0].numel() for o in objectness]
        flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        boxes = rpn.box_coder.decode(flat_deltas, anchors).view(len(anchors), -1, 4)
        kept, _ = rpn.filter_proposals(boxes, flat_objectness, list(features.input_hws), per_level)
        return list(kept)

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        """Box head, softmax, per-class NMS and top-k; boxes scaled back to the image."""
        heads, input_hws = self.model.roi_heads, list(features.input_hws)
        rois = self._pool(heads.box_roi_pool, features, proposals)
        with self.autocast(rois.device):
            logits, deltas = heads.box_predictor(heads.box_head(rois))
        logits, deltas = logits.float(), deltas.float()
        require_finite("detections", logits, deltas)
        found = zip(
            *heads.postprocess_detections(logits, deltas, proposals, input_hws),
            input_hws,
            features.image_hws,
            strict=True,
        )
        return [
            Detections(resize_boxes(boxes, net_hw, image_hw), scores, labels)
            for boxes, scores, labels, net_hw, image_hw in found
        ]

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        """Mask head on the given boxes; the sigmoid of each label's own channel."""
        heads = self.model.roi_heads
        sizes = zip(boxes, features.image_hws, features.input_hws, strict=True)
        scaled = [resize_boxes(b, image_hw, net_hw) for b, image_hw, net_hw in sizes]
        rois = self._pool(heads.mask_roi_pool, features, scaled)
        with self.autocast(rois.device):
            logits = heads.mask_predictor(heads.mask_head(rois))  # (N, classes, M, M)
        chosen = logits[torch.arange(len(logits), device=logits.device), torch.cat(labels)].float()
        require_finite("masks", chosen)
        return list(chosen.sigmoid().split([len(b) for b in boxes]))

    def _pool(self, pool: MultiScaleRoIAlign, features: Features, boxes: list[Tensor]) -> Tensor:
        """RoI features by torchvision's rules: scales guessed from heights, levels by the area of boxes."""
        maps = [level for name, level in features.maps.items() if name in pool.featmap_names]
        height = max(height for height, _ in features.input_hws)
        halvings = (-torch.tensor([level.shape[-2] / height for level in maps]).log2().round()).tolist()
        level_of = LevelMapper(
            int(halvings[0]), int(halvings[-1]), pool.canonical_scale, pool.canonical_level
        )
        rois = Rois(maps, [0.5**halved for halved in halvings], level_of(boxes), boxes)
        return pool_rois(rois, pool.output_size[0], pool.sampling_ratio)


def build_model(parts: NetworkParts, class_count: int) -> MaskRCNN:
    """Torchvision's MaskRCNN from parts, freshly initialised; `class_count` is without background."""
    channels = parts.fpn.channels
    anchors = parts.anchors
    model = MaskRCNN(
        make_backbone(parts),
        rpn_anchor_generator=_anchor_generator(parts),
        rpn_head=RPNHead(
            channels, len(anchors.sizes[0]) * len(anchors.aspect_ratios), conv_depth=parts.rpn.conv_depth
        ),
        rpn_pre_nms_top_n_test=parts.rpn.pre_nms_top_n,
        rpn_post_nms_top_n_test=parts.rpn.post_nms_top_n,
        rpn_nms_thresh=parts.rpn.nms,
        rpn_score_thresh=parts.rpn.score,
        box_roi_pool=_roi_pool(parts.box_pool, parts),
        box_head=_box_head(parts),
        box_predictor=FastRCNNPredictor(parts.box_head.fc_channels[-1], class_count + 1),
        box_score_thresh=parts.detection.score,
        box_nms_thresh=parts.detection.nms,
        box_detections_per_img=parts.detection.per_image,
        mask_roi_pool=_roi_pool(parts.mask_pool, parts),
        mask_head=MaskRCNNHeads(
            channels,
            parts.mask_head.conv_channels,
            parts.mask_head.dilation,
            make_norm(parts.mask_head.norm),
        ),
        mask_predictor=MaskRCNNPredictor(
            (channels, *parts.mask_head.conv_channels)[-1], parts.mask_head.hidden, class_count + 1
        ),
    )
    return model


def _anchor_generator(parts: NetworkParts) -> AnchorGenerator:
    # Cell anchors are plain tensors, which a meta device would lose.
    with torch.device("cpu"):
        return AnchorGenerator(parts.anchors.sizes, (parts.anchors.aspect_ratios,) * len(parts.anchors.sizes))


def _roi_pool(pool: RoiPool, parts: NetworkParts) -> MultiScaleRoIAlign:
    levels = range(len(parts.stages)) if pool.levels is None else pool.levels
    return MultiScaleRoIAlign([str(level) for level in levels], pool.size, pool.sampling_ratio)


def _box_head(parts: NetworkParts) -> Any:
    head, size, channels = parts.box_head, parts.box_pool.size, parts.fpn.channels
    if head.conv_channels or len(set(head.fc_channels)) > 1 or len(head.fc_channels) != 2:
        norm = make_norm(head.norm)
        return FastRCNNConvFCHead(
            (channels, size, size), list(head.conv_channels), list(head.fc_channels), norm
        )
    return TwoMLPHead(channels * size * size, head.fc_channels[0])


def resolve_parts(spec: ModelSpec, state: Mapping[str, Tensor]) -> tuple[NetworkParts, dict[str, str]]:
    """The network's parts, and where each dotted field came from: keys, manifest, preset or default.

    state: canonical keys. Raises CheckpointError where they contradict each other.
    """
    told = infer_parts(state, spec.file)
    preset = PRESETS.get(spec.architecture or "", {})
    said = spec.network_settings()
    defaults = NetworkParts().model_dump()
    extra = merge(merge(defaults, preset), said)["fpn"]["extra"]
    defaults = merge(defaults, _default_anchors(state, told["body"], len(told["stages"]) + (extra == "pool")))
    flat_told = flatten(told)
    _agree(spec, flat_told, flatten(preset) | flatten(said))
    tree = merge(merge(merge(defaults, preset), told), said)
    try:
        parts = NetworkParts.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("network", *first["loc"])))
        raise CheckpointError(f"{spec.file}: {where}: {first['msg']}") from None
    _check_anchors(parts, state, spec.file)
    flat_said = flatten(said)
    agreed = {name for name, value in flat_told.items() if flat_said.get(name, value) == value}
    agreed -= assumed_norms(flat_told, state)
    layers = (("keys", agreed), ("manifest", flat_said), ("preset", flatten(preset)))
    origin = {
        name: next((layer for layer, fields in layers if name in fields), "default")
        for name in flatten(parts.model_dump())
    }
    return parts, origin


def likely_groups(parts: NetworkParts, origin: Mapping[str, str]) -> list[str]:
    """Norms that are taken for group norm although nothing says so, as fields ("body_norm.kind")."""
    values = flatten(parts.model_dump())
    return [n for n, told in origin.items() if told == "default" and values[n] == "group"]


def _agree(spec: ModelSpec, told: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """What the keys tell cannot be overruled, but for the kind of norm: its tensors fit several."""
    for name, value in said.items():
        if name in told and told[name] != value and not name.endswith("norm.kind"):
            raise CheckpointError(
                f"{spec.file}: the manifest (architecture {spec.architecture}) expects {name} = {value}, "
                f"the checkpoint's keys tell {told[name]}"
            )


def _default_anchors(state: Mapping[str, Tensor], body: str, levels: int) -> dict[str, Any]:
    """Torchvision's sizes, one a level and doubling; its MobileNet has five sizes on every level."""
    if body == "mobilenet_v3_large" and anchors_per_cell(state) == 15:
        return {"anchors": {"sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),) * levels}}
    return {"anchors": {"sizes": tuple((32.0 * 2**i,) for i in range(levels))}}


def _check_anchors(parts: NetworkParts, state: Mapping[str, Tensor], file: str) -> None:
    per_cell = {len(sizes) * len(parts.anchors.aspect_ratios) for sizes in parts.anchors.sizes}
    expected = anchors_per_cell(state)
    if per_cell != {expected} or len(parts.anchors.sizes) != parts.levels:
        raise CheckpointError(
            f"{file}: expected anchors for {parts.levels} levels with {expected} a position, found "
            f"{len(parts.anchors.sizes)} levels with {sorted(per_cell)}; write network.anchors.sizes and "
            "network.anchors.aspect_ratios in a manifest"
        )


def build_network(spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> TorchvisionNetwork:
    """The network of a manifest entry with the checkpoint's weights, on the CPU."""
    state = canonical_keys(state)
    parts, origin = resolve_parts(spec, state)
    if assumed := likely_groups(parts, origin):
        log.warning(
            "%s: assumed group norm (%s), since the file holds no running statistics; an average over "
            "named_parameters() lacks them too, and finds nothing without: a manifest says what it is",
            *(spec.file, ", ".join(assumed)),
        )
    with skeleton():
        model = build_model(parts, foreground_classes(state))
    load_state(model, state, spec.file)
    model.requires_grad_(False)
    return TorchvisionNetwork(model, spec.preprocessing, precision)
