"""Networks in bfloat16 on a CPU, which emulates it where it has no instructions: float32 but for rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks.cpu.test_arithmetic import BODIES, HEADS, kinds, made, outputs, settled
from places import SAMPLES
from tiny import tiny_model, write_image, write_tiny
from torch import Tensor, nn

from sartorius_infer.cells.rle import split_label_map
from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.evaluate.metric import score_image
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.networks.cpu.arithmetic import halve
from sartorius_infer.networks.deformable import DeformableConv3x3
from sartorius_infer.networks.pyramid import PyramidNetwork
from sartorius_infer.networks.roi_align import Rois, pool_rois

pytestmark = pytest.mark.usefixtures("one_thread")


def rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def in_bf16(model: nn.Module) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return [tensor.float() for tensor in outputs(model)]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_weights_rounded_once_are_as_near_to_float32_as_those_rounded_at_each_call(
    body: str, heads: str
) -> None:
    """A step of bfloat16 is 0.4 % of a value; the roundings of tens of layers add up as their root."""
    model = settled(made(body, heads))
    exact, at_each_call = outputs(model), in_bf16(model)
    halve(model)
    once = [rms(one - true) / rms(true) for one, true in zip(in_bf16(model), exact, strict=True)]
    each = [rms(one - true) / rms(true) for one, true in zip(at_each_call, exact, strict=True)]
    assert 0 < max(once) < 0.03
    assert np.mean(once) < 1.2 * np.mean(each)


def test_what_moves_taps_stays_in_float32() -> None:
    torch.manual_seed(0)
    conv = DeformableConv3x3(8, 8, deformable_groups=2, modulated=True)
    model = nn.Sequential(conv, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)).eval().requires_grad_(False)
    x = torch.randn(1, 8, 12, 16)
    expected = model(x)
    halve(model)
    dtypes = {name: values.dtype for name, values in model.state_dict().items()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == {"2.weight", "2.bias"}
    with torch.autocast("cpu", torch.bfloat16):
        assert rms(model(x) - expected) < 0.01 * rms(expected)


@pytest.mark.parametrize("ratio", [0, 2])
def test_rois_are_summed_in_float32(ratio: int) -> None:
    torch.manual_seed(ratio)
    maps = [torch.randn(2, 5, 24 // 2**level, 40 // 2**level).bfloat16() for level in range(2)]
    corners = torch.rand(2, 9, 2, 2) * torch.tensor([160.0, 96.0])
    boxes = list(torch.cat((corners.amin(dim=2), corners.amax(dim=2)), dim=2))
    levels = torch.arange(18) % 3  # the last lies beyond the maps
    half, full = (
        pool_rois(Rois(some, [1 / 4, 1 / 8], levels, boxes), 7, ratio)
        for some in (maps, [level.float() for level in maps])
    )
    assert full.dtype == torch.float32 and full.any()
    torch.testing.assert_close(half, full.bfloat16(), rtol=0, atol=0)


def network(manifest: Path, precision: str) -> PyramidNetwork:
    found = load_ensemble(manifest, "cpu", precision).members[0].network
    assert isinstance(found, PyramidNetwork)
    return found


@torch.inference_mode()
def test_what_comes_out_is_float32(tmp_path: Path) -> None:
    half = network(write_tiny(tmp_path), "bf16")
    assert not kinds(half)["BatchNorm2d"]
    features = half.features([torch.randint(0, 255, (1, 64, 96), dtype=torch.uint8)])
    proposals = half.propose(features)
    (found,) = half.detect(features, proposals)
    masks = half.mask_probabilities(features, [found.boxes], [found.labels])
    assert {level.dtype for level in features.maps.values()} == {torch.bfloat16}
    assert len(found.boxes) and len(masks[0]) == len(found.boxes)
    assert {t.dtype for t in (*proposals, found.boxes, found.scores, *masks)} == {torch.float32}


@torch.inference_mode()
def test_no_coordinate_is_rounded(tmp_path: Path) -> None:
    """Proposals that no delta moves are anchors; past 256 a bfloat16 knows every second pixel."""
    model: Any = tiny_model()
    for values in model.rpn.head.bbox_pred.parameters():
        values.zero_()
    manifest = write_tiny(tmp_path, model)
    image = torch.randint(0, 255, (1, 64, 900), dtype=torch.uint8)
    seen: dict[str, set[tuple[float, ...]]] = {}
    for precision in ("fp32", "bf16"):
        some = network(manifest, precision)
        resize = some.preprocessing.resize
        assert resize is not None
        some.preprocessing = some.preprocessing.model_copy(
            update={"resize": resize.model_copy(update={"shortest_edge": 64, "longest_edge": 1000})}
        )
        rpn: Any = some.model.rpn
        rpn._pre_nms_top_n = rpn._post_nms_top_n = {"training": 10**6, "testing": 10**6}
        rpn.nms_thresh = 1.0
        (proposals,) = some.propose(some.features([image]))
        seen[precision] = set(map(tuple, proposals.tolist()))
    assert seen["bf16"] == seen["fp32"]
    assert any(x % 2 == 1 for x, *_ in seen["fp32"] if x > 256)


@pytest.mark.slow
def test_the_included_network_finds_the_same_cells() -> None:
    """Of a real image, as the competition's score of the one's cells if the other's were true."""
    image = read_image(next(f for f in find_images([SAMPLES]) if f.id.startswith("SHSY5Y")))
    pixels = np.ascontiguousarray(image.pixels[:200, :240])
    found = [load_ensemble(device="cpu", precision=name).segment(pixels) for name in ("fp32", "bf16")]
    full, half = (split_label_map(cells.label_map, len(cells)) for cells in found)
    assert len(full) > 10
    assert score_image("image", full, half).ap > 0.85


def test_the_command_says_when_auto_is_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sartorius_infer.ensemble.device.cpu_multiplies", lambda name: name == "bf16")
    weights = write_tiny(tmp_path)
    content = json.loads(weights.read_text())
    held = tmp_path / "held.json"
    held.write_text(json.dumps(content | {"models": [content["models"][0] | {"holds_bf16": True}]}))
    files = {"--images": write_image(tmp_path / "i.png"), "--device": "cpu"}
    words = [str(word) for pair in files.items() for word in pair]
    said = {}
    for name, manifest, precision in (
        ("auto", held, "auto"), ("bf16", held, "bf16"), ("fp32", held, "fp32"), ("unknown", weights, "auto")
    ):  # fmt: skip
        out = tmp_path / f"{name}.csv"
        run = ["--weights", str(manifest), *words, "--precision", precision, "--out", str(out)]
        assert main(run) == 0
        said[name] = "precision bf16 (" in capsys.readouterr().err
    assert said == {"auto": True, "bf16": False, "fp32": False, "unknown": False}
    rows = {name: (tmp_path / f"{name}.csv").read_bytes() for name in said}
    assert rows["auto"] == rows["bf16"] != rows["fp32"] == rows["unknown"]
