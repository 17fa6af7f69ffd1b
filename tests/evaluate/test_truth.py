"""Ids in truths and in what is scored: one spelling, whoever wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from truths import label_map

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.scoring import score
from sartorius_infer.evaluate.submissions import read_found
from sartorius_infer.evaluate.truth import called_as, read_truth

COMPOSED, DECOMPOSED = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
BOX = {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "category_id": 1}


def write_truth(folder: Path, kind: str, *names: str) -> Path:
    """A square of 4 x 4 pixels in the corner of an image of 6 x 8, for each name."""
    folder.mkdir()
    path = folder / {"csv": "train.csv", "coco": "truth.json", "maps": "maps"}[kind]
    if kind == "csv":
        rows = "".join(f"{name},1 4 9 4 17 4 25 4,8,6,x\n" for name in names)
        path.write_text(f"id,annotation,width,height,cell_type\n{rows}", encoding="utf-8")
    elif kind == "maps":
        labels = np.zeros((6, 8), np.uint8)
        labels[:4, :4] = 1
        path.mkdir()
        for name in names:
            cv2.imwrite(str(path / f"{name}.png"), labels)
    else:
        images = [{"id": i, "file_name": f"{n}.png", "height": 6, "width": 8} for i, n in enumerate(names)]
        drawn = [{"id": i, "image_id": i, **BOX} for i, _ in enumerate(names)]
        content = {"images": images, "annotations": drawn, "categories": [{"id": 1, "name": "x"}]}
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_found(folder: Path, kind: str, name: str) -> Path:
    path = folder / f"found.{kind}"
    if kind == "csv":
        path.write_text(f"id,predicted\n{name},1 4 9 4 17 4 25 4\n", encoding="utf-8")
    else:
        path.write_text(json.dumps([{"image_id": name, "score": 0.9, **BOX}]), encoding="utf-8")
    return path


@pytest.mark.parametrize("there", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("here", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("found", ["csv", "json"])
@pytest.mark.parametrize("kind", ["csv", "coco", "maps"])
def test_letters_may_be_composed_or_not(tmp_path: Path, kind: str, found: str, here: str, there: str) -> None:
    truth = read_truth(write_truth(tmp_path / "t", kind, here))
    assert [*truth] == [image.id for image in truth.values()] == [COMPOSED]
    assert score(truth, read_found(write_found(tmp_path, found, there), truth)).mean == 1


@pytest.mark.parametrize("kind", ["csv", "coco", "maps"])
def test_one_image_spelled_in_both_ways(tmp_path: Path, kind: str) -> None:
    path = write_truth(tmp_path / "t", kind, COMPOSED, DECOMPOSED)
    with pytest.raises(
        TruthError, match=f"{path}: expected one truth of each image, found two of {COMPOSED}"
    ):
        read_truth(path)


@pytest.mark.parametrize("found", ["csv", "json"])
def test_files_of_one_name_are_called_by_their_paths(tmp_path: Path, found: str) -> None:
    truth = read_truth(write_truth(tmp_path / "t", "coco", "a/image", "b/image", "c/other"))
    assert [*truth] == ["a_image", "b_image", "other"]
    for name in ("b_image", "b/image"):
        cells = read_found(write_found(tmp_path, found, name), truth)
        assert len(cells["b_image"]) == 1


def test_a_truth_under_the_names_that_images_have_elsewhere(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        label_map(tmp_path / "t" / name / "class1.tif", [[1]])
        label_map(tmp_path / "t" / name / "image.tif", [[9]])
    truth = called_as(read_truth(tmp_path / "t"), ["a_image", "b", "x"], tmp_path)
    assert {name: image.id for name, image in truth.items()} == {"a_image": "a_image", "b": "b", "c": "c"}
    with pytest.raises(TruthError, match=f"{tmp_path}: expected one name of c, found 'c.png' and 'c.tif'"):
        called_as(truth, ["c.png", "c.tif"], tmp_path)
