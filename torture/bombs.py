"""Small files that claim to be large: each must be refused, or read, before memory goes."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from image_factories import directory, png

from torture.cases import Case, run
from torture.child import Outcome
from torture.inputs import import_everything
from torture.kinds import KINDS
from torture.scene import make_scene

MEBI = 1 << 20
DEEP = 10**6
ARRAYS = ("boxes", "scores", "labels", "masks", "size_hw")


@dataclass(frozen=True)
class Blown:
    """A bomb that a command was given: its size, and what came of it."""

    name: str
    size: int
    outcome: Outcome
    faults: list[str]

    def row(self) -> str:
        """Of the table."""
        lines = [line for line in self.outcome.stderr.splitlines() if "error: " in line]
        said = lines[-1].partition("error: ")[2] if lines else _reason(self.outcome.stdout)
        costs = f"{self.outcome.cpu_s:.2f} | {self.outcome.peak_mib:.0f}"
        said = said[:110].replace("|", "/")
        return (
            f"| {self.name} | {self.size:,} | {self.outcome.code} | {costs} | {len(self.faults)} | {said} |"
        )


def _reason(stdout: str) -> str:
    """Of a failed image, or the first problem."""
    lines = stdout.splitlines()
    failed = next((i for i, line in enumerate(lines) if line.startswith("failed")), -1)
    return lines[failed + 1].strip() if lines else ""


def _tiff(width: int, height: int, strip: bytes, **changed: int) -> bytes:
    tags = {
        256: width,
        257: height,
        258: 8,
        259: 8,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: len(strip),
        339: 1,
    }
    tags |= {int(name[1:]): value for name, value in changed.items()}
    after: bytes = directory("<", 8 + len(strip), tags, last=True)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + after


def zeros(size: int) -> bytes:
    """So many zero bytes, deflated, made without unpacking them; whole MiB, no checksum at the end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MEBI)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // MEBI) + b"\3\0"


def _zip(*entries: tuple[str, bytes, int]) -> bytes:
    """An archive of deflated entries: their names, what is there, and how much it says that it unpacks to."""
    heads = ends = b""
    for name, packed, size in entries:
        said = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, 0, len(packed), size)
        ends += b"PK\1\2" + struct.pack("<H", 20) + said
        ends += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, len(heads)) + name.encode()
        heads += b"PK\3\4" + said + struct.pack("<HH", len(name), 0) + name.encode() + packed
    count = len(entries)
    return heads + ends + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(ends), len(heads), 0)


def _safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(64)


def _deep(opening: str, closing: str = "") -> bytes:
    return (opening * DEEP + closing * DEEP).encode()


