"""What all settings share: their base, their number types, and settings of which some are said."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of every setting: immutable, no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1)]


Positive = Annotated[float, Field(gt=0)]


def _optional(annotation: Any) -> Any:
    """`annotation` with every settings class in it replaced by its all-optional twin."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return partial_model(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_optional(a) for a in get_args(annotation))]  # noqa: UP007
    return annotation


def partial_model(model: type[BaseModel]) -> type[BaseModel]:
    """A model with the fields of `model`, each optional at every depth; unset means "not said"."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        annotation = _optional(info.annotation)
        metadata = [*info.metadata, Field(description=info.description)]
        fields[name] = (Annotated[annotation, *metadata] | None, None)
    return create_model(f"Some{model.__name__}", __base__=Settings, __doc__=model.__doc__, **fields)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` laid on top, key by key at every depth."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one level of dotted names: {"rpn": {"nms": 0.7}} becomes {"rpn.nms": 0.7}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
