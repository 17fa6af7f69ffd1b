"""What an MMDetection config means: the parts of its network, how it sees images, the names of its classes.

`config_text` reads its text, `config_keys` and `config_limits` list the keys of its pyramid, its heads and
their limits, `body_config` those of its body, `config_pipeline` those of its inputs. Every key that decides
something at test time is read or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.mmdet import MmdetParts
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.networks.mmdet.body_config import read_body
from sartorius_infer.networks.mmdet.config_faults import Keys, faults
from sartorius_infer.networks.mmdet.config_keys import (
    ExtractorKeys,
    ModelKeys,
    RoiHeadKeys,
)
from sartorius_infer.networks.mmdet.config_limits import RcnnTestKeys, RpnTestKeys
from sartorius_infer.networks.mmdet.config_pipeline import PipelineError, read_inputs
from sartorius_infer.networks.mmdet.config_text import read_file, read_text
from sartorius_infer.networks.wording import quoted

_HEADS: dict[str, Literal["standard", "cascade", "htc"]] = {
    "StandardRoIHead": "standard",
    "DynamicRoIHead": "standard",
    "CascadeRoIHead": "cascade",
    "HybridTaskCascadeRoIHead": "htc",
}
_DETECTORS = ("MaskRCNN", "CascadeRCNN", "HybridTaskCascade")


@dataclass(frozen=True)
class MmdetConfig:
    """What a config decides; `classes` are the names of its data set, empty where it tells none.

    `class_count` is the heads'; `source` tells in words where the settings are from.
    """

    parts: MmdetParts
    preprocessing: Preprocessing
    class_count: int
    classes: tuple[str, ...]
    source: str


def read_config(path: Path) -> MmdetConfig:
    """The settings in a config file; raises CheckpointError that names every key that is not honoured."""
    return _meaning(read_file(path), str(path), path.name)


def read_config_text(text: str, path: Path, place: str) -> MmdetConfig:
    """The settings in a config's text, which lies at `place` in the checkpoint `path`; as `read_config`."""
    source = f"{path}: {place}"
    return _meaning(read_text(text, source), source, place)


def _meaning(values: Mapping[str, Any], source: str, name: str) -> MmdetConfig:
    model = values.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{source}: expected an MMDetection config with model = dict(...), found none")
    dialect = _dialect(values, model)
    keys = _detector(model, source)
    found: list[str] = []
    body = preprocessing = None
    try:
        body = read_body(_dict(model.get("backbone")), str(dialect))
    except ValueError as error:
        found.append(str(error))
    try:
        preprocessing = read_inputs(values, dialect)
    except PipelineError as error:
        found.append(str(error))
    rpn, rcnn, test_faults = _limits(values, model)
    found += _contradictions(keys) + test_faults if keys else test_faults
    if found or not keys or body is None or preprocessing is None or rpn is None or rcnn is None:
        raise CheckpointError(f"{source}: cannot honour {'; '.join(found)}")
    tree = _tree(keys, rpn, rcnn) | {"dialect": dialect, "body": body}
    try:
        parts = MmdetParts.model_validate(tree)
    except ValidationError as error:
        place = ".".join(str(step) for step in error.errors()[0]["loc"])
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{source}: cannot honour model: {f'{place}: ' * bool(place)}{reason}"
        ) from None
    count = keys.roi_head.bbox_head[0].num_classes
    words = f"settings of {name}, of MMDetection {dialect}"
    return MmdetConfig(parts, preprocessing, count, _classes(values), words)


def _dialect(values: Mapping[str, Any], model: Mapping[str, Any]) -> Literal[2, 3]:
    """The generation of MMDetection that a config is written for."""
    new = ("data_preprocessor", "test_dataloader", "default_scope", "optim_wrapper")
    return 3 if "data_preprocessor" in model or any(name in values for name in new) else 2


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _detector(model: dict[str, Any], source: str) -> ModelKeys:
    """The keys of pyramid and heads; raises CheckpointError for another detector and for faults of them."""
    try:
        return ModelKeys.model_validate(model)
    except ValidationError as error:
        said = faults(error, model, "model")
        others = [fault for fault in said if fault.startswith("model.type = ")]
        raise CheckpointError(f"{source}: cannot honour {'; '.join(others or said)}") from None


