"""Detectron2's networks give what Detectron2 gives: in a case that it ran itself, and as an oracle has it.

Detectron2's own outputs lie in `../shared/reference/detectron2`; without them their tests are skipped. The
oracle gives the same there, and it runs every architecture and option on networks small enough for a test.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import copyfile
from typing import Any
from warnings import catch_warnings

import numpy as np
import pytest
import torch
import yaml
from checkpoint_factories import write_manifest
from detectron2_bodies_oracle import Net
from detectron2_factories import (
    REFERENCE,
    config_of,
    network_of,
    picture,
    settings_and_state,
    spec_of,
    write_network,
)
from detectron2_oracle import (
    CASCADE,
    DCONV_CASCADE,
    DEFORMABLE_RESNEST,
    MODULATED,
    RESNEST,
    Seen,
    Settings,
    State,
    feature_maps,
    flat,
    scaled,
    see,
)
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scipy.spatial.distance import cdist
from tiny import PARTS as TINY
from tiny import tiny_model
from torch import Tensor

from sartorius_infer.cells.paste import paste_cells
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.fuse import Boxes, fuse
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import image_tensor, predict
from sartorius_infer.errors import PredictionError
from sartorius_infer.manifest.manifest import Fusion, ModelSpec
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks import Detections, Features
from sartorius_infer.networks.detectron2.boxes import pool_rois
from sartorius_infer.networks.detectron2.config import read_config
from sartorius_infer.networks.detectron2.rcnn import Detectron2Network, build_detectron2
from sartorius_infer.types import Bool, CellImage, Float32, Int64, Prediction, UInt8

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def matched(found: Tensor | Float32, expected: Tensor | Float32, atol: float) -> Int64:
    """For each found row the expected one within `atol`, where the two sets are one to one."""
    assert len(found) == len(expected)
    if not len(found):
        return np.zeros(0, np.int64)
    distance = cdist(np.asarray(found, np.float64), np.asarray(expected, np.float64), "chebyshev")
    rows = distance.argmin(1)
    assert distance.min(1).max() <= atol
    assert len(set(rows.tolist())) == len(rows)
    return rows


def with_classes(boxes: Tensor | Float32, classes: Tensor | Int64) -> Float32:
    """Boxes (N, 4) with a fifth column in which other classes are far apart."""
    column = 1e4 * np.asarray(classes, np.float32)[:, None]
    return np.concatenate([np.asarray(boxes, np.float32), column], axis=1)


def pasted(masks: Tensor, boxes: Tensor, size_hw: tuple[int, int]) -> Bool:
    """The package's final masks, bool (N, H, W)."""
    whole = np.zeros((len(masks), *size_hw), bool)
    for cell, crop in zip(whole, paste_cells(masks.numpy(), boxes.numpy(), size_hw, "exact"), strict=True):
        y0, x0, part = crop
        cell[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part >= 0.5
    return whole


# What Detectron2 itself saw.

SLOW = pytest.mark.slow


@dataclass
class Watched:
    """A network that keeps what each step gives."""

    network: Detectron2Network
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def class_count(self) -> int:
        return self.network.class_count

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        self.seen["features"] = self.network.features(images, view)
        return self.seen["features"]

    def propose(self, features: Features) -> list[Tensor]:
        self.seen["proposals"] = self.network.propose(features)
        return self.seen["proposals"]

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        self.seen["detections"] = self.network.detect(features, proposals)
        return self.seen["detections"]

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        self.seen["masks"] = self.network.mask_probabilities(features, boxes, labels)
        return self.seen["masks"]


@pytest.fixture(scope="module")
def reference_state() -> State:
    """The weights that Detectron2 ran, by the script beside its outputs."""
    if not REFERENCE.is_dir():
        pytest.skip("Detectron2's own outputs are not here")
    spec = importlib.util.spec_from_file_location("materialise", REFERENCE / "materialise.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.materialise(REFERENCE / "r50")


@pytest.fixture(scope="module")
def reference_ensemble(reference_state: State, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """What its checkpoint, with the config beside it, is loaded as."""
    folder = tmp_path_factory.mktemp("r50")
    torch.save({"model": reference_state, "iteration": 9999}, folder / "model_final.pth")
    copyfile(REFERENCE / "r50" / "config.yaml", folder / "config.yaml")
    ensemble = load_ensemble([folder / "model_final.pth"], CPU)
    (folder / "model_final.pth").unlink()
    return ensemble


@dataclass(frozen=True)
class Case:
    """One image: what the package sees in it, on the way and at the end, and what Detectron2 saw."""

    network: Detectron2Network
    seen: Mapping[str, Any]
    prediction: Prediction
    result: Mapping[str, NDArray[Any]]
    stages: Mapping[str, NDArray[Any]]
    runs: Sequence[Mapping[str, Any]]


def reference_pixels(name: str) -> UInt8:
    return np.array(Image.open(REFERENCE / "images" / f"{name}.png"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("color_wide", 100), id="color_wide, some masks"),
        *(pytest.param((name, 700), id=name, marks=SLOW) for name in ("color_wide", "gray0", "gray1")),
    ],
)
def case(request: pytest.FixtureRequest, reference_ensemble: Ensemble) -> Case:
    """An image of Detectron2's, and of how many cells the masks are looked at."""
    name, most = request.param
    pixels = reference_pixels(name)
    (member,) = reference_ensemble.members
    watched = Watched(member.network)  # type: ignore[arg-type]
    ensemble = replace(reference_ensemble, members=(replace(member, network=watched),))
    image = CellImage(name, pixels)
    (prediction,) = predict(ensemble, [image], lambda scores, labels: np.arange(len(scores)) < most)
    files = [np.load(REFERENCE / "r50" / f"{name}{suffix}.npz") for suffix in ("", ".stages")]
    runs = json.loads((REFERENCE / "r50" / f"{name}.rle.json").read_text())
    return Case(watched.network, watched.seen, prediction, *map(dict, files), runs)


STEPS = {"p2": 16, "p3": 8, "p4": 4, "p5": 2, "p6": 1}
"""Of each level's map, Detectron2's file holds the positions this far apart."""


@pytest.mark.slow
def test_detectron2_sees_the_same_maps(case: Case) -> None:
    features: Features = case.seen["features"]
    assert [list(hw) for hw in features.input_hws] == [case.result["net_image_size"].tolist()]
    assert list(features.padded_hw) == case.result["net_input_shape"][2:].tolist()
    for level, step in STEPS.items():
        samples = features.maps[level][0, :, ::step, ::step]
        np.testing.assert_allclose(samples, case.stages[f"{level}_sub"], rtol=0, atol=1e-3)


def test_detectron2_proposes_the_same(case: Case) -> None:
    (found,) = case.seen["proposals"]
    expected = case.stages["proposals"]
    assert len(found) == len(expected)
    distance = cdist(found, expected, "chebyshev")
    for axis in (0, 1):  # one IoU in a thousand may lie on the threshold's other side
        assert (distance.min(axis) <= 5e-3).mean() >= 0.999


def test_detectron2_puts_out_the_same_for_its_proposals(case: Case) -> None:
    network, proposals = case.network, torch.from_numpy(case.stages["proposals"])
    maps, parts = case.seen["features"].maps, network.parts
    ((head, predictor),) = network.model.roi_heads.stages()
    with torch.inference_mode():
        logits, deltas = predictor(head(pool_rois(maps, parts.roi_levels, [proposals], parts.box_head.pool)))
    np.testing.assert_allclose(logits, case.stages["box_logits_stage0"], rtol=0, atol=5e-3)
    np.testing.assert_allclose(deltas, case.stages["box_deltas_stage0"], rtol=0, atol=5e-3)


@pytest.fixture
def rows(case: Case) -> Int64:
    """Of each cell that the package finds, Detectron2's own of the same class in the same place."""
    (found,) = case.seen["detections"]
    own = with_classes(case.result["pred_boxes"], case.result["pred_classes"])
    return matched(with_classes(found.boxes, found.labels - 1), own, 5e-3)


def test_detectron2_detects_the_same(case: Case, rows: Int64) -> None:
    (found,) = case.seen["detections"]
    np.testing.assert_allclose(found.scores, case.result["scores"][rows], rtol=0, atol=5e-4)
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(
            getattr(case.prediction, name), getattr(found, name)[: len(case.prediction)]
        )


def test_detectron2_gives_the_same_probabilities(case: Case, rows: Int64) -> None:
    (found,) = case.seen["masks"]
    np.testing.assert_allclose(found, case.result["mask_probs"][rows[: len(found)]], rtol=0, atol=5e-3)


def test_detectron2_draws_the_same_masks(case: Case, rows: Int64) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    p = case.prediction
    found = pasted(torch.from_numpy(p.masks.astype(np.float32)), torch.from_numpy(p.boxes), p.size_hw)
    with catch_warnings(action="ignore"):  # pycocotools is older than numpy 2
        expected = coco.decode(case.runs).transpose(2, 0, 1).astype(bool)[rows[: len(p)]]
    both, either = (found & expected).sum((1, 2)), (found | expected).sum((1, 2))
    overlap = np.where(either > 0, both / np.maximum(either, 1), 1)
    assert overlap.mean() >= 0.99
    assert overlap.min() >= 0.95


def test_the_config_alone_builds_the_same_network(
    reference_ensemble: Ensemble, reference_state: State
) -> None:
    (member,) = reference_ensemble.members
    loaded = member.network
    assert isinstance(loaded, Detectron2Network)
    config = read_config(REFERENCE / "r50" / "config.yaml")
    spec = ModelSpec(
        name="r50", file="model_final.pth", preprocessing=config.preprocessing, detectron2=config.parts
    )
    built = build_detectron2(spec, reference_state, torch.float32)
    built.settle()
    assert built.parts == loaded.parts
    assert built.preprocessing == loaded.preprocessing
    expected = loaded.state_dict()
    assert built.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in built.state_dict().items())


@pytest.mark.slow
def test_the_oracle_sees_what_detectron2_saw(reference_state: State) -> None:
    name = "color_wide"
    settings = flat(yaml.safe_load((REFERENCE / "r50" / "config.yaml").read_text()))
    seen = see(reference_state, settings, reference_pixels(name))
    expected = np.load(REFERENCE / "r50" / f"{name}.npz")
    own = with_classes(expected["pred_boxes"], expected["pred_classes"])
    rows = matched(with_classes(seen.boxes, seen.classes), own, 5e-3)
    np.testing.assert_allclose(seen.scores, expected["scores"][rows], rtol=0, atol=5e-4)
    np.testing.assert_allclose(seen.probabilities, expected["mask_probs"][rows], rtol=0, atol=5e-3)


# What the oracle sees.


@dataclass(frozen=True)
class Found:
    """What a network finds in one image, as `oracle.Seen` but with labels from 1."""

    proposals: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


@torch.inference_mode()
def run(network: Detectron2Network, *images: UInt8) -> list[Found]:
    features = network.features([image_tensor(CellImage("image", image)) for image in images])
    proposals = network.propose(features)
    found = network.detect(features, proposals)
    masks = network.mask_probabilities(features, [d.boxes for d in found], [d.labels for d in found])
    return [Found(p, d.boxes, d.scores, d.labels, m) for p, d, m in zip(proposals, found, masks, strict=True)]


PIXELS, SCORE, PROBABILITY = 1e-3, 1e-5, 2e-4
IN_A_BATCH = 10.0
"""How much larger they are there, or behind many norms: sums run in another order, depth multiplies it."""
FEWEST = 20
"""Detections under which a comparison says little."""


def check_detections(boxes: Tensor, scores: Tensor, labels: Tensor, seen: Seen, slack: float = 1.0) -> Int64:
    """The oracle's row of each detection."""
    assert (scores.diff() <= 0).all()
    own = with_classes(seen.boxes, seen.classes)
    rows = matched(with_classes(boxes, labels - 1), own, slack * PIXELS)
    np.testing.assert_allclose(scores, seen.scores[rows], rtol=0, atol=slack * SCORE)
    return rows


def check(found: Found, seen: Seen, fewest: int = FEWEST, slack: float = 1.0) -> None:
    matched(found.proposals, seen.proposals, slack * PIXELS)
    rows = check_detections(found.boxes, found.scores, found.labels, seen, slack)
    assert len(rows) >= fewest
    np.testing.assert_allclose(found.masks, seen.probabilities[rows], rtol=0, atol=slack * PROBABILITY)
    size_hw = (seen.soft.shape[1], seen.soft.shape[2])
    sure = (seen.soft[rows] - 0.5).abs() > 1e-3
    drawn = torch.from_numpy(pasted(found.masks, found.boxes, size_hw))
    assert torch.equal(drawn & sure, seen.masks[rows] & sure)


BODY, PYRAMID, ANCHORS = "MODEL.RESNETS.", "MODEL.FPN.", "MODEL.ANCHOR_GENERATOR."
RPN, ROI, BOX, MASK = "MODEL.RPN.", "MODEL.ROI_HEADS.", "MODEL.ROI_BOX_HEAD.", "MODEL.ROI_MASK_HEAD."
STAGE_WEIGHTS = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
BASIC = {BODY + "STEM_OUT_CHANNELS": 16, BODY + "RES2_OUT_CHANNELS": 64}
RESNEXT = {BODY + "NUM_GROUPS": 4, BODY + "WIDTH_PER_GROUP": 4, BODY + "STRIDE_IN_1X1": False}
WIDE = {BODY + name: 32 for name in ("WIDTH_PER_GROUP", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS")}
CONVS = {BOX + "NUM_CONV": 2, BOX + "NUM_FC": 1, BOX + "CONV_DIM": 32}


def levels(first: int, sizes: Sequence[Sequence[float]] = ((9, 18, 36),)) -> dict[str, Any]:
    """A pyramid from stage `first` on, an RPN on it and level 6, and regions from it."""
    return {
        PYRAMID + "IN_FEATURES": [f"res{n}" for n in range(first, 6)],
        RPN + "IN_FEATURES": [f"p{n}" for n in range(first, 7)],
        ROI + "IN_FEATURES": [f"p{n}" for n in range(first, 6)],
        ANCHORS + "SIZES": sizes,
    }


def norms(kind: str) -> dict[str, Any]:
    """This norm in the pyramid, and in convolutions of both heads."""
    names = {PYRAMID: "OUT_CHANNELS", MASK: "CONV_DIM"}
    widths = {prefix + name: 32 for prefix, name in names.items()}
    return CONVS | widths | {prefix + "NORM": kind for prefix in (PYRAMID, BOX, MASK)}


PARTS: dict[str, dict[str, Any]] = {
    "resnet18": {**BASIC, BODY + "DEPTH": 18},
    "resnet34": {**BASIC, BODY + "DEPTH": 34},
    "resnet50": {},
    "resnet50, stride in the 3 x 3": {BODY + "STRIDE_IN_1X1": False},
    "resnet101": {BODY + "DEPTH": 101},
    "resnext50": RESNEXT,
    "resnext101": {**RESNEXT, BODY + "DEPTH": 101},
    "no shortcut in the first block": {BODY + "STEM_OUT_CHANNELS": 32},
    "batch norm in body": {BODY + "NORM": "BN"},
    "synchronised batch norm in body": {BODY + "NORM": "SyncBN"},
    "group norm in body": {**WIDE, BODY + "NORM": "GN"},
    "no norm in body": {BODY + "NORM": ""},
    "frozen norm in heads": norms("FrozenBN"),
    "batch norm in heads": norms("BN"),
    "group norm everywhere": {**WIDE, BODY + "NORM": "GN", **norms("GN")},
    "pyramid on 3 stages": levels(3),
    "pyramid on 2 stages": levels(4, sizes=[[9, 18], [36, 72], [30, 50]]),
    "2 sizes a level": {ANCHORS + "SIZES": [[8, 12], [16, 24], [32, 48], [64, 96], [128, 150]]},
    "all sizes at each level": {ANCHORS + "SIZES": [[8, 16, 40]], ANCHORS + "ASPECT_RATIOS": [[1.0]]},
    "ratios by level": {
        ANCHORS + "SIZES": [[8, 12], [16, 24], [32, 48], [64, 96], [128, 150]],
        ANCHORS + "ASPECT_RATIOS": [[0.5, 1], [1, 2], [0.7, 1.5], [0.5, 2], [1, 3]],
    },
    "RPN of other width": {RPN + "CONV_DIMS": [24]},
    "RPN of 2 convolutions": {RPN + "CONV_DIMS": [-1, -1]},
    "RPN of 3 convolutions": {RPN + "CONV_DIMS": [24, -1, 12]},
    "convolutions in box head": CONVS,
    "no linear layer in box head": {**CONVS, BOX + "NUM_FC": 0},
    "1 linear layer in box head": {BOX + "NUM_FC": 1},
    "other pools": {BOX + "POOLER_RESOLUTION": 5, MASK + "POOLER_RESOLUTION": 6},
    "no convolution in mask head": {MASK + "NUM_CONV": 0},
    "class-agnostic boxes": {BOX + "CLS_AGNOSTIC_BBOX_REG": True},
    "class-agnostic masks": {MASK + "CLS_AGNOSTIC_MASK": True},
    "class-agnostic both": {BOX + "CLS_AGNOSTIC_BBOX_REG": True, MASK + "CLS_AGNOSTIC_MASK": True},
    "1 class": {ROI + "NUM_CLASSES": 1},
    "8 classes": {ROI + "NUM_CLASSES": 8},
    "cascade": CASCADE,
    "cascade of 1": {**CASCADE, STAGE_WEIGHTS: [[10.0, 10.0, 5.0, 5.0]]},
    "cascade of 2": {**CASCADE, STAGE_WEIGHTS: [[10.0, 10.0, 5.0, 5.0], [15.0, 25.0, 8.0, 12.0]]},
    "cascade of group norm": {**CASCADE, **norms("GN")},
    "cascade of sigmoids": {**CASCADE, BOX + "USE_SIGMOID_CE": True},
    "sigmoid": {BOX + "USE_SIGMOID_CE": True},
    "layer norm everywhere": {BODY + "NORM": "LN", **norms("LN")},
    "deformable, modulated, in 2 groups": MODULATED,
    "deformable, stride in the 1 x 1, in one stage": {
        **MODULATED,
        BODY + "STRIDE_IN_1X1": True,
        BODY + "DEFORM_ON_PER_STAGE": [False, False, True, False],
    },
    "deformable, of 3 groups, not modulated": {
        **MODULATED,
        BODY + "WIDTH_PER_GROUP": 12,
        BODY + "DEFORM_NUM_GROUPS": 3,
        BODY + "DEFORM_MODULATED": False,
        BODY + "NORM": "BN",
    },
    "deformable of group norm": {**MODULATED, **WIDE, BODY + "NORM": "GN"},
    "deformable resnext cascade": DCONV_CASCADE,
    "resnest": RESNEST,
    "resnest of frozen norm": {**RESNEST, BODY + "NORM": "FrozenBN"},
    "resnest of radix 4": {**RESNEST, BODY + "RADIX": 4},
    "resnest of other width": {**RESNEST, BODY + "WIDTH_PER_GROUP": 16, BODY + "BOTTLENECK_WIDTH": 40},
    "resnest101": {**RESNEST, BODY + "DEPTH": 101},
    "deformable resnest, finest level twice": DEFORMABLE_RESNEST,
    "deformable resnest, not modulated": {
        **DEFORMABLE_RESNEST,
        BODY + "DEFORM_MODULATED": False,
        RPN + "IN_FEATURES": ["p3", "p2", "p2", "p4", "p6", "p5"],
    },
}
"""Networks of other weights."""

NOISY = {name for name in PARTS if "deformable" in name or "resnest" in name} | {"layer norm everywhere"}
"""Those whose bodies multiply what they round, since taps that move see other pixels. Float64 is exact."""

SECOND = {
    *("resnet34", "resnext101", "synchronised batch norm in body", "batch norm in heads", "8 classes"),
    *("group norm in body", "pyramid on 3 stages", "RPN of 2 convolutions", "class-agnostic both"),
    *("1 linear layer in box head", "cascade of sigmoids", "resnest101", "resnest of frozen norm"),
    *("deformable of group norm", "deformable, stride in the 1 x 1, in one stage"),
}
"""Those that say little more than another."""

OPTIONS: dict[str, dict[str, Any]] = {
    "averaging pyramid": {PYRAMID + "FUSE_TYPE": "avg"},
    "anchors in the middle": {ANCHORS + "OFFSET": 0.5},
    "anchors near the corner": {ANCHORS + "OFFSET": 0.3},
    "RPN on fewer levels": {RPN + "IN_FEATURES": ["p3", "p4"], ANCHORS + "SIZES": [[12], [30]]},
    "RPN's limits": {
        RPN + "PRE_NMS_TOPK_TEST": 12,
        RPN + "POST_NMS_TOPK_TEST": 30,
        RPN + "NMS_THRESH": 0.4,
        RPN + "BBOX_REG_WEIGHTS": [2.0, 1.0, 0.5, 1.5],
    },
    "no small proposals": {"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 12},
    "regions from 1 level": {ROI + "IN_FEATURES": ["p3"]},
    "RoIAlign": {BOX + "POOLER_TYPE": "ROIAlign", MASK + "POOLER_TYPE": "ROIAlign"},
    "RoIAlign of masks": {MASK + "POOLER_TYPE": "ROIAlign"},
    "sampling ratios": {BOX + "POOLER_SAMPLING_RATIO": 2, MASK + "POOLER_SAMPLING_RATIO": 1},
    "box weights": {BOX + "BBOX_REG_WEIGHTS": [8.0, 12.0, 4.0, 6.0]},
    "every detection": {"TEST.DETECTIONS_PER_IMAGE": -1},
    "limits of detections": {
        "TEST.DETECTIONS_PER_IMAGE": 30,
        ROI + "NMS_THRESH_TEST": 0.2,
    },
    "high scores": {ROI + "SCORE_THRESH_TEST": 0.3},
    "every score": {ROI + "SCORE_THRESH_TEST": 0.0, "TEST.DETECTIONS_PER_IMAGE": -1},
    "1 detection": {"TEST.DETECTIONS_PER_IMAGE": 1},
    "no resizing": {"INPUT.MIN_SIZE_TEST": 0},
    "longest edge": {"INPUT.MIN_SIZE_TEST": 100, "INPUT.MAX_SIZE_TEST": 97},
    "RGB": {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53]},
    "its own colours": {"MODEL.PIXEL_MEAN": [90.0, 120.0, 140.0], "MODEL.PIXEL_STD": [40.0, 60.0, 80.0]},
}
"""Uses of the same weights."""

GRAY, COLOUR = (88, 120), (88, 120, 3)
SHAPES = {"RGB": COLOUR, "its own colours": COLOUR, "no resizing": (83, 101, 3), "longest edge": (120, 50)}
FEW = {"1 detection": 1}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if name in SECOND else ()) for name in PARTS])
def test_network_sees_what_the_oracle_sees(name: str, tmp_path: Path) -> None:
    settings, state = settings_and_state(PARTS[name])
    image = picture(GRAY)
    network = network_of(settings, state, tmp_path)
    (found,) = run(network, image)
    if name in NOISY:
        check(found, see(state, settings, image, own_maps(network, image)), slack=IN_A_BATCH)
    else:
        check(found, see(state, settings, image))


