"""An offline Kaggle dataset: the wheels, the weights, the manifest, and a list of everything in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from kit.errors import KitError
from kit.wheels import EPOCH, KaggleImage, add_missing, build_own
from sartorius_infer.checkpoints.files import verify_files
from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.checkpoints.storage import Store, pack
from sartorius_infer.ensemble.loading import opened_as
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.manifest import MANIFEST_NAME, ModelSpec, load_manifest
from sartorius_infer.manifest.writing import content_of, write_manifest

CONTENTS, METADATA = "CONTENTS.json", "dataset-metadata.json"
KIND = "sartorius_infer dataset"
"""Marks a dataset: the notebook looks for it in `CONTENTS.json`, wherever Kaggle mounts the folder."""

MOST_FILES = 50
LICENCES = (
    *("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0"),
    *("CC-BY-NC-ND-4.0", "apache-2.0", "GPL-2.0", "GPL-3.0", "ODbL-1.0", "other", "unknown"),
)
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ARCHIVES = (".zip", ".tar", ".gz", ".bz2", ".xz", ".7z", ".rar", ".tgz")


@dataclass(frozen=True)
class Metadata:
    """What Kaggle is told of a dataset; checked before anything is written.

    Raises KitError for an id, title or licence that Kaggle would refuse.
    """

    id: str
    title: str
    licence: str

    def __post_init__(self) -> None:
        owner, _, slug = self.id.partition("/")
        if not _SLUG.fullmatch(owner) or not _SLUG.fullmatch(slug) or not 6 <= len(slug) <= 50:
            raise KitError(
                "--id: expected USER/SLUG of small letters, digits and hyphens, SLUG of 6 to 50, found "
                f"{self.id!r}"
            )
        if not 6 <= len(self.title) <= 50:
            raise KitError(f"--title: expected 6 to 50 characters, found {len(self.title)}: {self.title!r}")
        if self.licence not in LICENCES:
            raise KitError(f"--licence: expected one of {', '.join(LICENCES)}, found {self.licence!r}")

    def json(self) -> dict[str, Any]:
        """The content of `dataset-metadata.json`."""
        return {"title": self.title, "id": self.id, "licenses": [{"name": self.licence}]}


@dataclass(frozen=True)
class Built:
    """A dataset that was written: bytes of each network before and after, and of everything."""

    folder: Path
    networks: dict[str, tuple[int, int]]
    bytes: int


def build(
    manifest: Path,
    out: Path,
    metadata: Metadata,
    image: KaggleImage,
    *,
    store: Store = "float16",
    folders: bool = False,
    wheels: Path | None = None,
) -> Built:
    """Write a dataset to `out`, which is replaced once the new one is complete and verified.

    folders  put wheels and weights into folders, which Kaggle's client uploads as archives
    wheels   a folder to take missing wheels from, instead of pip's index

    Raises KitError, ManifestError and CheckpointError; `out` is then as it was.
    """
    plan = load_manifest(manifest)
    verify_files(plan)
    with _replacing(out) as folder:
        wheel_folder, weight_folder = (folder / name if folders else folder for name in ("wheels", "weights"))
        for each in (wheel_folder, weight_folder):
            each.mkdir(exist_ok=True)
        own = build_own(wheel_folder)
        add_missing(own, image, wheels)
        content = content_of(plan.manifest, moves=True)
        networks = {}
        for entry, spec in zip(content["models"], plan.manifest.models, strict=True):
            source = plan.path(spec)
            target = weight_folder / f"{_plain(spec.name)}.safetensors"
            if target.exists():
                raise KitError(f"{manifest}: expected names that differ as files, found {target.name} twice")
            target.write_bytes(_stored(source, spec, store))
            networks[spec.name] = (source.stat().st_size, target.stat().st_size)
            entry |= {
                "file": target.relative_to(folder).as_posix(),
                "sha256": file_sha256(target),
                "bytes": target.stat().st_size,
                "format": "safetensors",
            }
            entry.pop("state", None)  # the new file holds this network alone
        write_manifest(folder / MANIFEST_NAME, content)
        _write_json(folder / METADATA, metadata.json())
        _write_json(folder / CONTENTS, {"kind": KIND, "store": store, "files": _listing(folder)})
        for path in folder.rglob("*"):
            os.utime(path, (EPOCH, EPOCH))
        verify(folder)
        size = sum(path.stat().st_size for path in _files(folder))
    return Built(out, networks, size)


def _plain(name: str) -> str:
    """A name that survives an upload: letters, digits, dots, hyphens and underscores."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")
    return plain or "network"


