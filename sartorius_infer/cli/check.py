"""The `check` command: everything that is wrong with a submission."""

from __future__ import annotations

import argparse
from pathlib import Path

from sartorius_infer.cli.options import BAD_INPUT, OK, add_recursive


def check_parser() -> argparse.ArgumentParser:
    """The options of `check`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer check",
        description="Re-read a submission and list everything wrong with it; exit code 1 if anything is.",
    )
    parser.add_argument("--submission", type=Path, required=True, metavar="CSV")
    parser.add_argument(
        "--images", nargs="+", type=Path, metavar="PATH", help="the images, for their ids and sizes"
    )
    add_recursive(parser)
    parser.add_argument("--sample-submission", type=Path, metavar="CSV", help="for the set and order of ids")
    return parser


def check_command(arguments: argparse.Namespace) -> int:
    """List what is wrong."""
    from sartorius_infer.images.find import find_images
    from sartorius_infer.images.read import image_size
    from sartorius_infer.output.check import check_submission
    from sartorius_infer.output.submission import read_sample_submission

    files = find_images(arguments.images, arguments.recursive) if arguments.images else None
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
