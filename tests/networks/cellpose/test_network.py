"""A Cellpose network in the four steps: its boxes, its masks, its class, alone and among others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cellpose_cases import image_of, needs_reference, quarter, radial_maps
from torch import Tensor, nn
from torchvision.ops import box_iou

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.competition import any_score
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.member import make_member
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.manifest.manifest import Manifest, ModelSpec
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks import Detections, Features
from sartorius_infer.networks.cellpose.masks import cells_of
from sartorius_infer.networks.cellpose.network import CellposeFeatures, CellposeNetwork, Seen
from sartorius_infer.networks.cellpose.unet import UNet
from sartorius_infer.networks.cpu.winograd import WinogradConv2d
from sartorius_infer.types import CellImage

SIZE_HW = (70, 80)
DISCS = [(14.0, 15.0, 9.0), (40.0, 20.0, 12.0), (22.0, 50.0, 6.0), (52.0, 69.0, 10.0)]
PARTS = CellposeParts()


class Discs(CellposeNetwork):
    """A network that sees discs in whatever image, through the view that it is told."""

    def __init__(self, parts: CellposeParts = PARTS, class_count: int | None = None) -> None:
        super().__init__(UNet((3,)), parts, 1.0, class_count, torch.float32)

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> CellposeFeatures:
        maps = torch.from_numpy(radial_maps(SIZE_HW, DISCS))
        flow = maps[:2]
        # Seen through the view, a flow's parts are mirrored and swapped with the axes.
        if view.transpose:
            flow = flow.flip(0)
        flow = view.image(flow) * torch.tensor([1 - 2 * view.vflip, 1 - 2 * view.hflip])[:, None, None]
        seen_maps = torch.cat([flow, view.image(maps[2:])]).contiguous()
        hw = int(seen_maps.shape[1]), int(seen_maps.shape[2])
        seen = Seen(cells_of(seen_maps.numpy(), self.parts, hw, 1.0))
        style = torch.zeros((len(images), 1, 1, 1))
        hws = (hw,) * len(images)
        return CellposeFeatures({"style": style}, hws, hws, hw, (seen,) * len(images))


def ensemble(
    networks: Sequence[CellposeNetwork], classes: tuple[str, ...] = ("cell",), **more: Any
) -> Ensemble:
    specs = tuple(ModelSpec(name=f"n{i}", file="f") for i in range(len(networks)))
    manifest = Manifest(version=1, classes=classes, models=specs, rules=any_score(classes), **more)
    members = [make_member(classes, s, n, torch.device("cpu")) for s, n in zip(specs, networks, strict=True)]
    return Ensemble(manifest, tuple(members), torch.device("cpu"))


IMAGE = CellImage("a", np.zeros(SIZE_HW, np.uint8))


def same_cells(a: np.ndarray, b: np.ndarray) -> bool:
    met = {tuple(p) for p in np.stack([a.ravel(), b.ravel()], axis=1).tolist()}
    return len(met) == len(np.unique(a)) == len(np.unique(b))


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0])
def test_alone_its_label_map_comes_out_map_for_map(threshold: float) -> None:
    parts = CellposeParts(cellprob_threshold=threshold)
    found = ensemble([Discs(parts)])
    (prediction,) = predict(found, [IMAGE])
    instances = build_instances(prediction, found.rules, found.classes)
    own = cells_of(radial_maps(SIZE_HW, DISCS), parts, SIZE_HW, 1.0)
    assert same_cells(instances.label_map, own.label_map)
    assert np.array_equal(np.sort(instances.scores), np.sort(own.scores))
    assert (instances.labels == 1).all() and len(instances) == len(DISCS)


@needs_reference
@pytest.mark.slow
def test_alone_a_real_image_comes_out_map_for_map() -> None:
    pixels, network = image_of("d48ec7815252"), quarter()
    found = ensemble([network])
    (prediction,) = predict(found, [CellImage("a", pixels)])
    own = network.features([torch.from_numpy(pixels.copy())[None]]).seen[0].cells.label_map
    instances = build_instances(prediction, found.rules, found.classes)
    # What our rules add: of a cell in pieces only the largest stays.
    assert (instances.label_map[own == 0] == 0).all()
    assert ((instances.label_map > 0) != (own > 0)).mean() < 1e-3


@pytest.mark.parametrize("view", ["hflip", "rot90", "transpose"])
def test_views_see_the_same_cells(view: str) -> None:
    found = ensemble([Discs()], views=(view,))
    (prediction,) = predict(found, [IMAGE])
    instances = build_instances(prediction, found.rules, found.classes)
    own = cells_of(radial_maps(SIZE_HW, DISCS), PARTS, SIZE_HW, 1.0).label_map
    assert ((instances.label_map > 0) != (own > 0)).sum() <= 4


def slow_mask(seen: Seen, box: list[float]) -> np.ndarray:
    """The rule square by square."""
    overlaps = box_iou(torch.tensor([box]), torch.from_numpy(seen.boxes))[0]
    owner = int(overlaps.argmax()) + 1 if float(overlaps.max()) > 0.3 else 0
    height, width = seen.cells.label_map.shape
    mask = np.zeros((seen.side, seen.side))
    for i in range(seen.side):
        for j in range(seen.side):
            y = box[1] + (i + 0.5) * (box[3] - box[1]) / seen.side
            x = box[0] + (j + 0.5) * (box[2] - box[0]) / seen.side
            if 0 <= y < height and 0 <= x < width:
                place = int(y), int(x)
                if not owner or seen.cells.reach[place] == owner:
                    mask[i, j] = seen.cells.probabilities[place]
    return mask


def test_masks_of_other_networks_boxes() -> None:
    network = Discs()
    features = network.features([torch.zeros((1, *SIZE_HW), dtype=torch.uint8)])
    boxes = [
        [5.5, 5.25, 24.0, 23.0],
        [10.0, 30.0, 31.5, 49.0],
        [0.0, 0.0, 80.0, 70.0],
        [-4.0, 50.0, 9.0, 74.0],
    ]
    (masks,) = network.mask_probabilities(features, [torch.tensor(boxes)], [torch.ones(4, dtype=torch.int64)])
    expected = np.stack([slow_mask(features.seen[0], box) for box in boxes])
    np.testing.assert_allclose(masks.numpy(), expected, rtol=0, atol=0)
    # Where none of its cells is, it leaves it to others, and asked all the same it says what it saw.
    (saw,) = network.saw(features, [torch.tensor(boxes)])
    assert saw.tolist() == [True, True, False, False]
    assert masks[2].max() > 0.9 and masks[3].max() > 0
    empty = network.mask_probabilities(features, [torch.zeros((0, 4))], [torch.zeros(0, dtype=torch.int64)])
    assert empty[0].shape == (0, features.seen[0].side, features.seen[0].side)
    assert network.saw(features, [torch.zeros((0, 4))])[0].shape == (0,)


def test_its_cells_are_its_boxes_best_first() -> None:
    for count, label in ((None, 0), (1, 1)):
        network = Discs(class_count=count)
        features = network.features([torch.zeros((1, *SIZE_HW), dtype=torch.uint8)] * 2)
        proposals = network.propose(features)
        first, second = network.detect(features, proposals)
        assert torch.equal(first.boxes, second.boxes) and (first.labels == label).all()
        assert (first.scores.diff() <= 0).all()
        own = features.seen[0].cells.label_map
        for box in first.boxes.long().tolist():
            inside = own[box[1] : box[3], box[0] : box[2]]
            number = np.bincount(inside[inside > 0]).argmax()
            assert (inside == number).sum() == (own == number).sum()


def test_an_image_without_cells_passes_all_steps() -> None:
    network = quarterless()
    images = [torch.full((1, 40, 50), 9, dtype=torch.uint8)]
    with torch.inference_mode():
        features = network.features(images)
        assert [len(d.boxes) for d in network.detect(features, network.propose(features))] == [0]
        (masks,) = network.mask_probabilities(
            features, [torch.tensor([[1.0, 2.0, 9.0, 8.0]])], [torch.ones(1)]
        )
    assert masks.shape == (1, 28, 28)


class Faint(Discs):
    """Sees the first disc alone."""

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> CellposeFeatures:
        maps = radial_maps(SIZE_HW, DISCS[:1])
        seen = (Seen(cells_of(maps, self.parts, SIZE_HW, 1.0)),) * len(images)
        hws = (SIZE_HW,) * len(images)
        return CellposeFeatures({"style": torch.zeros((len(images), 1, 1, 1))}, hws, hws, SIZE_HW, seen)


def test_masks_of_cells_that_it_did_not_see_are_the_others_own() -> None:
    (other,) = predict(ensemble([Discs()]), [IMAGE])
    (found,) = predict(ensemble([Discs(), Faint()]), [IMAGE])
    assert len(found) == len(other) == len(DISCS)
    first = np.array([5, 6, 25, 24])
    for box, mask in zip(other.boxes, other.masks, strict=True):
        row = int(np.abs(found.boxes - box).sum(axis=1).argmin())
        if np.abs(box - first).max() > 3:
            np.testing.assert_allclose(found.masks[row], mask, rtol=0, atol=1e-3)


def quarterless() -> CellposeNetwork:
    torch.manual_seed(0)
    model = UNet((4, 6, 8))
    torch.nn.init.constant_(model.output[2].bias, -50.0)
    return CellposeNetwork(model, PARTS, 1.0, None, torch.float32)


def flows(network: CellposeNetwork, image: Tensor) -> Tensor:
    with torch.inference_mode():
        ((maps, _),) = network.flows([image])
    return maps


def norms(network: CellposeNetwork) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_faster_arithmetic_differs_in_the_last_bits(one_thread: None) -> None:
    torch.manual_seed(1)
    network = CellposeNetwork(UNet((4, 128)), CellposeParts(tile=64), 1.0, None, torch.float32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    image = torch.randint(0, 256, (1, 60, 90), dtype=torch.uint8)
    before, count = flows(network, image), norms(network)
    network.quicken()
    torch.testing.assert_close(
        flows(network, image), before, rtol=1e-4, atol=1e-5 * float(before.std()) + 1e-5
    )
    assert norms(network) == count - 2 * 2
    assert any(isinstance(module, WinogradConv2d) for module in network.modules())


def test_half_precision_keeps_its_arithmetic() -> None:
    network = CellposeNetwork(UNet((4, 128)), PARTS, 1.0, None, torch.bfloat16)
    count = norms(network)
    network.quicken()
    assert norms(network) == count
    (weight,) = (
        p for name, p in network.named_parameters() if name.endswith("res_up_0.conv.conv_0.2.weight")
    )
    assert weight.is_contiguous(memory_format=torch.channels_last)


@needs_reference
def test_bfloat16_sees_the_same_cells(one_thread: None) -> None:
    image = torch.from_numpy(image_of("7ae19de7bc2a")[128:320, 32:288].copy())[None]
    own, half = quarter(), quarter(precision=torch.bfloat16)
    maps = [flows(network, image) for network in (own, half)]
    assert 0 < float((maps[1] - maps[0]).abs().mean()) < 0.02 * float(maps[0].abs().mean())
    with torch.inference_mode():
        cells = [network.features([image]).seen[0] for network in (own, half)]
    found = box_iou(*(torch.from_numpy(seen.boxes) for seen in cells)).max(dim=1).values
    assert len(found) > 10 and (found > 0.8).float().mean() > 0.9


KNOWN = ("shsy5y", "cort")


class Shifted(Discs):
    """Knows the classes that `KNOWN` names, sees the second in all, a pixel to the right, and is surer."""

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        found = super().detect(features, proposals)
        shift = torch.tensor([1.0, 0.0, 1.0, 0.0])
        return [Detections(d.boxes + shift, d.scores * 0 + 0.9, d.labels * 0 + 2) for d in found]


def test_with_others_it_votes_for_their_classes_by_its_weight() -> None:
    """Boxes and masks are the weighted means, as weighted boxes fusion and the second pass have them."""
    networks = [Discs(), Shifted(class_count=2)]
    alone = [predict(ensemble([n], KNOWN), [IMAGE])[0] for n in networks]
    specs = [ModelSpec(name=f"n{i}", file="f", weight=w) for i, w in enumerate((3.0, 1.0))]
    manifest = Manifest(version=1, classes=KNOWN, models=tuple(specs))
    members = [make_member(KNOWN, s, n, torch.device("cpu")) for s, n in zip(specs, networks, strict=True)]
    (found,) = predict(Ensemble(manifest, tuple(members), torch.device("cpu")), [IMAGE])
    assert alone[0].labels.tolist() == [1] * len(DISCS)
    assert found.labels.tolist() == [2] * len(DISCS)
    own = {tuple(np.round(b)): s for b, s in zip(alone[0].boxes.tolist(), alone[0].scores, strict=True)}
    for box, score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True):
        left = min(own, key=lambda b: abs(b[0] - box[0]) + abs(b[1] - box[1]))
        votes = 3.0 * own[left], 0.9
        assert box[0] - left[0] == pytest.approx(votes[1] / sum(votes), abs=1e-3)
        assert score == pytest.approx(sum(votes) / 4, abs=1e-3)
    features = networks[0].features([torch.zeros((1, *SIZE_HW), dtype=torch.uint8)])
    (mask,) = networks[0].mask_probabilities(
        features, [torch.from_numpy(found.boxes)], [torch.from_numpy(found.labels)]
    )
    np.testing.assert_allclose(found.masks, mask.numpy(), rtol=0, atol=1e-3)  # both see the same
