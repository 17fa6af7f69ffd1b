from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Done, sartorius
from PIL import Image
from scipy.optimize import linear_sum_assignment

from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.cli.main import main
from sartorius_infer.errors import SubmissionError, TruthError
from sartorius_infer.evaluate.metric import THRESHOLDS
from sartorius_infer.evaluate.scoring import bootstrap, compare, score
from sartorius_infer.evaluate.submissions import FoundCell, read_annotated, read_found
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.evaluate.truth import read_truth
from sartorius_infer.output.writers import CocoWriter, SubmissionWriter
from sartorius_infer.types import Int32

SIZE = (60, 80)


def squares(rng: np.random.Generator, count: int, side: int = 9) -> Int32:
    """A label map of squares, each one's pixels those that later ones leave it."""
    labels = np.zeros(SIZE, np.int32)
    for k in range(1, count + 1):
        y, x = rng.integers(0, SIZE[0] - side), rng.integers(0, SIZE[1] - side)
        labels[y : y + side, x : x + side] = k
    return labels


def shifted(labels: Int32, rng: np.random.Generator) -> Int32:
    return np.roll(labels, tuple(rng.integers(-2, 3, 2)), (0, 1))


Maps = dict[str, tuple[Int32, Int32]]


def write_case(folder: Path, images: int = 4, seed: int = 0) -> tuple[Path, Path, Maps]:
    """train.csv, submission.csv, and the true and found label map of each image."""
    rng = np.random.default_rng(seed)
    maps: Maps = {}
    rows = []
    with SubmissionWriter(folder / "submission.csv") as writer:
        for i in range(images):
            true = squares(rng, 6)
            found = shifted(true, rng)
            maps[f"i{i}"] = true, found
            kind = ("cort", "astro")[i % 2]
            rows += [(f"i{i}", text, SIZE[1], SIZE[0], kind) for text in encode_label_map(true, 6) if text]
            writer.add(as_instances(f"i{i}", found))
    table = pd.DataFrame(rows, columns=["id", "annotation", "width", "height", "cell_type"])
    table.to_csv(folder / "train.csv", index=False)
    return folder / "train.csv", folder / "submission.csv", maps


def as_instances(image_id: str, labels: Int32) -> Instances:
    n = int(labels.max())
    return Instances(
        image_id, labels, np.linspace(1, 0.5, n, dtype=np.float32), np.ones(n, np.int64), ("cell",)
    )


def plain_ap(true: Int32, found: Int32) -> float:
    """The slow, obvious way: dense masks, and the best assignment at each threshold."""
    one, other = ([m == k for k in np.unique(m[m > 0])] for m in (true, found))
    pairs = [[(a & b).sum() / (a | b).sum() for b in other] for a in one]
    ious = np.array(pairs).reshape(len(one), len(other))
    precisions = []
    for t in THRESHOLDS:
        match = ious > t + 1e-9
        tp = match[linear_sum_assignment(-match.astype(int))].sum() if match.size else 0
        cells = len(one) + len(other) - tp
        precisions.append(tp / cells if cells else 1.0)
    return float(np.mean(precisions))


def command(*words: object) -> Done:
    return sartorius("score", *words)


def test_every_image_scores_as_the_plain_reference(tmp_path: Path) -> None:
    train, submission, maps = write_case(tmp_path, images=12)
    truth = read_truth(train)
    result = score(truth, read_found(submission, truth))
    assert [image.id for image in result.images] == sorted(maps)
    for image in result.images:
        assert image.ap == pytest.approx(plain_ap(*maps[image.id]), abs=1e-12)
    assert result.mean == pytest.approx(np.mean([plain_ap(*pair) for pair in maps.values()]))
    assert {name: len(part.images) for name, part in result.by_type().items()} == {"astro": 6, "cort": 6}
    assert result.by_threshold().mean() == pytest.approx(result.mean)
    tp, fp, fn = result.counts()
    assert (tp + fn == 72).all()
    assert (np.diff(tp) <= 0).all()
    assert (np.diff(fp) >= 0).all()


def test_csv_and_coco_results_score_the_same(tmp_path: Path) -> None:
    train, submission, maps = write_case(tmp_path)
    with CocoWriter(tmp_path / "results.json") as writer:
        for image_id, (_, found) in maps.items():
            writer.add(as_instances(image_id, found))
    truth = read_truth(train)
    one, other = (score(truth, read_found(p, truth)) for p in (submission, tmp_path / "results.json"))
    assert (one.aps == other.aps).all()


