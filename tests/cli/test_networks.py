"""Files of several networks at the command line: refused by their names, and one of them chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_factories import prefixed
from commands import sartorius
from safetensors.torch import load_file
from small import manifest, saved, small, small_state
from tiny import write_image
from torch import Tensor

from sartorius_infer.ensemble.importing import import_checkpoints
from sartorius_infer.ensemble.loading import load_ensemble


def silent() -> dict[str, Tensor]:
    """A network that finds nothing: its classifier says background."""
    state = {key: tensor.clone() for key, tensor in small_state().items()}
    state["roi_heads.box_predictor.cls_score.bias"][0] += 1000
    return state


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A file of a network and its average, neither under a known name, and an image."""
    write_image(tmp_path / "images" / "a.png")
    return saved(tmp_path / "run.pth", {"student": small_state(), "teacher_ema": {"module": silent()}})


def test_two_networks_are_one_line_and_code_1(run: Path) -> None:
    for words in (["--images", "images", "--weights"], ["models", "--weights"], ["import", "--out", "w"]):
        code, out, err = sartorius(*words, "run.pth", cwd=run.parent)
        assert (code, out) == (1, "")
        assert err == (
            "error: run.pth: expected one network, found two that differ: 'student', 'teacher_ema.module'; "
            "choose one as in run.pth::teacher_ema.module, or by `state` of a manifest entry\n"
        )


def test_a_name_chooses_what_a_run_predicts_with(run: Path) -> None:
    found = {}
    for name in ("student", "teacher_ema"):
        words = ["--images", "images", "--weights", f"run.pth::{name}", "--out", f"{name}.csv"]
        code, out, err = sartorius(*words, "--score", "shsy5y=0,astro=0,cort=0", cwd=run.parent)
        assert code == 0
        other = {"student": "teacher_ema.module", "teacher_ema": "student"}[name]
        assert f"run.pth: left out beside the network: {other} (another network)\n" in err
        found[name] = out.splitlines()[1].split()[1]
    assert found["teacher_ema"] == "0"
    assert int(found["student"]) > 0


def test_models_says_where_the_network_lay_and_what_was_left_out(run: Path) -> None:
    code, out, err = sartorius("models", "--weights", "run.pth::teacher_ema", cwd=run.parent)
    assert (code, err) == (0, "")
    assert (
        "\n  found under   teacher_ema.module, prefix none\n  left out      student (another network)\n"
        in out
    )
    assert out.startswith("run_teacher_ema\n  file          run.pth\n")


def test_what_lies_beside_is_one_line(tmp_path: Path) -> None:
    more = {"criterion.pos_weight": torch.ones(3), "side_head.weight": torch.ones(2, 2)}
    saved(tmp_path / "run.pth", prefixed(small_state(), "model.") | more)
    write_image(tmp_path / "images" / "a.png")
    code, _, err = sartorius("--weights", "run.pth", "--images", "images", cwd=tmp_path)
    assert code == 0
    said = [line for line in err.splitlines() if "left out" in line]
    assert said == [
        "WARNING: run.pth: left out beside the network: criterion.pos_weight (3 values), "
        "side_head.weight (4 values)"
    ]


def test_import_takes_the_one_that_is_named(run: Path) -> None:
    code, out, _ = sartorius(
        "import", "run.pth::student", "run.pth::teacher_ema", "--out", "w", cwd=run.parent
    )
    assert code == 0
    assert "written   w/run_student.safetensors" in out
    whole = load_file(run.parent / "w" / "run_student.safetensors")
    average = load_file(run.parent / "w" / "run_teacher_ema.safetensors")
    key = "roi_heads.box_predictor.cls_score.bias"
    assert torch.equal(whole[key], small_state()[key])
    assert torch.equal(average[key], silent()[key])
    models = json.loads((run.parent / "w" / "weights_manifest.json").read_text())["models"]
    assert [m["provenance"].split(",")[0] for m in models] == [
        "imported from run.pth::student",
        "imported from run.pth::teacher_ema",
    ]
    assert all("state" not in m for m in models)


# In Python, and in manifests.


def bias(weights: object) -> list[float]:
    ensemble = load_ensemble(weights, "cpu")  # type: ignore[arg-type]
    (member,) = ensemble.members
    found: Tensor = member.network.model.roi_heads.box_predictor.cls_score.bias  # type: ignore[attr-defined]
    return found.tolist()


def test_python_and_manifests_choose_alike(run: Path) -> None:
    key = "roi_heads.box_predictor.cls_score.bias"
    for name, state in (("student", small_state()), ("teacher_ema", silent()), ("module", silent())):
        assert bias(f"{run}::{name}") == bias([Path(f"{run}::{name}")]) == state[key].tolist()
        told = manifest(run.parent, {"file": "run.pth", "state": name})
        assert bias(told) == state[key].tolist()
        told.unlink()


def test_both_of_one_file_are_an_ensemble(run: Path) -> None:
    ensemble = load_ensemble([f"{run}::student", f"{run}::teacher_ema"], "cpu")
    assert [member.name for member in ensemble.members] == ["run_student", "run_teacher_ema"]


def test_a_name_for_every_file_of_a_folder(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folds"
    folder.mkdir()
    for number in range(2):
        (folder / f"fold{number}.pth").write_bytes(run.read_bytes())
    names = [member.name for member in load_ensemble(f"{folder}::student", "cpu").members]
    assert names == ["fold0_student", "fold1_student"]
    done = import_checkpoints([f"{f}::student" for f in sorted(folder.iterdir())], tmp_path / "w")
    assert [each.weights.name for each in done] == ["fold0_student.safetensors", "fold1_student.safetensors"]


def test_a_file_that_is_called_so_goes_first(tmp_path: Path) -> None:
    odd = saved(tmp_path / "run.pth::ema")
    key = "roi_heads.box_predictor.cls_score.bias"
    assert bias(odd) == small_state()[key].tolist()
    saved(tmp_path / "run.pth", {"ema": silent(), "swa": small().state_dict()})
    assert bias(odd) == small_state()[key].tolist()
    odd.unlink()
    assert bias(odd) == silent()[key].tolist()
