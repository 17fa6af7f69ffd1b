from __future__ import annotations

import pytest

from sartorius_infer.manifest.manifest import Fusion, Manifest, ModelSpec
from sartorius_infer.manifest.rules import ClassRule, EdgeThresholds, Rules
from sartorius_infer.tuning.choices import IOUS, VOTES, Choice, choice_of, coordinates, starts

CLASSES = ("a", "b", "c")
START = Choice(
    Rules(
        per_class={"a": ClassRule(score=0.5, edge=EdgeThresholds(score=0.2, min_area=3)), "b": ClassRule()}
    ),
    Fusion(method="nmw", iou=0.45),
    (1.0, 0.0, 3.0),
)


def changes(one: Choice, other: Choice) -> list[str]:
    """The names of what differs."""
    before, after = one.rules.model_dump(), other.rules.model_dump()
    names = [k for k in before if k != "per_class" and before[k] != after[k]]
    names += [c for c in CLASSES if one.rules.of(c) != other.rules.of(c)]
    names += [f"weight {i}" for i in range(3) if one.weights[i] != other.weights[i]]
    return names + ["fusion"] * (one.fusion != other.fusion)


@pytest.mark.parametrize("fine", [False, True])
def test_every_setting_moves_alone(fine: bool) -> None:
    for name, moves in coordinates(CLASSES, 3, fine):
        candidates = list(moves(START))
        assert len(candidates) > 1, name
        moved = {change for candidate in candidates for change in changes(START, candidate)}
        assert len(moved) == 1, name
        assert all(len(changes(START, candidate)) <= 1 for candidate in candidates), name


def test_several_members_are_what_weights_and_fusion_are_for() -> None:
    alone, three = ({name for name, _ in coordinates(CLASSES, members)} for members in (1, 3))
    assert three - alone == {"weight 0", "weight 1", "weight 2", "fusion iou"}
    assert alone < three


def test_a_weight_is_relative_to_the_greatest_of_the_others() -> None:
    moves = dict(coordinates(CLASSES, 3))
    assert [c.weights for c in moves["weight 0"](START)] == [(3 * vote, 0.0, 3.0) for vote in VOTES]
    assert [c.weights for c in moves["weight 2"](START)] == [(1.0, 0.0, vote) for vote in VOTES]
    assert [c.fusion for c in moves["fusion iou"](START)] == [Fusion(method="nmw", iou=iou) for iou in IOUS]


def test_votes_that_were_all_tried_move_by_single_steps() -> None:
    moves = dict(coordinates(CLASSES, 3, again=True))
    assert [c.weights for c in moves["weight 0"](START)] == [(3 * vote, 0.0, 3.0) for vote in (0.25, 0.5)]
    assert [c.weights for c in moves["weight 1"](START)] == [(1.0, 3 * 0.25, 3.0)]
    assert [c.weights for c in moves["weight 2"](START)] == [(1.0, 0.0, 2.0), (1.0, 0.0, 4.0)]
    assert [c.fusion.iou for c in moves["fusion iou"](START)] == [0.4, 0.5]


def test_the_last_member_keeps_its_vote() -> None:
    alone = Choice(Rules(), weights=(0.0, 2.0))
    moves = dict(coordinates(CLASSES, 2))
    assert list(moves["weight 1"](alone)) == []
    assert len(list(moves["weight 0"](alone))) == len(VOTES)


def test_the_search_starts_from_the_surest_consensus_too() -> None:
    first, second = starts(START)
    assert (first, changes(START, second), second.rules.consensus) == (START, ["consensus"], "surest")
    assert starts(second) == [second]


def test_no_classes() -> None:
    assert coordinates((), fine=True) == []
    assert coordinates(())[0][0] == "consensus"


def test_what_a_manifest_says() -> None:
    models = tuple(ModelSpec(name=name, file=name, weight=w) for name, w in (("x", 1.0), ("y", 2.5)))
    manifest = Manifest(version=1, classes=CLASSES, models=models, fusion=Fusion(iou=0.7))
    assert choice_of(manifest, apart=True) == Choice(Rules(), Fusion(iou=0.7), (1.0, 2.5))
    assert choice_of(manifest, apart=False).weights == (1.0,)
