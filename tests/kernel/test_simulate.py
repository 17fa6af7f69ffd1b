"""The simulated machine: what it is told holds in the folder where the notebook runs, too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel import simulate
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
