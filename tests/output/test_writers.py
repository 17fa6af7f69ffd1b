from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from places import ROOT

from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.overlapping import OverlappingCells
from sartorius_infer.cells.rle import decode_label_map, encode_label_map
from sartorius_infer.errors import SubmissionError
from sartorius_infer.evaluate.submissions import read_cells
from sartorius_infer.output.check import check_submission
from sartorius_infer.output.submission import read_submission
from sartorius_infer.output.writers import NAME_IN_ZIP, CocoWriter, SubmissionWriter, open_writer
from sartorius_infer.types import Int32

# How long an example takes is up to the disk, which each one syncs.
slow_disk = settings(deadline=None)
Format = Literal["kaggle", "coco"]
each_kind = pytest.mark.parametrize(
    ("name", "format"), [("out", "kaggle"), ("out", "coco"), ("out.zip", "coco")], ids=["csv", "json", "zip"]
)
# In Python 3.11 csv, used here as the reference, reads no NUL; file names hold none.
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8)
label_maps = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 3))


def instances(
    labels: NDArray[np.signedinteger] | Sequence[Sequence[int]], n: int = 3, image_id: str = "a"
) -> Instances:
    """The n cells of a label map, of classes 1, 2, 3, 1, ... and scores 0.9, 0.45, 0.3, ..."""
    order = np.arange(n)
    scores = np.float32(0.9) / (1 + order).astype(np.float32)
    return Instances(image_id, np.asarray(labels, np.int32), scores, order % 3 + 1, ("x", "y", "z"))


def write(
    path: Path, format: Format, images: Sequence[Instances], error: BaseException | None = None
) -> None:
    """Write these images, then raise `error` in the middle of the block."""
    with open_writer(path, format) as writer:
        for image in images:
            writer.add(image)
        if error is not None:
            raise error


def names(folder: Path) -> list[str]:
    """What the folder holds, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def test_rows_of_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    with SubmissionWriter(path) as writer:
        writer.add(instances([[1, 1, 0], [3, 3, 1]], image_id="001"))
        writer.add(instances([[0, 0, 0]], image_id="absent"))
        writer.add(instances([[0, 0, 0]], n=0, image_id="none"))
        writer.blank("blank")
    assert path.read_bytes() == b"id,predicted\n001,1 2 6 1\n001,4 2\nabsent,\nnone,\nblank,\n"


def test_a_submission_without_images_is_a_header(tmp_path: Path) -> None:
    with SubmissionWriter(tmp_path / "submission.csv"):
        pass
    assert read_submission(tmp_path / "submission.csv") == []
    assert check_submission(tmp_path / "submission.csv") == []


@slow_disk
@given(images=st.dictionaries(ids, label_maps, max_size=4))
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, Int32]
) -> None:
    path = tmp_path_factory.mktemp("out") / "submission.csv"
    expected: list[tuple[str, str]] = []
    with SubmissionWriter(path) as writer:
        for image_id, labels in images.items():
            writer.add(instances(labels, image_id=image_id))
            rles = [rle for rle in encode_label_map(labels, 3) if rle]
            expected += [(image_id, rle) for rle in rles or [""]]
    rows = read_submission(path)
    assert [row[1:] for row in rows] == expected
    assert [row.line for row in rows] == list(first_lines(path))
    for image_id, labels in images.items():
        own = [row.predicted for row in rows if row.id == image_id]
        back = decode_label_map(own, (labels.shape[0], labels.shape[1]))
        np.testing.assert_array_equal(back > 0, labels > 0)


def first_lines(path: Path) -> Iterator[int]:
    """The line that each row begins at, by the csv module's own count."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        before = reader.line_num
        for _ in reader:
            yield before + 1
            before = reader.line_num


@slow_disk
@given(images=st.dictionaries(ids, label_maps, max_size=4))
def test_what_is_written_passes_the_check(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, Int32]
) -> None:
    path = tmp_path_factory.mktemp("out") / "submission.csv"
    with SubmissionWriter(path) as writer:
        for image_id in sorted(images):
            writer.add(instances(images[image_id], image_id=image_id))
    sizes = {image_id: (labels.shape[0], labels.shape[1]) for image_id, labels in images.items()}
    assert check_submission(path, sizes, sorted(images)) == []


def test_an_id_that_is_not_unicode_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    with pytest.raises(SubmissionError) as raised, SubmissionWriter(path) as writer:
        writer.blank(os.fsdecode(b"\xff"))
    assert str(raised.value) == f"{path}: expected a Unicode id, found '\\udcff,\\n'"
    assert names(tmp_path) == []


