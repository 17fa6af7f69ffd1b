"""`build_instances` against a slow, plain reading of the rules, and each rule on drawn cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from factories import CLASSES, drawn_prediction, empty_prediction, make_prediction, random_prediction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sartorius_infer.cells.claim import (
    build_instances,
    build_overlapping,
    consensus_label,
    decisive,
    score_floors,
    select,
)
from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.paste import paste_cells
from sartorius_infer.cells.rle import run_pixels
from sartorius_infer.manifest.rules import ClassRule, Consensus, EdgeRule, EdgeThresholds, Rules
from sartorius_infer.types import Bool, Float32, Prediction

EIGHT = np.ones((3, 3), bool)
SIZE_HW = (26, 33)


# The reference: one image-sized array per cell and step, one rule after the other.


def reference_consensus(prediction: Prediction, rules: Rules) -> int | None:
    totals: dict[int, list[float]] = {}
    for score, label in zip(prediction.scores, prediction.labels.tolist(), strict=True):
        if score >= np.float32(rules.of(CLASSES[label - 1]).score):
            totals.setdefault(label, []).append(float(score))
    if rules.consensus == "off" or not totals:
        return None

    def weigh(label: int) -> float:
        if rules.consensus == "surest":
            own = prediction.scores[prediction.labels == label].tolist()
            return float(sum(score * score * score for score in own))
        return len(totals[label]) if rules.consensus == "count" else sum(totals[label])

    return max(totals, key=lambda label: (weigh(label), sum(totals[label]), -label))


def reference_masks(prediction: Prediction, rules: Rules) -> list[tuple[float, Bool]]:
    """Score and full mask of every cell, in the prediction's order."""
    result = []
    crops = paste_cells(prediction.masks, prediction.boxes, prediction.size_hw, rules.paste)
    for score, label, crop in zip(prediction.scores, prediction.labels, crops, strict=True):
        full = np.zeros(prediction.size_hw, np.float32)
        height, width = crop.probabilities.shape
        full[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width] = crop.probabilities
        mask = full >= np.float32(rules.of(CLASSES[label - 1]).mask)
        if rules.rescore_by_mask and mask.any():
            score = score * np.float32(full[mask].mean(dtype=np.float64))
        result.append((float(score), mask))
    return result


def reference_region(free: Bool, claimed: Bool, fill_holes: bool) -> Bool:
    parts, count = ndimage.label(free, EIGHT)
    sizes = [(parts == part).sum() for part in range(1, count + 1)]
    firsts = [np.flatnonzero(parts == part)[0] for part in range(1, count + 1)]
    best = min(range(count), key=lambda index: (-sizes[index], firsts[index]))
    region: Bool = parts == best + 1
    if not fill_holes:
        return region
    seed = np.argwhere(region)[0]
    filled, _ = ndimage.label(ndimage.binary_fill_holes(region) & (region | ~claimed), EIGHT)
    return np.asarray(filled == filled[tuple(seed)])


def reference_stays(region: Bool, score: float, label: int, rules: Rules) -> bool:
    limits: ClassRule | EdgeThresholds = rules.of(CLASSES[label - 1])
    near = np.ones_like(region)
    margin = rules.edge.margin + 1
    near[margin:-margin, margin:-margin] = False
    if (region & near).any():
        if rules.edge.mode == "drop":
            return False
        if rules.edge.mode == "rule":
            limits = rules.of(CLASSES[label - 1]).edge or limits
    return bool(score >= np.float32(limits.score) and region.sum() >= limits.min_area)


def reference_instances(prediction: Prediction, rules: Rules) -> Instances:
    winner = reference_consensus(prediction, rules)
    cells = [
        (-score, mask.sum(), index, mask)
        for index, (score, mask) in enumerate(reference_masks(prediction, rules))
        if winner in (None, prediction.labels[index]) and mask.any()
    ]
    label_map, scores, labels = np.zeros(prediction.size_hw, np.int32), [], []
    survival = Fraction(str(rules.overlap_survival))
    for negative_score, area, index, mask in sorted(cells, key=lambda cell: cell[:3]):
        claimed = label_map > 0
        free = mask & ~claimed
        if not free.any() or Fraction(int(free.sum()), int(area)) < survival:
            continue
        region = reference_region(free, claimed, rules.fill_holes)
        if reference_stays(region, -negative_score, prediction.labels[index], rules):
            scores.append(-negative_score)
            labels.append(prediction.labels[index])
            label_map[region] = len(scores)
    return Instances("image", label_map, np.array(scores, np.float32), np.array(labels, np.int64), CLASSES)


