"""The real inputs that are mutated: images, annotations, small networks and what is kept of their runs."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from unittest import mock

import cv2
import detectron2_runs
import mmdet_runs
import numpy as np
import torch
from annotated import CLASSES, HIDDEN, SIZE, write_saved
from checkpoint_factories import crop, training_dict
from image_factories import tiff
from PIL import Image
from safetensors.torch import save_file
from small import manifest, small, small_state
from training_factories import write_recipe, write_sartorius

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.instances import Instances
from sartorius_infer.cli.main import main
from sartorius_infer.output.predictions import load_prediction
from sartorius_infer.output.writers import CocoWriter, SubmissionWriter
from sartorius_infer.run import runs
from sartorius_infer.types import UInt8

HW = (64, 96)

PREDICT = ("--weights", "w/weights_manifest.json", "--images", "images", "ok", "--workers", "1")
"""The words of a run over two folders of images."""

TUNE = ("tune", "--predictions", "saved", "--truth", "train.csv", "--weights", "w/weights_manifest.json",
        "--folds", "2", "--out", "out/t.json")  # fmt: skip

JOURNAL = "out/s.csv.journal"
EXPECTED = "expected.csv"
"""A journal, and what a run without one writes."""


def make_scene(folder: Path) -> Path:
    """Everything in `folder`, by relative paths that `kinds` names; the same each time."""
    torch.set_num_threads(1)
    for name in ("ok", "images", "labels", "cells", "ck", "mm", "out"):
        (folder / name).mkdir(parents=True)
    _write_pictures(folder)
    _write_network(folder)
    _write_annotations(folder)
    _write_checkpoints(folder / "ck")
    _write_configs(folder)
    write_recipe(folder / "recipe.toml")
    write_sartorius(folder / "data")
    _write_journal(folder)
    _compile(folder)
    return folder


def _write_pictures(folder: Path) -> None:
    """Pieces of the samples in every format."""
    gray = crop(HW)
    wide = gray.astype(np.uint16) * 257
    colour = np.dstack([gray, gray[::-1], 255 - gray])
    (folder / "ok" / "ok.png").write_bytes(_encoded(".png", crop(HW, 1)))
    images = folder / "images"
    for name, pixels in {"gray": gray, "colour": colour, "wide": wide}.items():
        (images / f"{name}.png").write_bytes(_encoded(".png", pixels))
        (images / f"{name}.tif").write_bytes(tiff(pixels))
        for suffix in (".jpg", ".bmp", ".webp"):
            if pixels.dtype == np.uint8:
                (images / f"{name}{suffix}").write_bytes(_encoded(suffix, pixels))
    Image.fromarray(colour).quantize(16).save(images / "palette.png")
    Image.fromarray(gray).save(images / "lzw.tif", compression="tiff_lzw")
    Image.fromarray(gray).save(images / "packed.tif", compression="packbits")
    Image.fromarray(gray > 100).save(images / "fax.tif", compression="group4")
    (images / "planes.tif").write_bytes(tiff(colour.astype(np.uint16), order=">", t284=2))
    (images / "plain.tif").write_bytes(tiff(gray, compress=bytes, t259=1))


def _encoded(suffix: str, pixels: UInt8) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def _write_network(folder: Path) -> None:
    """A small network that finds cells, and its manifest."""
    model = small()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.5)
        model.rpn.head.cls_logits.weight.normal_(0, 0.5)
    (folder / "w").mkdir()
    save_file(model.state_dict(), folder / "w" / "net.safetensors")
    entry = {
        "file": "net.safetensors",
        "classes": list(CLASSES),
        "sha256": None,
        "preprocessing": {"resize": {"shortest_edge": 64, "longest_edge": 96}},
        "network": {"detection": {"score": 0.05, "nms": 0.5, "per_image": 20}},
    }
    rules = {"per_class": {name: {"score": 0.05, "mask": 0.3, "min_area": 2} for name in CLASSES}}
    manifest(folder / "w", entry, classes=list(CLASSES), rules=rules)
    (folder / "rules.json").write_text(json.dumps(rules))


def _write_annotations(folder: Path) -> None:
    """Saved predictions and their cells: as truth in all its forms, as submissions and results."""
    saved, _ = write_saved(folder)
    cells = [build_instances(load_prediction(path), HIDDEN, CLASSES) for path in sorted(saved.glob("*.npz"))]
    for each in cells:
        pixels = np.full(SIZE, 100, np.uint8) + (each.label_map > 0).astype(np.uint8) * 60
        (folder / "cells" / f"{each.image_id}.png").write_bytes(_encoded(".png", pixels))
        Image.fromarray(each.label_map.astype(np.uint16)).save(folder / "labels" / f"{each.image_id}.tif")
    Image.fromarray(cells[0].label_map.astype(np.uint8)).save(folder / "labels" / "i0.png")
    (folder / "labels" / "i0.tif").unlink()
    with SubmissionWriter(folder / "submission.csv") as csv:
        for each in cells:
            csv.add(each)
    numbers = {each.image_id: 10 + i for i, each in enumerate(cells)}
    for name in ("results.json", "results.zip"):
        with CocoWriter(folder / name, numbers) as results:
            for each in cells:
                results.add(each)
    (folder / "sample.csv").write_text("id,predicted\nok,\ngray,\n")
    listed = [{"file_name": f"{i}.png", "id": number} for i, number in numbers.items()]
    (folder / "ids.json").write_text(json.dumps(listed))
    (folder / "coco.json").write_text(json.dumps(_coco(cells, numbers)))


def _coco(cells: list[Instances], numbers: dict[str, int]) -> dict[str, object]:
    """The cells as COCO's annotations, with outlines and run lengths in turn."""
    size = {"height": SIZE[0], "width": SIZE[1]}
    annotations = [entry for each in cells for entry in each.to_coco(numbers[each.image_id])]
    for i, entry in enumerate(annotations):
        entry |= {"id": i + 1, "iscrowd": 0, "area": 9}
        if i % 2:
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    return {
        "images": [{"id": n, "file_name": f"{i}.png", **size} for i, n in numbers.items()],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": annotations,
    }


