"""Runs README's Python blocks one after the other, as in one notebook; says of each how it ended.

    python readme_blocks.py RESULT.json < BLOCKS.json

Names that the text around a block describes, and the block does not make, are given.
"""

from __future__ import annotations

import ast
import json
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.evaluate.truth import read_truth
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.manifest import Manifest, load_manifest
from sartorius_infer.output.predictions import load_prediction


@cache
def manifest() -> Manifest:
    return load_manifest(Path("weights_manifest.json")).manifest


@cache
def files() -> Any:
    return find_images([Path("train")])


def predictions() -> Any:
    return [load_prediction(Path("soft") / f"{file.id}.npz") for file in files()]


def instances() -> Any:
    return build_instances(predictions()[1], manifest().rules, manifest().classes)


GIVEN: dict[str, Callable[[], Any]] = {
    "classes": lambda: manifest().classes,
    "files": files,
    "image": lambda: read_image(files()[1]),
    "instances": instances,
    "masks": lambda: split_label_map(instances().label_map, len(instances())),
    "predictions": predictions,
    "rules": lambda: manifest().rules,
    "truth": lambda: read_truth(Path("train.csv")),
}


def given(source: str) -> dict[str, Any]:
    """What a block reads and does not make itself, as the text before it says."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    made = {node.id for node in found if isinstance(node.ctx, ast.Store)}
    values = {node.id: GIVEN[node.id]() for node in found if node.id in GIVEN and node.id not in made}
    if "image" in values and ".segment(image" in source:
        values["image"] = values["image"].pixels
    return values


def main() -> None:
    results: list[str | None] = []
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(json.load(sys.stdin)):
        try:
            names |= given(source)
            exec(compile(source, f"block {number}", "exec"), names)
            results.append(None)
        except Exception:
            results.append(traceback.format_exc())
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
