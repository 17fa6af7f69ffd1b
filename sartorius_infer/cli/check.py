"""The `check` command: everything that is wrong with a submission."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sartorius_infer.cli.options import BAD_INPUT, OK, UsageError, add_finding, found_images

if TYPE_CHECKING:
    from sartorius_infer.output.check import Problem


def check_parser() -> argparse.ArgumentParser:
    """The options of `check`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer check",
        description="Re-read a submission and list everything wrong with it; exit code 1 if anything is.",
    )
    parser.add_argument(
        "--submission", type=Path, required=True, metavar="FILE", help="a CSV, or COCO results (.json, .zip)"
    )
    parser.add_argument(
        "--images", nargs="+", type=Path, metavar="PATH", help="the images, for their ids and sizes"
    )
    add_finding(parser)
    parser.add_argument("--sample-submission", type=Path, metavar="CSV", help="for the set and order of ids")
    parser.add_argument(
        "--image-ids", type=Path, metavar="JSON", help="the list of ids that COCO results were written with"
    )
    return parser


def check_command(arguments: argparse.Namespace) -> int:
    """List what is wrong."""
    from sartorius_infer.output.results import is_results
    from sartorius_infer.output.submission import read_sample_submission

    is_coco = is_results(arguments.submission)
    if arguments.image_ids and not is_coco:
        raise UsageError(f"--image-ids is for COCO results (.json, .zip), found {arguments.submission.name}")
    sizes = _sizes(arguments) if arguments.images else None
    sample = read_sample_submission(arguments.sample_submission) if arguments.sample_submission else None
    problems = (_coco if is_coco else _kaggle)(arguments, sizes, sample)
    count = len(problems)
    found = "no problems" if count == 0 else "1 problem" if count == 1 else f"{count} problems"
    print(f"{arguments.submission}: {found}")
    return BAD_INPUT if problems else OK


def _sizes(arguments: argparse.Namespace) -> dict[str, tuple[int, int]]:
    from sartorius_infer.images.read import image_size

    return {file.id: image_size(file) for file in found_images(arguments, arguments.images)}


def _kaggle(
    arguments: argparse.Namespace, sizes: dict[str, tuple[int, int]] | None, sample: Sequence[str] | None
) -> list[Problem]:
    from sartorius_infer.output.check import check_submission

    return _listed(check_submission(arguments.submission, sizes, sample), "line")


def _coco(
    arguments: argparse.Namespace, sizes: dict[str, tuple[int, int]] | None, sample: Sequence[str] | None
) -> list[Problem]:
    from sartorius_infer.output.coco_check import check_results
    from sartorius_infer.output.image_ids import read_image_ids

    ids = read_image_ids(arguments.image_ids) if arguments.image_ids else None
    checked = check_results(arguments.submission, sizes, sample, ids)
    for note in checked.notes:
        print(f"note: {note}")
    return _listed(checked.problems, "entry")


def _listed(problems: list[Problem], unit: str) -> list[Problem]:
    """The problems, once each has had its line of output."""
    for problem in problems:
        where = f"{unit} {problem.line}" if problem.line else "file"
        print(f"{where}: {f'{problem.id}: ' if problem.id else ''}{problem.message}")
    return problems
