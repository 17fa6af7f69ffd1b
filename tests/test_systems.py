"""Checkpoints of real systems load, and run exactly as their authors' own forward pass does.

Each system is built and saved by plain torchvision, as its authors did, with random weights; what
`model([image])` gives on their own data set's image is what the package must give for the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoint_factories import (
    IMAGENET,
    ChannelsLast,
    NoExtra,
    Reference,
    Told,
    Transform,
    anchors,
    author_forward,
    body_pyramid,
    calibrate,
    conv_box_head,
    crop,
    floats_1,
    floats_255,
    group_norm,
    imagenet_floats,
    old_names,
    prefixed,
    resized_imagenet_floats,
    resnet_pyramid,
    rounded,
    tiny,
    training_dict,
    write_manifest,
)
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import convnext_base, mobilenet_v3_large, resnet, swin_t
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import _mobilenet_extractor, resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d

from sartorius_infer.cli import main
from sartorius_infer.ensemble import load_ensemble
from sartorius_infer.instances import build_instances
from sartorius_infer.paste import paste_cells
from sartorius_infer.predict import predict
from sartorius_infer.predictions import load_prediction
from sartorius_infer.rules import ClassRule, EdgeRule, Rules
from sartorius_infer.types import Bool, CellImage, Prediction, UInt8

ONE, THREE, FOUR = ("cell",), ("shsy5y", "astro", "cort"), ("shsy5y", "astro", "cort", "live")
CPU = torch.device("cpu")
FEWEST = 20
"""Detections under which a comparison says little."""


def short_side(size: int) -> dict[str, int]:
    return {"shortest_edge": size, "longest_edge": 1333}


def weights_alone(model: MaskRCNN) -> Mapping[str, Any]:
    return model.state_dict()


@dataclass(frozen=True)
class System:
    """A way to build, feed and keep a network, and what the user tells of it; None: nothing."""

    build: Callable[[], MaskRCNN]
    told: Told | None
    dataset: Transform = floats_1
    kept: Callable[[MaskRCNN], Mapping[str, Any]] = weights_alone
    suffix: str = ".pth"
    size_hw: tuple[int, int] = (128, 160)
    by_cli: bool = False


@dataclass(frozen=True)
class Run:
    """The package's prediction, the author's own, and the weights that the package was given."""

    prediction: Prediction
    reference: Reference
    weights: Path
    pixels: UInt8


def run_system(system: System, folder: Path, name: str = "network") -> Run:
    torch.manual_seed(0)
    pixels = crop(system.size_hw)
    model = calibrate(system.build(), system.dataset(pixels))
    file = folder / f"{name}{system.suffix}"
    kept = system.kept(model)
    save_file(dict(kept), file) if system.suffix == ".safetensors" else torch.save(kept, file)
    reference = author_forward(model, pixels, system.dataset)
    del model, kept
    weights = write_manifest(folder / f"{name}.json", [system.told.entry(file)]) if system.told else file
    package = predict_by_cli if system.by_cli else predict_one
    return Run(package(weights, pixels), reference, weights, pixels)


def predict_one(weights: Path, pixels: UInt8) -> Prediction:
    (prediction,) = predict(load_ensemble([weights], CPU), [CellImage("image", pixels)])
    return prediction


def predict_by_cli(weights: Path, pixels: UInt8) -> Prediction:
    folder = weights.parent
    cv2.imwrite(str(folder / "image.png"), pixels)
    told = {"--weights": weights, "--images": folder / "image.png", "--out": folder / "submission.csv"}
    more = {"--save-predictions": folder, "--device": "cpu", "--precision": "fp32"}
    assert main([str(word) for pair in (told | more).items() for word in pair]) == 0
    return load_prediction(folder / "image.npz")


# What must be equal.


def check_count(run: Run) -> None:
    assert len(run.prediction) == len(run.reference) >= FEWEST


def check_labels(run: Run) -> None:
    assert run.prediction.labels.tolist() == run.reference.labels.tolist()


def check_scores(run: Run) -> None:
    np.testing.assert_allclose(run.prediction.scores, run.reference.scores.numpy(), rtol=0, atol=1e-5)


def check_boxes(run: Run) -> None:
    np.testing.assert_allclose(run.prediction.boxes, run.reference.boxes.numpy(), rtol=0, atol=1e-3)


def pasted(prediction: Prediction, boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The package's probabilities in an image, by torchvision: float (N, 1, H, W)."""
    grids = torch.from_numpy(prediction.masks.astype(np.float32))[:, None]
    return paste_masks_in_image(grids, boxes, size_hw)


def check_probabilities(run: Run) -> None:
    reference = run.reference
    found = pasted(run.prediction, reference.canvas_boxes, reference.canvas_hw)
    torch.testing.assert_close(found, reference.masks, rtol=0, atol=1e-3)


def check_pixels(run: Run) -> None:
    """Thresholded pixels of the package's own paste; a resized author has none in the image's pixels."""
    size_hw = run.prediction.size_hw
    resized = run.reference.canvas_hw != size_hw
    masks = pasted(run.prediction, run.reference.boxes, size_hw) if resized else run.reference.masks
    soft = masks[:, 0].numpy()
    cells = np.zeros(soft.shape, bool)
    crops = paste_cells(run.prediction.masks, run.prediction.boxes, size_hw, "torchvision")
    for cell, (y0, x0, part) in zip(cells, crops, strict=True):
        cell[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part >= 0.5
    sure = np.abs(soft - 0.5) > 1e-3
    assert np.array_equal(cells[sure], soft[sure] >= 0.5)


CHECKS = (check_count, check_labels, check_scores, check_boxes, check_probabilities, check_pixels)


# The systems.


def twice_normalised(**settings: Any) -> MaskRCNN:
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, **settings)
    inner = model.roi_heads.mask_predictor.conv5_mask.in_channels
    model.roi_heads.mask_predictor = MaskRCNNPredictor(inner, 128, 4)
    return model


