"""The manifest: every fault named by its place, paths that stay inside, files held to their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from sartorius_infer.competition import default_classes, default_rules
from sartorius_infer.errors import ManifestError
from sartorius_infer.manifest.manifest import Plan, json_schema, load_manifest

OWN = json.loads((ROOT / "weights_manifest.json").read_text())
WEIGHTS = b"weights"
SHA = hashlib.sha256(WEIGHTS).hexdigest()


def content(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "classes": ["x", "y"], "models": [{"name": "a", "file": "a.pth"}], **changes}


def entry(**changes: Any) -> dict[str, Any]:
    return content(models=[{"name": "a", "file": "a.pth", **changes}])


def network(**changes: Any) -> dict[str, Any]:
    return entry(network=changes)


def seen(**changes: Any) -> dict[str, Any]:
    return entry(preprocessing=changes)


def rule(**changes: Any) -> dict[str, Any]:
    return content(rules={"per_class": {"x": changes}})


def written(folder: Path, what: Any) -> Path:
    """A manifest of this content, or this text, beside a file `a.pth`."""
    folder.mkdir(exist_ok=True)
    (folder / "a.pth").write_bytes(WEIGHTS)
    path = folder / "manifest.json"
    path.write_text(what if isinstance(what, str) else json.dumps(what), encoding="utf-8")
    return path


def load(folder: Path, what: Any) -> Plan:
    return load_manifest(written(folder, what))


def fault(path: Path) -> str:
    """What is wrong with a manifest, in one line that names the file."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_the_least_manifest_has_the_documented_defaults(tmp_path: Path) -> None:
    plan = load(tmp_path, content())
    (model,) = plan.manifest.models
    assert plan.path(model) == tmp_path / "a.pth"
    assert (plan.manifest.views, plan.manifest.fusion.method, model.weight) == (("identity",), "wbf", 1.0)
    assert model.network_settings() == {}
    assert plan.path(plan.manifest.models[0]).is_file()


@pytest.mark.parametrize(
    ("said", "limits"),
    [({}, None), ({"bits": 12}, (0, 4095)), ({"bits": 16}, (0, 65535)), ({"range": [90, 3000]}, (90, 3000))],
)
def test_how_images_are_read(tmp_path: Path, said: dict[str, Any], limits: tuple[int, int] | None) -> None:
    assert load(tmp_path, content(images=said)).manifest.images.limits == limits


def test_settings_hold_only_what_is_written(tmp_path: Path) -> None:
    said = {"rpn": {"nms": 0.5}, "anchors": {"sizes": [[8], [16]]}, "body": None, "box_pool": {}}
    (model,) = load(tmp_path, network(**said)).manifest.models
    assert model.network_settings() == {
        "rpn": {"nms": 0.5},
        "anchors": {"sizes": ((8.0,), (16.0,))},
        "box_pool": {},
    }


MODEL, LOOK, NET = "$.models[0]", "$.models[0].preprocessing", "$.models[0].network"

