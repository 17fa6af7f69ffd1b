"""Mutations of checkpoints and archives by their structure: zips, safetensors, pickles, arrays of numpy."""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from io import BytesIO
from random import Random

from torture.bits import Mutation, mutate_bits, shuffled
from torture.texts import CANARY, mutate_json, mutate_tree

_TOUCH = f"touch {CANARY}".encode()
_HOSTILE = (
    b"cposix\nsystem\n(S'" + _TOUCH + b"'\ntR0",
    b"cos\nsystem\n(V" + _TOUCH + b"\ntR0",
    b"c__builtin__\neval\n(Vopen('" + CANARY.encode() + b"','w')\ntR0",
    b"(S'" + _TOUCH + b"'\nios\nsystem\n0",
    b"\x8c\x05posix\x8c\x06system\x93(V" + _TOUCH + b"\ntR0",
    b"ctorch\nload\n(V/dev/zero\ntR0",
    b"csubprocess\nPopen\n((lV" + _TOUCH + b"\naltR0",
    b"(I1\nI2\ntNb",
    b"N" * 100 + b"0" * 100,
    b"(" * 2000,
    b"]" + b"]a" * 1000 + b"0",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"B\xff\xff\xff\x7f",
    b"h\xff0",
    b"r\xff\xff\xff\x7f",
)


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """Opcodes lost, doubled or moved, other arguments, hostile calls and sizes among them."""
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    ends = [*starts[1:], starts[-1] + 1]
    rest = data[ends[-1] :]
    codes = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind, at = rng.randrange(3), rng.randrange(len(codes))
        if kind == 0:
            codes = shuffled(codes, rng)
        elif kind == 1:
            codes[at] = codes[at][:1] + mutate_bits(codes[at][1:], rng)
        else:
            codes.insert(max(1, at), rng.choice(_HOSTILE))
    return b"".join(codes) + rest


def mutate_pickles(data: bytes, rng: Random) -> bytes:
    """One of several pickles that stand one after the other, as in torch's older form."""
    ends, stream = [0], BytesIO(data)
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    at = rng.choice((3, 3, 3, 0, 1, 2, 4))
    return data[: ends[at]] + mutate_pickle(data[ends[at] : ends[at + 1]], rng) + data[ends[at + 1] :]


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Another header: other shapes, types, offsets, names, and a length that is right or wrong."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    tree = json.loads(header)
    if rng.randrange(3):
        name = rng.choice([name for name in tree if name != "__metadata__"])
        entry = mutate_tree({"x": tree[name]}, rng)
        tree[name] = entry.get("x") if isinstance(entry, dict) else entry
        header = json.dumps(tree).encode()
    else:
        header = mutate_json(header, rng)
    size = rng.choice((len(header),) * 6 + (0, len(header) + 8, 2**40, 2**63))
    return struct.pack("<Q", size) + header + body


def mutate_npy(data: bytes, rng: Random) -> bytes:
    """An array of numpy under another header."""
    end = 10 + struct.unpack("<H", data[8:10])[0]
    header, body = data[10:end].decode("latin-1"), data[end:]
    swaps = (
        ("<f4", "<f8"), ("<f4", "|O"), ("<f2", "<i2"), ("<i8", "<f8"), ("False", "True"), (", ", " "),
        ("(", "(0, "), ("(", "(-1, "), ("(", "(4000000000, "), ("(", "(1000000000000000000000, "),
        ("(", "(" * 300), ("{", "__import__('os').system('touch " + CANARY + "') or {"), ("<f4", "V9999999"),
    )  # fmt: skip
    old, new = rng.choice(swaps)
    header = header.replace(old, new, 1)
    if rng.randrange(4) == 0:
        body = mutate_bits(body, rng)
    if "|O" in header:
        body = b"\x80\x02" + _HOSTILE[0] + b"N."
    return data[:8] + struct.pack("<H", len(header)) + header.encode("latin-1") + body


def mutate_zip(data: bytes, rng: Random, inside: dict[str, Mutation]) -> bytes:
    """An archive written anew: entries lost, doubled, moved, renamed, compressed or mutated by `inside`.

    `inside` goes by the ends of their names. Or bits of its directory.
    """
    with zipfile.ZipFile(BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind = rng.randrange(6)
    if kind == 0:
        entries = shuffled(entries, rng)
    elif kind == 1:
        at = rng.randrange(len(entries))
        name = entries[at][0]
        others = ("../" + name, "/" + name, name.upper(), "", "x" * 300, f"../{CANARY}", name + "/")
        entries[at] = (rng.choice(others), entries[at][1])
    elif kind == 2:
        start = data.rfind(b"PK\1\2")
        return data[:start] + mutate_bits(data[start:], rng)
    else:
        known = [i for i, (name, _) in enumerate(entries) if any(name.endswith(end) for end in inside)]
        at = rng.choice(known or [0])
        name, content = entries[at]
        mutate = next((m for end, m in inside.items() if name.endswith(end)), mutate_bits)
        entries[at] = (name, mutate(content, rng))
    made = BytesIO()
    method = rng.choice(
        (zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return made.getvalue()


def mutate_torch(data: bytes, rng: Random) -> bytes:
    """What torch.save writes today."""
    return mutate_zip(data, rng, {"data.pkl": mutate_pickle})


def mutate_npz(data: bytes, rng: Random) -> bytes:
    """A saved prediction."""
    return mutate_zip(data, rng, {".npy": mutate_npy})


def mutate_results_zip(data: bytes, rng: Random) -> bytes:
    """COCO results in a zip."""
    return mutate_zip(data, rng, {".json": mutate_json})
