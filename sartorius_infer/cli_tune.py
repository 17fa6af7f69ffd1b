"""The `tune` command: rules chosen by the score, with what speaks for them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartorius_infer.cli_predict import OK, add_weights, load_plugins
from sartorius_infer.errors import ManifestError, TruthError

if TYPE_CHECKING:
    from sartorius_infer.manifest import Manifest
    from sartorius_infer.truth import TrueImage
    from sartorius_infer.tuning import Curve, Example, Tuned


def tune_parser() -> argparse.ArgumentParser:
    """The options of `tune`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer tune",
        description="Choose score thresholds, mask thresholds, minimum areas, edge rule, overlap survival "
        "and consensus so that the competition's score is highest. Networks run once.",
    )
    add_weights(parser)
    add = parser.add_argument
    add("--truth", type=Path, required=True, metavar="T", help="as for `score`")
    add("--images", nargs="+", type=Path, metavar="PATH", help="the annotated images")
    add(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="from --save-predictions, instead of --images: no network runs",
    )
    add("--out", type=Path, required=True, metavar="JSON", help="the manifest with the new rules")
    add("--plot", type=Path, metavar="PNG", help="curves of the score (default: beside --out)")
    add("--folds", type=int, default=5, metavar="N", help="of cross-validation (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of folds and intervals (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    return parser


def tune_command(arguments: argparse.Namespace) -> int:
    """Choose, judge, write and draw."""
    from tqdm import tqdm

    from sartorius_infer.tuning import Scorer, curves, tune

    if (arguments.images is None) == (arguments.predictions is None):
        raise TruthError("expected --images or --predictions, found both or neither")
    truth = _truth(arguments)
    content, manifest, examples = _examples(arguments, truth)
    scorer = Scorer(examples, manifest.classes)
    with tqdm(total=arguments.folds + 1, unit=" fold", desc="search", dynamic_ncols=True) as bar:

        def advance(fold: int) -> None:
            bar.update()

        tuned = tune(scorer, manifest.rules, arguments.folds, arguments.seed, advance)
        drawn = curves(scorer, tuned.rules)
        bar.update()
    _report(manifest, tuned)
    _write(arguments.out, content, tuned)
    picture = arguments.plot or arguments.out.with_suffix(".png")
    _plot(drawn, picture)
    print(f"written   {arguments.out}\n          {picture}")
    return OK


def _truth(arguments: argparse.Namespace) -> dict[str, TrueImage]:
    from sartorius_infer.truth import read_truth

    return read_truth(arguments.truth)


def _examples(
    arguments: argparse.Namespace, truth: dict[str, TrueImage]
) -> tuple[dict[str, Any], Manifest, list[Example]]:
    """The manifest's JSON with paths as seen from --out, the manifest, and annotated predictions."""
    from sartorius_infer.tuning import Example

    if arguments.predictions is not None:
        from sartorius_infer.ensemble import find_weights
        from sartorius_infer.manifest import load_manifest
        from sartorius_infer.predictions import load_prediction

        found = find_weights(arguments.weights)
        if not isinstance(found, Path):
            raise ManifestError("expected --weights to be a manifest beside --predictions, found checkpoints")
        manifest = load_manifest(found).manifest
        files = sorted(arguments.predictions.glob("*.npz"))
        if not files:
            raise TruthError(f"{arguments.predictions}: expected saved predictions (.npz), found none")
        predictions = [load_prediction(file) for file in files]
    else:
        manifest, predictions = _run_networks(arguments)
    unknown = [p.image_id for p in predictions if p.image_id not in truth]
    if unknown:
        raise TruthError(f"{arguments.truth}: expected the truth of every image, found none of {unknown[0]}")
    content = manifest.model_dump(mode="json", by_alias=True, exclude_unset=True)
    _relocate(content, _folder(arguments.weights), arguments.out)
    return content, manifest, [Example(p, truth[p.image_id]) for p in predictions]


def _run_networks(arguments: argparse.Namespace) -> tuple[Manifest, list[Any]]:
    from tqdm import tqdm

    from sartorius_infer.device import resolve_device, resolve_precision
    from sartorius_infer.ensemble import load_ensemble
    from sartorius_infer.images import find_images, read_image
    from sartorius_infer.passes import predict

    load_plugins(arguments)
    files = find_images(arguments.images)
    device = resolve_device(arguments.device)
    ensemble = load_ensemble(arguments.weights, device, resolve_precision("auto", device))
    bar = tqdm(files, unit=" image", desc="predict", dynamic_ncols=True)
    return ensemble.manifest, [predict(ensemble, [read_image(file)])[0] for file in bar]


def _folder(weights: Sequence[Path]) -> Path:
    """The folder that the files of a manifest are relative to; bare checkpoints name theirs themselves."""
    from sartorius_infer.ensemble import find_weights

    found = find_weights(weights)
    return found.parent if isinstance(found, Path) else Path()


def _relocate(content: dict[str, Any], folder: Path, out: Path) -> None:
    """Write paths as seen from `out`; raise ManifestError for a file that does not lie below its folder."""
    content.pop("$schema", None)
    for model in content["models"]:
        file = (folder / model["file"]).resolve()
        if not file.is_relative_to(out.parent.resolve()):
            raise ManifestError(
                f"{out}: expected --out in a folder above {file}, found {out.parent.resolve()}"
            )
        model["file"] = os.path.relpath(file, out.parent.resolve())


def _report(manifest: Manifest, tuned: Tuned) -> None:
    gain = tuned.gain
    verdict = "a real gain" if gain.low > 0 else "a real loss" if gain.high < 0 else "no gain that is real"
    print(f"images    {tuned.images}, {tuned.folds} folds")
    print(f"start     {tuned.start:.4f}")
    print(f"seen      {tuned.seen:.4f} (flatters: chosen on the same images)")
    print(f"unseen    {tuned.unseen:.4f} (chosen without the image)")
    print(f"gain      {gain.difference:+.4f}, 95 % interval {gain.low:+.4f} to {gain.high:+.4f}: {verdict}")
    for name in manifest.classes:
        old, new = manifest.rules.of(name), tuned.rules.of(name)
        print(f"  {name:8}" + ", ".join(_changes(old.model_dump(), new.model_dump())))
    shared = {"per_class", "paste"}
    before, after = (r.model_dump(exclude=shared) for r in (manifest.rules, tuned.rules))
    print("  all     " + ", ".join(_changes(before, after)))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{k} {_plain(old[k])}" + (f" -> {_plain(v)}" * (v != old[k])) for k, v in new.items()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(_plain(v) for v in value.values())
    return "none" if value is None else str(value)


def _write(out: Path, content: dict[str, Any], tuned: Tuned) -> None:
    from sartorius_infer.files import atomic_file
    from sartorius_infer.manifest import Evidence, Manifest

    evidence = Evidence(
        images=tuned.images,
        folds=tuned.folds,
        seed=tuned.seed,
        start=tuned.start,
        seen=tuned.seen,
        unseen=tuned.unseen,
        low=tuned.gain.low,
        high=tuned.gain.high,
    )
    content |= {
        "rules": tuned.rules.model_dump(mode="json", exclude_none=True),
        "evidence": evidence.model_dump(),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    Manifest.model_validate_json(text)
    with atomic_file(out, "w") as file:
        file.write(text + "\n")


def _plot(drawn: Sequence[Curve], path: Path) -> None:
    """Two charts side by side: the score against each class's threshold, and against its minimum area."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {"score": "score threshold", "min_area": "minimum area (pixels)"}
    styles = ("-", "--", ":", "-.")
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (setting, label) in zip(axes, labels.items(), strict=True):
        mine = [curve for curve in drawn if curve.setting == setting]
        for number, curve in enumerate(mine):
            colour = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")[number % 4]
            axis.plot(curve.values, curve.scores, styles[number % 4], color=colour)
            best = curve.scores[curve.values.index(curve.chosen)]
            axis.plot([curve.chosen], [best], "o", color=colour)
            axis.annotate(
                f"{curve.class_name} {curve.chosen:g}", (curve.chosen, best), xytext=(4, 6 + 11 * number),
                textcoords="offset points", color=colour,
            )  # fmt: skip
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("score (mean average precision)")
    figure.suptitle("Score on all annotated images against one setting, the others as chosen (dots)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
