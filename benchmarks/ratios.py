"""The kit against what users run today."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks import kit, opponents
from benchmarks.agreed import AgreedModel, AgreedNetwork
from benchmarks.networks import LEAST_AREA, SCORE, random_r50
from benchmarks.timing import Row, against, alternate
from sartorius_infer.instances import build_instances
from sartorius_infer.metric import score_image
from sartorius_infer.passes import image_tensor
from sartorius_infer.rle import encode_coco, encode_label_map, split_label_map
from sartorius_infer.rules import ClassRule, Rules
from sartorius_infer.types import Bool, CellImage, Float32, Prediction

SIZE_HW = (520, 704)
FLIPS = ("identity", "hflip", "vflip", "rot180")


def one_network(image: CellImage, cells: int, rounds: int, device: torch.device) -> Iterator[Row]:
    """An R50 on one image, against the usual notebook."""
    with TemporaryDirectory() as folder:
        subject = random_r50(image_tensor(image)[:1], cells, Path(folder))
        model = subject.model.to(device)
        for fast in kit.kinds(device):
            ensemble = kit.load(subject.manifest, device, fast)
            yield against(
                f"one R50, {cells} cells, {kit.words(device, fast)}",
                lambda: opponents.notebook(model, image.pixels, subject.floors, LEAST_AREA, device),
                lambda ensemble=ensemble: kit.rows(ensemble, image),  # type: ignore[misc]
                rounds,
                "3",
            )


def three_networks(image: CellImage, cells: int, device: torch.device) -> Iterator[Row]:
    """Three R50s in four flips, against all masks of all of them merged by NMS; once, for its length."""
    drawn = drawn_cells(cells)
    with TemporaryDirectory() as folder:
        subject = random_r50(image_tensor(image)[:1], cells, Path(folder))
        theirs = [AgreedModel(subject.model.to(device), drawn, opponents.FLIPS, device)] * 3
        contenders: dict[str, Callable[[], object]] = {
            "opponent": lambda: opponents.notebook_ensemble(
                theirs, image.pixels, subject.floors, LEAST_AREA, device
            )
        }
        for fast in kit.kinds(device):
            ensemble = kit.load(subject.manifest, device, fast).with_overrides(views=FLIPS)
            agreed = replace(ensemble.members[0], network=AgreedNetwork(ensemble.members[0].network, drawn))
            contenders[kit.words(device, fast)] = partial(
                kit.rows, replace(ensemble, members=(agreed,) * 3), image
            )
        times = alternate(contenders, rounds=1, warm_up=0)
    opponent = times.pop("opponent").median
    goal = "10" if device.type == "cuda" else "5"
    for words, taken in times.items():
        what = f"three R50s x four flips, {cells} cells, {words}"
        yield Row(what, opponent, taken.median, opponent / taken.median, goal)


def rest(rounds: int) -> Iterator[Row]:
    """What comes after the networks, on 700 drawn cells, against loops and pycocotools."""
    prediction = drawn_cells(700)
    grids = torch.from_numpy(prediction.masks.astype(np.float32))[:, None]
    boxes, scores = torch.from_numpy(prediction.boxes), torch.from_numpy(prediction.scores)
    labels = torch.from_numpy(prediction.labels)

    def loops() -> list[str]:
        canvases = paste_masks_in_image(grids, boxes, SIZE_HW)
        return opponents.rows(canvases, scores, labels, [SCORE], LEAST_AREA)

    rules = Rules(
        per_class={"cell": ClassRule(score=SCORE, min_area=LEAST_AREA)},
        overlap_survival=0,
        paste="torchvision",
    )

    def ours() -> list[str]:
        cells = build_instances(prediction, rules, ["cell"])
        return encode_label_map(cells.label_map, len(cells))

    yield against("Prediction to RLE, 700 cells", loops, ours, rounds, "30")
    cells = build_instances(prediction, rules, ["cell"])
    label_map, count = cells.label_map, len(cells)
    stack = np.asfortranarray(np.stack([label_map == n + 1 for n in range(count)], axis=-1).astype(np.uint8))
    yield against(
        f"label map of {count} cells to COCO RLE, against pycocotools",
        lambda: coco.encode(stack),
        lambda: encode_coco(label_map, count),
        rounds,
        "3",
    )
    runs, shifted = split_label_map(label_map, count), np.roll(label_map, 2, axis=1)
    truth, found, other = coco.encode(stack), encode_coco(shifted, count), split_label_map(shifted, count)
    yield against(
        f"IoU of {count} x {count} cells and the score, against pycocotools' IoU alone",
        lambda: coco.iou(truth, found, [0] * count),
        lambda: score_image("image", runs, other, label_map.size),
        rounds,
    )


def drawn_cells(count: int, seed: int = 0) -> Prediction:
    """Ellipses of a dense image's sizes, all over it, best first."""
    rng = np.random.default_rng(seed)
    half = rng.uniform(7, 16, (count, 2))
    centre = rng.random((count, 2)) * (SIZE_HW[1], SIZE_HW[0])
    boxes: Float32 = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    boxes = boxes.clip(0, (SIZE_HW[1], SIZE_HW[0]) * 2).astype(np.float32)
    y, x = np.mgrid[:28, :28] / 13.5 - 1
    inside: Bool = x**2 + y**2 < 1
    masks = np.repeat(np.where(inside, 0.9, 0.1)[None], count, axis=0).astype(np.float16)
    scores = np.sort(rng.uniform(SCORE, 1, count))[::-1].astype(np.float32)
    labels = np.ones(count, np.int64)
    return Prediction("image", SIZE_HW, boxes, scores, labels, masks, np.zeros((count, 1), np.float32))
