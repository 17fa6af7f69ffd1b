"""The `score` command: the competition's number of a submission, in total and in parts."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sartorius_infer.cli.options import OK, UsageError, print_notes, print_skipped
from sartorius_infer.errors import TruthError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sartorius_infer.evaluate.classes import Classes
    from sartorius_infer.evaluate.scoring import Score
    from sartorius_infer.evaluate.submissions import Found
    from sartorius_infer.evaluate.true_image import TrueImage

    Truth = Mapping[str, TrueImage]


def score_parser() -> argparse.ArgumentParser:
    """The options of `score`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer score",
        description="Score a submission with the competition's mean average precision: IoU greater than "
        "0.50 to 0.95, one-to-one, TP / (TP + FP + FN), mean over thresholds, then over images.",
    )
    add = parser.add_argument
    add(
        "--truth",
        type=Path,
        required=True,
        metavar="T",
        help="train.csv, COCO JSON, or a folder of label maps (<id>.tif, <id>_cp_masks.tif, <id>/class1.tif, "
        "or <id>/masks/ with a file for each nucleus)",
    )
    add("--submission", type=Path, required=True, metavar="S", help="submission.csv or COCO results")
    add(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="S",
        help="others, each compared by paired bootstrap over images",
    )
    add("--json", type=Path, metavar="FILE", help="write everything")
    add("--per-image", type=Path, metavar="CSV", help="write a row for each image, worst first")
    add("--coco", action="store_true", help="also COCO's AP, AP50, AP75 and AP by area, of each class")
    add(
        "--max-dets",
        type=_count,
        metavar="N",
        help="cells of a class in an image that --coco counts, of the highest scores (default: COCO's 100)",
    )
    add(
        "--classes",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B,...",
        help="names of the category ids 1, 2, ... of COCO results, where the truth has names alone, as "
        "train.csv has",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def score_command(arguments: argparse.Namespace) -> int:
    """Print the score, and write what was asked for."""
    from sartorius_infer.evaluate.classes import classes_of
    from sartorius_infer.evaluate.scoring import as_json, score
    from sartorius_infer.evaluate.submissions import read_annotated
    from sartorius_infer.evaluate.truth import read_truth

    if arguments.max_dets and not arguments.coco:
        raise UsageError("--max-dets: expected --coco, whose cells it counts, found none")
    truth = read_truth(arguments.truth)
    found, without_truth = read_annotated(arguments.submission, truth)
    result, classes = score(truth, found), classes_of(truth, found, arguments.classes)
    content = as_json(result, str(arguments.submission)) | {"skipped": without_truth}
    _print_score(result, len(truth), content["interval_95"])
    print_notes(truth)
    print_skipped(without_truth)
    content |= _by_class(truth, found, classes)
    if arguments.coco:
        content["coco"] = _coco(truth, found, classes, arguments.max_dets)
    if arguments.against:
        content["against"] = [_against(truth, result, other) for other in arguments.against]
    _write(arguments, result, content)
    return OK


def _against(truth: Truth, result: Score, submission: Path) -> dict[str, object]:
    """How much better the result is than another submission, printed and for JSON."""
    from sartorius_infer.evaluate.scoring import compare, score
    from sartorius_infer.evaluate.submissions import read_annotated

    other = score(truth, read_annotated(submission, truth)[0])
    try:
        compared = compare(result, other)
    except TruthError as error:
        raise TruthError(f"{submission}: {error}") from None
    verdict = "a real difference" if compared.is_real else "within the noise of these images"
    print(
        f"against   {other.mean:.4f} of {submission}: {compared.difference:+.4f}, 95 % interval "
        f"{compared.low:+.4f} to {compared.high:+.4f}: {verdict}"
    )
    return {
        "submission": str(submission),
        "score": other.mean,
        "difference": compared.difference,
        "interval_95": [compared.low, compared.high],
    }


def _by_class(truth: Truth, found: Found, classes: Classes) -> dict[str, object]:
    """The competition's number of each class, where images hold several, printed and for JSON."""
    from sartorius_infer.evaluate.scoring import score_by_class

    if not any(len(set(image.types)) > 1 for image in truth.values()):
        return {}
    if classes.untold:
        print(f"by class  not told: {classes.untold}")
        return {"by_class": None}
    scores = score_by_class(truth, found, classes)
    print("by class  the score of each class by itself")
    for name, part in scores.items():
        true, cells = (sum(getattr(i, n) for i in part.images) for n in ("true_cells", "found_cells"))
        print(f"  {name:7} {part.mean:.4f}, {len(part.images)} images, {true} true, {cells} found")
    return {"by_class": {n: {"score": s.mean, "images": len(s.images)} for n, s in scores.items()}}


def _coco(truth: Truth, found: Found, classes: Classes, max_dets: int | None) -> dict[str, object]:
    """COCO's measures, printed and for JSON."""
    from sartorius_infer.evaluate.coco_score import MAX_DETS, coco_score

    result = coco_score(truth, found, classes, max_dets or MAX_DETS)
    several = len(classes.names) > 1 and not classes.untold
    what = "the mean over classes" if several else "class-blind" if classes.untold else "one class"
    print(f"coco      {_line(result.main)}")
    print(f"          {what}, at most {result.max_dets} cells of a class in an image (--max-dets)")
    if classes.untold:
        print(f"          by class not told: {classes.untold}")
    if result.cut:
        print(f"          {result.cut} images have more cells, of which the highest scores count")
    if strangers := classes.strangers(found) if not classes.untold else None:
        told = ", ".join(f"{label} ({count} cells)" for label, count in sorted(strangers.items()))
        print(f"          category ids that are none of the truth's count for no class: {told}")
    if several:
        for name, measures in result.by_class.items():
            print(f"  {name:7} {'nothing true' if measures['AP'] != measures['AP'] else _line(measures)}")
        print(f"  {'blind':7} {_line(result.class_blind)}: all classes as one")
    return {
        **_numbers(result.main),
        "measured": what,
        "max_dets": result.max_dets,
        "by_class": {name: _numbers(measures) for name, measures in result.by_class.items()},
        "class_blind": _numbers(result.class_blind),
    }


def _line(measures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in measures.items())


def _numbers(measures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN, and most of what reads it takes none."""
    return {name: None if value != value else value for name, value in measures.items()}


def _print_score(result: Score, known: int, interval: tuple[float, float]) -> None:
    from sartorius_infer.evaluate.metric import THRESHOLDS
    from sartorius_infer.evaluate.scoring import type_counts

    low, high = interval
    kinds = ", ".join(f"{name or 'untold'} {n}" for name, n in sorted(type_counts(result).items()))
    true, found = (sum(getattr(i, n) for i in result.images) for n in ("true_cells", "found_cells"))
    count = len(result.images)
    print(f"score     {result.mean:.4f}, 95 % interval {low:.4f} to {high:.4f} (bootstrap over images)")
    print(f"images    {count} ({kinds})" + (f"; the truth has {known - count} more" * (known > count)))
    print(f"cells     {true} true, {found} found; {true / count:.0f} and {found / count:.0f} an image")
    for name, part in result.by_type().items():
        true, found = (sum(getattr(i, n) for i in part.images) for n in ("true_cells", "found_cells"))
        print(
            f"  {name or 'untold':7} {part.mean:.4f}, {len(part.images)} images, {true} true, {found} found"
        )
    print("IoU over  " + " ".join(f"{t:6.2f}" for t in THRESHOLDS))
    print("precision " + " ".join(f"{p:6.3f}" for p in result.by_threshold()))
    for name, values in zip(("TP", "FP", "FN"), result.counts(), strict=True):
        print(f"{name:10}" + " ".join(f"{v:6d}" for v in values))


def _write(arguments: argparse.Namespace, result: Score, content: dict[str, object]) -> None:
    from sartorius_infer.files import atomic_file

    if arguments.json:
        with atomic_file(arguments.json, "w") as file:
            json.dump(content, file, indent=1)
        print(f"written   {arguments.json}")
    if arguments.per_image:
        rows = sorted(zip(result.images, result.types, strict=True), key=lambda pair: pair[0].ap)
        with atomic_file(arguments.per_image, "w") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(("id", "cell_type", "score", "true_cells", "found_cells", "tp50", "fp50", "fn50"))
            for image, kind in rows:
                counts = (image.tp[0], image.fp[0], image.fn[0])
                lines.writerow(
                    (image.id, kind, f"{image.ap:.6f}", image.true_cells, image.found_cells, *counts)
                )
        print(f"written   {arguments.per_image}")
