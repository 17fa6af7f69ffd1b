"""What can be looked at: cells that some score threshold shows, from a submission or from predictions.

Cells claim pixels by falling score, so those that a threshold leaves are, within one class, the first of
those that no threshold leaves: one set of candidates answers for every threshold. Three cases are nearly,
not wholly, so: classes that compete for pixels (consensus off), edge thresholds below a class's own, and,
of the latter, an image in which only edge cells show, since nobody votes: those of two classes may share
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import Mask, run_pixels, split_label_map
from sartorius_infer.errors import TruthError
from sartorius_infer.types import Bool, Float32, Int64, Prediction

if TYPE_CHECKING:
    from sartorius_infer.evaluate.submissions import Found, FoundCell
    from sartorius_infer.manifest.rules import Consensus, Rules

UNTOLD = ("cell",)
"""The class of a submission.csv's cells, which tells none."""

_HIGHEST = 1.001


@dataclass(frozen=True, eq=False)
class Look:
    """Candidates of one image.

    masks   N cells' runs
    scores  float32 (N,), in [0, 1]
    labels  int64 (N,), 1..K
    fixed   bool (N,): border cells that reached edge thresholds of their own, whatever their class's
    votes   for each class float32 (V,): scores of all its boxes, which vote in the consensus
    """

    size_hw: tuple[int, int]
    masks: tuple[Mask, ...]
    scores: Float32
    labels: Int64
    fixed: Bool
    votes: tuple[Float32, ...] = ()


@dataclass(frozen=True, eq=False)
class Looks:
    """Candidates by image id, and the thresholds that they begin with.

    floors  a score threshold for each class
    rules   those that the cells obey, but for the score thresholds; None where nobody told them
    scored  whether scores are told, so that thresholds mean something
    """

    images: Mapping[str, Look]
    classes: tuple[str, ...]
    floors: tuple[float, ...]
    rules: Rules | None = None
    scored: bool = True

    @property
    def consensus(self) -> Consensus:
        """The rule by which an image's cells agree on one class."""
        return "off" if self.rules is None else self.rules.consensus


def looks_of_found(
    found: Found, sizes: Mapping[str, tuple[int, int]], classes: Sequence[str] | None = None
) -> Looks:
    """The cells of a submission, all shown; sizes (H, W) by id.

    classes: of COCO results, in the order of their categories; None for a submission.csv, which tells
    neither classes nor scores. Raises TruthError for a category that is none of the classes, or a score
    outside [0, 1].
    """
    names = UNTOLD if classes is None else tuple(classes)
    looks = {image_id: _look(image_id, cells, sizes[image_id], names) for image_id, cells in found.items()}
    return Looks(looks, names, (0.0,) * len(names), scored=classes is not None)


def _look(
    image_id: str, cells: Sequence[FoundCell], size_hw: tuple[int, int], classes: Sequence[str]
) -> Look:
    labels = np.array([cell.label for cell in cells], np.int64)
    for label in labels[(labels < 1) | (labels > len(classes))]:
        raise TruthError(f"{image_id}: expected categories 1..{len(classes)}, found {label}")
    scores = np.array([cell.score for cell in cells], np.float32)
    # Give or take the rounding of a mean, as predictions may; NaN is outside, and no JSON.
    for score in scores[~((scores >= 0) & (scores <= _HIGHEST))]:
        raise TruthError(f"{image_id}: expected scores in [0, 1], found {score!s}")
    return Look(size_hw, tuple(cell.mask for cell in cells), scores, labels, np.zeros(len(cells), np.bool_))


def looks_of_predictions(predictions: Iterable[Prediction], rules: Rules, classes: Sequence[str]) -> Looks:
    """What networks saw, by every rule but the score thresholds, which can be moved afterwards."""
    looks = {p.image_id: _candidates(p, rules, classes) for p in predictions}
    return Looks(looks, tuple(classes), _floors(rules, classes), rules)


