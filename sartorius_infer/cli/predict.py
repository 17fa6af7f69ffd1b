"""The bare command: its options, and the run from images to a written file."""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from sartorius_infer.cli.laboratory import add_laboratory, laboratory_options, require_laboratory
from sartorius_infer.cli.options import (
    OK,
    SOME_FAILED,
    UsageError,
    add_finding,
    add_rules,
    add_weights,
    found_images,
    load_plugins,
    with_rules,
)
from sartorius_infer.errors import ImageError, one_line
from sartorius_infer.version import __version__

if TYPE_CHECKING:
    from sartorius_infer.ensemble.ensemble import Ensemble
    from sartorius_infer.run.jobs import Job, Summary
    from sartorius_infer.run.ranks import Rank
    from sartorius_infer.run.runs import Progress, Run

Format = Literal["kaggle", "coco"]
_SUFFIXES: dict[str, Format] = {".csv": "kaggle", ".json": "coco", ".zip": "coco"}

_IN_BF16 = "precision bf16 (--precision fp32 for float32), which this processor knows, of "

_KEPT = "overlaps  kept: cells may share pixels, every part of a mask stays, no overlap survival"

DESCRIPTION = """\
Cell instance segmentation with an ensemble of Mask R-CNN checkpoints: images in, submission.csv out.

The bare command predicts. Other jobs are subcommands, each with a --help of its own:
  predict  the same as the bare command
  import   turn training checkpoints, Detectron2's and MMDetection's too, into manifest entries
  models   describe a manifest or checkpoints: what was inferred, what is assumed
  check    re-read a submission and list everything wrong with it
  score    the competition's score of a submission, in total and in parts
  tune     choose rules, fusion and weights by the score, on annotated images
  show     one page of pictures and charts: what was found, what was missed
"""

EXIT_CODES = (
    "exit codes: 0 all well, 1 bad input, 2 usage, 3 finished but some images failed and were left blank"
)


