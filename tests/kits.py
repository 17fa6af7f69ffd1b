"""What packing for Kaggle needs, made here once: this project's wheel, a folder of the missing one."""

from __future__ import annotations

import json
import shutil
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from kit import dataset
from kit.wheels import KaggleImage, build_own
from sartorius_infer.manifest.manifest import ModelSpec


@cache
def own_wheel() -> tuple[str, bytes]:
    """Name and bytes of this project's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        path = build_own(Path(folder))
        return path.name, path.read_bytes()


def put_own_wheel(folder: Path) -> Path:
    """What `build_own` does, without building again."""
    name, content = own_wheel()
    (folder / name).write_bytes(content)
    return folder / name


def pack_quickly(patch: pytest.MonkeyPatch, found_in: Path) -> None:
    """Let datasets take the wheels that were made before: building and fetching take seconds."""

    def add_missing(own: Path, image: KaggleImage, folder: Path | None = None) -> list[Path]:
        return [Path(shutil.copyfile(wheel, own.parent / wheel.name)) for wheel in found_in.iterdir()]

    patch.setattr(dataset, "build_own", put_own_wheel)
    patch.setattr(dataset, "add_missing", add_missing)


def wheels_from_here(folder: Path) -> Path:
    """A folder with a real wheel of ensemble-boxes, packed from what is installed."""
    found = distribution("ensemble-boxes")
    files = {
        str(file): file.read_binary()
        for file in found.files or ()
        if file.suffix != ".pyc" and file.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    }
    write_wheel(folder, "ensemble-boxes", found.version, files=files)
    return folder


def kaggle_environment(folder: Path) -> Path:
    """The interpreter of an environment with what is installed here, but for what a dataset brings."""
    installed = folder / "installed"
    installed.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not any(name in path.name for name in ("sartorius_infer", "ensemble_boxes")):
            (installed / path.name).symlink_to(path)
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "installed.pth").write_text(f"{installed}\n")
    return folder / "venv" / "bin" / "python"


def write_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    needs: Sequence[str] = (),
    tag: str = "py3-none-any",
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """A wheel of an empty package, or of `files`, its metadata among them."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    made = {
        f"{module}/__init__.py": b"",
        f"{info}/METADATA": "\n".join(lines).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    content = dict(files or made)
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_inside, text in content.items():
            archive.writestr(name_inside, text)
    return path


def any_weights(path: Path, spec: ModelSpec, store: str) -> bytes:
    """A checkpoint of 1000 bytes that only says how it is stored, for what does not depend on the network."""
    empty = len(save({"none": torch.zeros(900, dtype=torch.uint8)}, {"store": store})) - 900
    return save({"none": torch.zeros(1000 - empty, dtype=torch.uint8)}, {"store": store})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
