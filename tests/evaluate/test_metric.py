from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from places import SARTORIUS
from scipy.optimize import linear_sum_assignment
from truths import overlap_tables

from sartorius_infer.cells.rle import Mask
from sartorius_infer.evaluate.metric import (
    THRESHOLDS,
    ImageScore,
    match,
    mean_ap,
    score_image,
    twentieths,
)
from sartorius_infer.evaluate.train_csv import read_train_csv
from sartorius_infer.types import Bool

TRAIN = SARTORIUS / "train.csv"
EXACT = [Fraction(k, 20) for k in range(10, 20)]
SHAPE = (3, 4)

cells = st.lists(arrays(np.bool_, SHAPE), max_size=4)
# Drawn from few, so that copies and large overlaps are common.
alike = st.lists(arrays(np.bool_, (1, 8), elements=st.sampled_from([True, True, True, False])), max_size=4)


laws = settings(max_examples=50)


def runs(mask: Bool) -> Mask:
    """Starts and lengths, pixel by pixel."""
    starts, lengths = [], []
    before = False
    for index, inside in enumerate(mask.ravel().tolist()):
        if inside and not before:
            starts.append(index)
            lengths.append(0)
        if inside:
            lengths[-1] += 1
        before = inside
    return np.array(starts, np.int64), np.array(lengths, np.int64)


def scored(true: Sequence[Bool], found: Sequence[Bool]) -> ImageScore:
    return score_image("image", [runs(m) for m in true], [runs(m) for m in found])


def row(start: int, length: int, width: int = 40) -> Bool:
    """A mask of one row with one run."""
    mask = np.zeros((1, width), np.bool_)
    mask[0, start : start + length] = True
    return mask


def slow_iou(one: Bool, other: Bool) -> Fraction:
    """Exact; 0 for two masks without pixels."""
    union = int((one | other).sum())
    return Fraction(int((one & other).sum()), union) if union else Fraction(0)


def tried_pairs(match: list[list[bool]]) -> int:
    """The most pairs, by trying every way to give the first true cell a partner, or none."""
    if not match:
        return 0
    best = tried_pairs(match[1:])
    for partner, matches in enumerate(match[0]):
        if matches:
            rest = [[*others[:partner], *others[partner + 1 :]] for others in match[1:]]
            best = max(best, 1 + tried_pairs(rest))
    return best


def slow_tp(true: Sequence[Bool], found: Sequence[Bool]) -> list[int]:
    """True positives at each threshold from dense masks, exact fractions and every possible matching."""
    ious = [[slow_iou(one, other) for other in found] for one in true]
    return [tried_pairs([[iou > t for iou in line] for line in ious]) for t in EXACT]


def slow_ap(true: Sequence[Bool], found: Sequence[Bool]) -> Fraction:
    """The image's score as an exact fraction."""
    if not true and not found:
        return Fraction(1)
    return Fraction(sum(Fraction(tp, len(true) + len(found) - tp) for tp in slow_tp(true, found)), 10)


def test_thresholds() -> None:
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@given(cells, cells)
def test_equals_the_slow_one_on_any_masks(true: list[Bool], found: list[Bool]) -> None:
    score = scored(true, found)
    assert score.tp.tolist() == slow_tp(true, found)
    assert score.ap == pytest.approx(float(slow_ap(true, found)), abs=1e-12)


@given(alike, alike)
def test_equals_the_slow_one_where_cells_overlap_and_repeat(true: list[Bool], found: list[Bool]) -> None:
    assert scored(true, found).tp.tolist() == slow_tp(true, found)


