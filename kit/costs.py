"""What a manifest costs on Kaggle, before anything is uploaded: bytes, and hours from a calibration."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kit.errors import KitError
from sartorius_infer.cells.claim import Selector, build_instances
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image

LIMIT_HOURS = 9.0


@dataclass(frozen=True)
class Calibration:
    """Measured seconds an image, of each network in each view: its share of everything.

    device  what was measured on
    images  how many images
    looks   (network, view, seconds)
    """

    device: str
    images: int
    looks: tuple[tuple[str, str, float], ...]

    def hours(self, images: int, devices: int, dropped: Sequence[tuple[str, str]] = ()) -> float:
        """Predicted hours for so many images, shared by so many devices, without some looks."""
        kept = sum(s for name, view, s in self.looks if (name, view) not in dropped)
        return images * kept / devices / 3600


def calibrate(ensemble: Ensemble, folder: Path, most: int = 4) -> Calibration:
    """Run a few images and measure; the first is run twice, and counts once."""
    files = find_images([folder])[:most]
    images = [read_image(file, ensemble.manifest.images.limits) for file in files]
    rules, classes = ensemble.manifest.rules, ensemble.classes
    looks: dict[tuple[str, str], float] = defaultdict(float)

    def note(name: str, view: str, seconds: float, _: int) -> None:
        looks[name, view] += seconds

    worth_a_mask = Selector(rules, classes)
    predict(ensemble, images[:1], worth_a_mask)
    start = time.perf_counter()
    for image in images:
        (prediction,) = predict(ensemble, [image], worth_a_mask, on_look=note)
        build_instances(prediction, rules, classes)
    total = time.perf_counter() - start
    whole = sum(looks.values())
    shares = tuple((n, v, total * s / whole / len(images)) for (n, v), s in looks.items())
    return Calibration(_device_name(ensemble.device), len(images), shares)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Keep a calibration as JSON."""
    path.write_text(json.dumps(asdict(calibration), indent=1) + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """A kept calibration; raises KitError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        looks = tuple((str(n), str(v), float(s)) for n, v, s in content["looks"])
        return Calibration(str(content["device"]), int(content["images"]), looks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"{path}: expected a calibration, found {type(error).__name__}: {error}") from None


def drops_for_time(
    calibration: Calibration, weights: dict[str, float], images: int, devices: int, limit: float
) -> list[str]:
    """What to leave out so that the run fits: the last views first, then networks of the least weight.

    Nothing where one network in one view takes too long.
    """
    views = list(dict.fromkeys(view for _, view, _ in calibration.looks))
    names = _least_first(list(dict.fromkeys(name for name, _, _ in calibration.looks)), weights)
    steps = [(f"view {v}", [(n, v) for n in names]) for v in reversed(views[1:])]
    steps += [(f"network {n}", [(n, v) for v in views]) for n in names[:-1]]
    said: list[str] = []
    gone: list[tuple[str, str]] = []
    for what, looks in steps:
        if calibration.hours(images, devices, gone) <= limit:
            break
        said.append(what)
        gone += looks
    return said if calibration.hours(images, devices, gone) <= limit else []


def drops_for_bytes(sizes: dict[str, int], weights: dict[str, float], over: int) -> list[str]:
    """Networks to leave out, of the least weight first, so that `over` bytes are saved; one stays.

    Nothing where one is too large.
    """
    said: list[str] = []
    for name in _least_first(list(sizes), weights)[:-1]:
        if over <= 0:
            break
        said.append(f"network {name}")
        over -= sizes[name]
    return said if over <= 0 else []


def _least_first(names: Sequence[str], weights: dict[str, float]) -> list[str]:
    """Networks by weight; of equal ones the last goes first, as a run at its time limit drops them."""
    order = sorted((weights[name], -index) for index, name in enumerate(names))
    return [names[-index] for _, index in order]
