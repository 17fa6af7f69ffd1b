"""The `import` command as people type it."""

from __future__ import annotations

from pathlib import Path

import torch
from commands import Done, sartorius
from small import small_state

from sartorius_infer.manifest.manifest import load_manifest


def run(*words: object) -> Done:
    return sartorius("import", *words)


def test_several_checkpoints_in_one_go_and_one_more(tmp_path: Path) -> None:
    files = [tmp_path / f"fold{i}.pth" for i in range(3)]
    for file in files:
        torch.save(small_state(), file)
    out = tmp_path / "weights"
    done = run(*files[:2], "--out", out, "--half")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"written   {out / 'fold1.safetensors'}",
        f"          {out / 'weights_manifest.json'}",
    ]
    assert done.stderr.count("assumed ImageNet normalisation") == 2
    again = run("--checkpoint", files[2], "--out", out)
    assert (again.returncode, "add to it with --manifest" in again.stderr) == (1, True)
    assert run(files[2], "--out", out, "--manifest", out / "weights_manifest.json").returncode == 0
    manifest = load_manifest(out / "weights_manifest.json").manifest
    assert [spec.name for spec in manifest.models] == ["fold0", "fold1", "fold2"]


def test_usage(tmp_path: Path) -> None:
    none = run("--out", tmp_path)
    assert none.returncode == 2
    assert none.stderr.splitlines()[-1].endswith("expected one or more checkpoints, found none")
    two = run("a.pth", "b.pth", "--name", "x", "--out", tmp_path)
    assert two.returncode == 2
    assert two.stderr.splitlines()[-1].endswith("expected one checkpoint with --name or --config, found 2")
