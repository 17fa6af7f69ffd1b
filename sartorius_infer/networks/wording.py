"""How settings read in a report on a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.settings import flatten


def preprocessing_lines(seen: Preprocessing) -> list[str]:
    """A line for each setting; what the entry does not say is marked as assumed."""
    values = {"resize": "none"} if seen.resize is None else {}
    values |= flatten(seen.model_dump(exclude_none=True))
    said = seen.model_fields_set
    assumed = {name: "" if name.partition(".")[0] in said else " (assumed)" for name in values}
    return ["  preprocessing:", *(f"    {name} = {plain(v)}{assumed[name]}" for name, v in values.items())]


def is_idle(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting of a norm, by its dotted name, has no effect on a norm of its kind."""
    part, _, setting = name.rpartition(".")
    kind = values.get(f"{part}.kind")
    if kind is None:
        return False
    return (setting == "groups" and kind != "group") or (setting == "eps" and kind == "none")


def plain(value: Any) -> str:
    """A value without quotes and needless digits."""
    if isinstance(value, tuple):
        return f"({', '.join(plain(v) for v in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)
