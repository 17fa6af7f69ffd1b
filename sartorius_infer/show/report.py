"""One HTML page that shows what was found: pictures, charts and thresholds to move, nothing fetched."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files as package_files
from typing import Any

import cv2
import numpy as np

from sartorius_infer.cells.colours import class_colours
from sartorius_infer.cells.rle import Mask, run_pixels
from sartorius_infer.errors import ImageError, TruthError, size_text, some
from sartorius_infer.evaluate.metric import overlaps, score_image, twentieths
from sartorius_infer.evaluate.scoring import bootstrap
from sartorius_infer.evaluate.true_image import TrueImage
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.read import Limits, read_image
from sartorius_infer.output.render import stretched
from sartorius_infer.show.candidates import Look, Looks, shown_masks
from sartorius_infer.tuning.curves import Curve
from sartorius_infer.types import CellImage, Float32

LONGEST = 2048
"""Pixels of a page's picture along its longer side; larger images are shown reduced."""

QUALITY = 30
_SCRIPTS = ("model.js", "draw.js", "charts.js", "page.js", "viewer.js")


def report(
    files: Sequence[ImageFile],
    looks: Looks,
    truth: Mapping[str, TrueImage] | None = None,
    curves: Sequence[Curve] = (),
    iou: float = 0.5,
    title: str = "Cells",
    limits: Limits | None = None,
    on_image: Callable[[str], None] = lambda image_id: None,
) -> str:
    """The page of the images that `looks` has, as HTML; it works from a file, without a network.

    truth: by image id; with it hits, misses, false alarms and the score are shown. curves: of the score
    against minimum areas. iou: what a hit must exceed at first, one of `metric.THRESHOLDS`.
    limits: the 16-bit values that are black and white, as `read_image` takes them.
    Raises ImageError for an image that is missing or has another size than its cells, TruthError for a
    truth that is missing or has another size, ValueError for another IoU.
    """
    by_id = {file.id: file for file in files}
    missing = [image_id for image_id in looks.images if image_id not in by_id]
    if missing:
        raise ImageError(f"expected an image for every id, found none of {some(missing)}")
    entries, aps = [], []
    for image_id, look in looks.images.items():
        image = read_image(by_id[image_id], limits)
        known = None if truth is None else _truth_of(image, truth)
        entries.append(_entry(image, look, looks.scored, known))
        if known is not None:
            aps.append(_ap(look, looks, known))
        on_image(image_id)
    content = _settings(looks) | {
        "truth": truth is not None,
        "level": twentieths(iou),
        "interval": bootstrap(np.array(aps)) if aps else None,
        "area_curves": list(_area_curves(curves, looks.classes)),
        "images": entries,
    }
    return _filled(title, content)


def _filled(title: str, content: Mapping[str, Any]) -> str:
    """The template with its style, scripts and content in place."""
    folder = package_files("sartorius_infer") / "show" / "page"
    parts = {
        # A file's name need not be text.
        "title": html.escape(title.encode("utf-8", "replace").decode("utf-8")),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        # An id may hold "</script>"; inside JSON's strings the escape means the same.
        "content": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
    }
    pieces = (folder / "page.html").read_text(encoding="utf-8").split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def _settings(looks: Looks) -> dict[str, Any]:
    return {
        "classes": looks.classes,
        "colours": class_colours(len(looks.classes)),
        "floors": looks.floors,
        "consensus": looks.consensus,
        "scored": looks.scored,
    }


def _truth_of(image: CellImage, truth: Mapping[str, TrueImage]) -> TrueImage:
    if image.id not in truth:
        raise TruthError(f"expected the truth of every image, found none of {image.id}")
    known = truth[image.id]
    if known.size_hw != image.size_hw:
        expected, found = size_text(image.size_hw), size_text(known.size_hw)
        raise TruthError(f"{image.id}: expected a truth of {expected} pixels, found {found}")
    return known


