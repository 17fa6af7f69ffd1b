"""What the documents claim, as far as a test can hold them to it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

import sartorius_infer
from sartorius_infer.manifest.manifest import Manifest

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def fenced(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.S)
    assert found is not None
    return found[1]


def test_the_manifest_example_is_valid() -> None:
    manifest = Manifest.model_validate_json(fenced("json"))
    assert len(manifest.models) == 2


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", fenced("python")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list((ROOT / "samples").glob("*.tif")))


def test_each_dependency_has_its_line() -> None:
    names = {re.split(r"[<>=!]", requirement)[0] for requirement in PROJECT["dependencies"]}
    section = README.split("## Dependencies, and why")[1].split("\n## ")[0]
    table = set(re.findall(r"^\| ([a-z-]+) \| .+ \|$", section, re.M)) - {"package"}
    assert table == names


def test_the_lock_pins_every_dependency_exactly() -> None:
    lock = (ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    for requirement in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        name = re.split(r"[<>=!]", requirement)[0]
        assert re.search(rf"^{name.lower()}==[0-9.post]+$", lock, re.M), name


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_public_names_are_these() -> None:
    assert sorted(sartorius_infer.__all__) == sorted(
        [
            *("CellImage", "Ensemble", "Instances", "Prediction", "Rules", "SartoriusError", "__version__"),
            *("build_instances", "check_submission", "find_images", "load_ensemble", "load_prediction"),
            *("looks_of_found", "looks_of_predictions", "match_overlay", "open_writer", "overlay", "predict"),
            *("read_found", "read_image", "read_truth", "register_network", "report", "resolve_device"),
            *("score", "tune"),
        ]
    )
    for name in sartorius_infer.__all__:
        assert getattr(sartorius_infer, name).__doc__ or name == "__version__", name


def test_the_default_manifest_lists_the_weights_beside_it() -> None:
    manifest = json.loads((ROOT / "weights_manifest.json").read_text())
    assert {m["file"] for m in manifest["models"]} == {
        str(p.relative_to(ROOT)) for p in (ROOT / "weights").glob("*.safetensors")
    }


def test_names_that_do_not_exist_are_attribute_errors() -> None:
    try:
        sartorius_infer.nonsense  # noqa: B018
    except AttributeError as error:
        assert "nonsense" in str(error)
    else:
        raise AssertionError
