"""Which views, fusions and rules help: the tables of docs/findings.md.

python -m benchmarks.findings --images DIR --truth train.csv [more.csv] --keep DIR > tables.md

Each network looks at each image once in each view; every fusion then goes on from the same features.
Predictions are kept in --keep, so a run that was stopped goes on, and rules are compared without
networks. Each row is compared with its table's first by paired bootstrap over images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import image_tensor, predict
from sartorius_infer.evaluate.metric import score_image
from sartorius_infer.evaluate.scoring import Score, compare
from sartorius_infer.evaluate.truth import TrueImage, read_truth
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.manifest.preprocessing import Normalise
from sartorius_infer.manifest.rules import EdgeThresholds, Rules
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks.base import Detections, Features, Network
from sartorius_infer.output.predictions import load_prediction, save_prediction
from sartorius_infer.types import CellImage, Prediction

SINGLE = (
    *("identity", "hflip", "vflip", "rot180", "rot90", "rot270", "transpose", "transverse"),
    *("scale:0.8", "scale:1.25"),
)
FLIPS = ("identity", "hflip", "vflip", "rot180")
FAINTEST = 0.15
"""Boxes below this score get no mask: no threshold that is tried here keeps them."""

POOLED = "4 flips, pooled"
ONE_VIEW = "4 flips, masks of one view"
SHIFTS = tuple(round(0.05 * k, 2) for k in range(-3, 5))


@dataclass(frozen=True)
class Setup:
    """One way to look and to fuse."""

    views: tuple[str, ...]
    fusion: Fusion = field(default_factory=Fusion)


def setups() -> dict[str, Setup]:
    """Everything that needs a network, by name."""
    named = {view: Setup((view,)) for view in SINGLE}
    named |= {
        "identity + hflip": Setup(("identity", "hflip")),
        "identity + 2 scales": Setup(("identity", "scale:0.8", "scale:1.25")),
        "4 flips": Setup(FLIPS),
        "8 flips and turns": Setup(SINGLE[:8]),
    }
    for method in ("nms", "soft_nms", "nmw"):
        named[f"4 flips, {method}"] = Setup(FLIPS, Fusion(method=method, iou=0.5))
    for iou in (0.4, 0.5, 0.7):
        named[f"4 flips, wbf over IoU {iou}"] = Setup(FLIPS, Fusion(iou=iou))
    return named


class Remembering:
    """A network that keeps, for one image, what it saw in each view."""

    def __init__(self, network: Network) -> None:
        self.network, self.class_count = network, network.class_count
        self._seen: dict[View, tuple[Features, list[Tensor], list[Detections]]] = {}

    def to(self, device: torch.device) -> Remembering:
        """Where the network is, this is too."""
        self.network = self.network.to(device)
        return self

    def forget(self) -> None:
        """Before the next image."""
        self._seen.clear()

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        """As the network's; the first time in a view it also proposes and detects."""
        if view not in self._seen:
            features = self.network.features(images, view)
            proposals = self.network.propose(features)
            self._seen[view] = features, proposals, self.network.detect(features, proposals)
        return self._seen[view][0]

    def propose(self, features: Features) -> list[Tensor]:
        """What was proposed."""
        return next(proposals for own, proposals, _ in self._seen.values() if own is features)

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        """What was detected."""
        return next(found for own, _, found in self._seen.values() if own is features)

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        """The network's."""
        return self.network.mask_probabilities(features, boxes, labels)


def look(ensemble: Ensemble, image: CellImage, setup: Setup) -> Prediction:
    """What the ensemble sees under a setup."""
    manifest = ensemble.manifest.model_copy(update={"views": setup.views, "fusion": setup.fusion})
    strong = replace(ensemble, manifest=manifest)
    return predict(strong, [image], lambda scores, labels: scores >= FAINTEST)[0]


def with_masks_of_one_view(ensemble: Ensemble, image: CellImage, seen: Prediction) -> Prediction:
    """The same boxes with the masks that the first network gives them in the image as it is."""
    member = ensemble.members[0]
    features = member.network.features([image_tensor(image)])
    labels = member.from_manifest[torch.from_numpy(seen.labels)]
    with torch.inference_mode():
        masks = member.network.mask_probabilities(features, [torch.from_numpy(seen.boxes)], [labels])[0]
    return replace(seen, masks=masks.half().numpy())