def _ap(look: Look, looks: Looks, truth: TrueImage) -> float:
    pixels = look.size_hw[0] * look.size_hw[1]
    return score_image(truth.id, truth.masks, shown_masks(look, looks), pixels).ap


def _entry(image: CellImage, look: Look, scored: bool, truth: TrueImage | None) -> dict[str, Any]:
    """Everything the page knows of one image."""
    if look.size_hw != image.size_hw:
        expected, found = size_text(image.size_hw), size_text(look.size_hw)
        raise ImageError(f"{image.id}: expected cells of {expected} pixels, found {found}")
    step = -(-max(image.size_hw) // LONGEST)
    width = image.size_hw[1]
    cells: dict[str, Any] = {
        "label": look.labels.tolist(),
        "area": [int(lengths.sum()) for _, lengths in look.masks],
        "runs": [_packed(mask, width, step) for mask in look.masks],
    }
    if scored:
        cells |= {"score": _decimals(look.scores), "fixed": look.fixed.astype(int).tolist()}
    entry: dict[str, Any] = {
        "id": image.id,
        "h": -(-image.size_hw[0] // step),
        "w": -(-width // step),
        "step": step,
        "type": "" if truth is None else truth.cell_type,
        "picture": _picture(image, step),
        "cells": cells,
        "votes": [_decimals(scores) for scores in look.votes] or None,
        "truth": None,
        "pairs": [],
    }
    if truth is not None:
        entry["truth"] = {
            "area": [int(lengths.sum()) for _, lengths in truth.masks],
            "runs": [_packed(mask, width, step) for mask in truth.masks],
        }
        if truth.mask_types:
            entry["truth"]["types"] = truth.mask_types
        entry["pairs"] = _pairs(truth.masks, look.masks, image.size_hw[0] * width)
    return entry


def _pairs(true: Sequence[Mask], found: Sequence[Mask], pixels: int) -> list[int]:
    """True cell, found cell, shared pixels and pixels of either, in turn, where the IoU is over 0.5."""
    shared, unions = overlaps(true, found, pixels)
    rows, columns = np.nonzero(2 * shared > unions)
    numbers = np.stack([rows, columns, shared[rows, columns], unions[rows, columns]], axis=1)
    flat: list[int] = numbers.ravel().tolist()
    return flat


def _decimals(scores: Float32) -> list[float]:
    """The shortest decimals that name these float32."""
    return [float(str(score)) for score in scores]


def _picture(image: CellImage, step: int) -> str:
    """The image, its contrast stretched, as a data URL."""
    pixels = stretched(image.pixels)[..., ::-1]
    size = (-(-pixels.shape[1] // step), -(-pixels.shape[0] // step))
    reduced = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if step > 1 else pixels
    _, data = cv2.imencode(".webp", reduced, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _packed(mask: Mask, width: int, step: int) -> str:
    """A mask's runs as gaps and lengths, seven bits a byte, lowest first, in base64.

    Reduced by `step`, a pixel is the mask's where one of its step x step is.
    """
    starts, lengths = mask
    if step > 1:
        y, x = np.divmod(run_pixels(starts, lengths), width)
        flat = np.unique(y // step * -(-width // step) + x // step)
        cuts = np.flatnonzero(np.diff(flat, prepend=-2) > 1)
        starts, lengths = flat[cuts], np.diff(cuts, append=len(flat))
    gaps = starts - np.concatenate([[0], (starts + lengths)[:-1]]) if len(starts) else starts
    return base64.b64encode(bytes(_bytes(np.stack([gaps, lengths], axis=1).ravel().tolist()))).decode("ascii")


def _bytes(numbers: Sequence[int]) -> Iterator[int]:
    for number in numbers:
        while number > 127:
            yield number & 127 | 128
            number >>= 7
        yield number


def _area_curves(curves: Sequence[Curve], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for curve in curves:
        if curve.setting == "min_area":
            points = list(zip(curve.values, curve.scores, strict=True))
            yield {"label": classes.index(curve.class_name) + 1, "points": points, "chosen": curve.chosen}
