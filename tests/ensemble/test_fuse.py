"""Box fusion against plain readings of the papers, and on every kind of unusual input."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import numpy as np
import pytest
from factories import random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sartorius_infer.ensemble.fuse import Boxes, Fused, box_iou, fuse
from sartorius_infer.manifest.manifest import Fusion

SIZE_HW = (52, 70)
K = 3
METHODS = ("wbf", "nms", "soft_nms", "nmw")
CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
FUSIONS = [
    *(Fusion(method="wbf", iou=0.55, conf_type=c) for c in CONF_TYPES),
    *(Fusion(method=m, iou=0.5) for m in METHODS[1:]),
]

seeds = st.integers(0, 2**32 - 1)
weights = st.floats(1e-300, 1e300) | st.floats(0.01, 100)


def boxes_of(
    boxes: object, scores: Sequence[float], labels: Sequence[int] | None = None, weight: float = 1.0
) -> Boxes:
    return Boxes(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray([1] * len(scores) if labels is None else labels, np.int64),
        weight,
    )


def nothing(weight: float = 1.0) -> Boxes:
    return boxes_of([], [], weight=weight)


def clean_members(rng: np.random.Generator, count: int, member_weights: Sequence[float]) -> list[Boxes]:
    """Members that see the same few objects, each a little differently, inside the image."""
    height, width = SIZE_HW
    objects = random_boxes(rng, count, SIZE_HW, (8, 30))
    labels = rng.integers(1, K + 1, count)
    members = []
    for weight in member_weights:
        seen = rng.random(count) < 0.8
        boxes = (objects + rng.normal(0, 1.5, objects.shape))[seen].clip(0, (width, height, width, height))
        keep = (boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)
        members.append(
            boxes_of(boxes[keep], rng.uniform(0.1, 1, seen.sum())[keep], labels[seen][keep], weight)
        )
    return members


def unusual_members(rng: np.random.Generator, member_weights: Sequence[float]) -> list[Boxes]:
    """Members with boxes out of the image, without area, inside out, twice, or with a score of 0 or 1."""
    members = []
    for weight in member_weights:
        count = int(rng.integers(0, 9))
        boxes = random_boxes(rng, count, SIZE_HW, (1, 90))
        kinds = rng.integers(0, 9, count)
        boxes[kinds == 0, 2:] = boxes[kinds == 0, :2]
        boxes[kinds == 1, 3] = boxes[kinds == 1, 1]
        boxes[kinds == 2] += 200
        boxes[kinds == 3] = boxes[:1]
        boxes[kinds == 4] = np.array([[0, 0, 70, 52]], np.float32)
        boxes[kinds == 5] = boxes[kinds == 5][:, [2, 3, 0, 1]]
        scores = rng.choice([0, 1e-42, 1e-20, 0.5, 1, rng.random()], count)
        members.append(boxes_of(boxes, scores, rng.integers(1, K + 1, count), weight))
    return members


# The references: one box after the other, in float64, on pixels.


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


Voice = tuple[float, int, NDArray[np.float64]]
"""(weighted score, member, box)."""
Found = list[tuple[float, NDArray[np.float64]]]
"""[(score, box)]."""


def reference_wbf(voices: list[Voice], votes: list[float], fusion: Fusion) -> Found:
    """Solovyev et al., section 3; the confidence types are those of their published code."""
    clusters: list[list[Voice]] = []
    fused: list[NDArray[np.float64]] = []
    for voice in voices:
        overlaps = [iou(box, voice[2]) for box in fused]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] <= fusion.iou:
            best = len(fused)
            clusters.append([])
            fused.append(voice[2])
        clusters[best].append(voice)
        scores, _, boxes = zip(*clusters[best], strict=True)
        fused[best] = np.average(boxes, axis=0, weights=scores)
    return [(confidence(c, votes, fusion.conf_type), box) for c, box in zip(clusters, fused, strict=True)]


def confidence(cluster: list[Voice], votes: list[float], conf_type: str) -> float:
    scores, speakers = [v[0] for v in cluster], {v[1] for v in cluster}
    present = sum(votes[v[1]] for v in cluster)
    if conf_type == "avg":
        return np.mean(scores) * min(len(votes), len(cluster)) / sum(votes)
    if conf_type == "max":
        return max(scores) / max(votes)
    if conf_type == "box_and_model_avg":
        return sum(scores) / present * sum(votes[m] for m in speakers) / sum(votes)
    return sum(scores) / (present + sum(vote for m, vote in enumerate(votes) if m not in speakers))


def reference_nms(voices: list[Voice], votes: list[float], fusion: Fusion) -> Found:
    kept: Found = []
    for score, _, box in voices:
        if all(iou(box, other) <= fusion.iou for _, other in kept):
            kept.append((score / max(votes), box))
    return kept


def reference_soft_nms(voices: list[Voice], votes: list[float], fusion: Fusion) -> Found:
    """Bodla et al., figure 2, with the gaussian of equation 3."""
    left = [(score / max(votes), box) for score, _, box in voices]
    kept: Found = []
    while left:
        best = max(range(len(left)), key=lambda i: left[i][0])
        score, box = left.pop(best)
        kept.append((score, box))
        left = [(s * np.exp(-(iou(b, box) ** 2) / fusion.sigma), b) for s, b in left]
    return [(score, box) for score, box in kept if score > fusion.soft_score]


def reference_nmw(voices: list[Voice], votes: list[float], fusion: Fusion) -> Found:
    """Zhou et al., section 3.3: each box joins its closest leader, which it moves by score x IoU."""
    clusters: list[list[Voice]] = []
    for voice in voices:
        overlaps = [iou(cluster[0][2], voice[2]) for cluster in clusters]
        if overlaps and max(overlaps) > fusion.iou:
            clusters[int(np.argmax(overlaps))].append(voice)
        else:
            clusters.append([voice])
    found = []
    for cluster in clusters:
        leader = cluster[0]
        pull = [score * iou(box, leader[2]) for score, _, box in cluster]
        found.append((leader[0] / max(votes), np.average([v[2] for v in cluster], axis=0, weights=pull)))
    return found


REFERENCES: dict[str, Callable[[list[Voice], list[float], Fusion], Found]] = {
    "wbf": reference_wbf,
    "nms": reference_nms,
    "soft_nms": reference_soft_nms,
    "nmw": reference_nmw,
}


def reference_fuse(members: Sequence[Boxes], fusion: Fusion) -> list[tuple[float, int, NDArray[np.float64]]]:
    """(score, label, box), best first."""
    votes = [member.weight for member in members]
    found = []
    for label in range(1, K + 1):
        voices = [
            (float(m.scores[i]) * m.weight, index, m.boxes[i].astype(np.float64))
            for index, m in enumerate(members)
            for i in np.flatnonzero(m.labels == label)
        ]
        voices.sort(key=lambda voice: -voice[0])
        pairs = REFERENCES[fusion.method](voices, votes, fusion)
        found += [(min(score, 1.0), label, box) for score, box in pairs]
    return sorted(found, key=lambda item: -item[0])


def by_place(fused: Fused) -> NDArray[np.intp]:
    """An order that does not depend on tied scores."""
    return np.lexsort((fused.boxes[:, 0], fused.labels))


def assert_same(a: Fused, b: Fused, rtol: float = 1e-5) -> None:
    a, b = a[by_place(a)], b[by_place(b)]
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, rtol=rtol, atol=1e-6)


def fuse_silently(members: Sequence[Boxes], fusion: Fusion, size_hw: tuple[int, int] = SIZE_HW) -> Fused:
    with redirect_stdout(io.StringIO()) as printed:
        fused = fuse(members, size_hw, fusion)
    assert printed.getvalue() == ""
    return fused


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f"{f.method}-{f.conf_type}")
@settings(max_examples=15, deadline=None)
@given(seeds, st.lists(st.floats(0.1, 10), min_size=2, max_size=4))
def test_fusion_is_what_the_papers_say(fusion: Fusion, seed: int, votes: list[float]) -> None:
    members = clean_members(np.random.default_rng(seed), 8, votes)
    fused = fuse_silently(members, fusion)
    expected = reference_fuse(members, fusion)
    boxes = np.array([box for _, _, box in expected], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label, _ in expected], np.int64)
    scores = np.array([score for score, _, _ in expected], np.float32)
    assert_same(fused, Fused(boxes, scores, labels))


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f"{f.method}-{f.conf_type}")
@settings(max_examples=40, deadline=None)
@given(seeds, st.lists(weights, max_size=4))
def test_unusual_boxes_and_any_weights_give_sound_results(
    fusion: Fusion, seed: int, votes: list[float]
) -> None:
    members = unusual_members(np.random.default_rng(seed), votes)
    fused = fuse_silently(members, fusion)
    n = len(fused)
    assert (fused.boxes.dtype, fused.scores.dtype, fused.labels.dtype) == (np.float32, np.float32, np.int64)
    assert (fused.boxes.shape, fused.labels.shape) == ((n, 4), (n,))
    assert ((fused.scores >= 0) & (fused.scores <= 1)).all() and (np.diff(fused.scores) <= 0).all()
    assert set(fused.labels.tolist()) <= {int(label) for m in members for label in m.labels}
    if len(members) > 1:
        assert (fused.boxes >= 0).all() and (fused.boxes <= np.array([70, 52, 70, 52])).all()
        assert (fused.boxes[:, 2:] > fused.boxes[:, :2]).all()


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(FUSIONS), st.sampled_from((1e-30, 1e-3, 7.0, 1e30)))
def test_only_the_ratio_of_weights_counts(seed: int, fusion: Fusion, factor: float) -> None:
    members = clean_members(np.random.default_rng(seed), 6, (1.0, 2.0, 0.5))
    scaled = [Boxes(m.boxes, m.scores, m.labels, m.weight * factor) for m in members]
    assert_same(fuse(members, SIZE_HW, fusion), fuse(scaled, SIZE_HW, fusion))


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f"{f.method}-{f.conf_type}")
@settings(max_examples=8, deadline=None)
@given(seeds)
def test_the_order_of_members_does_not_matter(fusion: Fusion, seed: int) -> None:
    members = clean_members(np.random.default_rng(seed), 8, (1.0, 3.0, 0.5))
    assert_same(fuse(members, SIZE_HW, fusion), fuse(members[::-1], SIZE_HW, fusion))


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f"{f.method}-{f.conf_type}")
@pytest.mark.parametrize("copies", [2, 8])
def test_members_that_agree_change_nothing(fusion: Fusion, copies: int) -> None:
    boxes = [[2.5, 3, 20, 14], [30, 10, 44, 41], [50, 5, 70, 52]]
    member = boxes_of(boxes, [0.9, 0.6, 0.3], [1, 2, 1])
    fused = fuse_silently([member] * copies, fusion)
    if fusion.method == "soft_nms":  # which never merges: a copy decays to exp(-1 / sigma)
        fused = fused[fused.scores > 0.25]
    np.testing.assert_allclose(fused.boxes, member.boxes, atol=1e-4)
    np.testing.assert_allclose(fused.scores, member.scores, atol=1e-6)
    np.testing.assert_array_equal(fused.labels, member.labels)


@settings(max_examples=30)
@given(seeds, weights, st.sampled_from(FUSIONS))
def test_a_single_set_passes_unchanged(seed: int, weight: float, fusion: Fusion) -> None:
    member = unusual_members(np.random.default_rng(seed), [weight])[0]
    best_first = np.argsort(-member.scores, kind="stable")
    fused = fuse_silently([member], fusion)
    np.testing.assert_array_equal(fused.boxes, member.boxes[best_first])
    np.testing.assert_array_equal(fused.scores, member.scores[best_first])
    np.testing.assert_array_equal(fused.labels, member.labels[best_first])


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f"{f.method}-{f.conf_type}")
@pytest.mark.parametrize(
    "members",
    [
        [],
        [nothing()],
        [nothing()] * 3,
        [nothing(), boxes_of([[5, 5, 5, 9]], [0.9])],
        [boxes_of([[80, 60, 90, 70]], [0.9]), nothing()],
        [boxes_of([[5, 5, 8, 9]] * 2, [0.0, 0.0])] * 2,
    ],
    ids=["no member", "one", "all", "flat", "outside", "score 0"],
)
def test_nothing_to_fuse(members: list[Boxes], fusion: Fusion) -> None:
    fused = fuse_silently(members, fusion)
    assert fused.boxes.shape == (0, 4) and len(fused) == 0


def test_a_member_that_saw_nothing_still_counts_in_the_average() -> None:
    members = [boxes_of([[5, 5, 20, 20]], [0.8]), nothing()]
    assert fuse(members, SIZE_HW, Fusion(method="wbf")).scores.tolist() == pytest.approx([0.4])
    assert fuse(members, SIZE_HW, Fusion(conf_type="max")).scores.tolist() == pytest.approx([0.8])
    assert fuse(members, SIZE_HW, Fusion(method="nms")).scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("method", ["nms", "soft_nms", "nmw"])
def test_weights_do_not_shrink_the_scores_of_methods_that_choose(method: str) -> None:
    members = [boxes_of([[0, 0, 9, 9]], [0.8], weight=4.0), boxes_of([[30, 30, 40, 40]], [0.8], weight=2.0)]
    fused = fuse(members, SIZE_HW, Fusion(method=method))
    np.testing.assert_allclose(fused.scores, [0.8, 0.4], rtol=1e-6)


def test_soft_nms_returns_decayed_scores() -> None:
    members = [boxes_of([[0, 0, 10, 10]], [0.9]), boxes_of([[0, 0, 10, 5]], [0.8])]
    fused = fuse(members, SIZE_HW, Fusion(method="soft_nms", sigma=0.5))
    np.testing.assert_allclose(fused.scores, [0.9, 0.8 * np.exp(-0.25 / 0.5)], rtol=1e-6)
    assert len(fuse(members, SIZE_HW, Fusion(method="soft_nms", soft_score=0.5))) == 1


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f"{f.method}-{f.conf_type}")
def test_classes_never_meet(fusion: Fusion) -> None:
    box = [[10, 10, 30, 30]]
    fused = fuse([boxes_of(box, [0.8], [1]), boxes_of(box, [0.7], [3])], SIZE_HW, fusion)
    assert fused.labels.tolist() == [1, 3]
    np.testing.assert_allclose(fused.boxes, box * 2, atol=1e-4)


def test_boxes_are_cut_at_the_image_before_they_fuse() -> None:
    members = [boxes_of([[-10, -4, 20, 20]], [0.8]), boxes_of([[0, 0, 20, 20]], [0.8])]
    np.testing.assert_allclose(fuse(members, SIZE_HW, Fusion()).boxes, [[0, 0, 20, 20]], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_boxes_on_the_border_stays_in_the_image(method: str) -> None:
    rng = np.random.default_rng(0)
    for count in range(100):
        boxes = [[[690 - rng.random(), 500 - rng.random(), 704, 520]] for _ in range(2 + count % 7)]
        members = [boxes_of(box, rng.random(1), weight=rng.random()) for box in boxes]
        fused = fuse(members, (520, 704), Fusion(method=method))
        assert (fused.boxes <= [704, 520, 704, 520]).all()


@pytest.mark.parametrize("conf_type", CONF_TYPES)
def test_a_heavy_member_that_repeats_itself_is_not_surer_than_sure(conf_type: str) -> None:
    twice = boxes_of([[5, 5, 30, 30]] * 2, [0.9, 0.8], weight=10.0)
    fused = fuse([twice, nothing(weight=1.0)], SIZE_HW, Fusion(conf_type=conf_type))
    assert len(fused) == 1 and 0.7 < fused.scores[0] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_skip_score_is_inclusive(method: str) -> None:
    members = [boxes_of([[0, 0, 9, 9], [30, 30, 40, 40]], [0.35, 0.3499], weight=w) for w in (1, 1)]
    fused = fuse(members, SIZE_HW, Fusion(method=method, skip_score=0.35))
    assert len(fused) >= 1 and (fused.boxes[:, 0] < 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_best_boxes_of_each_class_take_part(method: str) -> None:
    rng = np.random.default_rng(1)
    members = [
        boxes_of(random_boxes(rng, 40, SIZE_HW, (5, 9)), rng.random(40), rng.integers(1, 3, 40))
        for _ in range(3)
    ]
    limited = Fusion(method=method, max_boxes=25)
    lowest = {
        label: np.sort(np.concatenate([m.scores[m.labels == label] for m in members]))[-25]
        for label in (1, 2)
    }
    cut = []
    for m in members:
        keep = m.scores >= np.array([lowest[int(label)] for label in m.labels])
        cut.append(Boxes(m.boxes[keep], m.scores[keep], m.labels[keep]))
    a, b = fuse(members, SIZE_HW, limited), fuse(cut, SIZE_HW, Fusion(method=method))
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize("method", METHODS)
def test_tied_scores_do_not_pass_the_limit(method: str) -> None:
    rng = np.random.default_rng(2)
    members = [boxes_of(random_boxes(rng, 30, SIZE_HW, (2, 3)), [0.5] * 30) for _ in range(2)]
    assert len(fuse(members, SIZE_HW, Fusion(method=method, max_boxes=10))) <= 10


@pytest.mark.parametrize("method", METHODS)
def test_thousands_of_boxes(method: str) -> None:
    rng = np.random.default_rng(3)
    objects = random_boxes(rng, 250, (520, 704), (10, 40))
    members = [
        boxes_of(objects + rng.normal(0, 1, objects.shape), rng.uniform(0.3, 1, 250)) for _ in range(8)
    ]
    fused = fuse_silently(members, Fusion(method=method), (520, 704))
    assert (np.diff(fused.scores) <= 0).all()
    # soft_nms merges nothing; the others leave about one box for each object.
    assert len(fused) > 1000 if method == "soft_nms" else 200 < len(fused) < 350


def test_identical_boxes_by_the_dozen() -> None:
    member = boxes_of([[5, 5, 30, 30]] * 60, [0.5] * 60)
    for fusion in FUSIONS:
        fused = fuse_silently([member, member], fusion)
        assert len(fused) == 1 or fusion.method == "soft_nms"
        np.testing.assert_allclose(fused.boxes[0], [5, 5, 30, 30], atol=1e-3)


@given(seeds)
def test_box_iou(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.concatenate([m.boxes for m in unusual_members(rng, [1] * 2)]) for _ in range(2))
    a, b = (boxes[(boxes[:, 2:] >= boxes[:, :2]).all(axis=1)] for boxes in (a, b))
    found = box_iou(a, b)
    assert found.dtype == np.float32 and found.shape == (len(a), len(b))
    expected = np.array([[iou(x, y) for y in b.tolist()] for x in a.tolist()]).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("keep", [np.array([True, False, True]), np.array([2, 0]), np.zeros(3, bool)])
def test_a_box_set_is_filtered_as_one(keep: NDArray[np.bool_ | np.int64]) -> None:
    boxes = np.array([[0, 0, 5, 5], [9, 9, 14, 14], [20, 9, 30, 14]])
    fused = fuse([boxes_of(boxes, [0.9, 0.8, 0.7], [1, 2, 3])], SIZE_HW, Fusion())
    some = fused[keep]
    assert len(some) == len(np.arange(3)[keep])
    np.testing.assert_array_equal(some.boxes, boxes[keep])
    np.testing.assert_array_equal(some.labels, np.array([1, 2, 3])[keep])


@pytest.mark.parametrize("method", METHODS)
def test_lists_of_different_lengths_are_an_error_not_an_exit(method: str) -> None:
    member = boxes_of([[0, 0, 9, 9]] * 3, [0.9] * 3)
    with pytest.raises((ValueError, IndexError)):
        fuse([member, Boxes(member.boxes, member.scores[:2], member.labels)], SIZE_HW, Fusion(method=method))


# Boxes of no class.

CORT, ASTRO = 3, 2


def test_a_box_of_no_class_takes_that_of_the_surest_box_on_it() -> None:
    known = boxes_of(
        [[0, 0, 20, 20], [1, 0, 20, 20], [40, 0, 60, 20], [0, 30, 20, 50]], [0.9, 0.4, 0.5, 0.8], [3, 2, 2, 3]
    )
    none = boxes_of([[0, 1, 20, 20], [40, 1, 60, 20], [30, 30, 50, 50]], [0.6, 0.3, 0.7], [0, 0, 0])
    found = fuse([known, none], SIZE_HW, Fusion(method="nms", iou=0.6))
    at = {tuple(box): label for box, label in zip(found.boxes.round().tolist(), found.labels, strict=True)}
    assert at[40, 0, 60, 20] == ASTRO and (40, 1, 60, 20) not in at
    assert at[0, 0, 20, 20] == CORT and (0, 1, 20, 20) not in at
    assert at[30, 30, 50, 50] == CORT  # on nobody's box: the image's leading class


@given(seeds)
def test_boxes_of_no_class_change_no_vote(seed: int) -> None:
    """Far from all others they are of the class that led before, whatever their scores and weight."""
    rng = np.random.default_rng(seed)
    known = boxes_of(random_boxes(rng, 9, (40, 40), (4, 12)), rng.random(9), rng.integers(1, K + 1, 9))
    none = boxes_of([[60, 45, 69, 51]] * 3, rng.random(3), [0] * 3, weight=50.0)
    cubes = np.bincount(known.labels, weights=known.scores.astype(np.float64) ** 3, minlength=K + 1)
    far = fuse([known, none], SIZE_HW, Fusion(method="nms", iou=0.6))
    labels = far.labels[far.boxes[:, 0] > 50]
    assert len(labels) > 0 and (labels == cubes.argmax()).all()


def test_without_any_class_it_is_the_first() -> None:
    none = boxes_of([[0, 0, 9, 9]], [0.5], [0])
    assert fuse([none], SIZE_HW, Fusion()).labels.tolist() == [1]
    assert fuse([none, none], SIZE_HW, Fusion()).labels.tolist() == [1]
    assert len(fuse([boxes_of([], [], []), boxes_of([], [], [])], SIZE_HW, Fusion())) == 0