@pytest.mark.parametrize("seed", range(5))
def test_equals_an_assignment_in_crowds_of_overlapping_copies(seed: int) -> None:
    """Found cells are true ones, moved a little, several times over."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, 60, 25), rng.integers(8, 30, 25)
    true = [row(s, n, 100) for s, n in zip(starts, lengths, strict=True)]
    moved = rng.integers(0, 25, 40)
    found = [row(starts[i] + rng.integers(0, 4), lengths[i] + rng.integers(0, 4), 100) for i in moved]
    ious = [[slow_iou(one, other) for other in found] for one in true]
    expected = []
    for t in EXACT:
        match = np.array([[iou > t for iou in line] for line in ious])
        expected.append(int(match[linear_sum_assignment(match, maximize=True)].sum()))
    assert scored(true, found).tp.tolist() == expected
    assert expected[0] > expected[-1]


@given(cells, cells)
def test_overlaps_count_pixels(true: list[Bool], found: list[Bool]) -> None:
    shared, unions = overlap_tables([runs(m) for m in true], [runs(m) for m in found])
    assert shared.dtype == unions.dtype == np.int64
    assert shared.shape == unions.shape == (len(true), len(found))
    assert shared.tolist() == [[int((t & f).sum()) for f in found] for t in true]
    assert unions.tolist() == [[int((t | f).sum()) for f in found] for t in true]


@pytest.mark.parametrize("twentieths", range(10, 21))
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_iou_of_exactly_t_is_no_match(twentieths: int, size: int) -> None:
    """A found cell inside a true one, k / 20 of it: matched at the thresholds below k / 20 alone."""
    true, found = row(0, 20 * size, 20 * size), row(0, twentieths * size, 20 * size)
    tp = scored([true], [found]).tp
    assert tp.tolist() == [int(k < twentieths) for k in range(10, 20)]


@pytest.mark.parametrize(
    ("shared", "union", "matched"),
    [(1, 2, 0), (3, 5, 2), (3, 4, 5), (4, 5, 6), (9, 10, 8), (19, 20, 9), (2, 3, 4), (101, 200, 1)],
)
def test_ties_in_lowest_terms(shared: int, union: int, matched: int) -> None:
    """1/2, 3/5, 3/4 and so on: 3/5 is above .50 and .55, and not above .60."""
    score = scored([row(0, shared, 200)], [row(0, union, 200)])
    assert score.tp.sum() == matched
    assert score.ap == pytest.approx(matched / 10)


def test_one_pixel_more_than_a_tie_is_a_match() -> None:
    assert scored([row(0, 500, 1000)], [row(0, 1000, 1000)]).tp[0] == 0
    assert scored([row(0, 501, 1000)], [row(0, 1000, 1000)]).tp[0] == 1


@pytest.mark.parametrize(("true", "found", "ap"), [(0, 0, 1.0), (0, 2, 0.0), (2, 0, 0.0)])
def test_empty_sides(true: int, found: int, ap: float) -> None:
    cells = [row(4 * i, 3) for i in range(max(true, found))]
    score = scored(cells[:true], cells[:found])
    assert (score.ap, score.true_cells, score.found_cells) == (ap, true, found)
    assert (score.tp.tolist(), score.fp.tolist(), score.fn.tolist()) == ([0] * 10, [found] * 10, [true] * 10)


def test_a_cell_without_pixels_matches_nothing() -> None:
    nothing = np.zeros(SHAPE, np.bool_)
    assert scored([nothing], [nothing]).ap == 0.0


def test_a_worked_example() -> None:
    """IoU 1 and 7/10, a miss and a false cell: 2 of 4 to .65, 1 of 5 from .70."""
    true = [row(0, 5), row(10, 10), row(30, 2)]
    found = [row(0, 5), row(10, 7), row(35, 4)]
    score = scored(true, found)
    assert score.tp.tolist() == [2] * 4 + [1] * 6
    assert score.fp.tolist() == score.fn.tolist() == [1] * 4 + [2] * 6
    assert score.precision.tolist() == pytest.approx([2 / 4] * 4 + [1 / 5] * 6)
    assert score.ap == pytest.approx(0.32)


def test_one_found_cell_matches_one_of_two_copies_of_a_true_one() -> None:
    copies = [row(0, 10), row(0, 10)]
    assert scored(copies, [row(0, 10)]).tp.tolist() == [1] * 10
    assert scored([row(0, 10)], copies).tp.tolist() == [1] * 10
    assert scored(copies, copies).ap == 1.0


def test_the_most_pairs_are_made_even_if_the_best_ones_must_part() -> None:
    """The first found cell is the second true one, which is all that the other found one matches."""
    true = [row(0, 10), row(2, 10)]
    found = [row(2, 10), row(4, 10)]
    match = [[slow_iou(t, f) > Fraction(1, 2) for f in found] for t in true]
    assert match == [[True, False], [True, True]]
    assert scored(true, found).tp[0] == 2


@laws
@given(cells, cells, st.randoms(use_true_random=False))
def test_order_changes_nothing(true: list[Bool], found: list[Bool], random: Random) -> None:
    score = scored(true, found)
    random.shuffle(true)
    random.shuffle(found)
    assert scored(true, found).tp.tolist() == score.tp.tolist()


@laws
@given(cells, cells)
def test_truth_and_found_may_change_places(true: list[Bool], found: list[Bool]) -> None:
    assert scored(true, found).ap == scored(found, true).ap


@laws
@given(cells)
def test_finding_every_cell_exactly_scores_1(true: list[Bool]) -> None:
    true = [mask for mask in true if mask.any()]
    assert scored(true, true).ap == 1.0


@laws
@given(cells, cells, arrays(np.bool_, SHAPE))
def test_a_false_cell_never_raises_the_score(true: list[Bool], found: list[Bool], more: Bool) -> None:
    """A cell is false that matches none at 1/2, and so at no threshold."""
    if all(slow_iou(cell, more) <= Fraction(1, 2) for cell in true):
        before, after = scored(true, found), scored(true, [*found, more])
        assert after.tp.tolist() == before.tp.tolist()
        assert after.ap <= before.ap
        assert (after.ap < before.ap) == (before.ap > 0)


@laws
@given(cells, cells, arrays(np.bool_, SHAPE).filter(lambda mask: bool(mask.any())))
def test_a_cell_that_is_found_exactly_never_lowers_the_score(
    true: list[Bool], found: list[Bool], more: Bool
) -> None:
    assert scored([*true, more], [*found, more]).ap >= scored(true, found).ap


@laws
@given(cells, cells)
def test_counts_add_up_and_fall_with_the_threshold(true: list[Bool], found: list[Bool]) -> None:
    score = scored(true, found)
    assert (score.tp + score.fn).tolist() == [len(true)] * 10
    assert (score.tp + score.fp).tolist() == [len(found)] * 10
    assert score.tp.dtype == np.int64
    assert (np.diff(score.tp) <= 0).all()
    assert (np.diff(score.precision) <= 0).all()
    assert ((score.precision >= 0) & (score.precision <= 1)).all()


def partners_of(true: Sequence[Bool], found: Sequence[Bool], t: float) -> list[int]:
    partners = match([runs(m) for m in true], [runs(m) for m in found], t)
    assert partners.dtype == np.int64
    return list(partners.tolist())


@given(cells, cells, st.sampled_from(THRESHOLDS))
def test_partners_are_as_many_pairs_as_the_score_counts(
    true: list[Bool], found: list[Bool], t: float
) -> None:
    partners = partners_of(true, found, t)
    assert len(partners) == len(true)
    made = [(n, c) for n, c in enumerate(partners) if c >= 0]
    assert set(partners) - {-1} <= set(range(len(found)))
    assert len({c for _, c in made}) == len(made), "each found cell once"
    exact = EXACT[THRESHOLDS.index(t)]
    assert all(slow_iou(true[n], found[c]) > exact for n, c in made)
    assert len(made) == scored(true, found).tp[THRESHOLDS.index(t)]


@given(alike, alike)
def test_partners_where_cells_overlap_and_repeat(true: list[Bool], found: list[Bool]) -> None:
    counts = [sum(c >= 0 for c in partners_of(true, found, t)) for t in THRESHOLDS]
    assert counts == slow_tp(true, found)


def test_partners_by_number() -> None:
    true = [row(0, 5), row(10, 10), row(30, 2)]
    found = [row(10, 7), row(35, 4), row(0, 5)]
    assert partners_of(true, found, 0.5) == [2, 0, -1]
    assert partners_of(true, found, 0.7) == [2, -1, -1]
    assert partners_of(true, [], 0.5) == [-1, -1, -1]
    assert partners_of([], found, 0.5) == []
    assert partners_of([], [], 0.95) == []


@pytest.mark.parametrize("iou", [0, 0.49, 0.501, 1.0, float("nan")])
def test_an_iou_that_is_no_threshold(iou: float) -> None:
    with pytest.raises(ValueError, match=rf"^expected an IoU of 0\.5, 0\.55, .*, 0\.95, found {iou}$"):
        match([], [], iou)


def test_thresholds_in_twentieths() -> None:
    assert [twentieths(t) for t in THRESHOLDS] == list(range(10, 20))


def test_images_count_alike_whatever_the_number_of_their_cells() -> None:
    many = scored([row(2 * i, 1) for i in range(9)], [])
    one = scored([row(0, 9)], [row(0, 9)])
    assert mean_ap([many, one]) == 0.5
    assert mean_ap([one]) == 1.0


def test_no_images_have_no_mean() -> None:
    with pytest.raises(ValueError, match=r"^expected at least one image, found none$"):
        mean_ap([])


def test_a_crowded_image_is_itself() -> None:
    rng = np.random.default_rng(0)
    size = 520 * 704
    starts = np.sort(rng.choice(size // 200, 600, replace=False)) * 200
    masks = [(s + 704 * np.arange(12), np.full(12, 15)) for s in starts if s + 704 * 12 < size]
    assert score_image("image", masks, masks).ap == 1.0


@pytest.mark.skipif(not TRAIN.is_file(), reason="the competition's annotations are not beside this checkout")
def test_annotators_agree_with_themselves_and_with_the_slow_one_when_cells_move() -> None:
    truth = read_train_csv(TRAIN)
    assert mean_ap([score_image(i, t.masks, t.masks) for i, t in truth.items()]) == 1.0
    image = min(truth.values(), key=lambda t: len(t.masks))
    moved = [(starts + np.minimum(lengths - 1, 3), lengths) for starts, lengths in image.masks]
    moved = [(s, np.minimum(n, 520 * 704 - s)) for s, n in moved]
    score = score_image(image.id, image.masks, moved)
    dense = []
    for masks in (image.masks, moved):
        dense.append([np.zeros(520 * 704, np.bool_) for _ in masks])
        for mask, (starts, lengths) in zip(dense[-1], masks, strict=True):
            for first, length in zip(starts, lengths, strict=True):
                mask[first : first + length] = True
    ious = [[slow_iou(one, other) for other in dense[1]] for one in dense[0]]
    for t, tp in zip(EXACT, score.tp.tolist(), strict=True):
        match = np.array([[iou > t for iou in line] for line in ious])
        assert tp == int(match[linear_sum_assignment(match, maximize=True)].sum())
    assert 0 < score.ap < 1
