"""The wheels that a dataset carries: this project's own, and those that Kaggle's image lacks."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kit.errors import KitError

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "kernel" / "kaggle_image.json"

EPOCH = 1_577_836_800
"""2020-01-01: the time of every file in a dataset, so that the same inputs give the same bytes."""

_ZIP_TIME = (2020, 1, 1, 0, 0, 0)
_NEVER = ("torch", "torchvision")
_DEFAULT = "sartorius_infer/default/"


@dataclass(frozen=True)
class KaggleImage:
    """Packages and versions of Kaggle's image by Python version; None for a version not recorded."""

    recorded: str
    pythons: dict[str, dict[str, str | None]]


def read_image(path: Path = IMAGE) -> KaggleImage:
    """The kept list of what the image has."""
    content = json.loads(path.read_text(encoding="utf-8"))
    pythons = {
        version: {str(canonicalize_name(name)): found for name, found in packages.items()}
        for version, packages in content["python"].items()
    }
    return KaggleImage(content["recorded"], pythons)


def build_own(folder: Path) -> Path:
    """Build this project's wheel into `folder`, without the default checkpoint and with fixed times."""
    with tempfile.TemporaryDirectory() as scratch:
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, str(ROOT))
        (built,) = Path(scratch).glob("sartorius_infer-*.whl")
        target = folder / built.name
        _rewrite(built, target)
    return target


def _rewrite(source: Path, target: Path) -> None:
    """Copy a wheel in a fixed order, with fixed times, and without the default checkpoint."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        kept = {n: old.read(n) for n in sorted(old.namelist()) if not n.startswith(_DEFAULT)}
        (record,) = (name for name in kept if name.endswith(".dist-info/RECORD"))
        lines = [f"{name},{_record_hash(text)},{len(text)}" for name, text in kept.items() if name != record]
        kept[record] = "\n".join([*lines, f"{record},,", ""]).encode()
        for name, text in kept.items():
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(entry, text)


def _record_hash(text: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def add_missing(own: Path, image: KaggleImage, found_in: Path | None = None) -> list[Path]:
    """Put every wheel that `own` needs and the image lacks beside it; returns them.

    Wheels come from `found_in`, a folder of them, or through pip. Raises KitError for a version in the
    image that does not do, and for a package that has no wheel for every Python of the image.
    """
    added: dict[str, Path] = {}
    pending = [own]
    while pending:
        wheel = pending.pop()
        for requirement in _requirements(wheel):
            name = canonicalize_name(requirement.name)
            if name in added or not _is_missing(requirement, image, wheel):
                continue
            if name in _NEVER:
                raise KitError(f"{wheel.name}: needs {requirement}, which is never shipped")
            added[name] = _fetch(requirement, own.parent, image, found_in)
            pending.append(added[name])
    return sorted(added.values())


def _requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]


def _applies(requirement: Requirement, python: str) -> bool:
    """Whether Kaggle needs it: that depends on its Python, not on the one that packs."""
    kaggle = {
        **{"extra": "", "python_version": python, "python_full_version": f"{python}.0"},
        **{"implementation_name": "cpython", "platform_python_implementation": "CPython"},
        **{"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"},
        "platform_machine": "x86_64",
    }
    return requirement.marker is None or requirement.marker.evaluate(kaggle)


def _is_missing(requirement: Requirement, image: KaggleImage, wheel: Path) -> bool:
    """Whether some Python of the image lacks a package; KitError where it has a version that won't do."""
    missing = False
    for python, packages in image.pythons.items():
        name = canonicalize_name(requirement.name)
        if not _applies(requirement, python):
            continue
        if name not in packages:
            missing = True
            continue
        version = packages[name]
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            raise KitError(
                f"{wheel.name}: expected {requirement} in the image for Python {python}, found {version}"
            )
    return missing


def _fetch(requirement: Requirement, folder: Path, image: KaggleImage, found_in: Path | None) -> Path:
    oldest = min(image.pythons, key=Version)
    wanted = f"{requirement.name}{requirement.specifier}"  # without its marker, which pip would ask here
    with tempfile.TemporaryDirectory() as scratch:
        where = ["--no-index", "--find-links", str(found_in)] if found_in else []
        words = ["--no-deps", "--only-binary", ":all:", "--python-version", oldest, *where]
        _pip("download", *words, "--dest", scratch, wanted)
        (wheel,) = Path(scratch).glob("*.whl")
        if not wheel.name.endswith("-none-any.whl"):
            raise KitError(f"{wheel.name}: expected a wheel for every Python, found one for a single one")
        return Path(shutil.copyfile(wheel, folder / wheel.name))


def _pip(*words: str) -> None:
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, env=environment, check=False
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KitError(f"pip {words[0]}: {last}")
