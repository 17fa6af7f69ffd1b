"""What a checkpoint file is by its bytes, and whether it is the one that a manifest names."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import manifest

from sartorius_infer.checkpoints.files import Format, file_format, looks_like_a_checkpoint, verify_files
from sartorius_infer.errors import ManifestError
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.manifest import load_manifest

STATE = {"w": torch.ones(2)}


def written(path: Path, kind: str) -> Path:
    """A checkpoint of a kind, under any name."""
    if kind == "safetensors":
        save_file(STATE, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"w": np.ones(2)}))
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "torch")
    return path


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.ckpt", "a", "a.pkl"])
@pytest.mark.parametrize(
    ("kind", "form"),
    [("torch", "torch"), ("old torch", "torch"), ("safetensors", "safetensors"), ("pickle", "pickle")],
)
def test_content_decides_whatever_the_name(tmp_path: Path, name: str, kind: str, form: Format) -> None:
    assert file_format(written(tmp_path / name, kind)) == form


def test_files_of_other_kinds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.ones(3))
    np.save(tmp_path / "a.npy", np.ones(3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    for name, content in {
        "a.txt": "Notes.",
        "a.json": "{}",
        "a.csv": "id,score\n",
        "empty": "",
        "b": "N.",
    }.items():
        (tmp_path / name).write_text(content)
    for path in tmp_path.iterdir():
        assert file_format(path) is None, path
        assert not looks_like_a_checkpoint(path), path


@pytest.mark.parametrize("kind", ["torch", "safetensors", "pickle"])
def test_cut_off_files_have_no_format_but_a_name(tmp_path: Path, kind: str) -> None:
    whole = written(tmp_path / "a.pth", kind).read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        (tmp_path / "a.pth").write_bytes(whole[:length])
        if kind != "safetensors":  # whose header may be whole
            assert file_format(tmp_path / "a.pth") is None, length
        assert looks_like_a_checkpoint(tmp_path / "a.pth")


def claimed(folder: Path, **claim: Any) -> None:
    verify_files(load_manifest(manifest(folder, claim)))


def test_a_file_like_its_entry(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", "torch")
    claimed(tmp_path)
    claimed(tmp_path, format="torch", sha256=file_sha256(path), bytes=path.stat().st_size)
    save_file(STATE, tmp_path / "B.CKPT")
    claimed(tmp_path, file="B.CKPT", format="safetensors")


CLAIMS = [
    ({"bytes": 8}, "$.models[0].bytes: expected 8 bytes, found "),
    ({"sha256": "0" * 64}, f"$.models[0].sha256: expected {'0' * 64}, found "),
    ({"format": "safetensors"}, "$.models[0].format: expected safetensors, found torch"),
    ({"file": "b.pth", "format": "torch"}, "$.models[0].format: expected torch, found another"),
]


@pytest.mark.parametrize(("claim", "said"), CLAIMS)
def test_a_file_unlike_its_entry(tmp_path: Path, claim: dict[str, Any], said: str) -> None:
    written(tmp_path / "a.pth", "torch")
    (tmp_path / "b.pth").write_text("no checkpoint")
    with pytest.raises(ManifestError) as caught:
        claimed(tmp_path, **claim)
    assert str(caught.value).startswith(f"{tmp_path / claim.get('file', 'a.pth')}: {said}")


def test_the_last_of_several_files_is_checked_too(tmp_path: Path) -> None:
    written(tmp_path / "a.pth", "torch")
    with pytest.raises(ManifestError, match=r"\$\.models\[1\]\.bytes"):
        verify_files(load_manifest(manifest(tmp_path, {}, {"bytes": 9})))
