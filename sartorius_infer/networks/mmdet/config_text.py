"""The text of an MMDetection config as values: literals and `dict(...)` calls, parsed and never executed.

A dumped config is a list of assignments; a written one may stand on `_base_` files, use the names of
earlier assignments and those of its bases, and compute a little. Whatever else an expression does stays
`Unread`, which is refused only where it decides something; a statement that could change others is refused.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from sartorius_infer.errors import CheckpointError, first_line

Values = dict[str, Any]

_MOST_BYTES = 4 << 20
_MOST_FILES = 50
_MOST_ITEMS = 10_000
"""Of a range, a text or list that is put together, and of dicts that are merged."""

_NUMBERS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


class Unread:
    """An expression that is no literal, by its text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Base(dict[str, Any]):
    """What `_base_` means within a config: the values of its base files."""


def read_text(text: str, source: str) -> Values:
    """The values of a dumped config by name; `source` says in messages where it is.

    Raises CheckpointError for what is no config.
    """
    tree = _parse(text, source)
    if _assigned(tree, "_base_") is not None:
        raise CheckpointError(
            f"{source}: _base_: expected a whole config, as cfg.dump() writes it, found a part"
        )
    return _Reader(source, {}).read(tree)


def read_file(path: Path) -> Values:
    """The values of a config file on top of those of its `_base_` files, by name.

    Raises CheckpointError for what is no config, and where a base is missing.
    """
    return _read_file(path, (), count())


