"""The command line as a user meets it: a process, its exit code, its words."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from commands import sartorius
from detectron2_runs import SMALL, run_of, small_state, write_config, write_run
from places import ROOT
from tiny import tiny_model, write_image, write_tiny

from sartorius_infer.cli.main import main
from sartorius_infer.cli.predict import format_of
from sartorius_infer.output.predictions import load_prediction
from sartorius_infer.version import __version__

SHARED = ROOT.parent / "shared" / "data"


def one_line(stderr: str) -> str:
    """The error, which must be all there is on stderr."""
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(3):
        write_image(tmp_path / "images" / f"image{i}.png", seed=i)
    return tmp_path / "images"


def test_predict_then_check(tiny: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "submission.csv"
    code, stdout, stderr = sartorius(
        "--weights", tiny, "--images", images, "--out", out, "--views", "identity,hflip,rot90,scale:1.25",
        "--save-predictions", tmp_path / "saved", "--overlays", tmp_path / "pictures", "--edge", "drop",
    )  # fmt: skip
    assert code == 0
    assert re.match(
        r"images    3 in \d+\.\d s \(\d+\.\d\d images/s\)\ncells     \d+ \(a \d+, b \d+, c \d+\)\n", stdout
    )
    assert f"written   {out}" in stdout
    assert "3/3" in stderr
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {f"image{i}.png" for i in range(3)}
    prediction = load_prediction(tmp_path / "saved" / "image1.npz")
    assert prediction.size_hw == (64, 96)
    assert len(prediction) > 10
    code, stdout, _ = sartorius("check", "--submission", out, "--images", images)
    assert (code, stdout) == (0, f"{out}: no problems\n")


def test_one_failing_image_is_code_3_and_named(tiny: Path, images: Path, tmp_path: Path) -> None:
    (images / "image1.png").write_bytes((images / "image1.png").read_bytes()[:200])
    out = tmp_path / "s.csv"
    code, stdout, _ = sartorius("--weights", tiny, "--images", images, "--out", out)
    assert code == 3
    assert re.search(r"failed    1\n  image1: .*image1\.png", stdout)
    with out.open() as file:
        assert {"id": "image1", "predicted": ""} in list(csv.DictReader(file))


@pytest.mark.slow
def test_stop_is_code_1_and_leaves_the_earlier_file(tiny: Path, images: Path, tmp_path: Path) -> None:
    (images / "image1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "s.csv"
    out.write_text("earlier")
    code, _, stderr = sartorius("--weights", tiny, "--images", images, "--out", out, "--on-error", "stop")
    assert code == 1
    assert "image1.png" in stderr.splitlines()[-1]
    assert out.read_text() == "earlier"
    assert not list(tmp_path.glob(".s.csv*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--images", "nowhere"], "nowhere"),
        (["--images", "empty"], "empty: expected"),
        (["--images", "images", "--weights", "nothing.pth"], "nothing.pth: expected a checkpoint"),
        (["--images", "images", "--weights", "bad.json"], "bad.json: $.version"),
        (["--images", "images", "--out", "images"], "images"),
        (["--images", "images", "--sample-submission", "no.csv"], "no.csv"),
        (["--images", "images", "--device", "cuda:7"], "CUDA devices"),
        (["--images", "images", "--device", "abacus"], "abacus"),
        (["--images", "images", "--views", "sideways"], "sideways"),
        (["--images", "images", "--views", "hflip,hflip"], "view 'hflip': expected each view once"),
        (["--images", "images", "--plugin", "none.py"], "none.py"),
        (["--images", "images", "--save-predictions", "bad.json/x"], "bad.json"),
        ([], "--images"),
        (["models", "--weights", "nothing.pth"], "nothing.pth"),
        (["check", "--submission", "no.csv"], "no.csv"),
    ],
)
def test_bad_input_is_one_line_and_code_1(
    tmp_path: Path,
    words: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process, since each new one imports torch; a real process shows the same below."""
    write_bad_input(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(words) == 1
    assert expected in one_line(capfd.readouterr().err)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def write_bad_input(folder: Path) -> None:
    write_image(folder / "images" / "image0.png")
    (folder / "empty").mkdir()
    (folder / "bad.json").write_text('{"version": 7, "classes": ["a"], "models": []}')


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_bad_input_in_a_process_of_its_own(tmp_path: Path, name: str) -> None:
    write_bad_input(tmp_path)
    code, stdout, stderr = sartorius("--images", name, cwd=tmp_path)
    assert (code, stdout) == (1, "")
    assert name in one_line(stderr)


RULES = [
    "rules     from manifest, but for what is in brackets",
    "          score          min area         mask",
    "  a       0.05           20 (--min-area)  0.3",
    "  b       0.05           0 (default)      0.3",
    "  c       1.0 (--score)  0 (default)      0.3",
    "  all     consensus off (default), overlap survival 0.1, edge drop (--edge), paste exact (default)",
]
OPTIONS = ["--score", "c=1", "--min-area", "a=20", "--edge", "drop"]


def test_rules_of_the_command_line_hold_and_are_told(
    tiny: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same cells as by a file of the same rules, and by a manifest that has them."""
    rules = json.loads(tiny.read_text())["rules"] | {"edge": {"mode": "drop"}}
    rules["per_class"]["c"]["score"] = 1
    rules["per_class"]["a"]["min_area"] = 20
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    (tmp_path / "other.json").write_text(json.dumps(json.loads(tiny.read_text()) | {"rules": rules}))
    written = []
    for i, more in enumerate(([], OPTIONS, ["--rules", "rules.json"], ["--rules", "other.json"])):
        out = tmp_path / f"{i}.csv"
        more = [str(tmp_path / word) if word.endswith(".json") else word for word in more]
        assert main(["--weights", str(tiny), "--images", str(images), "--out", str(out), *more]) == 0
        written.append(out.read_bytes())
        told = capfd.readouterr().err.splitlines()
        if more == OPTIONS:
            assert told[:6] == RULES
        elif more:
            assert told[0] == f"rules     from --rules {Path(more[1]).name}, but for what is in brackets"
    assert written[1] == written[2] == written[3] != written[0]


def test_models_tells_the_rules_in_force(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--weights", str(tiny), *OPTIONS]) == 0
    assert capfd.readouterr().out.splitlines()[-7:] == ["", *RULES]
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "bare.pth")
    assert main(["models", "--weights", str(tmp_path / "bare.pth")]) == 0
    assert capfd.readouterr().out.splitlines()[-6:] == [
        "rules     by default",
        "          score  min area  mask",
        "  shsy5y  0.15   47        0.5",
        "  astro   0.35   107       0.5",
        "  cort    0.55   63        0.5",
        "  all     consensus off, overlap survival 0.5, edge rule, paste exact",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--score", "neuron=0.5"], "--score neuron=0.5: expected one of the classes a, b, c"),
        (["--score", "a=nan"], "--score a=nan: expected a number from 0 to 1"),
        (["--min-area", "a=1,b=-1"], "--min-area b=-1: expected a whole number of pixels"),
        (["--rules", "none.json"], "none.json: expected a readable JSON file"),
        (["--rules", "faulty.json"], "faulty.json: $.per_class.a.score: "),
        (["--rules", "foreign.json"], "foreign.json: neuron: expected one of the classes a, b, c"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "models"])
def test_bad_rules_are_one_line_and_code_1(
    tiny: Path,
    images: Path,
    tmp_path: Path,
    command: str,
    words: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "faulty.json").write_text('{"per_class": {"a": {"score": 3}}}')
    (tmp_path / "foreign.json").write_text('{"per_class": {"neuron": {}}}')
    monkeypatch.chdir(tmp_path)
    sources = ["--images", str(images)] if command == "predict" else []
    assert main([command, "--weights", str(tiny), *sources, *words]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert expected in one_line(err)
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize(
    "words",
    [
        *(["--score", text] for text in ("0.2", "a", "a=", "=0.2", "a=x", "a=0.2,a=0.2", "a=0.2,", "")),
        *(["--min-area", text] for text in ("a=1.5", "a=1e3", "a=nan")),
        ["--edge", "cut"],
    ],
)
def test_rules_that_cannot_be_read_are_a_matter_of_usage(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", *words])
    assert ended.value.code == 2
    assert f"error: argument {words[0]}: " in capfd.readouterr().err


IMPORT = ["import", "--checkpoint", "a.pth", "--out", "w"]


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["--nonsense"],
            ["--precision", "int3"],
            ["--batch-size", "0"],
            ["check"],
            ["--images"],
            ["modles"],
        ),
        *(["import"], IMPORT[:3], ["import", *IMPORT[3:]], [*IMPORT, "--classes", "a,,b"]),
    ],
)
def test_usage_is_code_2(words: list[str]) -> None:
    assert sartorius(*words)[0] == 2


@pytest.mark.parametrize(
    ("out", "said", "expected"),
    [
        ("s.csv", None, "kaggle"),
        ("S.CSV", "kaggle", "kaggle"),
        ("s.json", None, "coco"),
        ("a/b.c/s.Json", "coco", "coco"),
        ("s", None, "kaggle"),
        ("s", "coco", "coco"),
        ("/dev/stdout", None, "kaggle"),
        ("/dev/null", "coco", "coco"),
    ],
)
def test_the_suffix_of_out_tells_its_format(
    out: str, said: Literal["kaggle", "coco"] | None, expected: str
) -> None:
    assert format_of(Path(out), said) == expected


def test_a_pipe_may_have_any_suffix(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.pipe")
    assert format_of(tmp_path / "s.pipe", None) == "kaggle"
    assert format_of(tmp_path / "s.pipe", "coco") == "coco"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lab.tif"], "expected --out to end in .csv (kaggle), .json or .zip (coco), found lab.tif"),
        (
            ["lab.tif", "--format", "coco"],
            "expected --out to end in .csv (kaggle), .json or .zip (coco), found",
        ),
        (["s.csv.gz"], "found s.csv.gz"),
        (
            ["s.csv", "--format", "coco"],
            "--out s.csv would be --format kaggle: expected a name in .json for --format coco",
        ),
        (["x.json", "--format", "kaggle"], "expected a name in .csv for --format kaggle"),
    ],
)
def test_a_suffix_that_means_something_else_is_a_matter_of_usage(
    images: Path, words: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--images", str(images), "--out", *words])
    assert ended.value.code == 2
    assert expected in capfd.readouterr().err.splitlines()[-1]
    assert not Path(words[0]).exists()


def test_an_unknown_command_is_told_which_there_are() -> None:
    code, stdout, stderr = sartorius("modles", "--weights", "w")
    assert (code, stdout) == (2, "")
    names = "predict, import, models, check, score, show, tune"
    assert stderr.splitlines()[-1].endswith(f"error: expected one of {names}, or options, found 'modles'")


def test_the_version() -> None:
    for words in (["--version"], ["predict", "--version"]):
        assert sartorius(*words) == (0, f"sartorius_infer {__version__}\n", "")


def test_predict_is_a_word_for_the_bare_command(
    tiny: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = []
    for i, verb in enumerate(([], ["predict"])):
        out = tmp_path / f"{i}.csv"
        assert main([*verb, "--weights", str(tiny), "--images", str(images), "--out", str(out)]) == 0
        said.append(capfd.readouterr().out.splitlines()[1])
    assert said[0] == said[1]
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


@pytest.mark.parametrize("words", [[], ["predict"], ["models"], ["check"], ["import"]])
def test_help_is_code_0(words: list[str]) -> None:
    code, stdout, stderr = sartorius(*words, "--help")
    assert (code, stderr) == (0, "")
    assert "--" in stdout


@pytest.mark.slow
def test_coco_results_load_in_pycocotools(tiny: Path, images: Path, tmp_path: Path) -> None:
    pycoco = pytest.importorskip("pycocotools.coco")
    out = tmp_path / "results.json"
    code, _, _ = sartorius("--weights", tiny, "--images", images, "--out", out)
    assert code == 0
    truth = pycoco.COCO()
    truth.dataset = {
        "images": [{"id": f"image{i}", "height": 64, "width": 96} for i in range(3)],
        "categories": [{"id": i} for i in (1, 2, 3)],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes(json.loads(out.read_text()))
    assert len(results.anns) == len(json.loads(out.read_text())) > 5


@pytest.mark.slow
def test_a_bare_checkpoint_says_what_it_assumes(images: Path, tmp_path: Path) -> None:
    torch.save({"model": tiny_model().state_dict(), "epoch": 3}, tmp_path / "bare.pth")
    code, _, stderr = sartorius("--weights", tmp_path / "bare.pth", "--images", images / "image0.png",
                                "--out", tmp_path / "s.csv")  # fmt: skip
    assert code == 0
    assert "bare.pth: assumed ImageNet normalisation, resize 800/1333" in stderr
    code, stdout, _ = sartorius("models", "--weights", tmp_path / "bare.pth")
    assert code == 0
    for text in ("resnet18", "5 levels of 16 channels", "detection.per_image = 100", "sha256", "parameters"):
        assert text in stdout


# Detectron2.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training run's `model_final.pth` with its `config.yaml`."""
    return write_run(tmp_path / "run", content=run_of(small_state()))


def cells_of(stdout: str) -> int:
    found = re.search(r"^cells     (\d+) ", stdout, re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.slow
def test_a_detectron2_run_is_imported_and_predicts_what_it_predicted(
    run: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, stdout, stderr = sartorius(
        "import", "--checkpoint", run, "--config", run.with_name("config.yaml"),
        "--classes", "shsy5y, astro,cort", "--out", tmp_path / "weights",
    )  # fmt: skip
    assert (code, stderr) == (0, "")
    weights = tmp_path / "weights" / "model_final.safetensors"
    listing = weights.with_name("weights_manifest.json")
    sizes = f"{run.stat().st_size:,} -> {weights.stat().st_size:,}"
    assert stdout.splitlines() == [
        "classes   shsy5y, astro, cort",
        f"bytes     {sizes}",
        f"written   {weights}",
        f"          {listing}",
    ]
    outs: list[Path] = []
    for place in (run, run.parent, listing.parent):
        outs.append(tmp_path / f"{len(outs)}.csv")
        assert main(["--weights", str(place), "--images", str(images), "--out", str(outs[-1])]) == 0
        stdout, stderr = capfd.readouterr()
        assert cells_of(stdout) > 10
        bare = f"{run}: Detectron2, settings of config.yaml and, for " in stderr
        assert bare == (place != listing.parent)
    assert len({out.read_bytes() for out in outs}) == 1
    assert main(["check", "--submission", str(outs[0]), "--images", str(images)]) == 0


def test_models_describes_a_detectron2_run(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for weights in (run, run.parent):
        assert main(["models", "--weights", str(weights)]) == 0
        stdout, stderr = capfd.readouterr()
        assert stderr == ""
        for text in ("Detectron2 Mask R-CNN, R50-FPN", "rpn.nms = 0.7", "channel_order = bgr", "sha256"):
            assert text in stdout


def test_import_into_a_manifest(
    run: Path, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny.parent, tmp_path / "weights")
    listing = tmp_path / "weights" / "weights_manifest.json"
    words = ["import", "--checkpoint", str(run), "--out", str(tmp_path / "weights"), "--half"]
    assert main([*words, "--manifest", str(listing), "--name", "d2", "--classes", "b,c,other"]) == 0
    assert capfd.readouterr().err == ""
    assert [model["name"] for model in json.loads(listing.read_text())["models"]] == ["tiny", "d2"]
    assert main(["models", "--weights", str(listing)]) == 0
    assert "classes       background, b, c, other" in capfd.readouterr().out


def test_import_of_a_torchvision_checkpoint_says_what_it_assumes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "bare.pth")
    assert main(["import", "--checkpoint", str(tmp_path / "bare.pth"), "--out", str(tmp_path / "w")]) == 0
    stdout, stderr = capfd.readouterr()
    (line,) = stderr.splitlines()
    assert "assumed ImageNet normalisation, resize 800/1333" in line
    assert "classes   shsy5y, astro, cort" in stdout


BARE = "a Detectron2 checkpoint: expected config.yaml beside it, found none; Detectron2 writes one where"
ALONE = ["import", "--out", "w", "--checkpoint", "alone.pth"]
WHOLE = ["import", "--out", "w", "--checkpoint", "run/model_final.pth"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--images", "images", "--weights", "alone.pth"], f"alone.pth: {BARE}"),
        (["models", "--weights", "alone.pth"], f"alone.pth: {BARE}"),
        (ALONE, f"alone.pth: {BARE}"),
        ([*ALONE, "--config", "none.yaml"], "none.yaml: expected a Detectron2 config"),
        ([*ALONE, "--config", "images"], "images: expected a Detectron2 config"),
        ([*ALONE, "--config", "broken.yaml"], "broken.yaml: expected the YAML"),
        ([*ALONE, "--config", "tta.yaml"], "cannot honour TEST.AUG.ENABLED = True"),
        ([*WHOLE, "--classes", "a,b"], "expected 3 class names"),
        ([*WHOLE, "--name", "a/b"], "a/b: expected a name"),
        ([*WHOLE, "--manifest", "m.json"], "m.json: expected a manifest"),
        ([*WHOLE, "--out", "alone.pth"], "alone.pth"),
        ([*WHOLE, "--checkpoint", "nothing.pth"], "nothing.pth: expected a checkpoint file, found none"),
        ([*WHOLE, "--checkpoint", "run"], "run: expected a checkpoint file, found a folder"),
        ([*WHOLE, "--checkpoint", "evil.pkl"], "evil.pkl: expected tensors alone, found a pickle that needs"),
    ],
)
def test_a_bad_import_is_one_line_and_code_1(
    tmp_path: Path,
    run: Path,
    words: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_image(tmp_path / "images" / "image0.png")
    torch.save(small_state(), tmp_path / "alone.pth")
    write_config(tmp_path / "tta.yaml", SMALL | {"TEST.AUG.ENABLED": True})
    (tmp_path / "broken.yaml").write_text("MODEL: [")
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(words) == 1
    assert expected in one_line(capfd.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_detectron2_checkpoint_alone_in_a_process_of_its_own(tmp_path: Path) -> None:
    torch.save(small_state(), tmp_path / "model_final.pth")
    code, stdout, stderr = sartorius(
        "import", "--checkpoint", tmp_path / "model_final.pth", "--out", tmp_path / "w"
    )
    assert (code, stdout) == (1, "")
    assert BARE in one_line(stderr)


def test_check_lists_problems_with_code_1(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,predicted\na,1 5\na,3 1\nb,0 1\n")
    code, stdout, _ = sartorius("check", "--submission", path)
    assert code == 1
    assert stdout.splitlines()[-1] == f"{path}: {len(stdout.splitlines()) - 1} problems"


def test_the_competition_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    """The search itself has tests of its own; here only that the bare command starts it."""
    _, _, stderr = sartorius(cwd=tmp_path)
    assert "/kaggle/input" in stderr


@pytest.mark.slow
def test_killed_in_the_middle_an_earlier_file_stays(tiny: Path, images: Path, tmp_path: Path) -> None:
    for i in range(400):
        shutil.copy(images / "image0.png", images / f"copy{i}.png")
    out = tmp_path / "s.csv"
    out.write_text("earlier")
    words = ["--weights", str(tiny), "--images", str(images), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sartorius_infer", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    parts: list[Path] = []
    while process.poll() is None and not any(p.stat().st_size > 2000 for p in parts):
        time.sleep(0.05)
        parts = list(tmp_path.glob(".s.csv*"))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert out.read_text() == "earlier"


@pytest.mark.slow
def test_interrupted_leaves_nothing_behind(tiny: Path, images: Path, tmp_path: Path) -> None:
    for i in range(400):
        shutil.copy(images / "image0.png", images / f"copy{i}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "sartorius_infer", "--weights", str(tiny), "--images", str(images),
         "--out", str(tmp_path / "s.csv")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        # A shell's background jobs, tests among them, hand down that they ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while process.poll() is None and not any(p.stat().st_size > 2000 for p in tmp_path.glob(".s.csv*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted; nothing was written over"
    assert not list(tmp_path.glob("*s.csv*"))


@pytest.mark.slow
def test_a_network_cut_off_from_the_internet_predicts(tiny: Path, images: Path, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        pytest.skip("unshare -n is not allowed here")
    done = subprocess.run(
        [unshare, "-rn", sys.executable, "-m", "sartorius_infer",
         "--weights", str(tiny), "--images", str(images), "--out", str(tmp_path / "s.csv")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0


@pytest.mark.slow
def test_the_default_checkpoint_on_the_samples(tmp_path: Path) -> None:
    out = tmp_path / "submission.csv"
    code, stdout, _ = sartorius("--images", ROOT / "samples", "--out", out, cwd=tmp_path)
    assert code == 0
    cells = int(re.search(r"cells     (\d+)", stdout)[1])  # type: ignore[index]
    assert cells > 100
    code, stdout, _ = sartorius("check", "--submission", out, "--images", ROOT / "samples")
    assert code == 0, stdout


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the competition's images are not beside this checkout")
def test_the_default_checkpoint_on_the_public_test_images(tmp_path: Path) -> None:
    """Three images of shsy5y, cort and astro, as the competition mounts them."""
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,predicted\n7ae19de7bc2a,\nd48ec7815252,\nd8bfd1dafdc4,\n")
    out = tmp_path / "submission.csv"
    folder = SHARED / "public_test"
    code, stdout, _ = sartorius("--images", folder, "--sample-submission", sample, "--out", out)
    assert code == 0, stdout
    words = ["check", "--submission", out, "--images", folder, "--sample-submission", sample]
    assert sartorius(*words)[0] == 0


@pytest.mark.slow
def test_16_bit_images_give_what_their_8_bit_twins_give(tiny: Path, images: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    for path in images.iterdir():
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert cv2.imwrite(str(deep / f"{path.stem}.tif"), pixels.astype(np.uint16) * 257)
    for folder in (images, deep):
        assert (
            sartorius("--weights", tiny, "--images", folder, "--out", tmp_path / f"{folder.name}.csv")[0] == 0
        )
    assert (tmp_path / "images.csv").read_bytes() == (tmp_path / "deep.csv").read_bytes()
