"""The text of a manifest: what it says comes back, short lists stand in one line, faults are named first."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from sartorius_infer.errors import ManifestError
from sartorius_infer.manifest.manifest import Manifest, load_manifest, parse_manifest
from sartorius_infer.manifest.writing import content_of, manifest_text, with_entries, write_manifest

PATH = Path("somewhere.json")
OWN = json.loads((ROOT / "weights_manifest.json").read_text())

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
fractions = st.floats(0, 1)
files = st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9})?\.pth", fullmatch=True)


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """The JSON of a manifest that can be, of any length and with any text in it."""
    classes = draw(st.lists(names, min_size=1, max_size=12, unique=True))
    sizes = draw(st.lists(st.lists(st.floats(1, 512), min_size=1, max_size=9), min_size=1, max_size=5))
    model = {"file": draw(files), "licence": draw(names), "preprocessing": {"normalise": []}}
    entries = [
        model | {"name": name, "network": {"anchors": {"sizes": sizes}}}
        for name in draw(st.lists(names, min_size=1, max_size=3, unique=True))
    ]
    rules = {"per_class": {name: {"score": draw(fractions)} for name in classes[:2]}}
    return {"version": 1, "classes": classes, "models": entries, "rules": rules}


def content(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "classes": ["x", "y"], "models": [{"name": "a", "file": "a.pth"}], **changes}


def fault(said: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        manifest_text(PATH, said)
    assert str(caught.value).startswith(f"{PATH}: ")
    return str(caught.value).removeprefix(f"{PATH}: ")


@settings(max_examples=40, deadline=None)
@given(contents())
def test_what_is_said_comes_back(said: dict[str, Any]) -> None:
    text = manifest_text(PATH, said)
    assert json.loads(text) == said
    assert text.endswith("}\n") and not text.endswith("\n\n")
    manifest = parse_manifest(text, PATH)
    assert json.loads(manifest_text(PATH, manifest)) == said, "nothing that was not said"
    assert parse_manifest(manifest_text(PATH, manifest), PATH) == manifest


@settings(max_examples=40, deadline=None)
@given(contents())
def test_the_format_is_json_with_short_lists_in_one_line(said: dict[str, Any]) -> None:
    """Against the plain layout: the same, but for the breaks within short lists without objects."""
    text, plain = manifest_text(PATH, said), json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    squeezed = [re.sub(r"\n *", " ", each).replace("[ ", "[").replace(" ]", "]") for each in (text, plain)]
    assert squeezed[0] == squeezed[1]
    for line in text.split("\n"):
        found = re.fullmatch(r'\s*(?:"(?:\\.|[^"\\])*": )?(\[.+\]),?', line)
        assert found is None or len(found[1]) <= 96
    letters = re.sub(r'"(\\.|[^"\\])*"', lambda m: "#" * len(m[0]), text)
    for broken in re.findall(r"\[\n[^\[\]{}]*\n *\]", letters):
        assert len(re.sub(r"\n *", " ", broken)) - 2 > 96


def test_the_included_manifest_as_it_is_written() -> None:
    lines = manifest_text(PATH, OWN).splitlines()
    assert '  "$schema": "docs/weights_manifest.schema.json",' in lines
    assert '  "classes": ["shsy5y", "astro", "cort"],' in lines
    assert '          "sizes": [[20], [40], [72], [128], [240]],' in lines
    assert '        "normalise": [' in lines
    assert '            "mean": [0.502],' in lines


def test_what_is_unset_is_left_out() -> None:
    manifest = Manifest.model_validate_json(json.dumps(content()))
    assert content_of(manifest) == content()
    changed = manifest.model_copy(update={"views": ("hflip",)})
    assert content_of(changed) == content(views=["hflip"])


@pytest.mark.parametrize("schema", ["docs/weights_manifest.schema.json", "", None])
def test_a_path_to_the_schema_does_not_move(schema: str | None) -> None:
    manifest = Manifest.model_validate_json(json.dumps(content(**{"$schema": schema})))
    assert content_of(manifest) == content(**{"$schema": schema})
    assert content_of(manifest, moves=True) == content()


def test_the_address_of_the_schema_moves() -> None:
    said = content(**{"$schema": "https://example.org/weights_manifest.schema.json"})
    assert content_of(Manifest.model_validate_json(json.dumps(said)), moves=True) == said


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (content(foo=1), "$.foo: "),
        (content(models=[]), "$.models: "),
        (content(classes=["x", "x"]), "$.classes: expected each once, found 'x' twice"),
        (content(models=[{"name": "a", "file": "a.pth"}] * 2), "$.models[*].name: expected each once"),
        (content(models=[{"name": "a", "file": "a.pth", "weight": float("nan")}]), "$.models[0].weight: "),
        (content(models=[{"name": "a", "file": "/a.pth"}]), "$.models[0].file: expected a path inside"),
        (content(models=[{"name": "a", "file": "b/../../a"}]), "$.models[0].file: expected a path inside"),
        (content(classes=["x", "\udcff"]), "$: Input should be a valid string"),
    ],
)
def test_a_fault_is_named_and_nothing_is_written(tmp_path: Path, said: Any, expected: str) -> None:
    assert fault(said).startswith(expected)
    path = tmp_path / "manifest.json"
    path.write_text("earlier")
    with pytest.raises(ManifestError, match=f"^{path}: "):
        write_manifest(path, said)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_manifest_is_checked_again() -> None:
    """`model_copy` checks nothing."""
    manifest = Manifest.model_validate_json(json.dumps(content())).model_copy(update={"views": ("foo",)})
    assert fault(manifest).startswith("$.views[0]: view 'foo': expected")


def test_what_is_written_loads_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    (tmp_path / "a.pth").write_bytes(b"x")
    said = content(classes=["µ", "b\u2028c", "\x85"])
    before = os.umask(0o022)
    try:
        write_manifest(tmp_path / "manifest.json", said)
    finally:
        os.umask(before)
    assert load_manifest(tmp_path / "manifest.json").manifest.classes == ("µ", "b\u2028c", "\x85")
    assert "µ" in (tmp_path / "manifest.json").read_bytes().decode()
    assert (tmp_path / "manifest.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("place", ["none/manifest.json", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ManifestError, match=f"^{tmp_path / place}: expected a file that can be written"):
        write_manifest(tmp_path / place, content())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_entry_joins_and_every_word_stays(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for name in "ab":
        (tmp_path / f"{name}.pth").write_bytes(b"x")
    said = content(**{"$schema": "x", "fusion": {}, "models": [{"name": "a", "file": "a.pth", "weight": 2}]})
    path.write_text(json.dumps(said))
    more = {"name": "b", "file": "b.pth"}
    assert with_entries(path, [more]) == said | {"models": [*said["models"], more]}
    write_manifest(path, with_entries(path, [more]))
    assert [spec.name for spec in load_manifest(path).manifest.models] == ["a", "b"]
    with pytest.raises(ManifestError, match=re.escape("$.models[*].name: expected each once, found 'b'")):
        write_manifest(path, with_entries(path, [more]))
    path.write_text("{")
    with pytest.raises(ManifestError, match=f"^{path}: expected JSON"):
        with_entries(path, [more])
