"""Checkpoints of real systems load, and run exactly as their authors' own forward pass does.

Each system is built and saved by plain torchvision, as its authors did, with random weights; what
`model([image])` gives on their own data set's image is what the package must give for the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoint_factories import (
    ChannelsLast,
    NoExtra,
    NormLayer,
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
from torchvision.models.detection.backbone_utils import (
    BackboneWithFPN,
    _mobilenet_extractor,
    resnet_fpn_backbone,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.paste import paste_cells
from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.manifest.rules import ClassRule, EdgeRule, Rules
from sartorius_infer.output.predictions import load_prediction
from sartorius_infer.types import Bool, CellImage, Float32, Prediction, UInt8

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
    background: float = 6.0
    """What the author's training would have added to the background's score."""


@dataclass(frozen=True)
class Run:
    """The package's prediction and the author's own."""

    prediction: Prediction
    reference: Reference


def run_system(system: System, folder: Path, name: str = "network") -> Run:
    torch.manual_seed(0)
    pixels = crop(system.size_hw)
    model = calibrate(system.build(), system.dataset(crop((128, 160))), system.background)
    file = folder / f"{name}{system.suffix}"
    kept = system.kept(model)
    save_file(dict(kept), file) if system.suffix == ".safetensors" else torch.save(kept, file)
    (reference,) = author_forward(model, [pixels], system.dataset)
    del model, kept
    weights = write_manifest(folder / f"{name}.json", [system.told.entry(file)]) if system.told else file
    package = predict_by_cli if system.by_cli else predict_one
    return Run(package(weights, pixels), reference)


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


def check_all(run: Run) -> None:
    for check in CHECKS:
        check(run)


def largest_part(mask: Bool) -> Bool:
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    return np.asarray(parts == 1 + np.bincount(parts.ravel())[1:].argmax()) if count else mask


def survives(mask: Bool, rule: ClassRule, score: float, drop_edge: bool) -> bool:
    on_edge = any(side.any() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    return score >= rule.score and int(mask.sum()) >= max(rule.min_area, 1) and not (drop_edge and on_edge)


def check_rules(rules: Rules, run: Run) -> None:
    """Each cell by itself, where neither a thousandth of probability nor stray parts decide."""
    softs, scores = run.reference.masks[:, 0].numpy(), run.reference.scores.tolist()
    drop_edge = rules.edge.mode == "drop"
    sure = 0
    for index, (soft, score, label) in enumerate(zip(softs, scores, run.reference.labels, strict=True)):
        rule = rules.of(THREE[label - 1])
        masks = [form(soft >= level) for level in (0.499, 0.501) for form in (np.asarray, largest_part)]
        expected = {survives(mask, rule, score, drop_edge) for mask in masks}
        if len(expected) == 1:
            sure += 1
            cell = run.prediction[np.array([index])]
            assert {len(build_instances(cell, rules, THREE)) == 1} == expected
    assert sure > 0.7 * len(run.reference)


def check_free_edge(rules: Rules, run: Run) -> None:
    cells = build_instances(run.prediction, rules, THREE).label_map
    inner = np.pad(cells[1:-1, 1:-1], 1)
    assert inner.any()
    assert np.array_equal(cells, inner)


def rules_without_edge(score: float) -> Rules:
    return Rules(
        per_class=dict.fromkeys(THREE, ClassRule(score=score)),
        edge=EdgeRule(mode="drop"),
        paste="torchvision",
    )


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
    return MaskRCNN(backbone, 5, min_size=height, max_size=width, image_mean=[0.0] * 3, image_std=[1.0] * 3)


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
        partial(twice_normalised, min_size=224),
        Told(
            THREE,
            ["imagenet", "imagenet"],
            short_side(224),
            {"exact_hw": [512, 512], "interpolation": "opencv"},
        ),
        resized_imagenet_floats,
        training_dict,
    ),
    "plain, bare, by command": System(
        twice_normalised, None, kept=training_dict, size_hw=(10, 150), by_cli=True, background=4.0
    ),
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
        size_hw=(10, 150),
        background=5.0,
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
        background=5.0,
    ),
    "convnext_base": System(partial(convnext, 128, 160), CONVNEXT),
    "convnext_base, odd size, training state": System(
        partial(convnext, 117, 150), CONVNEXT, kept=training_dict, size_hw=(117, 150), background=5.0
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
        background=2.0,
    ),
    "sequential resnext101_64x4d": System(
        sequential_resnext, Told(THREE, resize=short_side(512)), size_hw=(96, 100), background=9.0
    ),
}


CLASS_RULES = Rules(
    per_class={
        "shsy5y": ClassRule(score=0.1, min_area=150),
        "astro": ClassRule(score=0.2, min_area=400),
        "cort": ClassRule(score=0.3, min_area=75),
    },
    paste="torchvision",
)
EDGELESS = {score: rules_without_edge(score) for score in (0.0, 0.2, 0.5)}
MORE_CHECKS: dict[str, dict[str, Callable[[Run], None]]] = {
    "pyramid with norm, 0-255": {
        **{f"no edge cells from {score}": partial(check_rules, rules) for score, rules in EDGELESS.items()},
        "free edge": partial(check_free_edge, EDGELESS[0.0]),
    },
    "small anchors": {"class rules": partial(check_rules, CLASS_RULES)},
}
SYSTEM_CHECKS = [
    pytest.param(name, check, id=f"{name}: {title}")
    for name in SYSTEMS
    for title, check in ({c.__name__: c for c in CHECKS} | MORE_CHECKS.get(name, {})).items()
]


@lru_cache(maxsize=1)
def run_of(name: str) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        return run_system(SYSTEMS[name], Path(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "check"), SYSTEM_CHECKS)
def test_system_runs_as_its_author_runs_it(name: str, check: Callable[[Run], None]) -> None:
    check(run_of(name))


# Two networks that vote.


MOST = 5
"""Cells of each network in each view of two together: every mask head scores them all in every view."""


@dataclass(frozen=True)
class Pair:
    """Two networks, each by itself, and both as one ensemble."""

    alone: dict[str, Run]
    ensemble: Ensemble


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    network = {"rpn": {"post_nms_top_n": 100}, "detection": {"per_image": MOST}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = {name: run_system(system, folder, name) for name, system in PAIR.items()}
        told = {folder / f"{name}.pth": system.told for name, system in PAIR.items()}
        entries = [replace(one, network=network).entry(file) for file, one in told.items() if one]
        yield Pair(alone, load_ensemble([write_manifest(folder / "both.json", entries)], CPU))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", PAIR)
def test_each_of_two_alone_runs_as_its_author_runs_it(
    pair: Pair, name: str, check: Callable[[Run], None]
) -> None:
    check(pair.alone[name])


@pytest.mark.slow
@pytest.mark.parametrize("views", [("identity",), ("identity", "hflip", "vflip", "rot90")], ids=len)
def test_two_together_see_cells(pair: Pair, views: tuple[str, ...]) -> None:
    (prediction,) = predict(pair.ensemble.with_overrides(views), [CellImage("image", crop((128, 160)))])
    assert len(prediction) >= MOST
    for values in (prediction.scores, prediction.masks, prediction.boxes / 160):
        assert ((values >= 0) & (values <= 1)).all()


# How a checkpoint is kept, and what it is made of.


def small(
    build: Callable[[], MaskRCNN] = tiny,
    told: Told | None = None,
    background: float = 3.5,
    kept: Callable[[MaskRCNN], Mapping[str, Any]] = weights_alone,
    suffix: str = ".pth",
) -> System:
    told = told or Told(THREE)
    return System(build, told, kept=kept, suffix=suffix, size_hw=(96, 120), background=background)


def under(*prefixes: str) -> System:
    return small(kept=lambda model: prefixed(model.state_dict(), *prefixes))


def with_network(build: Callable[[], MaskRCNN], background: float = 3.5, **network: Any) -> System:
    """A network of which the manifest tells what its keys cannot."""
    return small(build, Told(THREE, network=network), background)


def on_resnet18(**pyramid: Any) -> BackboneWithFPN:
    return resnet_pyramid(resnet.resnet18(), **{"channels": 64, **pyramid})


def norm_in_body(norm_layer: NormLayer) -> MaskRCNN:
    return tiny(resnet_pyramid(resnet.resnet18(norm_layer=norm_layer), channels=64))


def norm_in_heads(norm_layer: NormLayer) -> MaskRCNN:
    return tiny(on_resnet18(norm_layer=norm_layer), box_head=conv_box_head(norm_layer), mask_norm=norm_layer)


def swin() -> MaskRCNN:
    stages = {"1": 96, "3": 192, "5": 384, "7": 768}
    return tiny(body_pyramid(swin_t().features, stages, 64, kind=ChannelsLast))


def mobilenet(norm_layer: NormLayer | None = None) -> MaskRCNN:
    backbone = _mobilenet_extractor(mobilenet_v3_large(norm_layer=norm_layer), True, 6)
    return tiny(backbone, generator=anchors([[32, 64, 128, 256, 512]] * 3))


SQUARES = [[32], [64], [128], [256], [512]]
NORMS: dict[str, NormLayer] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "group": group_norm}
WITHOUT_EPS = {"norm": {"eps": 0}}
SMALL_SYSTEMS = {
    **{
        f"under {prefix}": under(prefix) for prefix in ("module.", "model.", "module.maskrcnn.", "_orig_mod.")
    },
    "under two prefixes": under("model.", "net."),
    "averaged": small(kept=lambda model: AveragedModel(model).state_dict()),
    "training state of a prefixed network": small(
        kept=lambda model: {
            **training_dict(model),
            "model_state_dict": prefixed(model.state_dict(), "module."),
        }
    ),
    "float16": small(kept=partial(rounded, dtype=torch.float16)),
    "bfloat16": small(kept=partial(rounded, dtype=torch.bfloat16)),
    "safetensors": small(suffix=".safetensors"),
    **{f"{kind} norm in body": small(partial(norm_in_body, layer)) for kind, layer in NORMS.items()},
    **{f"{kind} norm in heads": small(partial(norm_in_heads, layer)) for kind, layer in NORMS.items()},
    "norm in heads without eps": with_network(
        partial(norm_in_heads, partial(FrozenBatchNorm2d, eps=0.0)),
        fpn=WITHOUT_EPS,
        box_head=WITHOUT_EPS,
        mask_head=WITHOUT_EPS,
    ),
    "16 groups": with_network(
        partial(norm_in_body, partial(nn.GroupNorm, 16)), body_norm={"kind": "group", "groups": 16}
    ),
    "128 channels on fewer stages": with_network(
        lambda: tiny(on_resnet18(stages=(2, 3, 4), channels=128), generator=anchors(SQUARES[1:])),
        anchors={"sizes": SQUARES[1:]},
    ),
    "no extra level": with_network(
        lambda: tiny(on_resnet18(extra_blocks=NoExtra()), generator=anchors(SQUARES[:4])),
        fpn={"extra": "none"},
    ),
    "RPN of depth 2": small(partial(tiny, rpn_depth=2)),
    "box pool of 14": small(partial(tiny, box_pool=14)),
    "2 mask convolutions": small(partial(tiny, mask_channels=(32, 32))),
    "8 mask convolutions": small(partial(tiny, mask_channels=(32, 48) * 4, hidden=24)),
    "dilated mask head": with_network(partial(tiny, mask_dilation=2), mask_head={"dilation": 2}),
    "strict limits": with_network(
        partial(tiny, box_score_thresh=0.2, box_nms_thresh=0.3, rpn_score_thresh=0.7),
        detection={"score": 0.2, "nms": 0.3},
        rpn={"score": 0.7},
        background=1.0,
    ),
    "swin_t": small(swin),
    "mobilenet_v3_large": small(mobilenet),
    "mobilenet_v3_large by preset": small(mobilenet, Told(THREE, architecture="mobilenet_v3_large_fpn")),
    "mobilenet_v3_large as torchvision's detector": with_network(
        partial(mobilenet, nn.BatchNorm2d), body_norm={"eps": 1e-5}
    ),
    "resnet34": small(lambda: tiny(resnet_pyramid(resnet.resnet34(), channels=64))),
    "wide_resnet50_2": small(lambda: tiny(resnet_pyramid(resnet.wide_resnet50_2(), channels=64))),
}


# Every fourth is enough on each change; `make test` runs them all.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (i % 4 > 0)) for i, n in enumerate(SMALL_SYSTEMS)],
)
def test_small_system_runs_as_its_author_runs_it(name: str, tmp_path: Path) -> None:
    check_all(run_system(SMALL_SYSTEMS[name], tmp_path))


# What a manifest does with one network.


@dataclass(frozen=True)
class Kept:
    """A small network of three classes and its file."""

    model: MaskRCNN
    file: Path

    def author(self, *images: UInt8) -> list[Reference]:
        return author_forward(self.model, images, floats_1)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    torch.manual_seed(0)
    model = calibrate(tiny(), floats_1(crop((128, 160))), background=3.5)
    file = tmp_path_factory.mktemp("kept") / "network.pth"
    torch.save(model.state_dict(), file)
    return Kept(model, file)


def load(kept: Kept, *names: str, classes: tuple[str, ...] = THREE) -> Ensemble:
    """The network under each of the names, for a manifest of these classes."""
    entries = [{**Told(THREE).entry(kept.file), "name": name} for name in names or ("network",)]
    return load_ensemble([write_manifest(kept.file.with_suffix(".json"), entries, classes=classes)], CPU)


def hflipped(boxes: Float32, height: int, width: int) -> list[Float32]:
    return [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]]


def vflipped(boxes: Float32, height: int, width: int) -> list[Float32]:
    return [boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]]


def rotated(boxes: Float32, height: int, width: int) -> list[Float32]:
    return [boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]]


@pytest.mark.parametrize(
    ("view", "turned", "turned_boxes"),
    [
        ("hflip", partial(np.flip, axis=-1), hflipped),
        ("vflip", partial(np.flip, axis=-2), vflipped),
        ("rot90", partial(np.rot90, axes=(-2, -1)), rotated),
    ],
    ids=["hflip", "vflip", "rot90"],
)
def test_a_view_is_what_the_author_sees_in_the_turned_image(
    kept: Kept,
    view: str,
    turned: Callable[[Any], Any],
    turned_boxes: Callable[[Float32, int, int], list[Float32]],
) -> None:
    pixels = crop((96, 120))
    (seen,) = predict(load(kept).with_overrides([view]), [CellImage("image", pixels)])
    image = np.ascontiguousarray(turned(pixels))
    boxes = np.stack(turned_boxes(seen.boxes, *pixels.shape), axis=1)
    prediction = replace(seen, boxes=boxes, masks=turned(seen.masks), size_hw=image.shape)
    check_all(Run(prediction, *kept.author(image)))


def test_images_of_a_batch_do_not_mix(kept: Kept) -> None:
    images = [crop((96, 120), sample) for sample in range(3)]
    predictions = predict(load(kept), [CellImage(str(index), image) for index, image in enumerate(images)])
    for prediction, reference in zip(predictions, kept.author(*images), strict=True):
        check_all(Run(prediction, reference))


def test_two_of_a_kind_see_what_one_sees(kept: Kept) -> None:
    pixels = crop((96, 120))
    (prediction,) = predict(load(kept, "one", "two"), [CellImage("image", pixels)])
    check_all(Run(prediction, *kept.author(pixels)))


def test_classes_follow_the_manifest(kept: Kept) -> None:
    pixels = crop((96, 120))
    (prediction,) = predict(load(kept, classes=("cort", "shsy5y")), [CellImage("image", pixels)])
    (reference,) = kept.author(pixels)
    listed = reference.labels != 2
    labels = torch.where(reference.labels == 3, 1, 2)[listed]
    fields = {name: getattr(reference, name)[listed] for name in ("boxes", "scores", "masks", "canvas_boxes")}
    check_all(Run(prediction, Reference(labels=labels, **fields)))
