"""Everything that is wrong with COCO results, whoever wrote them, before a server or a course says so."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from sartorius_infer.cells.rle import (
    Mask,
    coco_pixels,
    decode_coco_columns,
    mask_areas_and_boxes,
    shared_pixels,
)
from sartorius_infer.errors import size_text, some
from sartorius_infer.files import as_id, as_path, whole
from sartorius_infer.output.check import Problem
from sartorius_infer.output.image_ids import ImageIds
from sartorius_infer.output.results import read_results
from sartorius_infer.types import MAX_PIXELS

Key = int | str
"""An image as results name it: a number of a list of ids, or an image's own id."""

_LEAST_OVERLAP = 0.5
"""IoU of a `bbox` and its mask's own box: less is another cell's, or other units."""


@dataclass(frozen=True)
class Checked:
    """What is wrong with results, whose `line`s count entries from 1, and what else is worth knowing."""

    problems: list[Problem]
    notes: list[str]


def check_results(
    path: str | Path,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    sample_ids: Sequence[str] | None = None,
    image_ids: ImageIds | None = None,
) -> Checked:
    """Everything wrong with COCO results (`.json`, or one in a `.zip`), by entry.

    sizes       (H, W) of each image, by its id; without them the list's own, if it tells any
    sample_ids  ids that alone may occur
    image_ids   the list whose numbers the results name; without one they name images' ids

    An image without cells has no entry, and no order is asked for. That cells share pixels is a note,
    since COCO allows it. Raises SubmissionError if the file cannot be read at all, or the list lacks an
    image.
    """
    checker = _Checker(_known(sizes, sample_ids, image_ids))
    for place, entry in enumerate(read_results(as_path(path, "submission")), start=1):
        checker.add(place, entry)
    return Checked(checker.problems, [*checker.notes()])


@dataclass(frozen=True)
class _Known:
    """What results are held against.

    `keys` are the images that each source names, `sizes` theirs where known; `numbered` where a list of ids
    gives the keys, whose `categories` may be known too.
    """

    keys: Mapping[str, Mapping[Key, str]]
    sizes: dict[Key, tuple[int, int]]
    numbered: bool
    categories: frozenset[int] | None


def _known(
    sizes: Mapping[str, tuple[int, int]] | None, sample_ids: Sequence[str] | None, image_ids: ImageIds | None
) -> _Known:
    sources: dict[str, Sequence[str] | Mapping[str, tuple[int, int]] | None] = {
        "the sample submission": sample_ids,
        "the images": sizes,
    }
    given = {name: dict.fromkeys(ids) for name, ids in sources.items() if ids is not None}
    if image_ids is None:
        own: dict[str, dict[Key, str]] = {name: {as_id(i): i for i in ids} for name, ids in given.items()}
        named: dict[Key, tuple[int, int]] = {as_id(i): size_hw for i, size_hw in (sizes or {}).items()}
        return _Known(own, named, numbered=False, categories=None)
    numbers = image_ids.numbers(dict.fromkeys(i for ids in given.values() for i in ids))
    keys: dict[str, dict[Key, str]] = {"the list of ids": {e.number: e.name for e in image_ids.images}}
    keys |= {name: {numbers[i]: i for i in ids} for name, ids in given.items()}
    told: dict[Key, tuple[int, int]] = {e.number: e.size_hw for e in image_ids.images if e.size_hw}
    told |= {numbers[i]: size for i, size in (sizes or {}).items()}
    return _Known(keys, told, numbered=True, categories=image_ids.categories)


@dataclass
class _Checker:
    """One entry after another; the sound masks of each image are kept, to be compared."""

    known: _Known
    problems: list[Problem] = field(default_factory=list)
    masks: dict[Key, dict[str, Mask]] = field(default_factory=dict)
    categories: Counter[int] = field(default_factory=Counter)
    repeated: int = 0
    loose_boxes: int = 0

    def add(self, place: int, entry: Any) -> None:
        """Check an entry; each part of it by itself."""
        if not isinstance(entry, dict):
            self.problems.append(Problem(place, "", f"expected an object, found {type(entry).__name__}"))
            return
        key, said = None, entry.get("image_id")
        name = str(said)[:80] if isinstance(said, str | int | float) else ""
        with self._noting(place, name):
            key = _key(entry, self.known)
        with self._noting(place, name):
            self.categories[_category(entry, self.known.categories)] += 1
        with self._noting(place, name):
            _require_score(entry)
        with self._noting(place, name):
            size_hw, counts = _rle(entry)
            self._require_size(key, size_hw)
            mask = _mask(counts, size_hw)
            self._keep(key, counts, mask)
            self.loose_boxes += not _is_tight(entry, mask, size_hw)

    @contextmanager
    def _noting(self, place: int, name: str) -> Iterator[None]:
        """Turn a ValueError into a problem."""
        try:
            yield
        except ValueError as error:
            self.problems.append(Problem(place, name, str(error)))

    def _require_size(self, key: Key | None, size_hw: tuple[int, int]) -> None:
        """Raise ValueError unless the size is the image's, or else that of its first entry."""
        expected = size_hw if key is None else self.known.sizes.setdefault(key, size_hw)
        if size_hw != expected:
            raise ValueError(f"expected an RLE of {size_text(expected)} pixels, found {size_text(size_hw)}")

    def _keep(self, key: Key | None, counts: str, mask: Mask) -> None:
        if key is not None:
            own = self.masks.setdefault(key, {})
            self.repeated += counts in own
            own[counts] = mask

    def notes(self) -> Iterator[str]:
        """What is no fault, but worth knowing."""
        told = ", ".join(f"{category}: {count}" for category, count in sorted(self.categories.items()))
        yield f"{_count(self.categories.total(), 'cell')} by category_id: {told or 'none'}"
        expected = dict(pair for keys in self.known.keys.values() for pair in keys.items())
        without = [name for key, name in expected.items() if key not in self.masks]
        if without:
            yield f"{_count(len(without), 'image')} without cells: {some(without)}"
        shared = [len(shared_pixels([*own.values()])) for own in self.masks.values()]
        if any(shared):
            images = sum(pairs > 0 for pairs in shared)
            yield f"{_count(sum(shared), 'pair')} of cells share pixels, in {_count(images, 'image')}"
        if self.repeated:
            yield f"{_count(self.repeated, 'cell')} with the mask of another one of the image"
        if self.loose_boxes:
            yield f"{_count(self.loose_boxes, 'bbox', 'bboxes')} not drawn around the mask itself"


