"""What the networks of all folds see in the images that each held out, as one folder of predictions.

`python -m sartorius_infer tune --predictions` then tells the score of cross-validation, by networks and rules
that had not seen the image, and chooses the rules for a network of all images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from sartorius_infer.ensemble.device import keep_memory, resolve_device, resolve_precision
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import SartoriusError, one_line
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.images.names import match_names
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.views import parse_views
from sartorius_infer.output.predictions import save_prediction
from training.errors import TrainingError
from training.runfolder import FINAL, read_held_out


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m training.crossval",
        description="Predict each run's held-out images with its last weights (the best ones were chosen on "
        "these images), all into one folder for `python -m sartorius_infer tune --predictions`.",
    )
    add = made.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="the folders of the folds' runs")
    add("--images", nargs="+", type=Path, required=True, metavar="PATH", help="where the images lie")
    add("--out", type=Path, required=True, metavar="DIR", help="for the predictions, one .npz an image")
    add("--views", metavar="LIST", help="test-time views, as in `sartorius_infer --views`")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    return made


def pool(runs: Sequence[Path], images: Sequence[Path], out: Path, views: Sequence[str] | None = None,
         device: str = "auto") -> int:  # fmt: skip
    """Write `<id>.npz` into `out` for every image that a run held out; gives how many.

    Raises TrainingError where a run held out nothing, its images are not there, or two runs share one.
    """
    files = {file.id: file for file in find_images(images)}
    held = {run: _held_out(run, files) for run in runs}
    ids = [file.id for some in held.values() for file in some]
    if twice := [image_id for image_id in ids if ids.count(image_id) > 1]:
        raise TrainingError(f"{runs[-1]}: expected images that no other run held out, found {twice[0]}")
    where = resolve_device(device)
    keep_memory(where)
    with tqdm(total=len(ids), unit=" image", dynamic_ncols=True) as bar:
        for run, some in held.items():
            networks = load_ensemble([run / FINAL], where, resolve_precision("auto", where))
            ensemble = networks.with_overrides(views=views)
            for file in some:
                save_prediction(
                    out, predict(ensemble, [read_image(file, ensemble.manifest.images.limits)])[0]
                )
                bar.update()
    return len(ids)


def _held_out(run: Path, files: dict[str, ImageFile]) -> list[ImageFile]:
    ids = read_held_out(run)
    known = match_names(ids, files)
    if missing := [image_id for image_id in ids if image_id not in known]:
        raise TrainingError(f"{run}: expected the {len(ids)} held-out images, found none of {missing[0]}")
    return [replace(files[known[image_id]], id=image_id) for image_id in ids]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all is written, 1 for bad input."""
    given = parser().parse_args(arguments)
    try:
        count = pool(given.runs, given.images, given.out, parse_views(given.views), given.device)
    except SartoriusError as error:
        print(one_line(error), file=sys.stderr)
        return 1
    print(f"written   {given.out}, {count} images of {len(given.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
