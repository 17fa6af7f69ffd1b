"""A dataset: what is in it, that it is replaced whole or not at all, and what checking it finds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cellpose_cases import saved as save_cellpose
from cellpose_cases import small_state as cellpose_state
from detectron2_factories import settings_and_state, write_network
from kits import any_weights, contents, own_wheel, pack_quickly, read_json, wheels_from_here, write_wheel
from mmdet_runs import HTC
from mmdet_runs import write_run as write_mmdet
from places import ROOT
from safetensors.torch import load_file
from tiny import tiny_model, write_image, write_tiny

from kit import dataset
from kit.dataset import CONTENTS, KIND, LICENCES, METADATA, Built, Metadata, build, verify
from kit.errors import KitError
from kit.wheels import EPOCH, read_image
from sartorius_infer.checkpoints.storage import SCALE, Store
from sartorius_infer.ensemble.importing import import_checkpoint
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import CheckpointError, ManifestError
from sartorius_infer.files import file_sha256
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image as read_pixels
from sartorius_infer.manifest.manifest import MANIFEST_NAME, load_manifest
from sartorius_infer.networks import registry
from sartorius_infer.networks.cellpose.network import CellposeNetwork

ABOUT = Metadata("someone/sartorius-kit", "A kit of cells", "other")
ENSEMBLE_BOXES = "ensemble_boxes-1.0.9-py3-none-any.whl"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels_from_here(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module", autouse=True)
def quickly(wheels: Path) -> Iterator[None]:
    """Building and fetching wheels is tested with them, and by the command line's test."""
    with pytest.MonkeyPatch.context() as patch:
        pack_quickly(patch, wheels)
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as its training left it, with much else in its file."""
    folder = tmp_path_factory.mktemp("trained")
    state = tiny_model().state_dict()
    training = {"state": {0: {"exp_avg": torch.ones(1000, 1000)}}, "param_groups": []}
    other = {key: tensor * 2 for key, tensor in state.items()}
    run = {"student": state, "teacher": other, "optimizer": training, "epoch": 9}
    torch.save(run, folder / "fold0.pth")
    path = write_tiny(folder, views=["identity", "hflip"], **{"$schema": "docs/weights_manifest.schema.json"})
    (folder / "tiny.safetensors").unlink()
    content = read_json(path)
    content["models"][0] |= {"name": "fold 0/ß", "file": "fold0.pth", "weight": 2.5, "format": "torch"}
    content["models"][0]["state"] = "student"
    content["models"][0] |= {"sha256": file_sha256(folder / "fold0.pth"), "licence": "ours"}
    content |= {"learned_hw": [300, 400], "magnification": 1.5}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def built(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(manifest, tmp_path_factory.mktemp("kit") / "dataset", ABOUT, read_image())


@pytest.fixture
def kit(built: Built, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built.folder, tmp_path / "dataset"))


@pytest.fixture(name="any_weights")
def _any_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on the networks, each of which takes a second."""
    monkeypatch.setattr(dataset, "_stored", any_weights)


def packed(manifest: Path, out: Path, **options: Any) -> Built:
    return build(manifest, out, ABOUT, read_image(), **options)


def relist(folder: Path) -> None:
    """Let the list of a dataset agree with what is there."""
    content = read_json(folder / CONTENTS)
    content["files"] = dataset._listing(folder)
    (folder / CONTENTS).write_text(json.dumps(content))


def test_a_dataset_holds_these_files_and_a_list_of_them(built: Built) -> None:
    files = contents(built.folder)
    assert set(files) == {
        *(own_wheel()[0], ENSEMBLE_BOXES, "fold_0.safetensors"),
        *(MANIFEST_NAME, METADATA, CONTENTS),
    }
    assert not [name for name in files if name.startswith("torch")]
    listed = read_json(built.folder / CONTENTS)
    assert (listed["kind"], listed["store"]) == (KIND, "float16")
    assert listed["files"] == {
        name: {"bytes": len(content), "sha256": file_sha256(built.folder / name)}
        for name, content in files.items()
        if name != CONTENTS
    }
    assert built.bytes == sum(map(len, files.values()))


