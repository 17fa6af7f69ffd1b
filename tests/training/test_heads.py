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
from training.heads import box_loss, mask_targets, on_unsure
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


def test_boxes_on_unsure_regions_are_those_with_more_than_half_of_their_pixels_there() -> None:
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 30, (40, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 20, (40, 2))], 1)
    for regions in (boxes[:0], boxes[:1], boxes[:9]):
        found = on_unsure(torch.from_numpy(boxes).float(), torch.from_numpy(regions).float())
        expected = []
        for x0, y0, x1, y1 in boxes.tolist():
            most = 0
            for a0, b0, a1, b1 in regions.tolist():
                canvas = np.zeros((60, 60), np.bool_)
                canvas[b0:b1, a0:a1] = True
                most = max(most, int(canvas[y0:y1, x0:x1].sum()))
            expected.append(2 * most > (x1 - x0) * (y1 - y0))
        assert found.tolist() == expected


def _blank(unsure: list[list[float]], boxes: list[list[float]]) -> Target:
    masks = torch.zeros(len(boxes), 64, 64).byte()
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = 1
    found = torch.tensor(boxes).reshape(-1, 4)
    labels = torch.ones(len(boxes), dtype=torch.int64)
    return Target(found, labels, masks, (1.0, 1.0), torch.tensor(unsure).reshape(-1, 4))


def test_nothing_on_an_unsure_region_is_drawn_as_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors and RoIs there are background where nobody told of the region, and not drawn where it is."""
    learner = _learner(make_recipe())
    region = [0.0, 0.0, 40.0, 64.0]
    # A cell that lies in the region keeps the boxes that match it.
    cell = [4.0, 4.0, 28.0, 28.0]
    anchors: list[torch.Tensor] = []
    heads, rpn = learner.model.roi_heads, learner.model.rpn
    assign, choose = rpn.assign_targets_to_anchors, heads.select_training_samples
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def assigned(some: list[torch.Tensor], targets: list[dict[str, torch.Tensor]]) -> object:
        found = assign(some, targets)
        seen["anchors"] = list(zip(some, found[0], strict=True))
        return found

    def chosen(proposals: list[torch.Tensor], targets: list[dict[str, torch.Tensor]]) -> object:
        anchors.extend(proposals)
        found = choose(proposals, targets)
        seen["rois"] = list(zip(found[0], found[2], strict=True))
        return found

    monkeypatch.setattr(rpn, "assign_targets_to_anchors", assigned)
    monkeypatch.setattr(heads, "select_training_samples", chosen)
    images = torch.randn(1, 3, 64, 64)
    background = {}
    for unsure in ([], [region]):
        learner(Batch(images, ((64, 64),), (_blank(unsure, [cell]),)))
        for name, ((boxes, labels),) in seen.items():
            there = on_unsure(boxes, torch.tensor([region]))
            background[name, bool(unsure)] = int(((labels == 0) & there).sum())
            assert int((labels > 0).sum()) > 0
            assert int(((labels == 0) & ~there).sum()) > 0
    assert background["anchors", False] > 0
    assert background["rois", False] > 0
    assert background["anchors", True] == background["rois", True] == 0


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_where_all_is_unsure_nothing_is_learnt(norm: str) -> None:
    network = make_recipe().model_dump(mode="json", exclude_none=True)["network"]
    head = {"conv_channels": [8], "fc_channels": [16], "norm": {"kind": norm}}
    learner = _learner(make_recipe(network=network | {"box_head": head}))
    target = _blank([[-100.0, -100.0, 200.0, 200.0]], [])
    losses = learner(Batch(torch.randn(1, 3, 64, 64), ((64, 64),), (target,)))
    assert {float(loss.detach()) for loss in losses.values()} == {0.0}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert not bool(parameter.grad.any()), name
    assert all(bool(b.isfinite().all()) for b in learner.buffers())


def test_losses_under_autocast_are_those_of_float32_nearly(tmp_path: Path) -> None:
    """One proposal, beside which there are the true boxes: of many, half precision draws others."""
    recipe = make_recipe(sampling={"pre_nms_top_n": 1, "post_nms_top_n": 1})
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
        assert float(loss.detach()) == pytest.approx(float(wide[name].detach()), rel=0.02)


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