def pyramid_with_norm() -> MaskRCNN:
    backbone = resnet_pyramid(resnet.resnet50(), norm_layer=nn.BatchNorm2d)
    return MaskRCNN(backbone, 4, min_size=192, box_score_thresh=0.0)


def small_anchors() -> MaskRCNN:
    return MaskRCNN(
        resnet_pyramid(resnet.resnet50()),
        4,
        min_size=160,
        image_mean=[127.965] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=anchors([[24], [40], [80], [128], [256]], (0.33, 1.0, 3.0)),
        rpn_pre_nms_top_n_test=10000,
        rpn_post_nms_top_n_test=2000,
        rpn_nms_thresh=0.75,
        box_detections_per_img=700,
    )


SMALL_ANCHORS = {
    "anchors": {"sizes": [[24], [40], [80], [128], [256]], "aspect_ratios": [0.33, 1, 3]},
    "rpn": {"pre_nms_top_n": 10000, "post_nms_top_n": 2000, "nms": 0.75},
    "detection": {"per_image": 700},
}


def convnext(height: int, width: int) -> MaskRCNN:
    stages = {"1": 128, "3": 256, "5": 512, "7": 1024}
    backbone = body_pyramid(convnext_base().features, stages)
    return MaskRCNN(
        backbone, 5, min_size=height, max_size=width, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )


def frozen_without_eps() -> MaskRCNN:
    norm_layer = partial(FrozenBatchNorm2d, eps=0.0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm_layer)
    return MaskRCNN(backbone, 2, min_size=192, box_detections_per_img=539)


def sequential_resnext() -> MaskRCNN:
    body = nn.Sequential(*list(resnet.resnext101_64x4d().children())[:-2])
    stages = {"4": 256, "5": 512, "6": 1024, "7": 2048}
    return MaskRCNN(body_pyramid(body, stages, 128), 4, min_size=512)


def frozen_resnet() -> MaskRCNN:
    return MaskRCNN(resnet_pyramid(resnet.resnet50(norm_layer=FrozenBatchNorm2d)), 4, min_size=192)


def wide_resnext() -> MaskRCNN:
    backbone = resnet_pyramid(resnet.resnext101_32x8d())
    return MaskRCNN(backbone, 4, min_size=160, image_mean=[0.502] * 3, image_std=[0.047] * 3)


DATASET = {"mean": [0.502], "std": [0.047]}
CONVNEXT = Told(FOUR, normalise=[{"mean": [0], "std": [1]}], resize=None)

PAIR = {
    "resnet50": System(frozen_resnet, Told(THREE, resize=short_side(192))),
    "resnext101_32x8d": System(wide_resnext, Told(THREE, [DATASET], short_side(160))),
}

SYSTEMS = {
    "normalised twice": System(
        partial(twice_normalised, min_size=192),
        Told(THREE, ["imagenet", "imagenet"], short_side(192)),
        imagenet_floats,
        training_dict,
    ),
    "normalised twice, 512 x 512": System(
        partial(twice_normalised, min_size=288),
        Told(
            THREE,
            ["imagenet", "imagenet"],
            short_side(288),
            {"exact_hw": [512, 512], "interpolation": "opencv"},
        ),
        resized_imagenet_floats,
        training_dict,
    ),
    "plain, bare": System(twice_normalised, None, kept=training_dict, size_hw=(24, 150)),
    "pyramid with norm, 0-255": System(
        pyramid_with_norm,
        Told(
            THREE,
            resize=short_side(192),
            input_range="0-255",
            network={"detection": {"score": 0}},
        ),
        floats_255,
    ),
    "v2, bare": System(
        partial(maskrcnn_resnet50_fpn_v2, weights=None, weights_backbone=None, num_classes=4),
        None,
        size_hw=(24, 150),
    ),
    "small anchors": System(
        small_anchors,
        Told(
            THREE,
            [{"mean": [127.965], "std": [1]}],
            short_side(160),
            input_range="0-255",
            network=SMALL_ANCHORS,
        ),
        floats_255,
    ),
    "convnext_base": System(partial(convnext, 128, 160), CONVNEXT),
    "convnext_base, odd size, training state": System(
        partial(convnext, 117, 150), CONVNEXT, kept=training_dict, size_hw=(117, 150)
    ),
    "old names, eps 0, by command": System(
        frozen_without_eps,
        Told(
            ONE,
            resize=short_side(192),
            network={"body_norm": {"eps": 0}, "detection": {"per_image": 539}},
        ),
        kept=lambda model: old_names(model.state_dict()),
        by_cli=True,
    ),
    "sequential resnext101_64x4d": System(sequential_resnext, Told(THREE, resize=short_side(512))),
}


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder:
        yield run_system(SYSTEMS[request.param], Path(folder))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("run", SYSTEMS, indirect=True)
def test_system_runs_as_its_author_runs_it(run: Run, check: Callable[[Run], None]) -> None:
    check(run)
