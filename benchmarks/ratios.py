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
from benchmarks.networks import LEAST_AREA, SCORE, Subject, random_r50
from benchmarks.timing import Row, against, against_all
from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import encode_coco, encode_label_map, split_label_map
from sartorius_infer.ensemble.passes import image_tensor
from sartorius_infer.evaluate.metric import score_image
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.types import Bool, CellImage, Float32, Prediction

SIZE_HW = (520, 704)
FLIPS = ("identity", "hflip", "vflip", "rot180")
NUMBERS = ("no", "one", "two", "three", "four")


def one_network(image: CellImage, cells: int, rounds: int, device: torch.device) -> Iterator[Row]:
    """An R50 on one image, against the usual notebook."""
    with TemporaryDirectory() as folder:
        subject = random_r50(image_tensor(image)[:1], cells, Path(folder))
        yield from against_notebook(subject, image, f"one R50, {cells} cells", rounds, device)


def against_notebook(
    subject: Subject, image: CellImage, what: str, rounds: int, device: torch.device
) -> Iterator[Row]:
    """A network on one image, against the usual notebook."""
    model = subject.model.to(device)

    def opponent() -> object:
        return opponents.notebook(model, image.pixels, subject.floors, LEAST_AREA, device)

    contenders = {
        precision: partial(kit.rows, kit.load(subject.manifest, device, precision), image)
        for precision in kit.precisions(device)
    }
    yield from against_all(what, opponent, contenders, rounds, "3")


def ensemble(image: CellImage, cells: int, networks: int, flips: int, device: torch.device) -> Iterator[Row]:
    """R50s in flips, against all masks of all of them merged by NMS; once, for its length."""
    with TemporaryDirectory() as folder:
        subject = random_r50(image_tensor(image)[:1], cells, Path(folder))
        what = f"{NUMBERS[networks]} R50s x {NUMBERS[flips]} flips, {cells} cells"
        yield from against_merged(subject, image, drawn_cells(cells), what, (networks, flips), device)


def against_merged(
    subject: Subject,
    image: CellImage,
    drawn: Prediction,
    what: str,
    counts: tuple[int, int],
    device: torch.device,
) -> Iterator[Row]:
    """`counts` of networks and flips that agree on `drawn` cells, against masks merged by NMS; once."""
    networks, flips = counts
    views, axes = FLIPS[:flips], opponents.FLIPS[:flips]
    theirs = [AgreedModel(subject.model.to(device), drawn, axes, device)] * networks

    def opponent() -> object:
        floors = subject.floors
        return opponents.notebook_ensemble(theirs, image.pixels, floors, LEAST_AREA, axes, device)

    contenders: dict[str, Callable[[], object]] = {}
    for precision in kit.precisions(device):
        whole = kit.load(subject.manifest, device, precision).with_overrides(views=views)
        agreed = replace(whole.members[0], network=AgreedNetwork(whole.members[0].network, drawn))
        contenders[precision] = partial(kit.rows, replace(whole, members=(agreed,) * networks), image)
    goal = "10" if device.type == "cuda" else "5"
    yield from against_all(what, opponent, contenders, 1, goal, warm_up=0)


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

    cells = build_instances(prediction, rules, ["cell"])
    # Once, for the loops' length; the line above has warmed up the kit's side.
    yield from against_all("Prediction to RLE, 700 cells", loops, {"": ours}, 1, "30", warm_up=0)
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
        lambda: score_image("image", runs, other),
        rounds,
        "1",
    )


def drawn_cells(count: int, seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> Prediction:
    """Ellipses of a dense image's sizes, all over it, best first."""
    rng = np.random.default_rng(seed)
    half = rng.uniform(7, 16, (count, 2))
    centre = rng.random((count, 2)) * (size_hw[1], size_hw[0])
    boxes: Float32 = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    boxes = boxes.clip(0, (size_hw[1], size_hw[0]) * 2).astype(np.float32)
    y, x = np.mgrid[:28, :28] / 13.5 - 1
    inside: Bool = x**2 + y**2 < 1
    masks = np.repeat(np.where(inside, 0.9, 0.1)[None], count, axis=0).astype(np.float16)
    scores = np.sort(rng.uniform(SCORE, 1, count))[::-1].astype(np.float32)
    labels = np.ones(count, np.int64)
    return Prediction("image", size_hw, boxes, scores, labels, masks)
