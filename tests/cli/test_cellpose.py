"""A Cellpose network at the command line, alone and beside the included Mask R-CNN, on a real image."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from cellpose_cases import QUARTER, image_of, needs_reference, quarter
from commands import sartorius
from places import ROOT

from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.fuse import box_iou
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.manifest.views import parse_view
from sartorius_infer.output.predictions import load_prediction
from sartorius_infer.types import Prediction, UInt8

pytestmark = needs_reference

INCLUDED = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
SIZE_HW = 192, 256
PLACE = slice(128, 320), slice(32, 288)
CELLPOSE = {"name": "cp", "file": "cellpose_quarter"}


def crop() -> UInt8:
    """A piece of a public test image, full of cells."""
    return image_of("7ae19de7bc2a")[PLACE].copy()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both checkpoints and an image."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copyfile(QUARTER, folder / "cellpose_quarter")
    shutil.copyfile(ROOT / INCLUDED["models"][0]["file"], folder / "r18.safetensors")
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), crop())
    return folder


def mask_rcnn(**more: Any) -> dict[str, Any]:
    """The included entry, its image half as large again, which is how it sees whole ones."""
    height, width = SIZE_HW
    resize = {"shortest_edge": 3 * height // 2, "longest_edge": 3 * width // 2}
    entry: dict[str, Any] = INCLUDED["models"][0]
    preprocessing = entry["preprocessing"] | {"resize": resize}
    return entry | {"file": "r18.safetensors", "preprocessing": preprocessing} | more


def manifest(world: Path, name: str, *entries: dict[str, Any], **more: Any) -> Path:
    content = {key: value for key, value in INCLUDED.items() if key != "$schema"}
    path = world / f"{name}.json"
    content |= {"models": entries, "views": ["identity"]}
    path.write_text(json.dumps(content | more), encoding="utf-8")
    return path


def predicted(world: Path, name: str, *entries: dict[str, Any], **more: Any) -> Prediction:
    """What the command saves of these networks, run in this process."""
    words = ["--weights", manifest(world, name, *entries, **more), *_output(world, name)]
    assert main([*map(str, words)]) == 0
    return load_prediction(world / name / "a.npz")


def _output(world: Path, name: str) -> list[Any]:
    images, out, saved = world / "images", world / f"{name}.csv", world / name
    return ["--images", images, "--out", out, "--save-predictions", saved]


@pytest.fixture(scope="module")
def alone(world: Path) -> Prediction:
    return predicted(world, "alone", CELLPOSE)


@pytest.fixture(scope="module")
def partner(world: Path) -> Prediction:
    return predicted(world, "partner", mask_rcnn())


@pytest.fixture(scope="module")
def both(world: Path) -> Prediction:
    path = manifest(world, "both", mask_rcnn(), CELLPOSE)
    done = sartorius("--weights", path, *_output(world, "both"), "--device", "cpu", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    return load_prediction(world / "both" / "a.npz")


def overlaps(a: Prediction, b: Prediction) -> np.ndarray:
    return np.asarray(box_iou(a.boxes, b.boxes))


def test_alone_its_cells_are_of_the_first_class(alone: Prediction) -> None:
    with torch.inference_mode():
        cells = quarter().features([torch.from_numpy(crop())[None]]).seen[0].cells
    assert len(alone) == cells.label_map.max() > 10
    np.testing.assert_allclose(np.sort(alone.scores), np.sort(cells.scores), rtol=0, atol=1e-4)
    assert set(alone.labels) == {1}


def test_both_have_boxes_of_both_and_classes_of_the_one_that_knows_them(
    alone: Prediction, partner: Prediction, both: Prediction
) -> None:
    found, other = overlaps(both, alone).max(axis=1), overlaps(both, partner).max(axis=1)
    assert (np.maximum(found, other) > 0.6).all()
    agreed = (overlaps(alone, partner) > 0.75).sum()
    assert agreed > 5
    assert len(both) < len(alone) + len(partner)
    # A cell that both see is surer than one that either sees.
    seen_by_both = (found > 0.75) & (other > 0.75)
    assert seen_by_both.sum() > 5
    assert both.scores[seen_by_both].mean() > 2 * both.scores[~seen_by_both].mean()
    sure = partner.labels[partner.scores.argmax()]
    lead = Counter(both.labels[found > 0.9].tolist()).most_common(1)[0][0]
    assert lead == sure


def test_masks_of_what_it_did_not_see_are_the_partner_s(
    alone: Prediction, partner: Prediction, both: Prediction
) -> None:
    to_partner = overlaps(both, partner)
    rows = np.flatnonzero((overlaps(both, alone).max(axis=1) < 0.25) & (to_partner.max(axis=1) > 0.999))
    assert len(rows) > 3
    for row in rows:
        own = partner.masks[to_partner[row].argmax()].astype(np.float32)
        side = both.masks.shape[-1]
        grown = cv2.resize(own, (side, side), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(both.masks[row].astype(np.float32), grown, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_weight_is_how_much_it_has_to_say(world: Path, alone: Prediction, partner: Prediction) -> None:
    heavy = predicted(world, "heavy", mask_rcnn(), CELLPOSE | {"weight": 1000})
    light = predicted(world, "light", mask_rcnn(), CELLPOSE | {"weight": 0.001})
    for found, own in ((heavy, alone), (light, partner)):
        pairs = overlaps(found, own)
        rows = np.flatnonzero(pairs.max(axis=1) > 0.99)
        assert len(rows) >= 0.9 * len(own)
        expected = own.scores[pairs.argmax(axis=1)[rows]]
        np.testing.assert_allclose(found.scores[rows], expected, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_classes_names_the_class_of_its_cells(world: Path, alone: Prediction) -> None:
    named = predicted(world, "named", CELLPOSE | {"classes": ["cort"]})
    assert set(named.labels) == {3}
    np.testing.assert_array_equal(named.boxes, alone.boxes)
    mixed = predicted(world, "mixed", mask_rcnn(), CELLPOSE | {"classes": ["cort"]})
    rows = overlaps(mixed, alone).max(axis=1) > 0.99
    assert rows.any() and set(mixed.labels[rows]) == {3}


@pytest.mark.parametrize(
    "name", ["hflip", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rot90", "scale:1.2"))]
)
def test_a_view_finds_what_its_network_sees_there(world: Path, name: str) -> None:
    found = predicted(world, f"view {name.replace(':', '')}", CELLPOSE, views=[name])
    view = parse_view(name)
    pixels = torch.from_numpy(crop())[None]
    with torch.inference_mode():
        seen = quarter().features([view.image(pixels)], view).seen[0]
    back = view.boxes_back(torch.from_numpy(seen.boxes), SIZE_HW).numpy()
    order = np.argsort(-seen.cells.scores, kind="stable")
    np.testing.assert_allclose(found.boxes, back[order], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_views_vote(world: Path, alone: Prediction) -> None:
    found = predicted(world, "views", mask_rcnn(), CELLPOSE, views=["identity", "hflip", "scale:1.2"])
    best = overlaps(found, alone).max(axis=0)
    assert (best > 0.5).mean() > 0.8
    assert ((found.masks >= 0) & (found.masks <= 1)).all()


@pytest.mark.slow
def test_in_tiles_it_finds_what_it_finds_in_the_whole_image() -> None:
    """But for what each tile's own percentiles change: a tile is seen as an image of its own."""
    whole, tiled = (load_ensemble([QUARTER], "cpu", tile=tile) for tile in ("off", "260x352"))
    found, expected = (each.segment(image_of("7ae19de7bc2a")) for each in (tiled, whole))
    assert len(expected) > 60
    pairs = box_iou(found.boxes.astype(np.float32), expected.boxes.astype(np.float32))
    assert (pairs.max(axis=0) > 0.5).mean() > 0.85
    assert (pairs.max(axis=1) > 0.5).mean() > 0.85


