"""Every body against torchvision's own constructor, on the meta device; pyramids by forward passes."""

from __future__ import annotations

import re
import socket
from functools import cache
from typing import NoReturn

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import nn
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.manifest.torchvision import BODY_PATTERN, NetworkParts
from sartorius_infer.networks.layers import make_norm
from sartorius_infer.networks.torchvision.bodies import (
    Body,
    make_backbone,
    make_body,
    resnet_shape,
    stage_channels,
)

BATCH = Norm(kind="batch")
WIDE = (256, 512, 1024, 2048)
SWIN_TINY, SWIN_BASE = (96, 192, 384, 768), (128, 256, 512, 1024)
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": WIDE,
    "resnet101": WIDE,
    "resnet152": WIDE,
    "resnext50_32x4d": WIDE,
    "resnext101_32x8d": WIDE,
    "resnext101_64x4d": WIDE,
    "wide_resnet50_2": WIDE,
    "wide_resnet101_2": WIDE,
    "convnext_tiny": SWIN_TINY,
    "convnext_small": SWIN_TINY,
    "convnext_base": SWIN_BASE,
    "convnext_large": (192, 384, 768, 1536),
    "mobilenet_v3_large": (16, 24, 40, 80, 160, 960),
    "swin_t": SWIN_TINY,
    "swin_s": SWIN_TINY,
    "swin_b": SWIN_BASE,
    "swin_v2_t": SWIN_TINY,
    "swin_v2_s": SWIN_TINY,
    "swin_v2_b": SWIN_BASE,
}
RESNETS = [name for name in CHANNELS if "resne" in name]
FEATURES = [name for name in CHANNELS if name not in RESNETS]
SMALL = ("resnet18", "resnet50", "convnext_tiny", "mobilenet_v3_large", "swin_t", "swin_v2_t")
# fmt: off
BAD_NAMES = [
    "", "resnet20", "resnet50 ", "resnet50\n", "ResNet50", "resnet50_fpn", "resnext50", "resnext50_32x4",
    "resnext18_32x4d", "resnext50_0x4d", "resnext50_32x0d", "wide_resnet50", "wide_resnet50_0",
    "wide_resnet18_2", "convnext", "convnext_huge", "swin_l", "swin_v3_t", "swin", "mobilenet_v3_small",
    "mobilenet_v2", "vgg16", "os", "resnet50|swin_t",
]
# fmt: on


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


@cache
def meta_body(name: str) -> Body:
    with torch.device("meta"):
        return make_body(name, BATCH)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def parts_of(name: str, **settings: object) -> NetworkParts:
    stages = (2, 3, 4, 6) if name.startswith("mobilenet") else (1, 2, 3, 4)
    return NetworkParts.model_validate({"body": name, "stages": stages, **settings})


@cache
def meta_backbone(name: str) -> nn.Module:
    with torch.device("meta"):
        return make_backbone(parts_of(name, fpn={"channels": 24})).eval()


