"""What `--weights` means: what counts as a checkpoint, what is left out, and what contradicts itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from places import ROOT
from safetensors.torch import save_file
from small import manifest, saved, small_state

from sartorius_infer.ensemble import weights as room
from sartorius_infer.ensemble.weights import Weights, default_manifest, find_weights
from sartorius_infer.errors import CheckpointError, ManifestError


def files_of(*paths: Path) -> tuple[Path, ...]:
    found = find_weights(paths)
    assert found.is_bare
    return found.files


def test_a_config_goes_with_one_checkpoint(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a.pth"), saved(tmp_path / "b.pth")
    assert find_weights(a, tmp_path / "c.py") == Weights(files=(a,), config=tmp_path / "c.py")
    assert find_weights(a).config is None
    for weights, said in (([a, b], "2 checkpoints"), ([], "a manifest")):
        with pytest.raises(CheckpointError) as caught:
            find_weights(weights, "c.py")
        assert str(caught.value) == f"c.py: expected one checkpoint to go with a config, found {said}"


def test_checkpoints_by_name_and_by_folder(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "both" / "a.pth", {}), saved(tmp_path / "both" / "B.PT", {})
    (tmp_path / "both" / "deeper.pth").mkdir()
    assert files_of(a) == (a,)
    assert files_of(a.parent) == (b, a)
    assert files_of(tmp_path / "absent.pth") == (tmp_path / "absent.pth",)


def test_one_path_or_several_as_text_or_paths(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.pth", {})
    for given in (a, str(a), [a], (str(a),)):
        assert find_weights(given) == Weights(files=(a,))
    for wrong, found in ((3, "int"), ([a, 3], "int"), (b"a.pth", "int"), ({"a": 1}, "dict")):
        with pytest.raises(TypeError, match=rf"^weights: expected a path \(str or Path\).*found {found}$"):
            find_weights(wrong)  # type: ignore[arg-type]


def test_a_manifest_goes_before_what_else_is_in_its_folder(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth", {})
    own = manifest(tmp_path, {})
    for given in (own, tmp_path):
        found = find_weights(given)
        assert (found.path, found.folder, found.is_bare) == (own, tmp_path, False)
        assert [spec.file for spec in found.require_plan().manifest.models] == ["a.pth"]
    with pytest.raises(ManifestError, match="expected a readable JSON file"):
        find_weights(tmp_path / "absent.json")


def test_a_folder_is_what_its_files_hold_not_what_they_are_called(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three checkpoints under names of all kinds are three; what is none is named."""
    named = [saved(tmp_path / name, {"w": torch.ones(2)}) for name in ("a.pth", "b.ckpt", "c.pth.tar", "d")]
    save_file({"w": torch.ones(2)}, tmp_path / "e.weights")
    for name in ("notes.txt", "config.yaml", "events.out", ".hidden.pth"):
        (tmp_path / name).write_text("Notes.")
    with caplog.at_level(logging.WARNING):
        assert files_of(tmp_path) == (*named, tmp_path / "e.weights")
    (said,) = caplog.messages
    assert said == f"{tmp_path}: left out, being no checkpoints: events.out, notes.txt"


@pytest.mark.parametrize("name", ["a.pth", "a.ckpt", "a.bin", "A.SAFETENSORS", "a.pth.tar"])
def test_a_damaged_checkpoint_is_not_left_out(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "whole.pth")
    (tmp_path / name).write_bytes(b"cut off")
    assert tmp_path / name in files_of(tmp_path)


def test_weights_that_contradict_each_other(tmp_path: Path) -> None:
    a, own = saved(tmp_path / "a.pth", {}), tmp_path / "m.json"
    manifest(tmp_path, {}).rename(own)
    saved(tmp_path / "more" / "b.pth", {})
    for weights in ([own, a], [a, own], [own, own], [own, tmp_path / "more"]):
        with pytest.raises(ManifestError, match="expected one manifest, or checkpoints alone"):
            find_weights(weights)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(CheckpointError) as caught:
        find_weights(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: expected weights_manifest.json or checkpoints (.pth, ")
    assert str(caught.value).endswith("), found none")


def test_commands_that_want_rules_say_that_checkpoints_have_none(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.pth", small_state())
    with pytest.raises(
        ManifestError, match=r"a\.pth: expected --weights to be a manifest here, found checkp"
    ):
        find_weights(a).require_plan()


def test_the_source_tree_s_default() -> None:
    assert (
        default_manifest() == find_weights().path == find_weights([]).path == ROOT / "weights_manifest.json"
    )


def test_an_installation_without_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "__file__", str(tmp_path / "sartorius_infer" / "ensemble" / "weights.py"))
    with pytest.raises(ManifestError, match="name checkpoints by --weights"):
        default_manifest()
