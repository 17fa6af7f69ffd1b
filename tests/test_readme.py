"""What the documents claim, as far as a test can hold them to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from readmes import README, RUN, SLOW, Block, Command, blocks, run, write_world

import sartorius_infer
from sartorius_infer.manifest.manifest import parse_manifest
from sartorius_infer.manifest.rules import Rules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BLOCKS = blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
JSON = [block for block in BLOCKS if block.language == "json"]
SHELL = [block for block in BLOCKS if block.language in ("", "sh", "bash", "console")]

OTHERS = "ignore:__array__ implementation:DeprecationWarning"
"""What pycocotools does to numpy when it decodes."""

OPTIONAL = {"supervision": "no dependency; README shows it to those who have it"}


def test_how_a_document_is_read() -> None:
    text = (
        "A\n```\nbin/python -m x --t 'a b' \\\n  -o c  # why\npip install .\n```\n```console\n$ python y.py\n"
    )
    text += "written   z\n\npython   no command\n$ kaggle x\n```\n```python\nx = 1\n```\n"
    first, second, third = blocks(text)
    assert [(b.line, b.language) for b in (first, second, third)] == [(3, ""), (8, "console"), (15, "python")]
    assert first.commands == [
        Command(("python", "-m", "x", "--t", "a b", "-o", "c")),
        Command(("pip", "install", ".")),
    ]
    typed, excused = second.commands
    assert (typed.words, typed.labels) == (("python", "y.py"), ["written", "python"])
    assert [bool(c.excuse) for c in (*first.commands, typed, excused)] == [False, True, False, True]
    assert third.text == "x = 1\n"


def test_every_block_is_run_or_read() -> None:
    """A language of its own would need a test of its own; `text` is for what nobody runs."""
    texts = [block for block in BLOCKS if block.language == "text"]
    assert len(BLOCKS) == len(PYTHON) + len(JSON) + len(SHELL) + len(texts)
    assert PYTHON and JSON and SHELL


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.id)
def test_every_command_is_run_or_excused(block: Block) -> None:
    assert block.commands
    for command in block.commands:
        assert command.excuse or command.words[0] in RUN, f"neither run nor excused: {command}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def _marked(block: Block) -> Any:
    slow = any(word in str(command) for command in block.commands if not command.excuse for word in SLOW)
    return pytest.param(block, id=block.id, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("block", [_marked(b) for b in SHELL if not all(c.excuse for c in b.commands)])
def test_the_commands_of_a_block_run_in_order(block: Block, world: Path, tmp_path: Path) -> None:
    """In a fresh folder of small inputs; what README shows of the output has the same labels."""
    here = shutil.copytree(world, tmp_path / "world")
    for command in block.commands:
        if command.excuse:
            continue
        done = run(command, here)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.words[0] != "make":
            said = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
            assert [label for label in command.labels if label not in said] == []


@pytest.fixture(scope="module")
def endings(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """How each Python block ended: None, or the traceback."""
    here = tmp_path_factory.mktemp("blocks") / "world"
    shutil.copytree(world, here)
    result = here.parent / "result.json"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", OTHERS, str(ROOT / "tests" / "readme_blocks.py"), str(result)],
        input=json.dumps([block.text for block in PYTHON]), text=True, capture_output=True, cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended: list[str | None] = json.loads(result.read_text())
    return ended


@pytest.mark.parametrize("number", range(len(PYTHON)), ids=[block.id for block in PYTHON])
def test_the_python_blocks_run(number: int, endings: list[str | None]) -> None:
    error = endings[number]
    for name, why in OPTIONAL.items():
        if error and error.endswith(f"No module named '{name}'\n"):
            pytest.skip(f"{name}: {why}")
    assert error is None, error


@pytest.mark.parametrize("block", JSON, ids=lambda block: block.id)
def test_the_json_examples_are_valid(block: Block) -> None:
    content = json.loads(block.text)
    if "models" in content:
        parse_manifest(block.text, Path("README.md"))
    else:
        Rules.model_validate_json(block.text)


def test_each_dependency_has_its_line() -> None:
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["lab"]
    names = {re.split(r"[<>=!]", requirement)[0] for requirement in wanted}
    section = README.split("## Dependencies, and why")[1].split("\n## ")[0]
    table = set(re.findall(r"^\| ([a-z-]+) \| .+ \|$", section, re.M)) - {"package"}
    assert table == names


def test_the_lock_pins_every_dependency_exactly_and_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    for pin in re.findall(r"^\w.+?(?=^\w|\Z)", lock, re.M | re.S):
        assert re.fullmatch(r"[\w.-]+==[\w.]+ \\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n)+", pin), pin
    extras = PROJECT["optional-dependencies"]
    for requirement in PROJECT["dependencies"] + extras["lab"] + extras["dev"]:
        name = re.split(r"[<>=!]", requirement)[0]
        assert re.search(rf"^{name.lower()}==[0-9.post]+ ", lock, re.M), name


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
