"""Networks of the package from Detectron2's own settings and weights, and images for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from detectron2_oracle import Settings, State, calibrated, nested, with_settings
from places import SHARED

from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks.detectron2.config import Detectron2Config, read_config
from sartorius_infer.networks.detectron2.rcnn import ARCHITECTURE, Detectron2Network, build_detectron2
from sartorius_infer.types import UInt8

REFERENCE = SHARED / "reference" / "detectron2"
"""What Detectron2 itself made; its README.md tells of it."""


def picture(shape: tuple[int, ...], seed: int = 0) -> UInt8:
    """Smooth noise of high contrast: gray (H, W), or colour (H, W, 3)."""
    noise = np.random.default_rng(seed).normal(128, 300, shape)
    return np.clip(cv2.GaussianBlur(noise, (7, 7), 1.5), 0, 255).astype(np.uint8)


def write_config(path: Path, settings: Settings) -> Path:
    """The settings as the file that Detectron2 writes."""
    path.write_text(yaml.safe_dump(nested(settings)))
    return path


def config_of(settings: Settings, folder: Path) -> Detectron2Config:
    return read_config(write_config(folder / "config.yaml", settings))


def spec_of(config: Detectron2Config, file: str = "network.pth") -> ModelSpec:
    return ModelSpec(
        name="network",
        file=file,
        architecture=ARCHITECTURE,
        preprocessing=config.preprocessing,
        detectron2=config.parts,
    )


def network_of(settings: Settings, state: State, folder: Path) -> Detectron2Network:
    return build_detectron2(spec_of(config_of(settings, folder)), dict(state), torch.float32)


def write_network(folder: Path, settings: Settings, state: State, name: str = "network") -> Path:
    """A checkpoint as Detectron2's trainer leaves it, its config beside it under the same name."""
    write_config(folder / f"{name}.yaml", settings)
    path = folder / f"{name}.pth"
    torch.save({"model": state, "iteration": 9999}, path)
    return path


def settings_and_state(
    parts: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Settings, State]:
    """Settings of a small network, and its weights: `parts` decide them, `options` what they are used for."""
    return with_settings({**(parts or {}), **(options or {})}), dict(_state(json.dumps(parts or {})))


@cache
def _state(parts: str) -> State:
    return calibrated(with_settings(json.loads(parts)), picture((88, 120)))