@torch.inference_mode()
def own_maps(network: Detectron2Network, image: UInt8) -> dict[int, Tensor]:
    """The network's own maps, by level."""
    maps = network.features([image_tensor(CellImage("image", image))]).maps
    return {int(name.removeprefix("p")): level for name, level in maps.items()}


@pytest.mark.parametrize("name", sorted(NOISY))
def test_bodies_and_pyramids_are_the_oracle_s_to_the_last_bits(name: str, tmp_path: Path) -> None:
    settings, state = settings_and_state(PARTS[name])
    model = network_of(settings, state, tmp_path).model.double()
    images = torch.randn((1, 3, 96, 160), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    doubles = {key: t.double() if t.is_floating_point() else t for key, t in state.items()}
    expected = feature_maps(Net(doubles, settings), images[0])
    with torch.inference_mode():
        found = model.backbone(images)
    assert found.keys() == {f"p{level}" for level in expected}
    for level, own in expected.items():
        torch.testing.assert_close(found[f"p{level}"], own, rtol=1e-7, atol=1e-7 * float(own.abs().max()))


@pytest.mark.parametrize("name", OPTIONS)
def test_option_does_what_it_does_in_the_oracle(name: str, tmp_path: Path) -> None:
    settings, state = settings_and_state({}, OPTIONS[name])
    image = picture(SHAPES.get(name, GRAY))
    (found,) = run(network_of(settings, state, tmp_path), image)
    check(found, see(state, settings, image), FEW.get(name, FEWEST))


LARGE = {
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 900,
    RPN + "IN_FEATURES": ["p5", "p6"],
    ANCHORS + "SIZES": [[70, 130, 250], [450, 700, 1000]],
    ANCHORS + "ASPECT_RATIOS": [[1.0]],
    ROI + "SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": -1,
}


@pytest.mark.parametrize("last", [3, 5, 6])
def test_regions_come_from_the_level_of_their_size(last: int, tmp_path: Path) -> None:
    pooled = {ROI + "IN_FEATURES": [f"p{n}" for n in range(2, last + 1)]}
    settings, state = settings_and_state({}, LARGE | pooled)
    image = picture(GRAY)
    seen = see(state, settings, image)
    sides = (seen.proposals[:, 2:] - seen.proposals[:, :2]).prod(1).sqrt()
    assert all(((sides >= low) & (sides < 2 * low)).sum() > 2 for low in (56, 112, 224, 448))
    (found,) = run(network_of(settings, state, tmp_path), image)
    check(found, seen)


# Boxes that are not there.

FAR = {"roi_heads.box_predictor.bbox_pred.bias": 12.0}
"""Added to every delta: boxes move by more than their side, many of them out of the image."""


def with_added(state: State, more: Mapping[str, float]) -> State:
    return {key: tensor + more.get(key, 0.0) for key, tensor in state.items()}


def test_boxes_outside_the_image_count_among_the_best_and_are_dropped(tmp_path: Path) -> None:
    settings, state = settings_and_state({}, {"TEST.DETECTIONS_PER_IMAGE": 50})
    state, image = with_added(state, FAR), picture(GRAY)
    seen = see(state, settings, image)
    assert FEWEST < len(seen) < 45
    (found,) = run(network_of(settings, state, tmp_path), image)
    check(found, seen)


@pytest.mark.parametrize("parts", [{}, CASCADE], ids=["plain", "cascade"])
@pytest.mark.parametrize(
    "options",
    [{"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 1000}, {ROI + "SCORE_THRESH_TEST": 1.0}],
    ids=["proposals", "detections"],
)
def test_none_are_found(parts: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    settings, state = settings_and_state(parts, options)
    image = picture(GRAY)
    (found,) = run(network_of(settings, state, tmp_path), image)
    assert len(see(state, settings, image)) == 0
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
    assert found.masks.shape == (0, 16, 16)
    ensemble = load_ensemble([write_network(tmp_path, settings, state)], CPU)
    (prediction,) = predict(ensemble, [CellImage("image", image)])
    assert len(prediction) == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, State, Detectron2Network]:
    settings, state = settings_and_state()
    return settings, state, network_of(settings, state, tmp_path_factory.mktemp("plain"))


Plain = tuple[Settings, State, Detectron2Network]


@torch.inference_mode()
def test_some_images_of_a_batch_may_have_none(plain: Plain) -> None:
    *_, network = plain
    images = [image_tensor(CellImage("image", picture(GRAY, seed))) for seed in range(3)]
    features = network.features(images)
    proposals = network.propose(features)
    none = proposals[0][:0]
    whole = network.detect(features, proposals)
    for some in ([proposals[0], none, proposals[2]], [none, proposals[1], none], [none] * 3):
        for given, found, expected in zip(some, network.detect(features, some), whole, strict=True):
            assert len(found.boxes) == (len(expected.boxes) if len(given) else 0)
            if len(given):
                torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=PIXELS)
    boxes, labels = [d.boxes for d in whole], [d.labels for d in whole]
    masks = network.mask_probabilities(
        features, [boxes[0], none, boxes[2]], [labels[0], none[:, 0].long(), labels[2]]
    )
    assert [len(m) for m in masks] == [len(boxes[0]), 0, len(boxes[2])]
    expected_masks = network.mask_probabilities(features, boxes, labels)
    for row in (0, 2):
        torch.testing.assert_close(masks[row], expected_masks[row], rtol=0, atol=PROBABILITY)


# Batches, types, labels.


@pytest.mark.parametrize("parts", [{}, CASCADE], ids=["plain", "cascade"])
@pytest.mark.parametrize("shapes", [(GRAY, GRAY), (GRAY, COLOUR)], ids=["gray", "gray and colour"])
def test_images_of_a_batch_do_not_mix(
    parts: dict[str, Any], shapes: Sequence[tuple[int, ...]], tmp_path: Path
) -> None:
    settings, state = settings_and_state(parts)
    network = network_of(settings, state, tmp_path)
    images = [picture(shape, seed) for seed, shape in enumerate(shapes)]
    for image, together in zip(images, run(network, *images), strict=True):
        check(together, see(state, settings, image), slack=IN_A_BATCH)


def test_everything_is_float32_and_in_range(plain: Plain) -> None:
    (found,) = run(plain[2], picture(GRAY))
    for tensor in (found.proposals, found.boxes, found.scores, found.masks):
        assert tensor.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    assert set(found.labels.tolist()) == {1, 2, 3}
    assert ((found.boxes >= 0) & (found.boxes <= torch.tensor([120, 88, 120, 88]))).all()
    for tensor in (found.scores, found.masks):
        assert ((tensor >= 0) & (tensor <= 1)).all()


@torch.inference_mode()
def test_label_0_gets_any_mask_and_leaves_the_others_theirs(plain: Plain) -> None:
    *_, network = plain
    features = network.features([image_tensor(CellImage("image", picture(GRAY)))])
    (found,) = network.detect(features, network.propose(features))
    unknown = torch.arange(len(found.labels)) % 3 == 0
    labels = found.labels.masked_fill(unknown, 0)
    (masks,) = network.mask_probabilities(features, [found.boxes], [labels])
    (expected,) = network.mask_probabilities(features, [found.boxes], [found.labels])
    assert masks.shape == expected.shape
    assert ((masks >= 0) & (masks <= 1)).all()
    torch.testing.assert_close(masks[~unknown], expected[~unknown], rtol=0, atol=0)


@torch.inference_mode()
def test_masks_are_those_of_the_label_that_is_asked_for(plain: Plain) -> None:
    *_, network = plain
    features = network.features([image_tensor(CellImage("image", picture(GRAY)))])
    (found,) = network.detect(features, network.propose(features))
    by_label = torch.stack(
        [
            network.mask_probabilities(features, [found.boxes], [torch.full_like(found.labels, label)])[0]
            for label in (1, 2, 3)
        ]
    )
    (own,) = network.mask_probabilities(features, [found.boxes], [found.labels])
    chosen = by_label[found.labels - 1, torch.arange(len(own))]
    torch.testing.assert_close(own, chosen, rtol=0, atol=PROBABILITY)
    assert (by_label[0] - by_label[1]).abs().max() > 0.1


# Values that are none.

PLACES = {
    "stem": "backbone.bottom_up.stem.conv1.weight",
    "norm": "backbone.bottom_up.res2.0.conv1.norm.running_var",
    "pyramid": "backbone.fpn_output2.weight",
    "objectness": "proposal_generator.rpn_head.objectness_logits.weight",
    "proposals' boxes": "proposal_generator.rpn_head.anchor_deltas.bias",
    "box head": "roi_heads.box_head.fc1.weight",
    "scores": "roi_heads.box_predictor.cls_score.bias",
    "boxes": "roi_heads.box_predictor.bbox_pred.weight",
    "mask head": "roi_heads.mask_head.mask_fcn1.weight",
    "upsampling": "roi_heads.mask_head.deconv.bias",
    "masks": "roi_heads.mask_head.predictor.bias",
}
HARMLESS = {("norm", torch.inf)}
"""What is divided by infinity is 0."""


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("ensemble")
    return load_ensemble([write_network(folder, *settings_and_state())], CPU)


def broken(ensemble: Ensemble, key: str, change: Callable[[Tensor], object]) -> Ensemble:
    """The ensemble of one network with one of its tensors changed."""
    (member,) = ensemble.members
    network = deepcopy(member.network)
    assert isinstance(network, Detectron2Network)
    with torch.no_grad():
        change(network.state_dict()[f"model.{key}"])
    return replace(ensemble, members=(replace(member, network=network),))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (place, value)
        for place in PLACES
        for value in (torch.nan, torch.inf)
        if (place, value) not in HARMLESS
    ],
)
def test_a_network_of_nan_or_infinity_raises(ensemble: Ensemble, place: str, value: float) -> None:
    faulty = broken(ensemble, PLACES[place], lambda tensor: tensor.fill_(value))
    with pytest.raises(PredictionError, match=r"^network: "):
        predict(faulty, [CellImage("image", picture(GRAY))])


