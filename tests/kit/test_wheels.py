from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import tomllib
import zipfile
from email.parser import Parser
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from kits import own_wheel, put_own_wheel, wheels_from_here, write_wheel
from packaging.requirements import Requirement
from places import ROOT

from kit import wheels
from kit.errors import KitError
from kit.wheels import KaggleImage, add_missing, build_own, read_image
from sartorius_infer import __version__

DEFAULT = "sartorius_infer/default/"


def image(**packages: str | None) -> KaggleImage:
    """An image with the same packages for both of its Pythons."""
    return KaggleImage("2026-11-21", {"3.12": dict(packages), "3.13": dict(packages)})


def added(own: Path, image: KaggleImage, found_in: Path) -> list[str]:
    """The names of the wheels that join `own`; they lie beside it and nothing else does."""
    paths = add_missing(own, image, found_in)
    assert {*own.parent.iterdir()} == {own, *paths}
    return [path.name.partition("-")[0] for path in paths]


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take wheels from the folder as they lie there: pip itself takes a second for each."""

    def fetch(requirement: Requirement, folder: Path, image: KaggleImage, found_in: Path | None) -> Path:
        assert found_in is not None
        (path,) = found_in.glob(f"{requirement.name}-*.whl")
        return path.rename(folder / path.name)

    monkeypatch.setattr(wheels, "_fetch", fetch)


def test_the_own_wheel_is_the_package_without_checkpoint_and_tools() -> None:
    name, content = own_wheel()
    assert name == f"sartorius_infer-{__version__}-py3-none-any.whl"
    assert len(content) < 1_000_000
    with zipfile.ZipFile(BytesIO(content)) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(
            archive.read(f"sartorius_infer-{__version__}.dist-info/METADATA").decode()
        )
    package = (
        p for p in (ROOT / "sartorius_infer").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    )
    assert {n for n in names if n.startswith("sartorius_infer/")} == {
        path.relative_to(ROOT).as_posix() for path in package
    }
    assert {"sartorius_infer/py.typed", "sartorius_infer/show/page/page.html"} <= {*names}
    assert not [n for n in names if n.endswith((".safetensors", ".pth")) or "default" in n]
    assert {n.partition("/")[0] for n in names} == {
        "sartorius_infer",
        f"sartorius_infer-{__version__}.dist-info",
    }
    assert names == sorted(names)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    said = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {r.name for r in said if r.marker is None} == {Requirement(line).name for line in needed}


def test_the_own_wheels_record_lists_every_file_with_its_checksum() -> None:
    with zipfile.ZipFile(BytesIO(own_wheel()[1])) as archive:
        (record,) = (n for n in archive.namelist() if n.endswith("RECORD"))
        rows = list(csv.reader(StringIO(archive.read(record).decode())))
        assert {name for name, _, _ in rows} == {*archive.namelist()}
        for name, digest, size in rows:
            if name != record:
                text = archive.read(name)
                found = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).decode().rstrip("=")
                assert (digest, int(size)) == (f"sha256={found}", len(text))
        assert {entry.date_time for entry in archive.infolist()} == {(2020, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}


def test_an_installed_package_has_the_default_checkpoint(tmp_path: Path) -> None:
    """In the wheel that pip makes of a checkout; a dataset's leaves it out."""
    wheels._pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT))
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        found = {n.removeprefix(DEFAULT): archive.read(n) for n in names if n.startswith(DEFAULT)}
    with zipfile.ZipFile(BytesIO(own_wheel()[1])) as archive:
        assert {n for n in names if not n.startswith(DEFAULT)} == {*archive.namelist()}
    weights = {f"weights/{file.name}": file.read_bytes() for file in (ROOT / "weights").iterdir()}
    assert found == {"weights_manifest.json": (ROOT / "weights_manifest.json").read_bytes(), **weights}
    models = json.loads(found["weights_manifest.json"])["models"]
    assert {model["file"] for model in models} <= {*found}


def test_building_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    before = os.umask(0o077)
    try:
        path = build_own(tmp_path)
    finally:
        os.umask(before)
    assert (path.name, path.read_bytes()) == own_wheel()


def test_ensemble_boxes_is_all_that_the_image_lacks(tmp_path: Path) -> None:
    """Of this project's requirements, for both Pythons, as kernel/kaggle_image.json tells."""
    own = put_own_wheel(tmp_path)
    known = read_image()
    assert list(known.pythons) == ["3.12", "3.13"]
    found_in = wheels_from_here(tmp_path / "from")
    paths = add_missing(own, known, found_in)
    assert [path.name for path in paths] == ["ensemble_boxes-1.0.9-py3-none-any.whl"]
    assert paths[0].read_bytes() == next(found_in.iterdir()).read_bytes()


