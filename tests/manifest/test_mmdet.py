"""Settings of MMDetection's networks: what contradicts itself is refused by name, and JSON holds the rest."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sartorius_infer.manifest.mmdet import MmdetBoxHead, MmdetMaskHead, MmdetParts, MmdetPool
from sartorius_infer.manifest.mmdet_bodies import MmdetResNet

BODY = MmdetResNet()
THREE: dict[str, Any] = {"box_heads": (MmdetBoxHead(),) * 3, "mask_heads": (MmdetMaskHead(),) * 3}


def test_defaults_are_a_mask_rcnn() -> None:
    parts = MmdetParts(body=BODY)
    assert (parts.heads, parts.dialect, parts.anchors.per_cell) == ("standard", 3, 3)
    assert MmdetParts.model_validate_json(parts.model_dump_json()) == parts


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": BODY.model_copy(update={"out_indices": (0, 1)}), "fpn": {"last": 2}}, "first: "),
        ({"anchors": {"strides": (4, 8)}}, "anchors.strides: expected 5, found 2"),
        ({"anchors": {"base_sizes": (4.0,)}}, "base_sizes: expected 5, found 1"),
        (THREE, "mask_heads: expected one for each box head"),
        (THREE | {"heads": "cascade", "mask_heads": (MmdetMaskHead(),)}, "mask_heads: expected one"),
        (
            {"box_heads": ({"pool": {"size": 7, "strides": (1,) * 6}},)},
            "pool.strides: expected up to 5, found 6",
        ),
        ({"box_heads": ({"class_convs": 1},)}, "shared_fcs: expected none before"),
        (
            {
                **THREE,
                "heads": "cascade",
                "mask_heads": (MmdetMaskHead(), MmdetMaskHead(), MmdetMaskHead(factor=4)),
            },
            "mask_heads: expected masks of one size",
        ),
        (THREE | {"heads": "htc", "mask_flow": True}, "mask_flow: expected an HTC whose"),
        (THREE | {"heads": "cascade", "mask_flow": True}, "mask_flow: expected an HTC whose"),
        ({"dialect": 1}, "dialect"),
    ],
)
def test_what_contradicts_itself(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MmdetParts(**{"body": BODY} | changes)


def test_a_cascade_of_three() -> None:
    parts = MmdetParts(body=BODY, heads="cascade", **THREE)
    assert len(parts.box_heads) == 3
    assert MmdetPool(size=7).strides == (4, 8, 16, 32)
