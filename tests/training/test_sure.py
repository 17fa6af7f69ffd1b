"""What is sure: scores, networks that agree, images with enough of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import CLASSES, empty_prediction, random_prediction

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.competition import default_rules
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.member import Member
from sartorius_infer.manifest.manifest import Manifest, ModelSpec
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.types import CellImage, Prediction
from training.errors import TrainingError
from training.seen import Look
from training.sure import Limits, judge, sure_scores

SIZE_HW = (48, 64)
LOOSE = Rules(per_class={name: ClassRule(score=0.1) for name in CLASSES}, overlap_survival=0.3)
EVERY = dict.fromkeys(CLASSES, 0.0)


def _member(name: str, knows: Sequence[int] = (1, 2, 3), count: int | None = 3) -> Member:
    network: Any = SimpleNamespace(class_count=count)
    known = torch.tensor([0, *(int(label in knows) for label in (1, 2, 3))])
    return Member(name, network, 1.0, torch.zeros(4, dtype=torch.int64), known)


def _ensemble(*members: Member) -> Ensemble:
    models = tuple(ModelSpec(name=m.name, file=f"{m.name}.pth") for m in members)
    manifest = Manifest(version=1, classes=CLASSES, models=models, rules=LOOSE)
    return Ensemble(manifest, members, torch.device("cpu"))


def _look(together: Prediction, *alone: Prediction) -> Look:
    return Look(CellImage("image", np.zeros(SIZE_HW, np.uint8)), together, list(alone))


def _cells(seed: int, count: int = 8) -> Prediction:
    return random_prediction(np.random.default_rng(seed), count, SIZE_HW)


def test_sure_is_two_fifths_of_the_way_from_the_rules_to_one_unless_told() -> None:
    rules = default_rules(CLASSES)
    expected = {"shsy5y": 0.49, "astro": 0.61, "cort": 0.73}
    assert sure_scores(rules, CLASSES, None) == pytest.approx(expected)
    assert sure_scores(rules, CLASSES, {"cort": 0.55, "astro": 1}) == pytest.approx(
        expected | {"cort": 0.55, "astro": 1}
    )
    for given, message in (
        ({"cell": 0.5}, "--sure cell=0.5: expected one of the classes shsy5y, astro, cort"),
        ({"cort": 0.5}, "--sure cort=0.5: expected a score from the rules' threshold, 0.55, to 1"),
        ({"cort": 1.5}, "--sure cort=1.5: expected a score from"),
        ({"cort": float("nan")}, "--sure cort=nan: expected a score from"),
    ):
        with pytest.raises(TrainingError) as error:
            sure_scores(rules, CLASSES, given)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_scores_alone_decide_where_one_network_speaks(count: int) -> None:
    seen = _cells(1, count) if count else empty_prediction(SIZE_HW)
    scores = {"shsy5y": 0.3, "astro": 0.6, "cort": 0.9}
    judged = judge(_look(seen), _ensemble(_member("a")), Limits(scores, cells=0, share=0))
    cells = build_instances(seen, LOOSE, CLASSES)
    assert np.array_equal(judged.cells.label_map, cells.label_map)
    told = zip(cells.scores.tolist(), cells.labels.tolist(), strict=True)
    expected = [score >= np.float32(scores[CLASSES[label - 1]]) for score, label in told]
    assert judged.sure.tolist() == expected


@pytest.mark.parametrize("agree", [None, 1, 2, 3])
def test_networks_agree_where_their_masks_do(agree: int | None) -> None:
    """Against IoUs of whole masks, one pair after another; the second knows two classes, the third none."""
    members = [_member("a"), _member("b", knows=(1, 3)), _member("c", count=None)]
    verdicts: set[bool] = set()
    for seed in range(6):
        together = _cells(seed)
        order = np.arange(len(together))
        alone = [together[order % 3 > 0], together[order % 2 == 0], together[order > 2]]
        judged = judge(_look(together, *alone), _ensemble(*members), Limits(EVERY, agree, 0, 0))
        expected = []
        for i, label in enumerate(judged.cells.labels.tolist()):
            says = found = 0
            for member, seen in zip(members, alone, strict=True):
                if not member.from_manifest[label]:
                    continue
                says += 1
                own = build_instances(seen, LOOSE, CLASSES)
                for j, other in enumerate(own.labels.tolist()):
                    one, two = judged.cells.mask(i), own.mask(j)
                    same = member.network.class_count is None or other == label
                    found += bool(same and 2 * (one & two).sum() > (one | two).sum())
            expected.append(found >= (says // 2 + 1 if agree is None else min(agree, says)))
        assert judged.sure.tolist() == expected
        verdicts |= set(expected)
    assert verdicts == {False, True}


def test_a_network_of_another_opinion_on_the_class_does_not_agree() -> None:
    seen = _cells(3)
    other = Prediction("image", SIZE_HW, seen.boxes, seen.scores, seen.labels % 3 + 1, seen.masks)
    limits = Limits(EVERY, cells=0, share=0)
    assert judge(_look(seen, seen, seen), _ensemble(_member("a"), _member("b")), limits).sure.all()
    assert not judge(_look(seen, seen, other), _ensemble(_member("a"), _member("b")), limits).sure.any()
    classless = _ensemble(_member("a"), _member("b", count=None))
    assert judge(_look(seen, seen, other), classless, limits).sure.all()


def test_images_with_little_that_is_sure_are_left_out() -> None:
    seen, ensemble = _cells(1, 12), _ensemble(_member("a"))
    cells = build_instances(seen, LOOSE, CLASSES)
    count = len(cells)
    half = dict.fromkeys(CLASSES, float(np.sort(cells.scores)[count // 2]))
    sure = count - count // 2
    assert judge(_look(seen), ensemble, Limits(half, None, sure, sure / count)).fault == ""
    found = judge(_look(seen), ensemble, Limits(half, None, sure + 1, 0)).fault
    assert found == f"with fewer than {sure + 1} sure cells"
    assert (
        judge(_look(seen), ensemble, Limits(half, None, 0, 0.9)).fault
        == "with less than 90% of their cells sure"
    )
    none = judge(_look(empty_prediction(SIZE_HW)), ensemble, Limits(half, None, 0, 0))
    assert (none.fault, len(none.cells), none.sure.shape) == ("without a cell", 0, (0,))
