"""The `show` command: a page, and pictures, of what was found."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartorius_infer.cli.options import (
    OK,
    UsageError,
    add_finding,
    add_rules,
    add_weights,
    found_images,
    print_notes,
    rules_given,
    with_rules,
)
from sartorius_infer.errors import ManifestError, PredictionError, SubmissionError, TruthError, some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tqdm import tqdm

    from sartorius_infer.cells.rle import Mask
    from sartorius_infer.evaluate.submissions import Found
    from sartorius_infer.evaluate.true_image import TrueImage
    from sartorius_infer.images.find import ImageFile
    from sartorius_infer.images.read import Limits
    from sartorius_infer.manifest.manifest import Manifest
    from sartorius_infer.show.candidates import Looks
    from sartorius_infer.tuning.curves import Curve
    from sartorius_infer.types import Prediction

Truth = dict[str, "TrueImage"]


def show_parser() -> argparse.ArgumentParser:
    """The options of `show`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer show",
        description="Write one HTML page to look at a submission in a browser: every image with its cells, "
        "with truth its hits, misses and false alarms, worst first, charts, and with saved predictions a "
        "score threshold for each class to move. The page fetches nothing.",
    )
    add = parser.add_argument
    add("--submission", type=Path, metavar="S", help="submission.csv or COCO results")
    add(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="from --save-predictions, or a folder with such a folder of each fold: cells by the rules of "
        "--weights, with classes, scores and sliders",
    )
    add("--images", nargs="+", type=Path, required=True, metavar="PATH", help="folders or files")
    add_finding(parser)
    add("--truth", type=Path, metavar="T", help="as for `score`")
    add("--out", type=Path, required=True, metavar="HTML", help="the page")
    add("--overlays", type=Path, metavar="DIR", help="also write <id>.png per image, and matches/<id>.png")
    add(
        "--iou",
        type=float,
        default=0.5,
        choices=[k / 20 for k in range(10, 20)],
        metavar="T",
        help="what a hit must exceed at first, 0.50 to 0.95 by 0.05 (default: %(default)s)",
    )
    add_weights(parser)
    add_rules(parser)
    return parser


def show_command(arguments: argparse.Namespace) -> int:
    """Collect what there is to see, and write it."""
    if arguments.submission is None and arguments.predictions is None:
        raise UsageError("expected --submission, --predictions or both, found neither")
    if arguments.predictions is None and (given := rules_given(arguments)):
        raise UsageError(f"{given}: expected --predictions, whose cells it changes, found none")
    truth = _truth(arguments)
    files = {file.id: file for file in found_images(arguments, arguments.images)}
    if truth is not None:
        from sartorius_infer.evaluate.truth import called_as

        truth = called_as(truth, files, arguments.truth)
    looks, curves = _looks(arguments, files, truth)
    with _bar("show", len(looks.images)) as bar:
        limits = _limits(arguments)  # after the bar is there: the manifest takes longer to read than all else
        _write_page(arguments, files, looks, truth, curves, limits, bar)
    size = arguments.out.stat().st_size / 1e6
    print(f"written   {arguments.out} ({size:.1f} MB), {len(looks.images)} images")
    if arguments.overlays:
        _overlays(arguments, files, looks, truth, limits)
    return OK


def _truth(arguments: argparse.Namespace) -> Truth | None:
    if not arguments.truth:
        return None
    from sartorius_infer.evaluate.truth import read_truth

    truth = read_truth(arguments.truth)
    print_notes(truth, sys.stderr)
    return truth


def _write_page(
    arguments: argparse.Namespace,
    files: dict[str, ImageFile],
    looks: Looks,
    truth: Truth | None,
    curves: list[Curve],
    limits: Limits | None,
    bar: tqdm[Any],
) -> None:
    from sartorius_infer.files import atomic_file
    from sartorius_infer.show.report import report_parts

    def advance(image_id: str) -> None:
        bar.update()

    # Of a link its own name, and of "." the folder's.
    name = Path(os.path.abspath(arguments.submission or arguments.predictions)).name
    with atomic_file(arguments.out, "w") as page:
        try:
            for part in report_parts(
                list(files.values()),
                looks,
                truth,
                curves,
                arguments.iou,
                title=f"Cells of {name}",
                limits=limits,
                on_image=advance,
            ):
                page.write(part)
        except TruthError as error:
            raise TruthError(f"{arguments.truth}: {error}") from None


def _bar(name: str, count: int) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=count, unit=" image", desc=name, dynamic_ncols=True)


def _looks(
    arguments: argparse.Namespace, files: dict[str, ImageFile], truth: Truth | None
) -> tuple[Looks, list[Curve]]:
    if arguments.predictions is None:
        return _looks_of_submission(arguments, files, truth), []
    from sartorius_infer.files import as_id
    from sartorius_infer.output.predictions import load_prediction, require_classes, saved_files
    from sartorius_infer.show.candidates import looks_of_saved

    manifest = _manifest(arguments)
    saved = {as_id(file.stem): file for file in saved_files(arguments.predictions)}
    if unknown := [image_id for image_id in saved if image_id not in files]:
        raise PredictionError(
            f"{arguments.predictions}: expected predictions of --images, found {some(unknown)}"
        )

    def load(image_id: str) -> Prediction:
        prediction = load_prediction(saved[image_id])
        require_classes(prediction, len(manifest.classes), arguments.predictions)
        return prediction

    looks = looks_of_saved(saved, load, manifest.rules, manifest.classes)
    if arguments.submission is not None:
        _compare(arguments, files, looks, truth)
    return looks, [] if truth is None else _curves(saved, load, manifest, truth)


