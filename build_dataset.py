"""Pack the package, missing wheels, checkpoints and a manifest as an offline Kaggle dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kernel import simulate
from kit import costs, dataset
from kit.errors import KitError
from kit.notebook import require_apart, write_kernel
from kit.scoring import score
from kit.wheels import read_image
from sartorius_infer.ensemble.device import resolve_device
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.errors import SartoriusError
from sartorius_infer.manifest.manifest import MANIFEST_NAME, Manifest, load_manifest

OK, BAD_INPUT = 0, 1
GB = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.verify:
            dataset.verify(arguments.verify, install=True)
            print(f"{arguments.verify}: complete, unchanged, and it installs")
            return OK
        return _build(arguments)
    except (SartoriusError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python build_dataset.py",
        description=__doc__,
        epilog="exit codes: 0 all well, 1 bad input, or the dataset or its run is over a limit, "
        "or the proof failed, 2 usage",
    )
    add = parser.add_argument
    add("--manifest", type=Path, default=Path("weights_manifest.json"), help="default: %(default)s")
    add("--out", type=Path, default=Path("dist/dataset"), metavar="DIR", help="default: %(default)s")
    add("--id", default="user/sartorius-infer", metavar="USER/SLUG", help="of the dataset on Kaggle")
    add("--title", help="6 to 50 characters (default: the slug)")
    add("--licence", default="other", help="one of Kaggle's (default: %(default)s)")
    add(
        "--store",
        choices=("float32", "float16", "int8"),
        default="float16",
        help="how weights are stored (default: %(default)s)",
    )
    add("--zip-layout", action="store_true", help="wheels and weights in folders, uploaded as archives")
    add("--wheels", type=Path, metavar="DIR", help="take missing wheels from here instead of pip's index")
    add("--limit-gb", type=float, default=20.0, metavar="G", help="of storage (default: %(default)g)")
    add("--kernel-out", type=Path, metavar="DIR", help="also write the notebook, with the ids filled in")
    add(
        "--prove",
        action="store_true",
        help="run the notebook on the dataset as Kaggle would: offline, read-only, with Kaggle's packages",
    )
    add("--test-images", type=_count, default=240, metavar="N", help="for the hours (default: %(default)s)")
    add("--calibrate", type=Path, metavar="IMAGES", help="measure the run time on a few images, here")
    add("--device", default="auto", help="to calibrate on: auto, cpu, cuda (default: %(default)s)")
    add("--calibration", type=Path, metavar="JSON", help="where --calibrate is kept, or was")
    add("--devices", type=_count, default=1, metavar="N", help="that share the images (default: %(default)s)")
    add("--limit-hours", type=float, default=costs.LIMIT_HOURS, metavar="H", help="default: %(default)g")
    add("--truth", type=Path, metavar="CSV", help="with --truth-images: the score that storing changes")
    add("--truth-images", type=Path, metavar="DIR", help="annotated images, every one in --truth")
    add(
        "--verify", type=Path, metavar="DIR", help="only check a dataset: checksums, metadata, installability"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _build(arguments: argparse.Namespace) -> int:
    if (arguments.truth is None) != (arguments.truth_images is None):
        raise KitError("expected --truth and --truth-images together, found one")
    if arguments.kernel_out:
        require_apart(arguments.kernel_out, arguments.out)
    slug = arguments.id.partition("/")[2]
    metadata = dataset.Metadata(arguments.id, arguments.title or slug, arguments.licence)
    manifest = load_manifest(arguments.manifest).manifest
    python = simulate.prepare() if arguments.prove else None
    calibration = _calibration(arguments, manifest)
    before = _score(arguments, arguments.manifest)
    built = dataset.build(
        arguments.manifest,
        arguments.out,
        metadata,
        read_image(),
        store=arguments.store,
        folders=arguments.zip_layout,
        wheels=arguments.wheels,
    )
    for name, (old, new) in built.networks.items():
        print(f"network   {name}: {old:,} -> {new:,} bytes as {arguments.store}, {old - new:,} saved")
    after = _score(arguments, arguments.out / MANIFEST_NAME)
    if before is not None and after is not None:
        print(f"score     {before:.4f} -> {after:.4f} ({after - before:+.4f}) as {arguments.store}")
    weights = {spec.name: spec.weight for spec in manifest.models}
    fits = _report_bytes(arguments, built, weights)
    if calibration is not None:
        fits &= _report_time(arguments, calibration, weights)
    if arguments.kernel_out:
        write_kernel(arguments.kernel_out, arguments.id)
    faults = simulate.prove(arguments.out, arguments.id, python) if python else []
    print(*faults, sep="\n", end="\n" * bool(faults))
    _say_next(arguments)
    return OK if fits and not faults else BAD_INPUT


def _say_next(arguments: argparse.Namespace) -> None:
    print(f"written   {arguments.out}")
    if arguments.kernel_out:
        print(f"          {arguments.kernel_out}")
    print(f"next      kaggle datasets create -p {arguments.out} -r zip")
    print(f'  later   kaggle datasets version -p {arguments.out} -r zip -m "what changed"')
    if arguments.kernel_out:
        print(f"  then    kaggle kernels push -p {arguments.kernel_out}")


def _calibration(arguments: argparse.Namespace, manifest: Manifest) -> costs.Calibration | None:
    if arguments.calibrate is None:
        if arguments.calibration is None:
            return None
        kept = costs.read_calibration(arguments.calibration)
        looks = {(spec.name, view) for spec in manifest.models for view in manifest.views}
        if looks != {(name, view) for name, view, _ in kept.looks}:
            raise KitError(
                f"{arguments.calibration}: expected a calibration of this manifest, found that of another"
            )
        return kept
    device = resolve_device(arguments.device)
    precision = torch.float16 if device.type == "cuda" else torch.float32
    measured = costs.calibrate(load_ensemble([arguments.manifest], device, precision), arguments.calibrate)
    if arguments.calibration:
        costs.write_calibration(arguments.calibration, measured)
    return measured


def _score(arguments: argparse.Namespace, manifest: Path) -> float | None:
    if arguments.truth is None:
        return None
    return score(manifest, arguments.truth_images, arguments.truth, resolve_device(arguments.device))


def _report_bytes(arguments: argparse.Namespace, built: dataset.Built, weights: dict[str, float]) -> bool:
    over = built.bytes - int(arguments.limit_gb * GB)
    print(f"storage   {built.bytes / GB:.3f} of {arguments.limit_gb:g} GB")
    if over > 0:
        sizes = {name: after for name, (_, after) in built.networks.items()}
        drops = costs.drops_for_bytes(sizes, weights, over)
        print(f"          over the limit; to fit, leave out {', '.join(drops) or 'nothing helps'}")
    return over <= 0


def _report_time(
    arguments: argparse.Namespace, calibration: costs.Calibration, weights: dict[str, float]
) -> bool:
    images, devices = arguments.test_images, arguments.devices
    for name, view, seconds in calibration.looks:
        print(f"time      {name}, {view}: {seconds:.3f} s an image on {calibration.device}")
    hours = calibration.hours(images, devices)
    print(
        f"          {images} images on {devices} such device(s): {hours:.2f} of {arguments.limit_hours:g} h"
    )
    if hours <= arguments.limit_hours:
        return True
    drops = costs.drops_for_time(calibration, weights, images, devices, arguments.limit_hours)
    print(f"          over the limit; to fit, leave out {', '.join(drops) or 'nothing helps'}")
    return False


if __name__ == "__main__":
    sys.exit(main())
