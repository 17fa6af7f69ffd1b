"""The page as a file: one piece, nothing fetched, and everything in it what Python has."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from factories import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from places import SARTORIUS
from shows import RULES, SIZE, Case, content_of, dense, make_case, one_mask, scored

from sartorius_infer.cells.colours import class_colours
from sartorius_infer.cells.rle import Mask
from sartorius_infer.errors import ImageError, TruthError
from sartorius_infer.evaluate.metric import mean_ap
from sartorius_infer.evaluate.scoring import bootstrap
from sartorius_infer.evaluate.submissions import FoundCell
from sartorius_infer.evaluate.train_csv import read_train_csv
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.output.render import stretched
from sartorius_infer.show.candidates import Look, Looks, looks_of_found, looks_of_predictions, looks_of_saved
from sartorius_infer.show.entries import LONGEST, packed
from sartorius_infer.show.report import report, report_parts
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.curves import curves
from sartorius_infer.tuning.trials import Example, Scorer
from sartorius_infer.types import Bool, Prediction


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def unpacked(text: str, size_hw: tuple[int, int]) -> Bool:
    """The mask of packed runs, bit by bit and pixel by pixel."""
    coded = iter(base64.b64decode(text))
    flat = np.zeros(size_hw[0] * size_hw[1], np.bool_)
    start, length = 0, 0
    for byte in coded:
        if byte == 0:
            start, length = start + length + number(coded), number(coded)
        else:
            start, length = start + size_hw[1] + byte // 16 - 8, length + byte % 16 - 8
        assert 0 <= start < start + length <= flat.size
        for pixel in range(start, start + length):
            assert not flat[pixel]
            flat[pixel] = True
    return flat.reshape(size_hw)


def number(coded: Iterator[int]) -> int:
    bits, byte = "", 128
    while byte >= 128:
        byte = next(coded)
        bits = f"{byte & 127:07b}" + bits
    return int(bits, 2)


def picture_of(entry: dict[str, Any]) -> np.ndarray:
    kind, data = entry["drawing"]["picture"].split(",")
    assert kind == "data:image/webp;base64"
    read = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert read is not None
    return read[..., ::-1]


def write(folder: Path, pixels: np.ndarray, name: str = "a") -> list[ImageFile]:
    assert cv2.imwrite(str(folder / f"{name}.png"), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return [ImageFile(name, folder / f"{name}.png")]


def noise(size_hw: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return cv2.blur(np.random.default_rng(seed).integers(0, 256, size_hw, np.uint8), (5, 5))


def looks_of(*masks: Bool, image_id: str = "a", size_hw: tuple[int, int] = SIZE) -> Looks:
    return looks_of_found({image_id: [FoundCell(one_mask(m)) for m in masks]}, {image_id: size_hw})


def rectangle(top: int, left: int, bottom: int, right: int, size_hw: tuple[int, int] = SIZE) -> Bool:
    drawn = np.zeros(size_hw, np.bool_)
    drawn[top:bottom, left:right] = True
    return drawn


# The file.


def test_one_file_that_fetches_nothing(case: Case) -> None:
    page = report(case.files, case.looks, case.truth)
    assert page.startswith("<!doctype html>")
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    for fetching in (r"<link", r"@import", r"url\(", r"\bfetch\(", r"XMLHttp", r"\bimport\b", r"WebSocket"):
        assert not re.search(fetching, page), fetching
    sources = re.findall(r"\b(?:src|href)\s*=\s*[\"']?([^\s\"'>]*)", page)
    assert sources == []
    assert page.count("<script") == page.count("</script>") == 2 + 2 * len(case.files)
    assert page.count("<style") == page.count("</style>") == 1
    assert "{{" not in page
    assert '<meta charset="utf-8">' in page


def test_a_page_comes_in_parts_an_image_at_a_time(case: Case) -> None:
    """The same page; of each image nothing is asked for before it has its turn."""
    asked: list[str] = []
    by_id = {p.image_id: p for p in case.predictions}

    def load(image_id: str) -> Prediction:
        asked.append(image_id)
        return by_id[image_id]

    parts = report_parts(case.files, looks_of_saved(by_id, load, RULES, CLASSES), case.truth)
    page, turns = "", []
    for part in parts:
        page += part
        if "drawing" in part[:30]:
            turns.append(list(asked))
    assert turns == [list(by_id)[: n + 1] for n in range(len(by_id))]
    assert page == report(case.files, case.looks, case.truth)


def test_a_page_depends_on_nothing_but_what_it_shows(case: Case) -> None:
    assert report(case.files, case.looks, case.truth) == report(case.files, case.looks, case.truth)


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)<script>", "<!--<script>", "a&b\"'<b>", "é{{title}}"]
)
def test_names_are_harmless(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, noise(SIZE))[0]
    looks = replace(looks_of(rectangle(1, 1, 9, 9), image_id=name), classes=(name,))
    page = report([ImageFile(name, file.path)], looks, title=name)
    assert page.count("<script") == page.count("</script>") == 4
    assert "<b>" not in page
    assert "alert(1)<" not in page
    content = content_of(page)
    assert (content["images"][0]["id"], content["classes"]) == (name, [name])
    (title,) = re.findall(r"<title>(.*)</title>", page)
    assert title == name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace(
        '"', "&quot;"
    ).replace("'", "&#x27;")


def test_a_title_of_a_file_s_name_that_is_no_text(tmp_path: Path) -> None:
    """Linux names files by bytes; the page can be written as UTF-8 all the same."""
    page = report(write(tmp_path, noise(SIZE)), looks_of(), title=os.fsdecode(b"s\xff.csv"))
    assert b"<h1>s?.csv</h1>" in page.encode("utf-8")


# What is in it.


def test_settings_and_the_score(case: Case) -> None:
    looks = case.looks
    content = content_of(report(case.files, looks, case.truth, iou=0.75))
    assert content["classes"] == list(CLASSES)
    assert content["floors"] == [RULES.of(name).score for name in CLASSES]
    assert content["colours"] == [list(colour) for colour in class_colours(3)]
    assert (content["consensus"], content["scored"], content["truth"]) == ("score_sum", True, True)
    assert content["level"] == 15
    assert Rules.model_validate(content["rules"]) == RULES
    assert set(content["rules"]["per_class"]) == set(CLASSES)
    scores = case.scores(looks)
    aps = np.array([scores[i].ap for i in looks.images])
    assert content["interval"] == list(bootstrap(aps))
    assert content["interval"][0] < mean_ap(list(scores.values())) < content["interval"][1]
    bare = content_of(report(case.files, looks))
    assert (bare["truth"], bare["interval"], bare["level"]) == (False, None, None)
    assert all(entry["truth"] is None and entry["pairs"] == [] for entry in bare["images"])


def test_every_candidate_with_its_mask_score_label_and_area(case: Case) -> None:
    looks = case.looks
    content = content_of(report(case.files, looks, case.truth))
    assert [entry["id"] for entry in content["images"]] == list(looks.images)
    for entry, (image_id, look) in zip(content["images"], looks.images.items(), strict=True):
        assert (entry["h"], entry["w"], entry["step"]) == (*SIZE, 1)
        assert entry["type"] == case.truth[image_id].cell_type
        cells = entry["cells"]
        for text, mask in zip(entry["drawing"]["cells"], look.masks, strict=True):
            assert np.array_equal(unpacked(text, SIZE), dense(mask))
        assert cells["area"] == [int(dense(mask).sum()) for mask in look.masks]
        assert cells["label"] == look.labels.tolist()
        assert np.array_equal(np.array(cells["score"], np.float32), look.scores)
        assert cells["fixed"] == look.fixed.astype(int).tolist()
        assert [len(v) for v in entry["votes"]] == [len(v) for v in look.votes]
        for told, votes in zip(entry["votes"], look.votes, strict=True):
            assert np.array_equal(np.array(told, np.float32), votes)
        true = case.truth[image_id].masks
        assert [unpacked(t, SIZE).tolist() for t in entry["drawing"]["truth"]] == [
            dense(m).tolist() for m in true
        ]
        assert entry["truth"]["area"] == [int(dense(m).sum()) for m in true]


def test_pairs_are_those_of_brute_force(case: Case) -> None:
    looks = case.looks
    content = content_of(report(case.files, looks, case.truth))
    count = 0
    for entry, (image_id, look) in zip(content["images"], looks.images.items(), strict=True):
        expected = []
        for t, true in enumerate(map(dense, case.truth[image_id].masks)):
            for c, found in enumerate(map(dense, look.masks)):
                shared, union = int((true & found).sum()), int((true | found).sum())
                if shared / union > 0.5:
                    expected += [t, c, shared, union]
        assert entry["pairs"] == expected
        count += len(expected) // 4
    assert count > 20


def test_an_iou_of_exactly_a_half_is_no_pair(tmp_path: Path) -> None:
    files = write(tmp_path, noise(SIZE))
    truth = {"a": TrueImage("a", SIZE, "", (one_mask(rectangle(0, 0, 4, 4)),))}
    for right, pairs in ((8, []), (7, [0, 0, 16, 28])):
        content = content_of(report(files, looks_of(rectangle(0, 0, 4, right)), truth))
        assert content["images"][0]["pairs"] == pairs


@settings(max_examples=60)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_packed_runs_of_any_mask(mask: Bool) -> None:
    assert np.array_equal(unpacked(packed(one_mask(mask), mask.shape[1], 1), mask.shape), mask)


@settings(max_examples=60)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20)), st.integers(2, 5))
def test_a_reduced_mask_has_each_pixel_of_which_a_part_is_the_mask_s(mask: Bool, step: int) -> None:
    height, width = (-(-side // step) for side in mask.shape)
    reduced = np.array(
        [
            [mask[y * step : (y + 1) * step, x * step : (x + 1) * step].any() for x in range(width)]
            for y in range(height)
        ]
    )
    assert np.array_equal(unpacked(packed(one_mask(mask), mask.shape[1], step), (height, width)), reduced)


def test_most_rows_of_a_cell_are_a_byte() -> None:
    """An ellipse in a wide image."""
    drawn = cv2.ellipse(np.zeros((520, 704), np.uint8), (300, 200), (40, 25), 20, 0, 360, 1, -1).astype(bool)
    rows = int(drawn.any(axis=1).sum())
    assert len(base64.b64decode(packed(one_mask(drawn), 704, 1))) < 1.3 * rows


def test_long_runs() -> None:
    mask: Mask = (np.array([127, 400_000]), np.array([128, 16384]))
    assert base64.b64decode(packed(mask, 1000, 1))[:4] == bytes([0, 127, 128, 1])
    assert unpacked(packed(mask, 1000, 1), (500, 1000)).sum() == 128 + 16384


def test_a_large_image_is_shown_reduced_and_counted_whole(tmp_path: Path) -> None:
    size = (2100, LONGEST + 3)
    files = write(tmp_path, noise(size))
    cell, other = rectangle(7, 8, 1001, 1003, size), rectangle(2050, 2040, 2100, 2051, size)
    truth = {"a": TrueImage("a", size, "cort", (one_mask(cell),))}
    looks = looks_of(cell, other, size_hw=size)
    (entry,) = content_of(report(files, looks, truth))["images"]
    assert (entry["h"], entry["w"], entry["step"]) == (1050, 1026, 2)
    assert picture_of(entry).shape == (1050, 1026, 3)
    assert entry["cells"]["area"] == [994 * 995, 50 * 11]
    assert entry["pairs"] == [0, 0, 994 * 995, 994 * 995]
    drawn = unpacked(entry["drawing"]["cells"][0], (1050, 1026))
    assert np.array_equal(drawn, rectangle(3, 4, 501, 502, (1050, 1026)))
    assert unpacked(entry["drawing"]["cells"][1], (1050, 1026))[1025:, 1020:].all()
    exact = write(tmp_path, noise((3, LONGEST)), "b")
    looks = looks_of(image_id="b", size_hw=(3, LONGEST))
    assert content_of(report(exact, looks))["images"][0]["step"] == 1


def test_the_picture_is_the_image_with_its_contrast_stretched(tmp_path: Path) -> None:
    flat = (118 + noise(SIZE) // 13).astype(np.uint8)
    looks = looks_of()
    (entry,) = content_of(report(write(tmp_path, flat), looks))["images"]
    shown = picture_of(entry)
    assert shown.shape == (*SIZE, 3)
    difference = np.abs(shown.astype(int) - stretched(flat).astype(int))
    assert difference.mean() < 25
    assert shown.std() > 3 * flat.std()


def test_colours_stay(tmp_path: Path) -> None:
    red, blue = np.zeros((2, *SIZE, 3), np.uint8)
    red[:, : SIZE[1] // 2, 0] = 200
    blue[:, SIZE[1] // 2 :, 2] = 200
    (entry,) = content_of(report(write(tmp_path, red + blue), looks_of()))["images"]
    left, right = picture_of(entry)[40, [20, 100]].astype(int)
    assert left[0] > left[2] + 100
    assert right[2] > right[0] + 100


def test_minimum_area_curves_in_the_order_of_the_classes(case: Case) -> None:
    examples = [Example((p,), case.truth[p.image_id]) for p in case.predictions]
    drawn = curves(Scorer(examples, CLASSES), Choice(RULES))
    assert {c.setting for c in drawn} == {"score", "min_area"}
    content = content_of(report(case.files, case.looks, case.truth, drawn))
    expected = [c for c in drawn if c.setting == "min_area"]
    assert [c["label"] for c in content["area_curves"]] == [CLASSES.index(c.class_name) + 1 for c in expected]
    for told, curve in zip(content["area_curves"], expected, strict=True):
        assert told["chosen"] == curve.chosen
        assert told["points"] == [list(p) for p in zip(curve.values, curve.scores, strict=True)]
        assert curve.chosen in [p[0] for p in told["points"]]


def test_a_submission_csv_has_no_scores(tmp_path: Path) -> None:
    content = content_of(report(write(tmp_path, noise(SIZE)), looks_of(rectangle(1, 1, 9, 9))))
    assert (content["scored"], content["classes"]) == (False, ["cell"])
    (entry,) = content["images"]
    assert set(entry["cells"]) == {"label", "area"}
    assert entry["votes"] is None


def test_an_image_without_cells_and_a_page_without_images(tmp_path: Path) -> None:
    files = write(tmp_path, noise(SIZE))
    truth = {"a": TrueImage("a", SIZE, "", ())}
    (entry,) = content_of(report(files, looks_of(), truth))["images"]
    assert (entry["drawing"]["cells"], entry["drawing"]["truth"], entry["pairs"]) == ([], [], [])
    for known in (None, {}, truth):
        content = content_of(report(files, looks_of_predictions([], RULES, CLASSES), known))
        assert (content["images"], content["interval"]) == ([], None)


def test_images_that_no_cells_are_of_are_left_out(case: Case) -> None:
    looks = replace(case.looks, images={"i2": case.looks.images["i2"]})
    seen: list[str] = []
    content = content_of(report(case.files, looks, case.truth, on_image=seen.append))
    assert [entry["id"] for entry in content["images"]] == seen == ["i2"]


# What is wrong.


def test_a_missing_image(case: Case) -> None:
    with pytest.raises(ImageError, match=r"^expected an image for every id, found none of i1, i3$"):
        report([f for f in case.files if f.id not in ("i1", "i3")], case.looks)


def test_cells_of_another_size(tmp_path: Path) -> None:
    files = write(tmp_path, noise(SIZE))
    with pytest.raises(ImageError, match=r"^a: expected cells of 96 x 128 pixels, found 128 x 96$"):
        report(files, looks_of(size_hw=SIZE[::-1]))


def test_a_missing_truth_and_one_of_another_size(case: Case) -> None:
    known = {i: t for i, t in case.truth.items() if i != "i4"}
    with pytest.raises(TruthError, match=r"^expected the truth of every image, found none of i4$"):
        report(case.files, case.looks, known)
    known["i4"] = TrueImage("i4", (5, 6), "", ())
    with pytest.raises(TruthError, match=r"^i4: expected a truth of 96 x 128 pixels, found 5 x 6$"):
        report(case.files, case.looks, known)


@pytest.mark.parametrize("iou", [0.0, 0.51, 1.0])
def test_an_iou_that_the_metric_has_not(case: Case, iou: float) -> None:
    with pytest.raises(ValueError, match=f"found {iou}"):
        report(case.files, case.looks, case.truth, iou=iou)


# Size.


@pytest.mark.skipif(not SARTORIUS.is_dir(), reason="the competition's images are not beside this checkout")
def test_five_hundred_images_of_the_competition_stay_under_sixty_megabytes() -> None:
    """Annotators' cells as found ones, and again as truth; counted for 500 like the first eight."""
    truth = read_train_csv(SARTORIUS / "train.csv")
    files = [f for f in find_images([SARTORIUS / "images"]) if f.id in truth][:8]
    images = {}
    for file in files:
        known = truth[file.id]
        n = len(known.masks)
        scores = np.linspace(0.05, 1, n, dtype=np.float32)
        labels = 1 + np.arange(n) % 3
        votes = tuple(scores[labels == k] for k in (1, 2, 3))
        images[file.id] = Look(known.size_hw, known.masks, scores, labels, np.zeros(n, np.bool_), votes)
    looks = Looks(images, CLASSES, (0.5,) * 3, Rules(consensus="score_sum"))
    page = report(files, looks, truth)
    assert len(page.encode()) / len(files) * 500 < 60e6
    assert (
        scored(truth[files[0].id], replace(images[files[0].id], votes=()), replace(looks, floors=(0,) * 3)).ap
        == 1
    )
