"""What the Kaggle notebook calls: predict with every GPU, and never leave without a valid submission."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import decode_label_map
from sartorius_infer.competition import INPUT, find_competition
from sartorius_infer.ensemble.weights import find_weights
from sartorius_infer.errors import ManifestError, SartoriusError, first_line, some
from sartorius_infer.files import Paths, atomic_file
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import image_size, read_image
from sartorius_infer.manifest.manifest import MANIFEST_NAME
from sartorius_infer.manifest.overrides import override_rules, read_rules
from sartorius_infer.output.check import check_submission
from sartorius_infer.output.render import overlay
from sartorius_infer.output.render import png as png
from sartorius_infer.output.submission import read_sample_submission, read_submission
from sartorius_infer.output.writers import SubmissionWriter, encode_rows
from sartorius_infer.run.journal import Journal, journal_folder
from sartorius_infer.types import UInt8

log = logging.getLogger(__name__)


GRACE_S = 300
"""How long after its time limit a run may still be writing before it is asked to end."""

PARTING_S = 60
"""How long it may take to end before it is killed; torchrun gives its processes 30 s."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its submission, rows of cells by image, and everything that went wrong."""

    submission: Path
    cells: Mapping[str, int]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """A few lines; loud where something went wrong."""
        blank = [image for image, count in self.cells.items() if count == 0]
        lines = [f"{self.submission}: {len(self.cells)} images, {sum(self.cells.values())} cells"]
        if blank:
            lines.append(
                f"no cells in {len(blank)} images: {', '.join(blank[:5])}{' ...' * (len(blank) > 5)}"
            )
        if not self.problems:
            return "\n".join([*lines, "valid"])
        bar = "!" * 78
        return "\n".join([*lines, bar, "!! SOMETHING WENT WRONG", *(f"!! {p}" for p in self.problems), bar])

    @property
    def next_step(self) -> str:
        """What to do next, in one line."""
        if self.problems:
            return "see above what went wrong, mend it, run all again"
        if not any(self.cells.values()):
            return "no image has a cell: try lower thresholds in the settings, run all again"
        return "Save Version (Save & Run All), then Submit to Competition on that version's page"


def predict(
    kit: Path,
    submission: Path = Path("submission.csv"),
    *,
    hours: float = 8.5,
    rules: str | Path | Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
    root: Path = INPUT,
) -> Outcome:
    """Write a submission for the mounted competition with the networks of a kit, on every GPU there is.

    hours: views and networks are dropped where the run would take longer. rules: instead of the
    manifest's, as `rules_file` takes them. options: more of the command line's, `--weights` instead of
    the kit's too. What fails is tried once more by one process, going on from what is finished; then
    rows that are missing or invalid are left blank. Rules that are refused leave all of them blank.
    Raises SartoriusError where no competition is mounted.
    """
    end = time.monotonic() + hours * 3600
    found = find_competition(root)
    if found is None:
        raise SartoriusError(f"{root}: expected sample_submission.csv beside test/, found neither")
    images, sample = found
    weights = _weights(kit, options)
    words = ["--weights", str(weights), "--images", str(images), "--sample-submission", str(sample)]
    words += ["--out", str(submission), "--resume", *options]
    try:
        if rules is not None:
            words += ["--rules", str(_checked(rules_file(rules, submission, root), weights))]
        problems = _run_twice(words, end, submission)
    except SartoriusError as error:
        problems = [str(error)]
    problems += mend(submission, images, sample)
    return Outcome(submission, _count(submission), tuple(problems))


def _weights(kit: Path, options: Sequence[str]) -> Path:
    """What the run loads: the kit's manifest, unless the options name others."""
    named = dict(pairwise(options)).get("--weights")
    return Path(named) if named else kit / MANIFEST_NAME


def _run_twice(words: Sequence[str], end: float, submission: Path) -> list[str]:
    """Run the command on every GPU, and once more by one process where that fails; what went wrong."""
    problems = []
    for processes in (max(1, gpu_count()), 1):
        left = int(end - time.monotonic())
        code = _run([*words, "--time-limit", f"{left}s"], processes, left) if left > 0 else -1
        if code in (0, 3):
            break
        if code == 2:  # which trying again would not change
            given = " ".join(words[words.index("--resume") + 1 :])
            problems.append(f"the options {given} were refused; see the output above")
            break
        problems.append(f"{processes} process(es) ended with code {code}; see the output above")
    else:
        problems.append(_salvage(submission))
    if code == 3:
        problems.append("some images failed and are blank; see the output above")
    return problems


def rules_file(rules: str | Path | Mapping[str, Any], submission: Path, root: Path = INPUT) -> Path:
    """The file for `--rules` of what a notebook's settings say.

    A mapping, like the manifest's `rules`, is written beside the submission. Else it is a file: by its
    path, or by its name or the end of its path in any dataset that is attached, which is mounted in a
    place that Kaggle chooses. Raises ManifestError unless there is one such file.
    """
    if isinstance(rules, Mapping):
        try:
            text = json.dumps(rules, indent=1)
        except (TypeError, ValueError) as error:
            raise ManifestError(f"RULES: expected what JSON can hold, found {error}") from None
        written = submission.with_suffix(".rules.json")
        with atomic_file(written, "w") as file:
            file.write(text + "\n")
        return written
    return Path(rules) if Path(rules).is_file() else _mounted(Path(rules), root)


