"""What every error message has in common."""

from __future__ import annotations

from sartorius_infer.errors import one_line, size_text, some


def test_sizes_are_printed_height_first() -> None:
    assert size_text((520, 704)) == "520 x 704"
    assert size_text([1, 2]) == "1 x 2"


def test_a_line_is_one_that_any_terminal_takes() -> None:
    assert one_line(ValueError("a\n  b\tü")) == "a b ü"
    assert one_line("\0 \x1b[2J \udce9 \u202e") == "\\x00 \\x1b[2J \\udce9 \\u202e"


def test_a_few_of_many_are_named() -> None:
    assert some([]) == ""
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdef") == "a, b, c, d, e and 1 more"
    assert some([3, 4, 5], most=1, between="; ") == "3 and 2 more"


def test_a_line_is_never_longer_than_one_reads() -> None:
    line = one_line("first" + "\x00" * 5000 + "last")
    assert len(line) < 1010 and line.isprintable()
    assert line.startswith("first\\x00") and line.endswith("last")
