"""Any body by its settings, and the keys of old files."""

from __future__ import annotations

from sartorius_infer.networks.mmdet.bodies import current_key


def test_what_moves_taps_had_a_name_beside_the_convolutions() -> None:
    for part in ("weight", "bias"):
        old, new = f"backbone.layer3.5.conv2_offset.{part}", f"backbone.layer3.5.conv2.conv_offset.{part}"
        assert current_key(old) == current_key(new) == new


def test_other_keys_stay() -> None:
    for key in ("backbone.conv1.weight", "backbone.layer3.5.conv2.weight", "neck.conv2_offset.scale"):
        assert current_key(key) == key
