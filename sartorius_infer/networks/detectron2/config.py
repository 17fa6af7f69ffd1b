"""What a Detectron2 config decides, as settings; what it asks for and nothing here builds is refused by name.

A key that `config_keys` does not know is refused too, unless it is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.preprocessing import Normalise, Preprocessing, Resize
from sartorius_infer.networks.detectron2.config_file import dotted_keys
from sartorius_infer.networks.detectron2.config_keys import (
    ADD_ONS,
    BASE_RCNN_FPN,
    IGNORED,
    IGNORED_SECTIONS,
    READ,
    RESNEST,
    SELDOM,
    WITHOUT_DEFAULT,
    Keys,
)
from sartorius_infer.networks.wording import quoted, reason_of

CONFIG_NAME = "config.yaml"

_OFF: tuple[Any, ...] = (None, False, "", [], {}, 0)

# The keys behind what `Detectron2Parts` finds to contradict each other.
_KEYS_OF = {
    "stages": "MODEL.FPN.IN_FEATURES",
    "depth": "MODEL.RESNETS.DEPTH",
    "rpn.levels": "MODEL.RPN.IN_FEATURES",
    "roi_levels": "MODEL.ROI_HEADS.IN_FEATURES",
    "anchors.sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
    "anchors.aspect_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "anchors": "MODEL.ANCHOR_GENERATOR",
    "radix": "MODEL.RESNETS.RADIX",
    "deformable_groups": "MODEL.RESNETS.DEFORM_NUM_GROUPS",
    "class_agnostic": "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "fc_channels": "MODEL.ROI_BOX_HEAD.NUM_FC",
}


@dataclass(frozen=True)
class Detectron2Config:
    """What a config decides; `class_count` is None where it does not say.

    `source` tells in words where the settings are from.
    """

    parts: Detectron2Parts
    preprocessing: Preprocessing
    class_count: int | None
    source: str


def read_config(path: Path) -> Detectron2Config:
    """The settings in a Detectron2 config file, dumped whole (`cfg.dump()`) or short.

    A short one says what differs: from `get_cfg()` where it is a whole network by itself, else from
    `Base-RCNN-FPN.yaml`; of a ResNeSt, from what its fork or add-on says. Raises CheckpointError that names
    the file and every key that cannot be honoured.
    """
    said = dotted_keys(path)
    alone = said.keys() >= WITHOUT_DEFAULT
    base, full = "get_cfg()", dict(said)
    if not alone:
        base, full = "Base-RCNN-FPN.yaml", BASE_RCNN_FPN | said
    if _is_resnest(full):
        base, full = f"{base} with ResNeSt's own defaults", RESNEST | full
    keys = _validate(path, full)
    try:
        parts = Detectron2Parts.model_validate(_parts(keys))
    except ValidationError as error:
        where, _, reason = error.errors()[0]["msg"].removeprefix("Value error, ").partition(": ")
        raise CheckpointError(f"{path}: {_KEYS_OF.get(where, where)}: {reason}") from None
    source = f"settings of {path.name}"
    if gaps := len(READ - said.keys() - SELDOM):
        source += f" and, for {gaps} keys that it leaves out, of Detectron2's {base}"
    return Detectron2Config(parts, _preprocessing(keys), keys.classes, source)


def _is_resnest(said: Mapping[str, Any]) -> bool:
    """Whether a config is of one of Detectron2's ResNeSt forks, or made with ResNeSt's add-on."""
    radix = said.get("MODEL.RESNETS.RADIX", 1)
    return said.get("MODEL.BACKBONE.NAME") in ADD_ONS or (isinstance(radix, int) and radix > 1)


def _validate(path: Path, said: Mapping[str, Any]) -> Keys:
    unknown = [
        quoted(key, value, "no key of Detectron2 0.6; delete it if it says nothing at test time")
        for key, value in said.items()
        if (key.startswith(("MODEL.", "TEST.")) or (key.startswith("INPUT.") and "TEST" in key))
        and key not in READ | IGNORED
        and not key.startswith(IGNORED_SECTIONS)
        and value not in _OFF
    ]
    try:
        keys = Keys.model_validate(said)
        faults = []
    except ValidationError as error:
        faults = list(dict.fromkeys(_fault(fault, said) for fault in error.errors()))
    if faults or unknown:
        raise CheckpointError(f"{path}: cannot honour {'; '.join(faults + unknown)}")
    return keys


def _fault(fault: Any, said: Mapping[str, Any]) -> str:
    key = str(fault["loc"][0])
    return quoted(key, said.get(key), reason_of(fault).replace("Field required", "expected more values"))


def _preprocessing(keys: Keys) -> Preprocessing:
    resize = Resize(
        shortest_edge=keys.shortest, longest_edge=keys.longest, interpolation="pil", rounding="nearest"
    ) if keys.shortest else None  # fmt: skip
    return Preprocessing(
        channel_order="bgr" if keys.colours == "BGR" else "rgb",
        input_range="0-255",
        normalise=(Normalise(mean=keys.pixel_mean, std=keys.pixel_std),),
        resize=resize,
    )


def _parts(keys: Keys) -> dict[str, Any]:
    """The tree of `Detectron2Parts`."""
    cascade = keys.roi_heads == "CascadeROIHeads"
    return {
        "body": {
            "depth": keys.depth,
            "groups": keys.groups,
            "width_per_group": keys.width,
            "radix": keys.radix,
            "stem_channels": keys.stem_channels,
            "res2_channels": keys.res2_channels,
            "stride_in_1x1": keys.stride_in_1x1,
            "norm": {"kind": keys.body_norm},
            "stages": keys.stages,
            "deformable": tuple(stage for stage, flag in enumerate(keys.deformable, start=2) if flag),
            "modulated": keys.modulated,
            "deformable_groups": keys.deformable_groups,
        },
        "fpn": {"channels": keys.fpn_channels, "norm": {"kind": keys.fpn_norm}, "fuse": keys.fuse},
        "anchors": {"sizes": keys.sizes, "aspect_ratios": keys.aspect_ratios, "offset": keys.offset},
        "rpn": {
            "levels": keys.rpn_levels,
            "conv_channels": tuple(None if width == -1 else width for width in keys.rpn_channels),
            "pre_nms_top_n": keys.pre_nms_top_n,
            "post_nms_top_n": keys.post_nms_top_n,
            "nms": keys.rpn_nms,
            "min_size": keys.min_size,
            "box_weights": keys.rpn_weights,
        },
        "roi_levels": keys.roi_levels,
        "box_head": {
            "pool": _pool(keys.box_size, keys.box_sampling, keys.box_pooler),
            "conv_channels": (keys.box_conv_channels,) * keys.box_convs,
            "fc_channels": (keys.box_fc_channels,) * keys.box_fcs,
            "norm": {"kind": keys.box_norm},
            "class_agnostic": keys.box_agnostic,
            "box_weights": keys.cascade_weights if cascade else (keys.box_weights,),
            "cascade": cascade,
            "scores": "sigmoid" if keys.sigmoid else "softmax",
        },
        "mask_head": {
            "pool": _pool(keys.mask_size, keys.mask_sampling, keys.mask_pooler),
            "conv_channels": (keys.mask_channels,) * keys.mask_convs,
            "hidden": keys.mask_channels,
            "norm": {"kind": keys.mask_norm},
            "class_agnostic": keys.mask_agnostic,
        },
        "detection": {
            "score": keys.score,
            "nms": keys.nms,
            "per_image": keys.per_image if keys.per_image >= 0 else None,
        },
    }


def _pool(size: int, sampling_ratio: int, kind: str) -> dict[str, Any]:
    return {"size": size, "sampling_ratio": sampling_ratio, "aligned": kind == "ROIAlignV2"}
