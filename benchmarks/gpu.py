"""`python -m benchmarks.gpu`: what a machine without a GPU cannot measure, as a page for docs/performance.md.

[--device cuda] [--out out/gpu.md] [--images DIR ...] [--truth train.csv ...] [--weights MANIFEST]
[--rounds N] [--cells N]

Each part is measured by itself; one that fails, or needs what the machine lacks, says so on the page, which
is written anew after each. By `--device cpu` the same parts run on a CPU, to see that they do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks import kit, quality, ratios, stages, whole
from benchmarks.networks import Subject, first_of, random_r50
from benchmarks.timing import Row, alternate, rows_table, table
from sartorius_infer.ensemble.device import PRECISIONS, resolve_device
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import image_tensor
from sartorius_infer.errors import DeviceError, first_line
from sartorius_infer.evaluate.truth import read_truth
from sartorius_infer.files import atomic_file
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.views import IDENTITY
from sartorius_infer.networks.inputs import network_input

SAMPLES = Path(__file__).parent.parent / "samples"
NETWORKS = ("resize", "body and pyramid", "RPN", "box head", "mask head")
"""Stages that run on the GPU; the others are the kit's own work beside them."""


class LackError(Exception):
    """What a part needs and this machine lacks."""


@dataclass(frozen=True)
class Setup:
    """What is measured, on what, and how often."""

    device: torch.device
    subject: Subject
    what: str
    files: Sequence[ImageFile]
    truth: Sequence[Path]
    rounds: int
    cells: int

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def pixels(self) -> Tensor:
        """The first image, uint8 (1, H, W), on the CPU."""
        return image_tensor(read_image(self.files[0]))[:1]


def main() -> None:
    """Measure part by part, and write the page after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--out", type=Path, default=Path("out/gpu.md"))
    add("--images", nargs="+", type=Path, default=[SAMPLES])
    add("--truth", nargs="+", type=Path, default=[], help="of some images: scores beside agreement")
    add("--weights", type=Path, metavar="MANIFEST", help="of torchvision's (default: a random R50)")
    add("--rounds", type=int, default=5)
    add("--cells", type=int, default=300, help="that are found in an image (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        device = resolve_device(arguments.device)
    except DeviceError as error:
        parser.error(str(error))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        setup = _setup(arguments, device, Path(folder))
        written = [_head(setup)]
        for name, part in PARTS.items():
            written.append(f"### {name}\n\n{_measured(part, setup)}")
            page = "\n".join(written)
            with atomic_file(arguments.out, "w") as file:
                file.write(page)
            print(written[-1], flush=True)
    print(f"written {arguments.out}", file=sys.stderr)


def _setup(arguments: argparse.Namespace, device: torch.device, folder: Path) -> Setup:
    files = sorted(find_images(arguments.images), key=lambda file: not file.id.startswith("SHSY5Y"))
    if arguments.weights:
        subject, what = first_of(arguments.weights, folder), "the network"
    else:
        subject = random_r50(image_tensor(read_image(files[0]))[:1], arguments.cells, folder)
        what = f"one R50, {arguments.cells} cells"
    return Setup(device, subject, what, files, arguments.truth, arguments.rounds, arguments.cells)


def _measured(part: Callable[[Setup], str], setup: Setup) -> str:
    """What a part says, or why it says nothing: one that fails must not lose the others."""
    start = time.perf_counter()
    try:
        text = part(setup)
    except LackError as reason:
        return f"Not measured here: {reason}.\n"
    except Exception as error:
        return f"**Failed**, {type(error).__name__}: {first_line(error)}\n"
    return f"{text}\nMeasured in {time.perf_counter() - start:.0f} s.\n"


def _head(setup: Setup) -> str:
    """What machine this is."""
    name = torch.cuda.get_device_name(setup.device) if setup.on_gpu else "no GPU: a trial run on the CPU"
    said = [name, f"{torch.cuda.device_count()} CUDA devices", f"{os.cpu_count()} CPU cores"]
    said += [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
    if setup.on_gpu:
        said.append(
            f"compute capability {'.'.join(map(str, torch.cuda.get_device_capability(setup.device)))}"
        )
    command = "`make gpu`; `python -m benchmarks.gpu --help` tells its options"
    return f"## On a GPU\n\n{', '.join(said)}. {command}. Medians of {setup.rounds} rounds in turns.\n"


def _ratios(setup: Setup) -> str:
    """Against the usual notebook, which is on the GPU too."""
    image = read_image(setup.files[0])
    drawn = ratios.drawn_cells(setup.cells, size_hw=image.size_hw)
    rows: list[Row] = list(
        ratios.against_notebook(setup.subject, image, setup.what, setup.rounds, setup.device)
    )
    for counts in ((2, 2), (3, 4)):
        networks, flips = (ratios.NUMBERS[n] for n in counts)
        what = f"{networks} of it x {flips} flips, {setup.cells} cells"
        rows += ratios.against_merged(setup.subject, image, drawn, what, counts, setup.device)
    return rows_table(rows)


def _stages(setup: Setup) -> str:
    """Where an image's time goes, and the share of what is not the network."""
    ensemble = kit.load(setup.subject.manifest, setup.device)
    seconds = stages.stages(setup.files[0], ensemble, setup.rounds)
    floor = seconds.pop("floor")
    total = sum(seconds.values())
    lines = [[step, f"{s:.4f}", f"{s / total:.1%}"] for step, s in seconds.items()]
    lines.append(["*floor: the same convolutions and matrix products alone*", f"{floor:.4f}", ""])
    beside = sum(s for step, s in seconds.items() if step not in NETWORKS)
    head = ["stage", f"{kit.precisions(setup.device)[0]}, s", "share"]
    return (
        f"{table(head, lines)}\nBeside the network: {beside:.4f} s of {total:.4f} s, {beside / total:.1%}.\n"
    )


