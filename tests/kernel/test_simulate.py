"""The simulated machine: what it is told holds in the folder where the notebook runs, too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel import simulate
from kit.errors import KitError
from kit.notebook import NOTEBOOK


def test_relative_folders_become_absolute_before_the_notebook_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is started, and HOME is read, from /kaggle/working."""
    runs: list[tuple[list[str], dict[str, Any]]] = []

    def run(words: list[str], **options: Any) -> SimpleNamespace:
        runs.append((words, options))
        if "env" in options:
            working = Path(options["env"]["HOME"])
            (working / "executed.ipynb").write_text(json.dumps({"cells": [{"outputs": [{"text": "done"}]}]}))
        elif "venv" in words:
            Path(words[-1]).mkdir()
        return SimpleNamespace(returncode=0, stdout="3.12\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    for name in ("work/kernel", "dataset", "competition"):
        Path(name).mkdir(parents=True)
    (Path("work/kernel") / NOTEBOOK).write_text("{}")
    python = simulate.make_environment(Path("venv"), "python3.12")
    assert python == tmp_path / "venv" / "bin" / "python"
    work = Path("work")
    places = simulate.LAYOUTS["flat"]
    found = simulate._execute(work / "flat", places, Path("dataset"), Path("competition"), work, python)
    assert found[1] == "done"
    words, options = runs[-1]
    assert options["env"]["HOME"] == str(tmp_path / "work" / "flat" / "working")
    assert [word for word in words if "/" in word and not word.startswith("/")] == []


def test_a_notebook_that_does_not_end_well_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without namespaces `unshare` itself fails, which is told no other way."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare here")
    for name in ("kernel", "dataset", "competition"):
        (tmp_path / name).mkdir()
    (tmp_path / "kernel" / NOTEBOOK).write_text("{}")
    places = simulate.LAYOUTS["flat"]
    monkeypatch.setattr(simulate, "EXECUTE", "raise SystemExit(3)")
    with pytest.raises(KitError, match=r"^proof: expected the notebook to end well, found exit code \d+"):
        simulate._execute(
            tmp_path / "proof", places, tmp_path / "dataset", tmp_path / "competition", tmp_path,
            Path(sys.executable),
        )  # fmt: skip


@pytest.mark.slow
def test_packages_that_pip_cannot_get_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "ENVIRONMENT", tmp_path / "venv")
    monkeypatch.setattr(simulate, "JAIL", ("true",))
    monkeypatch.setattr(simulate, "_kaggle_python", lambda: sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(KitError, match=r"^--prove: expected .*venv with Kaggle's packages; pip could not"):
        simulate.prepare()
    assert not (tmp_path / "venv" / "packages.json").exists()
