"""A course's whole way, on a data set of its shape: train, predict, score by class, hand in, check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
from commands import python
from PIL import Image
from pycocotools import mask as coco_mask
from training_factories import write_recipe

from sartorius_infer.types import Float64, UInt8

CLASSES = ("class1", "class2", "class3", "class4")
SIZES = {"0f12cd34-0002": (72, 96), "9e00ef56-0003": (64, 110), "b7c0aa11-0001": (96, 80)}
HELD = {"0f12cd34-0002": ("class1", "class2"), "9e00ef56-0003": ("class4",), "b7c0aa11-0001": CLASSES}
"""The classes of each image: only these have a file."""


def draw(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[UInt8, dict[str, Float64]]:
    """An RGBA picture of stained cells, and label maps of their classes, whose numbers leave some out."""
    height, width = size_hw
    pixels = rng.normal((215, 180, 205), 8, (height, width, 3))
    maps: dict[str, Float64] = {}
    for k, name in enumerate(CLASSES):
        labels = np.zeros(size_hw, np.int32)
        for label in (1, 2, 5):
            centre = int(rng.integers(8, width - 8)), int(rng.integers(8, height - 8))
            cv2.ellipse(labels, centre, (7, 5), float(rng.uniform(0, 180)), 0, 360, label, -1)
        pixels[labels > 0] = np.array([(90, 60, 130), (60, 40, 90), (140, 60, 80), (170, 90, 150)][k])
        maps[name] = labels.astype(np.float64)
    alpha = np.full((height, width, 1), 255.0)
    return np.dstack([pixels, alpha]).clip(0, 255).astype(np.uint8), maps


def write_course(folder: Path) -> Path:
    """`train/<id>/image.tif` with its class maps, and `test_release/` with the list of its ids."""
    rng = np.random.default_rng(0)
    (folder / "test_release").mkdir(parents=True)
    for image_id, size_hw in SIZES.items():
        own = folder / "train" / image_id
        own.mkdir(parents=True)
        pixels, maps = draw(rng, size_hw)
        Image.fromarray(pixels, "RGBA").save(own / "image.tif", compression="tiff_lzw")
        for name in HELD[image_id]:
            lzw = [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_LZW]
            assert cv2.imwrite(str(own / f"{name}.tif"), maps[name], lzw)
        shutil.copy(own / "image.tif", folder / "test_release" / f"{image_id}.tif")
    entries = [
        {"file_name": f"{image_id}.tif", "id": number, "height": size_hw[0], "width": size_hw[1]}
        for number, (image_id, size_hw) in enumerate(reversed(SIZES.items()), start=1)
    ]
    (folder / "test_image_name_to_ids.json").write_text(json.dumps(entries, indent=1))
    return folder


def run(module: str, *words: str | Path, cwd: Path) -> str:
    """What a command says on stdout; it must end well."""
    done = python(module, *words, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_files_are_of_the_course_s_kinds(tmp_path: Path) -> None:
    folder = write_course(tmp_path) / "train" / "b7c0aa11-0001"
    with Image.open(folder / "image.tif") as picture:
        assert (picture.mode, picture.info["compression"]) == ("RGBA", "tiff_lzw")
    stored = cv2.imread(str(folder / "class1.tif"), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    assert (stored.dtype, set(np.unique(stored)) <= {0, 1, 2, 5}) == (np.float64, True)


@pytest.mark.slow
def test_from_training_to_the_hand_in(tmp_path: Path) -> None:
    write_course(tmp_path)
    write_recipe(
        tmp_path / "recipe.toml",
        classes=list(CLASSES),
        rules={"per_class": {name: {"score": 0.05, "mask": 0.3} for name in CLASSES}},
        stages=[{"iterations": 2, "batch": 2, "optimiser": {"kind": "adamw", "lr": 2e-3, "clip": 5.0}}],
    )
    cpu = ["--device", "cpu"]
    train = ["recipe.toml", "--data", "course=train", "--out", "run", "--all"]
    assert "3 images, " in run("training", *train, *cpu, cwd=tmp_path)

    def sartorius(*words: str) -> str:
        return run("sartorius_infer", *words, cwd=tmp_path)

    pictures = [str(path.relative_to(tmp_path)) for path in sorted((tmp_path / "train").glob("*/image.tif"))]
    sartorius(
        "--weights", "run", "--images", *pictures, *cpu, "--out", "trained.json", "--save-predictions", "p"
    )
    assert "images    3 " in sartorius("score", "--truth", "train", "--submission", "trained.json")
    sartorius(
        *(
            "show",
            "--images",
            "train",
            "--recursive",
            "--truth",
            "train",
            "--weights",
            "run/weights_manifest.json",
        ),
        *("--predictions", "p", "--out", "page.html"),
    )

    known, ids = ["--images", "test_release"], ["--image-ids", "test_image_name_to_ids.json"]
    sartorius("--weights", "run", *known, *cpu, "--out", "named.json")
    said = sartorius("score", "--truth", "train", "--submission", "named.json", "--coco")
    assert "images    3 " in said
    assert {*CLASSES, "blind"} <= {line.split()[0] for line in said.split("\ncoco ")[1].splitlines()}

    sartorius("--weights", "run", *known, *ids, *cpu, "--overlaps", "keep", "--out", "results.zip")
    said = sartorius("check", "--submission", "results.zip", *known, *ids)
    assert said.splitlines()[-1] == "results.zip: no problems"
    entries = json.loads(ZipFile(tmp_path / "results.zip").read("test-results.json"))
    sizes = {number: [*size_hw] for number, size_hw in enumerate(reversed(SIZES.values()), start=1)}
    assert entries
    for entry in entries:
        assert entry["segmentation"]["size"] == sizes[entry["image_id"]]
        assert 1 <= entry["category_id"] <= 4
        assert coco_mask.area(entry["segmentation"]) > 0