@pytest.mark.parametrize("place", ["stem", "scores", "boxes", "masks"])
def test_a_single_nan_on_the_way_to_everything_raises(ensemble: Ensemble, place: str) -> None:
    def spoil(tensor: Tensor) -> None:
        tensor.view(-1)[0] = torch.nan

    image = CellImage("image", picture(GRAY))
    with pytest.raises(PredictionError, match=r"^network: "):
        predict(broken(ensemble, PLACES[place], spoil), [image])


@torch.inference_mode()
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("level", [2, 4])
def test_a_few_rows_that_are_not_finite_are_dropped(plain: Plain, level: int, value: float) -> None:
    settings, state, network = plain
    image = picture(GRAY)
    features = network.features([image_tensor(CellImage("image", image))])
    maps = {name: values.clone() for name, values in features.maps.items()}
    maps[f"p{level}"][0, :, 3, 3] = value
    seen = see(state, settings, image, {int(name[1:]): values for name, values in maps.items()})
    features = replace(features, maps=maps)
    proposals = network.propose(features)
    matched(proposals[0], seen.proposals, PIXELS)
    (found,) = network.detect(features, proposals)
    rows = check_detections(found.boxes, found.scores, found.labels, seen)
    assert len(rows) >= FEWEST


@torch.inference_mode()
def test_rows_that_a_cascade_loses_on_the_way_are_dropped(tmp_path: Path) -> None:
    """Detectron2 itself stops there."""
    network = network_of(*settings_and_state(CASCADE), tmp_path)
    features = network.features([image_tensor(CellImage("image", picture(GRAY)))])
    (whole,) = network.detect(features, network.propose(features))
    proposals = network.propose(features)
    maps = {name: values.clone() for name, values in features.maps.items()}
    maps["p2"][0, :, 3, 3] = torch.nan
    (found,) = network.detect(replace(features, maps=maps), proposals)
    assert found.boxes.isfinite().all() and found.scores.isfinite().all()
    assert len(found.scores) >= FEWEST
    apart = cdist(
        with_classes(found.boxes, found.labels), with_classes(whole.boxes, whole.labels), "chebyshev"
    )
    assert (apart.min(1) < PIXELS).mean() > 0.7


