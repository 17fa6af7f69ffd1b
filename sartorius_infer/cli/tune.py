"""The `tune` command: rules, and how several networks vote, chosen by the score, with what speaks for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sartorius_infer.cli.options import (
    OK,
    UsageError,
    add_finding,
    add_rules,
    add_weights,
    found_images,
    load_plugins,
    print_notes,
    print_skipped,
    with_rules,
)
from sartorius_infer.errors import TruthError, some

if TYPE_CHECKING:
    from sartorius_infer.ensemble.ensemble import Ensemble
    from sartorius_infer.ensemble.weights import Weights
    from sartorius_infer.images.find import ImageFile
    from sartorius_infer.manifest.manifest import Manifest
    from sartorius_infer.manifest.moving import Moved
    from sartorius_infer.tuning.choices import Choice
    from sartorius_infer.tuning.search import Tuned
    from sartorius_infer.tuning.trials import Example
    from sartorius_infer.types import Prediction

DEALT = 5
"""Folds that images are dealt to where nobody says how many, nor gives folds."""


def tune_parser() -> argparse.ArgumentParser:
    """The options of `tune`."""
    parser = argparse.ArgumentParser(
        prog="python -m sartorius_infer tune",
        description="Choose score thresholds, mask thresholds, minimum areas, edge rule, overlap survival "
        "and consensus so that the competition's score is highest; with several networks that are seen "
        "one by one, their fusion IoU and weights too. Networks run once.",
    )
    add_weights(parser)
    add_rules(parser)
    add = parser.add_argument
    add("--truth", type=Path, required=True, metavar="T", help="as for `score`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", type=Path, metavar="PATH", help="the annotated images")
    source.add_argument(
        "--predictions",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="from --save-predictions, instead of --images: no network runs. One folder of the whole "
        "ensemble, or one for each network of the manifest, named as it or else in the manifest's order; or "
        "one with a folder of each fold, of the images that its networks had not seen",
    )
    add_finding(parser)
    add(
        "--out",
        type=Path,
        required=True,
        metavar="JSON",
        help="the manifest with what was chosen, anywhere, for --weights, or for --rules of other weights; "
        "what does not lie below its folder is linked, or else copied, into <name>_weights beside it",
    )
    add("--plot", type=Path, metavar="PNG", help="curves of the score (default: beside --out)")
    add("--folds", type=int, metavar="N", help="of cross-validation (default: 5, or those of --predictions)")
    add("--seed", type=int, default=0, metavar="N", help="of folds and intervals (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    return parser


def tune_command(arguments: argparse.Namespace) -> int:
    """Choose, judge, write and draw."""
    from tqdm import tqdm

    from sartorius_infer.manifest.moving import write_moved
    from sartorius_infer.tuning.choices import choice_of
    from sartorius_infer.tuning.curves import curves, save_plot
    from sartorius_infer.tuning.search import tune
    from sartorius_infer.tuning.trials import Scorer

    moved, manifest, examples, groups = _examples(arguments)
    scorer = Scorer(examples, manifest.classes)
    folds = len(set(groups)) or _folds(arguments)
    start = choice_of(manifest, apart=scorer.members > 1)
    with tqdm(total=folds + 1, unit=" fold", desc="search", dynamic_ncols=True) as bar:

        def advance(fold: int) -> None:
            bar.update()

        tuned = tune(scorer, start, folds, arguments.seed, advance, groups)
        drawn = curves(scorer, tuned.choice)
        bar.update()
    _report(manifest, start, tuned)
    chosen = _with_choice(moved.content, tuned.choice) | {"evidence": _evidence(tuned)}
    weights = write_moved(moved, chosen)
    picture = arguments.plot or arguments.out.with_suffix(".png")
    save_plot(drawn, picture)
    print(f"written   {arguments.out}", *weights, picture, sep="\n          ")
    return OK


def _folds(arguments: argparse.Namespace) -> int:
    return DEALT if arguments.folds is None else arguments.folds


def _examples(arguments: argparse.Namespace) -> tuple[Moved, Manifest, list[Example], list[str]]:
    """The manifest as --out will call it, the manifest, annotated predictions, and their folds if given."""
    from sartorius_infer.ensemble.weights import find_weights
    from sartorius_infer.evaluate.truth import called_as, read_truth
    from sartorius_infer.manifest.manifest import Plan
    from sartorius_infer.manifest.moving import move
    from sartorius_infer.tuning.search import require_folds
    from sartorius_infer.tuning.trials import Example

    truth, weights = read_truth(arguments.truth), find_weights(arguments.weights)
    print_notes(truth, sys.stderr)
    images: Iterable[tuple[Prediction, ...]]
    groups: list[str] = []
    if arguments.predictions is None:
        ensemble, found = _networks(arguments, weights)
        truth = called_as(truth, [file.id for file in found], arguments.truth)
        files = _annotated(found, [file.id for file in found], truth, arguments.truth)
        manifest, ids, images = ensemble.manifest, [file.id for file in files], _look(ensemble, files)
    else:
        manifest = weights.require_plan().manifest
        saved, fold_of = _load_predictions(arguments.predictions, manifest)
        truth = called_as(truth, [members[0].image_id for members in saved], arguments.truth)
        images = _annotated(saved, [members[0].image_id for members in saved], truth, arguments.truth)
        ids = [members[0].image_id for members in images]
        groups = _groups(arguments, [fold_of[image_id] for image_id in ids if image_id in fold_of])
    # Before any network runs, for that takes long.
    moved = move(Plan(manifest, weights.folder), arguments.out)
    require_folds(len(ids), len(set(groups)) or _folds(arguments), arguments.seed)
    manifest, told = with_rules(arguments, manifest, weights.is_bare)
    print(told, file=sys.stderr)
    return moved, manifest, [Example(m, truth[i]) for i, m in zip(ids, images, strict=True)], groups


def _groups(arguments: argparse.Namespace, folds: list[str]) -> list[str]:
    """Each annotated image's fold; raises TruthError for one alone, UsageError for --folds beside them."""
    if folds and arguments.folds is not None:
        raise UsageError(f"--folds: expected the folds of --predictions alone, found {arguments.folds} too")
    if len(names := set(folds)) == 1:
        raise TruthError(
            f"{arguments.predictions[0]}: expected annotated images of two folds or more, found those of "
            f"{names.pop()} alone"
        )
    return folds