def _looks_of_submission(
    arguments: argparse.Namespace, files: dict[str, ImageFile], truth: Truth | None
) -> Looks:
    from sartorius_infer.output.results import is_results
    from sartorius_infer.show.candidates import looks_of_found

    found, sizes = _found(arguments.submission, files, truth)
    scored = is_results(arguments.submission)
    classes = _manifest(arguments).classes if scored else None
    try:
        return looks_of_found(found, sizes, classes)
    except TruthError as error:
        raise SubmissionError(f"{arguments.submission}: {error}") from None


def _found(
    submission: Path, files: dict[str, ImageFile], truth: Truth | None
) -> tuple[Found, dict[str, tuple[int, int]]]:
    """The submission's cells, and the size of every image."""
    from sartorius_infer.evaluate.image_names import ImageNames
    from sartorius_infer.evaluate.submissions import read_cells
    from sartorius_infer.images.read import image_size

    sizes = {image_id: image_size(file) for image_id, file in files.items()}
    names = replace(ImageNames.of(truth or {}), names=sizes)
    return read_cells(submission, sizes, "among --images", names), sizes


def _manifest(arguments: argparse.Namespace) -> Manifest:
    from sartorius_infer.ensemble.weights import find_weights

    return with_rules(arguments, find_weights(arguments.weights).require_plan().manifest, is_bare=False)[0]


def _limits(arguments: argparse.Namespace) -> Limits | None:
    """The manifest's range of 16 bits, so that pictures are what the networks saw."""
    from sartorius_infer.ensemble.weights import find_weights

    try:
        plan = find_weights(arguments.weights).plan
    except ManifestError:
        if arguments.weights:
            raise
        return None  # no manifest comes with this installation, and a submission needs none
    return None if plan is None else plan.manifest.images.limits


def _compare(
    arguments: argparse.Namespace, files: dict[str, ImageFile], looks: Looks, truth: Truth | None
) -> None:
    """Tell on stderr where the submission has other cells than the page shows."""
    from sartorius_infer.show.candidates import shown_masks

    found, _ = _found(arguments.submission, files, truth)
    other = [
        image_id
        for image_id, look in looks.images.items()
        if _pixels(shown_masks(look, looks)) != _pixels(cell.mask for cell in found.get(image_id, ()))
    ]
    shown = set(looks.images)
    other += [image_id for image_id, cells in found.items() if cells and image_id not in shown]
    if other:
        print(
            f"warning: {arguments.submission} has other cells than the predictions by the rules of --weights "
            f"in {len(other)} images ({some(other)}); the page shows those of the predictions",
            file=sys.stderr,
        )


def _pixels(masks: Iterable[Mask]) -> set[tuple[bytes, bytes]]:
    return {(starts.tobytes(), lengths.tobytes()) for starts, lengths in masks}


def _curves(
    ids: Iterable[str], load: Callable[[str], Prediction], manifest: Manifest, truth: Truth
) -> list[Curve]:
    """The score against each class's minimum area, of the images whose truth is known."""
    from sartorius_infer.tuning.choices import choice_of
    from sartorius_infer.tuning.curves import area_curves
    from sartorius_infer.tuning.trials import Example

    known = [image_id for image_id in ids if image_id in truth]

    def examples() -> Iterator[Example]:
        with _bar("areas", len(known)) as bar:
            for image_id in known:
                prediction = load(image_id)
                # Where truth is missing or of another size the page itself says so, naming the file.
                if truth[image_id].size_hw == prediction.size_hw:
                    yield Example((prediction,), truth[image_id])
                bar.update()

    return area_curves(examples(), choice_of(manifest, apart=False), manifest.classes)


def _overlays(
    arguments: argparse.Namespace,
    files: dict[str, ImageFile],
    looks: Looks,
    truth: Truth | None,
    limits: Limits | None,
) -> None:
    from sartorius_infer.images.read import read_image
    from sartorius_infer.output.render import overlay, save_overlay
    from sartorius_infer.show.candidates import shown_instances, shown_masks
    from sartorius_infer.show.matches import match_overlay

    for image_id, look in looks.images.items():
        image = read_image(files[image_id], limits)
        cells = shown_instances(image_id, look, looks)
        save_overlay(arguments.overlays, image_id, overlay(image, cells))
        if truth is not None:
            picture = match_overlay(image, truth[image_id].masks, shown_masks(look, looks), arguments.iou)
            save_overlay(arguments.overlays / "matches", image_id, picture)
    print(f"          {arguments.overlays}{' and its folder matches' if truth is not None else ''}")
