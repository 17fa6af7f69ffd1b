from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from places import SARTORIUS
from truths import HEAD, SIZE, csv, pixels, refused

from sartorius_infer.evaluate.train_csv import read_train_csv
from sartorius_infer.evaluate.truth import read_truth

real = pytest.mark.skipif(not SARTORIUS.is_dir(), reason="the competition's data is not beside this checkout")


def test_each_row_is_a_cell_of_its_image(tmp_path: Path) -> None:
    path = csv(tmp_path, "b,1 2 5 1,4,3,cort", "a,12 1,4,3,astro", "b,2 3,4,3,cort", "b,1 2 5 1,4,3,cort")
    truth = read_truth(path)
    assert list(truth) == ["a", "b"]
    assert [(t.id, t.size_hw, t.cell_type) for t in truth.values()] == [
        ("a", (3, 4), "astro"),
        ("b", (3, 4), "cort"),
    ]
    assert pixels(truth["a"]) == [[11]]
    assert pixels(truth["b"]) == [[0, 1, 4], [1, 2, 3], [0, 1, 4]]  # they overlap, and repeat


def test_an_image_without_cells_has_a_row_without_annotation(tmp_path: Path) -> None:
    truth = read_train_csv(csv(tmp_path, "a,,4,3,cort", "b, ,4,3,"))
    assert truth["a"].masks == truth["b"].masks == ()
    assert truth["b"].cell_type == ""


def test_sizes_as_programs_write_them(tmp_path: Path) -> None:
    truth = read_train_csv(csv(tmp_path, "a,12 1,4.0,3.0,cort"))
    assert truth["a"].size_hw == (3, 4)


def test_no_rows_are_no_images(tmp_path: Path) -> None:
    assert read_train_csv(csv(tmp_path)) == {}


def test_ids_stay_text_and_further_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("plate,id,annotation,width,height,cell_type\n1,0012,1 1,4,3,NA\n1,1e5,2 1,4,3,null\n")
    truth = read_train_csv(path)
    assert {t.id: t.cell_type for t in truth.values()} == {"0012": "NA", "1e5": "null"}


def test_a_compressed_file_is_read_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "train.csv.gz"
    whole = gzip.compress((HEAD + "".join(f"i{n},{n + 1} 1,40,30,cort\n" for n in range(500))).encode())
    path.write_bytes(whole)
    assert len(read_truth(path)) == 500
    for damaged in (whole[: len(whole) // 2], whole[:40] + bytes(20) + whole[60:], b"plain"):
        path.write_bytes(damaged)
        refused(path, "expected a CSV file, found .+")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a,1 1,4"], SIZE),
        (["a,1 1,,3,x"], SIZE),
        (["a,1 1,wide,3,x"], SIZE),
        (["a,1 1,4.5,3,x"], SIZE),
        (["a,,0,3,x"], SIZE),
        (["a,,-4,-3,x"], SIZE),
        (["a,1 100000000000000000,1000000000,1000000000,x"], "expected at most 1073741824 pixels, found .+"),
        (["a,1 1,4,3,x", "a,2 1,4,5,x"], "expected one size and cell type, found 2"),
        (["a,1 1,4,3,x", "a,2 1,4,3,y"], "expected one size and cell type, found 2"),
        (["a,1 2 3,4,3,x"], r"expected start length pairs, found an odd number of values \(3\)"),
        (["a,0 1,4,3,x"], r"pair 1 \(0 1\): the start is below 1"),
        (["a,12 2,4,3,x"], r"pair 1 \(12 2\): it ends past pixel 12, the last of 3 x 4"),
        (["a,one,4,3,x"], "expected integers .+, found 'one'"),
    ],
)
def test_bad_rows_name_their_image(tmp_path: Path, rows: list[str], said: str) -> None:
    refused(csv(tmp_path, "0,1 1,4,3,x", *rows), f"a: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a CSV file, found .+"),
        (b"\xff\xfe\x00", "expected a CSV file, found .+"),
        (b'id,annotation,width,height,cell_type\na,"1 2', "expected a CSV file, found .+"),
        (b"id,rle\na,1 2\n", "expected columns id, .+, found no annotation, width, height, cell_type"),
        (HEAD.encode() + b"a,1 2,4,3,x,more\n", "expected 5 fields in line 2, found more"),
        (HEAD.encode() + b"a,1 2,4,3,x\na,1 2,4,3,x,more\n", "expected a CSV file, found .*line 3.*"),
        (HEAD.encode() + b"a,1 2,4,3,x\n,1 2,4,3,x\n", "expected an id in each row, found none in line 3"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    refused(path, said)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "train.csv", "expected a CSV file, found .+")


@real
def test_the_competitions_annotations() -> None:
    """28 images as shared/README.md counts them; every true cell is whole and within its image."""
    truth = read_truth(SARTORIUS / "train.csv")
    kinds = {name: [t for t in truth.values() if t.cell_type == name] for name in ("cort", "astro", "shsy5y")}
    assert {name: len(images) for name, images in kinds.items()} == {"cort": 18, "astro": 8, "shsy5y": 2}
    cells = {name: sum(len(t.masks) for t in images) for name, images in kinds.items()}
    assert (cells["cort"], cells["astro"]) == (584, 559)
    assert {t.size_hw for t in truth.values()} == {(520, 704)}
    assert all(len(starts) and lengths.min() > 0 for t in truth.values() for starts, lengths in t.masks)
    assert set(truth) == {path.stem for path in (SARTORIUS / "images").glob("*.png")} - set(
        read_truth(SARTORIUS / "train_approximate.csv")
    )
