"""Config text is read as literals and dict(...) calls; nothing in it runs."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet_runs import HTC, dumped, values_of

from sartorius_infer.errors import CheckpointError
from sartorius_infer.networks.mmdet.config_text import Unread, merged, read_file, read_text


def read(text: str) -> dict[str, Any]:
    return read_text(dedent(text), "a config")


def refused(text: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(text)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Expressions.

leaves = st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(-1e6, 1e6) | st.text(max_size=8)
names = st.from_regex(r"[a-z_][a-z_0-9]{0,6}", fullmatch=True)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(names | st.sampled_from(["a-b", "0", "two words"]), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=150)
@given(st.dictionaries(st.from_regex(r"v_[a-z]{1,5}", fullmatch=True), trees, max_size=4))
def test_what_is_dumped_is_read_again(values: dict[str, Any]) -> None:
    keywords = {"dict", "class", "if", "is", "in", "or", "as", "and", "def", "not", "for", "try", "del"}
    text = repr(values)
    if not any(f"'{word}'" in text for word in keywords):
        assert read(dumped(values)) == values
    assert read(f"x = {values!r}") == {"x": values}


@pytest.mark.parametrize("dialect", [2, 3])
def test_a_whole_config_is_read_again(dialect: int) -> None:
    values = values_of(dialect, HTC)
    assert read(dumped(values)) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(a=1, **dict(b=2))", {"a": 1, "b": 2}),
        ("dict(dict(a=1), a=2)", {"a": 2}),
        ("{'a': 1, **{'b': (2, 3)}}", {"a": 1, "b": (2, 3)}),
        ("[*range(2, 5), -1]", [2, 3, 4, -1]),
        ("list(range(3))", [0, 1, 2]),
        ("tuple([1, 2])", (1, 2)),
        ("1 / 16 + 2 ** 3 * 0.5 - 7 % 4", 1.0625),
        ("-(3 // 2)", -1),
        ("'a' 'b' + 'c'", "abc"),
        ("[1] + [2]", [1, 2]),
        ("not True", False),
        ("dict(a=[1, dict(b=2)])['a'][1]['b']", 2),
    ],
)
def test_expressions(text: str, value: object) -> None:
    (found,) = read(f"x = {text}").values()
    assert found == value
    assert type(found) is type(value)


def test_names_are_what_they_were_given_before() -> None:
    found = read(
        """
        # Comments and text are nothing.
        "A model."
        norm = dict(type='BN', requires_grad=True)
        mean = norm2 = [1.5, 2]
        model = dict(backbone=dict(norm_cfg=norm), mean=mean, norm=norm['type'])
        norm = None
        """
    )
    assert found["model"] == {
        "backbone": {"norm_cfg": {"type": "BN", "requires_grad": True}},
        "mean": [1.5, 2],
        "norm": "BN",
    }
    assert found["norm2"] == [1.5, 2]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch PATH')",
        "open('PATH', 'w')",
        "(lambda: 1)()",
        "[x for x in range(3)]",
        "f'{1}'",
        "unknown",
        "dict.fromkeys('a')",
        "().__class__.__base__.__subclasses__()",
        "eval('1')",
        "'a' * 3",
        "[0] * 10",
        "10 ** 10 ** 10",
        "range(10 ** 8)",
        "1 / 0",
        "1 if True else 2",
        "b'x'",
        "3 + 4j",
        "...",
        "dict([('a', 1)])",
        "{1, 2}",
        "True and False",
        "(y := 3)",
    ],
)
def test_more_than_literals_stays_unread(text: str, tmp_path: Path) -> None:
    text = text.replace("PATH", (tmp_path / "touched").as_posix())
    found = read(f"x = {text}\ny = dict(a=1, b={text.replace('y := 3', 'z := 3')})")
    assert isinstance(found["x"], Unread)
    assert found["y"]["a"] == 1
    assert isinstance(found["y"]["b"], Unread)
    assert not (tmp_path / "touched").exists()


def test_imports_bind_names_that_stay_unread() -> None:
    found = read("import os.path as p\nfrom a import b\nx = p.join('a', b)\ny = 2")
    assert isinstance(found["x"], Unread)
    assert repr(found["x"]) == "p.join('a', b)"
    assert found["y"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "model = dict(a=1)\nmodel['a'] = 2",
        "model = dict(a=1)\nmodel.update(a=2)",
        "a, b = 1, 2",
        "x = 1\nx += 1",
        "if True:\n    x = 1",
        "for i in range(3):\n    x = i",
        "with read_base():\n    from .a import *",
        "def f():\n    return 1",
        "x = 1\ndel x",
        "print('x')",
    ],
)
def test_other_statements_are_refused_by_their_line(text: str) -> None:
    line = len(text.splitlines()) if text.startswith(("model", "x")) else 1
    assert f"a config: line {line}: expected names given literals and dict(...) calls" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "x = (",
        "x = 1\x00",
        "/home/a/config.py\nx = 1 2",
        "[" * 5000 + "]" * 5000,
        "x = " + "-" * 50_000 + "1",
    ],
)
def test_what_is_no_python_is_refused(text: str) -> None:
    assert "a config: " in refused(text)


def test_a_long_sum_is_no_way_out() -> None:
    text = "a = 'x' * 1\na = 'xxxxxxxxxx'\n" + "a = a + a\n" * 60
    assert isinstance(read(text)["a"], Unread)
    text = "a = [1, 2]\n" + "a = [*a, *a]\n" * 40
    read(text)


# Bases.


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(dedent(text), encoding="utf-8")
    return folder / "config.py"


def test_bases_are_followed_and_overridden(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        model="model = dict(type='A', neck=dict(a=1, b=2), heads=[1, 2], keep=dict(x=1))\nmean = [1, 2, 3]",
        data="_base_ = 'more.py'\ndata = dict(test=dict(pipeline=[dict(type='Load')]))",
        more="extra = dict(a=dict(b=(1, 2)))",
        config="""
        _base_ = ['./model.py', 'data.py']
        model = dict(neck=dict(b=3), heads=[3], keep=dict(_delete_=True, y=2))
        pipeline = {{_base_.data.test.pipeline}}
        data = dict(test=dict(mean={{_base_.mean}}, first=_base_.extra.a.b[0], second=_base_.mean[1]))
        """,
    )
    found = read_file(path)
    assert found["model"] == {"type": "A", "neck": {"a": 1, "b": 3}, "heads": [3], "keep": {"y": 2}}
    assert found["pipeline"] == [{"type": "Load"}]
    test = {"pipeline": [{"type": "Load"}], "mean": [1, 2, 3], "first": 1, "second": 2}
    assert found["data"] == {"test": test}
    assert found["extra"] == {"a": {"b": (1, 2)}}


@pytest.mark.parametrize("base", ["'gone.py'", "['model.py', 'gone.py']", "'mmdet::gone.py'", "'a\\0b'"])
def test_a_missing_base_is_named(tmp_path: Path, base: str) -> None:
    path = write(tmp_path, model="x = 1", config=f"_base_ = {base}")
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert f"{path}: _base_: expected " in str(caught.value)
    assert "gone.py" in str(caught.value) or "\\x00" in str(caught.value)


def test_circles_and_strange_bases(tmp_path: Path) -> None:
    path = write(tmp_path, config="_base_ = 'other.py'", other="_base_ = 'config.py'")
    with pytest.raises(CheckpointError, match="circle"):
        read_file(path)
    write(tmp_path, config="_base_ = 3")
    with pytest.raises(CheckpointError, match="_base_: expected names of files, found 3"):
        read_file(path)
    assert "_base_: expected a whole config" in refused("_base_ = 'a.py'\nx = 1")


def test_files_that_are_no_config(tmp_path: Path) -> None:
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "bytes.py", tmp_path / "none.py", tmp_path):
        with pytest.raises(CheckpointError) as caught:
            read_file(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_dicts_that_hold_each_other_end() -> None:
    tree: dict[str, Any] = {"a": 1}
    for _ in range(40):
        tree = {"l": tree, "r": tree}
    with pytest.raises(CheckpointError, match="keys or more"):
        merged(tree, tree, "a config")