def test_anchors_whose_delta_is_nan_propose_nothing(tmp_path: Path) -> None:
    settings, state = settings_and_state()
    key = "proposal_generator.rpn_head.anchor_deltas.bias"
    state[key] = state[key].clone()
    state[key][6] = torch.nan
    image = picture(GRAY)
    seen = see(state, settings, image)
    assert not torch.equal(seen.proposals, see(settings_and_state()[1], settings, image).proposals)
    (found,) = run(network_of(settings, state, tmp_path), image)
    check(found, seen)


# Views.


def hflipped(boxes: Float32, size_hw: tuple[int, int]) -> Float32:
    x0, y0, x1, y1 = boxes.T
    return np.stack([size_hw[1] - x1, y0, size_hw[1] - x0, y1], axis=1)


def rotated(boxes: Float32, size_hw: tuple[int, int]) -> Float32:
    x0, y0, x1, y1 = boxes.T
    return np.stack([y0, size_hw[1] - x1, y1, size_hw[1] - x0], axis=1)


def upright(boxes: Float32, size_hw: tuple[int, int]) -> Float32:
    return boxes


Turn = tuple[Callable[[Any], Any], Callable[[Float32, tuple[int, int]], Float32]]
TURNS: dict[str, Turn] = {
    "identity": (np.asarray, upright),
    "hflip": (lambda a: np.flip(a, axis=-1), hflipped),
    "rot90": (lambda a: np.rot90(a, axes=(-2, -1)), rotated),
}


