"""The opponents do the kit's job, and what is timed is what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from places import SAMPLES

from benchmarks import cellpose, kit, opponents, ratios, stages, timing, whole
from benchmarks.agreed import AgreedModel, AgreedNetwork
from benchmarks.networks import LEAST_AREA, Subject, default_checkpoint
from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import decode, encode_label_map
from sartorius_infer.evaluate.metric import score_image
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.manifest.views import parse_view
from sartorius_infer.types import CellImage

HW = (200, 240)


def image() -> CellImage:
    """A part of a dense sample."""
    file = next(f for f in find_images([SAMPLES]) if f.id.startswith("SHSY5Y"))
    whole_image = read_image(file)
    return CellImage(whole_image.id, np.ascontiguousarray(whole_image.pixels[: HW[0], : HW[1]]))


def agreement(one: list[str], other: list[str], hw: tuple[int, int]) -> float:
    """The competition's metric of one's cells against the other's."""
    first, second = ([decode(rle, hw) for rle in rles if rle] for rles in (one, other))
    return score_image("image", first, second).ap


def of_the_first_class(subject: Subject) -> Subject:
    """Where two classes claim a cell, the loser keeps shreds, other ones in each way of cutting."""
    floors = (subject.floors[0], *(1.0 for _ in subject.floors[1:]))
    told = json.loads(subject.manifest.read_text())
    for rule, floor in zip(told["rules"]["per_class"].values(), floors, strict=True):
        rule["score"] = floor
    subject.manifest.write_text(json.dumps(told))
    return replace(subject, floors=floors)


@pytest.mark.slow
def test_the_notebook_finds_what_the_kit_finds(tmp_path: Path) -> None:
    subject = of_the_first_class(default_checkpoint(tmp_path))
    theirs = opponents.notebook(subject.model, image().pixels, subject.floors, LEAST_AREA)
    for precision in kit.precisions(kit.CPU):
        ours = kit.rows(kit.load(subject.manifest, kit.CPU, precision), image())
        assert len(ours) > 5
        # The kit keeps the largest part of a cell that others cut in two, the notebook all of it.
        assert agreement(theirs, ours, HW) > 0.9


def test_the_loops_give_the_kits_cells() -> None:
    prediction = ratios.drawn_cells(60)
    rules = Rules(
        per_class={"cell": ClassRule(score=0.5, min_area=LEAST_AREA)}, overlap_survival=0, paste="torchvision"
    )
    cells = build_instances(prediction, rules, ["cell"])
    ours = encode_label_map(cells.label_map, len(cells))
    canvases = torch.from_numpy(np.stack([cells.label_map == n + 1 for n in range(len(cells))])).float()
    ones = torch.ones(len(cells))
    assert opponents.rows(canvases[:, None], ones, ones.long(), [0.5], 1) == ours


def test_mask_nms_keeps_the_first_of_those_that_agree() -> None:
    canvases = [np.zeros((8, 8), bool) for _ in range(3)]
    canvases[0][:4], canvases[1][:5], canvases[2][6:] = True, True, True
    assert opponents.mask_nms(canvases, 0.5) == [canvases[0], canvases[2]]


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    found = timing.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(times.seconds) for times in found.values()] == [2, 2]


def test_a_ratio_is_the_median_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[float] = iter([0, 4, 0, 1, 0, 9, 0, 3, 0, 2, 0, 1])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    (row,) = timing.against_all("x", lambda: None, {"": lambda: None}, rounds=3, warm_up=0)
    assert (row.what, row.opponent_s, row.kit_s, row.ratio) == ("x", 4, 1, 3)


@pytest.mark.parametrize("view", ratios.FLIPS)
def test_agreed_networks_see_the_drawn_cells_in_every_view(view: str, tmp_path: Path) -> None:
    drawn = ratios.drawn_cells(5)
    ensemble = kit.load(default_checkpoint(tmp_path).manifest, kit.CPU)
    network = AgreedNetwork(ensemble.members[0].network, drawn)
    flip = parse_view(view)
    with torch.inference_mode():
        features = network.features([torch.zeros((1, *HW), dtype=torch.uint8)], flip)
        (found,) = network.detect(features, network.propose(features))
    upright = flip.boxes_back(found.boxes, drawn.size_hw)
    np.testing.assert_allclose(upright.numpy(), drawn.boxes, atol=1e-3)


def test_agreed_models_answer_in_the_order_of_the_flips() -> None:
    drawn = ratios.drawn_cells(3)
    calls = count()

    def model(images: object) -> None:
        next(calls)

    agreed = AgreedModel(model, drawn, opponents.FLIPS, kit.CPU)
    seen = [agreed([])[0]["masks"] for _ in opponents.FLIPS]
    assert next(calls) == len(opponents.FLIPS)
    for masks, axes in zip(seen, opponents.FLIPS, strict=True):
        assert torch.equal(masks.flip(axes) if axes else masks, agreed.canvases)


@pytest.mark.slow
def test_stages_and_floor_are_of_one_run(tmp_path: Path) -> None:
    ensemble = kit.load(default_checkpoint(tmp_path).manifest, kit.CPU)
    (file,) = (f for f in find_images([SAMPLES]) if f.id.startswith("A172"))
    seconds = stages.stages(file, ensemble, rounds=1)
    assert list(seconds)[:4] == ["decode", "resize", "body and pyramid", "RPN"]
    assert all(value >= 0 for name, value in seconds.items() if name != "rules")
    floor = seconds.pop("floor")
    assert 0 < floor < 2 * sum(seconds.values())  # a busy machine may slow either


@pytest.mark.slow
def test_a_child_tells_its_own_peak() -> None:
    block = np.ones(300 << 20, np.uint8)  # what this process holds is not the child's
    seconds, mib = whole.child(["this"])
    assert block.size and seconds > 0 and mib < 200


def test_the_discs_of_cellpose_s_stage_are_found() -> None:
    maps = cellpose._discs(HW, 40)
    cells = cellpose.cells_of(maps, cellpose.PARTS, HW, cellpose.RESCALE)
    assert 30 <= len(cells.scores) <= 60
    stages = [name for name, seconds in cellpose.costs(torch.zeros((1, 40, 50), dtype=torch.uint8), 4, 1)]
    assert stages == [*(f"tiles, {name}" for name in kit.precisions(kit.CPU)), "flows to cells"]
