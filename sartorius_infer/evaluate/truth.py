"""True cells, told apart by how they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.true_image import TrueImage as TrueImage
from sartorius_infer.evaluate.true_image import paths_of
from sartorius_infer.files import as_id, as_path
from sartorius_infer.images.names import match_names


def read_truth(path: str | Path) -> dict[str, TrueImage]:
    """True images by id: from Kaggle's train.csv, COCO's JSON, or a folder of label maps.

    Ids are as `files.as_id` spells them. Raises TruthError, naming the file and the image.
    """
    path = as_path(path, "truth")
    found = _reader(path)(path)
    images = {as_id(name): replace(image, id=as_id(name)) for name, image in found.items()}
    if len(images) < len(found):
        twice = next(name for name, count in Counter(map(as_id, found)).items() if count > 1)
        raise TruthError(f"{path}: expected one truth of each image, found two of {twice}")
    return images


def _reader(path: Path) -> Callable[[Path], dict[str, TrueImage]]:
    # Imported where they are used: each brings libraries that the others do not need.
    if path.is_dir():
        from sartorius_infer.evaluate.label_maps import read_label_maps

        return read_label_maps
    if path.suffix.lower() == ".json":
        from sartorius_infer.evaluate.coco_truth import read_coco

        return read_coco
    from sartorius_infer.evaluate.train_csv import read_train_csv

    return read_train_csv


def called_as(truth: Mapping[str, TrueImage], ids: Iterable[str], source: Path) -> dict[str, TrueImage]:
    """A truth under the ids that its images have elsewhere, as `images.names.match_names` finds them.

    What none of `ids` means stays as it is. Raises TruthError that names `source`.
    """
    try:
        names = {known: said for said, known in match_names(ids, truth, paths_of(truth)).items()}
    except ValueError as error:
        raise TruthError(f"{source}: {error}") from None
    return {names.get(i, i): replace(image, id=names.get(i, i)) for i, image in truth.items()}