def run_networks(arguments: argparse.Namespace, truth: Mapping[str, TrueImage]) -> None:
    """Predict under every setup, an image at a time."""
    ensemble = load_ensemble(arguments.weights, torch.device("cpu"), torch.float32)
    keepers = [Remembering(member.network) for member in ensemble.members]
    members = tuple(replace(m, network=k) for m, k in zip(ensemble.members, keepers, strict=True))
    ensemble = replace(ensemble, members=members)
    for file in tqdm([f for f in find_images(arguments.images) if f.id in truth], unit=" image"):
        for keeper in keepers:
            keeper.forget()
        for name, setup in setups().items():
            folder = arguments.keep / name
            if not (folder / f"{file.id}.npz").exists():
                save_prediction(folder, look(ensemble, read_image(file), setup))
        folder = arguments.keep / ONE_VIEW
        if not (folder / f"{file.id}.npz").exists():
            seen = load_prediction(arguments.keep / "4 flips" / f"{file.id}.npz")
            save_prediction(folder, with_masks_of_one_view(ensemble, read_image(file), seen))
    _as_imagenet(arguments, ensemble, keepers, truth)


def _as_imagenet(
    arguments: argparse.Namespace,
    ensemble: Ensemble,
    keepers: Sequence[Remembering],
    truth: Mapping[str, TrueImage],
) -> None:
    """The same networks given images normalised as ImageNet's, not as their own."""
    normalise = (Normalise(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),)
    for keeper in keepers:
        network: Any = keeper.network
        network.preprocessing = network.preprocessing.model_copy(update={"normalise": normalise})
    for file in tqdm([f for f in find_images(arguments.images) if f.id in truth], unit=" image"):
        for keeper in keepers:
            keeper.forget()
        folder = arguments.keep / "ImageNet's normalisation"
        if not (folder / f"{file.id}.npz").exists():
            save_prediction(folder, look(ensemble, read_image(file), Setup(("identity",))))


def pool(keep: Path) -> None:
    """All cells of four flips side by side, nothing fused: what the rules for overlaps must then sort out."""
    for path in sorted((keep / FLIPS[0]).glob("*.npz")):
        parts = [load_prediction(keep / view / path.name) for view in FLIPS]
        fields = ("boxes", "scores", "labels", "masks")
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in fields
        }
        save_prediction(keep / POOLED, replace(parts[0], **joined))


class Bench:
    """Scores of kept predictions under rules."""

    def __init__(
        self, keep: Path, truth: Mapping[str, TrueImage], rules: Rules, classes: Sequence[str]
    ) -> None:
        self.keep, self.truth, self.rules, self.classes = keep, truth, rules, classes

    def score(self, setup: str, rules: Rules | None = None) -> Score:
        """Of all images."""
        images, types = [], []
        for path in sorted((self.keep / setup).glob("*.npz")):
            truth = self.truth[path.stem]
            cells = build_instances(load_prediction(path), rules or self.rules, self.classes)
            found = split_label_map(cells.label_map, len(cells))
            images.append(score_image(truth.id, truth.masks, found))
            types.append(truth.cell_type)
        return Score(tuple(images), tuple(types))

    def shifted(self, setup: str) -> tuple[float, float]:
        """The best score when all score thresholds move together, and by how much."""
        scores = [(self.score(setup, self._shift(by)).mean, -abs(by), by) for by in SHIFTS]
        best, _, by = max(scores)
        return best, by

    def _shift(self, by: float) -> Rules:
        moved = {
            name: self.rules.of(name).model_copy(
                update={"score": float(np.clip(self.rules.of(name).score + by, 0, 1))}
            )
            for name in self.classes
        }
        return self.rules.model_copy(update={"per_class": moved})

    def with_class(self, **changes: Any) -> Rules:
        """The rules with the same change for every class; callables take the class's rule."""
        changed = {
            name: self.rules.of(name).model_copy(
                update={k: v(self.rules.of(name)) if callable(v) else v for k, v in changes.items()}
            )
            for name in self.classes
        }
        return self.rules.model_copy(update={"per_class": changed})


