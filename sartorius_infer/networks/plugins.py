"""Loading a plugin file: Python code of the user's own, run only when `--plugin` names it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from sartorius_infer.errors import CheckpointError


def load_plugin(path: Path) -> None:
    """Run a Python file, which is to call `sartorius_infer.register_network`.

    Raises CheckpointError, naming the file, if it is missing or fails.
    """
    if not path.is_file() or path.suffix != ".py":
        raise CheckpointError(f"{path}: expected a Python file (.py) that registers a network, found none")
    spec = importlib.util.spec_from_file_location(f"sartorius_infer_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise CheckpointError(f"{path}: expected a Python file, found one that cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a plugin may fail in any way
        raise CheckpointError(f"{path}: the plugin failed: {type(error).__name__}: {error}") from error