def _pictures() -> Iterator[tuple[str, str, str, bytes]]:
    stream = zlib.compress(bytes(100))
    yield "PNG of 2^30 pixels of 64 bits", "png", "images/gray.png", png(1 << 15, 1 << 15, 16, 6, [bytes(9)])
    yield "PNG of 10^10 pixels", "png", "images/gray.png", png(10**5, 10**5, 8, 0, [bytes(9)])
    yield "TIFF of 10^10 pixels", "tiff", "images/gray.tif", _tiff(10**5, 10**5, stream)
    yield "TIFF of 2^30 pixels, deflated", "tiff", "images/gray.tif", _tiff(1 << 15, 1 << 15, stream)
    yield "TIFF of 2^30 pixels, LZW", "tiff", "images/gray.tif", _tiff(1 << 15, 1 << 15, stream, t259=5)
    yield "TIFF of 2^30 pixels, 16 bits", "tiff", "images/gray.tif", _tiff(1 << 15, 1 << 15, stream, t258=16)
    yield (
        "TIFF of 2^30 pixels, fax",
        "tiff",
        "images/gray.tif",
        _tiff(1 << 15, 1 << 15, stream, t259=4, t258=1),
    )
    small = _tiff(9, 9, stream)
    counted = small[: 8 + len(stream)] + b"\xff\xff" + small[10 + len(stream) :]
    yield "TIFF of 65,535 tags that are not there", "tiff", "images/gray.tif", counted
    bmp = struct.pack("<IiiHHIIiiII", 40, 1 << 15, 1 << 15, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "BMP of 2^30 pixels", "bmp", "images/gray.bmp", b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + bmp
    frame = b"\xff\xc0" + struct.pack(">HBHHBBBB", 11, 8, 16000, 65000, 1, 1, 17, 0)
    yield (
        "JPEG of 10^9 pixels",
        "jpeg",
        "images/gray.jpg",
        b"\xff\xd8" + frame + b"\xff\xda\0\x08\1\1\0\0\x3f\0\xff\xd9",
    )
    lossless = b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + bytes(16)
    webp = b"WEBPVP8L" + struct.pack("<I", len(lossless)) + lossless + b"\0"
    yield "WebP of 2^28 pixels", "webp", "images/gray.webp", b"RIFF" + struct.pack("<I", len(webp)) + webp
    yield "label map of 2^30 pixels", "label maps", "labels/i1.tif", _tiff(1 << 15, 1 << 15, stream)
    yield (
        "label map (PNG) of 2^30 pixels",
        "label maps",
        "labels/i0.png",
        png(1 << 15, 1 << 15, 8, 0, [bytes(9)]),
    )


def _texts() -> Iterator[tuple[str, str, str, bytes]]:
    for kind, file in {
        "manifests": "w/weights_manifest.json", "rules": "rules.json", "image ids": "ids.json",
        "COCO truth": "coco.json", "results": "results.json",
    }.items():  # fmt: skip
        yield f"{kind}: 10^6 lists in each other", kind, file, _deep("[", "]")
        yield f"{kind}: 10^6 open objects", kind, file, _deep('{"a":')
    yield "YAML: 10^6 lists in each other", "Detectron2 YAML", "d2/config.yaml", _deep("[", "]")
    laughs = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    yield (
        "YAML: 9^11 aliases",
        "Detectron2 YAML",
        "d2/config.yaml",
        "\n".join(["a0: &a0 [x]", *laughs]).encode(),
    )
    maps = [f"m{i}: &m{i} {{{', '.join(f'k{j}: *m{i - 1}' for j in range(9))}}}" for i in range(1, 9)]
    yield (
        "YAML: 9^8 keys",
        "Detectron2 YAML",
        "d2/config.yaml",
        "\n".join(["MODEL: &m0 {a: 1}", *maps]).encode(),
    )
    yield "config: 10^6 brackets", "MMDetection config", "mm/config.py", b"x = " + _deep("(", ")")
    yield "config: 10^6 minus signs", "MMDetection config", "mm/config.py", b"x = " + _deep("-") + b"1"
    yield "config: powers of powers", "MMDetection config", "mm/config.py", b"x = 9 ** 9 ** 9 ** 9"
    yield "recipe: 10^6 lists in each other", "recipes", "recipe.toml", b"x = " + _deep("[", "]")
    row = "i0,1 {0},{1},{1},a\n"
    head = "id,annotation,width,height,cell_type\n"
    yield "train.csv of 10^18 pixels", "train.csv", "train.csv", (head + row.format(10**17, 10**9)).encode()
    yield (
        "submission of 10^18 pixels",
        "submissions",
        "submission.csv",
        f"id,predicted\ni0,1 {10**18}\n".encode(),
    )
    size = {"height": 10**6, "width": 10**6}
    shape = [[0, 0, 10**6, 0, 10**6, 10**6, 0, 10**6]]
    content = {
        "images": [{"id": 10, "file_name": "i0.png", **size}], "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 10, "category_id": 1, "segmentation": shape, "iscrowd": 0}],
    }  # fmt: skip
    yield "COCO polygon of 10^12 pixels", "COCO truth", "coco.json", json.dumps(content).encode()


def _archives() -> Iterator[tuple[str, str, str, bytes]]:
    huge = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 64]}}).encode()
    yield "safetensors: 10^12 numbers in 64 bytes", "safetensors", "ck/net.safetensors", _safetensors(huge)
    wide = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    yield "safetensors: 4 GB that are not there", "safetensors", "ck/net.safetensors", _safetensors(wide)
    yield "safetensors: a header of 2^40", "safetensors", "ck/net.safetensors", _safetensors(b"{}", 2**40)
    yield "safetensors: 10^6 levels", "safetensors", "ck/net.safetensors", _safetensors(_deep('{"a":'))
    yield (
        "results.zip: 2 GiB of zeros",
        "results",
        "results.zip",
        _zip(("r.json", zeros(2048 * MEBI), 2048 * MEBI)),
    )
    said = _zip(("r.json", b"[]", 2**32 - 2))
    yield "results.zip: 4 GiB that are not there", "results", "results.zip", said
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (536870912, 4), }".ljust(117) + b"\n"
    array = zlib.compressobj(0, zlib.DEFLATED, -15)
    start = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header
    packed = array.compress(start) + array.flush(zlib.Z_FULL_FLUSH) + zeros(2048 * MEBI)
    npz = _zip(*((f"{name}.npy", packed, len(start) + 2048 * MEBI) for name in ARRAYS))
    yield "saved prediction: 2 GiB of zeros", "saved predictions", "saved/i0.npz", npz
    yield (
        "torch zip: a pickle of 2 GiB",
        "torch zip",
        "ck/plain.pth",
        _zip(("a/data.pkl", zeros(2048 * MEBI), 2048 * MEBI)),
    )
    yield (
        "pickle: 10^6 lists in each other",
        "pickles",
        "ck/arrays2.pkl",
        b"\x80\2" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    )
    yield "pickle: bytes of 2^63", "pickles", "ck/arrays2.pkl", b"\x80\4\x8e" + b"\xff" * 7 + b"\x7f."


def blow_up() -> list[Blown]:
    """Every bomb, given to the first command of its kind."""
    import_everything()
    found = []
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        scene = make_scene(Path(name) / "scene")
        for make in (_pictures, _texts, _archives):
            for title, kind, file, content in make():
                command = next(c for c in KINDS[kind].commands)
                case = Case(kind, 0, file, content, command, by_bits=False, is_fresh=False)
                outcome, faults = run(case, scene, Path(name) / "case")
                shutil.rmtree(Path(name) / "case")
                found.append(Blown(title, len(content), outcome, faults))
                print(found[-1].row(), *faults, flush=True)
    return found


HEAD = "| bomb | bytes | exit code | s | MiB | failures | said |\n|---|---|---|---|---|---|---|"
