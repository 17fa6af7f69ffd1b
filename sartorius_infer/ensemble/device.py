"""Which device and precision a run uses, found out by running on it."""

from __future__ import annotations

import ctypes
import logging
import re
from pathlib import Path

import torch

from sartorius_infer.errors import DeviceError

log = logging.getLogger(__name__)

PRECISIONS = {
    "fp32": torch.float32,
    "fp32-fast": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

_FLAGS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
"""What /proc/cpuinfo calls a processor's products of half precision."""


def keep_memory(device: torch.device) -> None:
    """Let this process keep the memory that it frees, if it computes on the CPU and its C library is glibc.

    Each image asks for the same arrays of many megabytes. Given back and mapped anew, their pages cost a
    quarter of the default network's CPU time; kept, they cost a tenth more memory at the peak.
    """
    mmap_max, trim_threshold = -4, -1  # malloc.h
    if device.type != "cpu":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # the last where a process has no name of its own: Windows
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def resolve_device(name: str, process: int | None = None) -> torch.device:
    """The device called `name`: auto, cpu, cuda or cuda:N.

    The `process`-th of several on one machine takes a GPU of its own where the name leaves it open.

    A GPU is used only after a convolution has run on it: a driver may list a card for which this
    build of torch has no kernels. Such a card is left for the CPU with a warning. Raises DeviceError
    for a name that is none, and for a GPU that was asked for and is not listed.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and process is not None and torch.cuda.is_available():
        name = f"cuda:{process % torch.cuda.device_count()}"
    if name == "cpu":
        return torch.device("cpu")
    # Not torch.device(name): it takes cuda:256 for cuda:0.
    asked = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if asked is None:
        raise DeviceError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(asked[1] or 0) >= count:
        raise DeviceError(
            f"device: expected one of the {count} CUDA devices here, found {name!r}; use cpu or auto"
        )
    device = torch.device("cuda", int(asked[1])) if asked[1] else torch.device("cuda")
    return device if _runs(device) else torch.device("cpu")


def _runs(device: torch.device) -> bool:
    try:
        images = torch.ones((1, 3, 8, 8), device=device)
        weights = torch.ones((4, 3, 3, 3), device=device)
        found = torch.nn.functional.conv2d(images, weights).sum().item()
        fault = "" if found == 4 * 27 * 36 else f"a convolution gave {found}"
    except (RuntimeError, AssertionError) as error:
        fault = (str(error) or repr(error)).splitlines()[0]
    if fault:
        log.warning("%s is listed but cannot run (%s); using the CPU", device, fault)
    return not fault


def resolve_precision(name: str, device: torch.device, holds_bf16: bool = False) -> torch.dtype:
    """The dtype that a network computes in; fp32-fast is float32 for those that `Ensemble.quicken` changes.

    `auto` is float16 on a GPU, and on a CPU float32, but bfloat16 where the network's score `holds` in it and
    the processor has instructions for it.

    Boxes, scores and probabilities are float32 in any case. Warns where a CPU has no instructions
    for the dtype: it then takes many times as long as float32. Raises DeviceError for a name that is
    none.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if holds_bf16 and cpu_multiplies("bf16") else torch.float32
    if name not in PRECISIONS:
        raise DeviceError(f"precision: expected auto, {', '.join(PRECISIONS)}, found {name!r}")
    if name == "fp32-fast" and device.type != "cpu":
        log.warning("fp32-fast is for CPUs: on %s it is fp32, and fp16 is the fast one", device)
    if device.type == "cpu" and name in _FLAGS and not cpu_multiplies(name):
        log.warning("this CPU has no %s instructions: expect it to be far slower than fp32", name)
    return PRECISIONS[name]


def cpu_multiplies(name: str) -> bool:
    """Whether Linux says that the processor has instructions for products in bf16 or fp16."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in told for flag in _FLAGS[name])