def _read_file(path: Path, above: tuple[Path, ...], files: count[int]) -> Values:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path}: expected a config, found {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected an MMDetection config, found {first_line(error)}") from None
    tree = _parse(text, str(path))
    base: Values = {}
    for name in _bases(tree, str(path)):
        file = path.parent / name
        if not _is_file(file):
            raise CheckpointError(
                f"{path}: _base_: expected {name[:100]!r} beside it, found none; put it there, or dump the "
                "whole config with cfg.dump()"
            )
        if file.resolve() in above or next(files) > _MOST_FILES:
            raise CheckpointError(f"{path}: _base_: expected files that end, found a circle or too many")
        base = merged(base, _read_file(file, (*above, file.resolve()), files), str(path))
    own = _Reader(str(path), base).read(tree)
    return merged(base, own, str(path))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _parse(text: str, source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in text
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        where = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise CheckpointError(
            f"{source}: {where}expected an MMDetection config, found {first_line(error)[:100]}"
        ) from None


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """The value that a name is given at the top."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return node.value
    return None


def _bases(tree: ast.Module, source: str) -> list[str]:
    node = _assigned(tree, "_base_")
    value = [] if node is None else _Reader(source, {}).value(node)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source}: _base_: expected names of files, found {str(value)[:100]}")
    return list(names)


def merged(base: Mapping[str, Any], over: Mapping[str, Any], source: str) -> Values:
    """`base` with `over` laid on top, dict by dict; one with `_delete_=True` takes the place of all below."""
    return _merge(base, over, source, iter(range(_MOST_ITEMS)))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], source: str, left: Any) -> Values:
    found = dict(base)
    for key, value in over.items():
        if next(left, None) is None:
            raise CheckpointError(f"{source}: expected a config, found one of {_MOST_ITEMS:,} keys or more")
        if isinstance(value, dict):
            below = found.get(key)
            below = below if isinstance(below, dict) and not value.get("_delete_") else {}
            value = _merge(below, {k: v for k, v in value.items() if k != "_delete_"}, source, left)
        found[key] = value
    return found


class _Reader:
    """Statements one after another, with what the names before them are."""

    def __init__(self, source: str, base: Values) -> None:
        self.source = source
        self.names: Values = {"_base_": _Base(base)}

    def read(self, tree: ast.Module) -> Values:
        """What all names of a config are in the end."""
        try:
            for node in tree.body:
                self._statement(node)
        except RecursionError:
            raise CheckpointError(
                f"{self.source}: expected a config, found brackets past all limits"
            ) from None
        return {name: value for name, value in self.names.items() if name != "_base_"}

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = (alias.asname or alias.name).partition(".")[0]
                self.names[name] = Unread(name)
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # text about the config
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if not isinstance(node, ast.Assign) or len(names) < len(targets):
            raise CheckpointError(
                f"{self.source}: line {node.lineno}: expected names given literals and dict(...) calls, "
                f"found {ast.unparse(node).splitlines()[0][:80]!r}; dump the whole config with cfg.dump()"
            )
        value = self.value(node.value)
        self.names.update(dict.fromkeys([name for name in names if name != "_base_"], value))

    def value(self, node: ast.expr) -> Any:
        """What an expression is, `Unread` where it is more than this reads."""
        read = getattr(self, f"_{type(node).__name__.lower()}", None)
        found = None if read is None else read(node)
        return Unread(ast.unparse(node)[:100]) if read is None or found is NotImplemented else found

    def _constant(self, node: ast.Constant) -> Any:
        return node.value if isinstance(node.value, (str, int, float, type(None))) else NotImplemented

    def _name(self, node: ast.Name) -> Any:
        return self.names.get(node.id, NotImplemented)

    def _tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._items(node.elts))

    def _list(self, node: ast.List) -> Any:
        return self._items(node.elts)

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            value = self.value(node.value if isinstance(node, ast.Starred) else node)
            if (
                isinstance(node, ast.Starred)
                and isinstance(value, (list, tuple))
                and len(value) <= _MOST_ITEMS
            ):
                items += value
            else:
                items.append(Unread(ast.unparse(node)[:100]) if isinstance(node, ast.Starred) else value)
        return items

    def _set(self, node: ast.Set) -> Any:
        """`{{_base_.name}}`, by which files of MMDetection 2 take a value of their base."""
        inner = node.elts[0]
        if len(node.elts) == 1 and isinstance(inner, ast.Set) and len(inner.elts) == 1:
            return self.value(inner.elts[0])
        return NotImplemented

    def _dict(self, node: ast.Dict) -> Any:
        found: Values = {}
        for key, value in zip(node.keys, node.values, strict=True):
            inner = self.value(value)
            if key is None:
                if not isinstance(inner, dict):
                    return NotImplemented
                found |= inner
            else:
                name = self.value(key)
                if not isinstance(name, (str, int, float)):
                    return NotImplemented
                found[str(name)] = inner
        return found

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        arguments = [self.value(argument) for argument in node.args]
        if name in self.names:
            return NotImplemented
        if name == "dict":
            return self._dict_call(node, arguments)
        if name == "range" and not node.keywords and all(type(a) is int for a in arguments):
            return _limited(range(*arguments)) if 1 <= len(arguments) <= 3 and 0 not in arguments[2:] else []
        if name in ("list", "tuple") and len(arguments) == 1 and isinstance(arguments[0], (list, tuple)):
            return (list if name == "list" else tuple)(arguments[0])
        return NotImplemented

    def _dict_call(self, node: ast.Call, arguments: list[Any]) -> Any:
        found: Values = {}
        inner = [(k.arg, self.value(k.value)) for k in node.keywords]
        for key, value in [*((None, argument) for argument in arguments), *inner]:
            if key is not None:
                found[key] = value
            elif isinstance(value, dict):
                found |= value
            else:
                return NotImplemented
        return found

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        sign = _SIGNS.get(type(node.op))
        if isinstance(node.op, ast.Not) and isinstance(value, bool):
            return not value
        return sign(value) if sign and isinstance(value, (int, float)) else NotImplemented

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if (
            isinstance(node.op, ast.Add)
            and type(left) is type(right)
            and isinstance(left, (str, list, tuple))
        ):
            return left + right if len(left) + len(right) <= _MOST_ITEMS else NotImplemented
        known = _NUMBERS.get(type(node.op))
        if known is None or not all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in (left, right)):
            return NotImplemented
        if isinstance(node.op, ast.Pow) and abs(right) > 32:
            return NotImplemented
        try:
            found = known(left, right)
        except ArithmeticError:
            return NotImplemented
        return found if isinstance(found, (int, float)) else NotImplemented

    def _attribute(self, node: ast.Attribute) -> Any:
        """A value of `_base_`, whose dicts have attributes."""
        value = self.value(node.value)
        known = isinstance(value, dict) and _begins_with_base(node)
        return value.get(node.attr, NotImplemented) if known else NotImplemented

    def _subscript(self, node: ast.Subscript) -> Any:
        value, index = self.value(node.value), self.value(node.slice)
        try:
            return value[index] if isinstance(value, (dict, list, tuple)) else NotImplemented
        except (LookupError, TypeError):
            return NotImplemented


def _begins_with_base(node: ast.expr) -> bool:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "_base_"


def _limited(values: Any) -> Any:
    return list(values) if len(values) <= _MOST_ITEMS else NotImplemented
