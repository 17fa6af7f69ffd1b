"""A manifest at another place: it loads there, its files are those it named, nothing else is touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from kits import contents

from sartorius_infer.checkpoints.files import verify_files
from sartorius_infer.errors import ManifestError
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest import moving
from sartorius_infer.manifest.manifest import Manifest, Plan, load_manifest
from sartorius_infer.manifest.moving import move, write_moved


def plan_of(folder: Path, *files: str, **changes: Any) -> Plan:
    """A manifest in `folder` whose networks are these files, each of a content of its own."""
    entries = []
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / file).exists():
            (folder / file).write_bytes(f"weights of {file}".encode())
        entries.append({"name": str(len(entries)), "file": file, **changes})
    content = {"$schema": "docs/schema.json", "version": 1, "classes": ["x"], "models": entries}
    (folder / "manifest.json").write_text(json.dumps(content))
    return load_manifest(folder / "manifest.json")


def brought(plan: Plan, out: Path) -> Plan:
    """What was written at `out`, loaded and verified; the sources are as they were."""
    before = contents(plan.folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    moved = move(plan, out)
    write_moved(moved, moved.content)
    assert {k: v for k, v in contents(plan.folder).items() if k in before} == before
    found = load_manifest(out)
    verify_files(found)
    for old, new in zip(plan.manifest.models, found.manifest.models, strict=True):
        assert found.path(new).read_bytes() == plan.path(old).read_bytes()
    return found


def named(plan: Plan) -> list[str]:
    return [spec.file for spec in plan.manifest.models]


def test_what_a_manifest_says_of_large_images_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    plan_of(folder, "a.pth")
    said = {"learned_hw": [300, 400], "tile": [200, 250], "magnification": 1.5}
    content = json.loads((folder / "manifest.json").read_text()) | said
    (folder / "manifest.json").write_text(json.dumps(content))
    found = brought(load_manifest(folder / "manifest.json"), tmp_path / "far" / "there.json")
    assert json.loads((tmp_path / "far" / "there.json").read_text()).items() >= said.items()
    assert found.manifest.learned_hw == (300, 400)


def test_in_place_everything_stays_as_it_was_said(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "kit", "a.pth", "weights/b.pth")
    found = brought(plan, tmp_path / "kit" / "tuned.json")
    assert found.manifest == plan.manifest
    assert set(contents(tmp_path / "kit")) == {"a.pth", "weights/b.pth", "manifest.json", "tuned.json"}


def test_from_above_files_are_named_as_seen_from_there(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "kit", "a.pth", "weights/b.pth")
    found = brought(plan, tmp_path / "tuned.json")
    assert named(found) == ["kit/a.pth", "kit/weights/b.pth"]
    assert found.manifest.schema_ is None
    assert not (tmp_path / "tuned_weights").exists()


def test_elsewhere_files_come_along(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "kit", "a.pth", "weights/b.pth")
    found = brought(plan, tmp_path / "far" / "tuned.json")
    assert named(found) == ["tuned_weights/a.pth", "tuned_weights/b.pth"]
    for old, new in zip(plan.manifest.models, found.manifest.models, strict=True):
        assert found.path(new).samefile(plan.path(old)), "linked, no byte is there twice"
        assert (new.sha256, new.bytes) == (file_sha256(plan.path(old)), plan.path(old).stat().st_size)
    assert set(contents(tmp_path / "far")) == {"tuned.json", *named(found)}


def test_equal_names_from_two_folders(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "kit", "a/fold.pth", "b/fold.pth", "a/fold.pth", "c/fold_2.pth")
    found = brought(plan, tmp_path / "far" / "tuned.json")
    assert named(found) == [
        *("tuned_weights/fold.pth", "tuned_weights/fold_2.pth"),
        *("tuned_weights/fold.pth", "tuned_weights/fold_2_2.pth"),
    ]
    assert len(list((tmp_path / "far" / "tuned_weights").iterdir())) == 3


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    plan, out = plan_of(tmp_path / "kit", "a/fold.pth", "b/fold.pth"), tmp_path / "far" / "tuned.json"
    brought(plan, out)
    before = contents(out.parent)
    brought(plan, out)
    assert contents(out.parent) == before


def test_a_copy_of_the_same_content_is_taken_and_another_file_stays(tmp_path: Path) -> None:
    plan, folder = plan_of(tmp_path / "kit", "a.pth", "b.pth"), tmp_path / "far" / "tuned_weights"
    folder.mkdir(parents=True)
    (folder / "a.pth").write_bytes((tmp_path / "kit" / "a.pth").read_bytes())
    (folder / "b.pth").write_bytes(b"weights of B.pth")  # as long, but another
    (folder / "b_2.pth").symlink_to("nowhere")
    found = brought(plan, tmp_path / "far" / "tuned.json")
    assert named(found) == ["tuned_weights/a.pth", "tuned_weights/b_3.pth"]
    assert (folder / "b.pth").read_bytes() == b"weights of B.pth"
    assert not (folder / "a.pth").samefile(tmp_path / "kit" / "a.pth")


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_links_cannot_be_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    plan = plan_of(tmp_path / "kit", "a.pth")
    monkeypatch.setattr(os, "link", refuse)
    found = brought(plan, tmp_path / "far" / "tuned.json")
    assert not (tmp_path / "far" / named(found)[0]).samefile(tmp_path / "kit" / "a.pth")
    assert set(contents(tmp_path / "far")) == {"tuned.json", "tuned_weights/a.pth"}


def test_a_checkpoint_behind_a_link_is_the_file_itself(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "kit", "a.pth")
    (tmp_path / "kit" / "b.pth").symlink_to("a.pth")
    content = json.loads((tmp_path / "kit" / "manifest.json").read_text())
    content["models"][0]["file"] = "b.pth"
    plan = Plan(Manifest.model_validate_json(json.dumps(content)), tmp_path / "kit")
    found = brought(plan, tmp_path / "far" / "tuned.json")
    assert named(found) == ["tuned_weights/a.pth"]
    assert not found.path(found.manifest.models[0]).is_symlink()


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_of(tmp_path / "kit", "a.pth")
    (tmp_path / "far").mkdir()
    for cwd, kit, out in (
        ("far", "../kit", "t.json"),
        ("kit", ".", "../far/u.json"),
        (".", "kit", "far/v.json"),
    ):
        monkeypatch.chdir(tmp_path / cwd)
        found = brought(load_manifest(Path(kit) / "manifest.json"), Path(out))
        assert named(found) == [f"{Path(out).stem}_weights/a.pth"]


def test_bare_checkpoints_name_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an absolute path, or one from the folder where the command runs."""
    plan_of(tmp_path / "kit", "a.pth", "b.pth")
    content = {"version": 1, "classes": ["x"], "models": []}
    for name, file in (("a", str(tmp_path / "kit" / "a.pth")), ("b", "kit/b.pth")):
        content["models"] = [*content["models"], {"name": name, "file": file}]  # type: ignore[misc]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    moved = move(Plan(Manifest.model_validate_json(json.dumps(content)), Path()), Path("far/t.json"))
    assert write_moved(moved, moved.content) == [Path(f"far/t_weights/{name}.pth") for name in "ab"]
    verify_files(load_manifest(Path("far/t.json")))


