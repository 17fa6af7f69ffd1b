"""Settings of MMDetection's bodies: told apart by kind, whole through JSON, and refused where impossible."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sartorius_infer.manifest.mmdet_bodies import (
    MmdetBody,
    MmdetConvNext,
    MmdetRes2Net,
    MmdetResNeSt,
    MmdetResNet,
    MmdetSwin,
)
from sartorius_infer.manifest.settings import Settings, partial_model

ADAPTER: TypeAdapter[MmdetBody] = TypeAdapter(MmdetBody)
KINDS: dict[str, type[Settings]] = {
    "resnet": MmdetResNet,
    "res2net": MmdetRes2Net,
    "resnest": MmdetResNeSt,
    "swin": MmdetSwin,
    "convnext": MmdetConvNext,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_tells_which_settings_there_are(kind: str) -> None:
    found = ADAPTER.validate_python({"kind": kind})
    assert type(found) is KINDS[kind] and found == KINDS[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_json_keeps_everything(kind: str) -> None:
    body = ADAPTER.validate_python({"kind": kind, "out_indices": (1, 2)})
    assert ADAPTER.validate_json(ADAPTER.dump_json(body)) == body


def test_no_kind_or_another_is_refused() -> None:
    for said in ({}, {"kind": "vgg"}):
        with pytest.raises(ValidationError, match="kind"):
            ADAPTER.validate_python(said)


class Holder(Settings):
    """What holds a body."""

    body: MmdetBody = MmdetResNet()


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_may_be_said_in_part(kind: str) -> None:
    some = partial_model(Holder).model_validate({"body": {"kind": kind, "out_indices": (3,)}})
    assert some.model_dump(exclude_unset=True) == {"body": {"kind": kind, "out_indices": (3,)}}


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"kind": "resnet", "norm": {"kind": "none"}}, "norm.kind: expected 'frozen', 'batch' or 'group'"),
        ({"kind": "resnest", "norm": {"kind": "layer"}}, "norm.kind: expected 'frozen', 'batch' or 'group'"),
        (
            {"kind": "resnet", "strides": (1, 2)},
            "strides: expected up to 4 and as many dilations, found 2 and 4",
        ),
        ({"kind": "res2net", "strides": (1,) * 5, "dilations": (1,) * 5}, "strides: expected up to 4"),
        ({"kind": "resnet", "out_indices": (1, 1)}, "out_indices: expected stages of 0 to 3 in order"),
        ({"kind": "resnet", "out_indices": (0, 4)}, "out_indices: expected stages of 0 to 3 in order"),
        ({"kind": "resnet", "deformable": {"stages": (4,)}}, "deformable.stages: expected stages of 0 to 3"),
        ({"kind": "resnet", "depth": 34, "groups": 2}, "depth: expected groups 1 and no deformable"),
        ({"kind": "resnet", "depth": 18, "deformable": {}}, "depth: expected groups 1 and no deformable"),
        (
            {"kind": "resnet", "norm": {"kind": "group", "groups": 48}},
            "norm.groups: expected a divisor of 64",
        ),
        (
            {"kind": "resnet", "deep_stem": True, "norm": {"kind": "group", "groups": 64}},
            "norm.groups: expected a divisor of 32 channels, found 64",
        ),
        ({"kind": "res2net", "norm": {"kind": "group"}}, "norm.groups: expected a divisor of 26 channels"),
        (
            {"kind": "resnest", "groups": 2, "base_width": 32, "radix": 3, "deformable": {"groups": 5}},
            "deformable.groups: expected a divisor of 128 channels, found 5",
        ),
        ({"kind": "resnest", "radix": 3}, "radix: expected a divisor of 64 channels, found 3"),
        (
            {"kind": "resnest", "groups": 3, "base_width": 2},
            "groups: expected a divisor of 32 channels, found 3",
        ),
        (
            {"kind": "resnest", "norm": {"kind": "group", "groups": 32}, "base_channels": 96, "radix": 3},
            "norm.groups: expected a divisor of 72 channels, found 32",
        ),
        ({"kind": "swin", "heads": (3, 6)}, "depths: expected up to 6 and as many heads, found 4 and 2"),
        ({"kind": "swin", "heads": (3, 6, 12, 7)}, "heads: expected a divisor of 768 in stage 3, found 7"),
        ({"kind": "swin", "out_indices": (4,)}, "out_indices: expected stages of 0 to 3 in order"),
        ({"kind": "convnext", "channels": (8,)}, "depths: expected up to 6 and as many channels"),
        ({"kind": "convnext", "out_indices": (2, 1)}, "out_indices: expected stages of 0 to 3 in order"),
    ],
)
def test_what_contradicts_itself_is_named(said: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(said)
    assert caught.value.errors()[0]["msg"].startswith(f"Value error, {complaint}")


@pytest.mark.parametrize(
    ("said", "widths"),
    [
        ({"kind": "resnet", "base_width": 8}, (64, 512)),
        ({"kind": "resnet", "depth": 101, "groups": 64}, (256, 2048)),
        ({"kind": "res2net", "base_width": 14}, (14, 112)),
        ({"kind": "resnest", "groups": 2, "base_width": 40}, (80, 640)),
    ],
)
def test_widths_of_3_x_3_convolutions(said: dict[str, Any], widths: tuple[int, int]) -> None:
    body: Any = ADAPTER.validate_python(said)
    assert (body.width(64), body.width(512)) == widths
