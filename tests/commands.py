"""Commands as people type them: processes of their own, in which warnings are errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from places import ROOT


class Done(NamedTuple):
    """How a process ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def python(module: str, *words: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Done:
    """`python -m module words`; whatever fails, no traceback is shown."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, *map(str, words)],
        capture_output=True, encoding="utf-8", cwd=cwd, check=False,
        env=os.environ | {"PYTHONPATH": paths} | (env or {}),
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def sartorius(*words: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Done:
    """The package's command."""
    return python("sartorius_infer", *words, cwd=cwd, env=env)