WRONG_VERSIONS: list[Any] = [0, 2, "1", True, 1.0, None]
WRONG_CLASSES: list[Any] = [[], "xy", ["x", "x"], {"x": 1}]
FAULTS: list[tuple[str, Any]] = [
    ("$", []),
    ("$", None),
    ("$.foo", content(foo=1)),
    ("$.schema_", content(schema_="x")),
    ("$.$schema", content(**{"$schema": 1})),
    ("$.version", {k: v for k, v in content().items() if k != "version"}),
    *(("$.version", content(version=v)) for v in WRONG_VERSIONS),
    *(("$.classes", content(classes=v)) for v in WRONG_CLASSES),
    *(("$.classes[1]", content(classes=["x", v])) for v in ("", 1, None)),
    ("$.models", content(models=[])),
    ("$.models", content(models={})),
    ("$.models", content(models=None)),
    ("$.models[0]", content(models=["a.pth"])),
    ("$.models[*].name", content(models=[{"name": "a", "file": "a.pth"}] * 2)),
    ("$.models[1].name", content(models=[{"name": "a", "file": "a.pth"}, {"file": "a.pth"}])),
    ("$.models[1].file", content(models=[{"name": "a", "file": "a.pth"}, {"name": "b"}])),
    *((f"{MODEL}.{key}", entry(**{key: ""})) for key in ("name", "file")),
    *((f"{MODEL}.{key}", entry(**{key: 1})) for key in ("architecture", "provenance", "licence", "format")),
    *((f"{MODEL}.sha256", entry(sha256=v)) for v in ("", "ab", "A" * 64, "a" * 64 + "\n", 1)),
    *((f"{MODEL}.bytes", entry(bytes=v)) for v in (0, -1, 1.5, "1", True)),
    (f"{MODEL}.format", entry(format="onnx")),
    *((f"{MODEL}.weight", entry(weight=v)) for v in (0, -1, "1", True, None, float("nan"), float("inf"))),
    *((f"{MODEL}.classes", entry(classes=v)) for v in ([], ["z"], ["x", "x"])),
    *(("$.images.bits", content(images={"bits": v})) for v in (7, 17, 12.0, "12")),
    *(("$.images.range", content(images={"range": v})) for v in ([5, 5], [9, 2])),
    *(("$.images.range[1]", content(images={"range": v})) for v in ([0], [0, 65536], [0, 9.5])),
    ("$.images.range", content(images={"range": [0, 1, 2]})),
    ("$.images", content(images={"bits": 12, "range": [0, 4095]})),
    ("$.images.foo", content(images={"foo": 1})),
    ("$.views", content(views=[])),
    ("$.views", content(views=["hflip", "hflip"])),
    *(("$.views[1]", content(views=["identity", v])) for v in ("foo", "scale:9", "scale:nan", "")),
    ("$.views[0]", content(views=[1])),
    ("$.fusion.method", content(fusion={"method": "mean"})),
    *(("$.fusion.iou", content(fusion={"iou": v})) for v in (1.1, -0.1, "0.5")),
    ("$.fusion.foo", content(fusion={"foo": 1})),
    ("$.rules.per_class.z", content(rules={"per_class": {"z": {}}})),
    *(("$.rules.per_class.x.mask", rule(mask=v)) for v in (0, 1)),
    *(("$.rules.per_class.x.min_area", rule(min_area=v)) for v in (-1, 1.5)),
    ("$.rules.per_class.x.foo", rule(foo=1)),
    ("$.rules.per_class.x.edge.min_area", rule(edge={"score": 0.5})),
    ("$.rules.edge.mode", content(rules={"edge": {"mode": "cut"}})),
    (f"{LOOK}.foo", seen(foo=1)),
    (f"{LOOK}.colour", seen(colour="grey")),
    *((f"{LOOK}.resize", seen(resize=v)) for v in ({}, {"shortest_edge": 8}, {"longest_edge": 8}, 800)),
    (f"{LOOK}.resize", seen(resize={"shortest_edge": 8, "longest_edge": 9, "exact_hw": [8, 8]})),
    *((f"{LOOK}.resize.exact_hw", seen(resize={"exact_hw": v})) for v in ([8, 8, 8], 8)),
    (f"{LOOK}.resize.exact_hw[0]", seen(resize={"exact_hw": [0, 8]})),
    (f"{LOOK}.resize.shortest_edge", seen(resize={"shortest_edge": 8.0, "longest_edge": 9})),
    (LOOK, seen(resize_before={"exact_hw": [8, 8]}, resize={"exact_hw": [8, 8], "interpolation": "pil"})),
    (f"{LOOK}.normalise", seen(normalise="imagenet")),
    (f"{LOOK}.normalise[1]", seen(normalise=["imagenet", "imagenett"])),
    (f"{LOOK}.normalise[0]", seen(normalise=[{"mean": [0, 0], "std": [1, 1]}])),
    (f"{LOOK}.normalise[0].std", seen(normalise=[{"mean": [0]}])),
    (f"{LOOK}.normalise[0].std[2]", seen(normalise=[{"mean": [0], "std": [1, 1, 0]}])),
    (f"{NET}.foo", network(foo=1)),
    (f"{NET}.rpn.foo", network(rpn={"foo": 1})),
    (f"{NET}.body", network(body="vgg16")),
    (f"{NET}.body_norm.kind", network(body_norm={"kind": "instance"})),
    (f"{NET}.detection.per_image", network(detection={"per_image": 0})),
    (f"{NET}.anchors.sizes[1][0]", network(anchors={"sizes": [[8], [0]]})),
]


@pytest.mark.parametrize(("place", "what"), FAULTS)
def test_a_fault_is_named_by_its_json_path(tmp_path: Path, place: str, what: Any) -> None:
    assert fault(written(tmp_path, what)).startswith(f"{place}: ")


def places(tree: Any, where: str = "$") -> Iterator[tuple[str, Any, Any]]:
    """Every (JSON path, container, key or index) in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        there = f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}"
        yield there, tree, key
        if isinstance(value, dict | list):
            yield from places(value, there)


OWN_PLACES = [place for place, _, _ in places(OWN)]
OWN_OBJECTS = ["$", *(place for place, holder, key in places(OWN) if isinstance(holder[key], dict))]


def changed(place: str, value: Any) -> Any:
    """The repository's own manifest with another value at one place."""
    tree = json.loads(json.dumps(OWN))
    holder, key = next((holder, key) for there, holder, key in places(tree) if there == place)
    holder[key] = value
    return tree


@pytest.mark.parametrize("place", OWN_PLACES)
def test_a_wrong_type_anywhere_is_named(tmp_path: Path, place: str) -> None:
    assert fault(written(tmp_path, changed(place, [[["wrong"]]]))).startswith(place)


