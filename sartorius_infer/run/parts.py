"""The finished tiles of a large image, a file each in a folder of the journal, until all are finished."""

from __future__ import annotations

import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from sartorius_infer.ensemble.parts import Part
from sartorius_infer.files import atomic_file

_ARRAYS = [field.name for field in fields(Part) if field.name != "tile"]


def save_part(folder: Path, part: Part) -> None:
    """Keep a finished tile, whatever happens to the process or its machine after; makes the folder."""
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / f"{part.tile}.npz", "wb") as file:
        np.savez(file, **{name: getattr(part, name) for name in _ARRAYS})


def read_parts(folder: Path) -> dict[int, Part]:
    """What is kept, by tile. A file that is damaged is as good as none: its tile is seen again."""
    found = {}
    for path in folder.glob("*.npz"):
        try:
            # Opened here: of a file that is cut short, numpy leaves open what it opened itself.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                part = Part(**{name: arrays[name] for name in _ARRAYS}, tile=int(path.stem))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
        found[part.tile] = part
    return found
