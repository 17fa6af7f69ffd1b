"""MMDetection's networks give what MMDetection gives: in a case that it ran itself, and as an oracle has it.

MMDetection's own outputs lie in `../shared/reference/mmdet`; without them their tests are skipped. The oracle
gives the same there, and it runs every architecture and option on networks small enough for a test.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from detectron2_factories import picture
from mmdet_configs import ALL, SMALL, as_2x, as_text, with_model
from mmdet_layers_oracle import Net
from mmdet_oracle import Seen, calibrated, feature_maps, network_image, see
from mmdet_runs import REFERENCE, config_of
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor

from sartorius_infer.cells.paste import paste_cells
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import image_tensor
from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks import Detections, Features
from sartorius_infer.networks.mmdet.boxes import pool_rois
from sartorius_infer.networks.mmdet.config import MmdetConfig
from sartorius_infer.networks.mmdet.config_text import read_text
from sartorius_infer.networks.mmdet.rcnn import MmdetNetwork, build_mmdet
from sartorius_infer.types import CellImage, Int64, UInt8

Arrays = Mapping[str, NDArray[Any]]
Values = dict[str, Any]
State = dict[str, Tensor]

FOLDER = REFERENCE / "mask_rcnn_r50"
CPU = torch.device("cpu")
SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """What a network sees in one image, step by step; labels from 1."""

    features: Features
    proposals: Tensor
    found: Detections
    masks: Tensor


@torch.inference_mode()
def run(network: MmdetNetwork, *images: UInt8) -> list[Run]:
    features = network.features([image_tensor(CellImage("image", image)) for image in images])
    proposals = network.propose(features)
    found = network.detect(features, proposals)
    masks = network.mask_probabilities(features, [d.boxes for d in found], [d.labels for d in found])
    return [Run(features, *each) for each in zip(proposals, found, masks, strict=True)]


def partners(boxes: Any, classes: Any, other_boxes: Any, other_classes: Any) -> tuple[Int64, NDArray[Any]]:
    """For each box the nearest of the same class among others, and how far its furthest side is away."""
    rows, others = (
        np.concatenate([np.asarray(b, np.float64), 1e4 * np.asarray(c, np.float64)[:, None]], axis=1)
        for b, c in ((boxes, classes), (other_boxes, other_classes))
    )
    distance = cdist(rows, others, "chebyshev")
    return distance.argmin(1), distance.min(1)


# What MMDetection itself saw.


@pytest.fixture(scope="module")
def reference_run() -> Values:
    """The checkpoint that MMDetection's trainer writes, by the script beside its outputs."""
    if not REFERENCE.is_dir():
        pytest.skip("MMDetection's own outputs are not here")
    spec = importlib.util.spec_from_file_location("materialise", REFERENCE / "materialise.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    content: Values = module.wrap(FOLDER)
    return content


def of_generation_2(content: Values) -> Values:
    """The same weights in the wrapper and with the config that MMDetection 2 writes."""
    text = as_text(as_2x(read_text(content["meta"]["cfg"], "the reference")))
    meta = {"mmdet_version": "2.28.2", "CLASSES": content["meta"]["dataset_meta"]["classes"], "config": text}
    return {"meta": meta, "state_dict": content["state_dict"], "optimizer": content["optimizer"]}


def loaded(content: Values, path: Path) -> MmdetNetwork:
    torch.save(content, path)
    (member,) = load_ensemble([path], CPU).members
    path.unlink()
    assert isinstance(member.network, MmdetNetwork)
    return member.network


@pytest.fixture(scope="module", params=[3, pytest.param(2, marks=SLOW)], ids=["3.x", "2.x"])
def reference_network(
    request: pytest.FixtureRequest, reference_run: Values, tmp_path_factory: pytest.TempPathFactory
) -> MmdetNetwork:
    content = reference_run if request.param == 3 else of_generation_2(reference_run)
    network = loaded(content, tmp_path_factory.mktemp("r50") / "epoch_12.pth")
    assert network.parts.dialect == request.param
    return network


@dataclass(frozen=True)
class Case:
    """One image: what the package sees in it, and what MMDetection saw, on the way and at the end."""

    network: MmdetNetwork
    run: Run
    size_hw: tuple[int, int]
    result: Arrays
    stages: Arrays
    runs: list[Mapping[str, Any]]


@pytest.fixture(
    scope="module", params=["color_wide", *(pytest.param(n, marks=SLOW) for n in ("gray0", "gray1"))]
)
def case(request: pytest.FixtureRequest, reference_network: MmdetNetwork) -> Case:
    name = request.param
    pixels = np.array(Image.open(REFERENCE.parent / "detectron2" / "images" / f"{name}.png"))
    (seen,) = run(reference_network, pixels)
    files = [dict(np.load(FOLDER / f"{name}{suffix}.npz")) for suffix in ("", ".stages")]
    runs = json.loads((FOLDER / f"{name}.rle.json").read_text())
    return Case(reference_network, seen, (pixels.shape[0], pixels.shape[1]), *files, runs)


STEPS = (16, 8, 4, 2, 1)
"""Of each level's map, MMDetection's file holds the positions this far apart."""


def test_mmdetection_sees_the_same_maps(case: Case) -> None:
    features = case.run.features
    assert [list(hw) for hw in features.input_hws] == [case.result["net_image_size"].tolist()]
    assert list(features.padded_hw) == case.result["net_input_shape"][2:].tolist()
    for index, step in enumerate(STEPS):
        samples = features.maps[str(index)][0, :, ::step, ::step]
        np.testing.assert_allclose(samples, case.stages[f"p{index + 2}_sub"], rtol=0, atol=2e-4)


def test_mmdetection_proposes_the_same(case: Case) -> None:
    found, expected = case.run.proposals, case.stages["proposals"]
    assert len(found) == len(expected)
    distance = cdist(found, expected, "chebyshev")
    for axis in (0, 1):  # one IoU in a thousand may lie on the threshold's other side
        assert (distance.min(axis) <= 1e-2).mean() >= 0.999


def test_mmdetection_puts_out_the_same_for_its_proposals(case: Case) -> None:
    network, proposals = case.network, torch.from_numpy(case.stages["proposals"])
    (head,) = network.model.roi_head.box_heads()
    maps = list(case.run.features.maps.values())
    with torch.inference_mode():
        logits, deltas = head(pool_rois(maps, [proposals], network.parts.box_heads[0].pool))
    np.testing.assert_allclose(logits, case.stages["box_logits_stage0"], rtol=0, atol=5e-3)
    np.testing.assert_allclose(deltas, case.stages["box_deltas_stage0"], rtol=0, atol=5e-3)


def matches(case: Case) -> tuple[Int64, NDArray[np.bool_], NDArray[Any]]:
    """Of each detection MMDetection's nearest, whether the two are one, and how far apart they are."""
    found = case.run.found
    rows, distance = partners(
        found.boxes, found.labels - 1, case.result["pred_boxes"], case.result["pred_classes"]
    )
    return rows, distance <= 1e-2, distance


def test_mmdetection_detects_the_same(case: Case) -> None:
    rows, same, distance = matches(case)
    expected = case.result["scores"]
    assert min(same.sum() / len(same), len(set(rows[same].tolist())) / len(expected)) >= 0.995
    assert np.median(distance[same]) < 1e-3
    np.testing.assert_allclose(case.run.found.scores[same], expected[rows[same]], rtol=0, atol=5e-4)


def test_mmdetection_gives_the_same_probabilities(case: Case) -> None:
    rows, same, _ = matches(case)
    np.testing.assert_allclose(case.run.masks[same], case.result["mask_probs"][rows[same]], rtol=0, atol=2e-3)


def test_mmdetection_draws_the_same_masks(case: Case) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    rows, same, _ = matches(case)
    with catch_warnings(action="ignore"):  # pycocotools is older than numpy 2
        expected = coco.decode(case.runs).transpose(2, 0, 1).astype(bool)
    masks, boxes = case.run.masks.numpy()[same], case.run.found.boxes.numpy()[same]
    overlaps, apart = [], []
    for row, (y, x, part) in zip(rows[same], paste_cells(masks, boxes, case.size_hw, "exact"), strict=True):
        whole = np.zeros(case.size_hw, bool)
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part >= 0.5
        either = (whole | expected[row]).sum()
        apart.append((whole ^ expected[row]).sum())
        overlaps.append((whole & expected[row]).sum() / either if either else 1.0)
    assert max(apart) <= 8  # pixels at a probability of a half
    assert np.mean(overlaps) >= 0.999


# What the oracle sees.


def network_of(config: MmdetConfig, state: State) -> MmdetNetwork:
    spec = ModelSpec(name="a", file="a.pth", preprocessing=config.preprocessing, mmdet=config.parts)
    return build_mmdet(spec, dict(state), torch.float32)


PIXELS, SCORE, PROBABILITY = 2e-3, 5e-5, 1e-3
FEWEST = 20
"""Detections under which a comparison says little."""
GRAY, COLOUR = (70, 110), (90, 64, 3)


@cache
def _state(text: str) -> State:
    return calibrated(read_text(text, "a config"), picture((88, 120)))


def check(values: Values, folder: Path, *sizes: tuple[int, ...]) -> list[tuple[Run, Seen]]:
    """The package's network sees in each image what the oracle sees.

    Behind random deformable convolutions the last bits of an image decide: there the oracle goes on from the
    network's own maps, and `test_bodies_and_pyramids...` compares those in float64.
    """
    state = _state(as_text(values))
    network = network_of(config_of(values, folder), state)
    pairs = []
    for size in sizes or (GRAY,):
        image = picture(size)
        (found,) = run(network, image)
        deforms = "dcn" in values["model"]["backbone"]
        seen = see(state, values, image, list(found.features.maps.values()) if deforms else None)
        check_one(found, seen)
        pairs.append((found, seen))
    return pairs


def check_one(found: Run, seen: Seen) -> None:
    assert found.features.input_hws == (seen.input_hw,)
    assert len(found.found.boxes) == len(seen) >= FEWEST
    rows, distance = partners(found.found.boxes, found.found.labels - 1, seen.boxes, seen.classes)
    assert sorted(rows.tolist()) == list(range(len(seen)))
    assert distance.max() <= PIXELS
    torch.testing.assert_close(found.found.scores, seen.scores[rows], rtol=0, atol=SCORE)
    torch.testing.assert_close(found.masks, seen.probabilities[rows], rtol=0, atol=PROBABILITY)


QUICK = ("ResNet", "caffe", "ResNet-18", "extra levels", "cascade", "HTC", "Swin", "DCNv2")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in ALL])
@pytest.mark.parametrize("dialect", [3, pytest.param(2, marks=SLOW)])
def test_every_kind_sees_what_the_oracle_sees(name: str, dialect: int, tmp_path: Path) -> None:
    check(ALL[name] if dialect == 3 else as_2x(ALL[name]), tmp_path, GRAY, COLOUR)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in ALL])
