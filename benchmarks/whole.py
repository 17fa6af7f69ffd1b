"""Whole runs: how seconds and memory grow with the work, and how long a first answer takes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import kit
from benchmarks.networks import default_checkpoint, random_r50
from benchmarks.opponents import as_tensor
from benchmarks.ratios import drawn_cells
from benchmarks.timing import Times, alternate
from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.competition import any_score
from sartorius_infer.ensemble.device import keep_memory
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.passes import image_tensor, predict
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.output.writers import encode_rows, open_writer
from sartorius_infer.run.jobs import Options, plan_jobs
from sartorius_infer.run.runs import Run, execute
from sartorius_infer.types import CellImage

VIEWS = ("identity", "hflip", "vflip", "rot180")
Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]


def run_files(
    manifest: Path,
    files: Sequence[ImageFile],
    batch_size: int = 1,
    workers: int = 2,
    device: torch.device = kit.CPU,
) -> Callable[[], None]:
    """Files to a written submission, by the pipeline."""
    ensemble = kit.load(manifest, device)
    jobs, _ = plan_jobs(files, None)

    def run() -> None:
        with TemporaryDirectory() as folder:
            out, options = Path(folder) / "submission.csv", Options(workers=workers)
            execute(Run(tuple(jobs), out, options=options, batch_size=batch_size), ensemble)

    return run


def one_after_the_other(
    manifest: Path, files: Sequence[ImageFile], device: torch.device = kit.CPU
) -> Callable[[], None]:
    """The same by a plain loop: nothing is decoded or pasted beside the networks."""
    ensemble = kit.load(manifest, device)

    def run() -> None:
        with TemporaryDirectory() as folder, open_writer(Path(folder) / "submission.csv", "kaggle") as writer:
            for file in files:
                writer.write(encode_rows(file.id, kit.rows(ensemble, read_image(file))))

    return run


def runs(files: Sequence[ImageFile], rounds: int) -> dict[str, Times]:
    """The default checkpoint on some files, as `run_ways`."""
    with TemporaryDirectory() as folder:
        return run_ways(default_checkpoint(Path(folder)).manifest, files, rounds, kit.CPU)


def run_ways(
    manifest: Path, files: Sequence[ImageFile], rounds: int, device: torch.device
) -> dict[str, Times]:
    """A manifest's networks on some files: by a loop, overlapped, and in batches."""
    return alternate(
        {
            "pipeline": run_files(manifest, files, device=device),
            "no overlap of stages": one_after_the_other(manifest, files, device),
            "batches of 4": run_files(manifest, files, batch_size=4, device=device),
        },
        rounds,
    )


def scaling(files: Sequence[ImageFile], rounds: int) -> Curves:
    """Seconds against images, networks, views (default checkpoint) and cells with a mask (R50)."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        one = default_checkpoint(folder).manifest
        images = {n: run_files(one, [*files, *files][:n]) for n in (1, 2, 4, 8)}
        curves = {"images": _curve(images, rounds)}
        image = read_image(files[0])
        networks = {
            n: _rows_of(kit.load(default_checkpoint(folder, n).manifest, kit.CPU), image) for n in (1, 2, 4)
        }
        curves["networks"] = _curve(networks, rounds)
        views = {
            n: _rows_of(kit.load(default_checkpoint(folder, 1, VIEWS[:n]).manifest, kit.CPU), image)
            for n in (1, 2, 4)
        }
        curves["views"] = _curve(views, rounds)
        subject = random_r50(image_tensor(image)[:1], 100, folder)
        r50 = kit.load(subject.manifest, kit.CPU)
        cells = {n: _first(r50, image, n) for n in (100, 200, 400, 600)}
        curves["cells with a mask (R50)"] = _curve(cells, rounds)
    return curves


def _curve(contenders: Mapping[int, Callable[[], object]], rounds: int) -> tuple[list[int], list[float]]:
    times = alternate({str(n): run for n, run in contenders.items()}, rounds)
    return list(contenders), [times[str(n)].median for n in contenders]


def _rows_of(ensemble: Ensemble, image: CellImage) -> Callable[[], object]:
    return lambda: kit.rows(ensemble, image)


def _first(ensemble: Ensemble, image: CellImage, count: int) -> Callable[[], object]:
    """The masks of the best `count` boxes."""
    return lambda: predict(ensemble, [image], lambda scores, labels: np.arange(len(scores)) < count)


def plot(curves: Curves, path: Path) -> None:
    """One panel a curve, with the straight line through its first point and zero."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 3), layout="constrained")
    for axis, (what, (counts, seconds)) in zip(axes, curves.items(), strict=True):
        axis.plot([0, counts[-1]], [0, seconds[0] / counts[0] * counts[-1]], "--", color="0.6", lw=1)
        axis.text(counts[-1], seconds[0] / counts[0] * counts[-1], "in proportion ", color="0.4", ha="right")
        axis.plot(counts, seconds, "o-", color="#0072b2")
        axis.set(xlabel=what, xlim=(0, None), ylim=(0, None))
    axes[0].set_ylabel("seconds")
    figure.savefig(path, dpi=110)
    plt.close(figure)