def test_the_image_knows_its_packages_by_their_plain_names(tmp_path: Path) -> None:
    path = tmp_path / "image.json"
    path.write_text('{"recorded": "today", "python": {"3.12": {"PyYAML": null, "Foo_Bar.baz": "2"}}}')
    assert read_image(path) == KaggleImage("today", {"3.12": {"pyyaml": None, "foo-bar-baz": "2"}})


def test_what_is_missing_brings_what_it_needs_itself(tmp_path: Path) -> None:
    """By pip itself; two that need each other end."""
    own = write_wheel(tmp_path / "kit", "own", needs=["numpy>=2", "Bee"])
    for name, needs in (("bee", ["cee>1"]), ("cee", ["bee", "torch"])):
        write_wheel(tmp_path / "from", name, "1.5", needs)
    assert added(own, image(numpy="2.0.2", torch="2.10"), tmp_path / "from") == ["bee", "cee"]


@pytest.mark.usefixtures("without_pip")
@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ("bee", ["bee"]),
        ("Bee>=1", ["bee"]),
        ("bee; python_version >= '3.13'", ["bee"]),
        ("bee; python_version < '3.12'", []),
        ("bee; python_full_version >= '3.12.0'", ["bee"]),
        ("bee; sys_platform == 'win32'", []),
        ("bee; platform_system == 'Linux' and platform_machine == 'x86_64'", ["bee"]),
        ("bee; extra == 'fast'", []),
        ("numpy>=2,<3", []),
        ("NumPy", []),
        ("unknown-version>=99", []),
        ("torch>=2.5", []),
        ("numpy>=9; python_version < '3.12'", []),
    ],
)
def test_what_kaggle_needs_is_told_by_its_pythons(tmp_path: Path, need: str, expected: list[str]) -> None:
    """Not by the Python that packs."""
    need = need.replace("Bee", "bee")
    own = write_wheel(tmp_path / "kit", "own", needs=[need])
    write_wheel(tmp_path / "from", "bee")
    known = image(numpy="2.0.2", torch="2.10.0", **{"unknown-version": None})
    assert added(own, known, tmp_path / "from") == expected


@pytest.mark.usefixtures("without_pip")
def test_what_one_python_of_the_image_lacks_is_shipped(tmp_path: Path) -> None:
    own = write_wheel(tmp_path / "kit", "own", needs=["bee"])
    write_wheel(tmp_path / "from", "bee")
    known = KaggleImage("today", {"3.12": {"bee": "1.0"}, "3.13": {}})
    assert added(own, known, tmp_path / "from") == ["bee"]


@pytest.mark.parametrize("name", ["torch", "torchvision", "Torch"])
def test_torch_is_never_shipped(tmp_path: Path, name: str) -> None:
    own = write_wheel(tmp_path / "kit", "own", needs=[f"{name}>=2"])
    with pytest.raises(
        KitError, match=rf"^own-1.0-py3-none-any.whl: needs {name}>=2, which is never shipped$"
    ):
        add_missing(own, image(), tmp_path)


def test_a_version_in_the_image_that_does_not_do_is_named(tmp_path: Path) -> None:
    own = write_wheel(tmp_path / "kit", "own", needs=["numpy>=2.1"])
    known = KaggleImage("today", {"3.12": {"numpy": "2.4.0"}, "3.13": {"numpy": "2.0.2"}})
    said = "expected numpy>=2.1 in the image for Python 3.13, found 2.0.2"
    with pytest.raises(KitError, match=f"^own-1.0-py3-none-any.whl: {re.escape(said)}$"):
        add_missing(own, known, tmp_path)


def test_a_wheel_for_one_python_alone_is_refused(tmp_path: Path) -> None:
    own = write_wheel(tmp_path / "kit", "own", needs=["bee"])
    write_wheel(tmp_path / "from", "bee", tag="cp312-cp312-linux_x86_64")
    with pytest.raises(
        KitError, match=r"^bee-.*whl: expected a wheel for every Python, found one for a single"
    ):
        add_missing(own, image(), tmp_path / "from")
    assert list(own.parent.iterdir()) == [own]


def test_what_is_found_nowhere_is_named_and_sources_are_not_built(tmp_path: Path) -> None:
    own = write_wheel(tmp_path / "kit", "own", needs=["bee>=1"])
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "bee-1.0.tar.gz").write_bytes(b"never opened")
    with pytest.raises(KitError, match=r"^pip download: ERROR: No matching distribution found for bee>=1$"):
        add_missing(own, image(), tmp_path / "from")
