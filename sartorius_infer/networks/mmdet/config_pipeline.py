"""How a test pipeline of MMDetection prepares images: the inputs of a config, of either generation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from sartorius_infer.manifest.preprocessing import Normalise, Preprocessing, Resize
from sartorius_infer.manifest.settings import Count, Positive
from sartorius_infer.networks.mmdet.config_faults import Keys, faults, type_name
from sartorius_infer.networks.wording import quoted

_SILENT = {
    *("LoadAnnotations", "PackDetInputs", "ImageToTensor", "DefaultFormatBundle", "Collect", "ToTensor"),
    *("WrapFieldsToLists", "InferencerLoader"),
}
"""Transforms that change no pixel of a test image."""

_VIEWS = "expected none: test-time augmentation is asked for by --views"

Colour = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
Spread = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)]


def _pair(value: Any) -> Any:
    """A size, alone in a list or not; one side is a square's."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return (value, value) if isinstance(value, int) else value


def _never(value: float | None) -> float | None:
    if value:
        raise ValueError(_VIEWS)
    return value


Scale = Annotated[tuple[Count, Count], BeforeValidator(_pair)]


class _Load(Keys):
    training: ClassVar = frozenset({"backend_args", "file_client_args", "imdecode_backend", "ignore_empty"})

    type: str
    to_float32: bool = False
    color_type: Literal["color"] = "color"


class _Resize(Keys):
    training: ClassVar = frozenset({"multiscale_mode", "override", "bbox_clip_border", "clip_object_border"})

    type: str
    scale: Scale | None = None
    img_scale: Scale | None = None
    keep_ratio: bool | None = None
    ratio_range: Literal[None] = None
    scale_factor: Literal[None] = None
    backend: Literal["cv2", "pillow"] = "cv2"
    interpolation: Literal["bilinear"] = "bilinear"


class _Flip(Keys):
    """A flip, which must not happen."""

    training: ClassVar = frozenset({"direction", "swap_seg_labels"})

    type: str
    prob: Annotated[float | None, AfterValidator(_never)] = None
    flip_ratio: Annotated[float | None, AfterValidator(_never)] = None


class _Normalize(Keys):
    type: str
    mean: Colour
    std: Spread
    to_rgb: bool = True


class _Pad(Keys):
    type: str
    size_divisor: Count | None = None
    size: Literal[None] = None
    pad_to_square: Literal[False] = False
    padding_mode: Literal["constant"] = "constant"
    pad_val: Any = 0


class _Preprocessor(Keys):
    """`model.data_preprocessor` of MMDetection 3."""

    training: ClassVar = frozenset(
        {"pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value", "boxtype2tensor", "non_blocking"}
        | {"batch_augments"}
    )

    type: Literal["DetDataPreprocessor"] = "DetDataPreprocessor"
    mean: Colour | None = None
    std: Spread | None = None
    bgr_to_rgb: bool = False
    rgb_to_bgr: bool = False
    pad_size_divisor: Count = 1
    pad_value: Literal[0] = 0


_KINDS: dict[str, type[Keys]] = {
    "LoadImageFromFile": _Load,
    "Resize": _Resize,
    "RandomFlip": _Flip,
    "Normalize": _Normalize,
    "Pad": _Pad,
}


class PipelineError(ValueError):
    """Keys of a pipeline that cannot be honoured, in words."""


@dataclass
class _Made:
    """What the transforms so far have made of an image."""

    floats: bool = False
    resize: Resize | None = None
    normalise: tuple[Normalise, ...] = ()
    rgb: bool = False
    multiple: int = 1
    padded: bool = False
    faults: list[str] = field(default_factory=list)


def read_inputs(config: Mapping[str, Any], dialect: int) -> Preprocessing:
    """The preprocessing of a config's values; raises PipelineError naming each key that is not honoured."""
    made = _Made()
    for name in ("tta_model", "tta_pipeline"):
        if config.get(name) is not None:
            made.faults.append(quoted(name, config[name], _VIEWS))
    where, pipeline = _pipeline(config, dialect)
    for key, transform, scale in _flattened(where, pipeline, made):
        _apply(key, transform, scale, dialect, made)
    if dialect == 3:
        _preprocess(config, made)
    if made.faults:
        raise PipelineError("; ".join(made.faults))
    return Preprocessing(
        channel_order="rgb" if made.rgb else "bgr",
        input_range="0-255",
        normalise=made.normalise,
        resize=made.resize,
        pad_multiple=made.multiple,
    )


def _pipeline(config: Mapping[str, Any], dialect: int) -> tuple[str, Sequence[Any]]:
    """The test pipeline and its key."""
    own = "data.test.pipeline" if dialect == 2 else "test_dataloader.dataset.pipeline"
    places = (own, "test_pipeline", own.replace("test", "val"))
    for place in places:
        here: Any = config
        for step in place.split("."):
            here = here.get(step) if isinstance(here, Mapping) else None
        if isinstance(here, (list, tuple)):
            return place, here
    raise PipelineError(
        f"{places[0]} (expected the test pipeline, which tells how images are prepared, found none)"
    )


