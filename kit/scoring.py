"""Whether storing weights in fewer bytes changes the score."""

from __future__ import annotations

from pathlib import Path

import torch

from sartorius_infer.cells.claim import Selector, build_instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.evaluate.metric import mean_ap, score_image
from sartorius_infer.evaluate.train_csv import read_train_csv
from sartorius_infer.evaluate.true_image import require_known
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image


def score(manifest: Path, images: Path, truth: Path, device: torch.device) -> float:
    """The competition's score of a manifest on annotated images, at full precision."""
    ensemble = load_ensemble([manifest], device, "fp32")
    rules, classes = ensemble.manifest.rules, ensemble.classes
    known, files = read_train_csv(truth), find_images([images])
    require_known(known, [file.id for file in files], truth)

    worth_a_mask = Selector(rules, classes)
    scores = []
    for file in files:
        image = read_image(file, ensemble.manifest.images.limits)
        (prediction,) = predict(ensemble, [image], worth_a_mask)
        cells = build_instances(prediction, rules, classes)
        found = split_label_map(cells.label_map, len(cells))
        scores.append(score_image(file.id, known[file.id].masks, found))
    return mean_ap(scores)