def test_entries_of_coco_results(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with CocoWriter(path) as writer:
        writer.add(instances([[1, 1, 0], [3, 3, 1]], image_id="001"))
        writer.blank("none")
        writer.add(instances([[1, 0]], n=1, image_id='"002"'))
    entries = json.loads(path.read_text())
    assert entries[0] == {
        "image_id": "001",
        "category_id": 1,
        "segmentation": {"size": [2, 3], "counts": "011010"},
        "bbox": [0, 0, 3, 2],
        "area": 3,
        "score": 0.9,
    }
    assert [entry["image_id"] for entry in entries] == ["001", "001", '"002"']
    assert [entry["category_id"] for entry in entries] == [1, 3, 1]
    assert [np.float32(entry["score"]) for entry in entries[1:]] == [
        np.float32(0.9) / 3,
        np.float32(0.9),
    ]
    assert entries[1]["bbox"] == [0, 1, 2, 1]


@pytest.mark.parametrize("cells", [0, 3])
def test_coco_results_without_entries_are_an_empty_list(tmp_path: Path, cells: int) -> None:
    path = tmp_path / "results.json"
    with CocoWriter(path) as writer:
        writer.add(instances([[0, 0]], n=cells))
        writer.blank("b")
    assert json.loads(path.read_text()) == []


# pycocotools' own decode does not know numpy 2's copy keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@slow_disk
@given(labels=label_maps)
def test_coco_results_are_what_pycocotools_measures(
    tmp_path_factory: pytest.TempPathFactory, labels: Int32
) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    path = tmp_path_factory.mktemp("out") / "results.json"
    with CocoWriter(path) as writer:
        writer.add(instances(labels))
    for entry in json.loads(path.read_text()):
        mask = coco.decode(entry["segmentation"])
        np.testing.assert_array_equal(mask, labels == entry["category_id"])
        assert entry["area"] == coco.area(entry["segmentation"])
        assert entry["bbox"] == coco.toBbox(entry["segmentation"]).tolist()


def test_a_score_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    cells = Instances("a", np.ones((1, 1), np.int32), np.array([np.nan], np.float32), np.array([1]), ("x",))
    with (
        pytest.raises(ValueError, match="not JSON compliant"),
        CocoWriter(tmp_path / "results.json") as writer,
    ):
        writer.add(cells)
    assert names(tmp_path) == []


@each_kind
def test_an_unwritable_place_fails_on_entry(tmp_path: Path, name: str, format: Format) -> None:
    places = {"": "Is a directory", f"absent/{name}": "No such file or directory"}
    for place, reason in places.items():
        with pytest.raises(SubmissionError) as raised:
            open_writer(tmp_path / place, format).__enter__()
        assert str(raised.value) == f"{tmp_path / place}: cannot be written: {reason}"


@each_kind
@pytest.mark.parametrize("error", [RuntimeError("CUDA"), OSError("an image"), KeyboardInterrupt()])
def test_an_error_of_others_passes_and_leaves_the_earlier_file(
    tmp_path: Path, name: str, format: Format, error: BaseException
) -> None:
    path = tmp_path / name
    path.write_text("earlier")
    with pytest.raises(type(error)) as raised:
        write(path, format, [instances([[1]])], error)
    assert raised.value is error
    assert path.read_text() == "earlier"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("format", ["kaggle", "coco"])
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_device_is_a_submission_error(format: Format) -> None:
    message = "^/dev/full: cannot be written: No space left on device$"
    with pytest.raises(SubmissionError, match=message), open_writer(Path("/dev/full"), format) as writer:
        writer.blank("a")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own that holds 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no small disk can be mounted here: that takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@each_kind
@pytest.mark.parametrize("images", [2, 100])
def test_a_full_disk_is_a_submission_error_and_leaves_the_earlier_file(
    small_disk: Path, name: str, format: Format, images: int
) -> None:
    path = small_disk / name
    path.write_bytes(b"x" * 60_000)
    noise = [instances(np.random.default_rng(k).integers(0, 2, (120, 120)), n=1) for k in range(images)]
    with pytest.raises(SubmissionError) as raised:
        write(path, format, noise)
    assert str(raised.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_bytes() == b"x" * 60_000
    assert names(small_disk) == [name]


KILLED_WRITER = """
import sys, time
from pathlib import Path
from sartorius_infer.output.writers import open_writer
with open_writer(Path(sys.argv[1]), sys.argv[2]) as writer:
    for k in range(20000):
        writer.blank(f"image{k}")
    print("writing", flush=True)
    time.sleep(600)
"""


@each_kind
def test_a_killed_writer_leaves_the_earlier_file(tmp_path: Path, name: str, format: Format) -> None:
    path = tmp_path / name
    path.write_text("earlier")
    command = [sys.executable, "-c", KILLED_WRITER, str(path), format]
    root = ROOT
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"earlier"
    with open_writer(path, format) as writer:
        writer.blank("a")
    assert path.read_bytes() != b"earlier"


@each_kind
def test_memory_does_not_grow_with_images(tmp_path: Path, name: str, format: Format) -> None:
    cells = instances([[1, 2, 3]], image_id="x" * 1000)
    written = 0
    tracemalloc.start()
    try:
        with open_writer(tmp_path / name, format) as writer:
            writer.add(cells)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(300):
                writer.write(pieces := writer.encode(cells))
                written += sum(map(len, pieces))
            grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert written > 900_000
    assert grown < 50_000


def entries_in(path: Path) -> list[dict[str, object]]:
    """What a zip holds under the name that it is expected to have, and nothing else."""
    with ZipFile(path) as archive:
        assert archive.namelist() == [NAME_IN_ZIP] == ["test-results.json"]
        assert archive.testzip() is None
        found: list[dict[str, object]] = json.loads(archive.read(NAME_IN_ZIP))
    return found


def test_a_zip_holds_the_same_results(tmp_path: Path) -> None:
    images = [instances([[1, 1, 0], [3, 3, 1]], image_id="é"), instances([[0, 2]], image_id="b")]
    write(tmp_path / "r.json", "coco", images)
    write(tmp_path / "r.ZIP", "coco", images)
    assert entries_in(tmp_path / "r.ZIP") == json.loads((tmp_path / "r.json").read_text())
    write(tmp_path / "none.zip", "coco", [])
    assert entries_in(tmp_path / "none.zip") == []


def test_the_same_results_give_the_same_zip_on_any_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one.zip", "coco", [instances([[1, 2, 3]])])
    monkeypatch.setattr(time, "time", lambda: 2e9)
    umask = os.umask(0o077)
    try:
        write(tmp_path / "other.zip", "coco", [instances([[1, 2, 3]])])
    finally:
        os.umask(umask)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


def test_a_zip_can_go_into_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.zip"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        write(pipe, "coco", [instances([[1, 2]])])
        (tmp_path / "read.zip").write_bytes(read.result())
    assert [entry["category_id"] for entry in entries_in(tmp_path / "read.zip")] == [1, 2]


def test_numbers_stand_for_images(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with open_writer(path, "coco", {"a": 40, "b": 0}) as writer:
        writer.add(instances([[1]]))
        writer.add(instances([[1]], image_id="b"))
        writer.blank("c")
    assert [entry["image_id"] for entry in json.loads(path.read_text())] == [40, 0]
    with (
        pytest.raises(SubmissionError, match="expected numbers of all images, found none of c"),
        open_writer(path, "coco", {"a": 40}) as writer,
    ):
        writer.add(instances([[1]], image_id="c"))


def test_cells_that_share_pixels_are_coco_s_alone(tmp_path: Path) -> None:
    mask = (np.array([0]), np.array([2]))
    scores, labels = np.array([0.5, 0.25], np.float32), np.array([1, 2])
    cells = OverlappingCells("a", (1, 3), (mask, mask), scores, labels, ("x", "y"))
    with open_writer(tmp_path / "r.json", "coco") as writer:
        writer.add(cells)
    assert json.loads((tmp_path / "r.json").read_text()) == cells.to_coco()
    with (
        pytest.raises(SubmissionError, match=r"s\.csv: expected cells that share no pixels, found a"),
        open_writer(tmp_path / "s.csv", "kaggle") as writer,
    ):
        writer.add(cells)


def test_the_page_shows_what_is_written(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").split("\n## What is written\n")[1]
    rows, results = (page.split(f"\n```{language}\n")[1].split("```")[0] for language in ("text", "json"))
    first, second = (row.split(",")[1] for row in rows.splitlines()[1:3])
    scores, labels = np.array([0.875, 0.5], np.float32), np.array([1, 2])
    cells = Instances("a", decode_label_map([first, second], (520, 704)), scores, labels, ("x", "y"))
    with open_writer(tmp_path / "s.csv", "kaggle") as writer:
        writer.add(cells)
        writer.blank("b")
    assert (tmp_path / "s.csv").read_text() == rows
    write(tmp_path / "r.json", "coco", [cells[np.array([0])]])
    assert (tmp_path / "r.json").read_text() == results


@pytest.mark.parametrize("format", ["kaggle", "coco"])
def test_ids_are_the_same_in_every_format(tmp_path: Path, format: Format) -> None:
    """A path that became an id has no folders in COCO results either; it is read with or without them."""
    path = tmp_path / ("s.csv" if format == "kaggle" else "r.json")
    write(path, format, [instances([[1, 0], [0, 2]], n=2, image_id="a_image")])
    for said in ("a_image", "a/image"):
        text = path.read_text()
        assert said in text
        assert len(read_cells(path, {"a_image": (2, 2)})["a_image"]) == 2
        path.write_text(text.replace("a_image", "a/image"))