def _limits(
    values: Mapping[str, Any], model: Mapping[str, Any]
) -> tuple[RpnTestKeys | None, RcnnTestKeys | None, list[str]]:
    """The test's limits of proposals and of detections, and what is wrong with them.

    They are in `model.test_cfg`, which wins, in the heads themselves, or beside the model as in early 2.x.
    """
    found: list[str] = []
    kept: list[Any] = []
    kinds: tuple[tuple[str, str, type[Keys]], ...] = (
        ("rpn", "rpn_head", RpnTestKeys),
        ("rcnn", "roi_head", RcnnTestKeys),
    )
    for part, head, kind in kinds:
        places = {
            f"model.test_cfg.{part}": _dict(model.get("test_cfg")).get(part),
            f"model.{head}.test_cfg": _dict(model.get(head)).get("test_cfg"),
            f"test_cfg.{part}": _dict(values.get("test_cfg")).get(part),
        }
        place, limits = next(((k, v) for k, v in places.items() if v is not None), (next(iter(places)), None))
        try:
            kept.append(kind.model_validate(limits))
        except ValidationError as error:
            kept.append(None)
            found += faults(error, limits, place)
    rpn, rcnn = kept
    return rpn, rcnn, found


def _contradictions(keys: ModelKeys) -> list[str]:
    """What one key says of another's part, and wrongly."""
    head, width = keys.roi_head, keys.neck.out_channels
    stages = _stages(head)
    expected = [("model.rpn_head.in_channels", keys.rpn_head.in_channels, width)]
    for name in ("bbox_head", "mask_head", "bbox_roi_extractor", "mask_roi_extractor"):
        each: Sequence[Any] = getattr(head, name) or ()
        for index, one in enumerate(each):
            place = f"model.roi_head.{name}{f'.{index}' * (len(each) > 1)}"
            channels = "out_channels" if name.endswith("extractor") else "in_channels"
            expected.append((f"{place}.{channels}", getattr(one, channels), width))
        if each and len(each) not in (1, stages):
            expected.append((f"model.roi_head.{name}", len(each), stages))
    for one, pool in zip(
        _for_all(head.bbox_head, stages), _for_all(head.bbox_roi_extractor, stages), strict=False
    ):
        size = pool.roi_layer.output_size
        expected.append(("model.roi_head.bbox_head.roi_feat_size", one.roi_feat_size, size))
    return [
        quoted(key, value, f"expected {right}")
        for key, value, right in dict.fromkeys(expected)
        if value != right
    ]


def _stages(head: RoiHeadKeys) -> int:
    if _HEADS[head.type] == "standard":
        return 1
    return head.num_stages or len(head.bbox_head)


def _for_all(each: Sequence[Any], stages: int) -> list[Any]:
    """One for each stage of one for all."""
    return list(each) * stages if len(each) == 1 else list(each)


def _tree(keys: ModelKeys, rpn: RpnTestKeys, rcnn: RcnnTestKeys) -> dict[str, Any]:
    """The tree of `MmdetParts` but for body and dialect."""
    head = keys.roi_head
    kind, stages = _HEADS[head.type], _stages(head)
    extractors = _for_all(head.bbox_roi_extractor, stages)
    mask_extractors = _for_all(head.mask_roi_extractor or head.bbox_roi_extractor, stages)
    return {
        "fpn": keys.neck.settings(),
        "anchors": keys.rpn_head.anchor_generator.settings(),
        "rpn": keys.rpn_head.settings() | rpn.settings(),
        "heads": kind,
        "box_heads": _pooled(_for_all(head.bbox_head, stages), extractors),
        "mask_heads": _pooled(_for_all(head.mask_head, stages), mask_extractors),
        "mask_flow": kind == "htc" and head.mask_info_flow,
        "detection": rcnn.settings(),
    }


def _pooled(heads: Sequence[Any], extractors: Sequence[ExtractorKeys]) -> tuple[dict[str, Any], ...]:
    return tuple(
        head.settings() | {"pool": extractor.settings()}
        for head, extractor in zip(heads, extractors, strict=True)
    )


def _classes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of the data set, wherever a config has them; empty where it has none."""
    test = _dict(_dict(values.get("test_dataloader")).get("dataset"))
    places = (
        *(_dict(test.get("metainfo")).get(name) for name in ("classes", "CLASSES")),
        _dict(_dict(values.get("data")).get("test")).get("classes"),
        *(_dict(values.get("metainfo")).get(name) for name in ("classes", "CLASSES")),
        values.get("classes"),
    )
    return next((names for names in map(class_names, places) if names), ())


def class_names(value: Any) -> tuple[str, ...]:
    """Names as a data set has them, each once; empty for anything else."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n for n in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()
