"""What the search remembers against what the rules and the fusion give, computed anew each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from annotated import CLASSES, HIDDEN, SIZE, any_rules, examples, plain_scores
from factories import empty_prediction

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.tuning.choices import Choice
from sartorius_infer.tuning.trials import Example, Scorer


def any_choice(rng: np.random.Generator, members: int) -> Choice:
    """Of few, so that the same comes again: one setting of the rules, or one of the vote, may differ."""
    weights = tuple(float(w) for w in rng.choice([0, 0.5, 1, 2], members))
    weights = weights if any(weights) else (1.0,) * members
    fusion = Fusion(method=("wbf", "nms")[rng.integers(2)], iou=(0.3, 0.6)[rng.integers(2)])
    return Choice(any_rules(np.random.default_rng(rng.integers(4))), fusion, weights)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kept_bytes", [0, 200_000, 1 << 30])
def test_what_is_remembered_is_what_the_choice_gives(members: int, kept_bytes: int) -> None:
    some, rng = examples(5, members), np.random.default_rng(1)
    scorer = Scorer(some, CLASSES, kept_bytes)
    assert scorer.members == members
    for _ in range(40):
        choice = any_choice(rng, members)
        if rng.random() < 0.5:
            choice = replace(choice, rules=any_rules(rng))
        assert scorer(choice).tolist() == plain_scores(some, choice)
    assert scorer(Choice(HIDDEN, weights=(1.0, *[0.0] * (members - 1)))).tolist() == [1.0] * len(some)


def test_a_candidate_costs_what_it_changes() -> None:
    some = examples(5, members=2)
    scorer = Scorer(some, CLASSES)
    start = Choice(HIDDEN, weights=(1.0, 1.0))
    scorer(start)
    assert (scorer.combined, scorer.evaluated) == (5, 5)
    scorer(start)
    scorer(replace(start, weights=(3.0, 3.0)))
    assert (scorer.combined, scorer.evaluated) == (5, 5), "only ratios count"
    rules = HIDDEN.model_copy(update={"overlap_survival": 0.1})
    scorer(replace(start, rules=rules))
    assert (scorer.combined, scorer.evaluated) == (5, 10), "rules do not combine again"
    scorer(replace(start, weights=(1.0, 2.0)))
    assert (scorer.combined, scorer.evaluated) == (10, 15)
    for iou in (0.2, 0.4):
        scorer(Choice(HIDDEN, Fusion(iou=iou), (1.0, 0.0)))
    assert (scorer.combined, scorer.evaluated) == (15, 20), "a member alone has nothing to fuse"
    assert scorer(start, np.array([3, 1])).tolist() == scorer(start)[[3, 1]].tolist()
    assert scorer.evaluated == 20


@pytest.mark.parametrize("fits", [0, 2, 5])
def test_memory_is_bounded_and_rounds_over_the_images_still_gain(fits: int) -> None:
    some = examples(5)
    one = Scorer(some, CLASSES)
    one(Choice(HIDDEN))
    sizes = [made.nbytes for made in one._store.kept.values()]
    scorer = Scorer(some, CLASSES, sum(sizes[:fits]))
    for survival in (0.1, 0.2, 0.3):
        scorer(Choice(HIDDEN.model_copy(update={"overlap_survival": survival})))
        assert scorer._store.used <= sum(sizes[:fits])
        assert scorer._store.used == sum(made.nbytes for made in scorer._store.kept.values())
    assert scorer.combined <= 5 + 2 * (5 - fits)


def test_what_another_choice_left_makes_room() -> None:
    some = examples(5, members=2)
    one = Scorer(some, CLASSES)
    one(Choice(HIDDEN, weights=(1.0, 0.0)))
    scorer = Scorer(some, CLASSES, one._store.used)
    for weights in ((0.0, 1.0), (1.0, 0.0)):
        scorer(Choice(HIDDEN, weights=weights))
    scorer(
        Choice(any_rules(np.random.default_rng(0)).model_copy(update={"paste": "exact"}), weights=(1.0, 0.0))
    )
    assert scorer.combined == 10


def test_no_images_and_no_cells() -> None:
    assert Scorer([], CLASSES)(Choice(HIDDEN)).shape == (0,)
    nothing = replace(empty_prediction(SIZE), image_id="i")
    scorer = Scorer([Example((nothing, nothing), TrueImage("i", SIZE, "", ()))], CLASSES)
    assert scorer(Choice(HIDDEN, weights=(1.0, 1.0))).tolist() == [1.0]
    assert scorer.labels(Choice(HIDDEN, weights=(1.0, 1.0))) == set()


def test_what_does_not_belong_together() -> None:
    (example,) = examples(1)
    (seen,) = example.members
    with pytest.raises(TruthError, match=r"^i0: .*60 x 80.*59 x 80$"):
        Example((seen, replace(seen, size_hw=(59, 80))), example.truth)
    with pytest.raises(TruthError, match="found other"):
        Example((replace(seen, image_id="other"),), example.truth)
    with pytest.raises(TruthError, match="same members"):
        Scorer([example, *examples(1, members=2)], CLASSES)