def _key(entry: Mapping[str, Any], known: _Known) -> Key:
    """The image of an entry, one that every source knows."""
    said = entry.get("image_id")
    number = None if isinstance(said, str) else whole(said)
    if not isinstance(said, str) and number is None:
        raise ValueError(f"expected an image_id, a number or a text, found {_shown(said)}")
    if known.numbered and number is None:
        raise ValueError(f"expected an image_id of the list of ids, a whole number, found {_shown(said)}")
    key: Key = (
        number if known.numbered and number is not None else as_id(str(said if number is None else number))
    )
    if absent := [name for name, keys in known.keys.items() if key not in keys]:
        advice = "; --image-ids tells what numbers mean" * (number is not None and not known.numbered)
        raise ValueError(f"unknown id: not in {' or '.join(absent)}{advice}")
    return key


def _category(entry: Mapping[str, Any], categories: frozenset[int] | None) -> int:
    said = entry.get("category_id")
    number = None if isinstance(said, str) else whole(said)
    if number is not None and (number >= 1 if categories is None else number in categories):
        return number
    expected = "from 1" if categories is None else f"of {some(sorted(categories))}"
    raise ValueError(f"expected a category_id {expected}, found {_shown(said)}")


def _require_score(entry: Mapping[str, Any]) -> None:
    said = entry.get("score")
    # NaN is in no range.
    if not _is_number(said) or not 0 <= said <= 1:
        raise ValueError(f"expected a score in [0, 1], found {_shown(said)}")


def _rle(entry: Mapping[str, Any]) -> tuple[tuple[int, int], str]:
    """Size and counts of a compressed RLE, the only mask that `loadRes` takes."""
    said = entry.get("segmentation")
    if not isinstance(said, dict):
        kind = "polygons" if isinstance(said, list) and said else _shown(said)
        raise ValueError(f"expected a segmentation of size and counts, compressed, found {kind}")
    size, counts = said.get("size"), said.get("counts")
    sides = [whole(side) or 0 for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"expected a size of [height, width], found {_shown(size)}")
    if not isinstance(counts, str):
        kind = "uncompressed ones" if isinstance(counts, list) else _shown(counts)
        raise ValueError(f"expected compressed counts, a text, found {kind}")
    return (sides[0], sides[1]), counts


def _mask(counts: str, size_hw: tuple[int, int]) -> Mask:
    """Column-major runs of a mask with pixels, whose counts end where the image does."""
    mask = decode_coco_columns(counts, size_hw)
    # pycocotools leaves the pixels behind the last count as they were in memory.
    if (told := coco_pixels(counts)) != size_hw[0] * size_hw[1]:
        raise ValueError(f"expected counts of {size_text(size_hw)} pixels, found {told}")
    if len(mask[0]) == 0:
        raise ValueError("expected a mask with pixels, found an empty one")
    return mask


def _is_tight(entry: Mapping[str, Any], mask: Mask, size_hw: tuple[int, int]) -> bool:
    """Whether `bbox`, if there, is the mask's own, give or take a pixel; a network's may well be another.

    Raises ValueError where it cannot be a box of this mask: corners instead of a size, another place.
    """
    said = entry.get("bbox")
    if said is None or said == []:
        return True
    if not isinstance(said, list) or len(said) != 4 or not all(map(_is_number, said)):
        raise ValueError(f"expected a bbox [x, y, width, height], found {_shown(said)}")
    # Column-major runs are those of the transposed image.
    top, left, height, width = mask_areas_and_boxes([mask], size_hw[0])[1][0].tolist()
    own = left, top, width, height
    if all(abs(a - b) <= 1 for a, b in zip(said, own, strict=True)):
        return True
    corners = left, top, left + width, top + height
    is_corners = all(abs(a - b) <= 1 for a, b in zip(said, corners, strict=True))
    if is_corners or _overlap(said, own) < _LEAST_OVERLAP:
        raise ValueError(f"expected a bbox [x, y, width, height] around {[*own]}, found {_shown(said)}")
    return False


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The IoU of two boxes xywh; 0 where one has no area."""
    width, height = (
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis])
        for axis in (0, 1)
    )
    if not (width > 0 and height > 0):  # NaN too
        return 0.0
    return width * height / (one[2] * one[3] + other[2] * other[3] - width * height)


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether JSON's value is a number, and none beyond all images; NaN may be one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > MAX_PIXELS


def _shown(value: object) -> str:
    """What was found, in a few characters."""
    return "none" if value is None else reprlib.repr(value)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"