def _precisions(setup: Setup) -> str:
    """Time, cells and scores of each precision."""
    names = ["fp32", "fp16"] if setup.on_gpu else ["fp32", "fp32-fast"]
    if setup.on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        names.append("bf16")
    ways = {name: _way(setup, name) for name in names}
    true = {i: image for path in setup.truth for i, image in read_truth(path).items()}
    images = [read_image(file) for file in setup.files]
    found = quality.found_by(ways, images)
    times = alternate({name: partial(way, images[0]) for name, way in ways.items()}, setup.rounds)
    lines = []
    for name, cells in found.items():
        same = quality.agreement(found["fp32"], cells, images)
        score = quality.score_of(cells, true)
        told = "no truth" if score is None else f"{score:.4f}"
        count = sum(map(len, cells.values()))
        lines.append([name, f"{times[name].median:.4f}", f"{count}", f"{same:.4f}", told])
    return table(["precision", "s an image", "cells", "as fp32's cells", "score"], lines)


def _way(setup: Setup, name: str) -> quality.Find:
    ensemble = load_ensemble(setup.subject.manifest, setup.device, PRECISIONS[name])
    if name == "fp32-fast":
        ensemble.quicken()
    return partial(kit.rows, ensemble)


@torch.inference_mode()
def _bodies(setup: Setup) -> str:
    """Body and pyramid: as the kit runs them, and what it does not do yet."""
    network: Any = kit.load(setup.subject.manifest, setup.device).members[0].network
    body, settings = network.model.backbone, network.preprocessing
    batch, _ = network_input([setup.pixels.to(setup.device)], settings, IDENTITY)
    kept = batch.to(torch.float16 if setup.on_gpu else torch.float32)
    narrow = deepcopy(body).to(kept.dtype)
    last = deepcopy(narrow).to(memory_format=torch.channels_last)
    contenders: dict[str, Callable[[], object]] = {
        "as the kit runs it": _to_the_end(setup, body, batch, network.autocast),
        "weights kept in half": _to_the_end(setup, narrow, kept),
        "the same, channels last": _to_the_end(
            setup, last, kept.contiguous(memory_format=torch.channels_last)
        ),
    }
    if setup.on_gpu:
        contenders["weights kept in half, as a CUDA graph"] = _graph(narrow, kept)
    times = alternate(contenders, setup.rounds)
    base = times["as the kit runs it"].median
    lines = [[name, f"{t.median:.5f}", f"{t.median / base:.2f}"] for name, t in times.items()]
    if not setup.on_gpu:
        lines.append(["as a CUDA graph", "not measured here: no GPU", ""])
    return table(["body and pyramid of one image", "s", "times as long"], lines)


def _to_the_end(
    setup: Setup, body: Any, batch: Tensor, context: Callable[[torch.device], Any] | None = None
) -> Callable[[], None]:
    """A body's run, on a GPU until it has finished."""

    def run() -> None:
        with context(setup.device) if context else nullcontext():
            body(batch)
        if setup.on_gpu:
            torch.cuda.synchronize()

    return run


