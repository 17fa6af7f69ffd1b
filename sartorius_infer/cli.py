"""The command line: thin, one line on an error, exit codes that mean something.

0 all well; 1 bad input, or `check` found something; 2 usage; 3 finished, but some images failed and
were left blank.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sartorius_infer.errors import ImageError, SartoriusError

if TYPE_CHECKING:
    from sartorius_infer.ensemble import Ensemble
    from sartorius_infer.pipeline import Summary

OK, BAD_INPUT, USAGE, SOME_FAILED = 0, 1, 2, 3

DESCRIPTION = """\
Cell instance segmentation with an ensemble of Mask R-CNN checkpoints: images in, submission.csv out.

The bare command predicts. Other jobs are subcommands, each with a --help of its own:
  import   turn a training checkpoint, Detectron2's too, into safetensors and a manifest entry
  models   describe a manifest or checkpoints: what was inferred, what is assumed
  check    re-read a submission and list everything wrong with it
"""

EXIT_CODES = (
    "exit codes: 0 all well, 1 bad input, 2 usage, 3 finished but some images failed and were left blank"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; `argv` without the program's name. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.captureWarnings(True)
    name = words[0] if words and words[0] in _COMMANDS else None
    parser, command = _COMMANDS[name] if name else (_predict_parser, _predict)
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


def _predict_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_weights(parser)
    _add_files(parser)
    _add_ensemble_options(parser)
    _add_run_options(parser)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--images",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="folder or files (PNG, TIFF, JPEG, BMP); default: the competition's, in /kaggle/input",
    )
    add("--out", type=Path, default=Path("submission.csv"), metavar="FILE", help="default: %(default)s")
    add("--format", choices=("kaggle", "coco"), default="kaggle", help="of --out (default: %(default)s)")
    add("--sample-submission", type=Path, metavar="CSV", help="fixes the set and order of ids")


def _add_ensemble_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--views",
        metavar="V,V",
        help="test-time views instead of the manifest's: identity, hflip, vflip, "
        "rot90, rot180, rot270, transpose, transverse, scale:F, or both as in hflip+scale:1.25",
    )
    add(
        "--edge",
        choices=("rule", "keep", "drop"),
        help="cells on the image border, instead of the manifest's rule",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="of the networks; auto is fp16 on a GPU, fp32 on the CPU",
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
    add("--overlays", type=Path, metavar="DIR", help="write <id>.png per image with every cell outlined")


def _models_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer models",
        description="Describe a manifest or checkpoints: what was inferred, what is assumed, size, checksum.",
    )
    _add_weights(parser)
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


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        nargs="+",
        type=Path,
        default=[],
        metavar="W",
        help="manifest, checkpoints (.pth, .pt, .safetensors) or a folder; default: the one that is included",
    )
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this Python file first; it may register networks of your own",
    )


def _load_plugins(arguments: argparse.Namespace) -> None:
    from sartorius_infer.plugins import load_plugin

    for plugin in arguments.plugin:
        load_plugin(plugin)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _predict(arguments: argparse.Namespace) -> int:
    """The main job. Torch is imported only once the images are known to be there."""
    from sartorius_infer.images import find_images
    from sartorius_infer.submission import open_writer, read_sample_submission

    images, sample = _inputs(arguments)
    files = find_images(images)
    sample_ids = read_sample_submission(sample) if sample else None
    from sartorius_infer import pipeline

    jobs, ignored = pipeline.plan_jobs(files, sample_ids)
    for folder in (arguments.out.parent, arguments.save_predictions, arguments.overlays):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    with open_writer(arguments.out, arguments.format) as writer:
        ensemble = _ensemble(arguments)
        options = pipeline.Options(
            arguments.batch_size or (4 if ensemble.device.type == "cuda" else 1),
            arguments.workers,
            arguments.on_error,
            arguments.save_predictions,
            arguments.overlays,
        )
        with _progress(len(jobs)) as advance:
            summary = pipeline.run(ensemble, jobs, writer, options, advance)
    _report(summary, ignored, ensemble.classes, arguments)
    return SOME_FAILED if summary.failed else OK


def _inputs(arguments: argparse.Namespace) -> tuple[list[Path], Path | None]:
    """Image sources and the sample submission: as asked for, else the mounted competition's."""
    from sartorius_infer.images import find_competition

    if arguments.images:
        return arguments.images, arguments.sample_submission
    found = find_competition()
    if found is None:
        raise ImageError(
            "expected --images FOLDER, or a competition under /kaggle/input (sample_submission.csv beside "
            "test/), found neither"
        )
    return [found[0]], arguments.sample_submission or found[1]


def _ensemble(arguments: argparse.Namespace) -> Ensemble:
    """The networks on their device, with the command line's views and edge rule in place."""
    from sartorius_infer.describe import assumptions
    from sartorius_infer.device import resolve_device, resolve_precision
    from sartorius_infer.ensemble import find_weights, load_ensemble
    from sartorius_infer.views import parse_view

    _load_plugins(arguments)
    views = [view.strip() for view in arguments.views.split(",")] if arguments.views else None
    for view in views or ():
        parse_view(view)
    device = resolve_device(arguments.device)
    ensemble = load_ensemble(arguments.weights, device, resolve_precision(arguments.precision, device))
    if not isinstance(find_weights(arguments.weights), Path):
        for spec in ensemble.manifest.models:
            print(assumptions(spec), file=sys.stderr)
    return ensemble.with_overrides(views=views, edge=arguments.edge)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar with images/s and time left on stderr; seldom redrawn where stderr is a file."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 30.0
    line = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    with tqdm(total=total, unit=" images", mininterval=interval, dynamic_ncols=True, bar_format=line) as bar:

        def advance(image_id: str) -> None:
            bar.set_postfix_str(image_id, refresh=False)
            bar.update()

        yield advance


def _report(
    summary: Summary, ignored: Sequence[str], classes: Sequence[str], arguments: argparse.Namespace
) -> None:
    """What happened, on stdout: counts, seconds, and every image that needs a look."""
    rate = summary.images / summary.seconds if summary.seconds else 0.0
    cells = ", ".join(f"{name} {summary.cells[name]}" for name in classes)
    print(f"images    {summary.images} in {summary.seconds:.1f} s ({rate:.2f} images/s)")
    print(f"cells     {summary.cells.total()} ({cells})")
    _print_list("no cells", [f"  {name}" for name in summary.blank])
    _print_list("failed", [f"  {name}: {reason}" for name, reason in summary.failed.items()])
    _print_list("ignored", [f"  {name}: not in the sample submission" for name in ignored])
    print(f"written   {arguments.out}")
    for what in ("overlays", "save_predictions"):
        if folder := getattr(arguments, what):
            print(f"          {folder}{os.sep}")


def _print_list(title: str, lines: Sequence[str], most: int = 20) -> None:
    if lines:
        print(f"{title:9} {len(lines)}")
        print("\n".join(lines[:most]))
    if len(lines) > most:
        print(f"  and {len(lines) - most} more")


def _models(arguments: argparse.Namespace) -> int:
    from sartorius_infer.describe import describe_weights

    _load_plugins(arguments)
    print(describe_weights(arguments.weights))
    return OK


def _import(arguments: argparse.Namespace) -> int:
    from sartorius_infer.describe import assumptions
    from sartorius_infer.importing import import_checkpoint

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
    from sartorius_infer.images import find_images, image_size
    from sartorius_infer.submission import check_submission, read_sample_submission

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
}