def _mounted(name: Path, root: Path) -> Path:
    """The one file below `root` whose path ends in `name`; raises ManifestError where it is not one."""
    parts = name.parts
    found = [
        path for path in sorted(root.rglob(escape(name.name or "*"))) if path.parts[-len(parts) :] == parts
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ManifestError(
            f"RULES: expected one {name} in attached datasets, found {some(found)}; write more of the path"
        )
    raise ManifestError(
        f"RULES: expected {name} in an attached dataset, found none; is its dataset attached (Add Input)?"
    )


def _checked(file: Path, weights: Path) -> Path:
    """The file, where its rules are sound and of the manifest's classes; raises ManifestError."""
    plan = find_weights(weights).plan
    if plan is None:  # checkpoints alone: the command learns their classes
        read_rules(file)
    else:
        override_rules(plan.manifest.rules, plan.manifest.classes, file=file)
    return file


def gpu_count() -> int:
    """How many GPUs run a convolution; a card that torch has no kernels for does not count."""
    import torch

    from sartorius_infer.ensemble.device import resolve_device

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sum(resolve_device(f"cuda:{index}").type == "cuda" for index in range(count))


def _run(words: Sequence[str], processes: int, seconds: int) -> int:
    """The command line in a process of its own, or in several by torchrun; its exit code.

    A run that hangs is ended some minutes after its time limit, with all its processes.
    """
    python = [sys.executable, "-m"]
    if processes > 1:
        python += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        python += ["--max-restarts=3", "-m"]
    with subprocess.Popen([*python, "sartorius_infer", *words], start_new_session=True) as process:
        try:
            return process.wait(seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            # torchrun gives its processes sessions of their own, and ends them once it is asked to end.
            process.terminate()
        try:
            return process.wait(PARTING_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


def _salvage(submission: Path) -> str:
    """Write what the journal of a failed run holds; says how much."""
    try:
        results = list(Journal.salvage(journal_folder(submission)))
    except Exception as error:  # a damaged journal fails in any way
        return f"the run did not end, and its journal cannot be read: {first_line(error)}"
    if results:
        with SubmissionWriter(submission) as writer:
            for result in results:
                writer.write(result.pieces)
    return f"the run did not end: {len(results)} images were finished, the others are blank"


def mend(submission: Path, images: Path, sample: Path) -> list[str]:
    """Make a submission valid, whatever is wrong with it; returns what was, in words.

    Images with a faulty row, or none, get a blank one. A file that cannot be read is written anew.
    """
    ids = read_sample_submission(sample)
    sizes = _sizes(images, ids)
    try:
        found = check_submission(submission, sizes, ids)
        rows = read_submission(submission) if found else []
    except SartoriusError as error:
        found, rows, faults = [], [], [f"{error}: every row is blank"]
    else:
        faults = [f"line {p.line}: {p.id}: {p.message}: left blank" for p in found]
    if not faults:
        return []
    bad = {problem.id for problem in found}
    with SubmissionWriter(submission) as writer:
        for image_id in ids:
            own = [row.predicted for row in rows if row.id == image_id and image_id not in bad]
            writer.write(encode_rows(image_id, [rle for rle in own if rle] or [""]))
    return faults


def _sizes(images: Path, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(H, W) of the images of these ids, as far as they can be read."""
    sizes = {}
    try:
        files = find_images([images])
    except SartoriusError as error:
        log.warning("%s", error)
        files = ()
    wanted = set(ids)
    for file in files:
        try:
            if file.id in wanted:
                sizes[file.id] = image_size(file)
        except SartoriusError as error:
            log.warning("%s", error)
    return sizes


def _count(submission: Path) -> dict[str, int]:
    cells: dict[str, int] = {}
    for row in read_submission(submission):
        cells[row.id] = cells.get(row.id, 0) + bool(row.predicted)
    return cells


def pictures(
    submission: Path, most: int = 3, root: Path = INPUT, weights: Paths | None = None
) -> list[UInt8]:
    """The images with the most cells, each cell outlined: uint8 RGB, as many as asked for.

    Images of 16 bits are read by the manifest of `weights`, where it fixes their range.
    """
    plan = find_weights(weights).plan if weights else None
    limits = plan.manifest.images.limits if plan else None
    found = find_competition(root)
    rows = read_submission(submission)
    cells = _count(submission)
    chosen = sorted(cells, key=lambda image_id: -cells[image_id])[:most]
    files = {file.id: file for file in find_images([found[0]])} if found else {}
    drawn = []
    for image_id in chosen:
        if image_id in files:
            image = read_image(files[image_id], limits)
            rles = [row.predicted for row in rows if row.id == image_id and row.predicted]
            drawn.append(overlay(image, _as_instances(image_id, rles, image.size_hw)))
    return drawn


def _as_instances(image_id: str, rles: Sequence[str], size_hw: tuple[int, int]) -> Instances:
    scores, labels = np.ones(len(rles), np.float32), np.ones(len(rles), np.int64)
    return Instances(image_id, decode_label_map(rles, size_hw), scores, labels, ("cells",))