T = TypeVar("T")


def _annotated(items: Sequence[T], ids: Sequence[str], truth: Container[str], source: Path) -> list[T]:
    """The items whose ids have their truth; names the others. Raises TruthError where none is left."""
    without_truth = [image_id for image_id in ids if image_id not in truth]
    if len(without_truth) == len(ids):
        raise TruthError(f"{source}: expected the truth of an image, found none of {some(without_truth)}")
    print_skipped(without_truth)
    return [item for item, image_id in zip(items, ids, strict=True) if image_id in truth]


def _load_predictions(
    folders: Sequence[Path], manifest: Manifest
) -> tuple[list[tuple[Prediction, ...]], dict[str, str]]:
    """For each image what was saved, of the ensemble or of each member; and its fold, if there are any."""
    from sartorius_infer.output.predictions import (
        load_members,
        load_prediction,
        match_folders,
        require_classes,
        saved_files,
    )

    fold_of: dict[str, str] = {}
    if len(folders) > 1:
        names = [model.name for model in manifest.models]
        folders = match_folders(folders, names)
        for name, folder in zip(names, folders, strict=True):
            print(f"network   {name}: {folder}")
        images = load_members(folders)
    else:
        files = saved_files(folders[0])
        images = [(load_prediction(file),) for file in files]
        fold_of = {m.image_id: fold for (m,), fold in zip(images, files.values(), strict=True) if fold}
    for members in images:
        for prediction, folder in zip(members, folders, strict=True):
            require_classes(prediction, len(manifest.classes), folder)
    return images, fold_of


def _networks(arguments: argparse.Namespace, weights: Weights) -> tuple[Ensemble, tuple[ImageFile, ...]]:
    """The ensemble, and the images that it will see."""
    from sartorius_infer.ensemble.device import resolve_device
    from sartorius_infer.ensemble.loading import load_for_runs

    load_plugins(arguments)
    files = found_images(arguments, arguments.images)
    return load_for_runs(weights, resolve_device(arguments.device)), files


