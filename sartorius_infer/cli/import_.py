"""The `import` command: a training checkpoint becomes a lean file and a manifest entry."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sartorius_infer.cli.options import OK


def import_parser() -> argparse.ArgumentParser:
    """The options of `import`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer import",
        description="Turn a training checkpoint into a .safetensors file without optimizer and other "
        "leftovers, and a manifest entry with everything that its config decides.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="torchvision or Detectron2")
    add(
        "--config",
        type=Path,
        metavar="YAML",
        help="of a Detectron2 checkpoint, dumped whole or short; default: <checkpoint's name>.yaml or "
        "config.yaml beside it",
    )
    add(
        "--classes",
        type=_names,
        metavar="A,B",
        help="the network's own, in label order, without background (default for three: the competition's)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="for NAME.safetensors and the manifest")
    add("--name", help="of the entry and its file (default: the checkpoint's)")
    add(
        "--manifest",
        type=Path,
        metavar="JSON",
        help="add the entry to this one instead of writing weights_manifest.json in --out",
    )
    add("--half", action="store_true", help="store convolutions and matrices as float16")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, found {text!r}")
    return names


def import_command(arguments: argparse.Namespace) -> int:
    """Write the file and the entry, and say what came out."""
    from sartorius_infer.ensemble.describe import assumptions
    from sartorius_infer.ensemble.importing import import_checkpoint

    done = import_checkpoint(
        arguments.checkpoint,
        arguments.out,
        config=arguments.config,
        classes=arguments.classes,
        name=arguments.name,
        manifest=arguments.manifest,
        half=arguments.half,
    )
    if done.spec.detectron2 is None:
        print(assumptions(done.spec), file=sys.stderr)
    print(f"classes   {', '.join(done.spec.classes or ())}")
    print(f"bytes     {done.bytes_before:,} -> {done.bytes_after:,}")
    print(f"written   {done.weights}\n          {done.manifest}")
    return OK
