"""Rules other than the manifest's: from a file or by class, and where each setting in force comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sartorius_infer.errors import ManifestError
from sartorius_infer.manifest.manifest import Manifest, read_settings
from sartorius_infer.manifest.rules import ClassRule, EdgeMode, EdgeThresholds, Rules

DEFAULT = "default"
"""The source of a setting that nobody wrote."""

EDGE_MODES: tuple[EdgeMode, ...] = get_args(EdgeMode)

_BY_CLASS = {"score": "score", "min_area": "min area", "mask": "mask", "edge": "edge score/area"}
_SHARED = {
    "consensus": "consensus",
    "overlap_survival": "overlap survival",
    "edge.mode": "edge",
    "edge.margin": "edge margin",
    "paste": "paste",
    "rescore_by_mask": "rescore by mask",
    "fill_holes": "fill holes",
}
_SHOWN_WHERE_ON = ("edge.margin", "rescore_by_mask", "fill_holes")


@dataclass(frozen=True)
class RulesInForce:
    """Rules, and where each of their settings comes from.

    `sources` has "default", "manifest" or the name of an option for each setting:
    `per_class.<class>.<setting>` of every class, `edge.mode`, `edge.margin`, and the other fields of `Rules`.
    """

    rules: Rules
    sources: Mapping[str, str]


def read_rules(path: str | Path) -> Rules:
    """The rules in a JSON file, which is like a manifest's `rules`, or a whole manifest.

    Raises ManifestError naming the file and the JSON path of the first fault.
    """
    found = read_settings(Path(path), _kind)
    return found.rules if isinstance(found, Manifest) else found


def _kind(content: Any) -> type[Manifest] | type[Rules]:
    return Manifest if isinstance(content, dict) and {"models", "version"} & set(content) else Rules


def override_rules(
    rules: Rules,
    classes: Sequence[str],
    *,
    file: Rules | str | Path | None = None,
    score: Mapping[str, float] | None = None,
    min_area: Mapping[str, int] | None = None,
    edge: EdgeMode | None = None,
    origin: str = "manifest",
) -> RulesInForce:
    """The rules of some classes with others in their place, as far as they are given.

    file      rules that take the place of all, or a file of them as `read_rules` takes it
    score     score thresholds by class, in [0, 1]
    min_area  minimum areas by class, in pixels
    edge      what becomes of cells on the image border
    origin    what the settings of `rules` have for their source

    What is given by itself goes before the file. Raises ManifestError for a class that is not one of
    `classes`, and for a value out of range.
    """
    if file is not None:
        rules, origin = _of_file(file, classes)
    sources = {name: origin if said else DEFAULT for name, said in _settings(rules, classes)}
    changes: list[tuple[str, str, Any]] = []
    changes += [(name, "score", _fraction(name, v)) for name, v in _given("--score", score, classes)]
    changes += [(name, "min_area", _pixels(name, v)) for name, v in _given("--min-area", min_area, classes)]
    for name, setting, value in changes:
        rule = rules.of(name).model_copy(update={setting: value})
        rules = rules.model_copy(update={"per_class": rules.per_class | {name: rule}})
        sources[f"per_class.{name}.{setting}"] = f"--{setting.replace('_', '-')}"
    if edge is not None:
        rules = _with_edge(rules, edge)
        sources["edge.mode"] = "--edge"
    return RulesInForce(rules, sources)


def _of_file(file: Rules | str | Path, classes: Sequence[str]) -> tuple[Rules, str]:
    """Rules and their source; raises ManifestError for those of other classes."""
    rules = file if isinstance(file, Rules) else read_rules(file)
    for name in rules.per_class:
        if name not in classes:
            where = "--rules" if isinstance(file, Rules) else file
            raise ManifestError(f"{where}: {name}: expected one of the classes {', '.join(classes)}")
    return rules, "--rules" if isinstance(file, Rules) else f"--rules {Path(file).name}"


def _settings(rules: Rules, classes: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The name of every setting, and whether somebody wrote it."""
    for name in classes:
        for field in ClassRule.model_fields:
            yield f"per_class.{name}.{field}", field in rules.of(name).model_fields_set
    for name in _SHARED:
        part, _, field = name.rpartition(".")
        yield name, field in (rules.edge if part else rules).model_fields_set


