"""Reading a Detectron2 config: every key that decides something at test time, and no other.

`_Keys` is the whole list. A key that stands there with one possible value is a part that is not built
otherwise; any other value is refused by the key's name. What is not there is a training setting, known
by name in `_IGNORED`, or unknown, and then refused too unless it is switched off.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sartorius_infer.errors import CheckpointError, first_line
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.preprocessing import Normalise, Preprocessing, Resize
from sartorius_infer.manifest.settings import Count, Fraction, Positive, merge

CONFIG_NAME = "config.yaml"

_NORMS = {
    "": "none",
    "FrozenBN": "frozen",
    "GN": "group",
    **dict.fromkeys(("BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"), "batch"),
}


def _features(letters: str, last: int) -> BeforeValidator:
    """Feature names such as ["res2", "res3"] as their numbers, from 2 to `last`."""

    def numbers(value: Any) -> Any:
        names = [f"{letters}{n}" for n in range(2, last + 1)]
        if isinstance(value, (list, tuple)) and all(name in names for name in value):
            return [names.index(name) + 2 for name in value]
        raise ValueError(f"expected names of {', '.join(names)}")

    return BeforeValidator(numbers)


def _norm(value: Any) -> Any:
    if not isinstance(value, str) or value not in _NORMS:
        raise ValueError(f"expected one of {', '.join(map(repr, _NORMS))}")
    return _NORMS[value]


def _limit(value: int) -> int:
    if value == 0:
        raise ValueError("expected 1 or more, or -1 for no limit")
    return value


_Norm = Annotated[Literal["none", "frozen", "group", "batch"], BeforeValidator(_norm)]
_Levels = Annotated[tuple[int, ...], Field(min_length=1), _features("p", 6)]
_Stages = Annotated[tuple[int, ...], Field(min_length=1), _features("res", 5)]


def _nested(value: Any) -> Any:
    """A list of numbers is one for all levels, as Detectron2 reads it."""
    flat = isinstance(value, (list, tuple)) and value and not isinstance(value[0], (list, tuple))
    return [value] if flat else value


_List = Annotated[tuple[Positive, ...], Field(min_length=1)]
_Lists = Annotated[tuple[_List, ...], Field(min_length=1), BeforeValidator(_nested)]
_Weights = tuple[Positive, Positive, Positive, Positive]
_Colour = tuple[float, float, float]
_Pooler = Literal["ROIAlignV2", "ROIAlign"]
_Zero = Annotated[int, Field(ge=0)]
_Layers = Annotated[int, Field(ge=0, le=100)]


class _Keys(BaseModel):
    """Keys with a say at test time, with the defaults of Detectron2's own `get_cfg()`."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    version: Literal[2] = Field(2, alias="VERSION")
    meta_architecture: Literal["GeneralizedRCNN"] = Field("GeneralizedRCNN", alias="MODEL.META_ARCHITECTURE")
    mask_on: Literal[True] = Field(True, alias="MODEL.MASK_ON")
    keypoint_on: Literal[False] = Field(False, alias="MODEL.KEYPOINT_ON")
    load_proposals: Literal[False] = Field(False, alias="MODEL.LOAD_PROPOSALS")
    pixel_mean: _Colour = Field((103.53, 116.28, 123.675), alias="MODEL.PIXEL_MEAN")
    pixel_std: tuple[Positive, Positive, Positive] = Field((1.0, 1.0, 1.0), alias="MODEL.PIXEL_STD")
    colours: Literal["BGR", "RGB"] = Field("BGR", alias="INPUT.FORMAT")
    shortest: _Zero = Field(800, alias="INPUT.MIN_SIZE_TEST")
    longest: Count = Field(1333, alias="INPUT.MAX_SIZE_TEST")

    backbone: Literal["build_resnet_fpn_backbone"] = Field(alias="MODEL.BACKBONE.NAME")
    depth: Literal[18, 34, 50, 101, 152] = Field(50, alias="MODEL.RESNETS.DEPTH")
    groups: Count = Field(1, alias="MODEL.RESNETS.NUM_GROUPS")
    width_per_group: Count = Field(64, alias="MODEL.RESNETS.WIDTH_PER_GROUP")
    stem_channels: Count = Field(64, alias="MODEL.RESNETS.STEM_OUT_CHANNELS")
    res2_channels: Count = Field(256, alias="MODEL.RESNETS.RES2_OUT_CHANNELS")
    stride_in_1x1: bool = Field(True, alias="MODEL.RESNETS.STRIDE_IN_1X1")
    body_norm: _Norm = Field("frozen", alias="MODEL.RESNETS.NORM")
    dilation: Literal[1] = Field(1, alias="MODEL.RESNETS.RES5_DILATION")
    deformable: tuple[Literal[False], ...] = Field((), alias="MODEL.RESNETS.DEFORM_ON_PER_STAGE")
    resnest_radix: Literal[1] = Field(1, alias="MODEL.RESNETS.RADIX")

    stages: _Stages = Field(alias="MODEL.FPN.IN_FEATURES")
    fpn_channels: Count = Field(256, alias="MODEL.FPN.OUT_CHANNELS")
    fpn_norm: _Norm = Field("none", alias="MODEL.FPN.NORM")
    fuse: Literal["sum", "avg"] = Field("sum", alias="MODEL.FPN.FUSE_TYPE")

    anchor_generator: Literal["DefaultAnchorGenerator"] = Field(
        "DefaultAnchorGenerator", alias="MODEL.ANCHOR_GENERATOR.NAME"
    )
    sizes: _Lists = Field(((32.0, 64.0, 128.0, 256.0, 512.0),), alias="MODEL.ANCHOR_GENERATOR.SIZES")
    aspect_ratios: _Lists = Field(((0.5, 1.0, 2.0),), alias="MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
    offset: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, alias="MODEL.ANCHOR_GENERATOR.OFFSET")

    proposal_generator: Literal["RPN"] = Field("RPN", alias="MODEL.PROPOSAL_GENERATOR.NAME")
    min_size: Annotated[float, Field(ge=0)] = Field(0.0, alias="MODEL.PROPOSAL_GENERATOR.MIN_SIZE")
    rpn_head: Literal["StandardRPNHead"] = Field("StandardRPNHead", alias="MODEL.RPN.HEAD_NAME")
    rpn_levels: _Levels = Field(alias="MODEL.RPN.IN_FEATURES")
    rpn_channels: Annotated[tuple[Count | Literal[-1], ...], Field(min_length=1)] = Field(
        (-1,), alias="MODEL.RPN.CONV_DIMS"
    )
    rpn_weights: _Weights = Field((1.0, 1.0, 1.0, 1.0), alias="MODEL.RPN.BBOX_REG_WEIGHTS")
    pre_nms_top_n: Count = Field(6000, alias="MODEL.RPN.PRE_NMS_TOPK_TEST")
    post_nms_top_n: Count = Field(1000, alias="MODEL.RPN.POST_NMS_TOPK_TEST")
    rpn_nms: Fraction = Field(0.7, alias="MODEL.RPN.NMS_THRESH")

    roi_heads: Literal["StandardROIHeads", "CascadeROIHeads"] = Field(alias="MODEL.ROI_HEADS.NAME")
    roi_levels: _Levels = Field(alias="MODEL.ROI_HEADS.IN_FEATURES")
    classes: Count | None = Field(None, alias="MODEL.ROI_HEADS.NUM_CLASSES")
    score: Fraction = Field(0.05, alias="MODEL.ROI_HEADS.SCORE_THRESH_TEST")
    nms: Fraction = Field(0.5, alias="MODEL.ROI_HEADS.NMS_THRESH_TEST")
    per_image: Annotated[int, AfterValidator(_limit)] = Field(100, alias="TEST.DETECTIONS_PER_IMAGE")
    tta: Literal[False] = Field(False, alias="TEST.AUG.ENABLED")

    box_head: Literal["FastRCNNConvFCHead"] = Field(alias="MODEL.ROI_BOX_HEAD.NAME")
    box_size: Count = Field(14, alias="MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION")
    box_sampling: _Zero = Field(0, alias="MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO")
    box_pooler: _Pooler = Field("ROIAlignV2", alias="MODEL.ROI_BOX_HEAD.POOLER_TYPE")
    box_fcs: _Layers = Field(0, alias="MODEL.ROI_BOX_HEAD.NUM_FC")
    box_fc_channels: Count = Field(1024, alias="MODEL.ROI_BOX_HEAD.FC_DIM")
    box_convs: _Layers = Field(0, alias="MODEL.ROI_BOX_HEAD.NUM_CONV")
    box_conv_channels: Count = Field(256, alias="MODEL.ROI_BOX_HEAD.CONV_DIM")
    box_norm: _Norm = Field("none", alias="MODEL.ROI_BOX_HEAD.NORM")
    box_agnostic: bool = Field(False, alias="MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")
    box_weights: _Weights = Field((10.0, 10.0, 5.0, 5.0), alias="MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")
    sigmoid: bool = Field(False, alias="MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE")
    cascade_weights: tuple[_Weights, ...] = Field(
        ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        alias="MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS",
    )

    mask_head: Literal["MaskRCNNConvUpsampleHead"] = Field(
        "MaskRCNNConvUpsampleHead", alias="MODEL.ROI_MASK_HEAD.NAME"
    )
    mask_size: Count = Field(14, alias="MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION")
    mask_sampling: _Zero = Field(0, alias="MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO")
    mask_pooler: _Pooler = Field("ROIAlignV2", alias="MODEL.ROI_MASK_HEAD.POOLER_TYPE")
    mask_convs: _Layers = Field(0, alias="MODEL.ROI_MASK_HEAD.NUM_CONV")
    mask_channels: Count = Field(256, alias="MODEL.ROI_MASK_HEAD.CONV_DIM")
    mask_norm: _Norm = Field("none", alias="MODEL.ROI_MASK_HEAD.NORM")
    mask_agnostic: bool = Field(False, alias="MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK")