def reference_overlapping(prediction: Prediction, rules: Rules) -> list[tuple[float, int, Bool]]:
    """Score, label and full mask of every cell that stays, in their order."""
    winner = reference_consensus(prediction, rules)
    labels = prediction.labels.tolist()
    cells = [
        (-score, mask.sum(), index, mask)
        for index, (score, mask) in enumerate(reference_masks(prediction, rules))
        if winner in (None, labels[index]) and mask.any()
    ]
    found = []
    for negative_score, _, index, mask in sorted(cells, key=lambda cell: cell[:3]):
        region = ndimage.binary_fill_holes(mask) if rules.fill_holes else mask
        if reference_stays(region, -negative_score, labels[index], rules):
            found.append((-negative_score, labels[index], region))
    return found


def assert_same(left: Instances, right: Instances) -> None:
    np.testing.assert_array_equal(left.label_map, right.label_map)
    np.testing.assert_array_equal(left.scores, right.scores)
    np.testing.assert_array_equal(left.labels, right.labels)


# Random predictions under random rules.

tenths = st.integers(0, 10).map(lambda n: n / 10)
pixels = st.sampled_from([0, 1, 3, 10, 40])
class_rules = st.builds(
    ClassRule,
    score=tenths,
    mask=st.sampled_from([0.2, 0.35, 0.5, 0.7]),
    min_area=pixels,
    edge=st.none() | st.builds(EdgeThresholds, score=tenths, min_area=pixels),
)
some_rules = st.builds(
    Rules,
    per_class=st.dictionaries(st.sampled_from(CLASSES), class_rules),
    rescore_by_mask=st.booleans(),
    consensus=st.sampled_from(get_args(Consensus)),
    overlap_survival=tenths,
    fill_holes=st.booleans(),
    edge=st.builds(
        EdgeRule, mode=st.sampled_from(["rule", "keep", "drop"]), margin=st.sampled_from([0, 1, 2, 4])
    ),
    paste=st.sampled_from(["exact", "torchvision"]),
)
predictions = st.builds(
    lambda seed, count: random_prediction(np.random.default_rng(seed), count, SIZE_HW),
    st.integers(0, 2**32 - 1),
    st.integers(0, 25),
)
thorough = settings(
    deadline=None, max_examples=400, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@thorough
@given(predictions, some_rules)
def test_as_the_reference(prediction: Prediction, rules: Rules) -> None:
    assert_same(build_instances(prediction, rules, CLASSES), reference_instances(prediction, rules))


@thorough
@given(predictions, some_rules)
def test_overlapping_cells_as_the_reference(prediction: Prediction, rules: Rules) -> None:
    cells = build_overlapping(prediction, rules, CLASSES)
    expected = reference_overlapping(prediction, rules)
    assert cells.scores.tolist() == [np.float32(score) for score, _, _ in expected]
    assert cells.labels.tolist() == [label for _, label, _ in expected]
    assert (cells.image_id, cells.size_hw, cells.class_names) == ("image", SIZE_HW, CLASSES)
    for mine, (_, _, mask) in zip(cells.masks, expected, strict=True):
        np.testing.assert_array_equal(run_pixels(*mine), np.flatnonzero(mask))


@thorough
@given(predictions, some_rules)
def test_where_no_cells_meet_and_all_are_whole_overlaps_make_no_difference(
    prediction: Prediction, rules: Rules
) -> None:
    cells = build_overlapping(prediction, rules, CLASSES)
    pixels = np.concatenate([[], *(run_pixels(*mask) for mask in cells.masks)])
    whole = all(
        ndimage.label(cells.flattened().label_map == n, EIGHT)[1] == 1 for n in range(1, len(cells) + 1)
    )
    if len(np.unique(pixels)) == len(pixels) and whole:
        everything = reference_masks(prediction, rules)
        claimed = build_instances(prediction, rules, CLASSES)
        if len(claimed) == len(everything) == len(cells):
            assert_same(claimed, cells.flattened())


@thorough
@given(predictions, some_rules)
def test_one_component_per_label_and_each_label_present(prediction: Prediction, rules: Rules) -> None:
    instances = build_instances(prediction, rules, CLASSES)
    assert instances.label_map.shape == prediction.size_hw
    present = np.unique(instances.label_map[instances.label_map > 0])
    assert present.tolist() == list(range(1, len(instances) + 1))
    for number in present:
        assert ndimage.label(instances.label_map == number, EIGHT)[1] == 1


@thorough
@given(predictions, some_rules)
def test_what_select_discards_changes_nothing(prediction: Prediction, rules: Rules) -> None:
    keep = select(prediction.scores, prediction.labels, rules, CLASSES)
    assert_same(
        build_instances(prediction, rules, CLASSES), build_instances(prediction[keep], rules, CLASSES)
    )


@thorough
@given(predictions, some_rules)
def test_consensus_is_settled_once(prediction: Prediction, rules: Rules) -> None:
    label = consensus_label(prediction.scores, prediction.labels, rules, CLASSES)
    assert label == reference_consensus(prediction, rules)
    left = prediction[select(prediction.scores, prediction.labels, rules, CLASSES)]
    assert consensus_label(left.scores, left.labels, rules, CLASSES) == label


@thorough
@given(predictions, some_rules, some_rules)
def test_rules_that_decide_alike_give_the_same(prediction: Prediction, one: Rules, other: Rules) -> None:
    labels = np.unique(prediction.labels).tolist()
    one, other = (rules.model_copy(update={"consensus": "off"}) for rules in (one, other))
    # Of unrelated rules hardly any decide alike, of these, which differ in one thing, many do.
    for name in ("per_class", "edge", "overlap_survival", "fill_holes"):
        near = one.model_copy(update={name: getattr(other, name)})
        if decisive(near, CLASSES, labels) == decisive(one, CLASSES, labels):
            assert_same(build_instances(prediction, near, CLASSES), build_instances(prediction, one, CLASSES))


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_edge_thresholds_that_are_off_decide_nothing(mode: str) -> None:
    edge = EdgeThresholds(score=0.9, min_area=7)
    plain, held = (
        Rules.model_validate({"per_class": {CLASSES[0]: ClassRule(edge=e)}, "edge": {"mode": mode}})
        for e in (None, edge)
    )
    assert decisive(plain, CLASSES, [1, 2]) == decisive(held, CLASSES, [1, 2])
    ruling = held.model_copy(update={"edge": EdgeRule(mode="rule")})
    assert decisive(ruling, CLASSES, [1]) != decisive(held, CLASSES, [1])
    assert decisive(ruling, CLASSES, []) == decisive(plain, CLASSES, [])


@pytest.mark.parametrize("consensus", get_args(Consensus))
def test_no_cells(consensus: str) -> None:
    rules = Rules.model_validate({"consensus": consensus, "rescore_by_mask": True, "fill_holes": True})
    instances = build_instances(empty_prediction(SIZE_HW), rules, CLASSES)
    assert len(instances) == 0
    assert instances.label_map.shape == SIZE_HW
    assert not instances.label_map.any()


# Each rule on its own. Class 1 has the rule at hand; the drawings' cells have scores 0.9, 0.89, ...


def one_class(rule: ClassRule, **others: object) -> Rules:
    return Rules.model_validate({"per_class": {CLASSES[0]: rule}} | others)


def show(instances: Instances) -> list[str]:
    """The label map as rows of digits, `.` for background."""
    return ["".join(".123456789"[number] for number in row) for row in instances.label_map]


def shown(prediction: Prediction, rules: Rules) -> list[str]:
    return show(build_instances(prediction, rules, CLASSES))


def test_the_higher_score_claims_first_and_numbers_follow_claims() -> None:
    prediction = drawn_prediction(
        ".... ###. ###. ....", ".... .### .### ....", scores=[0.6, 0.75], labels=[1, 2]
    )
    instances = build_instances(prediction, Rules(overlap_survival=0.3), CLASSES)
    assert show(instances) == ["....", "2111", "2111", "...."]
    np.testing.assert_array_equal(instances.scores, np.array([0.75, 0.6], np.float32))
    assert instances.labels.tolist() == [2, 1]


def test_equal_scores_let_the_smaller_mask_claim_first_then_the_earlier() -> None:
    prediction = drawn_prediction(
        "#### .... .... ....", "##.. .... .... ....", ".##. .... .... ....", scores=[0.6] * 3
    )
    assert shown(prediction, Rules(overlap_survival=0.0))[0] == "1123"


@pytest.mark.parametrize(
    ("survival", "expected"), [(0.0, "11122"), (0.4, "11122"), (0.41, "111.."), (1.0, "111..")]
)
def test_overlap_survival_is_inclusive(survival: float, expected: str) -> None:
    blank = " ....." * 4
    prediction = drawn_prediction("###.." + blank, "#####" + blank)
    assert shown(prediction, Rules(overlap_survival=survival))[0] == expected


def test_survival_of_55_of_100_pixels_is_the_055_that_is_written() -> None:
    rows = ["#" * 10] * 10
    taken = ["#" * 10] * 4 + ["#####....."] + ["." * 10] * 5
    prediction = drawn_prediction(" ".join(taken), " ".join(rows))
    assert len(build_instances(prediction, Rules(overlap_survival=0.55), CLASSES)) == 2


def test_a_fully_covered_cell_is_dropped_even_at_survival_0() -> None:
    prediction = drawn_prediction("#### #### .... ....", "##.. .... .... ....")
    assert len(build_instances(prediction, Rules(overlap_survival=0.0), CLASSES)) == 1


def test_a_dropped_cell_claims_nothing() -> None:
    prediction = drawn_prediction("##.. .... .... ....", "#### .... .... ....")
    assert shown(prediction, one_class(ClassRule(min_area=3)))[0] == "1111"


def test_only_the_largest_8_connected_part_stays() -> None:
    prediction = drawn_prediction("##..# ..#.# ....# ..... #....")
    assert shown(prediction, Rules()) == ["11...", "..1..", ".....", ".....", "....."]


def test_of_equal_parts_the_first_in_reading_order_stays() -> None:
    # The left part is first by columns and by blocks of 2 x 2 pixels, the right part by rows.
    prediction = drawn_prediction("....## #..... #..... ...... ...... ......")
    assert shown(prediction, Rules())[:3] == ["....11", "......", "......"]


def test_the_area_that_counts_is_that_of_the_part_that_stays() -> None:
    prediction = drawn_prediction("##.. .... ..## ....")
    assert len(build_instances(prediction, one_class(ClassRule(min_area=2)), CLASSES)) == 1
    assert len(build_instances(prediction, one_class(ClassRule(min_area=3)), CLASSES)) == 0


def test_holes_are_filled_unless_they_lead_out() -> None:
    prediction = drawn_prediction("####.. #..#.. ####.. ..#..# ..#..# ..####")
    # The second hollow opens to the right, and the diagonal gap at its corner is no way out.
    ring = ["1111..", "1111..", "1111..", "..1..1", "..1..1", "..1111"]
    assert shown(prediction, Rules(fill_holes=True)) == ring
    assert shown(prediction, Rules())[1] == "1..1.."


def test_a_gap_between_diagonal_pixels_closes_a_hole() -> None:
    prediction = drawn_prediction(".##. #..# .##. ....")
    assert shown(prediction, Rules(fill_holes=True))[:3] == [".11.", "1111", ".11."]


def test_a_hollow_at_the_image_border_is_no_hole() -> None:
    prediction = drawn_prediction("#..# #### .... ....")
    assert shown(prediction, Rules(fill_holes=True))[0] == "1..1"


def test_holes_do_not_steal() -> None:
    prediction = drawn_prediction("..... ..#.. ..... ..... .....", "##### #...# #...# ##### .....")
    assert shown(prediction, Rules(fill_holes=True)) == ["22222", "22122", "22222", "22222", "....."]


def test_a_part_of_a_hole_that_others_cut_off_stays_free() -> None:
    prediction = drawn_prediction(
        "....... ....... ..##... ..#.... ....... ....... .......",
        "....... ....... ....#.. ....#.. ..###.. ....... .......",
        "####### #.....# #.....# #.....# #.....# #.....# #######",
    )
    assert shown(prediction, Rules(fill_holes=True))[2:5] == ["3311233", "331.233", "3322233"]


def test_filled_pixels_count_as_area() -> None:
    prediction = drawn_prediction("..... .###. .#.#. .###. .....")
    assert len(build_instances(prediction, one_class(ClassRule(min_area=9)), CLASSES)) == 0
    rules = one_class(ClassRule(min_area=9), fill_holes=True)
    assert len(build_instances(prediction, rules, CLASSES)) == 1


STRICT = ClassRule(score=0.3, min_area=1, edge=EdgeThresholds(score=0.8, min_area=4))
LENIENT = ClassRule(score=0.8, min_area=4, edge=EdgeThresholds(score=0.3, min_area=1))
DROP, KEEP, BY_RULE = ({"mode": mode} for mode in ("drop", "keep", "rule"))


@pytest.mark.parametrize(
    ("rule", "edge", "score", "stays_inside", "stays_at_border"),
    [
        (STRICT, BY_RULE, 0.5, True, False),
        (STRICT, BY_RULE, 0.8, True, False),  # the area is still too small
        (STRICT, KEEP, 0.5, True, True),
        (STRICT, DROP, 0.9, True, False),
        (LENIENT, BY_RULE, 0.5, False, True),
        (LENIENT, KEEP, 0.5, False, False),
        (LENIENT, DROP, 0.5, False, False),
        (ClassRule(score=0.5), BY_RULE, 0.5, True, True),
        (ClassRule(score=0.5), BY_RULE, 0.49, False, False),
    ],
)
def test_edge_modes(
    rule: ClassRule, edge: dict[str, str], score: float, stays_inside: bool, stays_at_border: bool
) -> None:
    rules = one_class(rule, edge=edge)
    inside = drawn_prediction("..... .##.. ..... ..... .....", scores=[score])
    at_border = drawn_prediction("..... ##... ..... ..... .....", scores=[score])
    assert len(build_instances(inside, rules, CLASSES)) == stays_inside
    assert len(build_instances(at_border, rules, CLASSES)) == stays_at_border


@pytest.mark.parametrize("margin", [0, 1, 2, 9])
@pytest.mark.parametrize("away", [0, 1, 2])
@pytest.mark.parametrize("turns", range(4))
def test_a_pixel_within_the_margin_makes_an_edge_cell(margin: int, away: int, turns: int) -> None:
    row = "." * away + "#" + "." * (6 - away)
    prediction = drawn_prediction(" ".join(["." * 7] * 3 + [row] + ["." * 7] * 3))
    turned = np.rot90(prediction.masks, turns, (1, 2))
    rules = Rules(edge=EdgeRule(mode="drop", margin=margin))
    instances = build_instances(replace(prediction, masks=turned), rules, CLASSES)
    assert len(instances) == (away > margin)


def test_a_crop_that_begins_within_the_margin_holds_an_edge_cell() -> None:
    grid = np.zeros((1, 3, 3))
    grid[0, 0, 0] = 1
    prediction = make_prediction(grid, [[6, 6, 9, 9]], [0.9], [1], (9, 9))
    assert len(build_instances(prediction, Rules(edge=EdgeRule(mode="drop", margin=1)), CLASSES)) == 1
    assert len(build_instances(prediction, Rules(edge=EdgeRule(mode="drop", margin=3)), CLASSES)) == 0


def test_only_the_final_region_makes_an_edge_cell() -> None:
    prediction = drawn_prediction("#.... ..... ..##. ..##. .....")
    instances = build_instances(prediction, Rules(edge=EdgeRule(mode="drop")), CLASSES)
    assert show(instances) == [".....", ".....", "..11.", "..11.", "....."]


def test_thresholds_are_of_the_cells_class_and_inclusive() -> None:
    rules = Rules(
        per_class={
            "shsy5y": ClassRule(score=0.35, mask=0.3, min_area=4),
            "astro": ClassRule(score=0.35, mask=0.7, min_area=2),
        }
    )
    prediction = drawn_prediction("7733 .... .... ....", scores=[0.35], labels=[1])
    assert shown(prediction, rules)[0] == "1111"
    assert shown(replace(prediction, labels=np.array([2])), rules)[0] == "11.."


def test_a_probability_equal_to_the_mask_threshold_is_in_the_mask() -> None:
    assert shown(drawn_prediction("#55. .... .... ...."), Rules())[0] == "111."


def test_a_class_without_a_rule_has_the_defaults() -> None:
    prediction = drawn_prediction("#... .... .... ....", "..#. .... .... ....", scores=[0.5, 0.49])
    assert shown(prediction, Rules())[0] == "1..."


def test_rescoring_decides_thresholds_order_and_output() -> None:
    prediction = drawn_prediction(
        "#55. .... .... ....", "..## .... .... ....", "5... .... .... ....", scores=[0.9, 0.75, 0.9]
    )
    rules = one_class(ClassRule(score=0.5), rescore_by_mask=True)
    instances = build_instances(prediction, rules, CLASSES)
    # 0.9 * (1 + 0.5 + 0.5) / 3 is 0.6, after 0.75; the third falls to 0.45 and frees its pixel.
    assert show(instances)[0] == "2211"
    np.testing.assert_allclose(instances.scores, [0.75, 0.6], rtol=1e-6)


def test_votes_are_cast_with_the_score_before_rescoring() -> None:
    prediction = drawn_prediction(
        "5... .... .... ....", "..5. .... .... ....", ".... ..#. .... ....", labels=[1, 1, 2]
    )
    rules = Rules(per_class={"shsy5y": ClassRule(score=0.8)}, consensus="count", rescore_by_mask=True)
    assert len(build_instances(prediction, rules, CLASSES)) == 0


@pytest.mark.parametrize(
    ("consensus", "scores", "labels", "expected"),
    [
        ("off", [0.9, 0.9], [1, 1], None),
        ("count", [], [], None),
        ("count", [0.4, 0.3], [1, 2], None),
        ("count", [0.5, 0.5, 0.9], [3, 3, 1], 3),
        ("score_sum", [0.5, 0.5, 0.9], [3, 3, 1], 3),
        ("score_sum", [0.5, 0.5, 0.4, 0.95], [3, 3, 3, 1], 3),
        ("score_sum", [0.5, 0.49, 0.49, 0.6], [3, 3, 3, 1], 1),
        ("count", [0.5, 0.6, 0.7], [1, 2, 3], 3),
        ("count", [0.6, 0.6, 0.5], [3, 2, 1], 2),
        ("score_sum", [0.75, 0.5, 0.25, 0.5], [3, 2, 1, 2], 2),
        ("score_sum", [0.75, 0.75], [3, 2], 2),
        ("surest", [0.5, 0.5, 0.5, 0.75], [3, 3, 3, 1], 1),
        ("surest", [0.5, 0.5, 0.5, 0.5, 0.75], [3, 3, 3, 3, 1], 3),
        ("surest", [0.75, 0.5, 0.49, 0.49, 0.49], [2, 2, 3, 3, 3], 2),
        ("surest", [0.5, 0.4, 0.4, 0.4, 0.4], [1, 3, 3, 3, 3], 1),
        ("surest", [0.5, 0.5, 0.4], [1, 3, 3], 3),
        ("surest", [0.75, 0.75], [3, 2], 2),
        ("surest", [0.4], [1], None),
    ],
)
def test_consensus(
    consensus: str, scores: Sequence[float], labels: Sequence[int], expected: int | None
) -> None:
    rules = Rules.model_validate({"consensus": consensus})
    cast: Float32 = np.array(scores, np.float32)
    assert consensus_label(cast, np.array(labels, np.int64), rules, CLASSES) == expected


def test_a_vote_of_score_0_counts_where_the_threshold_is_0() -> None:
    rules = one_class(ClassRule(score=0.0), consensus="score_sum")
    scores = np.zeros(2, np.float32)
    assert consensus_label(scores, np.array([2, 1]), rules, CLASSES) == 1


def test_consensus_drops_the_other_classes() -> None:
    prediction = drawn_prediction(
        "##.. .... .... ....", "..## .... .... ....", ".... ##.. .... ....", labels=[2, 1, 1]
    )
    instances = build_instances(prediction, Rules(consensus="count"), CLASSES)
    assert show(instances)[:2] == ["..11", "22.."]
    assert instances.labels.tolist() == [1, 1]


@pytest.mark.parametrize(("mode", "floor"), [("rule", 0.2), ("keep", 0.6), ("drop", 0.6)])
def test_score_floors_reckon_with_edge_cells(mode: str, floor: float) -> None:
    rules = Rules.model_validate(
        {
            "edge": {"mode": mode},
            "per_class": {
                "shsy5y": ClassRule(score=0.6, edge=EdgeThresholds(score=0.2, min_area=0)),
                "astro": ClassRule(score=0.3, edge=EdgeThresholds(score=0.7, min_area=0)),
            },
        }
    )
    floors = score_floors(rules, CLASSES)
    assert floors.dtype == np.float32
    np.testing.assert_array_equal(floors, np.array([floor, 0.3, 0.5], np.float32))
