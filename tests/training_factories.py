"""A small data set of drawn cells, and a recipe for a network that trains in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.types import Int32, UInt8
from training.recipe import Recipe
from training.sources import Example, parse_data, read_sources

SIZE_HW = (64, 96)

TINY: dict[str, Any] = {
    "name": "tiny",
    "network": {
        "body": "resnet18",
        "stages": [1, 2],
        "fpn": {"channels": 8, "norm": {"kind": "batch"}},
        "anchors": {"sizes": [[12], [24], [48]], "aspect_ratios": [1]},
        "rpn": {"pre_nms_top_n": 50, "post_nms_top_n": 50},
        "box_head": {"fc_channels": [16, 16]},
        "mask_head": {"conv_channels": [8], "hidden": 8},
        "detection": {"score": 0.05, "nms": 0.5, "per_image": 50},
    },
    "preprocessing": {"normalise": [{"mean": [0.5], "std": [0.2]}], "resize": None},
    "rules": {"per_class": {name: {"score": 0.1} for name in ("shsy5y", "astro", "cort")}},
    "sampling": {"anchors": 32, "rois": 32, "pre_nms_top_n": 50, "post_nms_top_n": 50},
    "augment": {"crop": 64, "vflip": True},
    "ema": {"decay": 0.5},
    "split": {"share": 0.3},
    "validation": {"every": 1000},
    "stages": [{"iterations": 4, "batch": 2, "optimiser": {"kind": "adamw", "lr": 2e-3, "clip": 5.0}}],
}


def make_recipe(**changes: Any) -> Recipe:
    """The tiny recipe with some tables or values replaced."""
    return Recipe.model_validate_json(json.dumps(TINY | changes))


def write_recipe(path: Path, **changes: Any) -> Path:
    """The tiny recipe as a TOML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = TINY | changes
    tree["preprocessing"] = tree["preprocessing"] | {"resize": tree["preprocessing"]["resize"] or "none"}
    path.write_text(to_toml(tree), encoding="utf-8")
    return path


def to_toml(tree: dict[str, Any]) -> str:
    """TOML of a tree: a key a line, tables inline, what is null left out."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in tree.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def _key(key: str) -> str:
    return json.dumps(key)


def draw_cells(rng: np.random.Generator, count: int = 5) -> tuple[UInt8, Int32]:
    """A noisy gray image with bright ellipses, and their label map."""
    labels = np.zeros(SIZE_HW, np.int32)
    for label in range(1, count + 1):
        centre = (int(rng.integers(8, SIZE_HW[1] - 8)), int(rng.integers(8, SIZE_HW[0] - 8)))
        axes = (int(rng.integers(5, 9)), int(rng.integers(4, 7)))
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, label, -1)
    gray = rng.normal(100, 8, SIZE_HW) + 90 * (labels > 0)
    return np.clip(gray, 0, 255).astype(np.uint8), labels


def write_sartorius(folder: Path, images: int = 6, types: tuple[str, ...] = ("cort", "astro")) -> Path:
    """Images and a train.csv; the types in turn."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["id,annotation,width,height,cell_type,sample_id"]
    for number in range(images):
        pixels, labels = draw_cells(rng)
        cv2.imwrite(str(folder / "images" / f"im{number}.png"), pixels)
        for text in encode_label_map(labels, int(labels.max())):
            if text:
                kind = types[number % len(types)]
                rows.append(f"im{number},{text},{SIZE_HW[1]},{SIZE_HW[0]},{kind},plate{number // 2}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def read_examples(folder: Path, recipe: Recipe | None = None) -> tuple[Example, ...]:
    """The examples of one folder."""
    return read_sources(parse_data([f"data={folder}"]), recipe or make_recipe())[0]
