"""How settings read in a report on a checkpoint, and keys of a config that cannot be honoured in an error."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import Repr
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


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def quoted(key: str, value: Any, reason: str) -> str:
    """A key that cannot be honoured, its value shortened, and why."""
    try:
        shown = _SHORT.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        shown = f"a {type(value).__name__}"
    return f"{key} = {shown} ({reason[:1].lower()}{reason[1:]})"


def reason_of(fault: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says, in the words of errors here."""
    reason: str = fault["msg"]
    return reason.removeprefix("Value error, ").replace("Input should be", "expected")


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
