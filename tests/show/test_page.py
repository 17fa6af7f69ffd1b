"""The page in a real browser, driven as people drive it, against what Python counts."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import CLASSES
from shows import RULES, SIZE, Case, dense, make_case, one_mask, with_floors, write_train
from tiny import write_image, write_tiny
from truths import overlap_tables

from sartorius_infer.cells.claim import consensus_label
from sartorius_infer.cells.colours import class_colours
from sartorius_infer.cli.main import main
from sartorius_infer.evaluate.metric import THRESHOLDS, match, mean_ap, twentieths
from sartorius_infer.evaluate.submissions import FoundCell
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.images.find import ImageFile
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.output.render import outline
from sartorius_infer.show.candidates import (
    Look,
    Looks,
    looks_of_found,
    looks_of_predictions,
    shown_masks,
    visible,
)
from sartorius_infer.show.matches import FALSE_ALARM, HIT, MISS
from sartorius_infer.show.report import report
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.curves import Curve, curves
from sartorius_infer.tuning.trials import Example, Scorer
from sartorius_infer.types import Bool

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not there")
WHITE = (255, 255, 255)
LAPTOP, PHONE = (1366, 768), (390, 844)


class Browser:
    """Chromium without a network, and short words for what the tests do with it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def open(self, page: Path, size: tuple[int, int] = LAPTOP, mobile: bool = False) -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1],
                 deviceScaleFactor=1, mobile=mobile)  # fmt: skip
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=mobile)
        self.driver.get("about:blank")  # or the same page would be a reload, and keep what was moved
        self.driver.get(page.as_uri())

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def one(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, css)
        return found

    def text(self, css: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", css))

    def texts(self, css: str) -> list[str]:
        query = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return list(self.js(query, css))

    def rows(self, css: str) -> list[list[str]]:
        """The texts of a table's body, row by row."""
        query = (
            "return [...document.querySelectorAll(arguments[0] + ' tr')].slice(1)"
            ".map((r) => [...r.cells].map((c) => c.textContent))"
        )
        return list(self.js(query, css))

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 10, poll_frequency=0.02).until(lambda _: condition())

    def press(self, *keys: str) -> None:
        """Keys, wherever the focus is."""
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def focused(self) -> str:
        return str(self.js("const e = document.activeElement; return e.id || e.className || e.tagName"))

    def set_floor(self, number: int, hundredths: int) -> None:
        """By keys alone: to the start, then by tenths and by hundredths."""
        tenths, more = divmod(hundredths, 10)
        self.one(f"#floor-{number}").send_keys(Keys.HOME + Keys.PAGE_UP * tenths + Keys.ARROW_RIGHT * more)

    def picture(self, canvas: str) -> np.ndarray:
        """A canvas's pixels, uint8 (H, W, 4)."""
        height, width, data = self.js(
            "const c = document.querySelector(arguments[0]);"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return [c.height, c.width, btoa(Array.from(d, (v) => String.fromCharCode(v)).join(''))]",
            canvas,
        )
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)

    def errors(self) -> list[str]:
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        # Advice to whoever reads a canvas twice, which these tests do and the page does not.
        return [message for message in messages if "willReadFrequently" not in message]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser = Browser(driver)
    browser.cdp("Network.enable")
    browser.cdp("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0,
                uploadThroughput=0)  # fmt: skip
    yield browser
    driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Whatever a test does, the console stays empty and nothing is fetched."""
    chromium.errors(), chromium.requests()
    yield chromium
    assert chromium.errors() == []
    assert [url for url in chromium.requests() if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def page(case: Case) -> Path:
    """With truth, scores and curves."""
    examples = [Example((p,), case.truth[p.image_id]) for p in case.predictions]
    drawn = curves(Scorer(examples, CLASSES), Choice(RULES))
    path = case.folder / "page.html"
    path.write_text(report(case.files, case.looks, case.truth, drawn, title="Cells of a case"), "utf-8")
    return path


def write_page(case: Case, name: str, looks: Looks, truth: bool = False, **more: Any) -> Path:
    path = case.folder / f"{name}.html"
    path.write_text(report(case.files, looks, case.truth if truth else None, **more), "utf-8")
    return path


def summary(case: Case, looks: Looks, level: float = 0.5) -> dict[str, Any]:
    """What the page must say at the thresholds of `looks`, by Python's own counting."""
    scores = case.scores(looks)
    at = THRESHOLDS.index(level)
    counts: dict[str, list[list[int]]] = {name: [] for name in CLASSES}
    for look in looks.images.values():
        labels = look.labels[visible(look, looks)]
        for k, name in enumerate(CLASSES, start=1):
            counts[name].append([int((labels == k).sum())])
    table = []
    for name, found in counts.items():
        cells, images = int(np.sum(found)), int(np.count_nonzero(found))
        table.append([name, str(cells), str(images), f"{cells / images:.1f}" if images else "0"])
    captions, rows = [], []
    for image_id, score in sorted(scores.items(), key=lambda pair: pair[1].ap):
        kind = case.truth[image_id].cell_type
        tp, fp, fn = (int(part[at]) for part in (score.tp, score.fp, score.fn))
        captions.append(f"{image_id}{f' ({kind})' if kind else ''}: score {score.ap:.3f}, "
                        f"{of(tp, 'hit')}, {of(fp, 'false alarm')}, {of(fn, 'miss', 'es')}")  # fmt: skip
        cells = (score.true_cells, score.found_cells, tp, fp, fn)
        rows.append([image_id, kind, f"{score.ap:.4f}", *map(str, cells)])
    return {
        "score": f"{mean_ap(list(scores.values())):.4f}",
        "found": str(sum(s.found_cells for s in scores.values())),
        "counts": table,
        "captions": captions,
        "rows": rows,
    }


def of(number: int, name: str, plural: str = "s") -> str:
    return f"{number} {name}{plural * (number != 1)}"


def told(browser: Browser) -> dict[str, Any]:
    """What the page says."""
    return {
        "score": browser.text("#score"),
        "found": browser.text("#found"),
        "counts": browser.rows("#counts"),
        "captions": browser.texts("#gallery .card .text"),
        "rows": browser.rows("#images"),
    }


def drawn_in(picture: np.ndarray, colour: tuple[int, int, int]) -> Bool:
    found: Bool = (picture == (*colour, 255)).all(axis=2)
    return found


def edges(*masks: Any) -> Bool:
    """The pixels of the masks' outlines."""
    drawn = np.zeros(SIZE, np.bool_)
    for mask in masks:
        drawn |= outline(dense(mask).astype(np.int32))
    return drawn


def dashes() -> Bool:
    y, x = np.indices(SIZE)
    kept: Bool = (x + y) % 8 <= 4
    return kept


# As it opens.