def test_what_is_not_named_any_more_does_not_come(tmp_path: Path) -> None:
    plan, out = plan_of(tmp_path / "kit", "a.pth", "b.pth"), tmp_path / "far" / "t.json"
    out.parent.mkdir()
    moved = move(plan, out)
    kept = moved.content | {"models": moved.content["models"][1:]}
    assert write_moved(moved, kept) == [out.parent / "t_weights" / "b.pth"]
    assert set(contents(out.parent)) == {"t.json", "t_weights/b.pth"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("change", [{"foo": 1}, {"views": ["foo"]}])
def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path, there: bool, change: dict[str, Any]) -> None:
    plan, out = plan_of(tmp_path / "kit", "a.pth", "b.pth"), tmp_path / "far" / "t.json"
    out.parent.mkdir()
    if there:
        (out.parent / "t_weights").mkdir()
        (out.parent / "t_weights" / "a.pth").write_bytes((tmp_path / "kit" / "a.pth").read_bytes())
    before = sorted(out.parent.rglob("*"))
    moved = move(plan, out)
    with pytest.raises(ManifestError, match=f"^{out}: "):
        write_moved(moved, moved.content | change)
    assert sorted(out.parent.rglob("*")) == before


def test_a_disk_that_is_full_halfway_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_of(tmp_path / "kit", "a.pth", "b.pth"), tmp_path / "far" / "t.json"
    out.parent.mkdir()
    moved, link = move(plan, out), moving._link

    def fill(source: Path, place: Path) -> None:
        if source.name == "b.pth":
            raise OSError(errno.ENOSPC, "No space left on device", str(place))
        link(source, place)

    monkeypatch.setattr(moving, "_link", fill)
    said = f"^{out}: expected room for its weights, found .*No space left on device: .*b.pth"
    with pytest.raises(ManifestError, match=said):
        write_moved(moved, moved.content)
    assert list(out.parent.iterdir()) == []


