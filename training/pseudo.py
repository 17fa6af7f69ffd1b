"""Pseudo-labels: what an ensemble is sure of in images that nobody annotated, as one more source of cells.

`python -m training.pseudo --images unlabelled/ --out pseudo` and then `--data pseudo=pseudo` of a training.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sartorius_infer.cli.options import (
    add_finding,
    add_rules,
    add_weights,
    by_class,
    found_images,
    load_plugins,
    with_rules,
)
from sartorius_infer.ensemble.device import resolve_device
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_for_runs
from sartorius_infer.ensemble.weights import find_weights
from sartorius_infer.errors import SartoriusError, one_line
from sartorius_infer.manifest.views import parse_views
from sartorius_infer.output.render import overlay, save_overlay
from training.errors import TrainingError
from training.pseudo_data import PseudoFolder, counted, shown
from training.seen import Seen
from training.sources import Skipped, annotated
from training.sure import Limits, judge, sure_scores


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m training.pseudo",
        description="Label images that nobody annotated with what an ensemble is sure of, as a folder that "
        "--data of a training takes. The same command goes on where it stopped, and other limits need no "
        "network again.",
    )
    add_weights(made)
    add = made.add_argument
    add("--images", nargs="+", type=Path, required=True, metavar="PATH", help="folders or files of images")
    add_finding(made)
    add("--annotated", nargs="+", type=Path, default=[], metavar="PATH",
        help="annotations, or folders as --data of a training takes them: their images stay out")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="pseudo.json, images/, images.csv, seen/")
    add("--sure", type=partial(by_class, number=float), metavar="CLASS=N,...",
        help="scores from which cells of some classes are sure; default: two fifths of the way from the "
        "rules' thresholds to 1. Cells below are neither cells nor background to a training")  # fmt: skip
    add("--agree", type=int, metavar="N",
        help="networks that must find a sure cell by themselves, 0: none; default: more than half of those "
        "that know its class")  # fmt: skip
    add("--min-cells", type=int, default=Limits.cells, metavar="N",
        help="leave out images with fewer sure cells (default: %(default)s)")  # fmt: skip
    add("--min-share", type=float, default=Limits.share, metavar="F",
        help="leave out images with a smaller share of sure cells (default: %(default)s)")  # fmt: skip
    add("--overlays", type=Path, metavar="DIR", help="write <id>.png per kept image, unsure cells too")
    add("--views", metavar="LIST", help="test-time views, as in `sartorius_infer --views`")
    add_rules(made)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--precision", choices=("auto", "fp32", "fp32-fast", "fp16", "bf16"), default="auto",
        help="of the networks, as in `sartorius_infer --precision` (default: %(default)s)")  # fmt: skip
    return made


def label(given: argparse.Namespace, tell: Callable[[str], None]) -> None:
    """Label the images; `tell` gets each line of the report. Raises SartoriusError for bad input."""
    files, skipped = found_images(given, given.images), Skipped()
    known = annotated(given.annotated, [file.id for file in files])
    for file in files:
        if file.id in known:
            skipped.add("images that are annotated", file.id)
    ensemble = _ensemble(given)
    limits = _limits(given, ensemble)
    alone = len(ensemble.members) > 1 and given.agree != 0
    seen = Seen(given.out / "seen", ensemble, alone, given.channel)
    seen.open()
    data = PseudoFolder(given.out, ensemble.classes)
    left = [file for file in files if file.id not in known]
    for look in seen.images(left, skipped):
        judged = judge(look, ensemble, limits)
        data.add(look.image, judged)
        if judged.fault:
            skipped.add(f"images {judged.fault}", look.image.id)
        elif given.overlays:
            save_overlay(given.overlays, look.image.id, overlay(look.image, shown(judged)))
    data.finish({"networks": [m.name for m in ensemble.members], "sure": dict(limits.score), **seen.about})
    _report(data, len(files), skipped, tell)


def _ensemble(given: argparse.Namespace) -> Ensemble:
    """The networks, with the command line's views and rules in place, which it says."""
    load_plugins(given)
    weights = find_weights(given.weights, given.config)
    ensemble = load_for_runs(weights, resolve_device(given.device), given.precision)
    manifest, told = with_rules(given, ensemble.manifest, weights.is_bare)
    print(told, file=sys.stderr)
    return replace(ensemble, manifest=manifest).with_overrides(views=parse_views(given.views))


def _limits(given: argparse.Namespace, ensemble: Ensemble) -> Limits:
    for option, value, most in (
        ("--agree", given.agree or 0, len(ensemble.members)),
        ("--min-cells", given.min_cells, math.inf),
        ("--min-share", given.min_share, 1),
    ):
        if not 0 <= value <= most:  # nor NaN
            expected = "0 or more" if most == math.inf else f"a number from 0 to {most}"
            raise TrainingError(f"{option}: expected {expected}, found {value:g}")
    scores = sure_scores(ensemble.rules, ensemble.classes, given.sure)
    return Limits(scores, given.agree, given.min_cells, given.min_share)


def _report(data: PseudoFolder, images: int, skipped: Skipped, tell: Callable[[str], None]) -> None:
    """What came out, and what did not; raises TrainingError where nothing did."""
    for line in skipped.lines():
        tell(f"left out  {line}")
    if not data.images:
        raise TrainingError(
            f"{data.folder}: expected images with enough sure cells, found none of {images}; see images.csv"
        )
    name = data.folder.resolve().name
    tell(
        f"kept      {len(data.images)} of {images} images ({counted(data.of_images, data.classes)}), "
        f"{data.of_cells.total()} sure cells ({counted(data.of_cells, data.classes)}), {data.unsure} unsure"
    )
    tell(f"written   {data.folder}")
    tell(f'next      --data {data.folder}; recipe: split.only_train = ["{name}/*"], mix.sources.{name} = 0.3')


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all is written, 1 for bad input, 2 for options that are none."""
    given = parser().parse_args(arguments)
    try:
        label(given, print)
    except SartoriusError as error:
        print(one_line(error), file=sys.stderr)
        return 1
    except OSError as error:  # a full disk
        print(f"{given.out}: cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