def _flattened(
    where: str, pipeline: Sequence[Any], made: _Made
) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Every transform with its key and the size that one around it says; augmentations are faults."""
    for index, transform in enumerate(pipeline):
        key = f"{where}.{index}"
        kind = type_name(transform.get("type")) if isinstance(transform, Mapping) else None
        if kind == "MultiScaleFlipAug":
            scale = transform.get("img_scale")
            many = isinstance(scale, (list, tuple)) and len(scale) > 1 and isinstance(scale[0], (list, tuple))
            for name, fault in (("img_scale", many), ("flip", transform.get("flip"))):
                if fault:
                    made.faults.append(quoted(f"{key}.{name}", transform[name], _VIEWS))
            if transform.get("scale_factor") is not None:
                reason = "expected img_scale"
                made.faults.append(quoted(f"{key}.scale_factor", transform["scale_factor"], reason))
            inner = transform.get("transforms")
            inner = inner if isinstance(inner, (list, tuple)) else ()
            for each, one, _ in _flattened(f"{key}.transforms", inner, made):
                if type_name(one["type"]) != "RandomFlip":  # which does what is said around it
                    yield each, one, None if many else scale
        elif kind == "TestTimeAug":
            made.faults.append(quoted(f"{key}.type", kind, _VIEWS))
        elif kind is None:
            made.faults.append(quoted(key, transform, "expected dict(type=...)"))
        else:
            yield key, transform, None


def _apply(key: str, transform: Mapping[str, Any], scale: Any, dialect: int, made: _Made) -> None:
    """Take in one transform; `scale` is what stands around it."""
    kind = type_name(transform["type"])
    if kind in _SILENT:
        return
    if kind not in _KINDS:
        made.faults.append(quoted(f"{key}.type", kind, f"expected one of {', '.join(_KINDS)}"))
        return
    values = dict(transform)
    if kind == "Resize" and scale is not None:
        values["img_scale"] = scale
    try:
        said = _KINDS[kind].model_validate(values)
    except ValidationError as error:
        made.faults += faults(error, values, key)
        return
    if isinstance(said, _Load):
        made.floats |= said.to_float32
    elif isinstance(said, _Resize):
        made.faults += _resize(key, said, dialect, made)
    elif isinstance(said, _Normalize):
        _normalise(key, said.mean, said.std, made)
        made.rgb, made.floats = made.rgb != said.to_rgb, True
    elif isinstance(said, _Pad):
        _pad(key, said, dialect, made)


def _resize(key: str, said: _Resize, dialect: int, made: _Made) -> list[str]:
    scale = said.img_scale or said.scale
    if made.resize is not None or scale is None:
        return [quoted(f"{key}.scale", scale, "expected one size for the whole pipeline")]
    keep_ratio = dialect == 2 if said.keep_ratio is None else said.keep_ratio
    # What is float already is not rounded to bytes again, which is what torch's resizing does.
    interpolation: Any = "torch" if made.floats else {"cv2": "opencv", "pillow": "pil"}[said.backend]
    if keep_ratio:
        made.resize = Resize(
            shortest_edge=min(scale),
            longest_edge=max(scale),
            interpolation=interpolation,
            rounding="nearest_side",
        )
    else:
        made.resize = Resize(exact_hw=(scale[1], scale[0]), interpolation=interpolation)
    return []


def _normalise(key: str, mean: tuple[float, ...], std: tuple[float, ...], made: _Made) -> None:
    if made.normalise or made.padded or {len(mean), len(std)} - {1, 3}:
        reason = "expected one step of 1 or 3 values, before padding"
        made.faults.append(quoted(key, {"mean": mean, "std": std}, reason))
    else:
        made.normalise = (Normalise(mean=mean, std=std),)


def _pad(key: str, said: _Pad, dialect: int, made: _Made) -> None:
    value = said.pad_val.get("img", 0) if isinstance(said.pad_val, Mapping) else said.pad_val
    if value not in (0, (0, 0, 0), [0, 0, 0]):
        made.faults.append(quoted(f"{key}.pad_val", said.pad_val, "expected 0"))
    if said.size_divisor is None:
        made.faults.append(quoted(f"{key}.size_divisor", None, "expected a number"))
    else:
        made.multiple, made.padded = math.lcm(made.multiple, said.size_divisor), True


def _preprocess(config: Mapping[str, Any], made: _Made) -> None:
    """Take in `data_preprocessor`."""
    model = config.get("model")
    key = "model.data_preprocessor"
    values = model.get("data_preprocessor") if isinstance(model, Mapping) else None
    values = config.get("data_preprocessor") if values is None else values
    if values is None:
        return
    try:
        said = _Preprocessor.model_validate(values)
    except ValidationError as error:
        made.faults += faults(error, values, key)
        return
    if said.mean is not None and said.std is not None:
        _normalise(key, said.mean, said.std, made)
    made.rgb = made.rgb != (said.bgr_to_rgb or said.rgb_to_bgr)
    made.multiple = math.lcm(made.multiple, said.pad_size_divisor)