def test_what_kaggle_is_told(built: Built) -> None:
    assert read_json(built.folder / METADATA) == {
        "title": "A kit of cells",
        "id": "someone/sartorius-kit",
        "licenses": [{"name": "other"}],
    }


def test_the_manifest_says_the_same_of_the_new_files(manifest: Path, built: Built) -> None:
    old, new = read_json(manifest), read_json(built.folder / MANIFEST_NAME)
    weights = built.folder / "fold_0.safetensors"
    changed = {"file": weights.name, "sha256": file_sha256(weights), "format": "safetensors"}
    kept = {key: value for key, value in old["models"][0].items() if key != "state"}
    assert new["models"] == [kept | changed | {"bytes": weights.stat().st_size}]
    assert {**new, "models": 0} == {**{k: v for k, v in old.items() if k != "$schema"}, "models": 0}
    load_manifest(built.folder / MANIFEST_NAME)


def test_training_state_is_left_out(manifest: Path, built: Built) -> None:
    state = load_file(built.folder / "fold_0.safetensors")
    assert set(state) == set(tiny_model().state_dict())
    before, after = built.networks["fold 0/ß"]
    assert before == (manifest.parent / "fold0.pth").stat().st_size
    assert after == (built.folder / "fold_0.safetensors").stat().st_size
    assert after < 0.51 * (before - 4_000_000)


@pytest.mark.parametrize("store", ["float32", "int8"])
def test_weights_are_stored_as_asked_for(manifest: Path, tmp_path: Path, store: Store) -> None:
    folder = packed(manifest, tmp_path / "dataset", store=store).folder
    state = load_file(folder / "fold_0.safetensors")
    kinds = {key: tensor.dtype for key, tensor in state.items()}
    key = "backbone.body.conv1.weight"
    assert str(kinds[key]) == f"torch.{store}"
    assert (key + SCALE in kinds) == (store == "int8")
    assert kinds["backbone.body.bn1.bias"] == torch.float32
    assert read_json(folder / CONTENTS)["store"] == store


def predicted(manifest: Path, folder: Path) -> dict[str, Any]:
    (file,) = find_images([write_image(folder / "image.png")])
    (found,) = predict(load_ensemble([manifest], CPU), [read_pixels(file)])
    return {name: getattr(found, name) for name in ("boxes", "scores", "labels", "masks")}


def test_whole_weights_predict_the_same(manifest: Path, tmp_path: Path) -> None:
    one = predicted(manifest, tmp_path)
    other = predicted(packed(manifest, tmp_path / "kit", store="float32").folder / MANIFEST_NAME, tmp_path)
    assert len(one["boxes"]) > 10
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values)


@pytest.mark.slow
def test_a_detectron2_network_is_packed_with_what_its_config_said(tmp_path: Path) -> None:
    checkpoint = write_network(tmp_path, *settings_and_state())
    source = import_checkpoint(checkpoint, tmp_path / "imported").manifest
    one = predicted(source, tmp_path)
    other = predicted(packed(source, tmp_path / "kit", store="float32").folder / MANIFEST_NAME, tmp_path)
    assert len(one["boxes"]) > 0
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", [2, 3])
def test_an_mmdetection_network_is_packed_with_what_its_config_said(dialect: int, tmp_path: Path) -> None:
    source = import_checkpoint(write_mmdet(tmp_path / "run", dialect, HTC), tmp_path / "imported").manifest
    one = predicted(source, tmp_path)
    other = predicted(packed(source, tmp_path / "kit", store="float32").folder / MANIFEST_NAME, tmp_path)
    assert len(one["boxes"]) > 0
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values)


def cellpose_of(manifest: Path) -> CellposeNetwork:
    (member,) = load_ensemble(manifest, CPU).members
    assert isinstance(member.network, CellposeNetwork)
    return member.network


