"""Batches: what the network sees in training is what it sees at inference; draws depend on keys alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_factories import SIZE_HW, make_recipe, read_examples, write_sartorius

from sartorius_infer.ensemble.passes import image_tensor
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.views import IDENTITY
from sartorius_infer.networks.inputs import network_input
from sartorius_infer.types import CellImage
from training.batches import Batches, collate, to_network
from training.crops import Sample, Window, cut
from training.draws import Draw
from training.recipe import Augment
from training.sources import Example
from training.stages import Mix

PREPROCESSINGS: dict[str, dict[str, Any]] = {
    "default": {"normalise": [{"mean": [0.502], "std": [0.047]}],
                "resize": {"shortest_edge": 128, "longest_edge": 192}},
    "imagenet": {"resize": {"shortest_edge": 100, "longest_edge": 1333}},
    "exact": {"input_range": "0-255", "normalise": [], "resize": {"exact_hw": [80, 80]}},
    "none": {"resize": None},
    "twice": {"resize_before": {"exact_hw": [50, 60], "interpolation": "opencv"},
              "resize": {"shortest_edge": 90, "longest_edge": 900}},
}  # fmt: skip


@pytest.fixture(name="examples", scope="module")
def _examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    return read_examples(write_sartorius(tmp_path_factory.mktemp("d") / "d", images=4))


def _preprocessing(name: str) -> Preprocessing:
    import json

    return Preprocessing.model_validate_json(json.dumps(PREPROCESSINGS[name]))


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_training_sees_what_inference_sees(examples: tuple[Example, ...], name: str) -> None:
    settings, example = _preprocessing(name), examples[0]
    sample = cut(example, Window(0, 0, *SIZE_HW), 0.0)
    batch = collate([to_network(sample, SIZE_HW, settings)])
    image = image_tensor(CellImage("x", example.pixels()))
    expected, sizes = network_input([image], settings, IDENTITY)
    assert batch.sizes_hw == sizes
    assert (batch.images - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_a_crop_is_magnified_as_the_image_is(examples: tuple[Example, ...], name: str) -> None:
    """Away from the crop's border, its pixels are those of the whole image's input."""
    settings, example = _preprocessing(name), examples[0]
    whole, _ = to_network(cut(example, Window(0, 0, *SIZE_HW), 0.0), SIZE_HW, settings)
    part, target = to_network(cut(example, Window(16, 24, 32, 48), 0.0), SIZE_HW, settings)
    fy, fx = whole.shape[1] / SIZE_HW[0], whole.shape[2] / SIZE_HW[1]
    assert part.shape[1:] == (round(32 * fy), round(48 * fx))
    if name in ("default", "none"):  # whole factors: the grids of both coincide
        y0, x0 = round(16 * fy), round(24 * fx)
        inner = whole[:, y0 : y0 + part.shape[1], x0 : x0 + part.shape[2]]
        assert (part - inner)[:, 4:-4, 4:-4].abs().max() <= 1e-5
    assert target.scale == (part.shape[2] / 48, part.shape[1] / 32)
    assert bool((target.boxes[:, 2:] > target.boxes[:, :2]).all())


def test_zoom_multiplies_the_size(examples: tuple[Example, ...]) -> None:
    for name in PREPROCESSINGS:
        sample = cut(examples[0], Window(0, 0, 32, 32), 0.0, zoom=1.5)
        plain = cut(examples[0], Window(0, 0, 32, 32), 0.0)
        large, _ = to_network(sample, SIZE_HW, _preprocessing(name))
        small, _ = to_network(plain, SIZE_HW, _preprocessing(name))
        assert large.shape[1] == pytest.approx(1.5 * small.shape[1], abs=1)


def test_turned_whole_images_are_resized_as_turned_ones(examples: tuple[Example, ...]) -> None:
    sample = cut(examples[0], Window(0, 0, *SIZE_HW), 0.0)
    pixels, masks = np.rot90(sample.pixels), np.rot90(sample.masks, axes=(1, 2))
    turned = Sample(np.ascontiguousarray(pixels), np.ascontiguousarray(masks), sample.labels)
    image, _ = to_network(turned, SIZE_HW, _preprocessing("default"))
    assert image.shape[1:] == (192, 128)


def test_batches_depend_on_seed_iteration_and_index_alone(examples: tuple[Example, ...]) -> None:
    augment = Augment(crop=32, vflip=True, quarter_turns=True, scale=(0.8, 1.2), noise=3, copy_paste=0.5)
    settings = make_recipe().preprocessing
    draw = Draw(examples, Mix(), 3, 0, 10, 4)
    all_of_it = Batches(draw, augment, settings)
    np.random.default_rng(0).random()
    torch.rand(3)
    halves = [Batches(draw, augment, settings, index, 2)[5] for index in range(2)]
    whole = all_of_it[5]
    for row in range(4):
        half = halves[row // 2]
        height, width = whole.sizes_hw[row]
        assert half.sizes_hw[row % 2] == (height, width)
        assert torch.equal(whole.images[row, :, :height, :width], half.images[row % 2, :, :height, :width])
        assert torch.equal(whole.targets[row].masks, half.targets[row % 2].masks)
    assert [len(b.targets) for b in all_of_it.run(8, 0, False)] == [4, 4]
    worked = list(all_of_it.run(8, 1, False))
    assert torch.equal(worked[0].images, all_of_it[8].images)


def test_a_magnified_crop_is_never_wider_than_asked(examples: tuple[Example, ...]) -> None:
    """A pixel more would be padded by another 32, in most batches."""
    draw = Draw(examples, Mix(), 0, 0, 60, 4)
    batches = Batches(draw, Augment(crop=32, scale=(0.8, 1.25)), _preprocessing("default"))
    assert {tuple(batches[i].images.shape[2:]) for i in range(60)} == {(64, 64)}


def test_a_signal_to_the_whole_group_leaves_the_processes_that_prepare_batches(
    examples: tuple[Example, ...],
) -> None:
    batches = Batches(Draw(examples, Mix(), 0, 0, 30, 1), Augment(crop=32), make_recipe().preprocessing)
    before, seen = set(multiprocessing.active_children()), 0
    for seen, _ in enumerate(batches.run(0, 1, False), 1):
        if seen == 3:
            for worker in set(multiprocessing.active_children()) - before:
                os.kill(int(worker.pid or 0), signal.SIGTERM)
    assert seen == 30


def test_a_crop_without_cells(tmp_path: Path) -> None:
    example = read_examples(write_sartorius(tmp_path / "d", images=1))[0]
    sample = cut(example, Window(0, 0, 2, 2), 1.0)
    assert len(sample.labels) == 0
    _, target = to_network(sample, SIZE_HW, make_recipe().preprocessing)
    assert target.boxes.shape == (0, 4)
    assert target.masks.shape == (0, 2, 2)


def test_what_may_be_a_cell_is_told_apart(tmp_path: Path) -> None:
    example = read_examples(write_sartorius(tmp_path / "d", images=1))[0]
    sample = cut(example, Window(0, 0, *SIZE_HW), 0.0)
    settings = _preprocessing("default")
    _, known = to_network(sample, SIZE_HW, settings)
    labels = np.where(np.arange(len(sample.labels)) == 1, 0, sample.labels)
    _, target = to_network(replace(sample, labels=labels), SIZE_HW, settings)
    keep = [i for i in range(len(labels)) if i != 1]
    assert torch.equal(target.boxes, known.boxes[keep])
    assert torch.equal(target.masks, known.masks[keep])
    assert torch.equal(target.unsure, known.boxes[1:2])
    assert known.unsure.shape == (0, 4)
    assert torch.equal(target.to(torch.device("cpu")).unsure, target.unsure)
