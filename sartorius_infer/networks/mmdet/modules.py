"""MMDetection's pyramid and heads, built from parts: children carry its names, so that its keys fit.

Source: MMDetection 3.3 and 2.28 (https://github.com/open-mmlab/mmdetection), FPN, RPNHead, ConvFCBBoxHead,
FCNMaskHead, HTCMaskHead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.mmdet import (
    MmdetBoxHead,
    MmdetFpn,
    MmdetMaskHead,
    MmdetParts,
    MmdetRpn,
)
from sartorius_infer.manifest.parts import Norm
from sartorius_infer.networks.layers import norm_layer
from sartorius_infer.networks.mmdet.bodies import make_body


def conv_module(
    inputs: int, outputs: int, kernel: int, norm: Norm, *, stride: int = 1, relu: bool = False
) -> nn.Sequential:
    """A convolution that keeps the size up to its stride, then norm and ReLU: MMCV's ConvModule."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=norm.kind == "none")
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if (layer := norm_layer(norm, outputs)) is not None:
        layers["gn" if norm.kind == "group" else "bn"] = layer
    if relu:
        layers["activate"] = nn.ReLU()
    return nn.Sequential(layers)


class Pyramid(nn.Module):
    """`lateral_convs` and `fpn_convs`, among these those of levels above the body's."""

    def __init__(self, channels: Sequence[int], fpn: MmdetFpn) -> None:
        super().__init__()
        self.fpn, self.span = fpn, fpn.span(len(channels))
        lateral = fpn.norm if fpn.lateral_norm else Norm()
        inputs = [channels[index] for index in self.span]
        self.lateral_convs = nn.ModuleList(conv_module(n, fpn.channels, 1, lateral) for n in inputs)
        self.fpn_convs = nn.ModuleList(conv_module(fpn.channels, fpn.channels, 3, fpn.norm) for _ in inputs)
        if fpn.extra != "pool":
            width = inputs[-1] if fpn.extra == "on_input" else fpn.channels
            for _ in range(fpn.levels - len(inputs)):
                self.fpn_convs.append(conv_module(width, fpn.channels, 3, fpn.norm, stride=2))
                width = fpn.channels

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's maps, finest first, of the body's (B, C, h, w)."""
        used = [maps[index] for index in self.span]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used, strict=True)]
        align = None if self.fpn.upsample == "nearest" else False
        for index in range(len(laterals) - 1, 0, -1):
            size = laterals[index - 1].shape[-2:]
            above = F.interpolate(laterals[index], size, mode=self.fpn.upsample, align_corners=align)
            laterals[index - 1] = laterals[index - 1] + above
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        return levels + self._extra(used[-1], laterals[-1], levels[-1])

    def _extra(self, body: Tensor, lateral: Tensor, last: Tensor) -> list[Tensor]:
        """The levels above those of the body's maps."""
        own, extra = len(self.lateral_convs), self.fpn.extra
        found: list[Tensor] = []
        if extra == "pool":
            for _ in range(self.fpn.levels - own):
                last = F.max_pool2d(last, kernel_size=1, stride=2)
                found.append(last)
            return found
        above = {"on_input": body, "on_lateral": lateral, "on_output": last}[extra]
        for conv in self.fpn_convs[own:]:
            above = conv(F.relu(above) if found and self.fpn.relu_before_extra else above)
            found.append(above)
        return found


