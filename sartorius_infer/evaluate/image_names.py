"""Which image of a truth COCO results mean by an `image_id`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from sartorius_infer.evaluate.true_image import Key, TrueImage, paths_of
from sartorius_infer.files import as_id, whole
from sartorius_infer.images.names import match_names


@dataclass(frozen=True, eq=False)
class ImageNames:
    """Images by name, by the ids that a COCO file gives them, and by what else `called` takes for a name.

    `paths` are those of a COCO file.
    """

    names: Collection[str]
    ids: Mapping[Key, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, truth: Mapping[str, TrueImage]) -> ImageNames:
        """Those of a truth; ids are there where it is COCO's."""
        ids = {key: i for i, image in truth.items() if image.coco for key in image.coco.ids}
        return cls(truth, ids, paths_of(truth))

    def calling(self, said: Iterable[object]) -> ImageNames:
        """With what texts of a file mean that are neither ids nor names, by `match_names`.

        Raises ValueError where two texts would be one image so.
        """
        texts = [text for text in said if isinstance(text, str) and self.by_id(text) is None]
        return replace(self, called=match_names(texts, self.names, self.paths))

    def key(self, said: object) -> Key | None:
        """The id that this is, however a whole number is written; None where it is none."""
        number = whole(said)
        key = str(said) if number is None else number
        return key if key in self.ids else None

    def by_id(self, said: object) -> str | None:
        """The image whose id this is."""
        key = self.key(said)
        return None if key is None else self.ids[key]

    def by_name(self, said: object) -> str | None:
        """The image that is called so."""
        number = whole(said)
        name = as_id(str(number) if number is not None and not isinstance(said, str) else str(said))
        return name if name in self.names else self.called.get(str(said))

    def find(self, said: object) -> str | None:
        """The image by its id, else by its name; None for none.

        Raises ValueError for a text that is one image's id and another's name.
        """
        one, other = self.by_id(said), self.by_name(said)
        if isinstance(said, str) and None not in (one, other) and one != other:
            raise ValueError(
                f"expected an id or a name, found image_id {said!r}, the id of {one} and the name of another "
                "image; write ids as numbers"
            )
        return other if one is None else one

    def require_one_kind(self, numbers: Collection[object]) -> None:
        """Raise ValueError where some of the numbers are ids, and others names alone."""
        ids = [n for n in numbers if self.by_id(n) is not None]
        names = [n for n in numbers if self.by_id(n) is None and self.by_name(n) is not None]
        if ids and names:
            raise ValueError(
                f"expected each image_id to be an id, or each a name, found {ids[0]}, an id, and "
                f"{names[0]}, a name"
            )
