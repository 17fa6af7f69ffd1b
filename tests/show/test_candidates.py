"""Candidates of every threshold: what they show is what `build_instances` makes at these thresholds."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from factories import CLASSES, drawn_prediction, empty_prediction, make_prediction, random_prediction
from hypothesis import given, settings
from hypothesis import strategies as st
from shows import dense, one_mask, with_floors

from sartorius_infer.cells.claim import build_instances, consensus_label
from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.submissions import FoundCell
from sartorius_infer.manifest.rules import ClassRule, Consensus, EdgeRule, EdgeThresholds, Rules
from sartorius_infer.show.candidates import (
    Look,
    Looks,
    looks_of_found,
    looks_of_predictions,
    shown_instances,
    shown_masks,
    visible,
)
from sartorius_infer.types import Prediction

SIZE = (26, 33)
tenths = st.integers(0, 10).map(lambda n: n / 10)
hundredths = st.integers(0, 100).map(lambda n: n / 100)
areas = st.sampled_from([0, 1, 3, 10, 40])
floors_of_all = st.tuples(hundredths, hundredths, hundredths)
predictions = st.builds(
    lambda seed, count: random_prediction(np.random.default_rng(seed), count, SIZE),
    st.integers(0, 2**32 - 1),
    st.integers(0, 25),
)
many = settings(max_examples=50, derandomize=True)


def ruled(draw: st.DrawFn, **fixed: object) -> Rules:
    """Any rules, edge thresholds of classes left out."""
    one = st.builds(ClassRule, score=tenths, mask=st.sampled_from([0.2, 0.35, 0.5, 0.7]), min_area=areas)
    settings = {
        "per_class": st.fixed_dictionaries(dict.fromkeys(CLASSES, one)),
        "rescore_by_mask": st.booleans(),
        "consensus": st.sampled_from(["count", "score_sum", "surest"]),
        "overlap_survival": tenths,
        "fill_holes": st.booleans(),
        "edge": st.builds(
            EdgeRule, mode=st.sampled_from(["rule", "keep", "drop"]), margin=st.sampled_from([0, 1, 3, 20])
        ),
        "paste": st.sampled_from(["exact", "torchvision"]),
    }
    return Rules(**{k: fixed[k] if k in fixed else draw(v) for k, v in settings.items()})  # type: ignore[arg-type]


@st.composite
def without_edges(draw: st.DrawFn) -> Rules:
    return ruled(draw)


@st.composite
def alone(draw: st.DrawFn) -> Rules:
    return ruled(draw, consensus="off")


def at(rules: Rules, floors: tuple[float, ...]) -> Rules:
    """The rules with other score thresholds, one a class."""
    moved = {n: rules.of(n).model_copy(update={"score": f}) for n, f in zip(CLASSES, floors, strict=True)}
    return rules.model_copy(update={"per_class": moved})


Cells = list[tuple[float, int, list[int]]]


def cells_of(instances: Instances) -> Cells:
    masks = split_label_map(instances.label_map, len(instances))
    return sorted(
        (float(score), int(label), np.concatenate(mask).tolist())
        for score, label, mask in zip(instances.scores, instances.labels, masks, strict=True)
    )


def shown_of(look: Look, looks: Looks) -> Cells:
    shows = visible(look, looks)
    return sorted(
        (float(score), int(label), np.concatenate(mask).tolist())
        for score, label, mask in zip(
            look.scores[shows], look.labels[shows], shown_masks(look, looks), strict=True
        )
    )


def both(prediction: Prediction, rules: Rules, floors: tuple[float, ...]) -> tuple[Cells, Cells]:
    """What the candidates show at these thresholds, and what the rules with these thresholds make."""
    looks = with_floors(looks_of_predictions([prediction], rules, CLASSES), floors)
    made = build_instances(prediction, at(rules, floors), CLASSES)
    return shown_of(looks.images["image"], looks), cells_of(made)


@many
@given(predictions, without_edges(), floors_of_all)
def test_candidates_show_what_the_rules_make_at_any_thresholds(
    prediction: Prediction, rules: Rules, floors: tuple[float, ...]
) -> None:
    shown, made = both(prediction, rules, floors)
    assert shown == made


@many
@given(predictions, without_edges(), floors_of_all, st.tuples(tenths, tenths, tenths), areas)
def test_so_they_do_with_edge_thresholds_that_are_not_below_the_class_s_own(
    prediction: Prediction, rules: Rules, floors: tuple[float, ...], more: tuple[float, ...], area: int
) -> None:
    edges = {
        name: rules.of(name).model_copy(
            update={"edge": EdgeThresholds(score=max(floor, edge), min_area=area)}
        )
        for name, floor, edge in zip(CLASSES, floors, more, strict=True)
    }
    shown, made = both(prediction, rules.model_copy(update={"per_class": edges}), floors)
    assert shown == made


@many
@given(predictions, alone(), hundredths)
def test_without_consensus_they_do_at_one_threshold_for_all_classes(
    prediction: Prediction, rules: Rules, floor: float
) -> None:
    shown, made = both(prediction, rules, (floor,) * 3)
    assert shown == made


@many
@given(predictions, alone(), floors_of_all, st.integers(1, 3))
def test_without_consensus_they_do_where_one_class_is_present(
    prediction: Prediction, rules: Rules, floors: tuple[float, ...], label: int
) -> None:
    shown, made = both(prediction[prediction.labels == label], rules, floors)
    assert shown == made


@many
@given(predictions, without_edges())
def test_they_begin_at_the_rules_own_thresholds(prediction: Prediction, rules: Rules) -> None:
    looks = looks_of_predictions([prediction], rules, CLASSES)
    assert looks.floors == tuple(rules.of(name).score for name in CLASSES)
    assert looks.classes == CLASSES
    assert looks.scored
    look = looks.images["image"]
    assert shown_of(look, looks) == cells_of(build_instances(prediction, rules, CLASSES))
    assert not look.fixed.any()
    assert [v.tolist() for v in look.votes] == [
        prediction.scores[prediction.labels == k].tolist() for k in (1, 2, 3)
    ]


@many
@given(predictions, without_edges(), floors_of_all)
def test_the_shown_class_is_the_consensus(
    prediction: Prediction, rules: Rules, floors: tuple[float, ...]
) -> None:
    looks = with_floors(looks_of_predictions([prediction], rules, CLASSES), floors)
    look = looks.images["image"]
    label = consensus_label(prediction.scores, prediction.labels, at(rules, floors), CLASSES)
    assert set(look.labels[visible(look, looks)].tolist()) <= {label}


def test_first_exception_a_class_s_low_cell_holds_the_pixels_of_another_class() -> None:
    """Consensus off: class 1's cell, which its threshold hides, still has claimed the pixels."""
    prediction = drawn_prediction("....\n.##.\n.##.\n....".replace("\n", " "), ".... .##. .##. ....",
                                  scores=[0.4, 0.3], labels=[1, 2])  # fmt: skip
    rules = Rules(consensus="off", overlap_survival=0.5)
    shown, made = both(prediction, rules, (0.5, 0.2, 0.5))
    assert [cell[:2] for cell in made] == [(pytest.approx(0.3), 2)]
    assert shown == []
    shown, made = both(prediction, rules, (0.35, 0.2, 0.5))
    assert shown == made != []


