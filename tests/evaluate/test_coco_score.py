"""COCO's measures equal pycocotools' own, run on the same files; where classes cannot be told, it is said."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sartorius_infer.evaluate.classes import Classes, classes_of
from sartorius_infer.evaluate.coco_score import coco_score
from sartorius_infer.evaluate.scoring import score_by_class
from sartorius_infer.evaluate.submissions import FoundCell, read_found
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.evaluate.truth import read_truth

SIZE = (200, 220)
NAMES = {"AP": 0, "AP50": 1, "AP75": 2, "AP small": 3, "AP medium": 4, "AP large": 5}


def rectangle(rng: np.random.Generator) -> tuple[int, int, int, int]:
    side = rng.choice([4, 12, 40, 110])
    height, width = (int(n) for n in rng.integers(side // 2, side, 2) + 2)
    return int(rng.integers(0, SIZE[1] - width)), int(rng.integers(0, SIZE[0] - height)), width, height


def polygon(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def packed(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    pixels = np.zeros(SIZE, np.uint8, order="F")
    pixels[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(pixels)
    return {"size": list(SIZE), "counts": rle["counts"].decode()}


def write(folder: Path, seed: int, images: int = 5, cells: int = 9) -> tuple[Path, Path]:
    """A truth with crowds, slivers and three classes of odd ids, and results that lie near it."""
    rng = np.random.default_rng(seed)
    true: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(cells):
            box, category = rectangle(rng), int(rng.choice([3, 5, 11]))
            crowd = int(rng.random() < 0.15)
            drawn = packed(*box) if crowd or rng.random() < 0.3 else polygon(*box)
            area = float(box[2] * box[3]) * rng.choice([1, 1, 0.5])
            own = {"image_id": 10 - image, "category_id": category, "iscrowd": crowd, "area": area}
            true.append({"id": len(true) + 1, "segmentation": drawn, "bbox": list(box), **own})
            for _ in range(rng.integers(0, 3)):
                near = (max(box[0] + int(rng.integers(-1, 2)), 0), box[1], box[2], box[3])
                kind = category if rng.random() < 0.8 else int(rng.choice([3, 5, 11, 99]))
                score = float(rng.integers(1, 6)) / 5  # ties are broken by order
                results.append(
                    {
                        "image_id": 10 - image,
                        "category_id": kind,
                        "score": score,
                        "segmentation": packed(*near),
                    }
                )
    sliver = {"image_id": 10, "category_id": 3, "iscrowd": 0, "area": 0.01, "bbox": [0, 0, 1, 1]}
    true.append({"id": len(true) + 1, "segmentation": [[1, 1, 1.1, 1, 1.1, 1.1]], **sliver})
    listed = [
        {"id": 10 - i, "file_name": f"x/{'abcdefgh'[i]}.png", "height": SIZE[0], "width": SIZE[1]}
        for i in range(images)
    ]
    kinds = [{"id": k, "name": n} for k, n in ((3, "one"), (5, "two"), (11, "three"), (12, "absent"))]
    (folder / "t.json").write_text(json.dumps({"images": listed, "annotations": true, "categories": kinds}))
    (folder / "r.json").write_text(json.dumps(results))
    return folder / "t.json", folder / "r.json"


def by_pycocotools(truth: Path, results: Path, **parameters: Any) -> np.ndarray[Any, Any]:
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "segm")
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.asarray(evaluation.stats)
    return np.where(stats < 0, np.nan, stats)


def ours(truth_file: Path, results: Path, **more: Any) -> Any:
    truth = read_truth(truth_file)
    found = read_found(results, truth)
    return coco_score(truth, found, classes_of(truth, found), **more)


@pytest.mark.parametrize("seed", range(8))
def test_files_score_as_pycocotools_scores_them(tmp_path: Path, seed: int) -> None:
    truth, results = write(tmp_path, seed)
    expected = by_pycocotools(truth, results)
    found = ours(truth, results)
    assert found.max_dets == 100
    for name, place in NAMES.items():
        assert found.mean[name] == pytest.approx(expected[place], abs=1e-9, nan_ok=True), name
    for category, name in ((3, "one"), (5, "two"), (11, "three")):
        alone = by_pycocotools(truth, results, catIds=[category])
        assert found.by_class[name]["AP"] == pytest.approx(alone[0], abs=1e-9)
    assert np.isnan(found.by_class["absent"]["AP"])


@pytest.mark.parametrize("seed", range(3))
def test_class_blind_is_pycocotools_without_categories(tmp_path: Path, seed: int) -> None:
    """But for cells of a category that is none, which it leaves out, and for ties, in another order."""
    truth, results = write(tmp_path, seed)
    known = [cell for cell in json.loads(results.read_text()) if cell["category_id"] != 99]
    for index, cell in enumerate(known):
        cell["score"] += index / 1e6
    results.write_text(json.dumps(known))
    expected = by_pycocotools(truth, results, useCats=0)
    found = ours(truth, results)
    assert found.class_blind["AP"] == pytest.approx(expected[0], abs=1e-9)
    assert found.class_blind["AP50"] == pytest.approx(expected[1], abs=1e-9)


def test_more_cells_than_a_limit_count_by_score(tmp_path: Path) -> None:
    truth, results = write(tmp_path, 0, images=1, cells=70)
    expected = by_pycocotools(truth, results, maxDets=[1, 2, 5])
    found = ours(truth, results, max_dets=5)
    assert found.mean["AP small"] == pytest.approx(expected[3], abs=1e-9)
    assert found.cut == 1
    assert ours(truth, results).cut == 0
    assert found.mean["AP"] < ours(truth, results, max_dets=1000).mean["AP"]


def test_a_crowd_takes_found_cells_in_and_asks_for_none(tmp_path: Path) -> None:
    own = {"image_id": 1, "category_id": 1}
    cells = [
        {"id": 1, "iscrowd": 0, "segmentation": polygon(5, 5, 20, 20), **own},
        {"id": 2, "iscrowd": "1", "segmentation": polygon(50, 50, 90, 90), **own},
    ]
    content = {"images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}]}
    content |= {"annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "t.json").write_text(json.dumps(content))
    boxes = [(60, 60, 10, 10), (90, 90, 10, 10), (5, 5, 20, 20)]
    results = [{"segmentation": packed(*b), "score": 0.9 - i / 10, **own} for i, b in enumerate(boxes)]
    (tmp_path / "r.json").write_text(json.dumps(results))
    assert ours(tmp_path / "t.json", tmp_path / "r.json").mean["AP"] == pytest.approx(1)


UNTOLD = Classes((), {}, "the truth tells no classes")


def test_areas_are_of_masks_not_of_boxes() -> None:
    thin = (np.arange(40) * 161, np.full(40, 4))  # 160 pixels, its box 43 x 40
    true = (np.array([0]), np.array([50]))
    truth = {"a": TrueImage("a", (60, 160), "", (true,))}
    found = {"a": [FoundCell(thin, 0.9), FoundCell(true, 0.5)]}
    measures = coco_score(truth, found, UNTOLD).main
    assert measures["AP small"] == pytest.approx(0.5), "a false small cell comes first"
    assert np.isnan(measures["AP large"])
    nothing = coco_score(truth, {"a": []}, UNTOLD).main
    assert nothing["AP"] == nothing["AP small"] == 0
    assert np.isnan(nothing["AP large"]), "found nothing, where nothing is"


CELL, ELSEWHERE = (np.array([0]), np.array([9])), (np.array([90]), np.array([9]))


def told(image: TrueImage, *labels: int, given: tuple[str, ...] = ()) -> Classes:
    cells = [FoundCell(CELL, label=label, has_label=True) for label in labels] or [FoundCell(CELL)]
    return classes_of({"a": image}, {"a": cells}, given)


def test_which_classes_can_be_told() -> None:
    maps = TrueImage("a", SIZE, "", (CELL, CELL), ("class2", "class10"))
    assert told(maps, 2).names == ("class2", "class10")
    assert told(maps, 2).by_category == {2: 1, 10: 2}
    assert told(maps, 2).untold == ""
    assert told(maps).untold == "the submission tells no classes"
    one = TrueImage("a", SIZE, "cort", (CELL,))
    assert told(one).untold == ""
    assert told(one, 1).untold.startswith("the truth tells no category ids; --classes")
    assert told(one, 1, given=("astro", "cort")).by_category == {1: 1, 2: 2}
    assert told(TrueImage("a", SIZE, "", (CELL,)), 1).untold == "the truth tells no classes"
    assert classes_of({"a": one}, {"a": []}).untold == ""


def test_the_score_of_each_class_by_itself(tmp_path: Path) -> None:
    image = TrueImage("a", SIZE, "", (CELL, ELSEWHERE), ("class1", "class2"))
    truth = {"a": image, "b": TrueImage("b", SIZE, "class1", (CELL,))}
    found = {"a": [FoundCell(CELL, label=1, has_label=True)], "b": [FoundCell(CELL, label=7, has_label=True)]}
    classes = classes_of(truth, found)
    scores = score_by_class(truth, found, classes)
    assert {name: s.aps.tolist() for name, s in scores.items()} == {"class1": [1, 0], "class2": [0]}
    assert classes.strangers(found) == {7: 1}
    assert score_by_class(truth, {"a": [FoundCell(CELL)]}, classes_of(truth, {"a": [FoundCell(CELL)]})) == {}


def test_names_that_two_categories_share_are_told_apart(tmp_path: Path) -> None:
    truth, results = write(tmp_path, 0)
    content = json.loads(truth.read_text())
    for kind in content["categories"]:
        kind["name"] = "cell"
    truth.write_text(json.dumps(content))
    assert set(ours(truth, results).by_class) == {"cell (3)", "cell (5)", "cell (11)", "cell (12)"}
