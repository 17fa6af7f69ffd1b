"""Cellpose checkpoints as files: recognised, described, imported, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cellpose_cases import QUARTER, needs_reference, saved, small_state
from torch import Tensor

from sartorius_infer import load_ensemble
from sartorius_infer.ensemble.describe import describe_weights as describe
from sartorius_infer.ensemble.importing import import_checkpoint
from sartorius_infer.ensemble.weights import find_weights
from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.manifest import load_manifest
from sartorius_infer.networks.cellpose.network import CellposeNetwork

NAME = "cellpose_residual_on_style_on_concatenation_off_train_folder_2021_12_08_12_00_00.734155"


def network_of(path: Path) -> CellposeNetwork:
    (member,) = load_ensemble(path, "cpu").members
    assert isinstance(member.network, CellposeNetwork)
    return member.network


def manifest(folder: Path, classes: tuple[str, ...] = ("shsy5y", "cort"), **entry: Any) -> Path:
    content = {"version": 1, "classes": classes, "models": [{"name": "a", "file": NAME, **entry}]}
    path = folder / "weights_manifest.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_file_without_a_suffix_is_recognised_by_its_keys(tmp_path: Path) -> None:
    network = network_of(saved(tmp_path / NAME, small_state()))
    assert (network.class_count, network.rescale) == (None, 1.5)
    assert load_ensemble(tmp_path / NAME, "cpu").classes == ("cell",)
    assert load_ensemble(tmp_path / NAME, "cpu").rules.of("cell").score == 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{key}": t for key, t in state.items()},
        lambda state: {"model_state_dict": state, "epoch": 7},
    ],
    ids=["DataParallel", "a training script"],
)
def test_wrapped_ones_too(wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(small_state()), tmp_path / NAME)
    assert network_of(tmp_path / NAME).rescale == 1.5


@pytest.mark.parametrize("labels", [1e-6, 1e9])
def test_a_diameter_that_no_cell_has_is_refused(labels: float, tmp_path: Path) -> None:
    path = saved(tmp_path / NAME, small_state() | {"diam_labels": torch.tensor([labels])})
    with pytest.raises(CheckpointError, match="expected a diameter within 20 times the network's 30, found"):
        load_ensemble(path, "cpu")
    manifest(tmp_path, cellpose={"diameter": 19})
    assert network_of(tmp_path / "weights_manifest.json").rescale == pytest.approx(30 / 19)


@pytest.mark.parametrize(
    "mean, labels, diameter, rescale",
    [
        (30.0, 20.0, None, 1.5),
        (17.0, None, None, 1.0),
        (None, None, None, 1.0),
        (None, None, 15.0, 2.0),
        (17.0, 20.0, 34.0, 0.5),
    ],
)
def test_the_diameter_s_sources(
    mean: float | None, labels: float | None, diameter: float | None, rescale: float, tmp_path: Path
) -> None:
    state = {key: t for key, t in small_state().items() if not key.startswith("diam_")}
    state |= {f"diam_{k}": torch.tensor([v]) for k, v in (("mean", mean), ("labels", labels)) if v}
    saved(tmp_path / NAME, state)
    path = manifest(tmp_path, cellpose={} if diameter is None else {"diameter": diameter})
    assert network_of(path).rescale == rescale
    told = describe(find_weights(path))
    source = (
        "manifest" if diameter else "the file's diam_labels" if labels else "assumed: as the network's mean"
    )
    assert f"({source})" in next(line for line in told.splitlines() if line.startswith("    diameter = "))


def test_models_tells_each_setting_and_where_it_is_from(tmp_path: Path) -> None:
    saved(tmp_path / NAME, small_state())
    told = describe(find_weights(manifest(tmp_path, cellpose={"flow_threshold": 0.7, "augment": True})))
    for line in (
        "architecture  Cellpose CPnet of 4, 6, 8 channels",
        "class         told by other networks",
        "diameter = 20 (the file's diam_labels)",
        "flow_threshold = 0.7 (manifest)",
        "augment = True (manifest)",
        "min_size = 15 (default)",
        "steps = 200 in the network's pixels (default)",
    ):
        assert line in told


def test_one_class_is_its_cells_and_several_are_not(tmp_path: Path) -> None:
    saved(tmp_path / NAME, small_state())
    assert network_of(manifest(tmp_path, classes=("shsy5y", "cort"))).class_count is None
    one = load_ensemble(manifest(tmp_path, **{"classes": ("shsy5y", "cort")}), "cpu").members[0]
    assert one.to_manifest.tolist() == [0] and one.from_manifest.tolist() == [1, 1, 1]
    path = manifest(tmp_path)
    content = json.loads(path.read_text())
    content["models"][0]["classes"] = ["cort"]
    path.write_text(json.dumps(content))
    one = load_ensemble(path, "cpu").members[0]
    assert one.to_manifest.tolist() == [-1, 2] and one.from_manifest.tolist() == [0, 0, 1]


TRANSFORMER = {
    "encoder.patch_embed.proj.weight": torch.zeros(8, 3, 8, 8),
    "encoder.neck.0.weight": torch.zeros(4, 8, 1, 1),
    "W2": torch.zeros(192, 3, 8, 8),
    "out.weight": torch.zeros(192, 4, 1, 1),
}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_ensemble(path, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(prefix: str) -> dict[str, Tensor]:
    return {key: t for key, t in small_state().items() if not key.startswith(prefix)}


@pytest.mark.parametrize(
    "state, said",
    [
        (small_state(outputs=4), "found 4, as Omnipose's networks have"),
        (small_state(outputs=1), "found 1, as Cellpose's networks for other tasks have"),
        (TRANSFORMER, "found Cellpose 4's transformer (Cellpose-SAM)"),
        (
            without("downsample.down.res_down_1.proj"),
            "Likely one trained with concatenation or without residual",
        ),
        (small_state((4, 4, 4, 4, 4, 4)), "expected at most 5 depths, found 6"),
    ],
)
def test_others_are_refused_by_name(state: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    assert said in refused(saved(tmp_path / NAME, state))


def test_a_manifest_that_cannot_be_meant(tmp_path: Path) -> None:
    saved(tmp_path / NAME, small_state())
    assert "expected no `preprocessing`, found one" in refused(manifest(tmp_path, preprocessing={}))


def test_an_imported_one_is_the_same_network(tmp_path: Path) -> None:
    path = saved(tmp_path / NAME, small_state())
    done = import_checkpoint(path, tmp_path / "w")
    entry = json.loads(done.manifest.read_text())["models"][0]
    assert "classes" not in entry and "preprocessing" not in entry
    assert (entry["architecture"], entry["cellpose"]["diameter"]) == ("cellpose", 20.0)
    assert load_manifest(done.manifest).manifest.classes == ("cell",)
    before, after = network_of(path), network_of(done.manifest)
    assert before.rescale == after.rescale
    image = torch.randint(0, 256, (1, 40, 50), dtype=torch.uint8)
    with torch.inference_mode():
        maps = [next(n.flows([image]))[0] for n in (before, after)]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-5)  # last bits go with where tensors lie
    named = import_checkpoint(path, tmp_path / "v", classes=["cort"])
    assert network_of(named.manifest).class_count == 1


@needs_reference
def test_the_reference_s_checkpoint_is_read_as_it_is() -> None:
    network = network_of(QUARTER)
    assert network.rescale == pytest.approx(1.4713735580444336, abs=1e-7)
