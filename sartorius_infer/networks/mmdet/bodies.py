"""The body that settings describe, and the keys of old files' bodies."""

from __future__ import annotations

import re

from torch import nn

from sartorius_infer.manifest.mmdet_bodies import (
    MmdetBody,
    MmdetConvNext,
    MmdetRes2Net,
    MmdetResNeSt,
    MmdetResNet,
    MmdetSwin,
)
from sartorius_infer.networks.mmdet.convnext import ConvNext
from sartorius_infer.networks.mmdet.res2net import Res2Net
from sartorius_infer.networks.mmdet.resnest import ResNeSt
from sartorius_infer.networks.mmdet.resnet import ResNet
from sartorius_infer.networks.mmdet.swin import Swin

_OLD_OFFSET = re.compile(r"\.conv2_offset\.(weight|bias)$")


def make_body(body: MmdetBody) -> nn.Module:
    """A module whose keys are those that MMDetection writes under `backbone.`.

    It gives a tuple of maps (B, C, h, w), finest first, of images (B, 3, H, W); its attributes `channels`
    and `strides` tell those of each map.
    """
    match body:
        case MmdetResNet():
            return ResNet(body)
        case MmdetRes2Net():
            return Res2Net(body)
        case MmdetResNeSt():
            return ResNeSt(body)
        case MmdetSwin():
            return Swin(body)
        case MmdetConvNext():
            return ConvNext(body)


def current_key(key: str) -> str:
    """The key of today: what moves the taps of `conv2` is its child since version 2 of MMCV's module."""
    return _OLD_OFFSET.sub(r".conv2.conv_offset.\1", key)