def test_it_opens_with_the_rules_own_numbers(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    assert browser.driver.title == browser.text("h1") == "Cells of a case"
    assert told(browser) == summary(case, case.looks)
    assert browser.one("[name=mode][value=match]").is_selected()
    for k, floor in enumerate(case.looks.floors, start=1):
        assert float(browser.one(f"#floor-{k}").get_attribute("value")) == floor
        assert browser.text(f"output[for=floor-{k}]") == f"{floor:.2f}"
    low, high = re.findall(r"at first \S+ \(95 % interval (\S+) to (\S+)\)$", browser.text("#about"))[0]
    assert 0 < float(low) < float(browser.text("#score")) < float(high) < 1
    assert "against the thresholds" not in browser.text("#summary")
    pictures = "return [...document.querySelectorAll('.card[data-near=yes] img')].map((i) => i.naturalWidth)"
    browser.until(lambda: (found := browser.js(pictures)) and set(found) == {SIZE[1]})


def test_charts(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    browser.until(lambda: "Score if one class's threshold moved" in browser.texts("figcaption"))
    titles = browser.texts("figcaption")
    for name in CLASSES:
        assert f"{name}: scores of all candidates" in titles
        assert f"{name}: areas of cells" in titles
    assert "Score if one class's minimum area moved" in titles
    assert [t for t in browser.texts("svg text") if t.startswith("threshold ")] == [
        f"threshold {floor:.2f}" for floor in case.looks.floors
    ]
    precision = np.mean([s.precision for s in case.scores(case.looks).values()], axis=0)
    said = browser.js("return [...document.querySelector('figure svg').querySelectorAll('text')]"
                      ".map((e) => e.textContent)")  # fmt: skip
    assert {f"{precision[0]:.3f}", f"{precision[5]:.3f}"} <= set(said)
    assert (
        browser.js("return document.querySelector('figure path[fill=none]').getAttribute('d')").count("L")
        == 9
    )
    # Both curves pass the score through the chosen threshold.
    legend = [t for t in browser.texts("svg text") if re.search(r": 0\.\d{4}$", t)]
    assert len(legend) == 6
    assert {t.split(": ")[1] for t in legend} == {browser.text("#score")}


def test_histograms_count_the_cells_that_may_show(browser: Browser, case: Case, page: Path) -> None:
    """Of each image the candidates of its leading class; hits among them, at any threshold."""
    browser.open(page)
    looks = case.looks
    hits, candidates, found = (dict.fromkeys(CLASSES, 0) for _ in range(3))
    for prediction, (image_id, look) in zip(case.predictions, looks.images.items(), strict=True):
        label = consensus_label(prediction.scores, prediction.labels, RULES, CLASSES)
        if label is None:
            continue
        masks = [m for m, own in zip(look.masks, look.labels, strict=True) if own == label]
        partners = match(case.truth[image_id].masks, masks, 0.5)
        hits[CLASSES[label - 1]] += int((partners >= 0).sum())
        candidates[CLASSES[label - 1]] += len(masks)
        found[CLASSES[label - 1]] += len(shown_masks(look, looks))
    figures = dict(
        browser.js(
            "return [...document.querySelectorAll('figure')].map((f) =>"
            " [f.querySelector('figcaption').textContent, (f.querySelector('.hint') || {}).textContent])"
        )
    )
    assert sum(hits.values()) > 5
    for name in CLASSES:
        expected = f" hits {hits[name]}  false {candidates[name] - hits[name]} "
        assert figures[f"{name}: scores of all candidates"] == expected
        assert figures[f"{name}: areas of cells"] == f" found {found[name]} "


def test_a_hidden_class_takes_no_hit_from_the_leading_one(browser: Browser, case: Case) -> None:
    """Two candidates of one true cell; the first of them is of a class that the consensus hides."""
    mask = case.truth["i1"].masks[0]
    votes = tuple(np.array(v, np.float32) for v in ([0.9], [0.8], []))
    scores, labels = np.array([0.8, 0.9], np.float32), np.array([2, 1])
    look = Look(SIZE, (mask, mask), scores, labels, np.zeros(2, np.bool_), votes)
    looks = Looks({"i1": look}, CLASSES, (0.5, 0.5, 0.5), Rules(consensus="score_sum"))
    browser.open(write_page(case, "hidden", looks, truth=True))
    misses = len(case.truth["i1"].masks) - 1
    assert browser.text("#gallery .text").endswith(f"1 hit, 0 false alarms, {misses} misses")
    hints = [t for t in browser.texts("figure .hint") if "hits" in t]
    assert hints == [" hits 1  false 0 ", " hits 0  false 0 "]


# Sliders.


def test_sliders_by_keys_count_as_python_counts(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    rng = np.random.default_rng(5)
    before = told(browser)
    for _ in range(4):
        hundredths = rng.integers(0, 101, 3).tolist()
        for number, value in enumerate(hundredths, start=1):
            browser.set_floor(number, value)
            assert browser.text(f"output[for=floor-{number}]") == f"{value / 100:.2f}"
        floors = tuple(value / 100 for value in hundredths)
        assert told(browser) == summary(case, with_floors(case.looks, floors)), floors
        assert told(browser) != before
    browser.until(lambda: "Score if one class's threshold moved" in browser.texts("figcaption"))


def test_both_ends_of_the_sliders(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    for end in (0, 100):
        for number in (1, 2, 3):
            browser.set_floor(number, end)
        assert told(browser) == summary(case, with_floors(case.looks, (end / 100,) * 3))


def test_a_slider_by_mouse(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    slider = browser.one("#floor-2")
    ActionChains(browser.driver).drag_and_drop_by_offset(slider, 30, 0).perform()
    value = float(slider.get_attribute("value"))
    assert value != 0.45
    floors = (0.3, value, 0.7)
    assert told(browser) == summary(case, with_floors(case.looks, floors))


def test_the_change_of_the_score_is_told(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    looks = case.looks
    start = mean_ap(list(case.scores(looks).values()))
    for value in (0, 95):
        browser.set_floor(2, value)
        moved = with_floors(looks, (0.3, value / 100, 0.7))
        now = mean_ap(list(case.scores(moved).values()))
        assert abs(now - start) > 1e-3
        sign = "+" if now > start else "\N{MINUS SIGN}"
        assert f"({sign}{abs(now - start):.4f} against" in browser.text("#summary")


def test_the_iou_slider_moves_hits_and_misses(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    level, seen = browser.one("#level"), []
    level.send_keys(Keys.HOME)
    for threshold in THRESHOLDS:
        assert browser.text("output[for=level]") == f"{threshold:.2f}"
        now = told(browser)
        assert now == summary(case, case.looks, threshold)
        seen.append(now["captions"])
        level.send_keys(Keys.ARROW_RIGHT)
    assert len(set(map(str, seen))) > 3
    assert level.get_attribute("value") == "0.95"


def test_the_page_begins_at_the_iou_it_was_made_with(browser: Browser, case: Case) -> None:
    browser.open(write_page(case, "strict", case.looks, truth=True, iou=0.8))
    assert browser.text("output[for=level]") == "0.80"
    assert told(browser) == summary(case, case.looks, 0.8)


def test_an_iou_of_exactly_the_threshold_is_no_hit(browser: Browser, case: Case) -> None:
    """Found cells of 11 to 20 twentieths of a true one."""
    true, found = [], []
    for k in range(11, 21):
        mask = np.zeros(SIZE, np.bool_)
        mask[4 * k, :20] = True
        true.append(one_mask(mask))
        mask[4 * k, k:] = False
        found.append(FoundCell(one_mask(mask)))
    only = replace(case, truth={"i1": TrueImage("i1", SIZE, "", tuple(true))})
    looks = looks_of_found({"i1": found}, {"i1": SIZE})
    browser.open(write_page(only, "exact", looks, truth=True))
    for hits in range(10, 0, -1):
        expected = ", ".join([of(hits, "hit"), of(10 - hits, "false alarm"), of(10 - hits, "miss", "es")])
        assert browser.text("#gallery .text").endswith(expected)
        browser.one("#level").send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#score") == summary(only, looks)["score"]


def test_thresholds_as_they_were(browser: Browser, case: Case, page: Path) -> None:
    """By keys: the button keeps the focus, and the other controls what they say."""
    browser.open(page)
    first = told(browser)
    browser.one("#truth").click()
    browser.one("#level").send_keys(Keys.ARROW_RIGHT)
    browser.one("[name=mode][value=class]").click()
    for number in (1, 2, 3):
        browser.set_floor(number, 12)
    assert told(browser)["found"] != first["found"]
    browser.one("#reset").send_keys(Keys.ENTER)
    assert told(browser) == summary(case, case.looks, 0.55)
    assert browser.focused() == "reset"
    assert browser.one("#truth").is_selected()
    assert browser.one("[name=mode][value=class]").is_selected()
    assert [browser.text(f"output[for=floor-{k}]") for k in (1, 2, 3)] == ["0.30", "0.45", "0.70"]
    assert browser.text("output[for=level]") == "0.55"


def test_thresholds_between_the_slider_s_steps(browser: Browser, case: Case) -> None:
    """They hold, and are told, as they are until they are moved."""
    rules = Rules(per_class={name: ClassRule(score=0.125) for name in CLASSES}, consensus="count")
    looks = looks_of_predictions(case.predictions, rules, CLASSES)
    browser.open(write_page(case, "between", looks, truth=True))
    assert browser.text("output[for=floor-1]") == "0.125"
    assert told(browser) == summary(case, looks)
    browser.one("#floor-1").send_keys(Keys.HOME + Keys.ARROW_RIGHT)
    assert browser.text("output[for=floor-1]") == "0.01"
    assert told(browser) == summary(case, with_floors(looks, (0.01, 0.125, 0.125)))


@pytest.mark.parametrize("consensus", ["off", "count", "surest"])
def test_other_rules_of_consensus(browser: Browser, case: Case, consensus: Any) -> None:
    looks = looks_of_predictions(case.predictions, RULES.model_copy(update={"consensus": consensus}), CLASSES)
    browser.open(write_page(case, consensus, looks, truth=True))
    assert told(browser) == summary(case, looks)
    rng = np.random.default_rng(1)
    for _ in range(2):
        hundredths = rng.integers(0, 101, 3).tolist()
        for number, value in enumerate(hundredths, start=1):
            browser.set_floor(number, value)
        moved = with_floors(looks, tuple(value / 100 for value in hundredths))
        assert told(browser) == summary(case, moved)


# The table.


def test_worst_first_then_by_any_header_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page)
    keys = [e.get_attribute("data-sort") for e in browser.all("#images th button")]
    assert keys == ["id", "type", "ap", "cells", "found", "tp", "fp", "fn"]

    def sorted_by() -> dict[str, str]:
        return {
            e.find_element(By.CSS_SELECTOR, "button").get_attribute("data-sort"): e.get_attribute("aria-sort")
            for e in browser.all("#images th[aria-sort]")
        }

    assert sorted_by() == {"ap": "ascending"}
    rows = browser.rows("#images")
    assert [float(r[2]) for r in rows] == sorted(float(r[2]) for r in rows)
    for column, key in enumerate(keys):
        for turn in ("first", "again"):
            button = browser.one(f"[data-sort={key}]")
            if column % 2:
                button.click()
            else:
                button.send_keys(Keys.ENTER if turn == "first" else Keys.SPACE)
            up = turn == "first"
            assert sorted_by() == {key: "ascending" if up else "descending"}, key
            assert browser.js("return document.activeElement.dataset.sort") == key
            rows = browser.rows("#images")
            values = [r[column] if column < 2 else float(r[column]) for r in rows]
            assert values == sorted(values, reverse=not up), key
            captions = browser.texts("#gallery .card .text")
            assert [c.split(":")[0].split(" ")[0] for c in captions] == [r[0] for r in rows]


def test_moving_a_threshold_sorts_anew(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    browser.one("[data-sort=found]").click()
    browser.one("[data-sort=found]").click()
    browser.set_floor(1, 5)
    browser.set_floor(3, 5)
    found = [int(r[4]) for r in browser.rows("#images")]
    assert found == sorted(found, reverse=True)
    assert sorted(map(tuple, browser.rows("#images"))) == sorted(
        map(tuple, summary(case, with_floors(case.looks, (0.05, 0.45, 0.05)))["rows"])
    )


# The pictures.


def open_image(browser: Browser, image_id: str) -> None:
    """By keys: Enter on its card."""
    number = browser.js("return DATA.images.findIndex((i) => i.id === arguments[0])", image_id)
    browser.one(f".card[data-image='{number}']").send_keys(Keys.ENTER)
    assert browser.js("return document.getElementById('viewer').open")


def close(browser: Browser) -> None:
    browser.press(Keys.ESCAPE)
    browser.until(lambda: not browser.js("return document.getElementById('viewer').open"))


def fullest(case: Case, looks: Looks) -> str:
    """The image in which the most cells show, some of them hits, some not."""
    scores = case.scores(looks)
    return max(scores, key=lambda i: min(scores[i].tp[0], scores[i].fp[0]))


def test_outlines_of_hits_misses_and_false_alarms(browser: Browser, case: Case, page: Path) -> None:
    looks = case.looks
    image_id = fullest(case, looks)
    true = case.truth[image_id].masks
    browser.open(page)
    for level in (0.5, 0.75):
        found = shown_masks(looks.images[image_id], looks)
        partners = match(true, found, level)
        hits = set(partners[partners >= 0].tolist())
        others = [m for c, m in enumerate(found) if c not in hits]
        missed = [m for t, m in enumerate(true) if partners[t] < 0]
        open_image(browser, image_id)
        picture = browser.picture("#viewport canvas")
        close(browser)
        assert hits and others and missed
        assert np.array_equal(drawn_in(picture, HIT), edges(*(found[c] for c in hits)))
        assert np.array_equal(drawn_in(picture, FALSE_ALARM), edges(*others))
        assert np.array_equal(drawn_in(picture, MISS), edges(*missed) & dashes() & ~edges(*found))
        inside = np.any([dense(m) for m in found], axis=0)
        assert np.array_equal(picture[..., 3] > 0, inside | (edges(*missed) & dashes()))
        assert (picture[inside & ~edges(*true, *found), 3] < 80).all()
        browser.one("#level").send_keys(Keys.ARROW_RIGHT * 5)


def test_outlines_by_class_and_hidden_cells_are_gone(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    browser.one("[name=mode][value=match]").send_keys(Keys.ARROW_RIGHT)
    assert browser.one("[name=mode][value=class]").is_selected()
    looks = case.looks
    image_id = fullest(case, looks)
    label = int(looks.images[image_id].labels[visible(looks.images[image_id], looks)][0])
    counts = []
    for hundredths in (round(100 * looks.floors[label - 1]), 60, 85, 100):
        browser.set_floor(label, hundredths)
        floors = tuple(hundredths / 100 if k == label - 1 else f for k, f in enumerate(looks.floors))
        moved = with_floors(looks, floors)
        look = moved.images[image_id]
        open_image(browser, image_id)
        picture = browser.picture("#viewport canvas")
        close(browser)
        for k, colour in enumerate(class_colours(3), start=1):
            own = [
                m
                for m, shows, c in zip(look.masks, visible(look, moved), look.labels, strict=True)
                if shows and c == k
            ]
            assert np.array_equal(drawn_in(picture, colour), edges(*own)), (hundredths, k)
        counts.append(int(drawn_in(picture, class_colours(3)[label - 1]).sum()))
    assert counts[0] > counts[-1]


def test_all_true_outlines(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    image_id = fullest(case, case.looks)
    browser.one("#truth").send_keys(Keys.SPACE)
    open_image(browser, image_id)
    picture = browser.picture("#viewport canvas")
    assert np.array_equal(drawn_in(picture, WHITE), edges(*case.truth[image_id].masks) & dashes())
    close(browser)
    browser.one("#truth").click()
    open_image(browser, image_id)
    assert not drawn_in(browser.picture("#viewport canvas"), WHITE).any()
    close(browser)


def test_the_gallery_is_painted_and_painted_anew(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    number = list(case.looks.images).index(fullest(case, case.looks))
    canvas = f".card[data-image='{number}'] canvas"
    browser.js("document.querySelector(arguments[0]).scrollIntoView()", canvas)
    browser.until(lambda: browser.js("return document.querySelector(arguments[0]).width", canvas))
    before = browser.picture(canvas)
    assert drawn_in(before, HIT).any() and drawn_in(before, FALSE_ALARM).any()
    for number in (1, 2, 3):
        browser.set_floor(number, 100)
    browser.js("document.querySelector(arguments[0]).scrollIntoView()", canvas)
    browser.until(lambda: browser.js("return document.querySelector(arguments[0]).width", canvas))
    after = browser.picture(canvas)
    assert drawn_in(after, HIT).sum() + drawn_in(after, FALSE_ALARM).sum() < drawn_in(before, HIT).sum()


# The viewer.


def rectangle(browser: Browser, css: str) -> dict[str, float]:
    """Where something lies: left, top, width, height."""
    return dict(
        browser.js(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return {x: b.x, y: b.y, w: b.width, h: b.height}",
            css,
        )
    )


def stage(browser: Browser) -> dict[str, float]:
    """Where the image lies."""
    return rectangle(browser, "#viewport .stage")


def port(browser: Browser) -> dict[str, float]:
    return rectangle(browser, "#viewport")


def test_the_viewer_by_keys(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    captions = browser.texts("#gallery .card .text")
    first = browser.all(".card")[0]
    first.send_keys(Keys.ENTER)
    assert browser.text("#viewer-title") == captions[0]
    fitted, box = stage(browser), port(browser)
    assert fitted["w"] == pytest.approx(box["w"], abs=1) or fitted["h"] == pytest.approx(box["h"], abs=1)
    assert fitted["w"] / fitted["h"] == pytest.approx(SIZE[1] / SIZE[0], rel=1e-3)
    assert fitted["x"] + fitted["w"] / 2 == pytest.approx(box["x"] + box["w"] / 2, abs=1)
    browser.press("+")
    larger = stage(browser)
    assert larger["w"] == pytest.approx(1.4 * fitted["w"], rel=1e-3)
    assert larger["x"] + larger["w"] / 2 == pytest.approx(fitted["x"] + fitted["w"] / 2, abs=1)
    ActionChains(browser.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP).key_up(
        Keys.SHIFT
    ).perform()
    moved = stage(browser)
    assert (moved["x"] - larger["x"], moved["y"] - larger["y"]) == pytest.approx((60, 60), abs=0.5)
    browser.press("-", "-")
    assert stage(browser)["w"] == pytest.approx(fitted["w"] / 1.4, rel=1e-3)
    browser.press("0")
    assert stage(browser) == pytest.approx(fitted, abs=0.5)
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text("#viewer-title") == captions[1]
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert browser.text("#viewer-title") == captions[-1]
    close(browser)
    assert browser.js("return document.activeElement === arguments[0]", first)


def test_cells_are_read_by_keys(browser: Browser, case: Case, page: Path) -> None:
    """Visible cells in turn, then the missed ones, each in the middle of the view."""
    browser.open(page)
    looks = case.looks
    image_id = fullest(case, looks)
    look, true = looks.images[image_id], case.truth[image_id]
    shows = np.flatnonzero(visible(look, looks)).tolist()
    missed = np.flatnonzero(match(true.masks, shown_masks(look, looks), 0.5) < 0)
    count = len(shows) + len(missed)
    open_image(browser, image_id)
    box = port(browser)
    for number, cell in enumerate(shows[:3], start=1):
        browser.press("+", "n")
        said = browser.text("#told")
        name, area = CLASSES[look.labels[cell] - 1], int(dense(look.masks[cell]).sum())
        assert said.startswith(f"{number} of {count}; found {name}, {area} pixels; score ")
        y, x = np.argwhere(dense(look.masks[cell])).T
        at = stage(browser)
        scale = at["w"] / SIZE[1]
        assert at["x"] + (x.min() + x.max() + 1) / 2 * scale == pytest.approx(box["x"] + box["w"] / 2, abs=1)
        assert at["y"] + (y.min() + y.max() + 1) / 2 * scale == pytest.approx(box["y"] + box["h"] / 2, abs=1)
        ring = browser.js("return document.querySelector('.ring').getBoundingClientRect().width")
        assert ring == pytest.approx((x.max() + 1 - x.min()) * scale, abs=1)
    browser.press("p")
    assert browser.text("#told").startswith(f"2 of {count}; ")
    browser.press("p", "p")
    last = int(true.masks[missed[-1]][1].sum())
    assert browser.text("#told").startswith(f"{count} of {count}; true cell, {last} pixels, not found")
    browser.press(Keys.ARROW_RIGHT)
    assert not browser.all(".ring")
    close(browser)


def test_keys_of_the_browser_stay_the_browser_s(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.all(".card")[0].send_keys(Keys.ENTER)
    before, title = stage(browser), browser.text("#viewer-title")
    for key in ("+", "ArrowRight", "0"):
        kept = browser.js(
            "const e = new KeyboardEvent('keydown', {key: arguments[0], ...arguments[1]});"
            "return document.getElementById('viewport').dispatchEvent(e)",
            key,
            {"ctrlKey": True, "bubbles": True, "cancelable": True},
        )
        assert kept, key
    assert (stage(browser), browser.text("#viewer-title")) == (before, title)
    close(browser)


def test_the_viewer_by_buttons_from_the_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    captions = browser.texts("#gallery .card .text")
    browser.all("#images td button")[1].click()
    assert browser.text("#viewer-title") == captions[1]
    before = stage(browser)
    box = browser.js("const b = document.querySelector('[data-do=close]').getBoundingClientRect();"
                     "return b.right")  # fmt: skip
    assert box < browser.js("return document.documentElement.clientWidth")
    for name in ("in", "in", "out", "fit", "next", "previous"):
        browser.one(f"[data-do={name}]").click()
        if name == "out":
            assert stage(browser)["w"] == pytest.approx(1.4 * before["w"], rel=1e-3)
        if name == "next":
            assert browser.text("#viewer-title") == captions[2]
    assert stage(browser) == pytest.approx(before, abs=0.5)
    browser.one("[data-do=close]").click()
    assert not browser.js("return document.getElementById('viewer').open")


def test_the_wheel_zooms_about_the_pointer_and_dragging_moves(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.all(".card")[0].click()
    box = port(browser)
    x, y = round(box["x"] + 0.4 * box["w"]), round(box["y"] + 0.7 * box["h"])

    def under() -> tuple[float, float]:
        at = stage(browser)
        return (x - at["x"]) / at["w"], (y - at["y"]) / at["h"]

    before, width = under(), stage(browser)["w"]
    for turn, direction in ((-240, 1), (-100, 1), (200, -1)):
        ActionChains(browser.driver).scroll_from_origin(ScrollOrigin.from_viewport(x, y), 0, turn).perform()
        browser.until(lambda: (stage(browser)["w"] - width) * direction > 1)  # noqa: B023
        assert under() == pytest.approx(before, abs=2e-3)
        width = stage(browser)["w"]
    start = stage(browser)
    view = browser.one("#viewport")
    ActionChains(browser.driver, duration=50).move_to_element(view).click_and_hold().move_by_offset(
        37, -21
    ).release().perform()
    end = stage(browser)
    assert (end["x"] - start["x"], end["y"] - start["y"]) == pytest.approx((37, -21), abs=1)
    assert end["w"] == pytest.approx(start["w"], abs=0.01)
    ActionChains(browser.driver, duration=50).move_by_offset(30, 30).perform()
    assert stage(browser) == end, "the button is up again"
    close(browser)


def point_at(browser: Browser, x: int, y: int) -> str:
    """Click the middle of an image's pixel; what is told of it."""
    at, view = stage(browser), port(browser)
    scale = at["w"] / SIZE[1]
    dx = at["x"] + (x + 0.5) * scale - view["x"] - view["w"] / 2
    dy = at["y"] + (y + 0.5) * scale - view["y"] - view["h"] / 2
    ActionChains(browser.driver, duration=0).move_to_element_with_offset(
        browser.one("#viewport"), round(dx), round(dy)
    ).click().perform()
    return browser.text("#told")


def test_clicking_a_cell_tells_what_it_is(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    looks = case.looks
    image_id = fullest(case, looks)
    look, true = looks.images[image_id], case.truth[image_id].masks
    shows = np.flatnonzero(visible(look, looks)).tolist()
    shared, unions = overlap_tables(true, look.masks)
    ious = shared / unions
    nowhere = ~np.any([dense(m) for m in (*true, *look.masks)], axis=0)
    open_image(browser, image_id)
    kinds = set()
    for cell in shows[:6]:
        y, x = np.argwhere(dense(look.masks[cell]))[0].tolist()
        said = point_at(browser, x, y)
        best = ious[:, cell].max()
        near = (
            f"IoU {best:.3f} with the nearest true cell"
            if best > 0.5
            else "no true cell with an IoU over 0.5"
        )
        score, area = look.scores[cell], int(dense(look.masks[cell]).sum())
        name = CLASSES[look.labels[cell] - 1]
        assert said.startswith(f"x {x}, y {y}; found {name}, {area} pixels; score {score:.3f}; {near}"), said
        kinds.add(best > 0.5)
    assert kinds == {True, False}
    missed = [t for t in range(len(true)) if not (ious[t, shows] > 0.5).any()]
    shown = np.any([dense(look.masks[c]) for c in shows], axis=0)
    only = next(alone for alone in (dense(true[t]) & ~shown for t in missed) if alone.any())
    y, x = np.argwhere(only)[0].tolist()
    assert re.search(r"; true cell, \d+ pixels, not found with an IoU over 0\.5$", point_at(browser, x, y))
    y, x = np.argwhere(nowhere)[0].tolist()
    assert point_at(browser, x, y) == f"x {x}, y {y}"
    close(browser)


# Other pages.


def test_a_submission_without_truth(browser: Browser, case: Case) -> None:
    found = {
        image_id: [FoundCell(m) for m in shown_masks(look, case.looks)]
        for image_id, look in case.looks.images.items()
    }
    looks = looks_of_found(found, dict.fromkeys(found, SIZE))
    browser.open(write_page(case, "plain", looks))
    count = sum(map(len, found.values()))
    assert browser.text("#summary") == f"{count} cells found in {len(found)} images."
    assert browser.all("#controls input") == browser.all("#reset") == browser.all("#score") == []
    assert browser.rows("#images") == [[i, str(len(found[i]))] for i in sorted(found)]
    (row,) = browser.rows("#counts")
    assert row[:2] == ["cell", str(count)]
    image_id = max(found, key=lambda i: len(found[i]))
    open_image(browser, image_id)
    picture = browser.picture("#viewport canvas")
    assert np.array_equal(drawn_in(picture, class_colours(1)[0]), edges(*(c.mask for c in found[image_id])))
    cell = found[image_id][0].mask
    y, x = np.argwhere(dense(cell))[0].tolist()
    assert point_at(browser, x, y) == f"x {x}, y {y}; found cell, {int(dense(cell).sum())} pixels"
    close(browser)


def test_predictions_without_truth(browser: Browser, case: Case) -> None:
    browser.open(write_page(case, "untrue", case.looks))
    browser.set_floor(2, 20)
    moved = with_floors(case.looks, (0.3, 0.2, 0.7))
    expected = summary(case, moved)
    assert (browser.text("#found"), browser.rows("#counts")) == (expected["found"], expected["counts"])
    assert browser.texts("#gallery .card .text") == [
        f"{i}: {len(shown_masks(look, moved))} cells" for i, look in sorted(moved.images.items())
    ]


def test_a_submission_csv_with_truth(browser: Browser, case: Case) -> None:
    found = {
        image_id: [FoundCell(m) for m in shown_masks(look, case.looks)]
        for image_id, look in case.looks.images.items()
    }
    looks = looks_of_found(found, dict.fromkeys(found, SIZE))
    browser.open(write_page(case, "csv", looks, truth=True))
    expected = summary(case, case.looks)
    now = told(browser)
    for key in ("score", "found", "captions", "rows"):
        assert now[key] == expected[key]


def test_coco_results_that_share_pixels_and_have_no_pixels(browser: Browser, case: Case) -> None:
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    masks = case.truth["i1"].masks
    cells = [FoundCell(m, 0.05 * n, 1 + n % 3) for n, m in enumerate([*masks, *masks[:3], nothing])][:20]
    looks = looks_of_found({"i1": cells}, {"i1": SIZE}, CLASSES)
    only = replace(case, truth={"i1": case.truth["i1"]})
    browser.open(write_page(case, "shared", looks, truth=True))
    for hundredths in (0, 35):
        browser.set_floor(2, hundredths)
        moved = with_floors(looks, (0.0, hundredths / 100, 0.0))
        assert browser.text("#score") == summary(only, moved)["score"]
        assert browser.rows("#images") == summary(only, moved)["rows"]


@pytest.mark.parametrize("truth", [False, True])
def test_no_images(browser: Browser, case: Case, truth: bool) -> None:
    looks = looks_of_predictions([], RULES, CLASSES)
    browser.open(write_page(case, "none", looks, truth=truth))
    assert browser.text("#found") == "0"
    browser.one("#floor-1").send_keys(Keys.ARROW_RIGHT)
    assert "NaN" not in browser.text("body main") + browser.text("header")
    time.sleep(0.3)  # the curves come once sliders rest


def test_an_id_that_looks_like_html_stays_text(browser: Browser, case: Case) -> None:
    name = "</script><img src=x onerror=document.title='broken'>&amp;"
    file = replace(case.files[1], id=name)
    looks = looks_of_found({name: []}, {name: SIZE})
    path = case.folder / "html.html"
    path.write_text(report([file], looks, title=name), "utf-8")
    browser.open(path)
    assert browser.driver.title == browser.text("h1") == name
    assert browser.rows("#images") == [[name, "0"]]
    browser.all(".card")[0].send_keys(Keys.ENTER)
    assert browser.text("#viewer-title") == f"{name}: 0 cells"
    close(browser)


def test_a_chosen_area_beyond_the_others_lies_on_the_axis(browser: Browser, case: Case) -> None:
    drawn = [Curve(CLASSES[0], "min_area", (0, 200), (0.5, 0.4), 0),
             Curve(CLASSES[1], "min_area", (0, 200, 900), (0.4, 0.5, 0.6), 900)]  # fmt: skip
    browser.open(write_page(case, "areas", case.looks, truth=True, curves=drawn))
    end = browser.js(
        "const f = [...document.querySelectorAll('figure')].find((e) => /area moved/.test(e.textContent));"
        "const places = [...f.querySelectorAll('circle')].map((c) => +c.getAttribute('cx'));"
        "return [Math.max(...places), BOX.w - BOX.right]"
    )
    assert end[0] == pytest.approx(end[1])


def test_areas_of_a_truth_with_cells_of_several_types(browser: Browser, case: Case) -> None:
    known = case.truth["i1"]
    count = len(known.masks)
    truth = {"i1": replace(known, cell_type="", mask_types=(CLASSES[0],) + (CLASSES[1],) * (count - 1))}
    looks = replace(case.looks, images={"i1": case.looks.images["i1"]}, rules=None)
    path = case.folder / "types.html"
    path.write_text(report(case.files, looks, truth), "utf-8")
    browser.open(path)
    (area,) = known.masks[0][1].sum(keepdims=True).tolist()
    texts = {t.split(":")[0]: t for t in browser.texts("figure") if ": areas of cells" in t}
    assert f"true {area} pixels" in texts[CLASSES[0]]
    assert "true" in texts[CLASSES[1]]
    assert "true" not in texts.get(CLASSES[2], "")


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1)])
def test_images_of_one_pixel_or_one_line(browser: Browser, case: Case, size: tuple[int, int]) -> None:
    """Their cards fit the window, and zooming in makes them larger."""
    file = ImageFile("thin", write_image(case.folder / f"thin{size[0]}.png", size))
    whole = one_mask(np.ones(size, np.bool_))
    looks = looks_of_found({"thin": [FoundCell(whole), FoundCell(whole)]}, {"thin": size})
    path = case.folder / "thin.html"
    path.write_text(report([file], looks), "utf-8")
    browser.open(path)
    assert browser.js("return document.querySelector('.card').getBoundingClientRect().height") < LAPTOP[1]
    open_image(browser, "thin")
    before = stage(browser)
    browser.press("+")
    assert stage(browser)["h"] >= before["h"]
    browser.press("n", "n")
    assert browser.text("#told").startswith(f"2 of 2; found cell, {size[0] * size[1]} pixels; middle x ")
    close(browser)


def test_more_classes_than_colours(browser: Browser, case: Case) -> None:
    names = tuple(f"class 'n\u00ba{k}' <&\">" for k in range(10))
    masks = case.truth["i1"].masks[:10]
    cells = [FoundCell(m, 0.5 + k / 25, k + 1) for k, m in enumerate(masks)]
    looks = looks_of_found({"i1": cells}, {"i1": SIZE}, names)
    browser.open(write_page(case, "many", looks, truth=True))
    browser.until(lambda: "Score if one class's threshold moved" in browser.texts("figcaption"))
    assert [row[0] for row in browser.rows("#counts")] == list(names[: len(masks)])
    browser.one("#floor-2").send_keys(Keys.END)
    assert browser.text("#found") == str(len(masks) - 1)


def test_on_paper_every_picture_has_its_cells(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page, (390, 300))
    empty = "return [...document.querySelectorAll('.card canvas')].filter((c) => c.width <= 1).length"
    browser.until(lambda: browser.js(empty) > 0 or None)
    far = browser.js("return [...document.querySelectorAll('.card')].filter((c) => !c.dataset.near).length")
    assert far > 0
    browser.js("window.dispatchEvent(new Event('beforeprint'))")
    width = "return [...document.querySelectorAll('.card canvas')].map((c) => c.width)"
    assert browser.js(width) == [SIZE[1]] * len(case.files)
    browser.js("window.dispatchEvent(new Event('afterprint'))")
    assert browser.js(empty) == far
    browser.cdp("Emulation.setEmulatedMedia", media="print")
    hidden = browser.js("const s = document.querySelector('.scroll'); return s.scrollHeight - s.clientHeight")
    browser.cdp("Emulation.setEmulatedMedia", media="")
    assert hidden <= 0


# What is found is taken along.


def chosen(browser: Browser) -> list[Any]:
    """Floors, level, mode and whether true outlines are drawn, as the controls have them."""
    floors = [browser.text(f"output[for=floor-{k}]") for k in (1, 2, 3)]
    mode = "match" if browser.one("[name=mode][value=match]").is_selected() else "class"
    return [*floors, browser.text("output[for=level]"), mode, browser.one("#truth").is_selected()]


def test_copied_rules_are_rules_for_the_command(browser: Browser, case: Case, page: Path) -> None:
    """The command's own page with them begins where this one was left."""
    browser.open(page)
    browser.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    for number, value in ((1, 12), (2, 61), (3, 33)):
        browser.set_floor(number, value)
    browser.one("#copy").click()
    browser.until(lambda: browser.text("#kept").startswith("Copied: "))
    text = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    saved = browser.js("return decodeURIComponent(document.getElementById('save').href.split(',').pop())")
    assert saved == f"{text}\n"
    rules, out = case.folder / "rules.json", case.folder / "again.html"
    rules.write_text(text, "utf-8")
    weights = write_tiny(case.folder / "weights", classes=list(CLASSES), rules={})
    train = write_train(case.folder / "train.csv", case.truth)
    words = {"predictions": case.folder / "saved", "images": case.folder / "images", "truth": train,
             "weights": weights, "rules": rules, "out": out}  # fmt: skip
    assert main(["show", *(word for name, path in words.items() for word in (f"--{name}", str(path)))]) == 0
    score = browser.text("#score")
    browser.open(out)
    assert chosen(browser)[:3] == ["0.12", "0.61", "0.33"]
    assert (
        browser.text("#score") == score == summary(case, with_floors(case.looks, (0.12, 0.61, 0.33)))["score"]
    )
    # As they are, they are those that the predictions were read by.
    browser.open(page)
    browser.one("#copy").click()
    browser.until(lambda: browser.text("#kept").startswith("Copied: "))
    text = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert Rules.model_validate_json(text) == RULES
    browser.one("#floor-1").send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#kept") == ""


def test_rules_to_select_where_the_browser_does_not_copy(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    browser.one("#copy").click()
    browser.until(lambda: browser.all("#rules-text"))
    text = browser.js("return document.getElementById('rules-text').value")
    assert browser.js("return getSelection().toString()") == text
    assert Rules.model_validate_json(text) == RULES


def test_cells_that_come_without_rules_have_none_to_copy(browser: Browser, case: Case) -> None:
    cells = [FoundCell(m, 0.5, 1) for m in case.truth["i1"].masks]
    browser.open(write_page(case, "unruled", looks_of_found({"i1": cells}, {"i1": SIZE}, CLASSES)))
    assert browser.all("#floor-1") and browser.all("#reset")
    assert browser.all("#copy") == browser.all("#save") == []


def test_what_is_chosen_survives_a_reload(browser: Browser, case: Case) -> None:
    """But not a page made anew that begins otherwise."""
    path = write_page(case, "kept", case.looks, truth=True)
    browser.open(path)
    before = chosen(browser)
    browser.set_floor(2, 20)
    browser.one("#level").send_keys(Keys.ARROW_RIGHT * 3)
    browser.one("[name=mode][value=class]").click()
    browser.one("#truth").click()
    after, score = chosen(browser), browser.text("#score")
    assert after == ["0.30", "0.20", "0.70", "0.65", "class", True] != before
    browser.until(lambda: browser.js("return history.state && history.state.state.truth"))
    browser.driver.refresh()
    assert (chosen(browser), browser.text("#score")) == (after, score)
    browser.one("#reset").click()
    assert chosen(browser)[:3] == before[:3]
    write_page(case, "kept", with_floors(case.looks, (0.1, 0.2, 0.3)), truth=True)
    browser.driver.refresh()
    assert chosen(browser) == ["0.10", "0.20", "0.30", *before[3:]]


# The panel.


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_score_and_pictures_are_in_sight_at_once(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    """And the score stays, with the sliders, wherever one looks: on a phone behind a button."""
    browser.open(page, size, mobile=size == PHONE)
    top = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    assert browser.js(bottom, ".card .stage") < size[1]
    assert browser.js(top, "#charts") > browser.js(bottom, "#gallery .card:last-child")
    folded = size == PHONE
    assert browser.one("#fold").get_attribute("aria-expanded") == str(not folded).lower()
    if folded:
        browser.one("#fold").click()
    before = browser.text("#score")
    covered = "return document.documentElement.style.getPropertyValue('--covered')"
    browser.until(
        lambda: browser.js(covered) == f"{browser.js(bottom, '#panel') - browser.js(top, '#panel'):.0f}px"
    )
    for part in ("table", "figures", "pictures"):
        browser.js("scrollTo(0, 0)")
        browser.one(f"[data-to={part}]").click()
        assert (
            0 <= browser.js(top, "#score") < browser.js(bottom, "#panel") <= browser.js(top, f"#{part} > *")
        )
    browser.js("document.querySelector('.card:last-child').scrollIntoView({block: 'end'})")
    browser.set_floor(2, 90)
    assert browser.text("#score") != before
    # What lies at the score's place is the score itself.
    over = browser.js(
        "const b = document.getElementById('score').getBoundingClientRect();"
        "return document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2).id"
    )
    assert over == "score"
    assert browser.js(bottom, "#panel") <= 0.6 * size[1]


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_the_viewer_has_sliders_score_and_legend(
    browser: Browser, case: Case, page: Path, size: tuple[int, int]
) -> None:
    browser.open(page, size, mobile=size == PHONE)
    image_id = fullest(case, case.looks)
    label = int(case.looks.images[image_id].labels[visible(case.looks.images[image_id], case.looks)][0])
    open_image(browser, image_id)
    if size == PHONE:
        browser.one("#viewer #fold").click()
    assert browser.texts("#viewer #legend span:not(.swatch)") == ["hits", "misses (dashed)", "false alarms"]
    title = browser.text("#viewer-title")
    browser.set_floor(label, 95)  # arrows move the slider, not the image
    floors = tuple(0.95 if k == label else f for k, f in enumerate(case.looks.floors, start=1))
    moved = with_floors(case.looks, floors)
    assert browser.text("#viewer #score") == summary(case, moved)["score"]
    assert browser.text("#viewer-title").startswith(image_id) and browser.text("#viewer-title") != title
    found = shown_masks(moved.images[image_id], moved)
    partners = match(case.truth[image_id].masks, found, 0.5)
    hits = edges(*(found[c] for c in partners[partners >= 0]))
    assert np.array_equal(drawn_in(browser.picture("#viewport canvas"), HIT), hits)
    view = port(browser)
    assert view["w"] >= 0.7 * size[0] and view["h"] >= 0.25 * size[1]
    fitted = stage(browser)
    assert fitted["w"] <= view["w"] + 1 and fitted["h"] <= view["h"] + 1
    close(browser)
    browser.until(lambda: browser.js("return document.querySelector('main > #panel + #pictures') !== null"))
    assert told(browser) == summary(case, moved)


def test_folding_the_panel_leaves_the_view_where_it_was(browser: Browser, page: Path) -> None:
    browser.open(page, PHONE, mobile=True)
    browser.all(".card")[0].click()
    middle = (
        "const p = document.getElementById('viewport');"
        "return [(p.clientWidth / 2 - view.x) / view.scale, (p.clientHeight / 2 - view.y) / view.scale]"
    )
    browser.one("[data-do=nextCell]").click()
    before, height = browser.js(middle), port(browser)["h"]
    browser.one("#fold").click()
    browser.until(
        lambda: port(browser)["h"] < height - 50 and browser.js("return view.size[1]") < height - 50
    )
    assert browser.js(middle) == pytest.approx(before, abs=0.1)
    close(browser)


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_a_cell_at_the_border_is_large_when_it_is_read(
    browser: Browser, case: Case, size: tuple[int, int]
) -> None:
    corner, whole = np.zeros((2, 520, 704), np.bool_)
    corner[490:, 684:] = True
    whole[:] = True
    file = ImageFile("large", write_image(case.folder / "large.png", whole.shape))
    found = {"large": [FoundCell(one_mask(corner)), FoundCell(one_mask(whole))]}
    path = case.folder / "corner.html"
    path.write_text(report([file], looks_of_found(found, {"large": whole.shape})), "utf-8")
    browser.open(path, size, mobile=size == PHONE)
    open_image(browser, "large")
    browser.press("n")
    ring, view = rectangle(browser, ".ring"), rectangle(browser, "#viewport")
    assert max(ring["w"] / view["w"], ring["h"] / view["h"]) == pytest.approx(0.5, abs=0.05)
    assert ring["x"] + ring["w"] / 2 == pytest.approx(view["x"] + view["w"] / 2, abs=1)
    assert ring["y"] + ring["h"] / 2 == pytest.approx(view["y"] + view["h"] / 2, abs=1)
    browser.press("n")
    all_of_it, view = stage(browser), rectangle(browser, "#viewport")
    assert max(all_of_it["w"] / view["w"], all_of_it["h"] / view["h"]) == pytest.approx(1, abs=0.05)
    close(browser)


def test_titles_and_what_pictures_are_called(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page)
    assert browser.js("return [...document.querySelectorAll('.card img')].map((i) => i.alt)") == [
        f"picture of {row[0]}" for row in browser.rows("#images")
    ]
    open_image(browser, "i2")
    assert browser.driver.title == "i2 - Cells of a case"
    assert browser.one("#viewport img").get_attribute("alt") == "picture of i2"
    browser.press(Keys.ARROW_RIGHT)
    name = browser.text("#viewer-title").split(" (")[0].split(":")[0]
    assert browser.driver.title == f"{name} - Cells of a case" != "i2 - Cells of a case"
    close(browser)
    assert browser.driver.title == "Cells of a case"


def test_many_images_come_by_and_by(browser: Browser, case: Case) -> None:
    """The table has all at once, and the viewer goes through all; what is far away holds no picture."""
    found = {f"m{n:02d}": [FoundCell(case.truth["i1"].masks[n % 3])] for n in range(60)}
    files = [replace(case.files[n % 5], id=image_id) for n, image_id in enumerate(found)]
    path = case.folder / "sixty.html"
    path.write_text(report(files, looks_of_found(found, dict.fromkeys(found, SIZE))), "utf-8")
    browser.open(path)
    assert len(browser.rows("#images")) == 60
    for count, more in ((24, "24 more pictures of the 36"), (48, "12 more pictures of the 12"), (60, "")):
        assert len(browser.all(".card")) == count
        browser.until(lambda: browser.js("return document.querySelectorAll('.card img[src]').length"))
        assert browser.js("return document.querySelectorAll('.card img[src]').length") < count
        assert browser.one("#more").is_displayed() == bool(more)
        if more:
            assert browser.text("#more").startswith(more)
            browser.one("#more").send_keys(Keys.ENTER)
            assert browser.js("return document.activeElement.dataset.image") == str(count)
    browser.driver.refresh()
    browser.all(".card")[23].send_keys(Keys.ENTER)
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text("#viewer-title") == "m24: 1 cell"
    browser.until(lambda: browser.js("return document.querySelector('#viewport img').naturalWidth"))
    close(browser)


# Small screens.


def cut(browser: Browser) -> list[str]:
    """What lies beyond the screen's left or right edge, or scrolls sideways."""
    found = (
        "return [...document.querySelectorAll('body *:not(script)')]"
        ".filter((e) => e.checkVisibility() && !e.closest('#viewport')"
        " && e.getBoundingClientRect().width && ("
        " e.getBoundingClientRect().left < -.5 || e.getBoundingClientRect().right > innerWidth + .5"
        " || (e instanceof HTMLElement && e.clientWidth && e.scrollWidth > e.clientWidth + 1)))"
        ".map((e) => e.tagName + '#' + e.id + ' ' + e.textContent.slice(0, 40))"
    )
    return list(browser.js(found))


def test_a_phone_never_scrolls_sideways(browser: Browser, case: Case, page: Path) -> None:
    for path in (page, write_page(case, "phone", case.looks)):
        browser.open(path, PHONE, mobile=True)
        browser.until(lambda: browser.all("figure"))
        wide, inner = browser.js("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner == PHONE[0]
        browser.one("#fold").click()
        assert cut(browser) == []
        browser.all(".card")[0].click()
        assert cut(browser) == []
        assert browser.text("#told") == "Pinch to zoom, drag to move, tap a cell to read it."
        wide, inner = browser.js("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner == PHONE[0]
        right = browser.js("return document.querySelector('[data-do=close]').getBoundingClientRect().right")
        assert right <= PHONE[0]
        close(browser)


def test_fingers_pan_pinch_and_tap(browser: Browser, case: Case, page: Path) -> None:
    browser.open(page, PHONE, mobile=True)
    looks = case.looks
    image_id = fullest(case, looks)
    open_image(browser, image_id)
    box = port(browser)
    x, y = box["x"] + box["w"] / 2, box["y"] + box["h"] / 2

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": px, "y": py, "id": n} for n, (px, py) in enumerate(points)]
        browser.cdp("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    start = stage(browser)
    touch("touchStart", (x, y))
    touch("touchMove", (x + 20, y + 10))
    touch("touchMove", (x + 50, y + 30))
    touch("touchEnd")
    end = stage(browser)
    assert (end["x"] - start["x"], end["y"] - start["y"]) == pytest.approx((50, 30), abs=1)
    touch("touchStart", (x - 30, y), (x + 30, y))
    touch("touchMove", (x - 60, y), (x + 30, y))
    touch("touchMove", (x - 60, y), (x + 60, y))
    touch("touchEnd")
    pinched = stage(browser)
    assert pinched["w"] == pytest.approx(2 * end["w"], rel=0.02)
    browser.one("[data-do=fit]").click()
    cell = int(np.flatnonzero(visible(looks.images[image_id], looks))[0])
    row, column = np.argwhere(dense(looks.images[image_id].masks[cell]))[0].tolist()
    at = stage(browser)
    scale = at["w"] / SIZE[1]
    touch("touchStart", (at["x"] + (column + 0.5) * scale, at["y"] + (row + 0.5) * scale))
    touch("touchEnd")
    assert f"score {looks.images[image_id].scores[cell]:.3f}" in browser.text("#told")
    close(browser)


def test_every_control_has_a_name(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.all(".card")[0].send_keys(Keys.ENTER)
    nodes = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    close(browser)
    nodes += browser.cdp("Accessibility.getFullAXTree")["nodes"]
    asked = {"button", "slider", "radio", "checkbox", "image", "dialog"}
    named = [
        (n["role"]["value"], n.get("name", {}).get("value", ""))
        for n in nodes
        if not n.get("ignored") and n.get("role", {}).get("value") in asked
    ]
    assert {"button", "slider", "radio", "checkbox"} <= {role for role, _ in named}
    assert [pair for pair in named if not pair[1].strip()] == []
    sliders = [name for role, name in named if role == "slider"]
    for word in ("IoU over", *(f"{name}: score threshold" for name in CLASSES)):
        assert any(word in name for name in sliders), word


def test_levels_are_the_metric_s(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.js("return LEVELS") == [twentieths(t) for t in THRESHOLDS]
    colours = browser.js("return [HIT, MISS, ALARM]")
    assert [tuple(c) for c in colours] == [HIT, MISS, FALSE_ALARM]


def test_the_leading_class_is_chosen_alike(browser: Browser, page: Path) -> None:
    """Ties of number and of sum, as `instances.consensus_label` breaks them."""
    browser.open(page)
    rng = np.random.default_rng(0)
    asked: list[Any] = []
    expected = []
    for consensus in ("count", "score_sum", "surest"):
        rules = Rules(consensus=consensus, per_class={n: ClassRule(score=0.35) for n in CLASSES})
        for _ in range(200):
            scores = (rng.integers(0, 5, 6) / 10 + 0.15).astype(np.float32)
            labels = rng.integers(1, 4, 6)
            expected.append(consensus_label(scores, labels, rules, CLASSES) or 0)
            asked.append([consensus, [[float(str(s)) for s in scores[labels == k]] for k in (1, 2, 3)]])
    winners = browser.js(
        "return arguments[0].map(([consensus, votes]) => { DATA.consensus = consensus;"
        " return leader({votes: votes.map((v) => v.map(Math.fround))}, [.35, .35, .35]); })",
        asked,
    )
    assert winners == expected
    assert set(winners) == {0, 1, 2, 3}
    # Scores of 0 vote as well, where they reach the threshold.
    rules = Rules(consensus="score_sum", per_class={n: ClassRule(score=0) for n in CLASSES})
    label = consensus_label(np.zeros(1, np.float32), np.array([2]), rules, CLASSES)
    assert (
        browser.js("DATA.consensus = 'score_sum'; return leader({votes: [[], [0], []]}, [0, 0, 0])") == label
    )
