"""What the keys of an MMDetection checkpoint tell: whether it is one, its class count, its own tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.mmdet import MmdetParts
from sartorius_infer.networks.mmdet.bodies import current_key

if TYPE_CHECKING:
    from sartorius_infer.manifest.manifest import ModelSpec

ARCHITECTURE = "mmdet_rcnn"

_CLASSIFIER = re.compile(r"^roi_head\.bbox_head\.(\d+\.)?fc_cls\.weight$")

# Statistics and counters that no test reads, and what was averaged beside the averages of MMDetection 2.
_LEFTOVERS = re.compile(r"^ema_\w+$|\.num_batches_tracked$|^data_preprocessor\.")


def is_mmdet(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of an MMDetection network with proposals and masks."""
    heads = ("backbone.", "rpn_head.rpn_cls.", "roi_head.bbox_head.", "roi_head.mask_head.")
    return all(any(key.startswith(head) for key in state) for head in heads)


def foreground_classes(state: Mapping[str, Tensor], file: str) -> int:
    """Number of classes without background, from the classifier's rows."""
    for key, tensor in state.items():
        if _CLASSIFIER.match(key) and tensor.ndim == 2 and tensor.shape[0] > 1:
            return int(tensor.shape[0]) - 1
    raise CheckpointError(
        f"{file}: expected roi_head.bbox_head.fc_cls.weight of (classes + 1, channels), found none"
    )


def canonical_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors, under the names of today."""
    return {current_key(key): tensor for key, tensor in state.items() if not _LEFTOVERS.search(key)}


def parts_of(spec: ModelSpec) -> MmdetParts:
    """The settings of a manifest entry; raises CheckpointError where it has none."""
    if spec.mmdet is None:
        raise CheckpointError(
            f"{spec.file}: an MMDetection checkpoint: expected its settings as `mmdet` in the manifest "
            "entry, found none; `sartorius_infer import` writes them"
        )
    return spec.mmdet