def _write_checkpoints(folder: Path) -> None:
    """One network as every kind of file."""
    state, training = small_state(), training_dict(small(), ema={"module": small_state()}, epoch=3)
    save_file(state, folder / "net.safetensors", {"made": "here"})
    torch.save(state, folder / "plain.pth")
    torch.save(training, folder / "run.pth")
    torch.save(training, folder / "older.pth", _use_new_zipfile_serialization=False)
    arrays = OrderedDict((key, tensor.numpy()) for key, tensor in state.items())
    for protocol in (2, 4):
        content = {"model": arrays, "__author__": "here"}
        (folder / f"arrays{protocol}.pkl").write_bytes(pickle.dumps(content, protocol))


def _write_configs(folder: Path) -> None:
    """Checkpoints whose configs lie beside them."""
    detectron2_runs.write_run(folder / "d2")
    values = mmdet_runs.values_of(3)
    config = mmdet_runs.config_of(values, folder / "mm")
    torch.save({"state_dict": mmdet_runs.state_of(config)}, folder / "mm" / "net.pth")


def _write_journal(folder: Path) -> None:
    """The journal of a run that ended before it wrote, and what it would have written."""
    with mock.patch.object(runs, "write", side_effect=OSError), suppress(OSError):
        quiet_main(folder, *PREDICT[:3], "ok", "cells", "--workers", "1", "--resume", "--out", "out/s.csv")
    (part,) = (folder / JOURNAL).glob("*.part")
    part.rename(part.with_name("0.part"))
    quiet_main(folder, *PREDICT[:3], "ok", "cells", "--workers", "1", "--out", EXPECTED)


def _compile(folder: Path) -> None:
    """Have loops compiled here: forks would write them to the cache of numba, which is none of theirs."""
    assert quiet_main(folder, *TUNE) == 0


def quiet_main(folder: Path, *words: str) -> int:
    """The command in this process and in `folder`, without what it says."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return main(words)
    finally:
        os.chdir(before)
