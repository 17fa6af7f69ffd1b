"""The `show` command as a user meets it: exit codes, files, words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from commands import sartorius
from factories import CLASSES
from shows import RULES, SIZE, Case, content_of, make_case, scored, write_train
from tiny import write_image, write_tiny

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cli.main import main
from sartorius_infer.evaluate.metric import mean_ap
from sartorius_infer.evaluate.scoring import bootstrap
from sartorius_infer.evaluate.submissions import read_found
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.output.render import overlay
from sartorius_infer.output.writers import CocoWriter, SubmissionWriter
from sartorius_infer.show.candidates import looks_of_found, shown_instances, shown_masks
from sartorius_infer.show.matches import match_overlay


@dataclass(frozen=True, eq=False)
class Files:
    """A case with everything the command line takes."""

    case: Case
    weights: Path
    truth: Path
    submission: Path
    results: Path

    def words(self, *more: Any, **other: Any) -> list[str]:
        """`show` with --images and --out, and these options; None leaves one out."""
        given = {"images": self.case.folder / "images", "out": self.case.folder / "page.html"} | other
        pairs = [(f"--{name}", str(value)) for name, value in given.items() if value is not None]
        return ["show", *(word for pair in pairs for word in pair), *map(str, more)]

    def all(self, **other: Any) -> list[str]:
        saved = {"weights": self.weights, "predictions": self.case.folder / "saved", "truth": self.truth}
        return self.words(**(saved | other))


def write_files(folder: Path) -> Files:
    case = make_case(folder, count=4)
    rules = json.loads(RULES.model_dump_json())
    weights = write_tiny(folder / "weights", classes=list(CLASSES), rules=rules)
    with SubmissionWriter(folder / "submission.csv") as csv, CocoWriter(folder / "results.json") as coco:
        for prediction in case.predictions:
            cells = build_instances(prediction, RULES, CLASSES)
            csv.add(cells)
            coco.add(cells)
    train = write_train(folder / "train.csv", case.truth)
    return Files(case, weights, train, folder / "submission.csv", folder / "results.json")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Not to be changed."""
    return write_files(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def files(shared: Files, tmp_path: Path) -> Files:
    """To be damaged."""
    folder = tmp_path / "case"
    shutil.copytree(shared.case.folder, folder)
    case = Case(folder, shared.case.files, shared.case.predictions, shared.case.truth)
    return Files(
        case,
        folder / "weights" / shared.weights.name,
        folder / "train.csv",
        folder / "submission.csv",
        folder / "results.json",
    )


def said(stderr: str) -> list[str]:
    """The lines of stderr but for the bars of progress."""
    lines = re.split(r"[\r\n]+", stderr)
    return [line for line in lines if line.strip() and not line.startswith(("show: ", "areas: "))]


@pytest.mark.slow
def test_everything_in_a_process_of_its_own(shared: Files, tmp_path: Path) -> None:
    out, pictures = tmp_path / "page.html", tmp_path / "pictures"
    run = sartorius(*shared.all(out=out, overlays=pictures, submission=shared.submission, iou="0.75"))
    assert (run.returncode, said(run.stderr)) == (0, [])
    size = len(out.read_bytes()) / 1e6
    assert run.stdout.splitlines() == [
        f"written   {out} ({size:.1f} MB), 4 images",
        f"          {pictures} and its folder matches",
    ]
    case, looks = shared.case, shared.case.looks
    page = out.read_text("utf-8")
    assert "<title>Cells of submission.csv</title>" in page
    content = content_of(page)
    assert (content["level"], content["scored"], content["consensus"]) == (15, True, "score_sum")
    aps = [scored(case.truth[i], look, looks).ap for i, look in looks.images.items()]
    assert content["interval"] == pytest.approx(bootstrap(np.array(aps))[:2])
    assert [c["label"] for c in content["area_curves"]] == [1, 2, 3]
    for curve in content["area_curves"]:
        assert dict(curve["points"])[curve["chosen"]] == pytest.approx(np.mean(aps))
    ids = [file.id for file in case.files]
    assert sorted(p.name for p in pictures.iterdir()) == sorted([*(f"{i}.png" for i in ids), "matches"])
    assert sorted(p.stem for p in (pictures / "matches").iterdir()) == sorted(ids)
    for file in case.files:
        image, look = read_image(file), looks.images[file.id]
        found = shown_masks(look, looks)
        expected = {
            pictures: overlay(image, shown_instances(file.id, look, looks)),
            pictures / "matches": match_overlay(image, case.truth[file.id].masks, found, 0.75),
        }
        for folder, picture in expected.items():
            read = cv2.imread(str(folder / f"{file.id}.png"))
            assert read is not None
            assert np.array_equal(read[..., ::-1], picture)


def test_a_submission_alone(shared: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    words = shared.words(submission=shared.submission, out=out, overlays=tmp_path / "pictures")
    assert main(words) == 0
    stdout, stderr = capfd.readouterr()
    assert said(stderr) == []
    assert stdout.splitlines()[-1] == f"          {tmp_path / 'pictures'}"
    content = content_of(out.read_text("utf-8"))
    assert (content["truth"], content["scored"], content["classes"]) == (False, False, ["cell"])
    assert not (tmp_path / "pictures" / "matches").exists()
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    counts = {entry["id"]: len(entry["drawing"]["cells"]) for entry in content["images"]}
    looks = shared.case.looks
    assert counts == {i: len(shown_masks(look, looks)) for i, look in looks.images.items()}


@pytest.mark.parametrize("name", ["submission", "results"])
def test_the_score_is_that_of_score(
    shared: Files, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    submission, out = getattr(shared, name), tmp_path / "page.html"
    words = shared.words(submission=submission, truth=shared.truth, out=out, weights=shared.weights)
    assert main(words) == 0
    content = content_of(out.read_text("utf-8"))
    assert content["scored"] == (name == "results")
    found = read_found(submission, shared.case.truth)
    looks = looks_of_found(found, dict.fromkeys(found, SIZE), CLASSES)
    expected = mean_ap([scored(shared.case.truth[i], look, looks) for i, look in looks.images.items()])
    own = shared.case.looks
    assert expected == pytest.approx(mean_ap(list(shared.case.scores(own).values())))
    low, high = content["interval"]
    assert low < expected < high
    assert capfd.readouterr().out.startswith(f"written   {out} (")


def test_a_submission_alone_waits_for_no_library_that_it_does_not_need(shared: Files, tmp_path: Path) -> None:
    words = shared.words(submission=shared.submission, out=tmp_path / "page.html")
    code = (
        "import sys\nfrom sartorius_infer.cli.main import main\n"
        f"assert main({words!r}) == 0\n"
        "assert not {'torch', 'numba', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, said(run.stderr)) == (0, [])


def test_the_page_of_the_folder_that_one_is_in_has_its_name(
    shared: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared.case.folder / "saved")
    assert main(shared.all(out=tmp_path / "page.html", predictions=".")) == 0
    assert "<title>Cells of saved</title>" in (tmp_path / "page.html").read_text("utf-8")


def test_an_image_without_annotations(shared: Files) -> None:
    assert pd.read_csv(shared.truth).query("id == 'empty'")["annotation"].isna().all()


def test_a_submission_that_differs_is_told(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    lines = files.submission.read_text().splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith("i2,"))
    files.submission.write_text("\n".join(lines[:last] + lines[last + 1 :]) + "\n")
    assert main(files.all(submission=files.submission)) == 0
    assert said(capfd.readouterr().err) == [
        f"warning: {files.submission} has other cells than the predictions by the rules of --weights in 1 "
        "images (i2); the page shows those of the predictions"
    ]


def test_a_submission_of_images_without_predictions_is_told(
    files: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    (files.case.folder / "saved" / "i3.npz").unlink()
    assert main(files.all(submission=files.submission)) == 0
    (line,) = said(capfd.readouterr().err)
    assert line.startswith("warning: ") and "in 1 images (i3);" in line


# Bad input.


def fails(words: list[str], out: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command ends; no page is written."""
    assert main(words) == 1
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert not out.exists()
    (line,) = said(stderr)
    return line


def test_neither_submission_nor_predictions(shared: Files, tmp_path: Path) -> None:
    run = sartorius(*shared.words(out=tmp_path / "p.html"))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("usage: python -m sartorius_infer show ")
    assert run.stderr.endswith(" show: error: expected --submission, --predictions or both, found neither\n")


@pytest.mark.parametrize("more", [("--score", "a=0.2"), ("--edge", "keep"), ("--rules", "r.json")])
def test_rules_go_with_predictions(
    shared: Files, more: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(shared.words(*more, submission=shared.submission))
    assert ended.value.code == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.endswith(f"error: {more[0]}: expected --predictions, whose cells it changes, found none")


def test_a_folder_of_folds_is_shown_as_one(shared: Files, tmp_path: Path) -> None:
    for number, file in enumerate(sorted((shared.case.folder / "saved").iterdir())):
        fold = tmp_path / "saved" / f"fold{number % 2}"
        fold.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, fold)
    assert main(shared.all(out=tmp_path / "a.html")) == 0
    assert main(shared.all(out=tmp_path / "b.html", predictions=tmp_path / "saved")) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_page_begins_with_the_rules_that_are_given(shared: Files, tmp_path: Path) -> None:
    """The page of a manifest with other rules, and that of the options that say the same."""
    content = json.loads(shared.weights.read_text())
    content["rules"]["per_class"]["cort"]["score"] = 0.9
    content["rules"]["per_class"]["astro"]["min_area"] = 33
    for file in shared.weights.parent.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "weights_manifest.json").write_text(json.dumps(content))
    words = shared.all(weights=tmp_path, out=tmp_path / "a.html")
    assert main(words) == 0
    assert main([*shared.all(out=tmp_path / "b.html"), "--score", "cort=0.9", "--min-area", "astro=33"]) == 0
    assert main(shared.all(out=tmp_path / "c.html")) == 0
    a, b, c = ((tmp_path / f"{name}.html").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("more", [["--iou", "0.51"], ["--iou", "1.0"], ["--nonsense"]])
def test_usage_is_code_2(shared: Files, more: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(shared.words(*more, submission=shared.submission))
    assert error.value.code == 2
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("missing", ["images", "out"])
def test_what_must_be_given(shared: Files, missing: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(shared.words(submission=shared.submission, **{missing: None}))
    assert error.value.code == 2
    assert f"required: --{missing}" in capfd.readouterr().err


def bad(files: Files, change: str) -> tuple[list[str], str]:
    """Damage one thing; the words of the command, and the end of its one line."""
    folder = files.case.folder
    csv, results, saved = files.submission, files.results, folder / "saved"
    plain = files.words(submission=csv, truth=files.truth)
    coco = files.words(submission=results, weights=files.weights)
    if change == "unknown id":
        csv.write_text(csv.read_text() + "who,1 5\n")
        line = len(csv.read_text().splitlines())
        return plain, f"{csv}: line {line}: expected an image among --images, found 'who'"
    if change == "RLE out of bounds":
        csv.write_text("id,predicted\ni1,1 5\ni2,12288 2\n")
        return plain, f"{csv}: line 3: i2: pair 1 (12288 2): it ends past pixel 12288, the last of 96 x 128"
    if change == "RLE is none":
        csv.write_text("id,predicted\ni1,1 5 x\n")
        return plain, f"{csv}: line 2: i1: expected integers of at most 18 digits, found 'x'"
    if change == "no submission":
        csv.unlink()
        return plain, f"{csv}: "
    if change == "truth of another size":
        write_train(files.truth, files.case.truth, width=64, height=192)
        return plain, f"{files.truth}: empty: expected a truth of 96 x 128 pixels, found 192 x 64"
    if change == "truth of another size, with predictions":
        write_train(files.truth, files.case.truth, width=64, height=192)
        return files.all(), f"{files.truth}: empty: expected a truth of 96 x 128 pixels, found 192 x 64"
    if change == "truth without cell types":
        table = pd.read_csv(files.truth).drop(columns="cell_type")
        table.to_csv(files.truth, index=False)
        return plain, (
            f"{files.truth}: expected columns id, annotation, width, height, cell_type, found no cell_type"
        )
    if change == "truth of other images":
        write_train(files.truth, {i: t for i, t in files.case.truth.items() if i != "i2"})
        return plain, f"{files.truth}: expected the truth of every image, found none of i2"
    if change == "no truth":
        files.truth.unlink()
        return plain, f"{files.truth}: expected a CSV file, found "
    if change == "no predictions":
        return files.all(predictions=folder / "images"), (
            f"{folder / 'images'}: expected saved predictions (.npz), found none"
        )
    if change == "no folder of predictions":
        return files.all(predictions=folder / "no"), (
            f"{folder / 'no'}: expected saved predictions (.npz), found none"
        )
    if change == "damaged prediction":
        (saved / "i2.npz").write_bytes((saved / "i2.npz").read_bytes()[:90])
        return files.all(), f"{saved / 'i2.npz'}: expected a whole .npz file, found a damaged one"
    if change == "fewer classes":
        weights = write_tiny(folder / "two", classes=["a", "b"], rules={})
        return files.all(weights=weights), (
            f"{saved}: i1: expected labels of the manifest's classes, 1..2, found 3"
        )
    if change == "checkpoints":
        return files.all(weights=files.weights.with_name("tiny.safetensors")), (
            f"{files.weights.with_name('tiny.safetensors')}: expected --weights to be a manifest here, found"
        )
    if change == "bad image":
        image = folder / "images" / "i2.png"
        image.write_bytes(image.read_bytes()[:100])
        return files.all(), f"{image}: "
    if change == "bad image of a submission":
        image = folder / "images" / "i2.png"
        image.write_bytes(b"no image")
        return plain, f"{image}: "
    if change == "no images":
        return files.all(images=saved), f"{saved}: expected images ("
    if change == "image of another size":
        write_image(folder / "images" / "i2.png", (50, 60))
        return files.all(truth=None), "i2: expected cells of 50 x 60 pixels, found 96 x 128"
    if change == "predictions of other images":
        (folder / "images" / "i2.png").unlink()
        return files.all(), f"{saved}: expected predictions of --images, found i2"
    if change == "category that is no class":
        content = json.loads(results.read_text())
        content[0]["category_id"] = 4
        results.write_text(json.dumps(content))
        return coco, f"{results}: {content[0]['image_id']}: expected categories 1..3, found 4"
    if change == "score that is none":
        content = json.loads(results.read_text())
        content[0]["score"] = float("nan")
        results.write_text(json.dumps(content))
        return coco, f"{results}: entry 1: {content[0]['image_id']}: expected a finite score, found nan"
    if change == "COCO mask of another size":
        content = json.loads(results.read_text())
        content[0]["segmentation"]["size"] = [4, 4]
        results.write_text(json.dumps(content))
        return coco, f"{results}: entry 1: {content[0]['image_id']}: expected an RLE of 96 x 128 pixels"
    assert change == "no folder for the page"
    return files.all(out=folder / "images" / "i1.png" / "page.html"), ""


@pytest.mark.parametrize(
    "change",
    [
        *("unknown id", "RLE out of bounds", "RLE is none", "no submission", "truth of another size"),
        *("truth of another size, with predictions", "truth without cell types", "truth of other images"),
        *("no truth", "no predictions", "no folder of predictions", "damaged prediction"),
        *("fewer classes", "checkpoints", "bad image", "bad image of a submission", "no images"),
        *("image of another size", "predictions of other images", "category that is no class"),
        *("score that is none", "COCO mask of another size", "no folder for the page"),
    ],
)
def test_bad_input_is_one_line_and_code_1(
    files: Files, change: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words, expected = bad(files, change)
    line = fails(words, files.case.folder / "page.html", capfd)
    assert line.startswith(f"error: {expected}")
    if change == "no folder for the page":
        assert "i1.png" in line


def test_bad_input_in_a_process_of_its_own(files: Files) -> None:
    words, expected = bad(files, "RLE out of bounds")
    run = sartorius(*words)
    assert (run.returncode, run.stdout, run.stderr) == (1, "", f"error: {expected}\n")


def test_truth_that_tells_no_types(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    """Label maps know none, and the page does without."""
    write_train(files.truth, files.case.truth, cell_type="")
    assert main(files.all()) == 0
    content = content_of((files.case.folder / "page.html").read_text("utf-8"))
    assert {entry["type"] for entry in content["images"]} == {""}
    capfd.readouterr()


def test_an_earlier_page_stays_where_something_fails(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    out = files.case.folder / "earlier.html"
    out.write_text("earlier")
    (files.case.folder / "images" / "i3.png").write_bytes(b"no image")
    assert main(files.all(out=out)) == 1
    assert out.read_text() == "earlier"
    assert "i3.png" in capfd.readouterr().err


def test_a_manifest_without_consensus(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    rules = json.loads(Rules().model_dump_json())
    weights = write_tiny(files.case.folder / "off", classes=list(CLASSES), rules=rules)
    assert main(files.all(weights=weights, truth=None)) == 0
    content = content_of((files.case.folder / "page.html").read_text("utf-8"))
    assert (content["consensus"], content["floors"]) == ("off", [0.5, 0.5, 0.5])
    capfd.readouterr()


@pytest.mark.parametrize("what", ["predictions", "results"])
def test_pictures_are_of_what_the_networks_saw(
    files: Files, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The manifest's range of 16 bits, as if the images had been saved so in 8."""
    images, overlays = files.case.folder / "images", files.case.folder / "overlays"
    rules = json.loads(RULES.model_dump_json())
    fixed = write_tiny(
        files.case.folder / "w", classes=list(CLASSES), rules=rules, images={"range": [90, 140]}
    )
    cells = (
        {"predictions": files.case.folder / "saved"}
        if what == "predictions"
        else {"submission": files.results}
    )

    def shown(weights: Path) -> tuple[list[str], list[bytes]]:
        assert main(files.words(**cells, weights=weights, overlays=overlays)) == 0
        content = content_of((files.case.folder / "page.html").read_text("utf-8"))
        pictures = [entry["drawing"]["picture"] for entry in content["images"]]
        return pictures, [path.read_bytes() for path in sorted(overlays.iterdir())]

    for file in images.iterdir():
        cv2.imwrite(str(file), read_image(file).pixels.astype(np.uint16))
    by_manifest, by_themselves = shown(fixed), shown(files.weights)
    for file in images.iterdir():
        cv2.imwrite(str(file), read_image(file, (90, 140)).pixels)
    assert by_manifest == shown(files.weights) != by_themselves
    capfd.readouterr()
