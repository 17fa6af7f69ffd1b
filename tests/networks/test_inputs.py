"""Preprocessing: each option against a slow, obvious reference; torchvision's own transform exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from sartorius_infer.manifest.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalise,
    Preprocessing,
    Resize,
)
from sartorius_infer.manifest.views import IDENTITY, View, parse_view
from sartorius_infer.networks.inputs import network_input

Floats = NDArray[np.float32]
SYMMETRIES = ("identity", "hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "transverse")
PLAIN: dict[str, Any] = {"normalise": (), "resize": None, "input_range": "0-255"}

sides = st.integers(1, 90)
sizes = st.tuples(sides, sides)


def picture(size_hw: tuple[int, int] = (40, 56), channels: int = 1, seed: int = 0) -> Tensor:
    """Noise, uint8 (channels, H, W)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, *size_hw), dtype=torch.uint8, generator=draw)


def seen(image: Tensor, view: View = IDENTITY, **options: Any) -> Floats:
    """What the network gets of one image that is already seen through the view, without the padding."""
    batch, ((height, width),) = network_input([image], Preprocessing(**options), view)
    assert batch.dtype == torch.float32
    assert batch.shape == (1, 3, math.ceil(height / 32) * 32, math.ceil(width / 32) * 32)
    assert not batch[:, :, height:].any()
    assert not batch[..., width:].any()
    return batch[0, :, :height, :width].numpy()


def bilinear(image: Floats, size_hw: tuple[int, int]) -> Floats:
    """(C, H, W) sampled at pixel centres without antialiasing, one pixel at a time."""
    channels, height, width = image.shape
    out = np.zeros((channels, *size_hw))
    for y, x in np.ndindex(size_hw):
        at_y = max((y + 0.5) * height / size_hw[0] - 0.5, 0)
        at_x = max((x + 0.5) * width / size_hw[1] - 0.5, 0)
        top, left = min(int(at_y), height - 1), min(int(at_x), width - 1)
        down, right = min(top + 1, height - 1), min(left + 1, width - 1)
        part_y, part_x = at_y - top, at_x - left
        upper = image[:, top, left] * (1 - part_x) + image[:, top, right] * part_x
        lower = image[:, down, left] * (1 - part_x) + image[:, down, right] * part_x
        out[:, y, x] = upper * (1 - part_y) + lower * part_y
    return out.astype(np.float32)


def resized(image: Tensor, size_hw: tuple[int, int], interpolation: str) -> Floats:
    """The libraries' own resizing of the image as a data set holds it, (H, W) or (H, W, 3); (C, H, W)."""
    if interpolation == "torch":
        return bilinear(image.numpy().astype(np.float32), size_hw)
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    if interpolation == "opencv":
        out = np.asarray(cv2.resize(np.ascontiguousarray(pixels), size_hw[::-1]))
    else:
        out = np.asarray(Image.fromarray(pixels).resize(size_hw[::-1], Image.Resampling.BILINEAR))
    return (out[None] if out.ndim == 2 else out.transpose(2, 0, 1)).astype(np.float32)


# Colour, range, normalisation.


@pytest.mark.parametrize("options", [{}, {"colour": "gray"}, {"channel_order": "bgr"}])
def test_gray_is_repeated_whatever_the_colours(options: dict[str, Any]) -> None:
    image = picture()
    expected = np.repeat(image.numpy(), 3, axis=0).astype(np.float32)
    assert np.array_equal(seen(image, **PLAIN, **options), expected)


