"""Networks rearranged for a CPU compute what they computed before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_factories import network_of, settings_and_state
from detectron2_oracle import DEFORMABLE_RESNEST, MODULATED, RESNEST
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tiny import write_image, write_tiny
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FrozenBatchNorm2d

from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import build_network, load_ensemble
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.manifest.mmdet_bodies import MmdetBody
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.torchvision import NetworkParts
from sartorius_infer.networks import family_of
from sartorius_infer.networks.cpu.arithmetic import StemPool, fold_norms, quicken, use_stem_pool, use_winograd
from sartorius_infer.networks.detectron2.modules import Detectron2Model
from sartorius_infer.networks.mmdet.bodies import make_body
from sartorius_infer.networks.pyramid import PyramidNetwork
from sartorius_infer.networks.skeleton import skeleton
from sartorius_infer.networks.torchvision.rcnn import TorchvisionNetwork, build_model

BATCH = {"kind": "batch"}
BODIES: dict[str, dict[str, Any]] = {
    "resnet18": {"body_norm": BATCH},
    "resnet50": {"body_norm": {"kind": "frozen", "eps": 0}},
    "resnext50_32x4d": {"body_norm": BATCH},
    "mobilenet_v3_large": {"body_norm": BATCH},
    "convnext_tiny": {},
    "swin_t": {},
}
HEADS = {
    "plain heads": {},
    "norms everywhere": {
        "fpn": {"channels": 128, "norm": BATCH},
        "box_head": {"conv_channels": (128, 128), "fc_channels": (64,), "norm": BATCH},
        "mask_head": {"conv_channels": (128, 128), "norm": BATCH, "hidden": 32},
    },
    "group norm": {"fpn": {"channels": 128, "norm": {"kind": "group"}}},
}


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode, with statistics that no norm starts from."""
    torch.manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.1)
    return model.eval()


def made(body: str, heads: str) -> MaskRCNN:
    """A Mask R-CNN of these parts."""
    levels = {"mobilenet_v3_large": 7}.get(body, 5)
    anchors = {"sizes": tuple((16.0 * 2**i,) for i in range(levels))}
    stages = tuple(range(1, levels))
    parts = NetworkParts.model_validate(
        {"body": body, "stages": stages, "anchors": anchors, **BODIES[body], **HEADS[heads]}
    )
    return build_model(parts, 3)


@torch.inference_mode()
def outputs(model: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Feature maps, objectness and deltas of every level, box features and mask logits."""
    torch.manual_seed(1)
    maps = model.backbone(torch.randn((2, 3, 64, 96), dtype=dtype))
    channels = next(iter(maps.values())).shape[1]
    objectness, deltas = model.rpn.head(list(maps.values()))
    heads = model.roi_heads
    rois = torch.randn((3, channels, 14, 14), dtype=dtype)
    masks = heads.mask_predictor(heads.mask_head(rois))
    boxes = heads.box_head(torch.randn((3, channels, 7, 7), dtype=dtype))
    return [*maps.values(), *objectness, *deltas, boxes, masks]


def compare(found: list[Tensor], expected: list[Tensor], relative: float) -> None:
    """Equal up to a share of each tensor's greatest value."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=relative * float(other.abs().max()))


def kinds(model: nn.Module) -> Counter[str]:
    """How many modules of each class there are."""
    return Counter(type(module).__name__ for module in model.modules())


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_a_network_computes_what_it_did(body: str, heads: str) -> None:
    model = settled(made(body, heads))
    before = outputs(model)
    quicken(model)
    compare(outputs(model), before, 2e-4)
    left = kinds(model)
    assert not left["BatchNorm2d"] and not left["FrozenBatchNorm2d"]
    assert left["WinogradConv2d"] > 4
    assert left["GroupNorm"] == kinds(made(body, heads))["GroupNorm"]


@pytest.mark.parametrize("body", ["resnet18", "resnet50", "mobilenet_v3_large"])
def test_folding_is_exact_but_for_rounding(body: str) -> None:
    model = settled(made(body, "norms everywhere")).double()
    before = outputs(model, torch.float64)
    fold_norms(model)
    compare(outputs(model, torch.float64), before, 1e-12)


def test_a_norm_that_follows_something_else_stays() -> None:
    model = settled(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)))
    fold_norms(model)
    assert kinds(model)["BatchNorm2d"] == 1


