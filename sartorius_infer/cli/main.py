"""The command line: thin, one line on an error, exit codes that mean something.

0 all well; 1 bad input, or `check` found something; 2 usage; 3 finished, but some images failed and
were left blank.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sartorius_infer.cli.predict import BAD_INPUT, OK, add_weights, load_plugins, predict, predict_parser
from sartorius_infer.cli.score import score_command, score_parser
from sartorius_infer.cli.show import show_command, show_parser
from sartorius_infer.cli.tune import tune_command, tune_parser
from sartorius_infer.errors import SartoriusError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; `argv` without the program's name. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.captureWarnings(True)
    name = words[0] if words and words[0] in _COMMANDS else None
    parser, command = _COMMANDS[name] if name else (predict_parser, predict)
    arguments = parser().parse_args(words[1:] if name else words)
    try:
        return command(arguments)
    except BrokenPipeError:
        # Whoever read our output has enough; what is left must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (SartoriusError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; nothing was written over", file=sys.stderr)
        return 130


def _models_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer models",
        description="Describe a manifest or checkpoints: what was inferred, what is assumed, size, checksum.",
    )
    add_weights(parser)
    return parser


def _import_parser() -> argparse.ArgumentParser:
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


def _check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer check",
        description="Re-read a submission and list everything wrong with it; exit code 1 if anything is.",
    )
    parser.add_argument("--submission", type=Path, required=True, metavar="CSV")
    parser.add_argument(
        "--images", nargs="+", type=Path, metavar="PATH", help="the images, for their ids and sizes"
    )
    parser.add_argument("--sample-submission", type=Path, metavar="CSV", help="for the set and order of ids")
    return parser


def _models(arguments: argparse.Namespace) -> int:
    from sartorius_infer.ensemble.describe import describe_weights

    load_plugins(arguments)
    print(describe_weights(arguments.weights))
    return OK


def _import(arguments: argparse.Namespace) -> int:
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


def _check(arguments: argparse.Namespace) -> int:
    from sartorius_infer.images.images import find_images, image_size
    from sartorius_infer.output.submission import check_submission, read_sample_submission

    files = find_images(arguments.images) if arguments.images else None
    sizes = {file.id: image_size(file) for file in files} if files is not None else None
    sample = read_sample_submission(arguments.sample_submission) if arguments.sample_submission else None
    problems = check_submission(arguments.submission, sizes, sample)
    for problem in problems:
        where = f"line {problem.line}" if problem.line else "file"
        print(f"{where}: {f'{problem.id}: ' if problem.id else ''}{problem.message}")
    count = len(problems)
    found = "no problems" if count == 0 else "1 problem" if count == 1 else f"{count} problems"
    print(f"{arguments.submission}: {found}")
    return BAD_INPUT if problems else OK


_COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "import": (_import_parser, _import),
    "models": (_models_parser, _models),
    "check": (_check_parser, _check),
    "score": (score_parser, score_command),
    "show": (show_parser, show_command),
    "tune": (tune_parser, tune_command),
}
