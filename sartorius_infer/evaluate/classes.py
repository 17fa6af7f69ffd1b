"""Which classes a truth tells, and which of them a submission's labels mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sartorius_infer.evaluate.submissions import Found, FoundCell
from sartorius_infer.evaluate.true_image import Key, Region, TrueImage

_NUMBERED = re.compile(r"class0*([1-9][0-9]{0,8})", re.IGNORECASE)


@dataclass(frozen=True)
class Classes:
    """Classes 1..K of a truth, and of a submission where `untold` is "".

    names        of class k is names[k - 1]
    by_category  the class of each `category_id`; none where the truth tells no such ids
    untold       why the submission's cells cannot be told by class
    """

    names: tuple[str, ...]
    by_category: Mapping[Key, int]
    untold: str

    def of_cell(self, cell: FoundCell) -> int:
        """A found cell's class; 0 for none of them."""
        return self.by_category.get(cell.label, 0) if cell.has_label else int(not self.untold)

    def regions(self, image: TrueImage) -> Iterator[tuple[Region, int]]:
        """What is annotated in an image, crowd regions too, each with its class; 0 for none of them."""
        if image.coco is not None:
            for region in image.coco.regions:
                category = region.category
                yield region, 0 if category is None else self.by_category.get(category, 0)
            return
        for mask, name in zip(image.masks, image.types, strict=True):
            number = self.names.index(name) + 1 if name in self.names else 0
            yield Region(mask, None, float(mask[1].sum()), is_crowd=False), number

    def strangers(self, found: Found) -> Counter[int]:
        """Cells by `category_id` that is none of the truth's."""
        labels = (cell.label for cells in found.values() for cell in cells if cell.has_label)
        return Counter(label for label in labels if label not in self.by_category)


def classes_of(truth: Mapping[str, TrueImage], found: Found, given: Sequence[str] = ()) -> Classes:
    """The classes of a truth, and whether those of a submission can be told.

    COCO's JSON names its categories; `given` names those with ids 1, 2, ... of another truth, and a truth of
    `class1`, `class2`, ... does so itself.
    """
    types = sorted({name for image in truth.values() for name in image.types if name})
    categories = _categories(truth) or dict(enumerate(given, start=1)) or _numbered(types)
    names = _unlike(categories) if categories else tuple(types)
    by_category = {key: number for number, key in enumerate(categories, start=1)}
    return Classes(names, by_category, _untold(names, by_category, found))


def _categories(truth: Mapping[str, TrueImage]) -> dict[Key, str]:
    """Names of COCO's categories, or of those that its annotations use where it lists none."""
    coco = [image.coco for image in truth.values() if image.coco is not None]
    listed = {key: name for image in coco for key, name in image.categories.items()}
    if listed or not coco:
        return listed
    used = {r.category for image in coco for r in image.regions if r.category is not None}
    return {key: str(key) for key in sorted(used, key=str)}


def _unlike(categories: Mapping[Key, str]) -> tuple[str, ...]:
    """Names of categories, with their ids where two have the same."""
    counts = Counter(categories.values())
    return tuple(name if counts[name] == 1 else f"{name} ({key})" for key, name in categories.items())


def _numbered(types: Sequence[str]) -> dict[Key, str]:
    """The types `class1`, `class2`, ... by their numbers; empty where one is called otherwise."""
    found = {name: _NUMBERED.fullmatch(name) for name in types}
    numbers = {int(match[1]): name for name, match in found.items() if match}
    return dict(sorted(numbers.items())) if len(numbers) == len(types) else {}


def _untold(names: Sequence[str], by_category: Mapping[Key, int], found: Found) -> str:
    cells = [cell for cells in found.values() for cell in cells]
    labelled = sum(cell.has_label for cell in cells)
    if not names:
        return "the truth tells no classes"
    if labelled < len(cells) and len(names) > 1:
        return "the submission tells no classes"
    if labelled and not by_category:
        return "the truth tells no category ids; --classes names those of the submission"
    return ""