def test_colour_is_kept_or_turned_around() -> None:
    image = picture(channels=3)
    assert np.array_equal(seen(image, **PLAIN), image.numpy())
    assert np.array_equal(seen(image, **PLAIN, channel_order="bgr"), image.numpy()[::-1])


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_colour_becomes_gray_as_pil_makes_it(order: str) -> None:
    image = picture(channels=3)
    gray = seen(image, **PLAIN, colour="gray", channel_order=order)
    assert np.array_equal(gray[0], gray[1])
    assert np.array_equal(gray[0], gray[2])
    assert np.array_equal(gray[0], np.round(gray[0]))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    assert np.array_equal(gray[0], np.asarray(Image.fromarray(pixels).convert("L")))
    assert np.abs(gray[0] - np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_ranges(channels: int) -> None:
    image = picture(channels=channels)
    whole = np.broadcast_to(image.numpy(), (3, 40, 56)).astype(np.float32)
    assert np.array_equal(seen(image, **PLAIN), whole)
    assert np.array_equal(seen(image, **PLAIN | {"input_range": "0-1"}), whole / np.float32(255))


values = st.floats(-300, 300)
spreads = st.floats(0.01, 300)


def steps() -> st.SearchStrategy[Any]:
    one_or_three = st.sampled_from([1, 3])
    means = one_or_three.flatmap(lambda n: st.tuples(*[values] * n))
    stds = one_or_three.flatmap(lambda n: st.tuples(*[spreads] * n))
    return st.just("imagenet") | st.builds(lambda mean, std: Normalise(mean=mean, std=std), means, stds)


@given(
    st.lists(steps(), max_size=3),
    st.sampled_from(["0-1", "0-255"]),
    st.sampled_from([1, 3]),
    st.sampled_from(["rgb", "bgr"]),
)
def test_every_step_of_normalisation_in_its_order(
    chain: list[Any], input_range: str, channels: int, order: str
) -> None:
    image = picture((3, 4), channels)
    expected = np.broadcast_to(image.numpy(), (3, 3, 4)).astype(np.float32)
    expected = (expected[::-1] if order == "bgr" else expected).copy()
    expected = expected / np.float32(255) if input_range == "0-1" else expected
    for step in chain:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if step == "imagenet" else (step.mean, step.std)
        for channel, plane in enumerate(expected):
            plane -= np.float32(mean[channel % len(mean)])
            plane /= np.float32(std[channel % len(std)])
    options: dict[str, Any] = {"input_range": input_range, "channel_order": order, "resize": None}
    assert np.array_equal(seen(image, **options, normalise=tuple(chain)), expected)


# Sizes.


@pytest.mark.parametrize("channels", [1, 3])
@settings(max_examples=40)
@given(
    some=st.lists(sizes, min_size=1, max_size=3),
    shortest=st.integers(1, 80),
    longest=st.integers(1, 120),
    own=st.booleans(),
)
def test_the_plain_case_is_torchvision_s_to_the_bit(
    channels: int, some: list[tuple[int, int]], shortest: int, longest: int, own: bool
) -> None:
    """Normalised by the model, resized by edges, padded as one batch."""
    mean, std = ((0.5, 0.4, 0.3), (0.2, 0.1, 0.3)) if own else (IMAGENET_MEAN, IMAGENET_STD)
    images = [picture(size_hw, channels, seed) for seed, size_hw in enumerate(some)]
    # Torchvision fails where a side rounds to nothing.
    assume(all(min(size) * min(shortest / min(size), longest / max(size)) >= 1 for size in some))
    reference = GeneralizedRCNNTransform(shortest, longest, list(mean), list(std))
    theirs, _ = reference([(image.float() / 255).expand(3, -1, -1) for image in images])
    options = Preprocessing(
        normalise=(Normalise(mean=mean, std=std),) if own else ("imagenet",),
        resize=Resize(shortest_edge=shortest, longest_edge=longest),
    )
    batch, input_hws = network_input(images, options, IDENTITY)
    assert list(input_hws) == theirs.image_sizes
    assert torch.equal(batch, theirs.tensors)


@given(sizes, st.integers(1, 100), st.integers(1, 200), st.floats(0.25, 4))
def test_edges(size_hw: tuple[int, int], shortest: int, longest: int, scale: float) -> None:
    rule = Resize(shortest_edge=shortest, longest_edge=longest)
    height, width = rule.target_hw(size_hw, View(scale=scale))
    turned = rule.target_hw(size_hw[::-1], View(transpose=True, scale=scale))
    assert turned == (width, height)
    assert max(height, width) <= max(1, longest * scale * (1 + 1e-9))
    assert min(height, width) <= max(1, shortest * scale * (1 + 1e-9))
    factor = min(shortest / min(size_hw), longest / max(size_hw)) * scale
    for side, old in ((height, size_hw[0]), (width, size_hw[1])):
        assert side == 1 or old * factor - 1 - 1e-6 <= side <= old * factor + 1e-6


def detectron2_hw(size_hw: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """What Detectron2's ResizeShortestEdge resizes to, said in its own order."""
    height, width = size_hw
    scale = shortest * 1.0 / min(height, width)
    if height < width:
        new_h, new_w = shortest, scale * width
    else:
        new_h, new_w = scale * height, shortest
    if max(new_h, new_w) > longest:
        scale = longest * 1.0 / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return int(new_h + 0.5), int(new_w + 0.5)


def nearest(shortest: int, longest: int) -> Resize:
    return Resize(shortest_edge=shortest, longest_edge=longest, interpolation="pil", rounding="nearest")


edges = st.integers(1, 2000)


@settings(max_examples=300)
@given(st.tuples(edges, edges), edges, edges)
def test_nearest_edges_are_detectron2_s(size_hw: tuple[int, int], shortest: int, longest: int) -> None:
    expected = detectron2_hw(size_hw, shortest, longest)
    rule = nearest(shortest, longest)
    # It fails where a side rounds to nothing.
    assert rule.target_hw(size_hw, IDENTITY) == (max(1, expected[0]), max(1, expected[1]))
    turned = rule.target_hw(size_hw[::-1], View(transpose=True))
    assert turned == rule.target_hw(size_hw, IDENTITY)[::-1]


def test_nearest_edges_of_the_competition() -> None:
    """Torchvision's floats fall short of whole pixels here and there; Detectron2's are rounded."""
    assert nearest(800, 1333).target_hw((520, 704), IDENTITY) == (800, 1083)
    assert Resize(shortest_edge=800, longest_edge=1333).target_hw((520, 704), IDENTITY) == (800, 1083)
    assert nearest(800, 1333).target_hw((300, 900), IDENTITY) == (444, 1333)
    assert nearest(800, 1333).target_hw((333, 222), IDENTITY) == (1200, 800)
    some = [(h, w) for h in range(300, 400) for w in range(300, 900, 7)]
    down = Resize(shortest_edge=800, longest_edge=1333)
    differ = [s for s in some if down.target_hw(s, IDENTITY) != nearest(800, 1333).target_hw(s, IDENTITY)]
    assert len(differ) > len(some) / 3


@given(sizes, st.integers(1, 100), st.integers(1, 200), st.floats(0.25, 4))
def test_a_scale_multiplies_nearest_edges(
    size_hw: tuple[int, int], shortest: int, longest: int, scale: float
) -> None:
    height, width = nearest(shortest, longest).target_hw(size_hw, View(scale=scale))
    factor = min(shortest / min(size_hw), longest / max(size_hw)) * scale
    for side, old in ((height, size_hw[0]), (width, size_hw[1])):
        assert side == 1 or abs(side - old * factor) <= 0.5 + 1e-6


def test_rounding_is_of_edges_alone() -> None:
    exact = Resize(exact_hw=(20, 31), rounding="nearest")
    assert exact.target_hw((99, 7), IDENTITY) == (20, 31)
    with pytest.raises(ValidationError):
        Resize.model_validate({"shortest_edge": 1, "longest_edge": 1, "rounding": "up"})


@pytest.mark.parametrize("size_hw", [(26, 45), (45, 26), (30, 100), (40, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_detectron2_s_whole_input(size_hw: tuple[int, int], channels: int) -> None:
    """BGR from 0 to 255, resized by PIL on bytes, less the mean, over the std, padded by zeros."""
    image = picture(size_hw, channels)
    mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
    target = detectron2_hw(size_hw, 64, 107)
    pixels = np.broadcast_to(resized(image, target, "pil"), (3, *target))[::-1]
    expected = (pixels - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]
    options = {"channel_order": "bgr", "input_range": "0-255", "resize": nearest(64, 107)}
    found = seen(image, **options, normalise=(Normalise(mean=mean, std=std),))
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", SYMMETRIES)
def test_an_exact_size_turns_with_the_image(name: str) -> None:
    """A quarter-turned image gets the turned input size: what the network sees is turned as a whole."""
    rule, view, image = Resize(exact_hw=(20, 30)), parse_view(name), picture((26, 45))
    upright = seen(image, **PLAIN | {"resize": rule})
    found = seen(view.image(image), view, **PLAIN | {"resize": rule})
    assert found.shape[1:] == ((30, 20) if view.transpose else (20, 30))
    assert np.allclose(view.image_back(torch.from_numpy(found.copy())).numpy(), upright, atol=1e-3)


@pytest.mark.parametrize("rule", [Resize(exact_hw=(20, 30)), Resize(shortest_edge=20, longest_edge=60)])
@pytest.mark.parametrize(("scale", "expected"), [(0.5, (10, 15)), (1.5, (30, 45)), (4.0, (80, 120))])
def test_a_scale_multiplies_the_size(rule: Resize, scale: float, expected: tuple[int, int]) -> None:
    view = View(scale=scale)
    image = picture((40, 60))
    for place in ({"resize": rule}, {"resize_before": rule}, {"resize": rule, "resize_before": rule}):
        assert seen(image, view, **PLAIN | place).shape == (3, *expected)
    assert seen(image, view, **PLAIN).shape == (3, 40 * scale, 60 * scale)


def test_the_least_sizes() -> None:
    tiny = View(scale=0.25)
    for rule in (Resize(exact_hw=(1, 1)), Resize(shortest_edge=1, longest_edge=1), None):
        assert seen(picture((1, 1)), tiny, **PLAIN | {"resize": rule}).shape == (3, 1, 1)
    narrow = Resize(shortest_edge=9, longest_edge=9)
    assert seen(picture((1, 90)), **PLAIN | {"resize": narrow}).shape == (3, 1, 9)


# Interpolation.


@pytest.mark.parametrize("interpolation", ["torch", "opencv", "pil"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("place", ["resize", "resize_before"])
@pytest.mark.parametrize("size_hw", [(20, 30), (55, 70), (40, 56), (1, 1)])
def test_interpolation_is_the_library_s(
    interpolation: str, channels: int, place: str, size_hw: tuple[int, int]
) -> None:
    image = picture(channels=channels)
    rule = Resize.model_validate({"exact_hw": size_hw, "interpolation": interpolation})
    expected = np.broadcast_to(resized(image, size_hw, interpolation), (3, *size_hw))
    found = seen(image, **PLAIN | {place: rule})
    assert np.allclose(found, expected, atol=2e-3 if interpolation == "torch" else 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("before", ["torch", "opencv", "pil"])
@pytest.mark.parametrize("own", ["torch", "opencv"])
def test_two_resizes_follow_each_other(channels: int, before: str, own: str) -> None:
    """The data set's on the image as read, then the model's on the normalised floats."""
    image, step = picture(channels=channels), Normalise(mean=(0.5,), std=(0.25,))
    rules = [
        Resize.model_validate({"exact_hw": size_hw, "interpolation": interpolation})
        for size_hw, interpolation in (((24, 33), before), ((31, 20), own))
    ]
    first = resized(image, (24, 33), before)
    if own == "torch":
        second = bilinear(first, (31, 20))  # linear, as is the normalisation before it
    else:
        pixels = first if before == "torch" else first.astype(np.uint8)
        out = np.asarray(cv2.resize(np.ascontiguousarray(pixels.transpose(1, 2, 0)), (20, 31)))
        second = out.reshape(31, 20, -1).transpose(2, 0, 1).astype(np.float32)
    found = seen(image, normalise=(step,), resize_before=rules[0], resize=rules[1])
    assert np.allclose(found, np.broadcast_to((second / 255 - 0.5) / 0.25, found.shape), atol=1e-4)


def test_pil_resizes_no_floats() -> None:
    before, own = Resize(exact_hw=(8, 8)), Resize(exact_hw=(8, 8), interpolation="pil")
    with pytest.raises(ValidationError, match="whose floats pil cannot resize"):
        Preprocessing(resize_before=before, resize=own)


@pytest.mark.parametrize("interpolation", ["torch", "opencv", "pil"])
@pytest.mark.parametrize("name", SYMMETRIES)
def test_strided_views_are_seen_as_they_look(interpolation: str, name: str) -> None:
    rule = Resize.model_validate({"shortest_edge": 33, "longest_edge": 50, "interpolation": interpolation})
    view, options = parse_view(name), PLAIN | {"resize": rule}
    flipped = view.image(picture(channels=3))
    assert np.array_equal(seen(flipped, view, **options), seen(flipped.contiguous(), view, **options))


# Batches.


@given(st.lists(sizes, min_size=1, max_size=4), st.sampled_from([1, 3]))
def test_images_do_not_see_their_batch(some: Sequence[tuple[int, int]], channels: int) -> None:
    options = Preprocessing(resize=Resize(shortest_edge=40, longest_edge=64))
    images = [picture(size_hw, channels, seed) for seed, size_hw in enumerate(some)]
    copies = [image.clone() for image in images]
    batch, input_hws = network_input(images, options, IDENTITY)
    assert batch.shape[2] == math.ceil(max(h for h, _ in input_hws) / 32) * 32
    assert batch.shape[3] == math.ceil(max(w for _, w in input_hws) / 32) * 32
    for row, image, (height, width) in zip(batch, images, input_hws, strict=True):
        (alone,), ((alone_h, alone_w),) = network_input([image], options, IDENTITY)
        assert (alone_h, alone_w) == (height, width)
        assert torch.equal(row[:, :height, :width], alone[:, :height, :width])
        assert not row[:, height:].any()
        assert not row[:, :, width:].any()
    assert all(torch.equal(*pair) for pair in zip(images, copies, strict=True))


def test_the_batch_is_a_copy() -> None:
    image = picture((32, 32), channels=3)
    before = image.clone()
    batch, _ = network_input([image], Preprocessing(**PLAIN), IDENTITY)
    batch.zero_()
    assert torch.equal(image, before)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_gray_is_resized_as_three_channels_are_on_any_number_of_threads(threads: int) -> None:
    """Torch chooses its kernel by threads and channels; `model(images)` is always given three."""
    image = picture((130, 176))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = torch.from_numpy(seen(image, normalise=()))
        whole = (image.float() / 255).expand(3, -1, -1).contiguous()[None]
        expected = torch.nn.functional.interpolate(whole, size=found.shape[1:], mode="bilinear")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected[0])