def test_second_exception_a_low_inner_cell_holds_the_pixels_of_a_lower_edge_cell() -> None:
    """The edge threshold is below the class's own: an inner cell between the two claims first."""
    prediction = drawn_prediction("..... .###. .###. .###. .....", "##### .###. .###. .###. .....",
                                  scores=[0.4, 0.3])  # fmt: skip
    rule = ClassRule(score=0.5, edge=EdgeThresholds(score=0.2, min_area=0))
    rules = Rules(per_class=dict.fromkeys(CLASSES, rule), consensus="count", overlap_survival=0.5)
    shown, made = both(prediction, rules, (0.5, 0.5, 0.5))
    assert [cell[0] for cell in made] == [pytest.approx(0.3)]
    assert shown == []


def test_third_exception_edge_cells_of_two_classes_share_pixels_where_nobody_votes() -> None:
    """With a consensus classes claim apart; without a vote there is no leading one, and both show."""
    prediction = drawn_prediction("##... ##... ..... ..... .....", "##... ##... ..... ..... .....",
                                  scores=[0.4, 0.3], labels=[1, 2])  # fmt: skip
    rule = ClassRule(score=0.5, edge=EdgeThresholds(score=0.2, min_area=0))
    rules = Rules(per_class=dict.fromkeys(CLASSES, rule), consensus="count", overlap_survival=0.5)
    shown, made = both(prediction, rules, (0.5, 0.5, 0.5))
    assert [cell[1] for cell in made] == [1]
    assert sorted(cell[1] for cell in shown) == [1, 2]


