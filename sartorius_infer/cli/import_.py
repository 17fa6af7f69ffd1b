"""The `import` command: a training checkpoint becomes a lean file and a manifest entry."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sartorius_infer.cli.options import OK, UsageError


def import_parser() -> argparse.ArgumentParser:
    """The options of `import`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer import",
        description="Turn training checkpoints into .safetensors files without optimizer and other "
        "leftovers, and manifest entries with everything that their configs decide. All of them or none.",
    )
    add = parser.add_argument
    add(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="checkpoints of torchvision, Detectron2 or MMDetection; FILE::ema is one network of several",
    )
    add("--checkpoint", type=Path, metavar="FILE", help="the same, for one")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="of one checkpoint: Detectron2's, dumped whole or short (default: <checkpoint's name>.yaml or "
        "config.yaml beside it), or MMDetection's (default: the one inside, else <checkpoint's name>.py or "
        "the only .py file beside it)",
    )
    add(
        "--classes",
        type=_names,
        metavar="A,B",
        help="the network's own, in label order, without background (default: those that the checkpoint "
        "tells, else for three the competition's)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="for NAME.safetensors and the manifest")
    add("--name", help="of the entry and its file, for one checkpoint (default: the checkpoint's)")
    add(
        "--manifest",
        type=Path,
        metavar="JSON",
        help="add the entries to this one instead of writing weights_manifest.json in --out",
    )
    add("--half", action="store_true", help="store convolutions and matrices as float16")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, found {text!r}")
    return names


def import_command(arguments: argparse.Namespace) -> int:
    """Write the files and the entries, and say what came out."""
    from sartorius_infer.ensemble.describe import assumed
    from sartorius_infer.ensemble.importing import import_checkpoint, import_checkpoints

    files = [*arguments.files, *([arguments.checkpoint] if arguments.checkpoint else [])]
    if not files:
        raise UsageError("expected one or more checkpoints, found none")
    if len(files) > 1 and (arguments.name or arguments.config):
        raise UsageError(f"expected one checkpoint with --name or --config, found {len(files)}")
    shared = {"classes": arguments.classes, "manifest": arguments.manifest, "half": arguments.half}
    if len(files) == 1:
        own = {"config": arguments.config, "name": arguments.name}
        imported = [import_checkpoint(files[0], arguments.out, **own, **shared)]
    else:
        imported = import_checkpoints(files, arguments.out, **shared)
    for done in imported:
        if open_still := assumed(done.spec):
            print(open_still, file=sys.stderr)
        print(f"classes   {', '.join(done.spec.classes or ())}")
        print(f"bytes     {done.bytes_before:,} -> {done.bytes_after:,}")
        print(f"written   {done.weights}")
    print(f"          {imported[0].manifest}")
    return OK