def predict_parser() -> argparse.ArgumentParser:
    """The options of the bare command."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sartorius_infer {__version__}")
    add_weights(parser)
    _add_files(parser)
    _add_ensemble_options(parser)
    add_rules(parser)
    _add_run_options(parser)
    add_laboratory(parser)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--images",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="folder or files (PNG, TIFF, JPEG, BMP, WebP); default: the competition's, in /kaggle/input",
    )
    add_finding(parser)
    add("--out", type=Path, default=Path("submission.csv"), metavar="FILE", help="default: %(default)s")
    add(
        "--format",
        choices=("kaggle", "coco"),
        help="of --out (default: by its suffix: .csv kaggle, .json coco, .zip coco in a zip)",
    )
    add("--sample-submission", type=Path, metavar="CSV", help="fixes the set and order of ids")
    add(
        "--image-ids",
        type=Path,
        metavar="JSON",
        help="numbers for COCO's image_id: a list of file_name and id, or COCO's annotations",
    )
    add(
        "--overlaps",
        choices=("cut", "keep"),
        default="cut",
        help="cut: a pixel is the surer cell's alone; keep: masks as the networks gave them, for COCO alone "
        "(default: %(default)s)",
    )


def _add_ensemble_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--views",
        metavar="V,V",
        help="test-time views instead of the manifest's: identity, hflip, vflip, "
        "rot90, rot180, rot270, transpose, transverse, scale:F, or both as in hflip+scale:1.25",
    )
    add(
        "--tile",
        metavar="auto|off|HxW",
        help="images over 1.5 times as large as the tiles are seen in overlapping ones: auto, of the size "
        "that the networks learned on, or of this height and width; off: every image whole (default: the "
        "manifest's, else auto)",
    )
    add(
        "--magnification",
        type=float,
        metavar="F",
        help="cells are F times as large as in the networks' images: images are resized by 1/F for the "
        "networks, results are in the image's own pixels (default: the manifest's, else 1)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--precision",
        choices=("auto", "fp32", "fp32-fast", "fp16", "bf16"),
        default="auto",
        help="of the networks; auto is fp16 on a GPU and fp32 on a CPU, but bf16 where it has instructions "
        "for that (AVX512-BF16, AMX) and the manifest says that a network's score holds (holds_bf16); "
        "fp32-fast is for CPUs: fp32 by faster convolutions, whose last bits differ",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--batch-size",
        type=_count,
        metavar="N",
        help="images at once (default: 4 on a GPU, 1 on the CPU)",
    )
    add(
        "--workers",
        type=_count,
        default=max(1, min(4, os.cpu_count() or 1)),
        metavar="N",
        help="threads that read images and paste masks (default: %(default)s)",
    )
    add(
        "--on-error",
        choices=("blank", "stop"),
        default="blank",
        help="a failing image becomes a blank row, or ends the run (default: %(default)s)",
    )
    add(
        "--save-predictions",
        type=Path,
        metavar="DIR",
        help="keep what the rules start from, <id>.npz per image",
    )
    add(
        "--resume",
        action="store_true",
        help="keep what is finished in a journal beside --out, and go on from it after a kill",
    )
    add(
        "--time-limit",
        type=_duration,
        metavar="8h30m",
        help="drop views, then networks, for the remaining images where the run would take longer",
    )
    add("--overlays", type=Path, metavar="DIR", help="write <id>.png per image with every cell outlined")


def _duration(text: str) -> float:
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    parts = zip(found.groups(), (3600, 60, 1), strict=True) if found else ()
    seconds = float(sum(int(count or 0) * unit for count, unit in parts))
    if not seconds:
        raise argparse.ArgumentTypeError(f"expected a time such as 8h30m, 20m or 45s, found {text!r}")
    return seconds


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def predict_command(arguments: argparse.Namespace) -> int:
    """The main job. Torch is imported only once the images are known to be there."""
    start = time.monotonic()
    written_as = format_of(arguments.out, arguments.format)
    _require_coco(arguments, written_as)
    if arguments.classes is not None and arguments.save_predictions is not None:
        raise UsageError("--classes: saved predictions are of the manifest's classes; save them without it")
    require_laboratory(arguments)
    from sartorius_infer.run.runs import execute

    jobs, ignored = _jobs(arguments)
    numbers, unused = _image_ids(arguments, jobs)
    run = _run(arguments, jobs, written_as, numbers, start)
    run.prepare()
    with _imports_that_stay():
        import sartorius_infer.run.pipeline  # noqa: F401 - torch, and all that needs it
    ensemble = _ensemble(arguments, run.rank)
    with _progress(run.rank, len(jobs)) as progress:
        summary = execute(run, ensemble, progress)
    if summary is None:
        return OK
    _report(summary, ignored, run, unused)
    # torchrun would take any other code for a crash, and start all over.
    return SOME_FAILED if summary.failed and not run.rank.agent else OK


def _jobs(arguments: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """What is to be written, and the images that the sample submission leaves out."""
    from sartorius_infer.output.submission import read_sample_submission
    from sartorius_infer.run.jobs import plan_jobs

    images, sample = _inputs(arguments)
    files = found_images(arguments, images)
    return plan_jobs(files, read_sample_submission(sample) if sample else None)


def _image_ids(
    arguments: argparse.Namespace, jobs: Sequence[Job]
) -> tuple[Mapping[str, int] | None, list[str]]:
    """The number of each image, None where none are asked for, and what the list names beside them."""
    if arguments.image_ids is None:
        return None, []
    from sartorius_infer.output.image_ids import read_image_ids

    listed = read_image_ids(arguments.image_ids)
    numbers = listed.numbers(job.id for job in jobs)
    return numbers, [f"{image.name}, id {image.number}" for image in listed.unused(numbers.values())]


def _run(
    arguments: argparse.Namespace,
    jobs: Sequence[Job],
    written_as: Format,
    numbers: Mapping[str, int] | None,
    start: float,
) -> Run:
    from sartorius_infer.run.jobs import Options
    from sartorius_infer.run.ranks import this_rank
    from sartorius_infer.run.runs import Run

    return Run(
        jobs=tuple(jobs),
        out=arguments.out,
        format=written_as,
        options=Options(
            workers=arguments.workers,
            on_error=arguments.on_error,
            save_predictions=arguments.save_predictions,
            overlays=arguments.overlays,
            **laboratory_options(arguments),
            keep_overlaps=arguments.overlaps == "keep",
        ),
        numbers=numbers,
        batch_size=arguments.batch_size,
        plugins=tuple(arguments.plugin),
        precision=arguments.precision,
        rank=this_rank(),
        resume=arguments.resume,
        limit_s=arguments.time_limit,
        start=start,
    )


def format_of(out: Path, said: Format | None) -> Format:
    """What `--out` is written as: by `--format`, else its suffix; kaggle where it is a device or has none.

    Raises UsageError for a suffix that means something else, or nothing.
    """
    by_suffix = _SUFFIXES.get(out.suffix.lower())
    if by_suffix is None and out.suffix and not (out.exists() and not out.is_file()):
        raise UsageError(f"expected --out to end in .csv (kaggle), .json or .zip (coco), found {out.name}")
    if said and by_suffix and said != by_suffix:
        right = next(suffix for suffix, known in _SUFFIXES.items() if known == said)
        raise UsageError(
            f"--out {out.name} would be --format {by_suffix}: expected a name in {right} for --format {said}"
        )
    return said or by_suffix or "kaggle"


def _require_coco(arguments: argparse.Namespace, written_as: Format) -> None:
    """Raise UsageError for options that mean nothing in the competition's format."""
    if written_as == "coco":
        return
    if arguments.overlaps == "keep":
        raise UsageError(
            "--overlaps keep: Kaggle's format takes none; expected --out in .json or .zip (coco)"
        )
    if arguments.image_ids is not None:
        raise UsageError("--image-ids: Kaggle's ids are names; expected --out in .json or .zip (coco)")


