"""Colours of classes."""

from __future__ import annotations

from sartorius_infer.cells.colours import PALETTE, class_colours


def test_colours_come_in_order_and_again_where_classes_are_many() -> None:
    assert class_colours(0) == []
    assert class_colours(3) == list(PALETTE[:3])
    assert class_colours(len(PALETTE) + 2) == [*PALETTE, *PALETTE[:2]]
    assert len(set(PALETTE)) == len(PALETTE)