@pytest.mark.parametrize("place", OWN_OBJECTS)
def test_an_unknown_key_anywhere_is_named(tmp_path: Path, place: str) -> None:
    tree = {"$": json.loads(json.dumps(OWN))}
    holder: Any = tree["$"]
    if place != "$":
        holder = next(h[k] for there, h, k in places(holder) if there == place)
    holder["unheard_of"] = {}
    assert fault(written(tmp_path, tree["$"])).startswith(f"{place}.unheard_of: ")


TWICE = '{"version": 1, "version": 1}'
NOT_JSON = ["", "{", '{"version": 1,}', "// hi\n{}", "[" * 100_000, TWICE]


@pytest.mark.parametrize("text", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_json(tmp_path: Path, text: str) -> None:
    assert fault(written(tmp_path, text)).startswith("expected JSON, found ")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_fault(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, content())
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert load_manifest(path).manifest.classes == ("x", "y")


@settings(max_examples=30)
@given(st.text())
def test_no_text_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assert fault(written(tmp_path_factory.getbasetemp() / "text", text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\x80{}")
    for path in (tmp_path, tmp_path / "absent.json", tmp_path / "binary.json"):
        assert fault(path).startswith("expected a readable JSON file, found ")


def test_paths_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "folder", entry(file="./a.pth"))
    plan = load_manifest(Path("folder/manifest.json"))
    assert plan.path(plan.manifest.models[0]).read_bytes() == WEIGHTS


@pytest.fixture
def guarded(tmp_path: Path) -> Path:
    """A folder with files to lead out of it, and to stay in it."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "out.pth").write_bytes(WEIGHTS)
    (folder / "sub" / "b.pth").write_bytes(WEIGHTS)
    links = {"out": tmp_path / "out.pth", "up": Path(".."), "in": Path("a.pth"), "loop": Path("loop.pth")}
    for name, target in links.items():
        os.symlink(target, folder / (name if name == "up" else f"{name}.pth"))
    return folder


ESCAPES = ["../out.pth", "out.pth", "up/out.pth", "sub/../../out.pth", "../folder/a.pth", "sub/../a.pth"]


@pytest.mark.parametrize("file", [*ESCAPES, "{folder}/a.pth", "{folder}/../out.pth"])
def test_a_path_may_not_leave_the_folder(guarded: Path, file: str) -> None:
    file = file.format(folder=guarded)
    said = fault(written(guarded, entry(file=file)))
    assert said == f"$.models[0].file: expected a path inside the manifest's folder, found {file!r}"


@pytest.mark.parametrize("file", ["absent.pth", "sub", ".", "~/a.pth", "sub\\b.pth", "a\0.pth", "loop.pth"])
def test_a_path_must_lead_to_a_file(guarded: Path, file: str) -> None:
    assert fault(written(guarded, entry(file=file))).startswith("$.models[0].file: expected a ")


def test_a_path_too_long_for_any_file(guarded: Path) -> None:
    assert "File name too long" in fault(written(guarded, entry(file="a" * 5000)))


@pytest.mark.parametrize("file", ["a.pth", "./a.pth", "sub/b.pth", "in.pth"])
def test_paths_inside(guarded: Path, file: str) -> None:
    plan = load_manifest(written(guarded, entry(file=file, sha256=SHA)))
    assert plan.path(plan.manifest.models[0]).is_file()


def test_the_folder_itself_may_be_a_link(guarded: Path) -> None:
    written(guarded, entry(sha256=SHA))
    os.symlink(guarded, guarded.parent / "link")
    load_manifest(guarded.parent / "link" / "manifest.json")


def test_a_network_may_know_other_classes_too(tmp_path: Path) -> None:
    (model,) = load(tmp_path, entry(classes=["z", "x"])).manifest.models
    assert model.classes == ("z", "x")


def test_the_repository_has_a_sound_manifest() -> None:
    plan = load_manifest(ROOT / "weights_manifest.json")
    assert all(model.sha256 and model.bytes and model.licence for model in plan.manifest.models)
    assert plan.path(plan.manifest.models[0]).is_file()


def test_the_published_schema_is_the_code_s() -> None:
    published = (ROOT / "docs" / "weights_manifest.schema.json").read_text()
    assert published == json.dumps(json_schema(), indent=2) + "\n"
    assert (ROOT / OWN["$schema"]).samefile(ROOT / "docs" / "weights_manifest.schema.json")


def test_the_schema_is_as_strict_as_the_code() -> None:
    schema = json_schema()
    for name, part in {"Manifest": schema, **schema["$defs"]}.items():
        assert part["additionalProperties"] is False, name
    assert schema["required"] == ["version", "classes", "models"]
    assert schema["properties"]["version"]["minimum"] == schema["properties"]["version"]["maximum"] == 1


@pytest.mark.parametrize(
    ("count", "names"), [(1, ("cell",)), (2, ("class1", "class2")), (3, ("shsy5y", "astro", "cort"))]
)
def test_defaults_of_bare_checkpoints(count: int, names: tuple[str, ...]) -> None:
    assert default_classes(count) == names
    assert set(default_rules(names).per_class) == (set(names) if count == 3 else set())
