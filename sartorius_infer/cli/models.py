"""The `models` command: what the kit knows of checkpoints."""

from __future__ import annotations

import argparse

from sartorius_infer.cli.options import OK, add_rules, add_weights, load_plugins, with_rules


def models_parser() -> argparse.ArgumentParser:
    """The options of `models`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer models",
        description="Describe a manifest or checkpoints: what was inferred, what is assumed, size, checksum, "
        "and the rules in force.",
    )
    add_weights(parser)
    add_rules(parser)
    return parser


def models_command(arguments: argparse.Namespace) -> int:
    """Print the report."""
    from sartorius_infer.ensemble.describe import describe_weights
    from sartorius_infer.ensemble.weights import find_weights

    load_plugins(arguments)
    weights = find_weights(arguments.weights, arguments.config)
    print(describe_weights(weights, lambda manifest: with_rules(arguments, manifest, weights.is_bare)[1]))
    return OK