def looks_of_saved(
    ids: Iterable[str], load: Callable[[str], Prediction], rules: Rules, classes: Sequence[str]
) -> Looks:
    """As `looks_of_predictions` of what `load` gives by id, each anew when it is asked for.

    So memory holds the candidates of one image, however many there are.
    """
    return Looks(_Saved(tuple(ids), load, rules, classes), tuple(classes), _floors(rules, classes), rules)


@dataclass(frozen=True, eq=False)
class _Saved(Mapping[str, Look]):
    """A look by id, made when it is asked for."""

    ids: tuple[str, ...]
    load: Callable[[str], Prediction]
    rules: Rules
    classes: Sequence[str]

    def __getitem__(self, image_id: str) -> Look:
        return _candidates(self.load(image_id), self.rules, self.classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def _floors(rules: Rules, classes: Sequence[str]) -> tuple[float, ...]:
    return tuple(rules.of(name).score for name in classes)


def _candidates(prediction: Prediction, rules: Rules, classes: Sequence[str]) -> Look:
    """Each class by itself where one alone can win, else all together."""
    from sartorius_infer.cells.claim import build_instances

    open_rules = rules.model_copy(
        update={
            "consensus": "off",
            "per_class": {name: rules.of(name).model_copy(update={"score": 0.0}) for name in classes},
        }
    )
    present = np.unique(prediction.labels)
    groups = (
        [prediction] if rules.consensus == "off" else [prediction[prediction.labels == k] for k in present]
    )
    parts = [build_instances(group, open_rules, classes) for group in groups]
    masks = [mask for part in parts for mask in split_label_map(part.label_map, len(part))]
    scores = np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)])
    labels = np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)])
    own = np.array([rules.edge.mode == "rule" and rules.of(name).edge is not None for name in classes])
    edge = np.concatenate([np.zeros(0, np.bool_), *(_on_edge(part, rules.edge.margin) for part in parts)])
    votes = tuple(prediction.scores[prediction.labels == k + 1] for k in range(len(classes)))
    return Look(prediction.size_hw, tuple(masks), scores, labels, edge & own[labels - 1], votes)


def _on_edge(cells: Instances, margin: int) -> Bool:
    """Whether each cell has a pixel within `margin` of the border, bool (N,)."""
    frame = np.ones(cells.label_map.shape, np.bool_)
    frame[margin + 1 : -margin - 1, margin + 1 : -margin - 1] = False
    touching = np.zeros(len(cells) + 1, np.bool_)
    touching[cells.label_map[frame]] = True
    return touching[1:]


def shown_masks(look: Look, looks: Looks) -> list[Mask]:
    """The runs of the visible candidates."""
    return [mask for mask, shows in zip(look.masks, visible(look, looks), strict=True) if shows]


def visible(look: Look, looks: Looks) -> Bool:
    """Which candidates show at the thresholds that `looks` begins with, bool (N,)."""
    floors = np.array(looks.floors, np.float32)
    shown = look.fixed | (look.scores >= floors[look.labels - 1])
    winner = _leader(look, looks, floors)
    return shown if winner is None else shown & (look.labels == winner)


def _leader(look: Look, looks: Looks, floors: Float32) -> int | None:
    if not look.votes:
        return None
    from sartorius_infer.cells.claim import leading_label

    labels = np.repeat(np.arange(1, len(look.votes) + 1), [len(scores) for scores in look.votes])
    return leading_label(np.concatenate(look.votes), labels, floors, looks.consensus)


def shown_instances(image_id: str, look: Look, looks: Looks) -> Instances:
    """The visible candidates as one label map; where some share a pixel the higher score has it."""
    cells = np.flatnonzero(visible(look, looks))
    cells = cells[np.argsort(look.scores[cells], kind="stable")]
    label_map = np.zeros(look.size_hw, np.int32)
    for number, cell in enumerate(cells.tolist(), start=1):
        label_map.ravel()[run_pixels(*look.masks[cell])] = number
    return Instances(image_id, label_map, look.scores[cells], look.labels[cells], looks.classes)
