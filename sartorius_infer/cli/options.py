"""What commands share: exit codes and options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

OK, BAD_INPUT, USAGE, SOME_FAILED = 0, 1, 2, 3


class UsageError(Exception):
    """Options that do not go together; `main` reports it as argparse reports its own."""


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Options of every command that loads networks."""
    parser.add_argument(
        "--weights",
        nargs="+",
        type=Path,
        default=[],
        metavar="W",
        help="manifest, checkpoints (.pth, .pt, .safetensors) or a folder; default: the one that is included",
    )
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this Python file first; it may register networks of your own",
    )


def print_skipped(without_truth: Sequence[str]) -> None:
    """Name the images that have no truth, and therefore do not count."""
    if without_truth:
        names, count = ", ".join(without_truth[:5]), len(without_truth)
        more = f" and {count - 5} more" if count > 5 else ""
        print(f"skipped   {count} image{'s' * (count > 1)} without truth: {names}{more}")


def load_plugins(arguments: argparse.Namespace) -> None:
    """Run the files named by --plugin."""
    from sartorius_infer.networks.plugins import load_plugin

    for plugin in arguments.plugin:
        load_plugin(plugin)
