"""Any body by its settings, and the keys of old files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet_bodies import images
from pydantic import TypeAdapter, ValidationError

from sartorius_infer.manifest.mmdet_bodies import MmdetBody
from sartorius_infer.networks.mmdet.bodies import current_key, make_body
from sartorius_infer.networks.skeleton import skeleton
from sartorius_infer.networks.state import load_state

SMALL = {"base_channels": 8, "stem_channels": 8}
BODIES: dict[str, dict[str, Any]] = {
    "ResNet": {"kind": "resnet", "depth": 18, **SMALL},
    "Res2Net": {"kind": "res2net", "base_width": 8, **SMALL},
    "ResNeSt": {"kind": "resnest", **SMALL},
    "Swin": {"kind": "swin", "channels": 12, "heads": [1, 2, 3, 4], "absolute_positions": [3, 5]},
    "ConvNext": {"kind": "convnext", "channels": [8, 12, 16, 20], "global_norm": True},
}
ADAPTER: TypeAdapter[MmdetBody] = TypeAdapter(MmdetBody)


def body_of(name: str, **more: Any) -> MmdetBody:
    said = {key: tuple(v) if isinstance(v, list) else v for key, v in (BODIES[name] | more).items()}
    return ADAPTER.validate_python(said)


@pytest.mark.parametrize("name", BODIES)
def test_a_kind_has_its_module(name: str) -> None:
    assert type(make_body(body_of(name))).__name__ == name


@pytest.mark.parametrize("name", BODIES)
def test_a_skeleton_takes_the_tensors_of_a_file(name: str) -> None:
    """As networks are loaded: made without storage, then given all tensors by their keys."""
    whole = make_body(body_of(name)).eval()
    with skeleton():
        module = make_body(body_of(name)).eval()
    load_state(module, whole.state_dict(), "file.pth")
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}
    with torch.inference_mode():
        for level, other in zip(module(images(1, 38, 50)), whole(images(1, 38, 50)), strict=True):
            assert torch.equal(level, other)


@pytest.mark.parametrize("indices", [(3,), (0, 2)])
@pytest.mark.parametrize("name", BODIES)
def test_maps_in_use_are_those_of_all(name: str, indices: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    whole = make_body(body_of(name)).eval()
    some = make_body(body_of(name, out_indices=indices)).eval()
    some.load_state_dict({key: whole.state_dict()[key] for key in some.state_dict()})
    with torch.inference_mode():
        found, expected = some(images(1, 32, 64)), whole(images(1, 32, 64))
    assert all(torch.equal(level, expected[i]) for level, i in zip(found, indices, strict=True))
    assert some.channels == tuple(whole.channels[i] for i in indices)
    assert some.strides == tuple((4, 8, 16, 32)[i] for i in indices)


WIDTHS = st.sampled_from((2, 4, 6, 8, 12, 32, 48))
FEW = st.integers(1, 4)


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(("resnet", "res2net", "resnest")),
    widths=st.fixed_dictionaries({"base_channels": WIDTHS, "stem_channels": WIDTHS, "base_width": WIDTHS}),
    of_kind=st.fixed_dictionaries({"groups": FEW, "radix": FEW, "scales": st.integers(2, 4)}),
    norm_groups=st.none() | WIDTHS,
    deformable_groups=st.none() | FEW,
)
def test_what_settings_allow_can_be_built(
    kind: str,
    widths: dict[str, int],
    of_kind: dict[str, int],
    norm_groups: int | None,
    deformable_groups: int | None,
) -> None:
    """No width is left for torch to refuse."""
    names = {"resnet": ("groups",), "res2net": ("scales",), "resnest": ("groups", "radix")}[kind]
    said: dict[str, Any] = {"kind": kind, **widths, **{name: of_kind[name] for name in names}}
    said |= {"strides": (1, 2), "dilations": (1, 1), "out_indices": (0, 1)}
    if norm_groups is not None:
        said["norm"] = {"kind": "group", "groups": norm_groups}
    if deformable_groups is not None:
        said["deformable"] = {"groups": deformable_groups, "stages": (1,)}
    try:
        body = ADAPTER.validate_python(said)
    except ValidationError:
        return
    module = make_body(body).eval()
    with torch.inference_mode():
        maps = module(torch.zeros((1, 3, 16, 16)))
    assert [level.shape[1] for level in maps] == list(module.channels)


def test_what_moves_taps_had_a_name_beside_the_convolutions() -> None:
    for part in ("weight", "bias"):
        old, new = f"backbone.layer3.5.conv2_offset.{part}", f"backbone.layer3.5.conv2.conv_offset.{part}"
        assert current_key(old) == current_key(new) == new


def test_other_keys_stay() -> None:
    for key in ("backbone.conv1.weight", "backbone.layer3.5.conv2.weight", "neck.conv2_offset.scale"):
        assert current_key(key) == key