def test_edge_cells_with_thresholds_of_their_own_stay_at_any_class_threshold() -> None:
    prediction = drawn_prediction("#.... #.... ..... ..... .....", "..... ..... ..... ...#. ...#.",
                                  "..... ..##. ..##. ..... .....", scores=[0.6, 0.4, 0.9])  # fmt: skip
    rule = ClassRule(score=0.5, edge=EdgeThresholds(score=0.5, min_area=0))
    rules = Rules(per_class={"shsy5y": rule}, consensus="score_sum")
    looks = looks_of_predictions([prediction], rules, CLASSES)
    look = looks.images["image"]
    assert look.fixed.tolist() == [False, True], "0.9 is inside, 0.6 on the edge; 0.4 misses the edge's 0.5"
    for floor, count in ((0.0, 2), (0.6, 2), (0.9, 2), (0.91, 1), (1.0, 1)):
        assert visible(look, with_floors(looks, (floor, 0.5, 0.5))).sum() == count, floor
    for mode in ("keep", "drop"):
        other = rules.model_copy(update={"edge": EdgeRule(mode=mode)})
        assert not looks_of_predictions([prediction], other, CLASSES).images["image"].fixed.any()


def test_thresholds_are_compared_as_float32() -> None:
    prediction = drawn_prediction("..... .###. .###. .###. .....", scores=[0.35])
    looks = looks_of_predictions([prediction], Rules(), CLASSES)
    look = looks.images["image"]
    assert visible(look, with_floors(looks, (0.35, 0.5, 0.5))).all()
    assert not visible(look, with_floors(looks, (0.36, 0.5, 0.5))).any()


@pytest.mark.parametrize("consensus", get_args(Consensus))
def test_nothing_seen(consensus: Consensus) -> None:
    rules = Rules(consensus=consensus)
    looks = looks_of_predictions([empty_prediction(SIZE)], rules, CLASSES)
    look = looks.images["image"]
    assert (look.size_hw, look.masks, len(look.scores), len(look.labels), len(look.fixed)) == (
        SIZE,
        (),
        0,
        0,
        0,
    )
    assert (look.scores.dtype, look.labels.dtype, look.fixed.dtype) == (np.float32, np.int64, np.bool_)
    assert visible(look, looks).shape == (0,)
    assert shown_masks(look, looks) == []
    empty = shown_instances("image", look, looks)
    assert (len(empty), empty.label_map.shape, empty.label_map.any()) == (0, SIZE, False)
    assert looks_of_predictions([], rules, CLASSES).images == {}


def test_an_image_by_its_own_id() -> None:
    some = [replace(empty_prediction(SIZE), image_id=name) for name in ("b", "a")]
    assert list(looks_of_predictions(some, Rules(), CLASSES).images) == ["b", "a"]


