"""What every error message has in common."""

from __future__ import annotations

from sartorius_infer.errors import size_text


def test_sizes_are_printed_height_first() -> None:
    assert size_text((520, 704)) == "520 x 704"
    assert size_text([1, 2]) == "1 x 2"
