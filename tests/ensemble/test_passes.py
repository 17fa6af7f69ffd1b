"""The two passes: laws that hold for any networks, on exact small ones and on a real Mask R-CNN."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from blobs import SIZE_HW, BlobNetwork, assert_same, blank, blobs, ensemble_of
from factories import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.passes import image_tensor, predict
from sartorius_infer.errors import PredictionError
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.manifest.preprocessing import Preprocessing, Resize
from sartorius_infer.manifest.torchvision import NetworkParts
from sartorius_infer.manifest.views import parse_view
from sartorius_infer.networks import Detections, Features
from sartorius_infer.networks.torchvision.rcnn import TorchvisionNetwork, build_model
from sartorius_infer.types import Bool, CellImage, Float32, Int64, Prediction

EIGHT = ("identity", "hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "transverse")
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, shape: tuple[int, ...] = SIZE_HW, image_id: str = "noise") -> CellImage:
    return CellImage(image_id, np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


SMALL = NetworkParts.model_validate_json(
    """{"body": "resnet18", "stages": [1, 2], "fpn": {"channels": 16},
    "anchors": {"sizes": [[8], [16], [32]]}, "rpn": {"pre_nms_top_n": 60, "post_nms_top_n": 40},
    "box_head": {"fc_channels": [32, 32]}, "mask_head": {"conv_channels": [16], "hidden": 16},
    "detection": {"per_image": 12}}"""
)


def fresh_network(seed: int = 0) -> TorchvisionNetwork:
    """A whole Mask R-CNN of torchvision, small, with random weights."""
    torch.manual_seed(seed)
    settings = Preprocessing(resize=Resize(shortest_edge=64, longest_edge=96))
    return TorchvisionNetwork(build_model(SMALL, len(CLASSES)), settings, torch.float32)


real_network = cache(fresh_network)


def blob_ensemble() -> Ensemble:
    networks = BlobNetwork(), BlobNetwork(("cort", "debris", "shsy5y"), grid=56, firmness=0.6)
    return ensemble_of(*networks, views=("identity", "rot90+scale:2"), weights=(1.0, 2.5))


def real_ensemble() -> Ensemble:
    return ensemble_of(real_network(0), real_network(1), views=("identity", "rot90+scale:1.25"))


Make = Callable[[], Ensemble]
both = pytest.mark.parametrize(
    ("make", "image"), [(blob_ensemble, blobs), (real_ensemble, noise)], ids=["blobs", "real"]
)


def one(ensemble: Ensemble, image: CellImage) -> Prediction:
    return predict(ensemble, [image])[0]


# Views.


@pytest.mark.parametrize("method", ["wbf", "nms", "nmw"])
@settings(max_examples=8, deadline=None)
@given(seeds)
def test_views_of_an_equivariant_network_change_nothing(method: str, seed: int) -> None:
    image, fusion = blobs(seed), Fusion(method=method)
    plain = one(ensemble_of(BlobNetwork(), fusion=fusion), image)
    views = (*EIGHT, "scale:2", "rot270+scale:2")
    assert_same(one(ensemble_of(BlobNetwork(), views=views, fusion=fusion), image), plain)


@pytest.mark.parametrize("view", [*EIGHT[1:], "scale:2", "rot90+scale:3"])
def test_a_single_view_other_than_identity(view: str) -> None:
    image = blobs(3)
    plain = one(ensemble_of(BlobNetwork()), image)
    assert len(plain) > 4
    assert_same(one(ensemble_of(BlobNetwork(), views=[view]), image), plain)


@pytest.mark.parametrize("shape", [(26, 65), (65, 26), (13, 13)])
def test_views_of_several_shapes_in_one_batch(shape: tuple[int, int]) -> None:
    images = [blobs(1, shape, "a"), blobs(2, shape, "b")]
    plain = predict(ensemble_of(BlobNetwork()), images)
    for a, b in zip(predict(ensemble_of(BlobNetwork(), views=EIGHT), images), plain, strict=True):
        assert_same(a, b)


def test_networks_are_told_their_view() -> None:
    network, views = BlobNetwork(), ("transverse", "scale:3", "vflip+scale:2")
    predict(ensemble_of(network, views=views), [blobs(0)])
    assert network.looks == [parse_view(view) for view in views]


def test_views_of_a_real_network_stay_in_the_image() -> None:
    found = one(ensemble_of(real_network(), views=(*EIGHT, "scale:1.25")), noise(0))
    assert len(found) > 0 and found.masks.shape[1:] == (28, 28)
    assert (found.boxes >= 0).all() and (found.boxes <= [52, 39, 52, 39]).all()
    assert ((found.scores > 0) & (found.scores <= 1)).all() and (np.diff(found.scores) <= 0).all()
    assert ((found.masks >= 0) & (found.masks <= 1)).all()


# One network alone.


def by_hand(network: TorchvisionNetwork, image: Tensor) -> tuple[Detections, Tensor]:
    """What a network says of one image, and its masks as float16."""
    with torch.inference_mode():
        features = network.features([image])
        (own,) = network.detect(features, network.propose(features))
        (masks,) = network.mask_probabilities(features, [own.boxes], [own.labels])
    assert len(own.boxes) > 3
    return own, masks.half()


CUTTING = Fusion(iou=0.0, skip_score=1.0, max_boxes=1)


def test_a_network_alone_passes_through_exactly() -> None:
    image = noise(4)
    found = one(ensemble_of(real_network(), weights=[0.3], fusion=CUTTING), image)
    own, masks = by_hand(real_network(), image_tensor(image))
    for result, expected in zip(
        (found.boxes, found.scores, found.labels, found.masks),
        (own.boxes, own.scores, own.labels, masks),
        strict=True,
    ):
        np.testing.assert_array_equal(result, expected)


def test_a_network_alone_in_one_view_passes_through() -> None:
    image = noise(4)
    found = one(ensemble_of(real_network(), fusion=CUTTING, views=["hflip"]), image)
    own, masks = by_hand(real_network(), image_tensor(image).flip(-1))
    mirrored = own.boxes.clone()
    mirrored[:, [2, 0]] = SIZE_HW[1] - own.boxes[:, [0, 2]]
    np.testing.assert_array_equal(found.boxes, mirrored)
    np.testing.assert_array_equal(found.scores, own.scores)
    np.testing.assert_allclose(found.masks, masks.flip(-1), atol=2e-3)


# Classes.


@pytest.mark.parametrize(
    "classes",
    [("cort", "astro", "shsy5y"), ("debris", "astro", "cort", "shsy5y"), ("astro", "debris", "cort")],
)
def test_each_network_has_its_own_class_order(classes: tuple[str, ...]) -> None:
    image = blobs(5)
    everything = one(ensemble_of(BlobNetwork()), image)
    assert set(everything.labels.tolist()) == {1, 2, 3}
    known = np.array([CLASSES[label - 1] in classes for label in everything.labels])
    assert_same(one(ensemble_of(BlobNetwork(classes)), image), everything[known])


def test_networks_with_other_class_orders_agree() -> None:
    image = blobs(6)
    networks = [BlobNetwork(c) for c in (CLASSES, ("debris", "cort", "shsy5y", "astro"), CLASSES[::-1])]
    assert_same(one(ensemble_of(*networks, views=EIGHT[:3]), image), one(ensemble_of(BlobNetwork()), image))


@pytest.mark.parametrize("swap", [False, True])
def test_masks_of_a_network_that_lacks_the_class_have_no_say(swap: bool) -> None:
    image = blobs(7)
    whole, part = BlobNetwork(firmness=0.5), BlobNetwork(("cort", "shsy5y"), firmness=0.9)
    networks, weights = (part, whole) if swap else (whole, part), (3, 1) if swap else (1, 3)
    found = one(ensemble_of(*networks, weights=weights), image)
    alone = one(ensemble_of(whole), image)
    # The network without astro is missing in its score, but not in its mask.
    order = np.argsort([float(np.abs(alone.boxes - box).sum(axis=1).argmin()) for box in found.boxes])
    found = found[order]
    np.testing.assert_array_equal(found.labels, alone.labels)
    astro = found.labels == 2
    assert 0 < astro.sum() < len(found)
    mean = np.where(astro, 0.5, 0.25 * 0.5 + 0.75 * 0.9)[:, None, None] / 0.5
    np.testing.assert_allclose(found.masks, alone.masks * mean, atol=2e-3)


@dataclass
class ShyNetwork(BlobNetwork):
    """Saw nothing in boxes that begin in the left half of what it looks at."""

    def saw(self, features: Features, boxes: list[Tensor]) -> list[Tensor]:
        return [some[:, 0] >= features.image_hws[0][1] / 2 for some in boxes]


@pytest.mark.parametrize("view", ["identity", "hflip"])
def test_a_network_that_saw_nothing_in_a_box_has_no_say_there(view: str) -> None:
    image = blobs(7)
    shy, other = ShyNetwork(firmness=0.9), BlobNetwork(firmness=0.5)
    found = one(ensemble_of(shy, other, weights=(3, 1), views=[view]), image)
    alone = one(ensemble_of(other, views=[view]), image)
    left, right = alone.boxes[:, 0], SIZE_HW[1] - alone.boxes[:, 2]
    unseen = (right if view == "hflip" else left) < SIZE_HW[1] / 2
    assert 0 < unseen.sum() < len(unseen)
    mean = np.where(unseen, 0.5, 0.25 * 0.5 + 0.75 * 0.9)[:, None, None] / 0.5
    np.testing.assert_allclose(found.masks, alone.masks * mean, atol=2e-3)


def test_where_no_network_saw_anything_all_have_a_say() -> None:
    image, weights = blobs(7), (2, 1)
    shy = one(ensemble_of(ShyNetwork(firmness=0.9), ShyNetwork(firmness=0.5), weights=weights), image)
    bold = one(ensemble_of(BlobNetwork(firmness=0.9), BlobNetwork(firmness=0.5), weights=weights), image)
    assert_same(shy, bold)


@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.floats(0.05, 20)] * 3), st.tuples(*[st.floats(0.1, 1)] * 3))
def test_masks_are_the_weighted_mean(weights: tuple[float, ...], firmness: tuple[float, ...]) -> None:
    image = blobs(8)
    found = one(ensemble_of(*(BlobNetwork(firmness=f) for f in firmness), weights=weights), image)
    mean = one(ensemble_of(BlobNetwork(firmness=float(np.average(firmness, weights=weights)))), image)
    assert_same(found, mean)


@pytest.mark.parametrize("weight", [1e-300, 1e-30, 1e30, 1e300])
def test_only_the_ratio_of_weights_counts(weight: float) -> None:
    image, networks = blobs(9), [BlobNetwork(), BlobNetwork(firmness=0.4)]
    equal = one(ensemble_of(*networks), image)
    assert_same(one(ensemble_of(*networks, weights=(weight, weight)), image), equal)
    assert_same(
        one(ensemble_of(networks[0], weights=[weight]), image), one(ensemble_of(networks[0]), image), 0.0
    )


# Mask grids.


@pytest.mark.parametrize("grids", [(28, 56), (56, 28), (28, 28, 56), (14, 56, 28), (14, 28, 56)])
def test_the_finest_mask_grid_sets_the_size(grids: tuple[int, ...]) -> None:
    image = blobs(10)
    found = one(ensemble_of(*(BlobNetwork(grid=grid) for grid in grids)), image)
    alone = [one(ensemble_of(BlobNetwork(grid=grid)), image).masks[:, None] for grid in grids]
    fine = [F.interpolate(torch.from_numpy(m).float(), size=(56, 56), mode="bilinear")[:, 0] for m in alone]
    assert found.masks.shape[1:] == (56, 56) and found.masks.dtype == np.float16
    np.testing.assert_allclose(found.masks, torch.stack(fine).mean(0), atol=2e-3)


# Nothing found.


@both
def test_no_images(make: Make, image: Callable[[int], CellImage]) -> None:
    assert predict(make(), []) == []


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("views", [("identity",), EIGHT])
def test_blank_images(count: int, views: tuple[str, ...]) -> None:
    for found in predict(ensemble_of(BlobNetwork(), BlobNetwork(), views=views), [blank()] * count):
        assert len(found) == 0 and found.size_hw == SIZE_HW
        assert found.masks.shape == (0, 28, 28)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("roi_chunk", [None, 1, 4])
def test_a_blank_image_anywhere_in_the_batch(position: int, roi_chunk: int | None) -> None:
    images = [blobs(11), blobs(12)]
    images.insert(position, blank())
    batch = predict(blob_ensemble(), images, roi_chunk=roi_chunk)
    assert len(batch[position]) == 0
    for image, found in zip(images, batch, strict=True):
        assert_same(found, one(blob_ensemble(), image)) if len(found) else None


@pytest.mark.parametrize("blind_first", [False, True])
def test_a_network_that_sees_nothing_still_scores_masks(blind_first: bool) -> None:
    image, seeing, blind = blobs(13), BlobNetwork(firmness=0.8), BlobNetwork(firmness=0.4, dimmest=256)
    networks = (blind, seeing) if blind_first else (seeing, blind)
    found = one(ensemble_of(*networks, fusion=Fusion(conf_type="max")), image)
    alone = one(ensemble_of(BlobNetwork(firmness=0.6)), image)
    assert_same(found, alone)


def test_networks_that_all_see_nothing() -> None:
    assert len(one(ensemble_of(*[BlobNetwork(dimmest=256)] * 2), blobs(13))) == 0


# What may change the cost but not the result.


@both
@pytest.mark.parametrize("roi_chunk", [1, 3, 10_000])
def test_roi_chunks_give_the_same(make: Make, image: Callable[[int], CellImage], roi_chunk: int) -> None:
    images = [image(14), image(15)]
    whole = predict(make(), images)
    for a, b in zip(predict(make(), images, roi_chunk=roi_chunk), whole, strict=True):
        assert len(a) > 3
        assert_same(a, b)


@both
def test_features_computed_twice_give_the_same(make: Make, image: Callable[[int], CellImage]) -> None:
    cached = predict(make(), [image(16)])[0]
    again = predict(make(), [image(16)], feature_bytes=0)[0]
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(again, name))


@pytest.mark.parametrize("roi_chunk", [0, -1])
def test_roi_chunk_is_checked(roi_chunk: int) -> None:
    with pytest.raises(ValueError, match="roi_chunk"):
        predict(blob_ensemble(), [blobs(0)], roi_chunk=roi_chunk)


MAP_BYTES = 4 * SIZE_HW[0] * SIZE_HW[1]


@pytest.mark.parametrize(
    ("feature_bytes", "calls"), [(0, 6), (MAP_BYTES - 1, 6), (MAP_BYTES, 5), (2 * MAP_BYTES, 4), (2**30, 3)]
)
def test_features_are_kept_while_they_fit(feature_bytes: int, calls: int) -> None:
    network = BlobNetwork()
    predict(ensemble_of(network, views=EIGHT[:3]), [blobs(17)], feature_bytes=feature_bytes)
    assert len(network.looks) == calls


def test_no_second_look_where_nothing_was_found() -> None:
    network = BlobNetwork()
    predict(ensemble_of(network, views=EIGHT), [blank()], feature_bytes=0)
    assert len(network.looks) == 8


SELECTIONS: list[Callable[[Float32, Int64], Bool]] = [
    lambda scores, labels: np.arange(len(scores)) % 2 == 0,
    lambda scores, labels: labels == 1,
    lambda scores, labels: np.zeros(len(scores), bool),
    lambda scores, labels: np.ones(len(scores), bool),
]


@both
def test_select_gives_rows_of_the_full_result(make: Make, image: Callable[[int], CellImage]) -> None:
    images = [image(18), image(19)]
    full = predict(make(), images)
    for select in SELECTIONS:
        for some, whole in zip(predict(make(), images, select), full, strict=True):
            rows = whole[select(whole.scores, whole.labels)]
            assert some.masks.dtype == np.float16 and len(some) == len(rows)
            if len(rows):
                assert_same(some, rows)


@both
def test_a_batch_gives_what_its_images_give(make: Make, image: Callable[[int], CellImage]) -> None:
    images = [image(20), image(21), image(22)]
    for alone, together in zip(images, predict(make(), images), strict=True):
        assert_same(together, one(make(), alone))


def assert_equal(a: Prediction, b: Prediction) -> None:
    assert len(a) > 3
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@both
def test_images_of_other_sizes_change_nothing(make: Make, image: Callable[..., CellImage]) -> None:
    first, other, last = image(23, SIZE_HW, "a"), image(24, (60, 44), "b"), image(25, SIZE_HW, "c")
    together = predict(make(), [first, other, last])
    assert [(found.image_id, found.size_hw) for found in together] == [
        ("a", SIZE_HW),
        ("b", (60, 44)),
        ("c", SIZE_HW),
    ]
    assert_equal(together[1], one(make(), other))
    for found, alike in zip(together[::2], predict(make(), [first, last]), strict=True):
        assert_equal(found, alike)
    for found, alone in zip(predict(make(), [first, other]), (first, other), strict=True):
        assert_equal(found, one(make(), alone))


def test_looks_are_told_with_how_many_images_they_saw() -> None:
    told: list[tuple[str, str, int]] = []
    images = [blobs(1), blobs(2, (26, 65)), blobs(3)]
    predict(
        ensemble_of(BlobNetwork(), views=("identity", "hflip")),
        images,
        on_look=lambda name, view, seconds, count: told.append((name, view, count)),
    )
    assert told == [("n0", view, count) for count in (2, 1) for view in ("identity", "hflip")]


def test_what_came_before_does_not_matter() -> None:
    used = ensemble_of(fresh_network())
    for seed, shape in enumerate([(26, 26), SIZE_HW, (26, 65), (65, 26), SIZE_HW]):
        found = one(used, noise(seed, shape))
        assert_same(found, one(ensemble_of(fresh_network()), noise(seed, shape)), masks=0.0)


# Images.


@both
def test_gray_images_equal_their_colour_copies(make: Make, image: Callable[[int], CellImage]) -> None:
    gray = image(26)
    colour = CellImage(gray.id, np.repeat(gray.pixels[..., None], 3, axis=2))
    assert_same(one(make(), colour), one(make(), gray))


def test_gray_and_colour_in_one_batch() -> None:
    gray, colour = noise(27), noise(28, (*SIZE_HW, 3), "colour")
    for image, found in zip([gray, colour], predict(real_ensemble(), [gray, colour]), strict=True):
        assert_same(found, one(real_ensemble(), image))


def test_pixels_in_any_memory_layout() -> None:
    pixels = blobs(28).pixels
    locked = pixels.copy()
    locked.flags.writeable = False
    plain = one(blob_ensemble(), CellImage("i", pixels))
    for other in (locked, np.asfortranarray(pixels), pixels[::-1].copy()[::-1]):
        assert_same(one(blob_ensemble(), CellImage("i", other)), plain, 0.0)
        np.testing.assert_array_equal(image_tensor(CellImage("i", other))[0], pixels)


def test_image_tensor_puts_channels_first() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = image_tensor(CellImage("i", pixels))
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 2, 4)
    np.testing.assert_array_equal(tensor, np.moveaxis(pixels, -1, 0))
    assert image_tensor(CellImage("i", pixels[..., 0])).shape == (1, 2, 4)


# Networks that fail.


PLACES = {
    "backbone": "backbone.body.conv1.weight",
    "pyramid": "backbone.fpn.layer_blocks.0.0.bias",
    "objectness": "rpn.head.cls_logits.weight",
    "rpn boxes": "rpn.head.bbox_pred.bias",
    "box head": "roi_heads.box_head.fc6.weight",
    "scores": "roi_heads.box_predictor.cls_score.weight",
    "boxes": "roi_heads.box_predictor.bbox_pred.bias",
    "mask head": "roi_heads.mask_head.0.0.weight",
    "masks": "roi_heads.mask_predictor.mask_fcn_logits.bias",
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["backbone", "objectness", "rpn boxes", "scores", "boxes", "masks"])
def test_nan_and_infinity_raise(place: str, value: float) -> None:
    network = deepcopy(real_network())
    with torch.no_grad():
        network.get_parameter(f"model.{PLACES[place]}").fill_(value)
    with pytest.raises(PredictionError, match="NaN or infinite"):
        one(ensemble_of(network), noise(29))


@pytest.mark.parametrize("place", [place for place in PLACES if place != "masks"])
def test_a_single_nan_in_one_of_two_networks_raises(place: str) -> None:
    network = deepcopy(real_network())
    with torch.no_grad():
        network.get_parameter(f"model.{PLACES[place]}").flatten()[0] = torch.nan
    with pytest.raises(PredictionError, match=r"^n1: .*found [0-9]+ NaN or infinite"):
        one(ensemble_of(real_network(), network, views=EIGHT[:2]), noise(29))


@dataclass
class FaultyNetwork(BlobNetwork):
    """A plugin's network that puts `value` into one of its results."""

    fault: str = "scores"
    value: float = torch.nan

    def detect(self, features: Features, proposals: list[Tensor]) -> list[Detections]:
        found = super().detect(features, proposals)
        for detections in found if self.fault != "masks" else ():
            getattr(detections, self.fault)[-1:] = self.value
        return found

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor]
    ) -> list[Tensor]:
        masks = super().mask_probabilities(features, boxes, labels)
        for some in masks if self.fault == "masks" else ():
            some[-1:, 0, 0] = self.value
        return masks


@pytest.mark.parametrize("fault", ["boxes", "scores", "masks"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("others", [0, 1])
def test_a_plugin_network_is_held_to_it_too(fault: str, value: float, others: int) -> None:
    networks = [BlobNetwork()] * others + [FaultyNetwork(fault=fault, value=value)]
    with pytest.raises(PredictionError, match=rf"n{others}.*NaN or infinite"):
        one(ensemble_of(*networks), blobs(30))
