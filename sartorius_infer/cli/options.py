"""What commands share: exit codes and options."""

from __future__ import annotations

import argparse
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


def load_plugins(arguments: argparse.Namespace) -> None:
    """Run the files named by --plugin."""
    from sartorius_infer.networks.plugins import load_plugin

    for plugin in arguments.plugin:
        load_plugin(plugin)
