"""The `models` command: what the kit knows of checkpoints."""

from __future__ import annotations

import argparse

from sartorius_infer.cli.options import OK, add_weights, load_plugins


def models_parser() -> argparse.ArgumentParser:
    """The options of `models`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer models",
        description="Describe a manifest or checkpoints: what was inferred, what is assumed, size, checksum.",
    )
    add_weights(parser)
    return parser


def models_command(arguments: argparse.Namespace) -> int:
    """Print the report."""
    from sartorius_infer.ensemble.describe import describe_weights
    from sartorius_infer.ensemble.weights import find_weights

    load_plugins(arguments)
    print(describe_weights(find_weights(arguments.weights)))
    return OK