def boxed(top: int, left: int, bottom: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.zeros(SIZE, np.bool_)
    drawn[top:bottom, left:right] = True
    return one_mask(drawn)


def test_cells_of_a_csv_all_show_and_tell_no_class() -> None:
    found = {"a": [FoundCell(boxed(0, 0, 4, 4)), FoundCell(boxed(5, 5, 9, 9))], "b": []}
    looks = looks_of_found(found, {"a": SIZE, "b": SIZE, "c": (1, 1)})
    assert (looks.classes, looks.scored, looks.consensus) == (("cell",), False, "off")
    assert list(looks.images) == ["a", "b"]
    assert visible(looks.images["a"], looks).tolist() == [True, True]
    assert len(shown_instances("b", looks.images["b"], looks)) == 0


def test_cells_of_coco_results_have_classes_and_scores() -> None:
    cells = [FoundCell(boxed(0, 0, 4, 4), 0.9, 3), FoundCell(boxed(2, 2, 9, 9), 0.4, 1)]
    looks = looks_of_found({"a": cells}, {"a": SIZE}, CLASSES)
    look = looks.images["a"]
    assert (looks.classes, looks.scored, looks.floors) == (CLASSES, True, (0.0, 0.0, 0.0))
    assert (look.labels.tolist(), look.scores.dtype) == ([3, 1], np.float32)
    assert visible(look, looks).all()
    assert visible(look, with_floors(looks, (0.5, 0.0, 0.0))).tolist() == [True, False]


@pytest.mark.parametrize(("labels", "wrong"), [((1, 4), 4), ((0, 2), 0), ((-1,), -1)])
def test_categories_that_are_no_class(labels: tuple[int, ...], wrong: int) -> None:
    cells = [FoundCell(boxed(0, 0, 4, 4), 0.9, label) for label in labels]
    with pytest.raises(TruthError, match=rf"^a: expected categories 1\.\.3, found {wrong}$"):
        looks_of_found({"a": cells}, {"a": SIZE}, CLASSES)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 97.0])
def test_scores_that_are_none(score: float) -> None:
    cells = [FoundCell(boxed(0, 0, 4, 4), 0.5, 1), FoundCell(boxed(0, 0, 4, 4), score, 1)]
    with pytest.raises(TruthError, match=r"^a: expected scores in \[0, 1\], found (nan|inf|-0\.1|97\.0)$"):
        looks_of_found({"a": cells}, {"a": SIZE}, CLASSES)


def test_a_label_map_of_what_shows() -> None:
    """Cells of COCO results may share pixels: the higher score has them."""
    masks = [boxed(0, 0, 10, 10), boxed(5, 5, 15, 15), boxed(0, 0, 26, 33)]
    cells = [FoundCell(m, s, k) for m, s, k in zip(masks, (0.8, 0.9, 0.1), (1, 2, 3), strict=True)]
    looks = with_floors(looks_of_found({"a": cells}, {"a": SIZE}, CLASSES), (0.0, 0.0, 0.5))
    instances = shown_instances("a", looks.images["a"], looks)
    assert instances.image_id == "a"
    assert instances.scores.tolist() == [np.float32(0.8), np.float32(0.9)]
    assert instances.labels.tolist() == [1, 2]
    expected = np.zeros(SIZE, np.int32)
    expected[dense(masks[0], SIZE)] = 1
    expected[dense(masks[1], SIZE)] = 2
    assert instances.label_map.dtype == np.int32
    assert np.array_equal(instances.label_map, expected)


def test_the_label_map_of_predictions_has_the_rules_cells() -> None:
    prediction = random_prediction(np.random.default_rng(3), 30, SIZE)
    rules = Rules(consensus="count", overlap_survival=0.2)
    looks = looks_of_predictions([prediction], rules, CLASSES)
    shown = shown_instances("image", looks.images["image"], looks)
    assert cells_of(shown) == cells_of(build_instances(prediction, rules, CLASSES)) != []


def test_one_prediction_of_flat_boxes() -> None:
    flat = make_prediction(np.ones((1, 7, 7)), [[3, 3, 3, 3]], [0.9], [1], SIZE)
    looks = looks_of_predictions([flat], Rules(consensus="count"), CLASSES)
    assert shown_of(looks.images["image"], looks) == cells_of(build_instances(flat, Rules(), CLASSES))
