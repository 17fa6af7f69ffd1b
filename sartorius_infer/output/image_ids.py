"""The numbers by which a server or a course knows its images: a list of `file_name` and `id`."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from sartorius_infer.errors import SubmissionError, first_line, some
from sartorius_infer.files import as_id, as_path, json_text, whole
from sartorius_infer.images.names import folder_of


@dataclass(frozen=True)
class Listed:
    """One image of a list; `name` is its `file_name`, with `/` between folders."""

    name: str
    number: int
    size_hw: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class ImageIds:
    """A list of images and their numbers; `categories` where the file tells them, as COCO's does."""

    path: Path
    images: tuple[Listed, ...]
    categories: frozenset[int] | None = None

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """The number of each image, by the ids that images have here.

        An id is what `files.as_id` makes of a `file_name` without its suffix and, where that has folders,
        without the first of them. An image in a folder of its own may be called after either in either:
        a_image is a. Raises SubmissionError that names images which the list lacks, and those
        whose name or number is several's.
        """
        found = {image_id: self._find(image_id) for image_id in ids}
        if missing := [image_id for image_id, numbers in found.items() if not numbers]:
            raise SubmissionError(f"{self.path}: expected an id of each image, found none of {some(missing)}")
        owners: dict[int, str] = {}
        for image_id, numbers in found.items():
            if len(numbers) > 1:
                said = " and ".join(map(str, sorted(numbers)))
                raise SubmissionError(f"{self.path}: expected one id of {image_id}, found {said}")
            (number,) = numbers
            if (other := owners.setdefault(number, image_id)) != image_id:
                raise SubmissionError(
                    f"{self.path}: expected one image of id {number}, found {other} and {image_id}"
                )
        return {image_id: number for number, image_id in owners.items()}

    def unused(self, numbers: Iterable[int]) -> list[Listed]:
        """What the list holds beside these numbers."""
        used = set(numbers)
        return [image for image in self.images if image.number not in used]

    def _find(self, image_id: str) -> set[int]:
        name = as_id(image_id)
        for other in (name, folder_of(name), f"{name}_image"):
            if found := self._whole_names.get(other) or self._tails.get(other):
                return found
        return set()

    @cached_property
    def _whole_names(self) -> Mapping[str, set[int]]:
        """Numbers by what a file may be called as a whole."""
        return _by_name((name, image.number) for image in self.images for name in _names(image.name)[:1])

    @cached_property
    def _tails(self) -> Mapping[str, set[int]]:
        """Numbers by what is left of a name without its first folders."""
        return _by_name((name, image.number) for image in self.images for name in _names(image.name))


def read_image_ids(path: str | Path) -> ImageIds:
    """A JSON list of objects with `file_name` and `id`, COCO's JSON, whose `images` is one, or a mapping.

    A mapping gives the number of each name, with or without suffix: {"a.tif": 40}. Of lists other keys are
    ignored, but for `height` and `width`. A number may be written 40.0 or "40". Raises SubmissionError that
    names the file and the entry.
    """
    path = as_path(path, "image ids")
    try:
        content = json.loads(json_text(path), object_pairs_hook=_Object)
    except Exception as error:  # from no file at all to brackets without end
        raise SubmissionError(f"{path}: expected a JSON list of image ids, found {_reason(error)}") from None
    is_coco = isinstance(content, dict) and isinstance(content.get("images"), list | dict)
    entries = content["images"] if is_coco else content
    if is_coco and isinstance(entries, dict):  # as LIVECell writes annotations
        entries = [*entries.values()]
    elif isinstance(entries, _Object):
        entries = _of_mapping(path, entries)
    if not isinstance(entries, list):
        raise SubmissionError(
            f"{path}: expected a list of objects with file_name and id, a mapping of names to ids, or "
            f"COCO's JSON with images, found {type(entries).__name__}"
        )
    images = tuple(dict.fromkeys(_listed(path, place, entry) for place, entry in enumerate(entries, 1)))
    owners: dict[int, str] = {}
    for image in images:
        if (other := owners.setdefault(image.number, image.name)) != image.name:
            raise SubmissionError(
                f"{path}: expected an id for each image, found {image.number} for {other} and {image.name}"
            )
    return ImageIds(path, images, _categories(content.get("categories")) if is_coco else None)


class _Object(dict[str, Any]):
    """An object of JSON, and the keys that it repeats, of which a dict keeps the last alone."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def _of_mapping(path: Path, numbers: _Object) -> list[dict[str, Any]]:
    """Entries of a mapping of names to numbers."""
    if numbers.repeated:
        raise SubmissionError(f"{path}: expected each name once, found {some(numbers.repeated)} twice")
    return [{"file_name": name, "id": number} for name, number in numbers.items()]


def _listed(path: Path, place: int, entry: Any) -> Listed:
    said = entry if isinstance(entry, dict) else {}
    name, number = said.get("file_name"), whole(said.get("id"))
    name = name.replace("\\", "/") if isinstance(name, str) else ""
    if not PurePosixPath(name).name or number is None:
        raise SubmissionError(
            f"{path}: entry {place}: expected a file_name and an id, a whole number, "
            f"found {json.dumps(entry)[:80]}"
        )
    height, width = whole(said.get("height")) or 0, whole(said.get("width")) or 0
    return Listed(name, number, (height, width) if min(height, width) > 0 else None)


def _categories(said: Any) -> frozenset[int] | None:
    """The numbers of COCO's categories; None where it tells none."""
    entries = said if isinstance(said, list) else []
    numbers = (whole(entry.get("id")) for entry in entries if isinstance(entry, dict))
    return frozenset(number for number in numbers if number is not None) or None


def _names(file_name: str) -> list[str]:
    """The ids that an image may have whose file is this, from the whole name to its stem."""
    path = PurePosixPath(file_name)
    parts = path.with_suffix("").parts
    return [*(as_id("/".join(parts[k:])) for k in range(len(parts))), as_id(path.name)]


def _by_name(pairs: Iterator[tuple[str, int]]) -> Mapping[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for name, number in pairs:
        found[name].add(number)
    return dict(found)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"none to read: {error.strerror or error}"
    return f"{type(error).__name__}: {first_line(error)}"