def test_cells_of_both_are_a_valid_submission(world: Path, both: Prediction) -> None:
    del both
    assert main(["check", "--submission", str(world / "both.csv"), "--images", str(world / "images")]) == 0
    with (world / "both.csv").open(encoding="utf-8") as file:
        assert len(list(csv.reader(file))) > 5


def test_tune_and_show_take_its_predictions(
    world: Path, alone: Prediction, partner: Prediction, both: Prediction, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own cells are the truth, which tune finds out."""
    del alone, partner, both
    rows = [row.split(",")[1] for row in (world / "alone.csv").read_text(encoding="utf-8").splitlines()[1:]]
    images = world / "images"
    shutil.copyfile(images / "a.png", images / "b.png")
    for name in ("alone", "partner", "both"):
        shutil.copyfile(world / name / "a.npz", world / name / "b.npz")
    cells = [f"{i},{row},{SIZE_HW[1]},{SIZE_HW[0]},shsy5y" for i in "ab" for row in rows]
    truth = world / "train.csv"
    truth.write_text("\n".join(["id,annotation,width,height,cell_type", *cells]), encoding="utf-8")
    common = ["--truth", truth, "--weights", world / "both.json", "--predictions"]
    out = world / "tuned.json"
    words = ["tune", *common, world / "partner", world / "alone", "--folds", "2", "--out", out]
    assert main([*map(str, words)]) == 0
    chosen = json.loads(out.read_text(encoding="utf-8"))
    weights = {entry["name"]: entry["weight"] for entry in chosen["models"]}
    assert weights["cp"] > weights.get("resnet18_fpn96", 0)  # one that has no say is left out
    assert "cp" in capsys.readouterr().out
    words = ["show", *common, world / "both", "--images", images, "--out", world / "page.html"]
    assert main([*map(str, words)]) == 0
