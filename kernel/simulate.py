"""Run the whole Kaggle path here: build the dataset, mount it as Kaggle does, offline, run the notebook.

    python -m kernel.simulate [--python python3.12] [--venv .venv-kaggle]

The virtual environment holds what Kaggle's image has and nothing of this project; versions are the
nearest that pip finds. Prints seconds and bytes, and fails where a submission is not what it should be.
`build_dataset.py --prove` runs any one dataset so.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2

from kit.dataset import Metadata, build
from kit.errors import KitError
from kit.notebook import NOTEBOOK, write_kernel
from kit.wheels import ROOT, read_image
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import image_size
from sartorius_infer.images.read import read_image as read_pixels
from sartorius_infer.output.check import check_submission
from sartorius_infer.output.submission import read_submission

DATASET, COMPETITION = "someone/sartorius-infer-kit", "sartorius-cell-instance-segmentation"
SLUG = DATASET.partition("/")[2]
LAYOUTS = {
    "flat": (SLUG, COMPETITION),
    "by kind": (f"datasets/{DATASET}", f"competitions/{COMPETITION}"),
    "mixed": (SLUG, f"competitions/{COMPETITION}"),
}
ENVIRONMENT = ROOT / ".venv-kaggle"
JAIL = ("unshare", "--user", "--map-root-user", "--mount", "--net")
EXECUTE = """\
import nbclient, nbformat
notebook = nbformat.read("notebook.ipynb", as_version=4)
nbclient.NotebookClient(notebook, timeout=9 * 3600, kernel_name="python3").execute()
nbformat.write(notebook, "executed.ipynb")
"""


def main() -> int:
    """Run every layout and one broken dataset; returns 0 if each ends as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="for the virtual environment (default: 3.12, else this one)")
    parser.add_argument("--venv", type=Path, default=ENVIRONMENT)
    parser.add_argument("--work", type=Path, default=ROOT / "dist" / "simulation")
    arguments = parser.parse_args()
    python = make_environment(arguments.venv, arguments.python or _kaggle_python())
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    built = build(
        ROOT / "weights_manifest.json",
        arguments.work / "dataset",
        Metadata(DATASET, "sartorius infer kit", "other"),
        read_image(),
    )
    write_kernel(arguments.work / "kernel", DATASET)
    competition = make_competition(arguments.work / "competition")
    print(f"dataset {built.bytes:,} bytes")
    faults = []
    for layout in LAYOUTS:
        faults += run_layout(layout, arguments.work, python, built.folder, competition)
    faults += run_broken(arguments.work, python, built.folder, competition)
    print("\n".join(faults) or "every run ended with a valid submission")
    return 1 if faults else 0


