"""What is wrong with a config, in words: each key by its dotted name, its value, and what is possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sartorius_infer.networks.wording import quoted, reason_of

_OFF: tuple[Any, ...] = (None, False, "", [], (), {})


def type_name(value: Any) -> Any:
    """The name of a class without the package that it is registered in."""
    return value.rpartition(".")[2] if isinstance(value, str) else value


class Keys(BaseModel):
    """One `dict(...)` of a config: the keys that decide something at test time, with MMDetection's defaults.

    A key with one possible value is a part that is not built otherwise. `training` lists those that say
    nothing about a trained network; any other is refused unless it is switched off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    training: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _of_a_test(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError("expected dict(...)")
        known = {k: v for k, v in values.items() if k not in cls.training | {"init_cfg", "train_cfg"}}
        known = {
            k: v for k, v in known.items() if k in cls.model_fields or not any(v is o or v == o for o in _OFF)
        }
        return known | ({"type": type_name(known["type"])} if "type" in known else {})


def faults(error: ValidationError, values: Any, prefix: str) -> list[str]:
    """Every fault of `values`, which lie under `prefix` in the config, the first of each key."""
    found: dict[str, str] = {}
    for fault in error.errors():
        key, value = _place(fault["loc"], values, prefix)
        reason = reason_of(fault).replace("Field required", "expected a value")
        if fault["type"] == "extra_forbidden":
            reason = "not a key that is known; delete it if it says nothing at test time"
        found.setdefault(key, quoted(key, value, reason))
    return list(found.values())


def _place(loc: tuple[int | str, ...], values: Any, prefix: str) -> tuple[str, Any]:
    """The dotted key of a fault and its value; steps that are no keys of the config are pydantic's own."""
    key, here = prefix, values
    for index, step in enumerate(loc):
        if isinstance(here, Mapping) and (step in here or index == len(loc) - 1):
            key, here = f"{key}.{step}", here.get(step)
        elif isinstance(here, (list, tuple)) and isinstance(step, int) and step < len(here):
            key, here = f"{key}.{step}", here[step]
    return key, here