def _graph(body: Any, batch: Tensor) -> Callable[[], None]:
    """A body's kernels as one launch. What the launches cost is the most that graphs could save."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # cuDNN chooses its kernels before they are captured
            body(batch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body(batch)

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return run


def _pinned(setup: Setup) -> str:
    """The way of an image to the GPU, from memory of either kind."""
    if not setup.on_gpu:
        raise LackError("it needs a GPU")
    pinned = setup.pixels.pin_memory()

    def copy(pixels: Tensor) -> None:
        pixels.to(setup.device, non_blocking=True)
        torch.cuda.synchronize()

    contenders: dict[str, Callable[[], object]] = {
        "plain memory": partial(copy, setup.pixels),
        "pinned memory": partial(copy, pinned),
        "pinning and copying": lambda: copy(setup.pixels.pin_memory()),
    }
    times = alternate(contenders, 20 * setup.rounds)
    lines = [[name, f"{1e6 * t.median:.1f}"] for name, t in times.items()]
    return table([f"an image of {setup.pixels.nbytes:,} bytes to the GPU", "microseconds"], lines)


def _pipeline(setup: Setup) -> str:
    """Whole runs: whether stages that overlap, and batches, pay."""
    times = whole.run_ways(setup.subject.manifest, setup.files, setup.rounds, setup.device)
    base = times["pipeline"].median
    lines = [[name, f"{t.median:.3f}", f"{t.median / base:.2f}"] for name, t in times.items()]
    return table([f"{len(setup.files)} images to a submission", "s", "times as long"], lines)


def _memory(setup: Setup) -> str:
    """The most that the GPU held, for one image and for a batch."""
    if not setup.on_gpu:
        raise LackError("it needs a GPU")
    lines = []
    for size in (1, 4):
        ensemble = kit.load(setup.subject.manifest, setup.device)
        torch.cuda.reset_peak_memory_stats(setup.device)
        kit.rows_of_batch(ensemble, [read_image(setup.files[0])] * size)
        lines.append([f"{size}", f"{torch.cuda.max_memory_allocated(setup.device) / 2**20:.0f}"])
        del ensemble
    return table(["images in a batch", "peak MiB of the GPU"], lines)


def _processes(setup: Setup) -> str:
    """One process and two, each with a GPU of its own, as torchrun starts them."""
    if (count := torch.cuda.device_count()) < 2 or not setup.on_gpu:
        raise LackError(f"it needs two CUDA devices, found {count}")
    with TemporaryDirectory() as name:
        folder = Path(name)
        _many(setup.files, folder / "images", 64)
        runs = {
            n: partial(_torchrun, setup.subject.manifest, folder / "images", folder / f"{n}.csv", n)
            for n in (1, 2)
        }
        times = alternate({f"{n}": run for n, run in runs.items()}, rounds=1)
        if (folder / "1.csv").read_bytes() != (folder / "2.csv").read_bytes():
            raise RuntimeError("expected one submission of one and of two processes, found two")
    one = times["1"].median
    lines = [[n, f"{t.median:.1f}", f"{one / t.median:.2f}"] for n, t in times.items()]
    return table(["processes, 64 images, start-up included", "s", "times as fast"], lines)


def _many(files: Sequence[ImageFile], folder: Path, count: int) -> None:
    """Copies of files, as many as `count`."""
    folder.mkdir()
    for number in range(count):
        file = files[number % len(files)].path
        (folder / f"{number:03}{file.suffix}").write_bytes(file.read_bytes())


def _torchrun(manifest: Path, images: Path, out: Path, processes: int) -> None:
    words = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "sartorius_infer"]
    words += ["--weights", str(manifest), "--images", str(images), "--out", str(out), "--device", "cuda"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"torchrun ended with {ended.returncode}: {ended.stderr.strip()[-200:]}")


PARTS: dict[str, Callable[[Setup], str]] = {
    "Against what users run, on the GPU": _ratios,
    "Where the time goes": _stages,
    "Precisions": _precisions,
    "Half precision, channels last, CUDA graphs": _bodies,
    "Pinned memory": _pinned,
    "Overlap and batches": _pipeline,
    "Memory of the GPU": _memory,
    "Two GPUs": _processes,
}

if __name__ == "__main__":
    main()