def _stored(path: Path, spec: ModelSpec, store: Store) -> bytes:
    opened = opened_as(path, spec, read_checkpoint(path, spec.state))
    network = opened.build(torch.device("cpu"), torch.float32)
    if not opened.family.settings:
        raise KitError(
            f"{path}: expected a network that comes with the kit, found a plugin's; ship it by hand"
        )
    return save(pack(opened.family.lean(spec, opened.checkpoint.state, network), store, str(path)))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file but the list itself."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in _files(folder)
        if path != folder / CONTENTS
    }


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place once the block ends well; else it is removed."""
    place = out.resolve()  # `.` and `..` have no name that something could lie beside
    if place.exists() and not _is_dataset(place):
        raise KitError(
            f"{out}: expected an earlier dataset or nothing, found something else; choose another --out"
        )
    if Path.cwd().is_relative_to(place):
        raise KitError(f"{out}: expected a folder to replace, found the one that this runs in")
    place.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(6)
    new, old = (place.with_name(f".{place.name}.{token}.{end}") for end in ("new", "old"))
    new.mkdir()
    try:
        yield new
        try:
            if place.exists():
                place.rename(old)
            new.rename(place)
        except BaseException:
            if old.exists() and not place.exists():
                old.rename(place)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _is_dataset(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / CONTENTS).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def verify(folder: Path, install: bool = False) -> None:
    """Check a dataset against its own list and Kaggle's rules; with `install` also that pip takes it.

    Raises KitError, naming the file, for what is missing, added, changed, or would not survive upload.
    """
    try:
        content = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        listed, kind = dict(content["files"]), content["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(
            f"{folder / CONTENTS}: expected the list of a dataset, found {type(error).__name__}"
        ) from None
    if kind != KIND:
        raise KitError(f"{folder / CONTENTS}: expected the list of a {KIND}, found {kind!r}")
    found = _listing(folder)
    for name in sorted({*listed, *found}):
        if found.get(name) != listed.get(name):
            what = "is missing" if name not in found else "is not listed" if name not in listed else "differs"
            raise KitError(
                f"{folder / name}: expected {listed.get(name)}, found {found.get(name)}: it {what}"
            )
    _require_survives(folder)
    _require_metadata(folder / METADATA)
    verify_files(load_manifest(folder / MANIFEST_NAME))
    if install:
        require_installs(folder)


def _require_metadata(path: Path) -> None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        (licence,) = said["licenses"]
        Metadata(str(said["id"]), str(said["title"]), str(licence["name"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"{path}: expected an id, a title and one licence, found {error!r}") from None
    except KitError as error:
        raise KitError(f"{path}: {error}") from None


def _require_survives(folder: Path) -> None:
    top = sorted(folder.iterdir())
    if len(top) > MOST_FILES:
        raise KitError(
            f"{folder}: expected at most {MOST_FILES} files at the top, found {len(top)}; use --zip-layout"
        )
    for path in folder.rglob("*"):
        if not _FILE_NAME.fullmatch(path.name):
            raise KitError(f"{path}: expected a name of plain letters, which survives upload")
        if path.suffix.lower() in _ARCHIVES:
            raise KitError(f"{path}: expected no archives, which Kaggle unpacks, found one")


def require_installs(folder: Path) -> None:
    """Install the wheels without an index into a scratch folder, and import the package from there."""
    with tempfile.TemporaryDirectory() as scratch:
        # pip runs in the scratch folder, from where a relative path leads nowhere.
        wheels = sorted(str(path) for path in folder.resolve().rglob("*.whl"))
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            scratch,
        ]
        probe = "import sartorius_infer.cli.main, ensemble_boxes; print(sartorius_infer.__file__)"
        for words in ([*pip, *wheels], [sys.executable, "-c", probe]):
            environment = os.environ | {"PYTHONPATH": scratch}
            run = subprocess.run(
                words, capture_output=True, text=True, env=environment, cwd=scratch, check=False
            )
            if run.returncode:
                last = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise KitError(f"{folder}: expected wheels that install and import, found {last}")
        if not Path(run.stdout.strip()).is_relative_to(scratch):
            raise KitError(f"{folder}: expected a wheel of sartorius_infer, found none")