@pytest.mark.parametrize("view", ["hflip", "rot90", "scale:1.3", "scale:0.7", "rot90+scale:1.3"])
def test_a_view_is_what_the_oracle_sees_in_the_turned_image(ensemble: Ensemble, view: str) -> None:
    settings, state = settings_and_state()
    name, _, scale = view.partition("scale:")
    turn, turned_boxes = TURNS[name.rstrip("+") or "identity"]
    image = picture(GRAY)
    (p,) = predict(ensemble.with_overrides([view]), [CellImage("image", image)])
    seen = see(state, scaled(settings, float(scale or 1)), np.ascontiguousarray(turn(image)))
    boxes = torch.from_numpy(turned_boxes(p.boxes, p.size_hw))
    rows = check_detections(boxes, torch.from_numpy(p.scores), torch.from_numpy(p.labels), seen)
    assert len(rows) >= FEWEST
    masks = np.ascontiguousarray(turn(p.masks)).astype(np.float32)
    np.testing.assert_allclose(masks, seen.probabilities[rows], rtol=0, atol=1e-3)


# Votes.

SIZE_HW = (12, 150)
VOTERS = {"INPUT.MIN_SIZE_TEST": 100, "INPUT.MAX_SIZE_TEST": 400, MASK + "POOLER_RESOLUTION": 14}