@pytest.mark.parametrize("store", ["float32", "float16", "int8"])
def test_a_cellpose_network_is_packed_with_the_diameter_that_it_knows(store: Store, tmp_path: Path) -> None:
    save_cellpose(tmp_path / "cp", cellpose_state())
    source = tmp_path / MANIFEST_NAME
    source.write_text(
        json.dumps({"version": 1, "classes": ["cort"], "models": [{"name": "a", "file": "cp"}]})
    )
    kept = cellpose_of(packed(source, tmp_path / "kit", store=store).folder / MANIFEST_NAME)
    assert kept.rescale == 1.5
    if store == "float32":
        image = torch.randint(0, 256, (1, 40, 50), dtype=torch.uint8)
        with torch.inference_mode():
            flows = [next(network.flows([image]))[0] for network in (cellpose_of(source), kept)]
        torch.testing.assert_close(*flows, rtol=0, atol=1e-5)


def test_the_same_inputs_give_the_same_bytes_and_times(
    manifest: Path, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder, under another umask, from another path to the same files."""
    elsewhere = shutil.copytree(manifest.parent, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o077)
    try:
        again = packed(Path("moved") / manifest.name, Path("new") / "folder" / "kit")
    finally:
        os.umask(before)
    assert elsewhere.is_dir()
    assert contents(again.folder) == contents(built.folder)
    assert {path.stat().st_mtime for path in (tmp_path / "new").rglob("kit/*")} == {EPOCH}


@pytest.mark.usefixtures("any_weights")
def test_zip_layout_puts_wheels_and_weights_into_folders(manifest: Path, tmp_path: Path) -> None:
    folder = packed(manifest, tmp_path / "kit", folders=True).folder
    assert {path.name for path in folder.iterdir()} == {
        "wheels",
        "weights",
        MANIFEST_NAME,
        METADATA,
        CONTENTS,
    }
    assert {path.name for path in (folder / "wheels").iterdir()} == {own_wheel()[0], ENSEMBLE_BOXES}
    assert load_manifest(folder / MANIFEST_NAME).manifest.models[0].file == "weights/fold_0.safetensors"
    verify(folder)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        *(("fold0", "fold0"), ("a b", "a_b"), ("Fold_1.2-x", "Fold_1.2-x"), ("fold 0/ß", "fold_0")),
        *(("ß", "network"), ("...", "network"), (".hidden", "hidden"), ("../../etc/passwd", "etc_passwd")),
    ],
)
def test_names_become_plain_file_names(name: str, plain: str) -> None:
    assert dataset._plain(name) == plain


@pytest.mark.usefixtures("any_weights")
def test_names_that_are_one_file_are_refused(manifest: Path, tmp_path: Path) -> None:
    twice = manifest.with_name("twice.json")
    content = read_json(manifest)
    content["models"] = [content["models"][0] | {"name": name} for name in ("a b", "a/b")]
    twice.write_text(json.dumps(content))
    with pytest.raises(KitError, match=r"names that differ as files, found a_b\.safetensors twice$"):
        packed(twice, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()


def test_a_plugins_network_is_refused(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notebook would not know it."""

    class Own:
        class_count = 3

        def to(self, device: torch.device) -> Own:
            return self

    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    registry.register_network("own", lambda spec, state, precision: Own(), lambda state: False)  # type: ignore[arg-type, return-value]
    path = manifest.with_name("own.json")
    content = read_json(manifest)
    content["models"] = [{"name": "own", "file": "fold0.pth", "state": "student", "architecture": "own"}]
    path.write_text(json.dumps(content))
    with pytest.raises(KitError, match=r"expected a network that comes with the kit, found a plugin's"):
        packed(path, tmp_path / "kit")


@pytest.mark.usefixtures("any_weights")
def test_an_earlier_dataset_is_replaced_whole(manifest: Path, kit: Path) -> None:
    (kit / "left-over.txt").write_text("from an earlier version")
    packed(manifest, kit, store="int8")
    assert "left-over.txt" not in contents(kit)
    assert read_json(kit / CONTENTS)["store"] == "int8"
    assert [path.name for path in kit.parent.iterdir()] == [kit.name]


@pytest.mark.usefixtures("any_weights")
def test_a_dataset_by_a_relative_path(manifest: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From above, from beside and from below; where nothing is there yet, and in place of an earlier one."""
    (kit.parent / "here").mkdir()
    for cwd, out in (("", kit.name), ("here", f"../{kit.name}"), ("here", "new"), ("here", "../here/new")):
        monkeypatch.chdir(kit.parent / cwd)
        packed(manifest, Path(out), store="int8")
        assert read_json(Path(out) / CONTENTS)["store"] == "int8"
        verify(Path(out))
    (kit.parent / "link").symlink_to(kit.name)
    packed(manifest, Path("../link"), store="float32")
    assert read_json(kit / CONTENTS)["store"] == "float32"
    assert sorted(path.name for path in kit.parent.iterdir()) == [kit.name, "here", "link"]
    assert sorted(path.name for path in Path().iterdir()) == ["new"]


@pytest.mark.parametrize(
    ("inside", "out"), [("", "."), ("", "../dataset"), ("folder", ".."), ("folder", "../")]
)
def test_the_folder_that_this_runs_in_is_not_replaced(
    manifest: Path, kit: Path, monkeypatch: pytest.MonkeyPatch, inside: str, out: str
) -> None:
    (kit / inside).mkdir(exist_ok=True)
    before = contents(kit)
    monkeypatch.chdir(kit / inside)
    with pytest.raises(KitError, match=rf"^{Path(out)}: expected a folder to replace, found the one that"):
        packed(manifest, Path(out))
    assert contents(kit) == before


def fail_at_the_wheels(patch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KitError("pip download: no network")

    patch.setattr(dataset, "add_missing", fail)


def fail_at_the_weights(patch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise CheckpointError("fold0.pth: damaged")

    patch.setattr(dataset, "_stored", fail)


def interrupt_the_check(patch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(dataset, "verify", interrupt)


def fill_the_disk(patch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(dataset, "_write_json", fail)


def fail_at_the_last_step(patch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    patch.setattr(Path, "rename", fail)


@pytest.mark.parametrize(
    "failure",
    [fail_at_the_wheels, fail_at_the_weights, interrupt_the_check, fill_the_disk, fail_at_the_last_step],
)
@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.usefixtures("any_weights")
def test_a_failure_leaves_what_was_there(
    failure: Callable[[pytest.MonkeyPatch], None],
    earlier: bool,
    manifest: Path,
    kit: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not earlier:
        shutil.rmtree(kit)
    before = contents(kit.parent)
    failure(monkeypatch)
    with pytest.raises((KitError, CheckpointError, KeyboardInterrupt, OSError)):
        packed(manifest, kit, store="int8")
    monkeypatch.undo()
    assert contents(kit.parent) == before
    if earlier:
        verify(kit)


def test_weights_that_are_not_the_manifests_stop_before_anything_is_written(
    manifest: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(manifest.parent, tmp_path / "trained")
    with (copied / "fold0.pth").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ManifestError, match="sha256"):
        packed(copied / manifest.name, tmp_path / "out" / "kit")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("any_weights")
def test_a_folder_that_is_no_dataset_is_refused_and_kept(manifest: Path, tmp_path: Path) -> None:
    for name, text in (
        ("thesis.tex", "years"),
        (CONTENTS, "{}"),
        (CONTENTS, "x"),
        (CONTENTS, '{"kind": "a"}'),
    ):
        out = tmp_path / "mine"
        out.mkdir(exist_ok=True)
        (out / name).write_text(text)
        with pytest.raises(KitError, match=r"mine: expected an earlier dataset or nothing, found something"):
            packed(manifest, out)
        assert contents(tmp_path) == {f"mine/{name}": text.encode()} | contents(tmp_path)
        assert (out / name).read_text() == text
    (tmp_path / "file").write_text("text")
    for other in (tmp_path / "file", tmp_path):
        with pytest.raises(KitError, match="expected an earlier dataset or nothing"):
            packed(manifest, other)


@pytest.mark.slow
def test_killed_in_the_middle_the_earlier_dataset_stays(manifest: Path, kit: Path, wheels: Path) -> None:
    """By a signal that cannot be caught, once half of the new one is written."""
    before = contents(kit)
    words = ["--manifest", manifest, "--out", kit, "--wheels", wheels, "--id", ABOUT.id]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "build_dataset.py"), *map(str, words)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list(kit.parent.glob(".dataset.*.new/ensemble_boxes*.whl")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert contents(kit) == before
    verify(kit)
    packed(manifest, kit)
    assert contents(kit) == before


@pytest.mark.parametrize(
    "id",
    [
        *("", "kit", "someone", "someone/", "/sartorius-kit", "someone/kit", "someone/" + "k" * 51),
        *("Someone/sartorius-kit", "someone/Sartorius-Kit", "someone/sartorius kit", "someone/-sartorius"),
        *("someone/sartorius--kit", "someone/sartorius_kit", "a/b/sartorius-kit", "someone/sartorius-kit\n"),
    ],
)
def test_ids_that_kaggle_would_refuse(id: str) -> None:
    said = f"--id: expected USER/SLUG of small letters, digits and hyphens, SLUG of 6 to 50, found {id!r}"
    with pytest.raises(KitError, match=f"^{re.escape(said)}$"):
        Metadata(id, "A kit of cells", "other")


@pytest.mark.parametrize("title", ["", "short", "x" * 51])
def test_titles_that_kaggle_would_refuse(title: str) -> None:
    with pytest.raises(
        KitError, match=rf"^--title: expected 6 to 50 characters, found {len(title)}: '{title}'$"
    ):
        Metadata(ABOUT.id, title, "other")


@pytest.mark.parametrize("licence", ["", "MIT", "cc0-1.0", "other,unknown"])
def test_licences_that_kaggle_does_not_know(licence: str) -> None:
    with pytest.raises(
        KitError, match=rf"^--licence: expected one of CC0-1\.0, .*, unknown, found '{licence}'$"
    ):
        Metadata(ABOUT.id, ABOUT.title, licence)


@pytest.mark.parametrize("length", [6, 50])
def test_the_shortest_and_longest_names(length: int) -> None:
    for licence in LICENCES:
        assert len(Metadata(f"a1/{'k' * length}", "t" * length, licence).json()["licenses"]) == 1


def test_an_unchanged_dataset_verifies(built: Built) -> None:
    verify(built.folder)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (
        lambda kit: (kit / "fold_0.safetensors").write_bytes(b"cut"),
        r"fold_0.safetensors: expected .*, found .*: it differs",
    ),
    "missing": (
        lambda kit: (kit / ENSEMBLE_BOXES).unlink(),
        rf"{ENSEMBLE_BOXES}: .*, found None: it is missing",
    ),
    "added": (
        lambda kit: write_wheel(kit, "torch"),
        r"torch-1.0-py3-none-any.whl: expected None, found .*: it is not listed",
    ),
    "another list inside": (
        lambda kit: shutil.copytree(kit, kit / "a" / "b"),
        rf"a/b/{CONTENTS}: expected None, found .*: it is not listed",
    ),
    "no list": (
        lambda kit: (kit / CONTENTS).unlink(),
        f"{CONTENTS}: expected the list of a dataset, found File.*",
    ),
    "a list of nothing": (lambda kit: (kit / CONTENTS).write_text("[]"), f"{CONTENTS}: .*, found TypeError"),
    "no JSON": (
        lambda kit: (kit / CONTENTS).write_bytes(b"\xff"),
        f"{CONTENTS}: .*, found UnicodeDecodeError",
    ),
    "another kind": (
        lambda kit: (kit / CONTENTS).write_text('{"kind": "cake", "files": {}}'),
        f"{CONTENTS}: expected the list of a {KIND}, found 'cake'",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(kit: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(kit)
    with pytest.raises(KitError, match=rf"^{kit}/{said}$"):
        verify(kit)


def said_of_it(**changes: Any) -> Callable[[Path], Any]:
    """Change what Kaggle is told."""
    content = {**ABOUT.json(), **changes}
    return lambda kit: (kit / METADATA).write_text(
        json.dumps({k: v for k, v in content.items() if v != "none"})
    )


def many_files(kit: Path) -> None:
    for i in range(45):
        (kit / f"{i}.txt").write_text("")


LISTED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "too many": (many_files, "dataset: expected at most 50 files at the top, found 51; use --zip-layout"),
    "archive": (
        lambda kit: (kit / "sdist-1.0.tar.gz").write_text(""),
        "sdist-1.0.tar.gz: expected no archives, which Kaggle unpacks, found one",
    ),
    "name": (
        lambda kit: (kit / "fold 0.txt").write_text(""),
        "fold 0.txt: expected a name of plain letters, which survives upload",
    ),
    "hidden": (
        lambda kit: (kit / ".DS_Store").write_text(""),
        ".DS_Store: expected a name of plain letters, which survives upload",
    ),
    "no id": (said_of_it(id="none"), rf"{METADATA}: expected an id, .*, found KeyError\('id'\)"),
    "id": (said_of_it(id="someone/kit"), f"{METADATA}: --id: expected USER/SLUG .*"),
    "title": (said_of_it(title="kit"), f"{METADATA}: --title: expected 6 to 50 characters, .*"),
    "no licence": (said_of_it(licenses=[]), f"{METADATA}: expected an id, a title and one licence, .*"),
    "two licences": (
        said_of_it(licenses=[{"name": "other"}] * 2),
        f"{METADATA}: expected an id, a title and one licence, .*",
    ),
    "text": (lambda kit: (kit / METADATA).write_text("x"), f"{METADATA}: expected an id, .*"),
    "no metadata": (lambda kit: (kit / METADATA).unlink(), f"{METADATA}: expected an id, .*"),
}


@pytest.mark.parametrize(("damage", "said"), LISTED.values(), ids=LISTED)
def test_what_kaggle_would_refuse_is_named_even_if_it_is_listed(
    kit: Path, damage: Callable[[Path], Any], said: str
) -> None:
    damage(kit)
    relist(kit)
    with pytest.raises(KitError, match=rf"(?s)^{kit.parent}/(dataset/)?{said}$"):
        verify(kit)


def test_weights_that_are_not_the_manifests_are_named_even_if_they_are_listed(kit: Path) -> None:
    (kit / "fold_0.safetensors").write_bytes(b"cut")
    relist(kit)
    with pytest.raises(ManifestError, match=r"fold_0.safetensors: \$.models\[0\].bytes: expected"):
        verify(kit)


def test_fifty_files_are_taken(kit: Path) -> None:
    many_files(kit)
    (kit / "0.txt").unlink()
    relist(kit)
    verify(kit)


@pytest.mark.slow
def test_a_dataset_installs_without_an_index(built: Built) -> None:
    verify(built.folder, install=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            # Where the package is installed, as on a developer's machine, its import alone proves nothing.
            lambda kit: (kit / own_wheel()[0]).unlink(),
            "expected (a wheel of sartorius_infer, found none|wheels .* No module named 'sartorius_infer')",
        ),
        (
            lambda kit: (kit / ENSEMBLE_BOXES).write_bytes(b"no zip"),
            "expected wheels that install and import, .*",
        ),
        (
            lambda kit: write_wheel(kit, "sartorius-infer", own_wheel()[0].split("-")[1]),
            "expected wheels that install and import, found ModuleNotFoundError: .*",
        ),
    ],
)
def test_wheels_that_do_not_install_are_found(kit: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(kit)
    relist(kit)
    verify(kit)
    with pytest.raises(KitError, match=f"^{kit}: {said}$"):
        verify(kit, install=True)
