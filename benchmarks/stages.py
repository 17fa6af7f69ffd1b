"""Where the kit's time goes on one image, the floor below it, and what each lever gives."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import kit
from benchmarks.networks import random_r50
from benchmarks.timing import alternate
from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.paste import paste_cells
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.fuse import Boxes, fuse
from sartorius_infer.ensemble.passes import image_tensor, predict
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.manifest.views import IDENTITY
from sartorius_infer.networks.cpu.arithmetic import fold_norms, use_winograd
from sartorius_infer.networks.cpu.winograd import WinogradConv2d
from sartorius_infer.networks.inputs import network_input
from sartorius_infer.networks.roi_align import by_kernel
from sartorius_infer.output.writers import SubmissionWriter
from sartorius_infer.types import CellImage, Prediction


class Clock:
    """Seconds of named steps, a list for each."""

    def __init__(self, device: torch.device) -> None:
        self.taken: dict[str, list[float]] = {}
        self._device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside, on a GPU to its end."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.taken.setdefault(name, []).append(time.perf_counter() - start)


def stages(file: ImageFile, ensemble: Ensemble, rounds: int) -> dict[str, float]:
    """Median seconds of each step of one image, and of its products alone (`floor`)."""
    clock = Clock(ensemble.device)
    for _ in range(rounds + 1):
        _one_image(file, ensemble, clock)
    seconds = {name: median(values[1:]) for name, values in clock.taken.items()}
    seconds["body and pyramid"] -= seconds["resize"]  # features() resizes as well,
    seconds["rules"] -= seconds["paste"]  # and build_instances() pastes
    return seconds | {"floor": floor(ensemble, file, rounds)}


@torch.inference_mode()
def _one_image(file: ImageFile, ensemble: Ensemble, clock: Clock) -> None:
    network: Any = ensemble.members[0].network
    rules, classes, device = ensemble.manifest.rules, ensemble.classes, ensemble.device
    with clock("decode"):
        image = read_image(file)
    pixels = image_tensor(image).to(device)
    with clock("resize"):
        network_input([pixels], network.preprocessing, IDENTITY)
    with clock("body and pyramid"):
        features = network.features([pixels])
    with clock("RPN"):
        proposals = network.propose(features)
    with clock("box head"):
        (seen,) = network.detect(features, proposals)
    found = Boxes(seen.boxes.cpu().numpy(), seen.scores.cpu().numpy(), seen.labels.cpu().numpy())
    with clock("fusion"):
        fused = fuse([found], image.size_hw, Fusion())
    fused = fused[kit.worth_a_mask(ensemble)(fused.scores, fused.labels)]
    boxes, labels = (torch.from_numpy(values).to(device) for values in (fused.boxes, fused.labels))
    with clock("mask head"):
        (masks,) = network.mask_probabilities(features, [boxes], [labels])
        grids = masks.half().cpu().numpy()
    prediction = Prediction(image.id, image.size_hw, fused.boxes, fused.scores, fused.labels, grids)
    with clock("paste"):
        deque(paste_cells(grids, fused.boxes, image.size_hw, rules.paste), maxlen=0)
    with clock("rules"):
        cells = build_instances(prediction, rules, classes)
    with TemporaryDirectory() as folder, SubmissionWriter(Path(folder) / "submission.csv") as writer:
        with clock("RLE"):
            rows = writer.encode(cells)
        with clock("write"):
            writer.write(rows)


def floor(ensemble: Ensemble, file: ImageFile, rounds: int) -> float:
    """Seconds that the image's convolutions and matrix products take by themselves."""
    calls: list[tuple[nn.Module, Tensor]] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, WinogradConv2d)
    network: Any = ensemble.members[0].network
    handles = [
        module.register_forward_hook(lambda m, inputs, _: calls.append((m, inputs[0])))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    image = read_image(file)
    predict(ensemble, [image], kit.worth_a_mask(ensemble))
    for handle in handles:
        handle.remove()

    @torch.inference_mode()
    def products() -> None:
        with network.autocast(ensemble.device):
            for module, inputs in calls:
                module(inputs)
        if ensemble.device.type == "cuda":
            torch.cuda.synchronize()

    return alternate({"floor": products}, rounds)["floor"].median


def levers(file: ImageFile, cells: int, rounds: int) -> Iterator[tuple[str, float, float]]:
    """Each lever of a CPU off in turn: its name, the median seconds without it, and the ratio to all on."""
    image = read_image(file)
    with TemporaryDirectory() as folder:
        subject = random_r50(image_tensor(image)[:1], cells, Path(folder))
        everything = kit.load(subject.manifest, kit.CPU, "fp32-fast")
        runs: Mapping[str, Callable[[], object]] = {
            "all on (fp32-fast)": lambda: kit.rows(everything, image),
            "no folded norms": _without(subject.manifest, image, fold=False),
            "no channels last": _without(subject.manifest, image, channels_last=False),
            "no Winograd": _without(subject.manifest, image, winograd=False),
            "no RoIAlign by sums": _with_kernel(everything, image),
            "masks of all boxes (no threshold pushdown)": lambda: kit.decide(
                everything, predict(everything, [image])[0]
            ),
        }
        times = alternate(runs, rounds)
    whole = times["all on (fp32-fast)"]
    for name, seconds in times.items():
        yield name, seconds.median, seconds.median / whole.median


def _with_kernel(ensemble: Ensemble, image: CellImage) -> Callable[[], object]:
    """The kit with torchvision's RoIAlign."""

    def run() -> object:
        with patch("sartorius_infer.networks.torchvision.rcnn.pool_rois", by_kernel):
            return kit.rows(ensemble, image)

    return run


def _without(
    manifest: Path, image: Any, fold: bool = True, channels_last: bool = True, winograd: bool = True
) -> Callable[[], object]:
    """The kit with the arithmetic of `quicken` in part."""
    with nullcontext() if winograd else patch("sartorius_infer.networks.pyramid.use_winograd"):
        ensemble = kit.load(manifest, kit.CPU)
    network: Any = ensemble.members[0].network
    if fold:
        fold_norms(network.model)
    if winograd:
        use_winograd(network.model)
    if channels_last:
        network.model.to(memory_format=torch.channels_last)
        network.memory_format = torch.channels_last
    return lambda: kit.rows(ensemble, image)
