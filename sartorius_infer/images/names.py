"""What names tell: which files are images, which are label maps beside these, which names mean one image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath

from sartorius_infer.files import as_id

TIFF_EXTENSIONS = (".tif", ".tiff")
EXTENSIONS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp")

MAP_ENDS = ("_cp_masks", "_masks")
"""How programs call an image's label map, after the image's own name; the first is Cellpose's."""

_OWN_IMAGE = "image"
_OF_CLASS = "class"
_IN_FOLDER = re.compile(rf"(?<=.)[_/]{_OWN_IMAGE}$", re.IGNORECASE)
_MAP_FOLDERS = ("labels", "masks")


def is_image(name: str) -> bool:
    """Whether a file's name is one of an image, in any letter case."""
    return name.lower().endswith(EXTENSIONS)


def maps_beside(names: Collection[str]) -> set[str]:
    """Those entries of a folder that are label maps of an image beside them.

    `class*` beside `image.*`, `a_masks.*` and `a_cp_masks.*` beside `a.*`, and the folders `labels` and
    `masks` beside `images`.
    """
    stems = {name: PurePath(name).stem.lower() for name in names if is_image(name)}
    images = set(stems.values())
    found = {name for name in names if name in _MAP_FOLDERS and "images" in names}
    for name, stem in stems.items():
        of_class = stem.startswith(_OF_CLASS) and _OWN_IMAGE in images
        if of_class or any(stem.endswith(end) and stem.removesuffix(end) in images for end in MAP_ENDS):
            found.add(name)
    return found


def match_names(
    said: Iterable[str], known: Collection[str], paths: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Which of the `known` ids each text means, where it means one.

    Ids are equal as `files.as_id` spells them. Of what is left over on both sides, a text is an id without
    the suffix of an image ("a.png" is "a"), then without folders ("test/a.png" is "a"), then one of an image
    in a folder of its own: "a_image" is "a", and "image" the only one. It works either way round, and what
    fits several ids fits none. Raises ValueError where two texts would be one image so.

    paths: of ids that were made from a path; a text may then be the path without some of its first folders.
    """
    texts = dict.fromkeys(said)
    found = {text: as_id(text) for text in texts if as_id(text) in known}
    for spell in (_without_suffix, _without_folders, folder_of):
        taken = set(found.values())
        left = [text for text in texts if text not in found]
        free_ids = [image_id for image_id in known if image_id not in taken]
        spelled = {(spell(image_id), image_id) for image_id in free_ids}
        if spell is _without_suffix and paths:
            spelled |= {(tail, image_id) for image_id in free_ids for tail in _tails(paths.get(image_id, ""))}
        counts = Counter(key for key, _ in spelled)
        free = {key: image_id for key, image_id in spelled if counts[key] == 1}
        owners: dict[str, str] = {}
        for text in left:
            if (image_id := free.get(spell(text))) is None:
                continue
            if (other := owners.setdefault(image_id, text)) != text and as_id(other) != as_id(text):
                raise ValueError(f"expected one name of {image_id}, found {other!r} and {text!r}")
            found[text] = image_id
    if len(texts) == len(known) == 1 and not found:
        (text,), (image_id,) = texts, known
        if _OWN_IMAGE in (_without_folders(text).lower(), image_id.lower()):
            return {text: image_id}
    return found


def _tails(path: str) -> set[str]:
    """What a path may be called without its suffix and some of its first folders."""
    parts = path.replace("\\", "/").strip("/").split("/")
    return {_without_suffix("/".join(parts[k:])) for k in range(len(parts))} - {""}


def _without_suffix(text: str) -> str:
    name = text.replace("\\", "/")
    return as_id(name[: name.rindex(".")] if is_image(name) else name)


def _without_folders(text: str) -> str:
    return _without_suffix(text.replace("\\", "/").rstrip("/").rpartition("/")[2])


def folder_of(text: str) -> str:
    """The id of an image by the folder that it has to itself: "a" of "a_image" and of "a/image.tif"."""
    return _IN_FOLDER.sub("", _without_suffix(text))
