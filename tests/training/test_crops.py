"""Crops and what is varied in them: masks follow the pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from training_factories import SIZE_HW, read_examples, write_sartorius

from sartorius_infer.cells.rle import run_pixels
from training.augment import change_grays, paste_cells, turn
from training.crops import Sample, Window, boxes_of, cell_crops, cut, draw_window, draw_zoom, stack
from training.recipe import Augment
from training.sources import Example


@pytest.fixture(name="example", scope="module")
def _example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return read_examples(write_sartorius(tmp_path_factory.mktemp("d") / "d", images=2))[0]


def _whole_masks(example: Example) -> np.ndarray:
    masks = np.zeros((len(example.masks), *SIZE_HW), np.bool_)
    for mask, runs in zip(masks, example.masks, strict=True):
        mask.ravel()[run_pixels(*runs)] = True
    return masks


def _empty() -> Sample:
    return Sample(np.full((8, 9), 100, np.uint8), np.zeros((0, 8, 9), np.bool_), np.zeros(0, np.int64))


def test_the_whole_image_holds_every_cell(example: Example) -> None:
    sample = cut(example, Window(0, 0, *SIZE_HW), 0.2)
    assert np.array_equal(sample.masks, _whole_masks(example))
    assert np.array_equal(sample.pixels, example.pixels())
    assert tuple(sample.labels) == example.labels


def test_random_windows_cut_as_slices_do(example: Example) -> None:
    whole = _whole_masks(example)
    rng = np.random.default_rng(0)
    for _ in range(50):
        y0, x0 = int(rng.integers(0, 40)), int(rng.integers(0, 60))
        height, width = int(rng.integers(1, SIZE_HW[0] - y0)), int(rng.integers(1, SIZE_HW[1] - x0))
        share = float(rng.random())
        sample = cut(example, Window(y0, x0, height, width), share)
        part = whole[:, y0 : y0 + height, x0 : x0 + width]
        seen = part.sum(axis=(1, 2))
        kept = (seen > 0) & (seen >= share * whole.sum(axis=(1, 2)))
        assert np.array_equal(sample.masks, part[kept])


def test_windows_lie_inside_and_show_a_cell(example: Example) -> None:
    settings = Augment(crop=32, on_cells=1.0, scale=(0.5, 2.0))
    rng = np.random.default_rng(1)
    for _ in range(50):
        zoom = draw_zoom(settings, rng)
        window = draw_window(example, settings, rng, zoom)
        assert 0.5 <= zoom <= 2
        assert window.height == min(SIZE_HW[0], int(32 / zoom))
        assert 0 <= window.y0 <= SIZE_HW[0] - window.height
        assert 0 <= window.x0 <= SIZE_HW[1] - window.width
        assert len(cut(example, window, 0.0).labels) > 0
    assert draw_window(example, Augment(), rng, 1.0) == (0, 0, *SIZE_HW)
    astro = Augment(crop=32, crop_of={example.type: 48})
    assert draw_window(example, astro, rng, 1.0).height == 48


def test_boxes_are_half_open(example: Example) -> None:
    for cell, box in zip(cell_crops(example), boxes_of(_whole_masks(example)), strict=True):
        height, width = cell.mask.shape
        assert tuple(box) == (cell.x0, cell.y0, cell.x0 + width, cell.y0 + height)
    assert boxes_of(np.zeros((0, 4, 5), np.bool_)).shape == (0, 4)
    assert stack([], (4, 5)).shape == (0, 4, 5)


def test_turns_move_masks_with_pixels(example: Example) -> None:
    # A picture of the masks themselves: wherever it goes, they must go too.
    sample = cut(example, Window(0, 0, *SIZE_HW), 0.0)
    drawn = replace(sample, pixels=(200 * sample.masks.any(axis=0)).astype(np.uint8))
    settings = Augment(hflip=True, vflip=True, quarter_turns=True)
    seen = set()
    for seed in range(40):
        turned = turn(drawn, settings, np.random.default_rng(seed))
        assert np.array_equal(turned.pixels > 0, turned.masks.any(axis=0))
        assert np.array_equal(turned.labels, sample.labels)
        seen.add(turned.pixels.tobytes())
    assert len(seen) == 8
    same = turn(drawn, Augment(hflip=False), np.random.default_rng(0))
    assert np.array_equal(same.pixels, drawn.pixels)


def test_grays_change_and_cells_do_not(example: Example) -> None:
    sample = cut(example, Window(0, 0, *SIZE_HW), 0.0)
    heavy = Augment(brightness=20, contrast=(0.5, 1.5), gamma=(0.7, 1.4), blur=1.5, noise=5)
    changed = change_grays(sample, heavy, np.random.default_rng(0))
    assert changed.pixels.dtype == np.uint8
    assert not np.array_equal(changed.pixels, sample.pixels)
    assert changed.masks is sample.masks
    again = change_grays(sample, heavy, np.random.default_rng(0))
    assert np.array_equal(changed.pixels, again.pixels)
    assert np.array_equal(change_grays(sample, Augment(), np.random.default_rng(0)).pixels, sample.pixels)


def test_pasted_cells_hide_what_they_cover(example: Example) -> None:
    sample = cut(example, Window(0, 0, *SIZE_HW), 0.0)
    donor = turn(sample, Augment(hflip=True), np.random.default_rng(2))
    for seed in range(10):
        mixed = paste_cells(sample, donor, Augment(), np.random.default_rng(seed))
        old = {mask.tobytes() for mask in sample.masks}
        added = [mask for mask in mixed.masks if any(np.array_equal(mask, d) for d in donor.masks)]
        cover = np.any(added, axis=0) if added else np.zeros(SIZE_HW, np.bool_)
        for mask in mixed.masks:
            if not any(mask is a or np.array_equal(mask, a) for a in added):
                assert mask.tobytes() in old or not (mask & cover).any()
        assert (mixed.masks.sum(axis=(1, 2)) > 0).all()


def test_what_may_be_a_cell_is_cut_but_neither_sought_nor_pasted(example: Example) -> None:
    labels = (0,) * (len(example.labels) - 1) + (example.labels[-1],)
    unsure = replace(example, labels=labels)
    (sure,) = unsure.cells
    assert np.array_equal(sure, example.masks[-1])
    settings, rng = Augment(crop=32, on_cells=1.0), np.random.default_rng(0)
    for _ in range(30):
        assert cut(unsure, draw_window(unsure, settings, rng, 1.0), 0.0).labels.any()
    sample = cut(unsure, Window(0, 0, *SIZE_HW), 0.0)
    assert tuple(sample.labels) == labels
    pasted = [paste_cells(sample, sample, settings, np.random.default_rng(i)) for i in range(30)]
    assert all((one.labels == 0).sum() <= (sample.labels == 0).sum() for one in pasted)
    assert any((one.labels > 0).sum() for one in pasted)


def test_nothing_in_a_crop_is_legal() -> None:
    empty, settings, rng = _empty(), Augment(vflip=True, noise=2, blur=1), np.random.default_rng(0)
    for sample in (
        turn(empty, settings, rng),
        change_grays(empty, settings, rng),
        paste_cells(empty, empty, settings, rng),
    ):
        assert sample.masks.shape == (0, 8, 9)
    with pytest.raises(ValueError, match="masks: expected 1"):
        Sample(empty.pixels, empty.masks, np.ones(1, np.int64))


def test_colour_images_keep_their_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    sample = replace(_empty(), pixels=pixels)
    assert turn(sample, Augment(hflip=False), np.random.default_rng(0)).pixels.tolist() == pixels.tolist()