def test_truth_is_the_same_as_csv_coco_and_label_maps(tmp_path: Path) -> None:
    train, submission, maps = write_case(tmp_path)
    with CocoWriter(tmp_path / "results.json") as writer:
        for image_id, (true, _) in maps.items():
            writer.add(as_instances(image_id, true))
    cells = json.loads((tmp_path / "results.json").read_text())
    numbers = {image_id: n for n, image_id in enumerate(maps)}
    coco = {
        "images": [{"id": n, "file_name": f"{i}.png", "height": 60, "width": 80} for i, n in numbers.items()],
        "annotations": [
            {"id": k, "image_id": numbers[c["image_id"]], "category_id": 1, "segmentation": c["segmentation"]}
            for k, c in enumerate(cells)
        ],
        "categories": [{"id": 1, "name": "cort"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    flat.mkdir()
    for image_id, (true, _) in maps.items():
        Image.fromarray(true.astype(np.uint16)).save(flat / f"{image_id}.png")
        (nested / image_id).mkdir(parents=True)
        Image.fromarray(np.where(true < 4, true, 0).astype(np.uint8)).save(nested / image_id / "class1.tif")
        Image.fromarray(np.where(true > 3, true, 0).astype(np.uint8)).save(nested / image_id / "class2.tif")
    found = read_found(submission, read_truth(train))
    scores = [score(read_truth(p), found).aps for p in (train, tmp_path / "truth.json", flat, nested)]
    assert all((other == scores[0]).all() for other in scores[1:])


def test_coco_polygons_become_pixels(tmp_path: Path) -> None:
    cell = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[10, 10, 20, 10, 20, 30, 10, 30]]}
    crowd = cell | {"id": 2, "iscrowd": 1}
    content = {
        "images": [{"id": 7, "file_name": "a/b.tif", "height": 60, "width": 80}],
        "annotations": [cell, crowd],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    (image,) = read_truth(tmp_path / "t.json").values()
    assert (image.id, image.size_hw, image.cell_type, len(image.masks)) == ("b", (60, 80), "cell", 1)
    assert image.masks[0][1].sum() == pytest.approx(200, rel=0.1)


def test_the_interval_holds_the_mean_and_narrows_with_images() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.random(10), rng.random(1000)
    for values in (few, many):
        low, high = bootstrap(values)
        assert low < values.mean() < high
    # The textbook's interval of a mean, from the standard error.
    assert np.subtract(*bootstrap(many)[::-1]) == pytest.approx(3.92 * many.std() / 1000**0.5, rel=0.05)
    assert bootstrap(few) == bootstrap(few)
    assert bootstrap(np.array([0.3])) == (0.3, 0.3)


def test_comparison_is_paired(tmp_path: Path) -> None:
    train, submission, _ = write_case(tmp_path, images=8)
    truth = read_truth(train)
    one = score(truth, read_found(submission, truth))
    same = compare(one, one)
    assert (same.difference, same.low, same.high, same.is_real) == (0, 0, 0, False)
    perfect = score(truth, {i: [] for i in truth})
    worse = compare(perfect, one)
    assert worse.difference < 0
    assert worse.is_real
    with pytest.raises(TruthError, match="same images"):
        compare(one, score(truth, {"i0": []}))


def test_images_without_cells() -> None:
    empty = {"a": TrueImage("a", SIZE, "", ())}
    result = score(empty, {"a": []})
    assert result.mean == 1
    assert result.interval() == (1, 1)
    with pytest.raises(TruthError, match="at least one image"):
        score(empty, {})


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    train, submission, maps = write_case(tmp_path)
    words = ("--truth", train, "--submission", submission, "--against", submission, "--coco")
    files = ("--json", tmp_path / "s.json", "--per-image", tmp_path / "s.csv")
    run = command(*words, *files)
    assert (run.returncode, run.stderr) == (0, "")
    expected = np.mean([plain_ap(*pair) for pair in maps.values()])
    assert run.stdout.startswith(f"score     {expected:.4f}, 95 % interval ")
    assert "within the noise" in run.stdout
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["score"] == pytest.approx(expected)
    assert content["coco"]["AP50"] > 0
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["score"].is_monotonic_increasing
    assert set(table["id"]) == set(maps)


def drop_truth(train: Path, *ids: str) -> None:
    table = pd.read_csv(train)
    table[~table["id"].isin(ids)].to_csv(train, index=False)


@pytest.mark.parametrize("name", ["submission.csv", "results.json"])
def test_images_without_truth_are_skipped_with_a_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train, _, maps = write_case(tmp_path)
    with CocoWriter(tmp_path / "results.json") as writer:
        for image_id, (_, found) in maps.items():
            writer.add(as_instances(image_id, found))
    drop_truth(train, "i0", "i2")
    truth, file = read_truth(train), tmp_path / name
    found, without = read_annotated(file, truth)
    assert (sorted(found), without) == (["i1", "i3"], ["i0", "i2"])
    with pytest.raises(TruthError, match=rf"{name}: (line 2: )?expected an image of the truth, found 'i0'"):
        read_found(file, truth)
    words = ["score", "--truth", train, "--submission", file, "--against", file, "--json", tmp_path / "s"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "\nimages    2 (astro 2)\n" in said
    assert "\nskipped   2 images without truth: i0, i2\n" in said
    assert json.loads((tmp_path / "s").read_text())["skipped"] == ["i0", "i2"]


def test_of_many_skipped_images_five_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, submission, _ = write_case(tmp_path, images=8)
    drop_truth(train, *(f"i{i}" for i in range(7)))
    assert main(["score", "--truth", str(train), "--submission", str(submission)]) == 0
    assert "skipped   7 images without truth: i0, i1, i2, i3, i4 and 2 more\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["submission.csv", "results.json"])
def test_where_no_image_is_left_it_is_an_error(tmp_path: Path, name: str) -> None:
    train, _, maps = write_case(tmp_path)
    with CocoWriter(tmp_path / "results.json") as writer:
        writer.add(as_instances("who", maps["i0"][1]))
    (tmp_path / "submission.csv").write_text("id,predicted\nwho,1 5\nwho,9 1\nwhose,\n")
    with pytest.raises(TruthError, match=rf"{name}: expected an image of the truth, found who"):
        read_annotated(tmp_path / name, read_truth(train))


def test_results_without_cells_are_of_every_image(tmp_path: Path) -> None:
    train, _, maps = write_case(tmp_path)
    with CocoWriter(tmp_path / "results.json"):
        pass
    assert read_annotated(tmp_path / "results.json", read_truth(train)) == ({i: [] for i in maps}, [])


BROKEN: list[tuple[str, str, type[Exception], str]] = [
    ("submission.csv", "id,predicted\nnobody,1 1\n", TruthError, "line 2"),
    ("submission.csv", "id,predicted\ni0,99999 5\n", SubmissionError, "line 2: i0"),
    ("submission.csv", "id,predicted\n", TruthError, "at least one image"),
    ("submission.csv", "id;predicted\n", SubmissionError, "columns"),
    ("results.json", "[{}]", SubmissionError, "COCO results"),
    ("results.json", "{", SubmissionError, "COCO results"),
]


@pytest.mark.parametrize(("name", "text", "kind", "said"), BROKEN)
def test_bad_submissions(tmp_path: Path, name: str, text: str, kind: type[Exception], said: str) -> None:
    train, _, _ = write_case(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=said) as error:
        truth = read_truth(train)
        score(truth, read_found(tmp_path / name, truth))
    assert name in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": 3, "annotations": []}'])
def test_bad_coco_truth(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TruthError, match=r"t\.json: expected COCO's JSON"):
        read_truth(tmp_path / "t.json")


def test_bad_label_maps(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match="found none"):
        read_truth(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(
        TruthError, match=r"a\.png: expected a TIFF or PNG file, found one that begins with 6e 6f"
    ):
        read_truth(tmp_path)


def test_one_line_on_an_error(tmp_path: Path) -> None:
    train, _, _ = write_case(tmp_path)
    run = command("--truth", train, "--submission", tmp_path / "absent.csv")
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert command("--truth", train).returncode == 2


def test_one_image_is_no_real_difference() -> None:
    cell = (np.array([0]), np.array([9]))
    truth = {i: TrueImage(i, SIZE, "", (cell,)) for i in "ab"}
    found, nothing = {i: [FoundCell(cell)] for i in "ab"}, {i: [] for i in "ab"}
    assert compare(score(truth, found), score(truth, nothing)).is_real
    one, other = score(truth, {"a": found["a"]}), score(truth, {"a": []})
    assert compare(one, other).difference == 1
    assert not compare(one, other).is_real


def test_json_of_coco_measures_that_are_not_there_is_json(tmp_path: Path) -> None:
    train, submission, _ = write_case(tmp_path)
    out = tmp_path / "s.json"
    words = ("score", "--truth", train, "--submission", submission, "--coco", "--json", out)
    assert main([str(word) for word in words]) == 0
    assert "NaN" not in out.read_text()
    assert json.loads(out.read_text())["coco"]["AP large"] is None


def test_each_of_several_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, submission, maps = write_case(tmp_path)
    others = [tmp_path / "blank.csv", submission]
    others[0].write_text("id,predicted\n" + "".join(f"{image_id},\n" for image_id in maps))
    words = ("--truth", train, "--submission", submission, "--against", *others, "--json", tmp_path / "s")
    assert main(["score", *map(str, words)]) == 0
    blank, same = json.loads((tmp_path / "s").read_text())["against"]
    mean = np.mean([plain_ap(*pair) for pair in maps.values()])
    assert [one["submission"] for one in (blank, same)] == list(map(str, others))
    assert [blank["score"], blank["difference"]] == pytest.approx([0, mean])
    assert [same["score"], same["difference"]] == pytest.approx([mean, 0])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("against ")]
    assert [line.partition(" of ")[2].partition(":")[0] for line in lines] == list(map(str, others))


def test_a_comparison_of_other_images_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, submission, _ = write_case(tmp_path)
    (tmp_path / "other.csv").write_text("id,predicted\ni0,\n")
    words = ("score", "--truth", train, "--submission", submission, "--against", tmp_path / "other.csv")
    assert main([str(word) for word in words]) == 1
    assert f"error: {tmp_path / 'other.csv'}: expected two submissions" in capsys.readouterr().err


def score_with(folder: Path, truth: Path, submission: Path, *words: str) -> dict[str, Any]:
    out = folder / "s.json"
    paths = ("--truth", truth, "--submission", submission, "--json", out)
    assert main(["score", *map(str, paths), *words]) == 0
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def test_a_csv_is_measured_without_regard_to_class_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, submission, _ = write_case(tmp_path)
    coco = score_with(tmp_path, train, submission, "--coco")["coco"]
    assert (coco["measured"], coco["max_dets"], coco["by_class"]) == ("class-blind", 100, {})
    assert coco["AP"] == coco["class_blind"]["AP"]
    assert "class-blind, at most 100 cells" in (said := capsys.readouterr().out)
    assert "by class not told: the submission tells no classes" in said


def test_names_of_category_ids_tell_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _, maps = write_case(tmp_path)
    with CocoWriter(tmp_path / "r.json") as writer:
        for image_id, (_, found) in maps.items():
            writer.add(as_instances(image_id, found))
    coco = score_with(tmp_path, train, tmp_path / "r.json", "--coco", "--max-dets", "2")["coco"]
    assert coco["measured"] == "class-blind"
    assert "--classes names those" in (said := capsys.readouterr().out)
    assert "4 images have more cells" in said
    named = score_with(tmp_path, train, tmp_path / "r.json", "--coco", "--classes", "astro,cort")["coco"]
    assert set(named["by_class"]) == {"astro", "cort"}
    assert named["by_class"]["cort"]["AP"] == 0


@pytest.mark.parametrize(
    "words", [("--max-dets", "5"), ("--coco", "--max-dets", "0"), ("--coco", "--max-dets", "x")]
)
def test_limits_that_mean_nothing_are_a_matter_of_usage(words: tuple[str, ...]) -> None:
    run = command("--truth", "t.csv", "--submission", "s.csv", *words)
    assert run.returncode == 2
    assert "--max-dets" in run.stderr


def test_what_was_read_otherwise_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = {"image_id": 7, "category_id": 1, "segmentation": [[10, 10, 20, 10, 20, 30, 10, 30]]}
    content = {
        "images": [{"id": 7, "file_name": "b.tif", "height": 60, "width": 80}],
        "annotations": [cell, cell | {"iscrowd": 1}, cell | {"segmentation": []}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    (tmp_path / "s.csv").write_text("id,predicted\nb,1 2\n")
    score_with(tmp_path, tmp_path / "t.json", tmp_path / "s.csv")
    said = capsys.readouterr().out
    assert "\ntruth     1 annotated cells without a pixel, left out: b\n" in said
    assert "\ntruth     1 crowd regions, which are no cells: b\n" in said