# Keys that not every version of Detectron2 has.
_SELDOM = {
    *("MODEL.RESNETS.RADIX", "MODEL.ANCHOR_GENERATOR.OFFSET", "MODEL.RPN.CONV_DIMS"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
}
_READ = {str(field.alias) for field in _Keys.model_fields.values()}

# What Detectron2's configs/Base-RCNN-FPN.yaml, on which all its FPN networks stand, says at test time.
_BASE_RCNN_FPN: dict[str, Any] = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
_WITHOUT_DEFAULT = {str(f.alias) for f in _Keys.model_fields.values() if f.is_required()}
"""Keys whose `get_cfg()` default fits no pyramid: a config that says them all stands by itself."""

# Keys of MODEL and TEST that say nothing about a trained network at test time.
_IGNORED = {
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.OUT_FEATURES"),
    *("MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS"),
    *("MODEL.RESNETS.BOTTLENECK_WIDTH", "MODEL.ANCHOR_GENERATOR.ANGLES"),
    *(
        f"MODEL.RPN.{name}"
        for name in (
            *("BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION", "IOU_THRESHOLDS", "IOU_LABELS"),
            *("BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "LOSS_WEIGHT", "SMOOTH_L1_BETA"),
            *("BOUNDARY_THRESH", "PRE_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TRAIN"),
        )
    ),
    *(
        f"MODEL.ROI_HEADS.{name}"
        for name in (
            *("BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION", "IOU_THRESHOLDS", "IOU_LABELS"),
            "PROPOSAL_APPEND_GT",
        )
    ),
    *(
        f"MODEL.ROI_BOX_HEAD.{name}"
        for name in (
            *("BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "SMOOTH_L1_BETA", "TRAIN_ON_PRED_BOXES"),
            *("USE_FED_LOSS", "FED_LOSS_FREQ_WEIGHT_POWER", "FED_LOSS_NUM_CLASSES"),
        )
    ),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
    *("TEST.EXPECTED_RESULTS", "TEST.EVAL_PERIOD", "TEST.KEYPOINT_OKS_SIGMAS"),
}
_IGNORED_SECTIONS = (
    *("MODEL.RETINANET.", "MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN.", "MODEL.ROI_KEYPOINT_HEAD."),
    *("TEST.AUG.", "TEST.PRECISE_BN."),
)
_OFF: tuple[Any, ...] = (None, False, "", [], {}, 0)

_MOST_KEYS = 10_000
"""More than any config has: a few lines whose mappings hold each other can mean any number."""

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring = 2, 80

# The keys behind what `Detectron2Parts` finds to contradict each other.
_KEYS_OF = {
    "stages": "MODEL.FPN.IN_FEATURES",
    "depth": "MODEL.RESNETS.DEPTH",
    "rpn.levels": "MODEL.RPN.IN_FEATURES",
    "roi_levels": "MODEL.ROI_HEADS.IN_FEATURES",
    "anchors.sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
    "anchors.aspect_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "anchors": "MODEL.ANCHOR_GENERATOR",
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
    `Base-RCNN-FPN.yaml`. Raises CheckpointError that names the file and every key that cannot be honoured.
    """
    said = _dotted_keys(path)
    alone = said.keys() >= _WITHOUT_DEFAULT
    keys = _validate(path, said if alone else _BASE_RCNN_FPN | said)
    try:
        parts = Detectron2Parts.model_validate(_parts(keys))
    except ValidationError as error:
        where, _, reason = error.errors()[0]["msg"].removeprefix("Value error, ").partition(": ")
        raise CheckpointError(f"{path}: {_KEYS_OF.get(where, where)}: {reason}") from None
    source = f"settings of {path.name}"
    if gaps := len(_READ - said.keys() - _SELDOM):
        base = "get_cfg()" if alone else "Base-RCNN-FPN.yaml"
        source += f" and, for {gaps} keys that it leaves out, of Detectron2's {base}"
    return Detectron2Config(parts, _preprocessing(keys), keys.classes, source)


def _dotted_keys(path: Path) -> dict[str, Any]:
    """What a file says, by keys such as "MODEL.RPN.NMS_THRESH"."""
    try:
        said = dict(islice(_flatten(_load(path, ())), _MOST_KEYS))
    except RecursionError:
        raise CheckpointError(f"{path}: expected a config, found a mapping that holds itself") from None
    if len(said) == _MOST_KEYS:
        raise CheckpointError(f"{path}: expected a Detectron2 config, found {_MOST_KEYS:,} keys or more")
    if not any(key.startswith("MODEL.") for key in said):
        some = ", ".join(list(said)[:3]) or "nothing"
        raise CheckpointError(
            f"{path}: expected a Detectron2 config with keys under MODEL, found {some}; cfg.dump() writes "
            "one (a LazyConfig has none: write its values under the keys of a yaml config)"
        )
    return said


class _Loader(yaml.SafeLoader):
    """YAML without objects, but for the tuples that some dumps hold."""


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The YAML mapping in a file, on top of the one that its `_BASE_` names."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected a Detectron2 config, found {first_line(error)}") from None
    except Exception as error:  # values that do not fit their tags make PyYAML fail in any way
        raise CheckpointError(
            f"{path}: expected the YAML of cfg.dump(), found {' '.join(str(error).split())[:200]}"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    file = path.parent / str(base)
    try:
        found = file.is_file()
    except OSError:  # a name too long for any file
        found = False
    if not found and file.name == "Base-RCNN-FPN.yaml":
        return _BASE_RCNN_FPN | content  # what it says is known
    if not found or file.resolve() in above:
        raise CheckpointError(
            f"{path}: _BASE_: expected a file beside the config, found {str(base)[:100]!r}; dump the whole "
            "config with cfg.dump()"
        )
    return merge(_load(file, (*above, file.resolve())), content)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; text that is a Python literal is one, as Detectron2 reads it."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            name = f"{prefix}{key}"
            yield name, _literal(value) if name in _READ else value


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _validate(path: Path, said: Mapping[str, Any]) -> _Keys:
    unknown = [
        f"{key} = {_short(value)} (no key of Detectron2 0.6; delete it if it says nothing at test time)"
        for key, value in said.items()
        if (key.startswith(("MODEL.", "TEST.")) or (key.startswith("INPUT.") and "TEST" in key))
        and key not in _READ | _IGNORED
        and not key.startswith(_IGNORED_SECTIONS)
        and value not in _OFF
    ]
    try:
        keys = _Keys.model_validate(said)
        faults = []
    except ValidationError as error:
        faults = list(dict.fromkeys(_fault(fault, said) for fault in error.errors()))
    if faults or unknown:
        raise CheckpointError(f"{path}: cannot honour {'; '.join(faults + unknown)}")
    return keys


def _fault(fault: Any, said: Mapping[str, Any]) -> str:
    key = str(fault["loc"][0])
    reason = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    reason = reason.replace("Field required", "expected more values")
    return f"{key} = {_short(said.get(key))} ({reason[:1].lower()}{reason[1:]})"


def _short(value: Any) -> str:
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a {type(value).__name__}"


def _preprocessing(keys: _Keys) -> Preprocessing:
    resize = Resize(
        shortest_edge=keys.shortest, longest_edge=keys.longest, interpolation="pil", rounding="nearest"
    ) if keys.shortest else None  # fmt: skip
    return Preprocessing(
        channel_order="bgr" if keys.colours == "BGR" else "rgb",
        input_range="0-255",
        normalise=(Normalise(mean=keys.pixel_mean, std=keys.pixel_std),),
        resize=resize,
    )


def _parts(keys: _Keys) -> dict[str, Any]:
    """The tree of `Detectron2Parts`."""
    cascade = keys.roi_heads == "CascadeROIHeads"
    return {
        "body": {
            "depth": keys.depth,
            "groups": keys.groups,
            "width_per_group": keys.width_per_group,
            "stem_channels": keys.stem_channels,
            "res2_channels": keys.res2_channels,
            "stride_in_1x1": keys.stride_in_1x1,
            "norm": {"kind": keys.body_norm},
            "stages": keys.stages,
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
