"""Detectron2's modules, built from parts: children carry its own names, so that its keys fit as they are.

Source: Detectron2 0.6 (https://github.com/facebookresearch/detectron2), `modeling/backbone/fpn.py`,
`proposal_generator/rpn.py`, `roi_heads/box_head.py`, `fast_rcnn.py` and `mask_head.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.detectron2 import (
    Detectron2Body,
    Detectron2BoxHead,
    Detectron2Fpn,
    Detectron2MaskHead,
    Detectron2Parts,
    Detectron2Rpn,
)
from sartorius_infer.networks.detectron2.resnet import ResNet
from sartorius_infer.networks.layers import Conv


class Pyramid(nn.Module):
    """The body as `bottom_up`, a lateral and an output convolution a stage, and a last level by pooling."""

    def __init__(self, body: Detectron2Body, fpn: Detectron2Fpn, offset_groups: int) -> None:
        super().__init__()
        self.bottom_up = ResNet(body, offset_groups)
        self.stages, self.average = body.stages, fpn.fuse == "avg"
        for stage in body.stages:
            channels = body.res2_channels * 2 ** (stage - 2)
            self.add_module(f"fpn_lateral{stage}", Conv(channels, fpn.channels, 1, fpn.norm))
            self.add_module(f"fpn_output{stage}", Conv(fpn.channels, fpn.channels, 3, fpn.norm))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps "p2" to "p6", finest first, of images (B, 3, H, W), H and W multiples of 32."""
        stages = self.bottom_up(images)
        maps: dict[str, Tensor] = {}
        above: Tensor | None = None
        for stage in reversed(self.stages):
            here = self.get_submodule(f"fpn_lateral{stage}")(stages[stage])
            if above is not None:
                here = here + F.interpolate(above, scale_factor=2.0, mode="nearest")
                here = here / 2 if self.average else here
            maps[f"p{stage}"] = self.get_submodule(f"fpn_output{stage}")(here)
            above = here
        maps = dict(reversed(maps.items()))
        maps["p6"] = F.max_pool2d(maps["p5"], kernel_size=1, stride=2)
        return maps


class RpnHead(nn.Module):
    """3 x 3 convolutions, then objectness logits and box deltas of every anchor."""

    def __init__(self, channels: int, anchors: int, rpn: Detectron2Rpn) -> None:
        super().__init__()
        widths = [channels]
        for width in rpn.conv_channels:
            widths.append(width or widths[-1])
        convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
        self.conv: nn.Module = convs[0]
        if len(convs) > 1:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(widths[-1], anchors, 1)
        self.anchor_deltas = nn.Conv2d(widths[-1], anchors * 4, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, h * w * A) and deltas (B, h * w * A, 4) of each map (B, C, h, w)."""
        logits, deltas = [], []
        for level in maps:
            convs = self.conv if isinstance(self.conv, nn.Sequential) else (self.conv,)
            for conv in convs:
                level = F.relu(conv(level))
            logits.append(self.objectness_logits(level).permute(0, 2, 3, 1).flatten(1))  # (B, A, h, w) ->
            found = self.anchor_deltas(level).permute(0, 2, 3, 1)  # (B, 4 A, h, w) -> (B, h, w, 4 A)
            deltas.append(found.reshape(len(found), -1, 4))
        return logits, deltas


class BoxHead(nn.Module):
    """`conv1`, ..., then `fc1`, ..., each with a ReLU."""

    def __init__(self, channels: int, head: Detectron2BoxHead) -> None:
        super().__init__()
        self.convs, self.fcs = len(head.conv_channels), len(head.fc_channels)
        for index, width in enumerate(head.conv_channels, start=1):
            self.add_module(f"conv{index}", Conv(channels, width, 3, head.norm))
            channels = width
        self.outputs = channels * head.pool.size**2
        for index, width in enumerate(head.fc_channels, start=1):
            self.add_module(f"fc{index}", nn.Linear(self.outputs, width))
            self.outputs = width

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, outputs)."""
        for index in range(1, self.convs + 1):
            rois = F.relu(self.get_submodule(f"conv{index}")(rois))
        rois = rois.flatten(1)
        for index in range(1, self.fcs + 1):
            rois = F.relu(self.get_submodule(f"fc{index}")(rois))
        return rois


class BoxPredictor(nn.Module):
    """Class logits, background last, and box deltas."""

    def __init__(self, inputs: int, class_count: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(inputs, class_count + 1)
        self.bbox_pred = nn.Linear(inputs, 4 * (1 if class_agnostic else class_count))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K + 1) and deltas (N, 4 K) or (N, 4) of features (N, inputs)."""
        return self.cls_score(features), self.bbox_pred(features)


class MaskHead(nn.Module):
    """`mask_fcn1`, ..., `deconv`, `predictor`."""

    def __init__(self, channels: int, class_count: int, head: Detectron2MaskHead) -> None:
        super().__init__()
        self.convs = len(head.conv_channels)
        for index, width in enumerate(head.conv_channels, start=1):
            self.add_module(f"mask_fcn{index}", Conv(channels, width, 3, head.norm))
            channels = width
        self.deconv = nn.ConvTranspose2d(channels, head.hidden, 2, stride=2)
        self.predictor = nn.Conv2d(head.hidden, 1 if head.class_agnostic else class_count, 1)

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, size, size) -> logits (N, K or 1, 2 size, 2 size)."""
        for index in range(1, self.convs + 1):
            rois = F.relu(self.get_submodule(f"mask_fcn{index}")(rois))
        logits: Tensor = self.predictor(F.relu(self.deconv(rois)))
        return logits


class RoiHeads(nn.Module):
    """Box heads and predictors, lists of them in a cascade, and the mask head."""

    def __init__(self, parts: Detectron2Parts, class_count: int) -> None:
        super().__init__()
        channels, head = parts.fpn.channels, parts.box_head
        heads = [BoxHead(channels, head) for _ in head.box_weights]
        predictors = [BoxPredictor(h.outputs, class_count, head.class_agnostic) for h in heads]
        self.box_head = nn.ModuleList(heads) if head.cascade else heads[0]
        self.box_predictor = nn.ModuleList(predictors) if head.cascade else predictors[0]
        self.mask_head = MaskHead(channels, class_count, parts.mask_head)

    def stages(self) -> list[tuple[nn.Module, nn.Module]]:
        """Head and predictor of each stage; one without a cascade."""
        if isinstance(self.box_head, nn.ModuleList) and isinstance(self.box_predictor, nn.ModuleList):
            return list(zip(self.box_head, self.box_predictor, strict=True))
        return [(self.box_head, self.box_predictor)]


class ProposalGenerator(nn.Module):
    """The RPN's head under Detectron2's name for its parent."""

    def __init__(self, parts: Detectron2Parts) -> None:
        super().__init__()
        self.rpn_head = RpnHead(parts.fpn.channels, parts.anchors_per_cell[0], parts.rpn)


class Detectron2Model(nn.Module):
    """All weights of a network, under the keys of its checkpoint; `offset_groups` as `ResNet` takes them."""

    def __init__(self, parts: Detectron2Parts, class_count: int, offset_groups: int = 1) -> None:
        super().__init__()
        self.backbone = Pyramid(parts.body, parts.fpn, offset_groups)
        self.proposal_generator = ProposalGenerator(parts)
        self.roi_heads = RoiHeads(parts, class_count)
