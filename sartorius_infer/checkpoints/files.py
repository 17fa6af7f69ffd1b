"""What a checkpoint file is, by its bytes, and whether it is the one that a manifest names. No torch here."""

from __future__ import annotations

import mmap
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Literal

from sartorius_infer.errors import ManifestError
from sartorius_infer.files import file_sha256
from sartorius_infer.manifest.manifest import Plan

Format = Literal["safetensors", "torch", "pickle"]

SUFFIXES = (".pth", ".pt", ".safetensors", ".pkl", ".ckpt", ".bin", ".pth.tar")
"""What checkpoints are usually called; what one is its content tells."""

OLDER_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began a file before torch 1.6: a pickled number."""


def file_format(path: Path) -> Format | None:
    """The format of a checkpoint by its content; None for a file that is none, or a damaged one.

    A TorchScript archive counts as torch's, until it is read. Raises OSError.
    """
    form = format_to_try(path)
    if form == "torch" and head_of(path).startswith(b"PK"):
        return "torch" if "data.pkl" in (zip_ends(path) or ()) else None
    if form != "pickle":
        return form
    # Words parse as the oldest protocol ("Notes." does); the later ones begin with their number.
    named = path.suffix.lower() == ".pkl" or head_of(path)[:1] == b"\x80"
    return "pickle" if named and is_pickle(path) else None


def format_to_try(path: Path) -> Format:
    """The only format that a file can be in, by its first bytes; raises OSError.

    Pickles have no mark of their own: what is nothing else may be one.
    """
    head = head_of(path)
    if head.startswith(b"PK") or head == OLDER_TORCH:
        return "torch"
    return "safetensors" if _is_safetensors(path, head) else "pickle"


def head_of(path: Path) -> bytes:
    """The first bytes of a file, as many as tell its format; raises OSError."""
    with path.open("rb") as file:
        return file.read(len(OLDER_TORCH))


def named_network(path: Path) -> tuple[Path, str | None]:
    """A file and which of its networks is meant: "run.pth::ema" is the one under "ema" in run.pth.

    What is there under the whole name is a file of that name, and so is what is nowhere.
    """
    file, _, state = str(path).rpartition("::")
    if not file or not state or path.exists() or not Path(file).exists():
        return path, None
    return Path(file), state


def name_of(path: Path) -> str:
    """What a checkpoint's member, or its imported file, is called by itself."""
    file, state = named_network(path)
    plain = re.sub(r"[^\w.-]+", "_", state or "").strip("._")
    return f"{file.stem}_{plain}" if plain else file.stem


def looks_like_a_checkpoint(path: Path) -> bool:
    """Whether a file in a folder of weights is meant as one: by its content, or, if damaged, by its name."""
    return path.name.lower().endswith(SUFFIXES) or file_format(path) is not None


def _is_safetensors(path: Path, head: bytes) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return int(length) <= path.stat().st_size - 8


def is_pickle(path: Path) -> bool:
    """Whether a file parses as a pickle; nothing in it is run."""
    try:
        # Mapped, so that a length past the file's end asks for no memory.
        with (
            warnings.catch_warnings(),
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            warnings.simplefilter("ignore")  # of escapes in text
            operations = pickletools.genops(content)  # type: ignore[arg-type]
            return sum(1 for _ in operations) > 1
    except (ValueError, OverflowError):
        return False


def zip_ends(path: Path) -> set[str] | None:
    """The last parts of the names in a zip archive; None for one that is cut off or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return None


def verify_files(plan: Plan) -> None:
    """Compare sizes, checksums and formats of every checkpoint with the manifest; raise ManifestError."""
    for index, spec in enumerate(plan.manifest.models):
        path, where = plan.path(spec), f"$.models[{index}]"
        size = path.stat().st_size
        if spec.bytes is not None and size != spec.bytes:
            raise ManifestError(f"{path}: {where}.bytes: expected {spec.bytes} bytes, found {size}")
        if spec.format is not None and spec.format != (found := file_format(path)):
            raise ManifestError(f"{path}: {where}.format: expected {spec.format}, found {found or 'another'}")
        if spec.sha256 is not None and (found_sha := file_sha256(path)) != spec.sha256:
            raise ManifestError(f"{path}: {where}.sha256: expected {spec.sha256}, found {found_sha}")