@contextmanager
def _imports_that_stay() -> Iterator[None]:
    """Import without garbage collections, and keep what came out of those to come, the one at exit too.

    Torch brings some 350,000 objects that live as long as the process. Looking through them over and
    over costs half a second at import and as much at exit.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
    if not gc.get_freeze_count():  # once: whoever calls `main` again has garbage of their own
        gc.freeze()


def _inputs(arguments: argparse.Namespace) -> tuple[list[Path], Path | None]:
    """Image sources and the sample submission: as asked for, else the mounted competition's."""
    from sartorius_infer.competition import find_competition

    if arguments.images:
        return arguments.images, arguments.sample_submission
    found = find_competition()
    if found is None:
        raise ImageError(
            "expected --images FOLDER, or a competition under /kaggle/input (sample_submission.csv beside "
            "test/), found neither"
        )
    return [found[0]], arguments.sample_submission or found[1]


def _ensemble(arguments: argparse.Namespace, rank: Rank) -> Ensemble:
    """The networks on their device, with the command line's views and rules in place, which it says."""
    from torch import bfloat16

    from sartorius_infer.ensemble.describe import told_and_assumed
    from sartorius_infer.ensemble.device import resolve_device, resolve_precision
    from sartorius_infer.ensemble.loading import load_for_runs
    from sartorius_infer.ensemble.weights import find_weights
    from sartorius_infer.manifest.one_class import ONE_CLASS_RULES
    from sartorius_infer.manifest.tiling import require_tile
    from sartorius_infer.manifest.views import parse_views

    load_plugins(arguments)
    views = parse_views(arguments.views)
    tile = None if arguments.tile is None else require_tile(arguments.tile)
    weights = find_weights(arguments.weights, arguments.config)
    device = resolve_device(arguments.device, rank.local if rank.count > 1 else None)
    ensemble = load_for_runs(weights, device, arguments.precision)
    if rank.is_first and arguments.precision == "auto":
        specs = ensemble.manifest.models
        halved = [s.name for s in specs if resolve_precision("auto", device, s.holds_bf16) == bfloat16]
        if halved:
            print(f"{_IN_BF16}{', '.join(halved)}", file=sys.stderr)
    if rank.is_first and weights.is_bare:
        for spec in ensemble.manifest.models:
            if said := told_and_assumed(spec):
                print(said, file=sys.stderr)
    if arguments.classes is not None:
        ensemble = ensemble.as_one_class(arguments.classes)
    manifest, told = with_rules(arguments, ensemble.manifest, weights.is_bare)
    if rank.is_first and arguments.classes is not None:
        print(f"classes   all are {arguments.classes}: {ONE_CLASS_RULES}", file=sys.stderr)
    if rank.is_first:
        print(told, file=sys.stderr)
        if arguments.overlaps == "keep":
            print(_KEPT, file=sys.stderr)
    return replace(ensemble, manifest=manifest).with_overrides(
        views=views, tile=tile, magnification=arguments.magnification
    )


@contextmanager
def _progress(rank: Rank, images: int) -> Iterator[Progress]:
    """A bar with images/s and time left on stderr, of the first process; seldom redrawn in a file."""
    from tqdm import tqdm

    line = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    with ExitStack() as stack:
        bar: tqdm[NoReturn] | None = None

        def told(done: int, count: int, image_id: str) -> None:
            nonlocal bar
            if bar is None:  # its clock starts with the first image, not with the loading of networks
                bar = tqdm(
                    total=count,
                    unit=" tiles" if count > images else " images",
                    mininterval=0.1 if sys.stderr.isatty() else 30.0,
                    dynamic_ncols=True,
                    bar_format=line,
                    disable=not rank.is_first,
                )
                stack.enter_context(bar)
            else:
                bar.set_postfix_str(one_line(image_id), refresh=False)
                bar.update(done - bar.n)

        yield told


def _report(summary: Summary, ignored: Sequence[str], run: Run, unused: Sequence[str]) -> None:
    """What happened, on stdout: counts, seconds, and every image that needs a look."""
    rate = summary.images / summary.seconds if summary.seconds else 0.0
    cells = ", ".join(f"{name} {count}" for name, count in summary.cells.items())
    print(f"images    {summary.images} in {summary.seconds:.1f} s ({rate:.2f} images/s)")
    print(f"cells     {summary.cells.total()} ({cells})")
    _print_list("no cells", [f"  {name}" for name in summary.blank])
    _print_list("failed", [f"  {name}: {one_line(reason)}" for name, reason in summary.failed.items()])
    _print_list("ignored", [f"  {name}: not in the sample submission" for name in ignored])
    _print_list("no image", [f"  {entry}: in the list of ids alone" for entry in unused])
    print(f"written   {run.out}")
    for table in run.options.tables:
        print(f"          {table}")
    for folder in run.options.folders:
        print(f"          {folder}{os.sep}")


def _print_list(title: str, lines: Sequence[str], most: int = 20) -> None:
    if lines:
        print(f"{title:9} {len(lines)}")
        print("\n".join(lines[:most]))
    if len(lines) > most:
        print(f"  and {len(lines) - most} more")
