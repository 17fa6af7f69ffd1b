"""Mutations of text by its structure: JSON trees, CSV cells, lines and values of YAML, Python, TOML."""

from __future__ import annotations

import csv
import json
import zlib
from copy import deepcopy
from io import StringIO
from random import Random
from typing import Any

from torture.bits import mutate_bits, shuffled

CANARY = "canary"
"""What hostile inputs would make: a file of this name in the current folder."""

_DEEP = 3000
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        0.5,
        1e308,
        -1e308,
        1e-320,
        float("nan"),
        float("inf"),
        2**31,
        2**63,
        10**30,
    ),
    *("", " ", "0", "nan", "1e999", "\0", "\ud800", "é", "../../x", "/etc/passwd", "a" * 5000, "1 2 3"),
    *([], {}, [[]], [None], {"": None}, [1, 2, 3, 4], [[0, 0, 1, 1, 2]], "-1 5", "1 99999999999999999999"),
)
_WORDS: tuple[str, ...] = (
    "",
    " ",
    "nan",
    "-1",
    "0",
    "1",
    "1e308",
    "inf",
    "9" * 30,
    '"',
    "'",
    "\r",
    "\x00",
    "é",
    "a" * 5000,
)
_WORDS += ("1 1 1", "1 1 1 5", "5 -1", "0 3", "99999999 3", "1 9999999999", "3 2 1 2", "None", "<NA>")
_HOSTILE_YAML = (
    f'X: !!python/object/apply:os.system ["touch {CANARY}"]',
    "X: !!python/name:os.system",
    "X: &a [*a]",
    "X: !!binary ====",
    "_BASE_: /dev/zero",
    "_BASE_: ../../../../etc/passwd",
    "X: 2024-99-99",
    "X: !!timestamp 1",
    "<<: [1]",
)
_HOSTILE_PYTHON = (
    f'x = __import__("os").system("touch {CANARY}")',
    f'import os; os.system("touch {CANARY}")',
    f'x = dict(a=open("{CANARY}", "w"))',
    "x = 9 ** 9 ** 9",
    "x = [0] * 10 ** 12",
    "x = 'a' * 10 ** 12",
    "x = range(10 ** 12)",
    "_base_ = '/dev/zero'",
    "_base_ = './config.py'",
    "model = dict(**model, **model)",
    "for i in range(3): model = i",
    "x = " + "(" * 300 + ")" * 300,
    "x = " + "-" * 5000 + "1",
    "x = f'{model}'",
    "x = [i for i in range(10 ** 9)]",
    "x = 1 << 10 ** 9",
)
_HOSTILE_TOML = (
    "x = 1",
    "[network]",
    "[[stages]]",
    "seed = 9e99",
    "name = '../x'",
    "name = ''",
    "x = 1979-99-99",
)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        keys = range(len(node)) if isinstance(node, list) else list(node)
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], (list, dict)):
                left.append(node[key])
    return found


def _nested(rng: Random) -> Any:
    """A value that is deep, on the whole."""
    value: Any = 1
    for _ in range(rng.choice((50, 900))):
        value = [value] if rng.randrange(2) else {"a": value}
    return value


def mutate_tree(tree: Any, rng: Random) -> Any:
    """A tree of JSON with another value, a key lost, renamed, doubled or added somewhere; in place."""
    places = _places(tree)
    if not places:
        return deepcopy(rng.choice(_VALUES))
    node, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice((f"{key}s", "", key.upper(), "__class__"))] = node.pop(key)
    elif kind == 2 and isinstance(node, list):
        node[:] = shuffled(node, rng)
    elif kind == 3:
        other, other_key = rng.choice(places)
        node[key] = json.loads(json.dumps(other.get(other_key) if isinstance(other, dict) else None))
    elif kind == 4 and rng.randrange(4) == 0:
        node[key] = _nested(rng)
    else:
        node[key] = deepcopy(rng.choice(_VALUES))  # others change it in place
    return tree


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Another tree; now and then as other text: doubled keys, other encodings, brackets without end."""
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = mutate_tree(tree, rng)
    try:
        text = json.dumps(tree)
    except RecursionError:  # a deep value within a deep one
        return b"[" * 2000 + data
    kind = rng.randrange(20)
    if kind == 0:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    if kind == 1:
        return rng.choice(("[", '{"a":', "[" * _DEEP)).encode() * rng.choice((1, _DEEP)) + text.encode()
    if kind == 2:
        return text.replace(":", ": 1, ", 1).encode()
    if kind == 3:
        return mutate_bits(text.encode(), rng)
    return text.encode()


def mutate_csv(data: bytes, rng: Random) -> bytes:
    """Other cells; rows and columns lost, doubled or moved; other separators and encodings."""
    rows = list(csv.reader(StringIO(data.decode())))
    for _ in range(rng.choice((1, 1, 2, 5))):
        kind, at = rng.randrange(5), rng.randrange(len(rows))
        if kind == 0:
            rows = shuffled(rows, rng) or [[]]
        elif kind == 1:
            rows[at] = shuffled(rows[at], rng)
        elif kind == 2:
            column = rng.randrange(max(1, len(rows[0])))
            rows = [row[:column] + row[column + 1 :] for row in rows]
        elif rows[at]:
            rows[at][rng.randrange(len(rows[at]))] = rng.choice(_WORDS)
    text = StringIO()
    csv.writer(
        text, delimiter=rng.choice(",,,,,,;\t"), lineterminator=rng.choice(("\n", "\n", "\r\n", "\r"))
    ).writerows(rows)
    if rng.randrange(12) == 0:
        return text.getvalue().encode(rng.choice(("utf-16", "utf-8-sig")))
    return text.getvalue().encode("utf-8", "replace")


def _mutate_lines(data: bytes, rng: Random, hostile: tuple[str, ...]) -> bytes:
    """Lines lost, doubled, moved; words of them replaced; hostile lines among them."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind, at = rng.randrange(4), rng.randrange(len(lines))
        if kind == 0:
            lines = shuffled(lines, rng) or [""]
        elif kind == 1:
            lines.insert(at, rng.choice(hostile))
        else:
            words = lines[at].replace("=", " = ").replace(",", " , ").split(" ")
            word = rng.choice([i for i, word in enumerate(words) if word] or [0])
            words[word] = rng.choice((*_WORDS, "[]", "{}", "[1, 2]", "true", "None", "~", "(", "1.5"))
            lines[at] = " ".join(words)
    return "\n".join(lines).encode("utf-8", "replace")


def mutate_yaml(data: bytes, rng: Random) -> bytes:
    """Other lines and values of a Detectron2 config."""
    return _mutate_lines(data, rng, _HOSTILE_YAML)


def mutate_python(data: bytes, rng: Random) -> bytes:
    """Other lines and values of an MMDetection config."""
    return _mutate_lines(data, rng, _HOSTILE_PYTHON)


def mutate_toml(data: bytes, rng: Random) -> bytes:
    """Other lines and values of a recipe."""
    return _mutate_lines(data, rng, _HOSTILE_TOML)


def mutate_journal(data: bytes, rng: Random) -> bytes:
    """Records with other content under a right checksum, lost, doubled or moved."""
    lines = data.splitlines(keepends=True)
    if rng.randrange(3) == 0:
        lines = shuffled(lines, rng)
        return b"".join(lines)
    at = rng.randrange(len(lines))
    text = json.dumps(mutate_tree(json.loads(lines[at][9:]), rng)).encode()
    lines[at] = b"%08x %b\n" % (zlib.crc32(text), text)
    return b"".join(lines)
