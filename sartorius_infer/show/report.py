"""One HTML page that shows what was found: pictures, charts and thresholds to move, nothing fetched."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files as package_files
from typing import TYPE_CHECKING, Any

import numpy as np

from sartorius_infer.cells.colours import class_colours
from sartorius_infer.errors import ImageError, some
from sartorius_infer.images.find import ImageFile
from sartorius_infer.images.read import Limits, read_image
from sartorius_infer.show.candidates import Look, Looks, shown_masks
from sartorius_infer.show.entries import drawing, entry, truth_of

if TYPE_CHECKING:
    from sartorius_infer.evaluate.true_image import TrueImage
    from sartorius_infer.manifest.rules import Rules
    from sartorius_infer.tuning.curves import Curve

_SCRIPTS = ("model.js", "draw.js", "charts.js", "controls.js", "figures.js", "page.js", "viewer.js")


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
    return "".join(report_parts(files, looks, truth, curves, iou, title, limits, on_image))


def report_parts(
    files: Sequence[ImageFile],
    looks: Looks,
    truth: Mapping[str, TrueImage] | None = None,
    curves: Sequence[Curve] = (),
    iou: float = 0.5,
    title: str = "Cells",
    limits: Limits | None = None,
    on_image: Callable[[str], None] = lambda image_id: None,
) -> Iterator[str]:
    """What `report` gives, in parts that are made as they are asked for, one image after the other."""
    by_id = {file.id: file for file in files}
    missing = [image_id for image_id in looks.images if image_id not in by_id]
    if missing:
        raise ImageError(f"expected an image for every id, found none of {some(missing)}")
    settings = _settings(looks, truth is not None, iou, curves)
    aps: list[float] = []

    def images() -> Iterator[str]:
        for image_id, look in looks.images.items():
            image = read_image(by_id[image_id], limits)
            known = None if truth is None else truth_of(image, truth)
            yield _element("image", entry(image, look, looks.scored, known))
            yield _element("drawing", drawing(image, look, known))
            if known is not None:
                aps.append(_ap(look, looks, known))
            on_image(image_id)

    def content() -> Iterator[str]:
        yield _json(settings | {"interval": _interval(aps) if aps else None})

    return _filled(title, images, content)


def _filled(
    title: str, images: Callable[[], Iterator[str]], content: Callable[[], Iterator[str]]
) -> Iterator[str]:
    """The template with its style, scripts, images and content in place, in this order."""
    folder = package_files("sartorius_infer") / "show" / "page"

    def texts(*names: str) -> Callable[[], Iterator[str]]:
        return lambda: iter(["\n".join((folder / name).read_text(encoding="utf-8") for name in names)])

    parts: dict[str, Callable[[], Iterator[str]]] = {
        # A file's name need not be text.
        "title": lambda: iter([html.escape(title.encode("utf-8", "replace").decode("utf-8"))]),
        "style": texts("page.css"),
        "script": texts(*_SCRIPTS),
        "images": images,
        "content": content,
    }
    first, *pieces = (folder / "page.html").read_text(encoding="utf-8").split("{{")
    yield first
    for piece in pieces:
        name, rest = piece.split("}}", 1)
        yield from parts[name]()
        yield rest


def _element(name: str, content: Mapping[str, Any]) -> str:
    """Data of its own: the page reads an image's drawing only when it is to be seen."""
    return f'<script class="{name}" type="application/json">{_json(content)}</script>\n'


def _json(content: Mapping[str, Any]) -> str:
    """An id may hold "</script>"; inside JSON's strings the escape means the same."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _settings(looks: Looks, has_truth: bool, iou: float, curves: Sequence[Curve]) -> dict[str, Any]:
    return {
        "classes": looks.classes,
        "colours": class_colours(len(looks.classes)),
        "floors": looks.floors,
        "consensus": looks.consensus,
        "scored": looks.scored,
        "rules": None if looks.rules is None else _in_full(looks.rules, looks.classes),
        "truth": has_truth,
        "level": _level(iou) if has_truth else None,
        "area_curves": list(_area_curves(curves, looks.classes)),
    }


def _in_full(rules: Rules, classes: Sequence[str]) -> dict[str, Any]:
    """The rules with one for every class, as JSON has them."""
    whole = rules.model_copy(update={"per_class": {name: rules.of(name) for name in classes}})
    return whole.model_dump(mode="json")


def _area_curves(curves: Sequence[Curve], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for curve in curves:
        if curve.setting == "min_area":
            points = list(zip(curve.values, curve.scores, strict=True))
            yield {"label": classes.index(curve.class_name) + 1, "points": points, "chosen": curve.chosen}


# A page without truth does without what counts matches, whose import takes longer than a page.


def _level(iou: float) -> int:
    from sartorius_infer.evaluate.metric import twentieths

    return twentieths(iou)


def _ap(look: Look, looks: Looks, truth: TrueImage) -> float:
    from sartorius_infer.evaluate.metric import score_image

    return score_image(truth.id, truth.masks, shown_masks(look, looks)).ap


def _interval(aps: Sequence[float]) -> tuple[float, float]:
    from sartorius_infer.evaluate.scoring import bootstrap

    return bootstrap(np.array(aps))