def levels(backbone: nn.Module, size_hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every level of the pyramid for a batch of two, computed on the meta device."""
    pyramid = backbone(torch.zeros(2, 3, *size_hw, device="meta"))
    return {name: tuple(maps.shape) for name, maps in pyramid.items()}


@pytest.mark.parametrize("name", CHANNELS)
def test_bodies_are_torchvisions_own(name: str) -> None:
    with torch.device("meta"):
        whole = getattr(torchvision.models, name)(weights=None)
    assert shapes(meta_body(name).module) == shapes(whole.features if name in FEATURES else whole)


@pytest.mark.parametrize("name", CHANNELS)
def test_stages(name: str) -> None:
    body = meta_body(name)
    assert body.stage_channels == CHANNELS[name]
    assert set(body.stage_names) <= {child for child, _ in body.module.named_children()}
    assert len(set(body.stage_names)) == len(body.stage_channels)
    assert body.channels_last == name.startswith("swin")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "swin_v2_t"])
def test_stage_channels(name: str) -> None:
    assert stage_channels(name) == CHANNELS[name]


@pytest.mark.parametrize("name", CHANNELS)
def test_names_match_the_pattern_and_settings(name: str) -> None:
    assert re.fullmatch(BODY_PATTERN, name)
    assert parts_of(name).body == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="body"):
        NetworkParts(body=name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (18, 1, 64)),
        ("resnet152", (152, 1, 64)),
        ("resnext50_32x4d", (50, 32, 4)),
        ("resnext101_64x4d", (101, 64, 4)),
        ("wide_resnet101_2", (101, 1, 128)),
    ],
)
def test_resnet_shape(name: str, shape: tuple[int, int, int]) -> None:
    assert resnet_shape(name) == shape


def test_a_resnext_that_torchvision_does_not_name() -> None:
    with torch.device("meta"):
        body = make_body("resnext152_32x8d", BATCH)
    assert body.stage_channels == WIDE
    assert body.module.layer1[0].conv2.weight.shape == (256, 8, 3, 3)
    assert len(body.module.layer3) == 36


# Pyramids.


@pytest.mark.parametrize("name", SMALL)
def test_pyramids_have_the_strides_and_channels(name: str) -> None:
    found = levels(meta_backbone(name), (64, 96))
    expected = {str(i): (2, 24, 64 >> i + 2, 96 >> i + 2) for i in range(4)} | {"pool": (2, 24, 1, 2)}
    assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "swin_t"])
@pytest.mark.parametrize(("stages", "extra"), [((1, 2, 3, 4), "none"), ((2, 4), "pool"), ((3,), "none")])
def test_any_stages_feed_the_pyramid(name: str, stages: tuple[int, ...], extra: str) -> None:
    parts = parts_of(name, stages=stages, fpn={"channels": 8, "extra": extra})
    with torch.device("meta"):
        found = levels(make_backbone(parts).eval(), (64, 64))
    assert list(found) == [str(i) for i in range(len(stages))] + ["pool"] * (extra == "pool")
    assert len(found) == parts.levels
    first = 0 if name.startswith("mobilenet") else 1
    for stage, shape in zip(stages, found.values(), strict=False):
        assert shape == (2, 8, 64 >> stage + first, 64 >> stage + first)


@pytest.mark.parametrize("size_hw", [(32, 32), (33, 71)])
@pytest.mark.parametrize("name", SMALL)
def test_sizes_that_no_stride_divides(name: str, size_hw: tuple[int, int]) -> None:
    for batch, channels, height, width in levels(meta_backbone(name), size_hw).values():
        assert (batch, channels) == (2, 24) and min(height, width) >= 1


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "mobilenet_v3_large"])
@torch.inference_mode()
def test_the_pyramid_is_that_of_the_bodys_stages(name: str) -> None:
    """A real forward pass: each child by hand, Swin's channels moved to where they belong."""
    torch.manual_seed(0)
    parts = parts_of(name, fpn={"channels": 8})
    backbone, images = make_backbone(parts).eval(), torch.rand(1, 3, 64, 64)
    names = meta_body(name).stage_names
    maps, stages = images, {}
    for child, module in backbone.body.named_children():
        maps = module(maps)
        if child in names and names.index(child) + 1 in parts.stages:
            level = str(parts.stages.index(names.index(child) + 1))
            stages[level] = maps.permute(0, 3, 1, 2) if name.startswith("swin") else maps
    expected, found = backbone.fpn(stages), backbone(images)
    assert list(found) == list(expected)
    for key, maps in found.items():
        torch.testing.assert_close(maps, expected[key])
        assert maps.isfinite().all() and maps.std() > 0 and maps.is_contiguous()


def test_backbones_have_torchvisions_keys() -> None:
    with torch.device("meta"):
        ours = make_backbone(parts_of("resnet50"))
        theirs = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
        )
        mobile = NetworkParts(body="mobilenet_v3_large", stages=(5, 6), body_norm=Norm(kind="frozen"))
        small = make_backbone(mobile)
        smalls = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)
    assert shapes(ours) == shapes(theirs)
    assert shapes(small) == shapes(smalls)


# Norms.


def norms_in(module: nn.Module) -> set[tuple[type[nn.Module], float]]:
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
    return {(type(m), m.eps) for m in module.modules() if isinstance(m, kinds)}


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("batch", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d), ("group", nn.GroupNorm)],
)
@pytest.mark.parametrize("eps", [None, 0.0])
def test_norms(kind: str, layer: type[nn.Module], eps: float | None) -> None:
    norm = Norm.model_validate({"kind": kind, "eps": eps, "groups": 8})
    make = make_norm(norm)
    assert make is not None
    assert norms_in(make(16)) == {(layer, 1e-5 if eps is None else eps)}
    mobile = 1e-3 if kind == "batch" else 1e-5  # torchvision's own default, of its own batch norm alone
    for name, default in (("resnet18", 1e-5), ("mobilenet_v3_large", mobile)):
        with torch.device("meta"):
            body = make_body(name, norm)
        assert norms_in(body.module) == {(layer, default if eps is None else eps)}
        assert body.stage_channels == CHANNELS[name]


def test_no_norm() -> None:
    assert make_norm(Norm()) is None


def test_group_norm_has_its_groups() -> None:
    make = make_norm(Norm(kind="group", groups=4))
    assert make is not None and make(16).num_groups == 4


@pytest.mark.parametrize("kind", ["none", "batch", "group"])
def test_the_pyramid_has_its_own_norm(kind: str) -> None:
    with torch.device("meta"):
        fpn = make_backbone(parts_of("resnet18", fpn={"channels": 32, "norm": {"kind": kind}})).fpn
    assert len(norms_in(fpn)) == (kind != "none")


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
@pytest.mark.parametrize("kind", ["none", "frozen", "batch", "group"])
def test_bodies_with_a_norm_of_their_own_ignore_it(name: str, kind: str) -> None:
    with torch.device("meta"):
        body = make_body(name, Norm.model_validate({"kind": kind}))
    assert shapes(body.module) == shapes(meta_body(name).module)
