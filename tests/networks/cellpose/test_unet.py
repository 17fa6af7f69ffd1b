"""The U-Net against Cellpose's own answer at the real widths, and its keys and shapes."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest
import torch
from cellpose_cases import REFERENCE, needs_reference, small_state

from sartorius_infer.errors import CheckpointError
from sartorius_infer.networks.cellpose.unet import UNet, widths_of

WIDTHS = (32, 64, 128, 256)


def full_width() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_width", REFERENCE / "full_width.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_reference
def test_the_real_widths_give_cellpose_s_answer() -> None:
    rule, answer = full_width(), np.load(REFERENCE / "full_width.npz")
    network = UNet(WIDTHS).eval()
    state = network.state_dict()
    rule.fill(state)
    with torch.inference_mode():
        maps, style = network(torch.from_numpy(rule.INPUT))
    np.testing.assert_allclose(maps.numpy(), answer["y"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(style.numpy(), answer["style"], rtol=0, atol=1e-6)


@needs_reference
def test_keys_and_shapes_are_cellpose_s() -> None:
    lines = (REFERENCE / "full_width_keys.txt").read_text(encoding="utf-8").splitlines()
    said = {line.split(" ", 1)[0]: line.split(" ", 1)[1].rpartition(" ")[0] for line in lines}
    with torch.device("meta"):
        own = {key: str(tuple(t.shape)) for key, t in UNet(WIDTHS).state_dict().items()}
    assert own == {key: shape for key, shape in said.items() if not key.startswith("diam_")}


@pytest.mark.parametrize("widths", [(3,), (4, 6, 8), WIDTHS])
def test_widths_are_told_by_shapes(widths: tuple[int, ...]) -> None:
    assert widths_of(small_state(widths), "a") == widths


def test_a_missing_block_is_said() -> None:
    state = {k: t for k, t in small_state().items() if "res_down_1" not in k}
    with pytest.raises(CheckpointError, match=r"a: expected Cellpose's blocks .*, found \[0, 2\]"):
        widths_of(state, "a")


def test_the_mean_of_each_map_is_the_style_s_direction() -> None:
    network = UNet((4, 6)).eval()
    network.load_state_dict({k: t for k, t in small_state((4, 6)).items() if not k.startswith("diam_")})
    with torch.inference_mode():
        x = torch.randn(2, 2, 16, 8)
        maps, style = network(x)
        deepest = network.downsample["down"]["res_down_1"](
            torch.nn.functional.max_pool2d(network.downsample["down"]["res_down_0"](x), 2)
        )
    assert maps.shape == (2, 3, 16, 8)
    sums = deepest.sum(dim=(2, 3)).double()
    torch.testing.assert_close(style.double(), sums / (sums**2).sum(dim=1, keepdim=True).sqrt())
