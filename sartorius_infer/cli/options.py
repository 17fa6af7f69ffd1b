"""What commands share: exit codes and options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sartorius_infer.errors import some

if TYPE_CHECKING:
    from sartorius_infer.evaluate.true_image import TrueImage
    from sartorius_infer.images.find import ImageFile
    from sartorius_infer.manifest.manifest import Manifest

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
        help="manifest, checkpoints (.pth, .pt, .safetensors) or a folder; FILE::ema is one network of a "
        "file of several; default: the one that is included",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="of one Detectron2 (.yaml) or MMDetection (.py) checkpoint; default: one inside or beside it",
    )
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this Python file first; it may register networks of your own",
    )


def add_finding(parser: argparse.ArgumentParser) -> None:
    """Options of every command that takes images: which of them are meant."""
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="search folders of --images within too; images of one name are called by their paths, as in "
        "a_image for a/image.tif",
    )
    parser.add_argument(
        "--pages",
        type=_pages,
        default=slice(None),
        metavar="A:B",
        help="of TIFF files of several pages those from A to before B, counted from 0; one page: A",
    )
    parser.add_argument(
        "--channel",
        type=_channel,
        metavar="N",
        help="of images of several channels the one of this number, counted from 0",
    )


def found_images(arguments: argparse.Namespace, sources: Sequence[Path]) -> tuple[ImageFile, ...]:
    """The images of `sources` that options of `add_finding` mean."""
    from sartorius_infer.images.find import find_images

    return find_images(sources, arguments.recursive, pages=arguments.pages, channel=arguments.channel)


def _pages(text: str) -> slice:
    found = re.fullmatch(r"(\d*)(:?)(\d*)", text)
    if found is None or text in ("", ":"):
        raise argparse.ArgumentTypeError(f"expected pages such as 0:10, 5:, :10 or 3, found {text!r}")
    first, colon, end = found.groups()
    start = int(first or 0)
    return slice(start, int(end) if end else None) if colon else slice(start, start + 1)


def _channel(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Options of every command that makes cells: rules in the place of the manifest's."""
    add = parser.add_argument
    add(
        "--rules",
        type=Path,
        metavar="JSON",
        help="rules in the place of all of the manifest's: a file like its `rules`, or another manifest",
    )
    add(
        "--score",
        type=partial(by_class, number=float),
        metavar="CLASS=N,...",
        help="score thresholds of some classes, from 0 to 1",
    )
    add(
        "--min-area",
        type=partial(by_class, number=int),
        metavar="CLASS=N,...",
        help="smallest areas of some classes, in pixels",
    )
    add(
        "--edge",
        choices=("rule", "keep", "drop"),
        help="cells on the image border, instead of the manifest's rule",
    )


def by_class(text: str, number: Callable[[str], float]) -> dict[str, float]:
    """Numbers by class, of `shsy5y=0.2,cort=0.4`."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = map(str.strip, part.rpartition("="))
        try:
            if not name or name in values:
                raise ValueError
            values[name] = number(value)
        except ValueError:
            kind = "whole numbers" if number is int else "numbers"
            raise argparse.ArgumentTypeError(
                f"expected {kind} of classes, each once, as in shsy5y=1,cort=0; found {text!r}"
            ) from None
    return values


def rules_given(arguments: argparse.Namespace) -> str:
    """The first option of `add_rules` that is given, or "" where none is."""
    names = ("rules", "score", "min_area", "edge")
    return next((f"--{n.replace('_', '-')}" for n in names if getattr(arguments, n) is not None), "")


def with_rules(arguments: argparse.Namespace, manifest: Manifest, is_bare: bool) -> tuple[Manifest, str]:
    """The manifest with what options of `add_rules` put in the place of its rules, and lines that tell them.

    `is_bare` where nobody wrote the manifest. Raises ManifestError.
    """
    from sartorius_infer.manifest.overrides import DEFAULT, override_rules, rules_lines

    found = override_rules(
        manifest.rules,
        manifest.classes,
        file=arguments.rules,
        score=arguments.score,
        min_area=arguments.min_area,
        edge=arguments.edge,
        origin=DEFAULT if is_bare else "manifest",
    )
    told = "\n".join(rules_lines(found, manifest.classes))
    return manifest.model_copy(update={"rules": found.rules}), told


def print_notes(truth: Mapping[str, TrueImage], file: TextIO | None = None) -> None:
    """Say what of a truth was read otherwise than it stands."""
    from sartorius_infer.evaluate.true_image import truth_notes

    for note in truth_notes(truth):
        print(f"truth     {note}", file=file)


def print_skipped(without_truth: Sequence[str]) -> None:
    """Name the images that have no truth, and therefore do not count."""
    if without_truth:
        count = len(without_truth)
        print(f"skipped   {count} image{'s' * (count > 1)} without truth: {some(without_truth)}")


def load_plugins(arguments: argparse.Namespace) -> None:
    """Run the files named by --plugin."""
    from sartorius_infer.networks.plugins import load_plugin

    for plugin in arguments.plugin:
        load_plugin(plugin)