def _look(ensemble: Ensemble, files: Sequence[ImageFile]) -> Iterator[tuple[Prediction, ...]]:
    """For each image what each member sees by itself, in all views."""
    from dataclasses import replace

    from tqdm import tqdm

    from sartorius_infer.ensemble.passes import predict
    from sartorius_infer.images.read import read_image

    alone = [replace(ensemble, members=(member,)) for member in ensemble.members]
    for file in tqdm(files, unit=" image", desc="predict", dynamic_ncols=True):
        image = read_image(file, ensemble.manifest.images.limits)
        yield tuple(predict(one, [image])[0] for one in alone)


def _report(manifest: Manifest, start: Choice, tuned: Tuned) -> None:
    from sartorius_infer.evaluate.scoring import bootstrap

    gain = tuned.gain
    low, high = bootstrap(tuned.unseen, tuned.seed)
    verdict = "a real gain" if gain.low > 0 else "a real loss" if gain.high < 0 else "no gain that is real"
    print(f"images    {len(tuned.unseen)}, {tuned.folds} folds")
    print(f"start     {tuned.before.mean():.4f}")
    print(f"seen      {tuned.seen:.4f} (flatters: chosen on the same images)")
    print(f"unseen    {tuned.unseen.mean():.4f}, 95 % {low:.4f} to {high:.4f} (chosen without the image)")
    for name, (count, before, unseen) in tuned.by_type().items():
        print(f"  {name or 'untold':7} {before:.4f} -> {unseen:.4f} unseen, {count} images")
    if tuned.groups:
        print("by fold   by rules chosen on the other folds")
    for name, (count, before, unseen) in tuned.by_fold().items():
        print(f"  {name:7} {before:.4f} -> {unseen:.4f} unseen, {count} images")
    print(f"gain      {gain.difference:+.4f}, 95 % interval {gain.low:+.4f} to {gain.high:+.4f}: {verdict}")
    if gain.low <= 0:
        print("advice    keep the manifest as it is; more annotated images would tell more")
    _report_rules(manifest, tuned.choice)
    if len(start.weights) > 1:
        _report_members(manifest, start, tuned.choice)


def _report_rules(manifest: Manifest, chosen: Choice) -> None:
    for name in manifest.classes:
        old, new = manifest.rules.of(name), chosen.rules.of(name)
        print(f"  {name:7} " + ", ".join(_changes(old.model_dump(), new.model_dump())))
    shared = {"per_class", "paste"}
    before, after = (r.model_dump(exclude=shared) for r in (manifest.rules, chosen.rules))
    print("  all     " + ", ".join(_changes(before, after)))


def _report_members(manifest: Manifest, start: Choice, chosen: Choice) -> None:
    names = [model.name for model in manifest.models]
    before, after = (dict(zip(names, c.weights, strict=True)) for c in (start, chosen))
    print("  fusion  " + ", ".join(_changes({"iou": start.fusion.iou}, {"iou": chosen.fusion.iou})))
    print("  weights " + ", ".join(_changes(before, after)))
    if left_out := [name for name, weight in after.items() if weight == 0]:
        print(f"left out  {', '.join(left_out)}: scores best without")


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{k} {_plain(old[k])}" + (f" -> {_plain(v)}" * (v != old[k])) for k, v in new.items()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(_plain(v) for v in value.values())
    return "none" if value is None else str(value)


def _with_choice(content: dict[str, Any], choice: Choice) -> dict[str, Any]:
    """The manifest's JSON with what was chosen; a network without a vote is not listed any more."""
    content = content | {"rules": choice.rules.model_dump(mode="json", exclude_none=True)}
    if len(choice.weights) == 1:
        return content
    pairs = zip(content["models"], choice.weights, strict=True)
    models = [model | {"weight": weight} for model, weight in pairs if weight > 0]
    return content | {"models": models, "fusion": content.get("fusion", {}) | {"iou": choice.fusion.iou}}


def _evidence(tuned: Tuned) -> dict[str, Any]:
    from sartorius_infer.manifest.manifest import Evidence

    gain = tuned.gain
    return Evidence(
        images=len(tuned.unseen),
        folds=tuned.folds,
        seed=tuned.seed,
        start=float(tuned.before.mean()),
        seen=tuned.seen,
        unseen=float(tuned.unseen.mean()),
        low=gain.low,
        high=gain.high,
    ).model_dump()
