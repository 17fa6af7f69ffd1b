"""Which device and precision a run uses, found out by running on it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from sartorius_infer.errors import DeviceError

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """The device called `name`: auto, cpu, cuda or cuda:N.

    A GPU is used only after a convolution has run on it: a driver may list a card for which this
    build of torch has no kernels. Such a card is left for the CPU with a warning. Raises DeviceError
    for a name that is none, and for a GPU that was asked for and is not listed.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from None
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cuda" or (device.index or 0) >= count:
        raise DeviceError(
            f"device: expected one of the {count} CUDA devices here, found {name!r}; use cpu or auto"
        )
    return device if _runs(device) else torch.device("cpu")


def _runs(device: torch.device) -> bool:
    try:
        images = torch.ones((1, 3, 8, 8), device=device)
        weights = torch.ones((4, 3, 3, 3), device=device)
        return bool(torch.nn.functional.conv2d(images, weights).sum().item() == 4 * 27 * 36)
    except (RuntimeError, AssertionError) as error:
        log.warning("%s is listed but cannot run (%s); using the CPU", device, str(error).splitlines()[0])
        return False


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype that networks compute in; `auto` is float16 on a GPU and float32 on the CPU.

    Boxes, scores and probabilities are float32 in any case. Warns where a CPU has no instructions
    for the dtype: it then takes many times as long as float32.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    flags = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
    if device.type == "cpu" and name in flags and not any(flag in _cpu_flags() for flag in flags[name]):
        log.warning("this CPU has no %s instructions: expect it to be far slower than fp32", name)
    return PRECISIONS[name]


def _cpu_flags() -> str:
    """What Linux says the processor can do; empty where it does not say."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
