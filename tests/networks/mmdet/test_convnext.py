"""ConvNeXts: torchvision's, and V2's norm and convolutions written down plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from mmdet_bodies import State, compare, images, settled, shapes, state_of
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from sartorius_infer.manifest.mmdet_bodies import MmdetConvNext
from sartorius_infer.networks.mmdet.convnext import ConvNext
from sartorius_infer.networks.skeleton import skeleton

SMALL: dict[str, Any] = {"depths": (1, 2, 2, 1), "channels": (8, 12, 16, 20)}

BLOCK = {
    "block.0": "depthwise_conv",
    "block.2": "norm",
    "block.3": "pointwise_conv1",
    "block.5": "pointwise_conv2",
    "layer_scale": "gamma",
}


def from_torchvision(theirs: nn.Module) -> State:
    """A state dict of torchvision's under MMPretrain's names, without the norms of what it puts out."""
    state = {}
    for key, tensor in theirs.state_dict().items():
        if not key.startswith("features."):
            continue
        number, _, rest = key.removeprefix("features.").partition(".")
        stage, within = divmod(int(number), 2)
        if within:
            block, _, part = rest.partition(".")
            old = next(old for old in BLOCK if part.startswith(old))
            state[f"stages.{stage}.{block}.{BLOCK[old]}{part.removeprefix(old)}"] = (
                tensor.flatten() if old == "layer_scale" else tensor
            )
        else:
            state[f"downsample_layers.{stage}.{rest}"] = tensor
    return state


def test_torchvisions_weights_give_torchvisions_maps() -> None:
    widths = (*SMALL["channels"], None)
    blocks = [CNBlockConfig(widths[i], widths[i + 1], depth) for i, depth in enumerate(SMALL["depths"])]
    theirs = settled(ConvNeXt(blocks, num_classes=1)).double()
    ours = settled(ConvNext(MmdetConvNext.model_validate(SMALL))).double()
    state = from_torchvision(theirs)
    assert state.keys() == {key for key in ours.state_dict() if not key.startswith("norm")}
    ours.load_state_dict(state | {k: t for k, t in ours.state_dict().items() if k.startswith("norm")})
    batch, expected = images(2, 67, 90).double(), []
    with torch.inference_mode():
        found, x = ours(batch), batch
        for stage in range(4):
            x = theirs.features[2 * stage + 1](theirs.features[2 * stage](x))
            expected.append(plain_norm(state_of(ours), f"norm{stage}", 1e-6, x))
    compare(found, expected)


@pytest.mark.parametrize(
    ("name", "depths", "first"),
    [
        ("convnext_tiny", (3, 3, 9, 3), 96),
        ("convnext_small", (3, 3, 27, 3), 96),
        ("convnext_base", (3, 3, 27, 3), 128),
        ("convnext_large", (3, 3, 27, 3), 192),
    ],
)
def test_keys_are_torchvisions(name: str, depths: tuple[int, ...], first: int) -> None:
    channels = tuple(first << stage for stage in range(4))
    with skeleton():
        theirs = from_torchvision(getattr(torchvision.models, name)(weights=None))
        ours = shapes(ConvNext(MmdetConvNext(depths=depths, channels=channels)))
    assert {k: s for k, s in ours.items() if not k.startswith("norm")} == {
        key: tuple(tensor.shape) for key, tensor in theirs.items()
    }
    assert {k: s for k, s in ours.items() if k.startswith("norm")} == {
        f"norm{stage}.{part}": (channels[stage],) for stage in range(4) for part in ("weight", "bias")
    }


# Written down, channels first.


def plain_norm(state: State, name: str, eps: float, x: Tensor) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    weight, bias = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def plain_convnext(state: State, body: MmdetConvNext, x: Tensor) -> list[Tensor]:
    maps = []
    for stage, depth in enumerate(body.depths):
        conv, normed, stride = (0, 1, body.stem_patch_size) if stage == 0 else (1, 0, 2)
        down = f"downsample_layers.{stage}"
        x = x if stage == 0 else plain_norm(state, f"{down}.{normed}", body.eps, x)
        x = F.conv2d(x, state[f"{down}.{conv}.weight"], state[f"{down}.{conv}.bias"], stride=stride)
        x = plain_norm(state, f"{down}.{normed}", body.eps, x) if stage == 0 else x
        for block in range(depth):
            x = x + plain_block(state, f"stages.{stage}.{block}", body, x)
        if stage in body.out_indices:
            maps.append(plain_norm(state, f"norm{stage}", body.eps, x))
    return maps


def plain_block(state: State, prefix: str, body: MmdetConvNext, x: Tensor) -> Tensor:
    weight, bias = state[f"{prefix}.depthwise_conv.weight"], state[f"{prefix}.depthwise_conv.bias"]
    x = plain_norm(
        state, f"{prefix}.norm", body.eps, F.conv2d(x, weight, bias, padding=3, groups=len(weight))
    )
    x = F.gelu(plain_pointwise(state, f"{prefix}.pointwise_conv1", x))
    if body.global_norm:
        length = x.square().sum(dim=(2, 3), keepdim=True).sqrt()
        share = length / (length.mean(dim=1, keepdim=True) + 1e-6)
        gamma, beta = (state[f"{prefix}.grn.{part}"][:, None, None] for part in ("gamma", "beta"))
        x = gamma * x * share + beta + x
    x = plain_pointwise(state, f"{prefix}.pointwise_conv2", x)
    return x * state[f"{prefix}.gamma"][:, None, None] if body.layer_scale else x


def plain_pointwise(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return (
        torch.einsum("oi,bihw->bohw", weight.reshape(len(weight), -1), x)
        + state[f"{name}.bias"][:, None, None]
    )


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "convolutions": {"linear_pointwise": False},
    "v2": {"global_norm": True, "layer_scale": False},
    "v2 of convolutions": {"global_norm": True, "layer_scale": False, "linear_pointwise": False},
    "no layer scale": {"layer_scale": False},
    "some maps": {"out_indices": (1, 3)},
    "first maps": {"out_indices": (0, 1)},
    "three stages": {"depths": (1, 1, 1), "channels": (8, 12, 16), "out_indices": (0, 1, 2)},
    "other patches": {"stem_patch_size": 2, "eps": 1e-3},
}


@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_plain_arithmetic(case: str) -> None:
    body = MmdetConvNext.model_validate({**SMALL, **CASES[case]})
    module, batch = settled(ConvNext(body)).double(), images(2, 67, 90).double()
    with torch.inference_mode():
        found, expected = module(batch), plain_convnext(state_of(module), body, batch)
    assert len(found) == len(body.out_indices)
    compare(found, expected)
    assert module.channels == tuple(level.shape[1] for level in found)
    assert [67 // s for s in module.strides] == [level.shape[2] for level in found]


def test_pointwise_layers_are_convolutions_where_the_settings_say_so() -> None:
    kinds = {}
    for linear in (True, False):
        found = shapes(ConvNext(MmdetConvNext.model_validate({**SMALL, "linear_pointwise": linear})))
        kinds[linear] = found["stages.0.0.pointwise_conv1.weight"], found["stages.0.0.pointwise_conv2.weight"]
    assert kinds == {True: ((32, 8), (8, 32)), False: ((32, 8, 1, 1), (8, 32, 1, 1))}


def test_keys_of_v2() -> None:
    found = shapes(ConvNext(MmdetConvNext.model_validate({**SMALL, **CASES["v2"]})))
    assert found["stages.1.1.grn.gamma"] == found["stages.1.1.grn.beta"] == (48,)
    assert not any(key.endswith(".gamma") and "grn" not in key for key in found)
