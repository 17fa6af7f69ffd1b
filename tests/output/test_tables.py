"""The tables of a run, read again by pandas and by csv."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import CLASSES, make_instances

from sartorius_infer.cells.instances import Instances
from sartorius_infer.errors import SubmissionError
from sartorius_infer.output.tables import TableWriter, images_path
from sartorius_infer.types import UInt8


def three(image_id: str = "a") -> Instances:
    """Cells of all classes, one at the border; the second has a hole."""
    label_map = np.zeros((30, 40), np.int32)
    label_map[0:5, 3:9], label_map[10:17, 10:20], label_map[20:22, 30:31] = 1, 2, 3
    label_map[12, 14] = 0
    return make_instances(label_map, image_id=image_id)


def pixels() -> UInt8:
    return np.arange(30 * 40, dtype=np.uint8).reshape(30, 40)


def write(path: Path, pixel_size_um: float | None = None) -> None:
    with TableWriter(path, CLASSES, pixel_size_um) as tables:
        tables.write(tables.encode(three(), pixels()))
        tables.write(tables.encode(make_instances(np.zeros((8, 9)), image_id="no, cells"), pixels()[:8, :9]))
        tables.write(tables.encode_failure("broken", 'x: it "ends"'))
        tables.write(tables.encode(three("b\r"), pixels()))


@pytest.mark.parametrize("size_um", [None, 1.24])
def test_pandas_reads_what_measurements_gives(tmp_path: Path, size_um: float | None) -> None:
    write(tmp_path / "t.csv", size_um)
    cells = pd.read_csv(tmp_path / "t.csv", dtype={"score": np.float32})
    expected = pd.concat(
        [three(name).measurements(pixels(), size_um) for name in ("a", "b\r")], ignore_index=True
    )
    pd.testing.assert_frame_equal(cells, expected, check_dtype=False, rtol=1e-6)
    assert cells["score"].tolist() == expected["score"].tolist(), "to the last bit"
    assert cells["touches_border"].tolist() == [True, False, False] * 2


def test_an_image_has_a_row_whatever_became_of_it(tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    rows = pd.read_csv(tmp_path / "t_images.csv").set_index("image")
    assert rows.index.tolist() == ["a", "no, cells", "broken", "b\r"]
    whole = rows.loc["a"].to_dict()
    assert (whole["height_px"], whole["width_px"], whole["cells"], whole["area_px2"]) == (30, 40, 3, 101)
    assert whole["confluence"] == pytest.approx(101 / 1200)
    assert [whole[f"cells_{name}"] for name in CLASSES] == [1, 1, 1]
    assert [whole[f"area_px2_{name}"] for name in CLASSES] == [30, 69, 2]
    assert rows.loc["no, cells", ["cells", "area_px2", "confluence"]].tolist() == [0, 0, 0]
    assert rows.loc["broken"].dropna().to_dict() == {"error": 'x: it "ends"'}
    assert rows["error"].notna().sum() == 1


def test_units_are_in_the_header_and_pixels_are_whole_numbers(tmp_path: Path) -> None:
    for size_um, unit in ((None, "px"), (0.5, "um")):
        write(tmp_path / "t.csv", size_um)
        with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
            first = next(csv.DictReader(file))
        assert [name for name in first if name.startswith("area")] == [f"area_{unit}2"]
        assert [first[f"{name}_{unit}"] for name in ("x0", "x1")] == (
            ["3", "9"] if size_um is None else ["1.5", "4.5"]
        )
        assert (first["label"], first["class"], first["touches_border"]) == ("1", CLASSES[0], "true")


def test_both_appear_or_neither(tmp_path: Path) -> None:
    for name in ("t.csv", "t_images.csv"):
        (tmp_path / name).write_text("earlier")
    with pytest.raises(RuntimeError), TableWriter(tmp_path / "t.csv", CLASSES, None) as tables:
        tables.write(tables.encode(three(), pixels()))
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "t.csv": "earlier",
        "t_images.csv": "earlier",
    }


def test_a_place_that_is_none_is_named_on_entry(tmp_path: Path) -> None:
    images_path(tmp_path / "t.csv").mkdir()
    with pytest.raises(SubmissionError, match=r"t_images\.csv: cannot be written: Is a directory"):
        TableWriter(tmp_path / "t.csv", CLASSES, None).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["t_images.csv"]


def test_memory_does_not_grow_with_images(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "t.csv", CLASSES, None) as tables:
        lines = tables.encode(three("x" * 1000), pixels())
        tables.write(lines)
        tracemalloc.start()
        for _ in range(300):
            tables.write(lines)
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert (tmp_path / "t.csv").stat().st_size > 900_000
    assert grown < 50_000