def test_another_file_that_comes_first_is_not_written_over(tmp_path: Path) -> None:
    plan, out = plan_of(tmp_path / "kit", "a.pth"), tmp_path / "far" / "t.json"
    out.parent.mkdir()
    moved = move(plan, out)
    place = out.parent / "t_weights" / "a.pth"
    place.parent.mkdir()
    place.write_bytes(b"of another run")
    with pytest.raises(ManifestError, match=f"^{place}: expected the content of .*a.pth, found another file"):
        write_moved(moved, moved.content)
    assert contents(out.parent) == {"t_weights/a.pth": b"of another run"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"sha256": hashlib.sha256(b"other").hexdigest()},
            "expected sha256 [0-9a-f]{64}, as the manifest says",
        ),
        ({"bytes": 7}, "expected bytes 7, as the manifest says, found 16"),
    ],
)
def test_weights_that_are_not_what_the_manifest_says(
    tmp_path: Path, entry: dict[str, Any], said: str
) -> None:
    plan = plan_of(tmp_path / "kit", "a.pth", **entry)
    (tmp_path / "far").mkdir()
    with pytest.raises(ManifestError, match=f"^{tmp_path / 'kit' / 'a.pth'}: {said}"):
        move(plan, tmp_path / "far" / "t.json")


def test_places_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, far = plan_of(tmp_path / "kit", "a.pth"), tmp_path / "far"
    far.mkdir()
    (far / "file_weights").write_text("in the way")
    (far / "link_weights").symlink_to(tmp_path / "kit")
    for out, named, said in (
        (far, far, "expected a file to write, found a folder"),
        (far / "none" / "t.json", None, "expected a file in a folder that can be written, found none at "),
        (
            far / "file.json",
            far / "file_weights",
            "expected a folder for weights, or nothing, found something",
        ),
        (
            far / "link.json",
            far / "link_weights",
            "expected a folder for weights, or nothing, found something",
        ),
    ):
        with pytest.raises(ManifestError, match=f"^{re.escape(str(named or out))}: {said}"):
            move(plan, out)
    (tmp_path / "kit" / "a.pth").unlink()
    with pytest.raises(ManifestError, match=r"a\.pth: expected a file that can be read"):
        move(plan, far / "t.json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # an administrator may write anywhere
    with pytest.raises(ManifestError, match=f"^{far / 't.json'}: expected a file in a folder that can be"):
        move(plan, far / "t.json")
