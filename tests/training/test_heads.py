"""Losses: GIoU by its definition, masks where the kit pastes them back, empty crops without harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import generalized_box_iou
from training_factories import SIZE_HW, make_recipe, read_examples, write_sartorius

from sartorius_infer.cells.paste import paste_cells
from training.batches import Batch, Target, collate, to_network
from training.crops import Window, boxes_of, cut
from training.heads import box_loss, mask_targets
from training.model import Learner, build_learner, set_modes
from training.recipe import Recipe


def _learner(recipe: Recipe) -> Learner:
    learner = build_learner(recipe, Path())
    set_modes(learner, recipe.stages[0])
    return learner


def _random_boxes(rng: np.random.Generator, count: int) -> torch.Tensor:
    corner = rng.uniform(0, 50, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + rng.uniform(3, 40, (count, 2))], 1)).float()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_giou_of_offsets_is_giou_of_boxes(weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    anchors, found, true = (_random_boxes(rng, 20) for _ in range(3))
    coder = BoxCoder(weights)
    loss = box_loss("giou", coder.encode([found], [anchors])[0], coder.encode([true], [anchors])[0], weights)
    expected = (1 - generalized_box_iou(found, true).diagonal()).sum()
    assert float(loss) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("kind", ["giou", "smooth_l1"])
def test_box_losses_vanish_for_the_truth_and_for_none(kind: str) -> None:
    wanted = torch.randn(7, 4) / 5
    assert float(box_loss(kind, wanted, wanted, (1, 1, 1, 1))) == pytest.approx(0, abs=1e-5)
    assert float(box_loss(kind, wanted[:0], wanted[:0], (1, 1, 1, 1))) == 0


def test_mask_targets_paste_back_to_the_mask() -> None:
    """The kit's exact paste of a target gives the mask it was made from, half a grid square aside."""
    rows, columns = np.mgrid[:60, :80]
    masks = np.stack([((rows - 30) / 20) ** 2 + ((columns - 40) / 30) ** 2 < 1, (rows > 11) & (columns < 33)])
    boxes = boxes_of(masks)
    target = Target(
        torch.from_numpy(boxes) * 2, torch.ones(2).long(), torch.from_numpy(masks).byte(), (2.0, 2.0)
    )
    grids = mask_targets(target, target.boxes, torch.arange(2), 28).numpy()
    crops = paste_cells(grids, boxes, (60, 80), "exact")
    for crop, mask in zip(crops, masks, strict=True):
        found = np.zeros((60, 80), np.bool_)
        height, width = crop.probabilities.shape
        found[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width] = crop.probabilities >= 0.5
        assert (found & mask).sum() / (found | mask).sum() > 0.985


@pytest.mark.parametrize("box", ["giou", "smooth_l1"])
def test_losses_of_a_batch_are_finite_and_reach_every_weight(tmp_path: Path, box: str) -> None:
    recipe = make_recipe(loss={"box": box})
    learner = _learner(recipe)
    example = read_examples(write_sartorius(tmp_path / "d", images=1))[0]
    samples = [cut(example, Window(0, 0, 64, 64), 0.2), cut(example, Window(0, 0, 2, 2), 1.0)]
    batch = collate([to_network(sample, SIZE_HW, recipe.preprocessing) for sample in samples])
    losses = learner(batch)
    assert list(losses) == ["objectness", "rpn_box", "class", "box", "mask"]
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_a_batch_without_any_cell_trains_too() -> None:
    recipe = make_recipe()
    learner = _learner(recipe)
    none = Target(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0, 64, 64).byte(), (1.0, 1.0))
    losses = learner(Batch(torch.randn(2, 3, 64, 64), ((64, 64), (64, 64)), (none, none)))
    torch.stack(list(losses.values())).sum().backward()
    assert [float(losses[name].detach()) for name in ("mask", "box", "rpn_box")] == [0, 0, 0]
    assert all(p.grad is not None for p in learner.parameters())
    assert all(bool(b.isfinite().all()) for b in learner.buffers())


def test_losses_under_autocast_are_those_of_float32_nearly(tmp_path: Path) -> None:
    recipe = make_recipe()
    learner = _learner(recipe)
    example = read_examples(write_sartorius(tmp_path / "d", images=1))[0]
    batch = collate([to_network(cut(example, Window(0, 0, 64, 64), 0.2), SIZE_HW, recipe.preprocessing)])
    torch.manual_seed(0)
    wide = learner(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = learner(batch)
    for name, loss in narrow.items():
        assert loss.dtype == torch.float32, name
        assert float(loss.detach()) == pytest.approx(float(wide[name].detach()), rel=0.2, abs=0.05)


def test_weights_of_terms_multiply_them(tmp_path: Path) -> None:
    example = read_examples(write_sartorius(tmp_path / "d", images=1))[0]
    names = ("objectness", "rpn_box", "class", "box", "mask")
    found = []
    for weight in (1.0, 3.0):
        recipe = make_recipe(loss={f"{name}_weight": weight for name in names})
        batch = collate([to_network(cut(example, Window(0, 0, 64, 64), 0.2), SIZE_HW, recipe.preprocessing)])
        learner = _learner(recipe)
        torch.manual_seed(1)
        found.append(torch.stack(list(learner(batch).values())))
    assert torch.allclose(found[1], 3 * found[0])


def test_strides_do_not_depend_on_how_much_is_padding(tmp_path: Path) -> None:
    """Torchvision keeps the strides that it guesses from the first batch."""
    learner = build_learner(make_recipe(), tmp_path)
    target = Target(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros((0, 65, 65)), (1, 1))
    learner(Batch(torch.zeros((1, 3, 96, 96)), ((65, 65),), (target,)))
    assert learner.model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8]