def check_vote(both: Ensemble, alone: Sequence[Ensemble]) -> None:
    """Boxes are the fused ones of each network, masks the mean of what each draws in them."""
    image = CellImage("image", picture(SIZE_HW))
    (prediction,) = predict(both, [image])
    single = [predict(one, [image])[0] for one in alone]
    assert min(map(len, single)) > 3
    fused = fuse([Boxes(p.boxes, p.scores, p.labels) for p in single], SIZE_HW, Fusion())
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(getattr(prediction, name), getattr(fused, name), rtol=0, atol=1e-4)
    boxes, labels = [torch.from_numpy(fused.boxes)], [torch.from_numpy(fused.labels)]
    drawn = []
    with torch.inference_mode():
        for member in both.members:
            features = member.network.features([image_tensor(image)])
            drawn += member.network.mask_probabilities(features, boxes, labels)
    np.testing.assert_allclose(prediction.masks, torch.stack(drawn).mean(0), rtol=0, atol=1e-3)


def test_bare_checkpoints_of_both_kinds_vote_together(tmp_path: Path) -> None:
    ours = write_network(tmp_path, *settings_and_state(VOTERS))
    other = tmp_path / "other.safetensors"
    save_file(tiny_model().state_dict(), other)
    both = load_ensemble([ours, other], CPU)
    assert [type(member.network).__name__ for member in both.members] == [
        "Detectron2Network",
        "TorchvisionNetwork",
    ]
    check_vote(both, [load_ensemble([path], CPU) for path in (ours, other)])


def test_both_kinds_vote_together_by_a_manifest(tmp_path: Path) -> None:
    settings, state = settings_and_state(VOTERS)
    spec = spec_of(config_of(settings, tmp_path), "ours.pth")
    torch.save(state, tmp_path / "ours.pth")
    save_file(tiny_model().state_dict(), tmp_path / "other.safetensors")
    entries = [
        json.loads(spec.model_dump_json()) | {"classes": ["a", "b", "c"]},
        {
            "name": "other",
            "file": "other.safetensors",
            "classes": ["a", "b", "c"],
            "network": {key: TINY[key] for key in ("anchors", "rpn", "detection")},
            "preprocessing": {"resize": {"shortest_edge": 48, "longest_edge": 400}},
        },
    ]
    names = {"both.json": entries, "first.json": entries[:1], "second.json": entries[1:]}
    both, *alone = [
        load_ensemble([write_manifest(tmp_path / name, some)], CPU) for name, some in names.items()
    ]
    check_vote(both, alone)
