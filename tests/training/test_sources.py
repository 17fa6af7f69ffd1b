"""Sources: the three kinds of annotations, and what becomes of bad ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from training_factories import SIZE_HW, draw_cells, make_recipe, read_examples, write_sartorius

from sartorius_infer.errors import TruthError
from training.errors import TrainingError
from training.sources import parse_data, read_sources


def _read(folder: Path, **changes: Any) -> tuple[Any, list[str]]:
    examples, skipped = read_sources({"data": folder}, make_recipe(**changes))
    return examples, skipped.lines()


def test_train_csv_with_groups(tmp_path: Path) -> None:
    examples, lines = _read(write_sartorius(tmp_path / "d"))
    assert [e.key for e in examples] == [f"data/im{i}" for i in range(6)]
    assert [e.type for e in examples] == ["cort", "astro"] * 3
    assert [e.group for e in examples[:3]] == ["sample_id plate0", "sample_id plate0", "sample_id plate1"]
    assert set(examples[0].labels) == {3}
    assert examples[0].pixels().shape == SIZE_HW
    assert lines == []


def test_several_csv_files_join_but_may_not_repeat_an_image(tmp_path: Path) -> None:
    folder = write_sartorius(tmp_path / "d")
    lines = (folder / "train.csv").read_text().splitlines()
    first = [line for line in lines if line.startswith(("id,", "im0,"))]
    rest = [line for line in lines if not line.startswith("im0,")]
    (folder / "train.csv").write_text("\n".join(rest))
    (folder / "train_approximate.csv").write_text("\n".join(first))
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    assert len(read_examples(folder)) == 6
    (folder / "train_approximate.csv").write_text("\n".join(lines))
    with pytest.raises(TrainingError, match="im1: expected its cells in one file, found them in two"):
        read_examples(folder)


def _coco(folder: Path, names: Sequence[str], category: str, told: Sequence[tuple[int, int]]) -> None:
    """Images, and the same square in them for each (number of an image, iscrowd) that is told."""
    (folder / "images").mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / "images" / f"{name}.png"), draw_cells(np.random.default_rng(1))[0])
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.tif", "height": SIZE_HW[0], "width": SIZE_HW[1]}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "segmentation": square, "iscrowd": crowd}
            for i, (image, crowd) in enumerate(told)
        ],
        "categories": [{"id": 1, "name": category}],
    }
    (folder / "coco.json").write_text(json.dumps(content))


def test_coco_with_a_pattern_of_labels(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    _coco(folder, ("SHSY5Y_1", "MCF7_1"), "cell", [(0, 0), (1, 0)])
    labels = {"*/SHSY5Y_*": "shsy5y", "data/cell/*": "cell"}
    examples, _ = _read(folder, extra_classes=["cell"], labels=labels)
    assert [(e.file.id, e.type, e.labels) for e in examples] == [
        ("MCF7_1", "cell", (4,)),
        ("SHSY5Y_1", "shsy5y", (1,)),
    ]
    with pytest.raises(TrainingError, match=r"data/cell/SHSY5Y_1: expected a class of shsy5y, astro, cort"):
        _read(folder)


def test_crowd_regions_are_neither_cells_nor_background(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    _coco(folder, "ab", "cort", [(0, 0), (0, 1), (1, 1)])
    (example,), lines = _read(folder)
    assert (example.type, example.labels) == ("cort", (3, 0))
    assert len(example.masks) == 2
    assert len(example.cells) == len(example.truth().masks) == 1
    assert lines == ["1 images without a cell: data/b"]


@pytest.mark.parametrize("beside", [True, False])
def test_label_maps_for_each_class(tmp_path: Path, beside: bool) -> None:
    pixels, labels = draw_cells(np.random.default_rng(2), count=4)
    folder = tmp_path / "maps"
    own = folder / "a1" if beside else folder / "labels" / "a1"
    own.mkdir(parents=True)
    image = own / "image.png" if beside else folder / "images" / "a1.png"
    image.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(image), pixels)
    first = np.where(labels <= 2, labels, 0).astype(np.uint16)
    cv2.imwrite(str(own / "class1.tif"), first)
    cv2.imwrite(str(own / "class2.tif"), np.where(labels > 2, labels, 0).astype(np.uint16))
    patterns = {"*/class1/*": "cort", "*/class2/*": "astro"}
    (example,), _ = _read(folder, labels=patterns)
    assert (example.file.id, example.type) == ("a1", "")
    assert sorted(example.labels) == [2, 2, 3, 3][: len(example.labels)]
    assert len(example.masks) == len(np.unique(labels)) - 1


def test_bad_data_is_counted_and_told(tmp_path: Path) -> None:
    folder = write_sartorius(tmp_path / "d")
    (folder / "images" / "im0.png").unlink()
    cv2.imwrite(str(folder / "images" / "im1.png"), np.zeros((10, 10), np.uint8))
    (folder / "images" / "im2.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    text = (folder / "train.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("im3,")]
    lines.append(f"im3,,{SIZE_HW[1]},{SIZE_HW[0]},cort,plate")
    (folder / "train.csv").write_text("\n".join(lines))
    examples, told = _read(folder)
    assert [e.file.id for e in examples] == ["im4", "im5"]
    assert told == [
        "1 annotated images without a file: data/im0",
        "1 images of another size than annotated: data/im1",
        told[2],
        "1 images without a cell: data/im3",
    ]
    assert told[2].startswith(f"1 images that cannot be read: data/im2 ({folder / 'images' / 'im2.png'}: ")


def test_polygons_without_a_pixel_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros(SIZE_HW, np.uint8))
    inside, outside, point = ([x, x, x + s, x, x + s, x + s, x, x + s] for x, s in ((9, 9), (200, 9), (5, 0)))
    drawn = [
        {"id": i, "image_id": 0, "category_id": 1, "segmentation": [polygon]}
        for i, polygon in enumerate((inside, outside, point))
    ]
    images = [{"id": 0, "file_name": "a.png", "height": SIZE_HW[0], "width": SIZE_HW[1]}]
    content = {"images": images, "annotations": drawn, "categories": [{"id": 1, "name": "cort"}]}
    (folder / "c.json").write_text(json.dumps(content))
    (example,), told = _read(folder)
    assert len(example.masks) == 1
    assert told == ["2 cells without a pixel: data/a"]


def test_a_csv_as_other_programs_write_it(tmp_path: Path) -> None:
    folder = write_sartorius(tmp_path / "d")
    content = (folder / "train.csv").read_bytes()
    (folder / "train.csv").write_bytes(b"\xef\xbb\xbf" + content)
    assert read_examples(folder)[0].group == "sample_id plate0"
    long = b" ".join(b"%d 1" % (2 * i + 1) for i in range(SIZE_HW[0] * SIZE_HW[1] // 2))
    (folder / "train.csv").write_bytes(content + b"im0," + b" " * 140_000 + long + b",96,64,cort,plate0\n")
    assert read_examples(folder)[0].group == "sample_id plate0"
    (folder / "train.csv").write_bytes(content + "im0,1 2,96,64,cort,é\n".encode("latin-1"))
    with pytest.raises(TruthError, match=r"train.csv: expected a CSV file, found"):
        read_examples(folder)


def test_a_mask_outside_the_image_is_an_error(tmp_path: Path) -> None:
    folder = write_sartorius(tmp_path / "d")
    with (folder / "train.csv").open("a") as file:
        file.write(f"im0,6140 9,{SIZE_HW[1]},{SIZE_HW[0]},cort,plate0\n")
    with pytest.raises(TruthError, match=r"train.csv: im0: "):
        read_examples(folder)


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    folder = write_sartorius(tmp_path / "d")
    for image in (folder / "images").iterdir():
        image.unlink()
    with pytest.raises(TrainingError, match="expected images with cells, found none; 6 annotated images"):
        read_examples(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"expected train.csv, a COCO JSON, labels/ of label maps"):
        read_examples(tmp_path / "empty")


def test_data_arguments(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert parse_data([f"x={tmp_path}/a", f"{tmp_path}/a"]) == {"x": tmp_path / "a", "a": tmp_path / "a"}
    with pytest.raises(TrainingError, match="expected a folder, found none"):
        parse_data(["x=nowhere"])
    with pytest.raises(TrainingError, match="found x twice"):
        parse_data([f"x={tmp_path}", f"x={tmp_path}"])


def test_livecell_s_own_json_is_read_as_score_reads_it(tmp_path: Path) -> None:
    """A mapping of annotations, a file under two ids, one annotation without a mask."""
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros(SIZE_HW, np.uint8))
    images = [{"id": i, "file_name": "a.tif", "height": SIZE_HW[0], "width": SIZE_HW[1]} for i in (1, 2)]
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    drawn = {
        str(k): {"id": k, "image_id": i, "category_id": 1, "segmentation": s}
        for k, (i, s) in enumerate([(1, square), (2, square), (1, [])])
    }
    content = {"images": images, "annotations": drawn, "categories": [{"id": 1, "name": "cort"}]}
    (folder / "c.json").write_text("\ufeff" + json.dumps(content))
    (folder / "._c.json").write_bytes(b"\0")
    (folder / "images" / "._a.png").write_bytes(b"\0")
    (example,), told = _read(folder)
    assert len(example.masks) == 1
    assert told == [
        "1 cells of a file's second annotation: data/a",
        "1 cells without a pixel: data/a",
        "1 further ids of a file that is listed before: data/a",
    ]


def test_a_file_for_each_nucleus_trains(tmp_path: Path) -> None:
    pixels, labels = draw_cells(np.random.default_rng(2), count=4)
    own = tmp_path / "dsb" / "0ab1"
    for name in ("images", "masks"):
        (own / name).mkdir(parents=True)
    cv2.imwrite(str(own / "images" / "0ab1.png"), pixels)
    for number in np.unique(labels[labels > 0]):
        cv2.imwrite(str(own / "masks" / f"{number}.png"), np.where(labels == number, 255, 0).astype(np.uint8))
    (example,), _ = _read(tmp_path / "dsb", labels={"*": "cort"})
    assert (example.file.id, example.type) == ("0ab1", "cort")
    assert len(example.masks) == len(np.unique(labels)) - 1


def test_images_are_found_by_whatever_else_they_are_called(tmp_path: Path) -> None:
    """In folders of their own, by paths where stems collide; a picture's name may begin with "class"."""
    folder, square = tmp_path / "coco", [[10, 10, 30, 10, 30, 30, 10, 30]]
    names = ["a/image.png", "b/image.png", "x/c.png", "y/c.png", "classic.png"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros(SIZE_HW, np.uint8))
    size = {"height": SIZE_HW[0], "width": SIZE_HW[1]}
    content = {
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": square} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cort"}],
    }
    (folder / "c.json").write_text(json.dumps(content))
    examples, told = _read(folder)
    assert ([e.file.id for e in examples], told) == (["a_image", "b_image", "classic", "x_c", "y_c"], [])
    assert {str(e.file.path.relative_to(folder)) for e in examples} == {*names}


@pytest.mark.parametrize("inner", ["", "plate"])
def test_label_maps_beside_images_that_they_are_called_after(tmp_path: Path, inner: str) -> None:
    pixels, labels = draw_cells(np.random.default_rng(2), count=4)
    own = tmp_path / "set" / inner
    own.mkdir(parents=True)
    cv2.imwrite(str(own / "a.png"), pixels)
    cv2.imwrite(str(own / "a_masks.tif"), labels.astype(np.uint16))
    (example,), _ = _read(tmp_path / "set", labels={"*": "cort"})
    assert (example.file.id, example.file.path.name) == ("a", "a.png")
    assert len(example.masks) == len(np.unique(labels)) - 1