class RpnHead(nn.Module):
    """3 x 3 convolutions, then objectness logits and box deltas of every anchor."""

    def __init__(self, channels: int, anchors: int, rpn: MmdetRpn) -> None:
        super().__init__()
        self.outputs = 1 if rpn.scores == "sigmoid" else 2
        self.rpn_conv: nn.Module = nn.Conv2d(channels, rpn.channels, 3, padding=1)
        if rpn.convs > 1:
            widths = [channels] + [rpn.channels] * (rpn.convs - 1)
            self.rpn_conv = nn.Sequential(
                *(conv_module(n, rpn.channels, 3, Norm(), relu=True) for n in widths)
            )
        self.rpn_cls = nn.Conv2d(rpn.channels, anchors * self.outputs, 1)
        self.rpn_reg = nn.Conv2d(rpn.channels, anchors * 4, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, h * w * A, 1 or 2) and deltas (B, h * w * A, 4) of each map (B, C, h, w).

        Of two logits the first is the object's.
        """
        logits: list[Tensor] = []
        deltas: list[Tensor] = []
        for level in maps:
            level = F.relu(self.rpn_conv(level))
            for found, layer, width in ((logits, self.rpn_cls, self.outputs), (deltas, self.rpn_reg, 4)):
                out = layer(level).permute(0, 2, 3, 1)  # (B, width A, h, w) -> (B, h, w, width A)
                found.append(out.reshape(len(out), -1, width))
        return logits, deltas


class BoxHead(nn.Module):
    """Layers that are shared, then branches of class logits, background last, and of box deltas."""

    def __init__(self, channels: int, class_count: int, head: MmdetBoxHead) -> None:
        super().__init__()
        self.average = head.average_pool
        area = 1 if head.average_pool else head.pool.size**2
        shared = self._branch("shared", channels, area, head.shared_convs, head.shared_fcs, head)
        flat = 1 if head.shared_fcs else area
        self.outputs = []
        for name, convs, fcs in (
            ("cls", head.class_convs, head.class_fcs),
            ("reg", head.box_convs, head.box_fcs),
        ):
            width = self._branch(name, shared, flat, convs, fcs, head)
            self.outputs.append(width if fcs else width * flat)
        self.fc_cls = nn.Linear(self.outputs[0], class_count + 1)
        self.fc_reg = nn.Linear(self.outputs[1], 4 * (1 if head.class_agnostic else class_count))

    def _branch(self, name: str, width: int, area: int, convs: int, fcs: int, head: MmdetBoxHead) -> int:
        """Make `<name>_convs` and `<name>_fcs` for maps of `area` positions; the channels they give."""
        layers = nn.ModuleList()
        for _ in range(convs):
            layers.append(conv_module(width, head.conv_channels, 3, head.norm, relu=True))
            width = head.conv_channels
        self.add_module(f"{name}_convs", layers)
        layers = nn.ModuleList()
        for index in range(fcs):
            layers.append(nn.Linear(width * area if index == 0 else width, head.fc_channels))
            width = head.fc_channels
        self.add_module(f"{name}_fcs", layers)
        return width

    def _run(self, name: str, x: Tensor, flatten: bool) -> Tensor:
        for conv in self.get_submodule(f"{name}_convs").children():
            x = conv(x)
        fcs = list(self.get_submodule(f"{name}_fcs").children())
        if (fcs or flatten) and x.dim() > 2:
            x = (x.mean(dim=(2, 3)) if self.average else x).flatten(1)
        for fc in fcs:
            x = F.relu(fc(x))
        return x

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K + 1) and deltas (N, 4 K) or (N, 4) of regions (N, C, size, size)."""
        shared = self._run("shared", rois, flatten=False)
        return self.fc_cls(self._run("cls", shared, True)), self.fc_reg(self._run("reg", shared, True))


class MaskHead(nn.Module):
    """`conv_res` of what the stage before made, `convs`, `upsample`, `conv_logits`."""

    def __init__(self, channels: int, class_count: int, head: MmdetMaskHead) -> None:
        super().__init__()
        widths = [channels, *[head.channels] * head.convs]
        self.conv_res = None
        if head.previous:
            self.conv_res = conv_module(head.channels, head.channels, 1, head.norm, relu=True)
        self.convs = nn.ModuleList(
            conv_module(n, head.channels, head.kernel, head.norm, relu=True) for n in widths[:-1]
        )
        self.deconv = head.upsample == "deconv"
        self.upsample: nn.Module | None = None
        if self.deconv:
            self.upsample = nn.ConvTranspose2d(widths[-1], head.channels, head.factor, stride=head.factor)
        elif head.upsample != "none":
            align = None if head.upsample == "nearest" else False
            self.upsample = nn.Upsample(scale_factor=head.factor, mode=head.upsample, align_corners=align)
        last = head.channels if self.deconv else widths[-1]
        self.conv_logits = nn.Conv2d(last, 1 if head.class_agnostic else class_count, 1)

    def features(self, rois: Tensor, previous: Tensor | None = None) -> Tensor:
        """What `convs` give of regions (N, C, size, size), the stage before's of that size added to them."""
        if self.conv_res is not None and previous is not None:
            rois = rois + self.conv_res(previous)
        for conv in self.convs:
            rois = conv(rois)
        return rois

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K or 1, M, M) of `features`."""
        if self.upsample is not None:
            features = self.upsample(features)
        logits: Tensor = self.conv_logits(F.relu(features) if self.deconv else features)
        return logits


class RoiHead(nn.Module):
    """`bbox_head` and `mask_head`: one of each, or in a cascade lists of them."""

    def __init__(self, parts: MmdetParts, class_count: int) -> None:
        super().__init__()
        channels = parts.fpn.channels
        boxes = [BoxHead(channels, class_count, head) for head in parts.box_heads]
        masks = [MaskHead(channels, class_count, head) for head in parts.mask_heads]
        one = parts.heads == "standard"
        self.bbox_head: nn.Module = boxes[0] if one else nn.ModuleList(boxes)
        self.mask_head: nn.Module = masks[0] if one else nn.ModuleList(masks)

    def box_heads(self) -> list[nn.Module]:
        """One for each stage."""
        return list(self.bbox_head) if isinstance(self.bbox_head, nn.ModuleList) else [self.bbox_head]

    def mask_heads(self) -> list[nn.Module]:
        """One for each stage."""
        return list(self.mask_head) if isinstance(self.mask_head, nn.ModuleList) else [self.mask_head]


class MmdetModel(nn.Module):
    """All weights of a network, under the keys of its checkpoint."""

    def __init__(self, parts: MmdetParts, class_count: int) -> None:
        super().__init__()
        body: Any = make_body(parts.body)
        self.backbone = body
        self.neck = Pyramid(body.channels, parts.fpn)
        self.rpn_head = RpnHead(parts.fpn.channels, parts.anchors.per_cell, parts.rpn)
        self.roi_head = RoiHead(parts, class_count)