def prepare() -> Path:
    """The interpreter of a virtual environment with the packages of Kaggle's image, for `prove`.

    Made where it is missing, which needs pip's index. Raises KitError where it cannot be made, or this
    machine has no namespaces to run it in.
    """
    try:
        subprocess.run([*JAIL, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise KitError("--prove: expected Linux with `unshare` and user namespaces, found none") from None
    try:
        return make_environment(ENVIRONMENT, _kaggle_python())
    except subprocess.CalledProcessError:
        raise KitError(
            f"--prove: expected {ENVIRONMENT} with Kaggle's packages; pip could not make it, see above"
        ) from None


def prove(dataset: Path, dataset_id: str, python: Path) -> list[str]:
    """Run the notebook on a dataset, offline, with three images of `samples/`; returns what is wrong.

    `dataset_id` is USER/SLUG, under which it is mounted; `python` is what `prepare` gave.
    """
    with tempfile.TemporaryDirectory(dir=dataset.resolve().parent, prefix=".proof-") as folder:
        work = Path(folder)
        write_kernel(work / "kernel", dataset_id)
        competition = make_competition(work / "competition")
        places = (f"datasets/{dataset_id}", f"competitions/{COMPETITION}")
        return _run_sound("proof", places, work, python, dataset, competition)


def _kaggle_python() -> str:
    """The interpreter nearest to Kaggle's that there is."""
    for name in ("python3.12", "python3.13"):
        probe = subprocess.run(["which", name], capture_output=True, check=False)
        runs = probe.returncode == 0 and subprocess.run([name, "-c", ""], capture_output=True, check=False)
        if runs and runs.returncode == 0:
            return name
    return sys.executable


def make_environment(folder: Path, python: str) -> Path:
    """A virtual environment with the packages of Kaggle's image, made anew when their list changes.

    Returns its interpreter, by an absolute path: the notebook runs it in another folder.
    """
    folder = folder.absolute()
    said = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", said], capture_output=True, text=True, check=True).stdout.strip()
    pythons = read_image().pythons
    packages = pythons.get(version) or next(iter(pythons.values()))
    wanted = [f"{name}=={_minor(found)}.*" if found else name for name, found in packages.items()]
    wanted += ["nbclient", "ipykernel"]
    stamp = folder / "packages.json"
    if not stamp.is_file() or json.loads(stamp.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", *quiet, *wanted], check=True)
        stamp.write_text(json.dumps(wanted))
    return folder / "bin" / "python"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def make_competition(folder: Path) -> Path:
    """`sample_submission.csv` and `test/` of three PNG images, as the visible part of the competition."""
    (folder / "test").mkdir(parents=True)
    ids = []
    for number, file in enumerate(find_images([ROOT / "samples"])[:3]):
        ids.append(f"{number:012x}")
        cv2.imwrite(str(folder / "test" / f"{ids[-1]}.png"), read_pixels(file).pixels)
    with (folder / "sample_submission.csv").open("w", newline="") as lines:
        rows = csv.writer(lines, lineterminator="\n")
        rows.writerows([("id", "predicted"), *((image_id, "1 1") for image_id in ids)])
    return folder


def run_layout(layout: str, work: Path, python: Path, dataset: Path, competition: Path) -> list[str]:
    """Run the notebook with the inputs mounted as `layout`; returns what is wrong."""
    return _run_sound(layout, LAYOUTS[layout], work, python, dataset, competition)


def _run_sound(
    name: str, places: Sequence[str], work: Path, python: Path, dataset: Path, competition: Path
) -> list[str]:
    """Run the notebook on a dataset that should find cells; `places` are as `_execute` takes them."""
    run = work / name.replace(" ", "_")
    seconds, printed = _execute(run, places, dataset, competition, work, python)
    found = {name: re.search(pattern, printed) for name, pattern in _TIMES.items()}
    times = ", ".join(f"{name} {match[1]} s" for name, match in found.items() if match)
    cells, faults = _judge(run / "working" / "submission.csv", competition)
    print(f"{name:9} {times}, run {seconds:.1f} s, {cells} cells")
    if cells == 0 or "SOMETHING WENT WRONG" in printed or None in found.values():
        faults.append(f"{name}: expected cells and no complaint, found {cells} cells:\n{printed}")
    return faults


_TIMES = {"installed after": r"installed .* after ([\d.]+) s", "ready after": r"ready after ([\d.]+) s"}


def run_broken(work: Path, python: Path, dataset: Path, competition: Path) -> list[str]:
    """Run the notebook on a dataset whose weights were cut off: blank rows, and loud about it."""
    broken = work / "broken_dataset"
    shutil.copytree(dataset, broken)
    weights = next(broken.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    run = work / "broken"
    seconds, printed = _execute(run, LAYOUTS["flat"], broken, competition, work, python)
    cells, faults = _judge(run / "working" / "submission.csv", competition)
    print(f"broken    run {seconds:.1f} s, {cells} cells")
    if cells or "SOMETHING WENT WRONG" not in printed:
        faults.append(f"broken: expected blank rows and a loud complaint, found {cells} cells:\n{printed}")
    return faults


def _execute(
    run: Path, places: Sequence[str], dataset: Path, competition: Path, work: Path, python: Path
) -> tuple[float, str]:
    """Seconds, and everything that the notebook printed.

    `places` are where dataset and competition are mounted. Raises KitError where a cell ends the notebook.
    """
    run = run.absolute()  # it is HOME in another folder
    source, working = run / "input", run / "working"
    working.mkdir(parents=True)
    for place, content in zip(places, (dataset, competition), strict=True):
        shutil.copytree(content, source / place, copy_function=_link)
    shutil.copyfile(work / "kernel" / NOTEBOOK, working / "notebook.ipynb")
    start = time.perf_counter()
    words = [
        *JAIL,
        sys.executable,
        str(ROOT / "kernel" / "sandbox.py"),
        str(source),
        str(working),
        str(python),
        "-c",
        EXECUTE,
    ]
    # A fresh session has no variables of ours.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(working), "LANG": "C.UTF-8"}
    code = subprocess.run(words, check=False, env=environment).returncode
    if code:
        raise KitError(f"{run.name}: expected the notebook to end well, found exit code {code}, see above")
    seconds = time.perf_counter() - start
    executed = json.loads((working / "executed.ipynb").read_text(encoding="utf-8"))
    outputs = (output for cell in executed["cells"] for output in cell.get("outputs", ()))
    return seconds, "".join("".join(output.get("text", "")) for output in outputs)


def _link(source: str, target: str) -> None:
    """A second name for a file, which costs nothing however large it is; a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _judge(submission: Path, competition: Path) -> tuple[int, list[str]]:
    """Rows with a cell, and what is wrong with a submission."""
    sizes = {file.id: image_size(file) for file in find_images([competition / "test"])}
    problems = check_submission(submission, sizes, list(sizes))
    cells = sum(bool(row.predicted) for row in read_submission(submission))
    return cells, [f"{submission}: line {p.line}: {p.message}" for p in problems]


if __name__ == "__main__":
    sys.exit(main())
