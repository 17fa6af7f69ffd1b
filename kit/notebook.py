"""The notebook and its metadata, ready for `kaggle kernels push`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kit.errors import KitError
from kit.wheels import ROOT

SOURCE = ROOT / "kernel"
LONGEST_TITLE = 50
NOTEBOOK, METADATA = "sartorius_infer.ipynb", "kernel-metadata.json"


def require_apart(out: Path, dataset: Path) -> None:
    """Raise KitError for a folder where a notebook would lie over its own source, or in its dataset."""
    if out.resolve() == SOURCE.resolve():
        raise KitError(f"{out}: expected a folder of its own, found the notebook's source")
    if out.resolve().is_relative_to(dataset.resolve()):
        raise KitError(f"{out}: expected a folder of its own, found one in the dataset")


def write_kernel(out: Path, dataset: str) -> None:
    """Copy the notebook to `out`, and its metadata with the ids of `dataset` (USER/SLUG) filled in."""
    metadata = json.loads((SOURCE / METADATA).read_text(encoding="utf-8"))
    owner, _, slug = dataset.partition("/")
    name = f"{slug[: LONGEST_TITLE - len('-submit')].rstrip('-')}-submit"
    metadata |= {
        "id": f"{owner}/{name}",
        "title": name.replace("-", " "),
        "dataset_sources": [dataset],
    }
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SOURCE / NOTEBOOK, out / NOTEBOOK)
    (out / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