def test_bodies_and_pyramids_are_the_oracle_s_to_the_last_bits(name: str, tmp_path: Path) -> None:
    state = _state(as_text(ALL[name]))
    model = network_of(config_of(ALL[name], tmp_path), state).model.double()
    image = network_image(picture((88, 120)), ALL[name]).double()
    down, right = (-side % 32 for side in image.shape[1:])
    doubles = {key: t.double() if t.is_floating_point() else t for key, t in state.items()}
    expected = feature_maps(Net(doubles), ALL[name], image)
    with torch.inference_mode():
        found = model.neck(model.backbone(F.pad(image[None], (0, right, 0, down))))
    for level, own in zip(found, expected, strict=True):
        torch.testing.assert_close(level, own, rtol=1e-7, atol=1e-7 * float(own.abs().max()))


def anchors(**changes: Any) -> Values:
    return {"rpn_head": {"anchor_generator": changes}}


OPTIONS: dict[str, Values] = {
    "several scales": anchors(scales=[2, 3]),
    "octaves": anchors(scales=None, octave_base_scale=2, scales_per_octave=2),
    "base sizes": anchors(base_sizes=[6, 10, 20, 33, 50]),
    "few before the NMS": {"test_cfg": {"rpn": {"nms_pre": 20, "max_per_img": 200}}},
    "long proposals": {"test_cfg": {"rpn": {"min_bbox_size": 12}}},
    "negative size": {"test_cfg": {"rpn": {"min_bbox_size": -1}}},
    "one for all": {"test_cfg": {"rcnn": {"nms": {"class_agnostic": True}}}},
    "means": {"roi_head": {"bbox_head": {"bbox_coder": {"target_means": [0.1, -0.1, 0.05, 0.0]}}}},
    "class-agnostic boxes": {"roi_head": {"bbox_head": {"reg_class_agnostic": True}}},
    "class-agnostic masks": {"roi_head": {"mask_head": {"class_agnostic": True}}},
    "no limit": {"test_cfg": {"rcnn": {"max_per_img": -1, "score_thr": 0.2}}},
    "finest scale": {"roi_head": {"bbox_roi_extractor": {"finest_scale": 20}}},
}
"""What changes a network's use, and its weights here and there; `test_boxes` has what the oracle lacks."""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_does_what_the_oracle_does(name: str, tmp_path: Path) -> None:
    values = with_model(OPTIONS[name])
    generator = values["model"]["rpn_head"]["anchor_generator"]
    if generator.get("scales", 0) is None:
        del generator["scales"]
    check(values, tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_the_generations_of_an_htc_differ_in_their_masks(tmp_path: Path) -> None:
    values = ALL["HTC"]
    ((new, _),) = check(values, tmp_path)
    ((old, _),) = check(as_2x(values), tmp_path)
    assert len(old.masks) == len(new.masks)
    rows, distance = partners(old.found.boxes, old.found.labels, new.found.boxes, new.found.labels)
    assert distance.max() < PIXELS
    assert (old.masks - new.masks[rows]).abs().max() > 0.1


@pytest.mark.usefixtures("one_thread")
def test_images_do_not_see_their_batch(tmp_path: Path) -> None:
    network = network_of(config_of(SMALL, tmp_path), _state(as_text(SMALL)))
    images = [picture(GRAY, seed) for seed in (0, 1)]
    for both, image in zip(run(network, *images), images, strict=True):
        (alone,) = run(network, image)
        rows, distance = partners(both.found.boxes, both.found.labels, alone.found.boxes, alone.found.labels)
        assert len(both.masks) == len(alone.masks) >= FEWEST
        assert distance.max() < PIXELS
        torch.testing.assert_close(both.masks, alone.masks[rows], rtol=0, atol=PROBABILITY)


def test_an_image_without_cells_has_none(tmp_path: Path) -> None:
    values = with_model({"test_cfg": {"rcnn": {"score_thr": 1.0}}})
    (seen,) = run(network_of(config_of(values, tmp_path), _state(as_text(SMALL))), picture(GRAY))
    assert (len(seen.found.boxes), seen.masks.shape[0]) == (0, 0)


def test_a_config_of_another_network_is_refused_by_its_keys(tmp_path: Path) -> None:
    config = config_of(with_model({"roi_head": {"bbox_head": {"fc_out_channels": 31}}}), tmp_path)
    with pytest.raises(CheckpointError, match=r"shared_fcs\.0\.weight .*Likely the config of another"):
        network_of(config, _state(as_text(SMALL)))
