"""Keep what the networks saw: one `.npz` file per image, so that rules can change without them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipInfo

import numpy as np
from numpy.typing import NDArray

from sartorius_infer.errors import PredictionError
from sartorius_infer.files import as_id, as_path, atomic_file, unpacks_to_much
from sartorius_infer.types import Prediction

# Name, dtype, number of axes; lengths are `Prediction`'s to check.
_ARRAYS: dict[str, tuple[type[np.generic], int]] = {
    "boxes": (np.float32, 2),
    "scores": (np.float32, 1),
    "labels": (np.int64, 1),
    "masks": (np.float16, 3),
    "size_hw": (np.int64, 1),
}


def save_prediction(folder: Path, prediction: Prediction) -> Path:
    """Write `<image_id>.npz` into `folder`, made if need be, whole or not at all.

    The id is as `files.as_id` spells it.
    Arrays: boxes float32 (N, 4), scores float32 (N,), labels int64 (N,), masks float16 (N, M, M),
    size_hw int64 (2,), as `Prediction` has them.
    Raises PredictionError if the file cannot be written.
    """
    path = folder / f"{as_id(prediction.image_id)}.npz"
    arrays: dict[str, Any] = {name: getattr(prediction, name) for name in _ARRAYS}
    arrays["size_hw"] = np.array(prediction.size_hw, np.int64)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise PredictionError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def load_prediction(path: str | Path) -> Prediction:
    """Read what `save_prediction` wrote; the image's id is the file's stem. Nothing is unpickled.

    The id is as `files.as_id` spells it. Arrays of other names are ignored. Raises PredictionError if the
    file cannot be read, or its arrays are not those of a prediction: names, dtypes, shapes, scores and
    masks in [0, 1], boxes finite, labels from 1.
    """
    path = as_path(path, "prediction")
    arrays = _read(path)
    _check_arrays(path, arrays)
    height, width = arrays.pop("size_hw").tolist()
    try:
        prediction = Prediction(image_id=as_id(path.stem), size_hw=(height, width), **arrays)
    except ValueError as error:
        raise PredictionError(f"{path}: {error}") from error
    _check_values(path, prediction)
    return prediction


def load_members(folders: Sequence[Path]) -> list[tuple[Prediction, ...]]:
    """For each image, by id, what each folder's member saw in it, in the order of the folders.

    Raises PredictionError for a folder without saved predictions, and where one lacks an image that
    another has.
    """
    stems = [{file.stem for file in folder.glob("*.npz")} for folder in folders]
    everything = sorted(set().union(*stems))
    for folder, mine in zip(folders, stems, strict=True):
        if not mine:
            raise PredictionError(f"{folder}: expected saved predictions (.npz), found none")
        if missing := [image_id for image_id in everything if image_id not in mine]:
            raise PredictionError(
                f"{folder}: expected {missing[0]}.npz, which another member's folder has, found none "
                f"({len(missing)} of {len(everything)} images are missing)"
            )
    return [tuple(load_prediction(folder / f"{i}.npz") for folder in folders) for i in everything]


def saved_files(folder: Path) -> dict[Path, str]:
    """The saved predictions of a folder by image id, each with the name of its fold.

    A folder without predictions of its own may hold one of each fold: what that fold's networks saw in
    the images that they were not trained on. Of other folders the name is "". Raises PredictionError
    where there is no prediction, or two folds have an image in common.
    """
    files = dict.fromkeys(folder.glob("*.npz"), "")
    files = files or {file: file.parent.name for file in folder.glob("*/*.npz")}
    if not files:
        raise PredictionError(f"{folder}: expected saved predictions (.npz), found none")
    ordered: dict[str, Path] = {}
    for file in sorted(files):
        if (other := ordered.setdefault(file.stem, file)) != file:
            raise PredictionError(
                f"{folder}: expected each image in one fold, found {file.stem} in {files[other]} "
                f"and {files[file]}"
            )
    return {ordered[stem]: files[ordered[stem]] for stem in sorted(ordered)}


def require_classes(prediction: Prediction, count: int, source: Path) -> None:
    """Raise PredictionError, naming the folder `source`, unless all labels are of the manifest's classes."""
    found = prediction.labels.max(initial=0)
    if found > count:
        raise PredictionError(
            f"{source}: {prediction.image_id}: expected labels of the manifest's classes, 1..{count}, "
            f"found {found}"
        )


