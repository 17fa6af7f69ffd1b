"""The page of a machine with a GPU, made on a CPU: every part runs, or says why it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import python
from tiny import write_image, write_tiny

from benchmarks import gpu
from benchmarks.networks import CLASSES, Subject


def a_setup(folder: Path) -> gpu.Setup:
    return gpu.Setup(torch.device("cpu"), Subject(None, folder, ()), "a network", (), (), rounds=1, cells=1)


def test_a_part_that_fails_or_lacks_something_says_so(tmp_path: Path) -> None:
    def fails(setup: gpu.Setup) -> str:
        raise RuntimeError("no room\nand more")

    def lacks(setup: gpu.Setup) -> str:
        raise gpu.LackError("it needs two CUDA devices, found 1")

    setup = a_setup(tmp_path)
    assert gpu._measured(fails, setup) == "**Failed**, RuntimeError: no room\n"
    assert gpu._measured(lacks, setup) == "Not measured here: it needs two CUDA devices, found 1.\n"
    assert gpu._measured(lambda _: "a table\n", setup).startswith("a table\n\nMeasured in ")


def test_the_page_is_written_after_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = tmp_path / "page.md", []

    def part(setup: gpu.Setup) -> str:
        seen.append(out.read_text() if out.exists() else "")
        return f"part {len(seen)}\n"

    monkeypatch.setattr(gpu, "PARTS", {"One": part, "Two": part})
    monkeypatch.setattr(gpu, "_setup", lambda *_: a_setup(tmp_path))
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--out", str(out)])
    gpu.main()
    assert seen[0] == "" and "### One\n\npart 1\n" in seen[1] and "### Two" not in seen[1]
    assert out.read_text().startswith("## On a GPU\n\nno GPU: a trial run on the CPU, ")
    assert "### Two\n\npart 2\n" in out.read_text()


def test_a_gpu_that_is_not_there_is_a_matter_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["gpu", "--device", "cuda:999"])
        gpu.main()
    assert ended.value.code == 2
    assert "found 'cuda:999'; use cpu or auto" in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    rules = {"per_class": {name: {"score": 0.05} for name in CLASSES}}
    manifest = write_tiny(tmp_path / "kit", classes=list(CLASSES), rules=rules)
    content = json.loads(manifest.read_text())
    content["models"][0]["preprocessing"]["normalise"] = [{"mean": [0.5], "std": [0.2]}]
    manifest.write_text(json.dumps(content))
    for seed in range(2):
        write_image(tmp_path / "images" / f"i{seed}.png", (120, 160), seed)
    (tmp_path / "train.csv").write_text(
        "id,annotation,width,height,cell_type\ni0,1 40 161 40,160,120,cort\n", encoding="utf-8"
    )
    words = ["--images", tmp_path / "images", "--weights", manifest, "--truth", tmp_path / "train.csv"]
    words += ["--device", "cpu", "--rounds", 1, "--cells", 5, "--out", tmp_path / "page.md"]
    ended = python("benchmarks.gpu", *words, env={"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "page.md").read_text()
    assert "Failed" not in page, page
    parts = dict(part.split("\n\n", 1) for part in page.split("### ")[1:])
    assert list(parts) == list(gpu.PARTS)
    for name in ("Pinned memory", "Memory of the GPU"):
        assert parts[name].startswith("Not measured here: it needs a GPU.")
    assert parts["Two GPUs"].startswith("Not measured here: it needs two CUDA devices, found ")
    assert "| the network, fp32 | " in parts["Against what users run, on the GPU"]
    assert "Beside the network: " in parts["Where the time goes"]
    assert "| fp32-fast | " in parts["Precisions"] and "no truth" not in parts["Precisions"]
    assert (
        "| as a CUDA graph | not measured here: no GPU |"
        in parts["Half precision, channels last, CUDA graphs"]
    )