_PEAK = """
import atexit, re, runpy, sys
def peak():
    print("peak", re.search("VmHWM:.*?([0-9]+)", open("/proc/self/status").read())[1], file=sys.stderr)
atexit.register(peak)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def child(words: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak MiB of `python -m` these words, in a process of its own that must end well."""
    start = time.perf_counter()
    # The child tells its own peak: what the kernel tells its parent includes the parent's, before exec.
    ended = subprocess.run([sys.executable, "-c", _PEAK, *words], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    return seconds, int(ended.stderr.rsplit("peak", 1)[1]) / 1024


def memory(files: Sequence[ImageFile]) -> dict[str, tuple[float, float]]:
    """Seconds and peak MiB of the command on few and many images, and of the network alone."""
    found = {"the network alone, torchvision, one image": child(["benchmarks.whole", str(files[0].path)])}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for count in (1, 4, 16):
            for number in range(count):
                file = files[number % len(files)]
                (folder / f"{number}{file.path.suffix}").write_bytes(file.path.read_bytes())
            words = ["sartorius_infer", "--device", "cpu", "--images", name]
            out = ["--out", str(folder / "out" / "submission.csv")]
            found[f"the command, {count} image{'s' * (count > 1)}"] = child([*words, *out])
    return found


def start(file: ImageFile, rounds: int) -> dict[str, Times]:
    """New processes in turns, each from its call to its end.

    Torch's import alone, the command on one image, and commands that run no network, on 300 drawn cells.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        truth, submission = _scored(folder)
        words: dict[str, list[str | Path]] = {
            "the command, one image, default checkpoint": [
                *("--device", "cpu", "--images", file.path, "--out", folder / "s.csv")
            ],
            "score, one image": ["score", "--truth", truth, "--submission", submission],
            "check, one image": ["check", "--submission", submission],
            "import --help": ["import", "--help"],
        }
        torch_alone = [sys.executable, "-c", "import torch"]
        contenders: dict[str, Callable[[], object]] = {
            "import torch": lambda: subprocess.run(torch_alone, check=True),
            **{what: partial(child, ["sartorius_infer", *map(str, some)]) for what, some in words.items()},
        }
        return alternate(contenders, rounds)


def _scored(folder: Path) -> tuple[Path, Path]:
    """A truth of drawn cells, and the same cells as a submission."""
    cells = build_instances(drawn_cells(300), any_score(("cell",)), ("cell",))
    texts = encode_label_map(cells.label_map, len(cells))
    height, width = cells.label_map.shape
    files = {
        "train.csv": [
            "id,annotation,width,height,cell_type",
            *(f"image,{text},{width},{height},cell" for text in texts),
        ],
        "submission.csv": ["id,predicted", *(f"image,{text}" for text in texts)],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder / "train.csv", folder / "submission.csv"


@torch.inference_mode()
def network_alone(path: Path) -> None:
    """Everything that the default checkpoint computes of an image by torchvision, masks not yet pasted."""
    keep_memory(kit.CPU)
    (file,) = find_images([path])
    with TemporaryDirectory() as folder:
        model = default_checkpoint(Path(folder)).model
    images, _ = model.transform([as_tensor(read_image(file).pixels)])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    model.roi_heads(features, proposals, images.image_sizes)


if __name__ == "__main__":
    network_alone(Path(sys.argv[1]))
