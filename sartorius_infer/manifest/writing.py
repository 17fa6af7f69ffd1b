"""A manifest becomes a file: one format, checked before anything is written, whole or not at all.

Objects and lists of them take a line for each entry; a list without objects that is short stands in one
line. What is unset is left out, so that a manifest says what was said to it and no more. `$schema` stays
with a file; a manifest that moves loses it, unless it is an address, since a path would lead nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from sartorius_infer.errors import ManifestError
from sartorius_infer.files import atomic_file, json_text
from sartorius_infer.manifest.manifest import Manifest, load_manifest, parse_manifest

Content = dict[str, Any]
"""The JSON of a manifest."""

SHORT = 96
"""Characters of the longest list that stands in one line."""


def content_of(manifest: Manifest, moves: bool = False) -> Content:
    """A manifest's JSON without what is unset; where it `moves`, without a `$schema` that is a path too."""
    content = manifest.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if moves and "://" not in (content.get("$schema") or ""):
        content.pop("$schema", None)
    return content


def with_entries(path: Path, entries: Sequence[Mapping[str, Any]]) -> Content:
    """The JSON of the manifest at `path`, every word of it kept, with more networks.

    Raises ManifestError where `load_manifest` does.
    """
    load_manifest(path)
    content: Content = json.loads(json_text(path))
    return content | {"models": [*content["models"], *map(dict, entries)]}


def manifest_text(path: Path, content: Manifest | Mapping[str, Any]) -> str:
    """What is to stand in the file at `path`, checked as if it had been read from there.

    Raises ManifestError naming `path` and the JSON path of the first fault. Whether the files of the
    networks are there is not looked at: they may be written later.
    """
    if isinstance(content, Manifest):
        content = content_of(content)
    text = _lines(dict(content)) + "\n"
    manifest = parse_manifest(text, path)
    for index, spec in enumerate(manifest.models):
        where = f"$.models[{index}].file"
        if PurePath(spec.file).is_absolute() or ".." in PurePath(spec.file).parts:
            raise ManifestError(
                f"{path}: {where}: expected a path inside the manifest's folder, found {spec.file!r}"
            )
    return text


def write_manifest(path: Path, content: Manifest | Mapping[str, Any]) -> None:
    """Write a manifest to `path`, in place of what is there.

    Raises ManifestError for content that does not fit, before anything is written, and for a place that
    cannot be written, where an earlier file then stays.
    """
    text = manifest_text(path, content)
    try:
        with atomic_file(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise ManifestError(f"{path}: expected a file that can be written, found {error}") from None


def _lines(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry, but short lists in one line."""
    line = json.dumps(value, ensure_ascii=False)
    inner = f"{indent}  "
    if isinstance(value, Mapping) and value:
        named = (f"{inner}{_lines(str(key))}: {_lines(each, inner)}" for key, each in value.items())
        return "{\n" + ",\n".join(named) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and value and (len(line) > SHORT or _holds_objects(value)):
        return "[\n" + ",\n".join(f"{inner}{_lines(each, inner)}" for each in value) + f"\n{indent}]"
    return line


def _holds_objects(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_objects, value))
    return isinstance(value, Mapping)
