"""Which image COCO results mean, and results of every kind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from truths import SQUARE, coco, csv

from sartorius_infer.errors import SubmissionError, TruthError
from sartorius_infer.evaluate.image_names import ImageNames
from sartorius_infer.evaluate.submissions import read_annotated, read_cells, read_found
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.evaluate.truth import read_truth

RLE = {"size": [6, 8], "counts": [7, 2, 4, 2, 4, 2, 27]}


def listed(*pairs: tuple[Any, str]) -> list[dict[str, Any]]:
    return [{"id": key, "file_name": f"{stem}.png", "height": 6, "width": 8} for key, stem in pairs]


def truth_of(folder: Path, *pairs: tuple[Any, str]) -> dict[str, TrueImage]:
    return read_truth(coco(folder, [], images=listed(*pairs)))


def results(folder: Path, *image_ids: Any, **more: Any) -> Path:
    entries = [{"image_id": i, "category_id": 1, "score": 0.5, "segmentation": RLE} | more for i in image_ids]
    path = folder / "results.json"
    path.write_text(json.dumps(entries))
    return path


def counted(folder: Path, truth: dict[str, TrueImage], *image_ids: Any) -> dict[str, int]:
    found = read_found(results(folder, *image_ids), truth)
    return {image_id: len(cells) for image_id, cells in found.items()}


@pytest.mark.parametrize("said", [7, 7.0, "7", "7.0", "a"])
def test_an_image_by_its_id_or_its_name(tmp_path: Path, said: Any) -> None:
    assert counted(tmp_path, truth_of(tmp_path, (7, "a"), (8, "b")), said) == {"a": 1, "b": 0}


@pytest.mark.parametrize("key", ["7", 7.0, "0007"])
def test_ids_of_the_truth_however_they_are_written(tmp_path: Path, key: Any) -> None:
    assert counted(tmp_path, truth_of(tmp_path, (key, "a")), 7) == {"a": 1}


def test_ids_that_are_texts(tmp_path: Path) -> None:
    assert counted(tmp_path, truth_of(tmp_path, ("x1", "a"), ("x2", "b")), "x2", "a") == {"a": 1, "b": 1}


def test_numbers_are_ids_before_they_are_names(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, (0, "1"), (1, "2"), (2, "3"))
    assert counted(tmp_path, truth, 0, 1, 1) == {"1": 1, "2": 2, "3": 0}
    assert counted(tmp_path, truth_of(tmp_path, (100, "1"), (101, "2")), 1, 2) == {"1": 1, "2": 1}


def test_a_text_that_is_an_id_and_another_image_s_name_is_refused(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, (0, "1"), (1, "2"))
    with pytest.raises(
        SubmissionError, match=r"entry 2: .+ image_id '1', the id of 2 and the name of another"
    ):
        counted(tmp_path, truth, "2", "1")
    assert counted(tmp_path, truth_of(tmp_path, (1, "1"), (2, "2")), "1", "2") == {"1": 1, "2": 1}


def test_numbers_of_which_some_are_ids_and_some_names_alone_are_refused(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, (1, "2"), (2, "3"), (3, "4"))
    with pytest.raises(SubmissionError, match="found 2, an id, and 4, a name"):
        counted(tmp_path, truth, 2, 3, 4)


def test_results_of_a_file_under_two_ids_count_once(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, (7, "a"), (8, "a"), (9, "b"))
    assert counted(tmp_path, truth, 7, 7, 8, 9) == {"a": 2, "b": 1}
    assert counted(tmp_path, truth, 8, 9) == {"a": 1, "b": 1}


def test_numbers_without_a_file_that_explains_them_say_what_to_do(tmp_path: Path) -> None:
    truth = read_truth(csv(tmp_path, "a,1 2,8,6,cort", "12,1 2,8,6,cort"))
    with pytest.raises(TruthError, match=r"found 7; numbers are ids of a COCO file: score with that file"):
        read_annotated(results(tmp_path, 7), truth)
    assert counted(tmp_path, truth, 12, "a") == {"12": 1, "a": 1}


def test_sizes_of_images_and_ids_of_a_truth(tmp_path: Path) -> None:
    """As a page shows results: only images that are there, by the ids of the truth."""
    names = ImageNames({"a": (6, 8)}, ImageNames.of(truth_of(tmp_path, (7, "a"), (8, "b"))).ids)
    assert len(read_cells(results(tmp_path, 7), {"a": (6, 8)}, names=names)["a"]) == 1
    with pytest.raises(TruthError, match="expected an image that is there, found '8'"):
        read_cells(results(tmp_path, 8), {"a": (6, 8)}, names=names)


@pytest.mark.parametrize("name", ["results.zip", "RESULTS.ZIP"])
def test_results_in_a_zip(tmp_path: Path, name: str) -> None:
    truth = truth_of(tmp_path, (7, "a"))
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.write(results(tmp_path, 7), "inner/test-results.json")
    assert len(read_found(tmp_path / name, truth)["a"]) == 1
    with zipfile.ZipFile(tmp_path / name, "w"):
        pass
    with pytest.raises(SubmissionError, match="expected one JSON in the zip, found none"):
        read_found(tmp_path / name, truth)


def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, (7, "a"))
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("r.json", bytes(1 << 22))
    with pytest.raises(
        SubmissionError,
        match=r"r\.zip: expected JSON of at most .*, found 4,\d+ bytes that unpack to 4,194,304",
    ):
        read_found(tmp_path / "r.zip", truth)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_results_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = results(tmp_path, 7)
    path.write_bytes(path.read_text().encode(encoding))
    assert len(read_found(path, truth_of(tmp_path, (7, "a")))["a"]) == 1


def test_a_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    train = csv(tmp_path, "a,1 2,8,6,cort")
    train.write_bytes(b"\xef\xbb\xbf" + train.read_bytes())
    (tmp_path / "s.csv").write_bytes(b"\xef\xbb\xbfid,predicted\na,1 2\n")
    assert len(read_found(tmp_path / "s.csv", read_truth(train))["a"]) == 1


def test_what_is_told_of_a_cell(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, (7, "a"))
    path = results(tmp_path, 7, category_id="3", score="0.25")
    (cell,) = read_found(path, truth)["a"]
    assert (cell.label, cell.has_label, cell.score) == (3, True, 0.25)
    entries = json.loads(path.read_text())
    del entries[0]["category_id"]
    path.write_text(json.dumps(entries))
    (cell,) = read_found(path, truth)["a"]
    assert not cell.has_label


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"segmentation": None}, "a: expected a segmentation, found none"),
        (
            {"segmentation": {"size": [8, 6], "counts": "1"}},
            "a: expected an RLE of 6 x 8 pixels, found 8 x 6",
        ),
        ({"score": float("nan")}, "a: expected a finite score, found nan"),
        ({"score": None}, "expected COCO results, found TypeError: .+"),
        ({"category_id": "cell"}, "a: expected a number as category_id, found 'cell'"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(SubmissionError, match=f"results.json: entry 1: {said}"):
        read_found(results(tmp_path, 7, **more), truth_of(tmp_path, (7, "a")))


@pytest.mark.parametrize("text", ["", "{}", "3", "[3]", "[[]]", '[{"image_id": []}]', "\ufeff", "[" * 10**5])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(SubmissionError, match=r"r\.json: (entry 1: )?expected COCO results") as caught:
        read_found(tmp_path / "r.json", truth_of(tmp_path, (7, "a")))
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    st.data(),
)
def test_integers_that_are_ids_mean_what_pycocotools_takes_them_for(
    tmp_path: Path, ids: list[int], data: st.DataObject
) -> None:
    stems = data.draw(st.permutations(range(6)))[: len(ids)]
    truth = truth_of(tmp_path, *zip(ids, map(str, stems), strict=True))
    said = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=5))
    found = counted(tmp_path, truth, *said)
    assert found == {str(stem): said.count(key) for key, stem in zip(ids, stems, strict=True)}


def test_cells_of_results_are_those_of_the_truth(tmp_path: Path) -> None:
    truth = read_truth(coco(tmp_path, [SQUARE]))
    (cell,) = read_found(results(tmp_path, 7), truth)["a"]
    assert [part.tolist() for part in cell.mask] == [part.tolist() for part in truth["a"].masks[0]]


@pytest.mark.parametrize("said", ["a.png", "test/a.png", "a_image", "a/image.tif"])
def test_what_else_an_image_may_be_called(tmp_path: Path, said: str) -> None:
    """In results and in a submission alike; its own name goes first."""
    truth = truth_of(tmp_path, (7, "a"), (8, "b"))
    assert counted(tmp_path, truth, said, "b", "b") == {"a": 1, "b": 2}
    (tmp_path / "s.csv").write_text(f"id,predicted\n{said},1 2\n{said},9 2\nb,1 2\n")
    found = read_found(tmp_path / "s.csv", truth)
    assert {image_id: len(cells) for image_id, cells in found.items()} == {"a": 2, "b": 1}
    with pytest.raises(TruthError, match="expected an image of the truth, found"):
        read_found(results(tmp_path, said, "a"), truth)


def test_ids_that_are_texts_go_before_what_else_an_image_is_called(tmp_path: Path) -> None:
    assert counted(tmp_path, truth_of(tmp_path, ("a.png", "b"), (2, "a")), "a.png") == {"b": 1, "a": 0}


def test_two_names_of_one_image_are_refused(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, (7, "a"))
    said = "expected one name of a, found 'a.png' and 'a.tif'"
    with pytest.raises(SubmissionError, match=f"results.json: {said}"):
        counted(tmp_path, truth, "a.png", "a.tif")
    (tmp_path / "s.csv").write_text("id,predicted\na.png,1 2\na.tif,\n")
    with pytest.raises(SubmissionError, match=f"s.csv: {said}"):
        read_found(tmp_path / "s.csv", truth)


@pytest.mark.parametrize("folder", ["", "x_"])
def test_images_may_be_called_by_less_of_their_path(tmp_path: Path, folder: str) -> None:
    """As `--images data/train --recursive` calls what the truth has as train/x/c.png, not by too little."""
    truth = truth_of(tmp_path, (7, "train/x/c"), (8, "train/y/c"), (9, "train/x/d"))
    assert [*truth] == ["train_x_c", "train_y_c", "d"]
    (tmp_path / "s.csv").write_text(f"id,predicted\n{folder}c,1 2\nx_d,1 2\n")
    for path in (results(tmp_path, f"{folder}c", "x_d"), tmp_path / "s.csv"):
        found, unknown = read_annotated(path, truth)
        assert unknown == ([] if folder else ["c"])
        assert [i for i, cells in found.items() if cells] == (["train_x_c"] if folder else []) + ["d"]