def test_a_norm_without_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    fold_norms(model)
    assert kinds(model)["BatchNorm2d"] == 1


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 5, padding=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 128, 3, padding=1),
    ],
)
def test_other_convolutions_stay(conv: nn.Conv2d) -> None:
    model = nn.Sequential(conv)
    use_winograd(model)
    assert model[0] is conv


@pytest.mark.parametrize(
    "changes",
    [{"MODEL.RESNETS.NORM": "FrozenBN"}, {"MODEL.RESNETS.NORM": "BN"}, RESNEST],
    ids=["frozen", "batch", "resnest"],
)
def test_detectron2_networks_too(changes: dict[str, Any], tmp_path: Path) -> None:
    settings, state = settings_and_state(changes)
    network = network_of(settings, state, tmp_path)
    images = [torch.randint(0, 255, (1, 88, 120), dtype=torch.uint8)]
    with torch.inference_mode():
        before = network.features(images).maps
        network.quicken()
        after = network.features(images).maps
    compare(list(after.values()), list(before.values()), 2e-4)
    assert not kinds(network)["BatchNorm2d"]


@pytest.mark.parametrize("changes", [MODULATED, DEFORMABLE_RESNEST], ids=["resnet", "resnest"])
def test_norms_fold_into_deformable_convolutions(changes: dict[str, Any], tmp_path: Path) -> None:
    """In float64: taps that move multiply what is rounded."""
    settings, state = settings_and_state({**changes, "MODEL.FPN.NORM": "BN"})
    body = network_of(settings, state, tmp_path).model.backbone.double()
    images = torch.randn((1, 3, 64, 96), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = body(images)
        fold_norms(body)
        after = body(images)
    compare(list(after.values()), list(before.values()), 1e-9)
    assert not kinds(body)["BatchNorm2d"]


def test_detectron2_convolutions_gain_too() -> None:
    with skeleton():
        model = Detectron2Model(Detectron2Parts(), 3)
    wide = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    wide = [m for m in wide if m.stride == (1, 1) and m.in_channels >= 128]
    for norm in (m for m in model.modules() if hasattr(m, "norm")):
        norm.norm = nn.Identity()  # as folding leaves it
    use_winograd(model)
    assert kinds(model)["WinogradConv2d"] == len(wide) > 15


class Doubling(nn.Conv2d):
    """A convolution that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_convolutions_of_others_are_left_alone() -> None:
    shared, relu = nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()
    other = nn.Conv2d(128, 128, 1)
    model = settled(
        nn.Sequential(
            *(Doubling(128, 128, 3, padding=1), nn.BatchNorm2d(128)),
            *(shared, nn.BatchNorm2d(128), shared, relu, other, relu, nn.BatchNorm2d(128)),
        )
    ).double()
    images = torch.randn((1, 128, 8, 8), dtype=torch.float64)
    with torch.inference_mode():
        before = model(images)
        fold_norms(model)
        torch.testing.assert_close(model(images), before)
    use_winograd(model)
    assert isinstance(model, nn.Sequential) and isinstance(model[0], Doubling)


def test_on_a_cpu_the_mask_head_alone_changes_its_arithmetic() -> None:
    moved = TorchvisionNetwork(made("resnet18", "norms everywhere"), Preprocessing(), torch.float32)
    settled(moved)
    torch.manual_seed(3)
    rois = torch.randn((2, 128, 14, 14))
    head = moved.model.roi_heads.mask_head
    with torch.inference_mode():
        before = head(rois)
        moved.settle()
        compare([head(rois)], [before], 2e-4)
    assert kinds(head)["WinogradConv2d"] == kinds(moved)["WinogradConv2d"] == 2
    assert not kinds(head)["BatchNorm2d"] and kinds(moved)["BatchNorm2d"] > 20


def test_where_winograds_algorithm_does_not_pay_convolutions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sartorius_infer.networks.cpu.winograd.pays", lambda: False)
    model = settled(made("resnet18", "norms everywhere"))
    before = outputs(model)
    quicken(model)
    assert not kinds(model)["WinogradConv2d"] and not kinds(model)["BatchNorm2d"]
    compare(outputs(model), before, 2e-4)


def test_a_loaded_network_still_has_its_checkpoints_tensors() -> None:
    """What `import` and the dataset write is read from it."""
    state = settled(made("resnet18", "norms everywhere")).state_dict()
    spec = ModelSpec(name="n", file="n.pth")
    family = family_of(None, state, spec.file)
    network = build_network(spec, family, state, torch.device("cpu"), torch.float32)
    assert family.lean(spec, state, network).keys() == state.keys()


def test_the_command_takes_the_fast_way_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Ensemble] = []
    monkeypatch.setattr(Ensemble, "quicken", lambda ensemble: asked.append(ensemble))
    files = {"--weights": write_tiny(tmp_path), "--images": write_image(tmp_path / "i.png")}
    words = [str(word) for pair in files.items() for word in pair]
    for precision in ("fp32", "fp32-fast"):
        out = tmp_path / f"{precision}.csv"
        assert main([*words, "--device", "cpu", "--precision", precision, "--out", str(out)]) == 0
    assert len(asked) == 1


def network(precision: torch.dtype, folder: Path) -> PyramidNetwork:
    found = load_ensemble([write_tiny(folder)], torch.device("cpu"), precision).members[0].network
    assert isinstance(found, PyramidNetwork)
    return found


def test_boxes_keep_their_arithmetic_until_asked(tmp_path: Path) -> None:
    ensemble = load_ensemble([write_tiny(tmp_path)], torch.device("cpu"))
    model = ensemble.members[0].network
    assert isinstance(model, PyramidNetwork)
    norms = kinds(model)["BatchNorm2d"]
    ensemble.quicken()
    assert norms > 0 and not kinds(model)["BatchNorm2d"]


def test_half_precision_is_left_alone(tmp_path: Path) -> None:
    half = network(torch.bfloat16, tmp_path)
    before = kinds(half)
    half.quicken()
    assert kinds(half) == before


@settings(max_examples=60)
@given(
    size_hw=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    batch=st.integers(0, 3),
    channels_last=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_stems_pooling_is_torchs_to_the_bit(
    size_hw: tuple[int, int], batch: int, channels_last: bool, seed: int
) -> None:
    values = (
        torch.randn((batch, 3, *size_hw), generator=torch.Generator().manual_seed(seed)).relu() - seed % 2
    )
    if channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    before = values.clone()
    found = StemPool()(values)
    assert torch.equal(found, nn.functional.max_pool2d(values, 3, stride=2, padding=1))
    assert torch.equal(values, before), "what was pooled is as it was"


def test_not_a_number_passes_through_the_stems_pooling() -> None:
    values = torch.zeros((1, 1, 8, 8))
    values[0, 0, 3, 4] = torch.nan
    expected = nn.functional.max_pool2d(values, 3, stride=2, padding=1)
    torch.testing.assert_close(StemPool()(values), expected, equal_nan=True, rtol=0, atol=0)


def test_only_the_pooling_of_stems_is_replaced() -> None:
    others = [
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.MaxPool2d(2, stride=2),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool2d(3, stride=2, padding=1),
    ]
    model = nn.Sequential(*others, nn.MaxPool2d(3, stride=2, padding=1))
    use_stem_pool(model)
    assert list(model)[:-1] == others and isinstance(model[-1], StemPool)


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_networks_on_a_cpu_have_it(kind: str, tmp_path: Path) -> None:
    if kind == "torchvision":
        model = made("resnet18", "plain heads")
        network: PyramidNetwork = TorchvisionNetwork(model, Preprocessing(), torch.float32)
    else:
        network = network_of(*settings_and_state(), tmp_path)
    network.settle()
    assert sum(isinstance(module, StemPool) for module in network.modules()) == 1


FOLDED: dict[str, dict[str, Any]] = {
    "resnet18": {"kind": "resnet", "depth": 18},
    "resnet50": {"kind": "resnet"},
    "resnet50 v1d": {"kind": "resnet", "deep_stem": True, "avg_down": True},
    "resnext50": {"kind": "resnet", "groups": 8},
    "res2net50": {"kind": "res2net"},
    "resnest50": {"kind": "resnest"},
}


def mmdet_body(settings: dict[str, Any]) -> nn.Module:
    small = {"base_channels": 32, "stem_channels": 16}
    return settled(make_body(TypeAdapter[MmdetBody](MmdetBody).validate_python(small | settings)))


@pytest.mark.parametrize("body", FOLDED)
def test_bodies_of_mmdetection_lose_every_norm_and_compute_what_they_did(body: str) -> None:
    module, batch = mmdet_body(FOLDED[body]).double(), torch.randn((2, 3, 64, 96), dtype=torch.float64)
    with torch.inference_mode():
        before = module(batch)
        fold_norms(module)
        compare(list(module(batch)), list(before), 1e-12)
    assert not kinds(module)["BatchNorm2d"]


@pytest.mark.parametrize("body", ["resnet50", "res2net50", "resnest50"])
@pytest.mark.parametrize("modulated", [True, False])
def test_deformable_convolutions_of_mmdetection_take_their_norms_in(body: str, modulated: bool) -> None:
    module = mmdet_body({**FOLDED[body], "deformable": {"modulated": modulated}})
    for name, moves in module.named_modules():
        if name.endswith("conv_offset"):  # by fractions of a pixel, or each block would magnify rounding
            moves.weight.data.mul_(0.01)
    batch = torch.randn((1, 3, 64, 96))
    with torch.inference_mode():
        before = module(batch)
        quicken(module)
        compare(list(module(batch)), list(before), 2e-4)
    assert not kinds(module)["BatchNorm2d"] and kinds(module)["DeformableConv3x3"] > 10


def test_norms_by_groups_stay_in_bodies_of_mmdetection() -> None:
    module = mmdet_body({"kind": "resnest", "norm": {"kind": "group", "groups": 8}})
    norms, batch = kinds(module)["GroupNorm"], torch.randn((1, 3, 64, 96))
    with torch.inference_mode():
        before = module(batch)
        quicken(module)
        compare(list(module(batch)), list(before), 2e-4)
    assert kinds(module)["GroupNorm"] == norms > 50


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_transformers_of_mmdetection_compute_what_they_did(kind: str) -> None:
    channels = {"swin": {"channels": 12, "heads": (1, 2, 3, 4)}, "convnext": {"channels": (8, 12, 16, 20)}}
    body = TypeAdapter[MmdetBody](MmdetBody).validate_python({"kind": kind, **channels[kind]})
    module, batch = settled(make_body(body)), torch.randn((1, 3, 64, 96))
    with torch.inference_mode():
        before = module(batch)
        quicken(module)
        after = module(batch.contiguous(memory_format=torch.channels_last))
    compare(list(after), list(before), 2e-4)


def test_the_stems_pooling_of_mmdetection_is_replaced() -> None:
    module = mmdet_body({"kind": "resnet"})
    use_stem_pool(module)
    assert kinds(module)["StemPool"] == 1