def match_folders(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The folder of each of the networks with these names, in their order.

    A folder named as a network is that one's; the others go, in their order, to the networks that are
    left. Raises PredictionError unless there is one folder for each network, each once.
    """
    if len(folders) != len(names):
        raise PredictionError(
            f"expected one folder of predictions, or one for each of {len(names)} networks "
            f"({', '.join(names)}), found {len(folders)}"
        )
    called = [folder.resolve() for folder in folders]
    for index, folder in enumerate(called):
        if folder in called[:index]:
            raise PredictionError(f"{folders[index]}: expected each folder once, found it again")
    own: dict[str, Path] = {}
    for folder in folders:
        name = Path(os.path.abspath(folder)).name  # of a link its own name, not that of what it leads to
        if name in own:
            raise PredictionError(f"{folder}: expected one folder for {name!r}, found two")
        if name in names:
            own[name] = folder
    rest = iter([folder for folder in folders if folder not in own.values()])
    return [own[name] if name in own else next(rest) for name in names]


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """A prediction's arrays of an `.npz` file."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise PredictionError(f"{path}: expected a .npz file, found a single array")
            with archive:
                _check_names(path, archive.files)
                _check_sizes(path, archive.zip.infolist())  # type: ignore[union-attr]
                return {name: archive[name] for name in _ARRAYS}
    except PredictionError:
        raise
    except OSError as error:
        raise PredictionError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zip, zlib and the header's parser each raise their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PredictionError(
            f"{path}: expected a whole .npz file, found a damaged one ({reason})"
        ) from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise PredictionError unless a prediction's arrays are there."""
    if not set(_ARRAYS) <= set(names):
        raise PredictionError(
            f"{path}: expected arrays {', '.join(_ARRAYS)}, found {', '.join(sorted(names)) or 'none'}"
        )


def _check_sizes(path: Path, entries: Sequence[ZipInfo]) -> None:
    """Raise PredictionError for what unpacks to far more than it is."""
    for entry in entries:
        if entry.filename.removesuffix(".npy") in _ARRAYS and unpacks_to_much(entry, path.stat().st_size):
            raise PredictionError(
                f"{path}: expected arrays as they are saved, found {entry.filename} of "
                f"{entry.compress_size:,} bytes that unpack to {entry.file_size:,}"
            )


def _check_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Raise PredictionError unless dtypes and numbers of axes are those of a prediction."""
    for name, array in arrays.items():
        dtype, axes = _ARRAYS[name]
        if array.dtype != dtype or array.ndim != axes:
            raise PredictionError(
                f"{path}: expected {name} {np.dtype(dtype).name} of {axes} axes, "
                f"found {array.dtype} {array.shape}"
            )
    if arrays["size_hw"].shape != (2,) or arrays["size_hw"].min() < 1:
        raise PredictionError(
            f"{path}: expected size_hw to be 2 positive numbers, found {arrays['size_hw'].tolist()}"
        )


def _check_values(path: Path, prediction: Prediction) -> None:
    """Raise PredictionError unless the values are ones that networks can give."""
    unit = "values in [0, 1]"
    checks = (
        ("boxes", np.isfinite(prediction.boxes), "finite values"),
        ("scores", _in_unit(prediction.scores), unit),
        ("masks", _in_unit(prediction.masks), unit),
        ("labels", prediction.labels >= 1, "values from 1"),
    )
    for name, good, expected in checks:
        if not good.all():
            found = getattr(prediction, name)[~good].ravel()[0]
            raise PredictionError(f"{path}: expected {name} to be {expected}, found {found}")


def _in_unit(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where values are in [0, 1], give or take the rounding of a mean; NaN is not."""
    return (values >= 0) & (values <= 1.001)
