"""`python -m benchmarks`: ratios to what users run today, stages, levers, memory, start-up, scaling.

[--images DIR --truth train.csv ...] [--json FILE] [--plot FILE.png] [--rounds N] [--only SECTION ...]

Ratios and levers are measured in turns in one process, memory in new ones; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import torch
import torchvision

from benchmarks import bodies, cellpose, kit, quality, ratios, stages, tuned, whole
from benchmarks.networks import random_r50
from benchmarks.timing import Row, rows_table, table
from sartorius_infer.ensemble.device import keep_memory, resolve_device
from sartorius_infer.ensemble.passes import image_tensor
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.images.read import read_image

SAMPLES = Path(__file__).parent.parent / "samples"
DENSE = "SHSY5Y"
"""Begins the name of the sample with the most cells."""


def main() -> None:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--images", nargs="+", type=Path, default=[SAMPLES])
    add("--truth", nargs="+", type=Path, default=[], help="of some images: compares scores too")
    add("--json", type=Path)
    add("--plot", type=Path, help="PNG of the scaling curves")
    add("--rounds", type=int, default=3)
    add("--cells", type=int, default=300, help="that the random R50 finds (default: %(default)s)")
    add("--device", default="cpu", help="of ratios, ensembles and stages; the others are of the CPU")
    add("--tuned", nargs="+", type=int, default=[10, 20, 100], help="images of the section tune")
    add(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=SHORT,
        help="default: %(default)s; the others take a quarter of an hour on two cores",
    )
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    keep_memory(device)
    torch.set_num_threads(os.cpu_count() or 1)
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "opencv": cv2.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    results: dict[str, Any] = {"machine": machine}
    for name in arguments.only:
        text, results[name] = SECTIONS[name](arguments, device)
        print(f"\n### {name}\n\n{text}", flush=True)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


Section = Callable[[argparse.Namespace, torch.device], tuple[str, Any]]


def _files(arguments: argparse.Namespace) -> list[ImageFile]:
    """All images, the densest sample first."""
    return sorted(find_images(arguments.images), key=lambda file: not file.id.startswith(DENSE))


def _ratios(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    image = read_image(_files(arguments)[0])
    rows = [
        *ratios.one_network(image, arguments.cells, arguments.rounds, device),
        *ratios.ensemble(image, arguments.cells, 2, 2, device),
        *ratios.rest(arguments.rounds),
    ]
    return _rows(rows)


def _ensembles(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    image = read_image(_files(arguments)[0])
    return _rows(list(ratios.ensemble(image, arguments.cells, 3, 4, device)))


def _rows(rows: list[Row]) -> tuple[str, Any]:
    return rows_table(rows), [asdict(row) for row in rows]


def _stages(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    file = _files(arguments)[0]
    columns: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        subject = random_r50(image_tensor(read_image(file))[:1], arguments.cells, Path(folder))
        for precision in kit.precisions(device):
            ensemble = kit.load(subject.manifest, device, precision)
            columns[precision] = stages.stages(file, ensemble, arguments.rounds)
    lines = [
        [step, *(f"{column[step]:.4f}" for column in columns.values())]
        for step in next(iter(columns.values()))
    ]
    return table(["stage", *(f"{words}, s" for words in columns)], lines), columns


def _levers(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    found = list(stages.levers(_files(arguments)[0], arguments.cells, arguments.rounds))
    lines = [[name, f"{seconds:.2f}", f"{ratio:.2f}"] for name, seconds, ratio in found]
    runs = whole.runs(_files(arguments)[:4], arguments.rounds)
    base = runs["pipeline"].median
    lines += [
        [f"{name}, default checkpoint", f"{t.median:.2f}", f"{t.median / base:.2f}"]
        for name, t in runs.items()
    ]
    return table(["", "s", "times as long"], lines), lines


def _memory(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    found = whole.memory(_files(arguments)[:4])
    own = found["the network alone, torchvision, one image"][1]
    lines = [[name, f"{s:.1f}", f"{mib:.0f}", f"{mib / own:.2f}"] for name, (s, mib) in found.items()]
    return table(["a new process", "s", "peak MiB", "of the network's own"], lines), found


def _scaling(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    curves = whole.scaling(_files(arguments)[:4], arguments.rounds)
    if arguments.plot:
        whole.plot(curves, arguments.plot)
    lines = [
        [what, ", ".join(f"{n}: {s:.2f}" for n, s in zip(*curve, strict=True))]
        for what, curve in curves.items()
    ]
    return table(["seconds against", ""], lines), curves


def _scores(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    if not arguments.truth:
        return "not measured: no --truth\n", None
    found = quality.scores(arguments.images, arguments.truth, most=8)
    return table(["default checkpoint", "score"], [[k, f"{v:.4f}"] for k, v in found.items()]), found


def _start(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    found = whole.start(_files(arguments)[0], arguments.rounds)
    lines = [[n, *(f"{s:.2g}" for s in (t.median, min(t.seconds), max(t.seconds)))] for n, t in found.items()]
    return table(["a new process", "median, s", "least", "most"], lines), {
        name: times.seconds for name, times in found.items()
    }


def _bodies(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    image = image_tensor(read_image(_files(arguments)[0]))[:1]
    with torch.inference_mode():
        found = list(bodies.costs(image, arguments.rounds))
    lines = [[what, f"{plain:.2f}", f"{other:.2f}", f"{other / plain:.2f}"] for what, plain, other in found]
    return table(["body and pyramid", "plain, s", "other, s", "times as long"], lines), found


def _cellpose(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    image = image_tensor(read_image(_files(arguments)[0]))[:1]
    with torch.inference_mode():
        found = list(cellpose.costs(image, arguments.cells, arguments.rounds))
    return table(["Cellpose, one image", "CPU s"], [[name, f"{s:.2f}"] for name, s in found]), found


def _tune(arguments: argparse.Namespace, device: torch.device) -> tuple[str, Any]:
    found = list(tuned.costs(arguments.tuned))
    lines = [
        [f"{c.images}", f"{c.seconds:.0f}", f"{c.seconds / c.images:.2f}", f"{c.combined}", f"{c.evaluated}"]
        for c in found
    ]
    head = ["images x 3 members", "processor s", "an image", "combinations made", "images scored"]
    return table(head, lines), [asdict(cost) for cost in found]


SECTIONS: dict[str, Section] = {
    "ratios": _ratios,
    "stages": _stages,
    "levers": _levers,
    "memory": _memory,
    "start": _start,
    "ensembles": _ensembles,
    "scaling": _scaling,
    "scores": _scores,
    "bodies": _bodies,
    "cellpose": _cellpose,
    "tune": _tune,
}

SHORT = ("ratios", "stages", "levers", "memory", "start")

if __name__ == "__main__":
    main()
