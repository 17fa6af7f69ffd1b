"""Options for what laboratories take home."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sartorius_infer.cli.options import UsageError


def add_laboratory(parser: argparse.ArgumentParser) -> None:
    """Options of outputs that the packages of an extra make, and of what cells are called in all."""
    group = parser.add_argument_group(
        "for laboratories", "all but --classes with the packages of the extra [lab]"
    )
    add = group.add_argument
    add(
        "--classes",
        type=_one_name,
        metavar="NAME",
        help="call every cell NAME, such as cell, whatever kind the networks take it for, without consensus",
    )
    add("--labels", type=Path, metavar="DIR", help="write <id>.tif per image, its label map")
    add("--rois", type=Path, metavar="DIR", help="write <id>.zip per image, regions for ImageJ")
    add(
        "--table",
        type=Path,
        metavar="FILE.csv",
        help="measurements, a row per cell, and in FILE_images.csv counts and areas, a row per image",
    )
    add(
        "--pixel-size",
        type=_micrometres,
        metavar="UM",
        help="side of a pixel in micrometres, for the tables; default: they are in pixels",
    )


def _one_name(text: str) -> str:
    if not text.strip() or "," in text or "=" in text:
        raise argparse.ArgumentTypeError(f"expected one name for all cells, such as cell, found {text!r}")
    return text.strip()


def _micrometres(text: str) -> float:
    from sartorius_infer.laboratory.measure import require_size

    try:
        size = float(text)
        require_size(size)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected micrometres, a number over 0, found {text!r}") from None
    return size


def require_laboratory(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that mean nothing beside the others."""
    table = arguments.table
    if arguments.pixel_size is not None and table is None:
        raise UsageError("--pixel-size: expected --table FILE.csv, which it is for")
    if table is not None and table.suffix.lower() != ".csv":
        raise UsageError(f"expected --table to end in .csv, found {table.name}")
    asked = [name for name in ("labels", "rois", "table") if getattr(arguments, name) is not None]
    if asked and arguments.overlaps == "keep":
        raise UsageError(f"--{asked[0]}: cells must not share pixels there; expected --overlaps cut")


def laboratory_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """These options as fields of `run.jobs.Options`."""
    return {
        "labels": arguments.labels,
        "rois": arguments.rois,
        "table": arguments.table,
        "pixel_size_um": arguments.pixel_size,
    }
