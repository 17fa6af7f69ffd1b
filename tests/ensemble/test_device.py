"""Devices by name: what is none, what is not there, and a GPU that is listed but broken."""

from __future__ import annotations

import logging
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.device import cpu_multiplies, keep_memory, resolve_device, resolve_precision
from sartorius_infer.errors import DeviceError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


def mock_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Torch as it would be with this many CUDA devices listed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def mock_convolution(monkeypatch: pytest.MonkeyPatch, result: torch.Tensor | Exception) -> None:
    """A convolution with this outcome, on tensors that are on the CPU whatever device is named."""

    def convolve(*_: object) -> torch.Tensor:
        if isinstance(result, Exception):
            raise result
        return result

    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda shape, device: ones(shape))
    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)


def error(name: str) -> str:
    with pytest.raises(DeviceError) as caught:
        resolve_device(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


NAMES = ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda 0", "cuda\n", " cpu", "cpu:0", "mps", "meta"]


@pytest.mark.parametrize("name", [*NAMES, "mkldnn", "cuda:0:0", "cuda:\u0661", "cuda:" + "9" * 5000])
def test_names_that_are_none(name: str) -> None:
    assert error(name) == f"device: expected auto, cpu, cuda or cuda:N, found {name!r}"


@given(st.text(max_size=8) | st.from_regex(r"(cpu|cuda|auto):?-?\d{0,4}", fullmatch=True))
def test_any_text_is_a_device_or_an_error(name: str) -> None:
    if re.fullmatch(r"auto|cpu", name):
        assert resolve_device(name).type in ("cpu", "cuda")
    elif not torch.cuda.is_available():
        assert repr(name) in error(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "cuda:256", "cuda:999"])
def test_a_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    mock_gpus(monkeypatch, 0)
    expected = f"device: expected one of the 0 CUDA devices here, found {name!r}; use cpu or auto"
    assert error(name) == expected


@pytest.mark.parametrize("name", ["cuda:2", "cuda:256", "cuda:258"])
def test_a_gpu_beyond_the_last(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also where a byte would wrap around to one that exists."""
    mock_gpus(monkeypatch, 2)
    assert error(name).startswith("device: expected one of the 2 CUDA devices here, ")


def test_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    mock_gpus(monkeypatch, 0)
    assert resolve_device("auto") == resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_mocked_gpu_that_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    mock_gpus(monkeypatch, 2)
    mock_convolution(monkeypatch, torch.full((1, 4, 6, 6), 27.0))
    assert resolve_device(name) == torch.device("cuda" if name == "auto" else name)
    assert not caplog.records


BREAKS: dict[str, torch.Tensor | Exception] = {
    NO_KERNEL: RuntimeError(f"{NO_KERNEL}\nCUDA kernel errors might be asynchronously reported"),
    "CUDA out of memory": torch.cuda.OutOfMemoryError("CUDA out of memory"),
    "Torch not compiled with CUDA enabled": AssertionError("Torch not compiled with CUDA enabled"),
    "RuntimeError()": RuntimeError(),
    "a convolution gave 0.0": torch.zeros(1),
    "a convolution gave nan": torch.tensor([torch.nan]),
}


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("said", BREAKS)
def test_a_mock_of_a_broken_gpu_is_left_for_the_cpu_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str, name: str
) -> None:
    mock_gpus(monkeypatch, 1)
    mock_convolution(monkeypatch, BREAKS[said])
    assert resolve_device(name) == CPU
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    listed = "cuda" if name == "auto" else name
    assert record.getMessage() == f"{listed} is listed but cannot run ({said}); using the CPU"


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mock_gpus(monkeypatch, 0)
    (tmp_path / "a.png").touch()
    code = main(["--images", str(tmp_path), "--out", str(tmp_path / "s.csv"), "--device", "cuda"])
    err = capsys.readouterr().err
    assert (code, err) == (1, f"error: {error('cuda')}\n")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_real_gpu() -> None:
    assert resolve_device("auto") == CUDA
    assert resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", CPU, torch.float32),
        ("auto", CUDA, torch.float16),
        ("fp32", CUDA, torch.float32),
        ("fp16", CUDA, torch.float16),
        ("bf16", CUDA, torch.bfloat16),
    ],
)
def test_precision(name: str, device: torch.device, dtype: torch.dtype) -> None:
    assert resolve_precision(name, device) == dtype


FLAGS = "flags\t\t: fpu sse2 avx512f"


@pytest.mark.parametrize(
    ("told", "able"),
    [
        (FLAGS, set()),
        (f"{FLAGS} avx512_bf16 avx512vbmi", {"bf16"}),
        (f"{FLAGS} amx_bf16 amx_tile", {"bf16"}),
        (f"{FLAGS} avx512_bf16 avx512_fp16", {"bf16", "fp16"}),
        (None, set()),
    ],
)
def test_what_a_processor_says_it_can_do(
    monkeypatch: pytest.MonkeyPatch, told: str | None, able: set[str]
) -> None:
    def read(path: Path, **_: object) -> str:
        assert path == Path("/proc/cpuinfo")
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(Path, "read_text", read)
    assert {name for name in ("bf16", "fp16") if cpu_multiplies(name)} == able


def test_auto_is_bf16_where_the_processor_can_and_the_score_holds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sartorius_infer.ensemble.device.cpu_multiplies", lambda name: name == "bf16")
    assert resolve_precision("auto", CPU, True) == resolve_precision("bf16", CPU) == torch.bfloat16
    assert resolve_precision("auto", CPU) == resolve_precision("fp32", CPU, True) == torch.float32
    assert resolve_precision("auto", CUDA, True) == torch.float16
    assert not caplog.messages
    resolve_precision("fp16", CPU)
    assert caplog.messages == ["this CPU has no fp16 instructions: expect it to be far slower than fp32"]


@pytest.mark.parametrize("name", ["", "fp64", "FP16", "half"])
def test_precisions_that_are_none(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve_precision(name, CPU)
    assert str(caught.value) == f"precision: expected auto, fp32, fp32-fast, fp16, bf16, found {name!r}"


def faults(first: str) -> int:
    """How many pages a process touches anew for twenty rounds of the same three arrays."""
    code = f"""
import resource, torch
from sartorius_infer.ensemble.device import keep_memory
{first}
for _ in range(20):
    one = torch.ones(16_000_000)
    other = one * 2
    del one
    third = other + 1
    del other, third
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_no_memory_is_kept_without_such_a_library(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Windows raises TypeError for the process itself."""

    def fail(name: object) -> None:
        raise error

    monkeypatch.setattr("ctypes.CDLL", fail)
    keep_memory(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="glibc's own option")
def test_kept_memory_is_not_mapped_anew() -> None:
    nothing = faults("raise SystemExit(print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt))")
    plain = faults('keep_memory(torch.device("cuda"))') - nothing
    assert faults('keep_memory(torch.device("cpu"))') - nothing < plain / 2


def test_the_fast_way_is_for_cpus(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_precision("fp32-fast", torch.device("cpu")) == torch.float32
    assert not caplog.messages
    assert resolve_precision("fp32-fast", torch.device("cuda")) == torch.float32
    assert caplog.messages == ["fp32-fast is for CPUs: on cuda it is fp32, and fp16 is the fast one"]