def tables(bench: Bench) -> Iterator[str]:
    """Every table as Markdown."""
    yield "### Views\n\n" + _table(bench, [(name, name, None) for name in SINGLE])
    together = ["identity", "identity + hflip", "4 flips", "8 flips and turns", "identity + 2 scales"]
    yield "### Views together\n\n" + _table(bench, [(n, n, None) for n in together], shift=True)
    fused = ["identity", "4 flips", *(n for n in setups() if n.startswith("4 flips, "))]
    yield "### Fusion of four flips\n\n" + _table(bench, [(n, n, None) for n in fused], shift=True)
    survivals = {
        f"pooled, survival {s}": bench.rules.model_copy(update={"overlap_survival": s}) for s in (0.0, 0.7)
    }
    rows = [("identity", "identity", None), *((name, POOLED, rules) for name, rules in survivals.items())]
    yield "### Four flips without fusion\n\n" + _table(bench, rows)
    masks = [
        (f"{words}, threshold {t}", setup, bench.with_class(mask=t))
        for t in (0.5, 0.45, 0.4)
        for words, setup in (("one view's masks", ONE_VIEW), ("mean of four", "4 flips"))
    ]
    yield "### Mask averaging\n\n" + _table(bench, masks)
    yield "### Normalisation\n\n" + _table(
        bench, [("its own", "identity", None), ("ImageNet's", "ImageNet's normalisation", None)]
    )
    for title, compared in rule_tables(bench).items():
        yield f"### {title}\n\n" + _table(
            bench, [(name, "identity", rules) for name, rules in compared.items()]
        )


def rule_tables(bench: Bench) -> dict[str, dict[str, Rules]]:
    """Rules to compare, without a network."""
    rules = bench.rules
    edge = {
        f"by rule: score {by:+.2f}": bench.with_class(
            edge=lambda r, by=by: EdgeThresholds(score=min(1, max(0, r.score + by)), min_area=r.min_area // 2)
        )
        for by in (-0.1, 0.1, 0.2)
    }
    drop = rules.model_copy(update={"edge": rules.edge.model_copy(update={"mode": "drop"})})
    shared = {
        "Consensus": ("consensus", ("score_sum", "count", "surest", "off")),
        "Overlap survival": ("overlap_survival", (0.7, 0.0, 0.4, 0.5, 0.8, 0.9)),
        "Paste": ("paste", ("exact", "torchvision")),
        "Rescoring by the mask": ("rescore_by_mask", (False, True)),
        "Filling holes": ("fill_holes", (False, True)),
    }
    return {
        "Edge masks": {"kept": rules, "dropped": drop} | edge,
        "Minimum area": {f"{a} pixels": bench.with_class(min_area=a) for a in (30, 0, 47, 63, 75, 107, 150)},
        "Mask threshold": {f"{m}": bench.with_class(mask=m) for m in (0.5, 0.35, 0.4, 0.45, 0.55, 0.6)},
    } | {
        title: {str(value): rules.model_copy(update={key: value}) for value in values}
        for title, (key, values) in shared.items()
    }


def _table(bench: Bench, rows: Sequence[tuple[str, str, Rules | None]], shift: bool = False) -> str:
    """Scores, each against the first row's."""
    first: Score | None = None
    types = sorted({image.cell_type for image in bench.truth.values()})
    head = ["", "score", *types, "cells found", "TP at 0.5", "against the first row", "95 % interval"]
    lines = [head + ["best with moved thresholds"] * shift]
    for name, setup, rules in rows:
        score = bench.score(setup, rules)
        first = first or score
        compared = compare(score, first)
        per_type = score.by_type()
        line = [name, f"{score.mean:.4f}", *(f"{per_type[t].mean:.3f}" for t in types)]
        line += [str(sum(i.found_cells for i in score.images)), str(score.counts()[0][0])]
        line += [f"{compared.difference:+.4f}", f"{compared.low:+.4f} to {compared.high:+.4f}"]
        if score is first:
            line[-2:] = ["", ""]
        if shift:
            best, by = bench.shifted(setup)
            line.append(f"{best:.4f} at {by:+.2f}")
        lines.append(line)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    """Run what is missing, and print every table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.findings")
    parser.add_argument("--images", nargs="+", type=Path, required=True)
    parser.add_argument("--truth", nargs="+", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", type=Path, default=[])
    parser.add_argument("--keep", type=Path, required=True)
    arguments = parser.parse_args()
    truth = {image_id: image for path in arguments.truth for image_id, image in read_truth(path).items()}
    have = {file.id for file in find_images(arguments.images)}
    truth = {image_id: image for image_id, image in truth.items() if image_id in have}
    run_networks(arguments, truth)
    pool(arguments.keep)
    manifest = load_ensemble(arguments.weights, torch.device("cpu"), torch.float32).manifest
    for table in tables(Bench(arguments.keep, truth, manifest.rules, manifest.classes)):
        print(table, flush=True)


if __name__ == "__main__":
    main()
