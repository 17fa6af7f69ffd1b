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

from sartorius_infer.cli.check import check_command, check_parser
from sartorius_infer.cli.import_ import import_command, import_parser
from sartorius_infer.cli.models import models_command, models_parser
from sartorius_infer.cli.options import BAD_INPUT, OK, UsageError
from sartorius_infer.cli.predict import predict_command, predict_parser
from sartorius_infer.cli.score import score_command, score_parser
from sartorius_infer.cli.show import show_command, show_parser
from sartorius_infer.cli.tune import tune_command, tune_parser
from sartorius_infer.errors import SartoriusError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; `argv` without the program's name. Returns the exit code."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        # Whoever read our output has enough; what is left must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (SartoriusError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; nothing was written over", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.captureWarnings(True)
    make_parser, command = _COMMANDS[_verb(words)]
    parser = make_parser()
    arguments = parser.parse_args(words[1:] if words and words[0] in _COMMANDS else words)
    try:
        return command(arguments)
    except UsageError as error:
        parser.error(str(error))


def _verb(words: Sequence[str]) -> str:
    """The command that is meant: the first word, or `predict` where options come first."""
    if not words or words[0].startswith("-"):
        return "predict"
    if words[0] not in _COMMANDS:
        predict_parser().error(f"expected one of {', '.join(_COMMANDS)}, or options, found {words[0]!r}")
    return words[0]


_COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "predict": (predict_parser, predict_command),
    "import": (import_parser, import_command),
    "models": (models_parser, models_command),
    "check": (check_parser, check_command),
    "score": (score_parser, score_command),
    "show": (show_parser, show_command),
    "tune": (tune_parser, tune_command),
}