def _given(
    option: str, values: Mapping[str, Any] | None, classes: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    for name, value in (values or {}).items():
        if name not in classes:
            raise ManifestError(f"{option} {name}={value}: expected one of the classes {', '.join(classes)}")
        yield name, value


def _fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:  # nor NaN
        raise ManifestError(f"--score {name}={value}: expected a number from 0 to 1")
    return float(value)


def _pixels(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ManifestError(f"--min-area {name}={value}: expected a whole number of pixels from 0")
    return int(value)


def _with_edge(rules: Rules, mode: Any) -> Rules:
    if mode not in EDGE_MODES:
        raise ManifestError(f"--edge {mode}: expected {', '.join(EDGE_MODES)}")
    return rules.model_copy(update={"edge": rules.edge.model_copy(update={"mode": mode})})


def rules_lines(in_force: RulesInForce, classes: Sequence[str]) -> list[str]:
    """A table of the rules: a row for each class, at least one, then what all classes share.

    The first line names the source of most settings; what comes from elsewhere has it in brackets, at the
    head of its column where all of that does.
    """
    columns, shared = _by_class(in_force, classes), _shared(in_force)
    sources = Counter(cell.source for cells in (*columns.values(), shared) for cell in cells)
    main = sources.most_common(1)[0][0]
    table = [["", *classes], *(_column(title, cells, main) for title, cells in columns.items())]
    widths = [max(map(len, column)) for column in table]
    widths[0] = max(6, widths[0])  # as wide as the titles of a report's other lines
    rows = [
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*table, strict=True)
    ]
    rows.append(f"{'all':{widths[0]}}  " + ", ".join(cell.told(main) for cell in shared))
    whence = "by default" if main == DEFAULT else f"from {main}"
    head = f"rules     {whence}{', but for what is in brackets' * (len(sources) > 1)}"
    return [head, *(f"  {row}" for row in rows)]


class _Cell(NamedTuple):
    """A setting as text, and its source."""

    text: str
    source: str

    def told(self, main: str) -> str:
        """The text, with the source where it is not the main one."""
        return self.text if self.source == main else f"{self.text} ({self.source})"


def _column(title: str, cells: Sequence[_Cell], main: str) -> list[str]:
    """The title, and each class's setting under it."""
    sources = {cell.source for cell in cells}
    if len(sources) == 1:
        return [_Cell(title, *sources).told(main), *(cell.text for cell in cells)]
    return [title, *(cell.told(main) for cell in cells)]


def _by_class(in_force: RulesInForce, classes: Sequence[str]) -> dict[str, list[_Cell]]:
    """The cells of each column; edge thresholds only where some class has them and they are in force."""
    rules, columns = in_force.rules, {}
    edged = rules.edge.mode == "rule" and any(rules.of(name).edge for name in classes)
    for field, title in _BY_CLASS.items():
        if field != "edge" or edged:
            values = [(name, getattr(rules.of(name), field)) for name in classes]
            columns[title] = [_Cell(_plain(v), in_force.sources[f"per_class.{n}.{field}"]) for n, v in values]
    return columns


def _shared(in_force: RulesInForce) -> list[_Cell]:
    values = {name: attrgetter(name)(in_force.rules) for name in _SHARED}
    return [
        _Cell(f"{_SHARED[name]} {_plain(value)}", in_force.sources[name])
        for name, value in values.items()
        if value or name not in _SHOWN_WHERE_ON
    ]


def _plain(value: Any) -> str:
    if value is None:  # edge thresholds of its own
        return "as inside"
    if isinstance(value, EdgeThresholds):
        return f"{value.score:g}/{value.min_area}"
    return "yes" if value is True else str(value)
