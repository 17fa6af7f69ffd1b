"""A Detectron2 config as a file: YAML, on top of the files that it stands on, as dotted keys."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from sartorius_infer.errors import CheckpointError, first_line
from sartorius_infer.manifest.settings import merge
from sartorius_infer.networks.detectron2.config_keys import BASE_RCNN_FPN, READ

_MOST_KEYS = 10_000
"""More than any config has: a few lines whose mappings hold each other can mean any number."""


def dotted_keys(path: Path) -> dict[str, Any]:
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
        return BASE_RCNN_FPN | content  # what it says is known
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
            yield name, _literal(value) if name in READ else value


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
