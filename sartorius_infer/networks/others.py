"""What a checkpoint of another network is, by its keys, for whoever asks why it was refused."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KINDS = (
    ("a Keypoint R-CNN: no mask head", (r"roi_heads\.keypoint",)),
    ("a Faster R-CNN: no mask head", (r"(rpn|proposal_generator)\.", r"roi_heads\.box_predictor\.")),
    ("a region proposal network without heads", (r"(rpn|proposal_generator)\.", r"backbone\.")),
    (
        "MMDetection's Mask2Former or another network of queries (DETR)",
        (r"(panoptic_head|bbox_head)\.", r"(panoptic_head|transformer|decoder)\.", r"backbone\."),
    ),
    ("an MMDetection network without its masks", (r"rpn_head\.", r"roi_head\.bbox_head\.", r"neck\.")),
    ("an MMDetection network without proposals (SOLO, CondInst)", (r"mask_head\.", r"neck\.")),
    ("MMDetection's YOLO", (r"bbox_head\.(multi_level|convs_pred|convs_bridge)", r"backbone\.")),
    ("an MMDetection detector", (r"(rpn_head|bbox_head|roi_head)\.", r"(neck|backbone)\.")),
    ("an SSD", (r"head\.classification_head\.module_list\.",)),
    ("an FCOS", (r"(head\.regression_head\.bbox_ctrness|head\.ctrness|fcos_head)\.",)),
    ("a RetinaNet: no mask head", (r"head\.(classification_head|cls_subnet|cls_score)\.",)),
    ("a YOLO", (r"(model\.)*\d+\.(conv|cv1|cv2|m|bn|dfl)\.",)),
    (
        "a transformer that finds objects (DETR, Mask2Former)",
        (r"(transformer|sem_seg_head|encoder)\.\S*decoder",),
    ),
    ("a Segment Anything model", (r"(image_encoder|mask_decoder|prompt_encoder)\.",)),
    ("a U-Net", (r"(encoder|down\d*|downs?)\.", r"(decoder|up\d*|ups?|segmentation_head)\.")),
    (
        "an image classifier",
        (
            r"(fc|classifier|head|heads|head\.fc)\.(\d+\.)?(weight|head)",
            r"[\w.]*(conv|blocks|layers|features|stem)",
        ),
    ),
    ("a body without a detector", (r"(layer1\.0\.conv1|features\.0\.0|patch_embed|stem)\.",)),
)
"""Words for networks, and what their keys hold: each pattern at the start of some key, or after a dot."""


def what_it_is(state: Iterable[str], most: int = 4) -> str:
    """A few words on what keys are of, and the first of them."""
    keys = sorted(state)
    some = ", ".join(key[:80] for key in keys[:most])
    words = next((words for words, patterns in _KINDS if _are_all_there(patterns, keys)), "")
    return f"{words} ({some}, ...)" if words else f"{some}, ..."


def _are_all_there(patterns: Iterable[str], keys: Iterable[str]) -> bool:
    return all(any(re.search(rf"(^|\.){pattern}", key) for key in keys) for pattern in patterns)
