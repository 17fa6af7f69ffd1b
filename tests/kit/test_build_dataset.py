"""`build_dataset.py` as it is typed: what it writes, what it says, its exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kits import any_weights, contents, kaggle_environment, pack_quickly, read_json, wheels_from_here
from places import ROOT
from tiny import loose_rules, tiny_model, write_image, write_tiny

import build_dataset
from kernel import simulate
from kit import dataset
from kit.costs import Calibration, write_calibration
from kit.dataset import CONTENTS, METADATA
from kit.notebook import NOTEBOOK, write_kernel
from kit.scoring import score
from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import TruthError
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image

ID = "someone/sartorius-kit"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels_from_here(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of one file, in two views."""
    folder = tmp_path_factory.mktemp("trained")
    path = write_tiny(folder, tiny_model(), views=["identity", "hflip"])
    content = read_json(path)
    content["models"] = [content["models"][0] | more for more in ({"weight": 2}, {"name": "second"})]
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def said(
    manifest: Path,
    wheels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Run it here, with small weights and ready wheels: (exit code, stdout, stderr)."""
    pack_quickly(monkeypatch, wheels)
    monkeypatch.setattr(dataset, "_stored", any_weights)

    def run(*words: str | Path, out: str = "kit") -> tuple[int, str, str]:
        given = ["--manifest", manifest, "--out", tmp_path / out, "--id", ID]
        code = build_dataset.main([*map(str, given), *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def one_line(stderr: str) -> str:
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.slow
def test_everything_in_one_go(
    manifest: Path, wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its own wheel built, the missing one fetched by pip, and the result checked and installed."""
    out, kernel = tmp_path / "dist" / "kit", tmp_path / "dist" / "kernel"
    words = ["--manifest", manifest, "--out", out, "--id", ID, "--wheels", wheels, "--kernel-out", kernel]
    assert build_dataset.main([*map(str, words), "--store", "int8", "--title", "My cells"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    size = (out / "tiny.safetensors").stat().st_size
    before = (manifest.parent / "tiny.safetensors").stat().st_size
    total = sum(map(len, contents(out).values()))
    assert printed.splitlines() == [
        f"network   tiny: {before:,} -> {size:,} bytes as int8, {before - size:,} saved",
        f"network   second: {before:,} -> {size:,} bytes as int8, {before - size:,} saved",
        f"storage   {total / 1e9:.3f} of 20 GB",
        f"written   {out}",
        f"          {kernel}",
        f"next      kaggle datasets create -p {out} -r zip",
        f'  later   kaggle datasets version -p {out} -r zip -m "what changed"',
        f"  then    kaggle kernels push -p {kernel}",
    ]
    assert read_json(out / METADATA) == {"title": "My cells", "id": ID, "licenses": [{"name": "other"}]}
    assert len(list(out.glob("*.whl"))) == 2
    assert build_dataset.main(["--verify", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: complete, unchanged, and it installs\n"
    (out / "tiny.safetensors").write_bytes(b"cut")
    assert build_dataset.main(["--verify", str(out)]) == 1
    assert one_line(capsys.readouterr().err).startswith(f"{out}/tiny.safetensors: expected ")


def in_a_process(cwd: Path, *words: str) -> tuple[int, str, str]:
    """The script from another folder than its own, as `python .../build_dataset.py`."""
    run = [sys.executable, "-W", "error", str(ROOT / "build_dataset.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, capture_output=True, text=True, cwd=cwd, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_every_path_may_be_relative(single: Path, wheels: Path, tmp_path: Path) -> None:
    """To the folder where it runs, for every option that takes one."""
    annotated(tmp_path, single)
    shutil.copytree(single.parent, tmp_path / "trained")
    shutil.copytree(wheels, tmp_path / "wheels")
    (tmp_path / "here").mkdir()
    words = [
        *("--manifest", "../trained/single.json", "--out", "dist/kit", "--wheels", "../wheels"),
        *("--kernel-out", "dist/kernel", "--calibrate", "../images", "--calibration", "kept.json"),
        *("--truth", "../train.csv", "--truth-images", "../images", "--device", "cpu", "--id", ID),
    ]
    code, printed, errors = in_a_process(tmp_path / "here", *words)
    assert (code, errors) == (0, "")
    assert "written   dist/kit\n          dist/kernel\n" in printed
    assert {p.name for p in (tmp_path / "here").iterdir()} == {"dist", "kept.json"}
    assert {p.name for p in (tmp_path / "here" / "dist").iterdir()} == {"kit", "kernel"}
    code, printed, errors = in_a_process(tmp_path / "here", "--verify", "dist/kit")
    assert (code, printed, errors) == (0, "dist/kit: complete, unchanged, and it installs\n", "")


def test_a_dataset_installs_by_a_relative_path(
    said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said()
    monkeypatch.chdir(tmp_path)
    assert build_dataset.main(["--verify", "kit"]) == 0
    assert capsys.readouterr().out == "kit: complete, unchanged, and it installs\n"


def test_the_slug_is_the_title_and_halves_are_the_store(said: Any, tmp_path: Path) -> None:
    code, _, _ = said()
    assert code == 0
    assert read_json(tmp_path / "kit" / METADATA)["title"] == "sartorius-kit"
    assert read_json(tmp_path / "kit" / CONTENTS)["store"] == "float16"


def test_over_the_limit_of_bytes_is_code_1_with_what_to_drop(said: Any, tmp_path: Path) -> None:
    _, printed, _ = said()
    size = sum(map(len, contents(tmp_path / "kit").values()))
    for spare, code, drops in ((0, 0, None), (-1, 1, "network second"), (-1001, 1, "nothing helps")):
        found, printed, errors = said("--limit-gb", f"{(size + spare) / 1e9:.9f}")
        assert (found, errors) == (code, "")
        told = re.search(r"over the limit; to fit, leave out (.*)", printed)
        assert (told and told[1]) == drops
        assert "next      kaggle datasets create" in printed


def kept(path: Path, names: tuple[str, ...] = ("tiny", "second"), seconds: float = 15.0) -> Path:
    looks = tuple((name, view, seconds) for name in names for view in ("identity", "hflip"))
    write_calibration(path, Calibration("a card", 4, looks))
    return path


def test_over_the_limit_of_hours_is_code_1_with_what_to_drop(said: Any, tmp_path: Path) -> None:
    path = kept(tmp_path / "calibration.json")
    code, printed, _ = said("--calibration", path)
    assert code == 0
    assert "time      tiny, identity: 15.000 s an image on a card" in printed
    assert "240 images on 1 such device(s): 4.00 of 9 h" in printed
    assert "over the limit" not in printed
    for words, drops in (
        (("--limit-hours", "3"), "view hflip"),
        (("--limit-hours", "1.5"), "view hflip, network second"),
        (("--limit-hours", "0.5"), "nothing helps"),
        (("--test-images", "600"), "view hflip"),
    ):
        code, printed, _ = said("--calibration", path, *words)
        assert code == 1
        assert f"over the limit; to fit, leave out {drops}\n" in printed
    assert said("--calibration", path, "--test-images", "600", "--devices", "2")[0] == 0


def test_both_limits_are_told_at_once(said: Any, tmp_path: Path) -> None:
    path = kept(tmp_path / "calibration.json")
    for words, count in ((("--limit-gb", 0), 1), (("--limit-gb", 0, "--limit-hours", 0.1), 2)):
        code, printed, _ = said("--calibration", path, *words)
        assert code == 1
        assert printed.count("over the limit") == count


def test_a_calibration_of_other_networks_is_refused(said: Any, tmp_path: Path) -> None:
    path = kept(tmp_path / "calibration.json", ("tiny", "third"))
    code, printed, errors = said("--calibration", path)
    assert (code, printed) == (1, "")
    assert one_line(errors) == f"{path}: expected a calibration of this manifest, found that of another"
    assert not (tmp_path / "kit").exists()


@pytest.mark.slow
def test_calibrating_measures_here_and_keeps_it(said: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    path = tmp_path / "calibration.json"
    words = ["--calibrate", tmp_path / "images", "--device", "cpu", "--calibration", path]
    code, printed, _ = said(*words)
    assert code == 0
    looks = read_json(path)["looks"]
    assert [look[:2] for look in looks] == [[n, v] for n in ("tiny", "second") for v in ("identity", "hflip")]
    for name, view, seconds in looks:
        assert f"time      {name}, {view}: {seconds:.3f} s an image on " in printed
    assert said("--calibration", path)[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--id", "someone/kit"], "--id: expected USER/SLUG"),
        (["--id", "sartorius-kit"], "--id: expected USER/SLUG"),
        (["--title", "x" * 51], "--title: expected 6 to 50 characters, found 51"),
        (["--licence", "MIT"], "--licence: expected one of CC0-1.0"),
        (["--manifest", "none.json"], "none.json: expected a readable JSON file"),
        (["--calibration", "none.json"], "none.json: expected a calibration"),
        (["--calibrate", "nowhere"], "nowhere: expected an image or a folder"),
        (["--truth", "train.csv"], "expected --truth and --truth-images together, found one"),
        (["--calibrate", "nowhere", "--device", "abacus"], "device: expected auto, cpu, cuda"),
        (["--verify", "nowhere"], "nowhere/CONTENTS.json: expected the list of a dataset"),
    ],
)
def test_bad_input_is_one_line_and_code_1_and_nothing_is_written(
    said: Any, tmp_path: Path, words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, errors = said(*words)
    assert (code, printed) == (1, "")
    assert one_line(errors).startswith(expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["--store", "int4"], ["--devices", "0"], ["--test-images", "-1"], ["--limit-gb", "much"], ["kit"]],
)
def test_usage_is_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_dataset.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_help_in_a_process_of_its_own(tmp_path: Path) -> None:
    """From another folder: the script finds its project."""
    words = [sys.executable, "-W", "error", str(ROOT / "build_dataset.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--store {float32,float16,int8}" in done.stdout


@pytest.fixture
def single(manifest: Path) -> Path:
    """The first network in one view."""
    content = read_json(manifest)
    path = manifest.with_name("single.json")
    path.write_text(json.dumps(content | {"models": content["models"][:1], "views": ["identity"]}))
    return path


def annotated(folder: Path, manifest: Path) -> tuple[Path, Path]:
    """Two images, and as their truth what the network finds in them."""
    ensemble = load_ensemble([manifest], torch.device("cpu"))
    lines = ["id,annotation,width,height,cell_type"]
    for i in range(2):
        write_image(folder / "images" / f"image{i}.png", seed=i)
    for file in find_images([folder / "images"]):
        (prediction,) = predict(ensemble, [read_image(file)])
        cells = build_instances(prediction, ensemble.manifest.rules, ensemble.classes)
        assert len(cells) > 2
        lines += [f"{file.id},{rle},96,64,a" for rle in encode_label_map(cells.label_map, len(cells))]
    (folder / "train.csv").write_text("\n".join([*lines, "other,1 1,96,64,a\n"]))
    return folder / "images", folder / "train.csv"


def test_the_score_of_a_network_on_its_own_findings_is_1(single: Path, tmp_path: Path) -> None:
    images, truth = annotated(tmp_path, single)
    assert score(single, images, truth, torch.device("cpu")) == 1.0
    write_image(images / "unknown.png")
    with pytest.raises(TruthError, match=r"train.csv: expected truth of every image, found none of unknown$"):
        score(single, images, truth, torch.device("cpu"))


@pytest.mark.slow
def test_what_storing_costs_is_told_in_points(
    manifest: Path,
    wheels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, truth = annotated(tmp_path, manifest)
    pack_quickly(monkeypatch, wheels)
    for store, lost in (("float32", 0.0), ("int8", 0.9)):
        words = ["--manifest", manifest, "--out", tmp_path / "kit", "--id", ID, "--store", store]
        words += ["--truth", truth, "--truth-images", images, "--device", "cpu"]
        assert build_dataset.main([str(word) for word in words]) == 0
        told = re.search(rf"score     1.0000 -> (.*) \((.*)\) as {store}", capsys.readouterr().out)
        assert told is not None
        assert float(told[2]) == pytest.approx(float(told[1]) - 1)
        assert float(told[1]) >= 1 - lost


def test_the_kernel_knows_its_dataset(tmp_path: Path) -> None:
    write_kernel(tmp_path / "kernel", ID)
    metadata = read_json(tmp_path / "kernel" / "kernel-metadata.json")
    assert metadata["id"] == "someone/sartorius-kit-submit"
    assert metadata["title"] == "sartorius kit submit"
    assert metadata["dataset_sources"] == [ID]
    assert metadata["competition_sources"] == ["sartorius-cell-instance-segmentation"]
    assert (metadata["enable_internet"], metadata["enable_gpu"]) == ("false", "true")
    assert metadata["code_file"] == NOTEBOOK
    assert (tmp_path / "kernel" / NOTEBOOK).read_bytes() == (ROOT / "kernel" / NOTEBOOK).read_bytes()
    write_kernel(tmp_path / "kernel", ID)


@pytest.mark.parametrize("slug", ["k" * 50, "k" * 42 + "-" + "k" * 7, "sartorius-1-2"])
def test_kernel_titles_become_their_slugs_and_are_short_enough(tmp_path: Path, slug: str) -> None:
    """Kaggle takes 50 characters, and makes the slug of a title itself."""
    write_kernel(tmp_path, f"someone/{slug}")
    metadata = read_json(tmp_path / "kernel-metadata.json")
    assert 5 <= len(metadata["title"]) <= 50
    assert metadata["id"] == f"someone/{metadata['title'].replace(' ', '-')}"


def test_a_kernel_needs_a_folder_of_its_own(said: Any, tmp_path: Path) -> None:
    before = contents(ROOT / "kernel")
    places = {ROOT / "kernel": "the notebook's source", tmp_path / "kit" / "kernel": "one in the dataset"}
    for place, found in places.items():
        code, _, errors = said("--kernel-out", place)
        assert code == 1
        assert one_line(errors) == f"{place}: expected a folder of its own, found {found}"
    assert contents(ROOT / "kernel") == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dataset_is_proved_in_the_simulated_machine(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that finds cells, and one whose rules let none through."""
    pack_quickly(monkeypatch, wheels)
    if subprocess.run([*simulate.JAIL, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    python = kaggle_environment(tmp_path / "kaggle")
    monkeypatch.setattr(simulate, "prepare", lambda: python)
    for name, rules, expected in (("good", loose_rules(), 0), ("strict", loose_rules(1.0), 1)):
        manifest = write_tiny(tmp_path / name, rules=rules)
        words = ["--manifest", manifest, "--out", tmp_path / "dist" / name, "--id", ID, "--prove"]
        code = build_dataset.main([*map(str, words)])
        printed = capsys.readouterr().out
        assert code == expected, printed
        assert re.search(r"^proof +installed after [\d.]+ s, ready after [\d.]+ s, run ", printed, re.M)
        assert ("proof: expected cells and no complaint, found 0 cells" in printed) == (name == "strict")
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == ["good", "strict"]


def test_a_proof_needs_namespaces(said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before anything is built."""
    monkeypatch.setenv("PATH", str(tmp_path))
    code, printed, errors = said("--prove")
    assert (code, printed) == (1, "")
    assert one_line(errors) == "--prove: expected Linux with `unshare` and user namespaces, found none"
    assert not (tmp_path / "kit").exists()
