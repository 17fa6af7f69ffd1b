"""The colours of classes, the same in every picture and on every page."""

from __future__ import annotations

from itertools import cycle, islice

# Okabe and Ito, "Color Universal Design" (2008), those that stand out on gray, clearest
# first: told apart with any kind of colour vision.
PALETTE = (
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (240, 228, 66),  # yellow
    (204, 121, 167),  # reddish purple
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
)


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """The colours, RGB, of the first `count` classes, in label order."""
    return list(islice(cycle(PALETTE), count))
