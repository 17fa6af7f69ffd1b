"""MMDetection checkpoints as users have them: with their config or without, of both generations."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoint_factories import write_manifest
from detectron2_factories import picture
from detectron2_runs import write_run as write_detectron2
from mmdet_runs import (
    CASCADE,
    CLASSES,
    HTC,
    State,
    config_of,
    run_of,
    state_of,
    values_of,
    write_config,
    write_run,
)
from safetensors.torch import load_file
from tiny import PARTS as TINY
from tiny import tiny_model
from torch import Tensor, nn

from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.describe import describe_weights
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.fuse import Boxes, fuse
from sartorius_infer.ensemble.importing import import_checkpoint
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.ensemble.weights import find_weights
from sartorius_infer.errors import CheckpointError
from sartorius_infer.manifest.manifest import Fusion
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.networks.mmdet.keys import canonical_state
from sartorius_infer.networks.mmdet.rcnn import MmdetNetwork
from sartorius_infer.types import CellImage, Prediction

CPU = torch.device("cpu")
SIZE_HW = (64, 120)


pytestmark = pytest.mark.usefixtures("one_thread")


def network(*weights: Path) -> MmdetNetwork:
    (member,) = load_ensemble(list(weights), CPU).members
    assert isinstance(member.network, MmdetNetwork)
    return member.network


def weights_of(network: MmdetNetwork) -> State:
    return {k: t for k, t in network.model.state_dict().items() if not k.endswith("num_batches_tracked")}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def seen(ensemble: Ensemble) -> Prediction:
    (prediction,) = predict(ensemble, [CellImage("image", picture(SIZE_HW))])
    assert len(prediction) > 10
    return prediction


def equal(one: Prediction, other: Prediction) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("boxes", "scores", "labels", "masks")
    )


def refused(*weights: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_ensemble(list(weights), CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return state_of(config_of(values_of(), tmp_path_factory.mktemp("state")))


# Where the config is.


@pytest.mark.parametrize("dialect", [2, 3])
def test_the_config_travels_inside(dialect: int, tmp_path: Path) -> None:
    found = network(write_run(tmp_path, dialect))
    assert found.parts == config_of(values_of(dialect), tmp_path).parts
    assert found.preprocessing == config_of(values_of(dialect), tmp_path).preprocessing


@pytest.mark.parametrize("name", ["epoch_12.py", "my_config.py"])
def test_else_it_lies_beside(name: str, state: State, tmp_path: Path) -> None:
    for folder, dialect in ((tmp_path / "two", 2), (tmp_path / "three", 3)):
        write_config(folder / name, values_of(dialect))
        torch.save(run_of(state, None, dialect), folder / "epoch_12.pth")
        assert network(folder / "epoch_12.pth").parts.dialect == dialect


def test_the_one_of_the_same_name_goes_before_others(state: State, tmp_path: Path) -> None:
    torch.save(run_of(state, None), tmp_path / "a.pth")
    write_config(tmp_path / "b.py", values_of(3, {"model.test_cfg.rcnn.score_thr": 0.5}))
    assert network(tmp_path / "a.pth").parts.detection.score == 0.5
    write_config(tmp_path / "a.py", values_of(3, {"model.test_cfg.rcnn.score_thr": 0.25}))
    assert network(tmp_path / "a.pth").parts.detection.score == 0.25
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert "or a.py or one .py file beside it, found none" in refused(tmp_path / "a.pth")


def test_a_config_that_is_named_goes_before_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    other = write_config(tmp_path / "other.py", values_of(2, {"model.test_cfg.rcnn.score_thr": 0.5}))
    done = import_checkpoint(run, tmp_path / "w", config=other)
    assert done.spec.mmdet is not None
    assert (done.spec.mmdet.dialect, done.spec.mmdet.detection.score) == (2, 0.5)
    assert done.spec.provenance.endswith("settings of other.py, of MMDetection 2")
    assert load_ensemble(run, CPU, config=other).members[0].network.parts == done.spec.mmdet  # type: ignore[attr-defined]


def test_without_any_it_says_where_one_is_looked_for(state: State, tmp_path: Path) -> None:
    torch.save(run_of(state, None), tmp_path / "epoch_12.pth")
    message = refused(tmp_path / "epoch_12.pth")
    assert message.startswith(f"{tmp_path / 'epoch_12.pth'}: an MMDetection checkpoint without its config: ")
    assert "--config" in message


def test_faults_name_the_file_and_the_place_inside(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    content = torch.load(path, weights_only=False)
    content["meta"]["cfg"] = content["meta"]["cfg"].replace("'MaskRCNN'", "'PointRend'")
    torch.save(content, path)
    assert refused(path).startswith(f"{path}: meta.cfg: cannot honour model.type = 'PointRend' (expected ")


def test_the_classifier_tells_how_many_classes_there_are(state: State, tmp_path: Path) -> None:
    values = values_of(
        3, {"model.roi_head.bbox_head.num_classes": 80, "model.roi_head.mask_head.num_classes": 1}
    )
    torch.save(run_of(state, values), tmp_path / "a.pth")
    assert network(tmp_path / "a.pth").class_count == 3


# What else is in the files.


def history_buffer() -> object:
    """A loss history as MMEngine pickles it: a class that is not importable here, and its methods."""
    module = "mmengine.logging.history_buffer"
    cls = type("HistoryBuffer", (), {"mean": lambda self: None, "__module__": module})
    cls.mean.__module__, cls.mean.__qualname__ = module, "HistoryBuffer.mean"  # type: ignore[attr-defined]
    for index in range(1, 4):
        sys.modules[".".join(module.split(".")[:index])] = types.ModuleType(module)
    sys.modules[module].HistoryBuffer = cls  # type: ignore[attr-defined]
    buffer = cls()
    methods = {"mean": cls.mean}  # type: ignore[attr-defined]
    buffer.__dict__.update(_log_history=np.array([1.0, 0.5]), _count=np.arange(2), statistics_methods=methods)
    return buffer


@pytest.fixture
def mmengine() -> Iterator[object]:
    yield history_buffer()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmengine"]:
        del sys.modules[name]


def test_loss_histories_stay_inert(mmengine: object, state: State, tmp_path: Path) -> None:
    content = run_of(state, values_of())
    content["message_hub"]["log_scalars"] = {"train/loss": mmengine, "time": np.float64(0.5)}
    torch.save(content, tmp_path / "a.pth")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmengine"]:
        del sys.modules[name]
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert same(checkpoint.state, state)
    assert checkpoint.left_out == ()
    assert "mmengine" not in sys.modules
    assert same(weights_of(network(tmp_path / "a.pth")), canonical_state(state))


def test_published_files_have_neither_optimizer_nor_hub(state: State, tmp_path: Path) -> None:
    content = run_of(state, values_of())
    torch.save({key: content[key] for key in ("meta", "state_dict")}, tmp_path / "a.pth")
    assert same(weights_of(network(tmp_path / "a.pth")), canonical_state(state))


def test_averages_of_mmdetection_3(state: State, tmp_path: Path) -> None:
    """The averaged weights are the usual ones; what was averaged lies beside them."""
    raw = {f"module.{key}": t + 1 if t.is_floating_point() else t for key, t in state.items()}
    content = run_of(state, values_of()) | {"ema_state_dict": {"steps": torch.tensor(9), **raw}}
    path = tmp_path / "a.pth"
    torch.save(content, path)
    assert same(weights_of(network(path)), canonical_state(state))
    (said,) = read_checkpoint(path).left_out
    assert said == f"ema_state_dict.module (another network, which {path.name}::ema_state_dict.module takes)"
    other = network(path.with_name(f"{path.name}::ema_state_dict"))
    assert torch.equal(other.model.rpn_head.rpn_cls.bias, state["rpn_head.rpn_cls.bias"] + 1)


def test_averages_of_mmdetection_2(state: State, tmp_path: Path) -> None:
    """The averaged weights have the usual names; what was averaged lies among them as buffers."""
    raw = {f"ema_{key.replace('.', '_')}": t + 1 for key, t in state.items()}
    path = tmp_path / "a.pth"
    torch.save(run_of({**state, **raw}, values_of(2), 2), path)
    assert same(weights_of(network(path)), canonical_state(state))
    done = import_checkpoint(path, tmp_path / "w")
    assert same(load_file(done.weights), canonical_state(state))


def test_a_network_that_was_trained_on_several_gpus(state: State, tmp_path: Path) -> None:
    content = run_of({f"module.{key}": t for key, t in state.items()}, values_of())
    torch.save(content, tmp_path / "a.pth")
    assert same(weights_of(network(tmp_path / "a.pth")), canonical_state(state))


def test_no_masks_no_network(state: State, tmp_path: Path) -> None:
    boxes = {key: t for key, t in state.items() if "mask_head" not in key}
    torch.save(run_of(boxes, values_of()), tmp_path / "a.pth")
    assert "found an MMDetection network without its masks (" in refused(tmp_path / "a.pth")


# Classes.


@pytest.mark.parametrize("dialect", [2, 3])
def test_classes_in_any_order_are_the_competition_s(dialect: int, tmp_path: Path) -> None:
    order = ("cort", "shsy5y", "astro")
    usual = load_ensemble(write_run(tmp_path / "usual", dialect), CPU)
    other = load_ensemble(write_run(tmp_path / "other", dialect, classes=order), CPU)
    assert usual.classes == other.classes == CLASSES
    assert other.manifest.models[0].classes == order
    names, ours = np.array(["", *CLASSES]), np.array(["", *order])
    one, two = seen(usual), seen(other)
    np.testing.assert_array_equal(np.sort(one.scores), np.sort(two.scores))
    by_score = np.argsort(-one.scores, kind="stable"), np.argsort(-two.scores, kind="stable")
    assert [ours[label] for label in one.labels[by_score[0]]] == list(names[two.labels[by_score[1]]])


def test_classes_that_are_others(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", classes=("x", "y", "z"))
    assert load_ensemble(path, CPU).classes == ("x", "y", "z")
    again = write_run(tmp_path / "b", classes=("z", "y", "x"), name="b.pth")
    assert load_ensemble([path, again], CPU).classes == ("x", "y", "z")
    other = write_run(tmp_path / "c", classes=("x", "y", "w"), name="c.pth")
    message = refused(path, other)
    assert message.startswith("expected checkpoints of the same classes, found: ")
    assert f"{other} has x, y, w; write a manifest" in message


def test_names_of_another_number_are_not_the_network_s(tmp_path: Path) -> None:
    """As a data set's own, where the heads were made for fewer."""
    ensemble = load_ensemble(write_run(tmp_path, classes=tuple(f"coco{i}" for i in range(80))), CPU)
    assert ensemble.classes == CLASSES
    assert ensemble.manifest.models[0].classes is None


# Imports, and what is said.


@pytest.mark.parametrize("dialect", [2, 3])
@pytest.mark.parametrize("kind", [{}, CASCADE, HTC], ids=["mask", "cascade", "htc"])
def test_what_is_imported_sees_what_the_run_saw(kind: dict[str, Any], dialect: int, tmp_path: Path) -> None:
    run = write_run(tmp_path, dialect, kind, classes=("cort", "astro", "shsy5y"))
    done = import_checkpoint(run, tmp_path / "weights")
    entry = json.loads(done.manifest.read_text())["models"][0]
    assert (entry["architecture"], entry["classes"]) == ("mmdet_rcnn", ["cort", "astro", "shsy5y"])
    assert {"detectron2", "network"}.isdisjoint(entry)
    before, after = load_ensemble(run, CPU), load_ensemble(done.manifest, CPU)
    kept = load_file(done.weights)
    assert not any("num_batches" in key for key in kept)
    assert same(kept, canonical_state(read_checkpoint(run).state))
    assert before.members[0].network.parts == after.members[0].network.parts  # type: ignore[attr-defined]
    old, new = (one.with_overrides(rules=Rules()) for one in (before, after))
    np.testing.assert_array_equal(np.sort(seen(old).scores), np.sort(seen(new).scores))
    narrow = import_checkpoint(run, tmp_path / "half", half=True)
    assert narrow.bytes_after < 0.6 * done.bytes_after


def test_models_lists_every_setting(tmp_path: Path) -> None:
    said = describe_weights(find_weights([write_run(tmp_path, 3, HTC)]))
    for text in (
        "architecture  MMDetection Hybrid Task Cascade, resnet-18, FPN of 16 channels",
        "provenance    settings of meta.cfg, of MMDetection 3",
        "    box_heads.2.coder.stds = (0.033, 0.033, 0.067, 0.067)",
        "    mask_heads.1.previous = True",
        "    body.base_channels = 8",
        "    rpn.nms.iou = 0.7",
        "    pad_multiple = 32",
        "    resize.rounding = nearest_side",
    ):
        assert text in said
    assert "{" not in said.partition("preprocessing:")[0]


def test_the_commands_take_such_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", 2)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), picture(SIZE_HW))
    assert main(["models", "--weights", str(run)]) == 0
    assert "MMDetection Mask R-CNN, resnet-18" in capfd.readouterr().out
    other = write_config(tmp_path / "other.py", values_of(2, {"model.test_cfg.rcnn.score_thr": 0.25}))
    assert main(["models", "--weights", str(run), "--config", str(other)]) == 0
    assert "detection.score = 0.25" in capfd.readouterr().out
    assert main(["models", "--weights", str(run), str(run), "--config", str(other)]) == 1
    assert main(["import", str(run), "--out", str(tmp_path / "w")]) == 0
    assert "classes   shsy5y, astro, cort" in capfd.readouterr().out
    found: list[bytes] = []
    areas = ["--min-area", ",".join(f"{name}=0" for name in CLASSES)]
    for place in (run, tmp_path / "w"):
        out = tmp_path / f"{len(found)}.csv"
        words = ["--weights", str(place), "--images", str(tmp_path / "images"), "--out", str(out)]
        assert main([*words, *areas]) == 0
        stderr = capfd.readouterr().err
        assert (f"{run}: MMDetection, settings of meta.config, of MMDetection 2" in stderr) == (place == run)
        found.append(out.read_bytes())
    assert found[0] == found[1]
    assert found[0].count(b"\n") > 3


# Votes.

VIEWS = ["identity", "hflip", "rot90", "scale:1.2"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision, a Detectron2 and two MMDetection networks, their classes in other orders."""
    folder = tmp_path_factory.mktemp("mixed")
    listing = import_checkpoint(write_detectron2(folder / "d2"), folder, name="detectron2").manifest
    for name, dialect, kind, order in (
        ("mmdet3", 3, HTC, ("astro", "cort", "shsy5y")),
        ("mmdet2", 2, CASCADE, CLASSES),
    ):
        run = write_run(folder / name, dialect, kind, classes=order, name=f"{name}.pth")
        import_checkpoint(run, folder, manifest=listing)
    torch.save(tiny_model().state_dict(), folder / "tiny.pth")
    content = json.loads(listing.read_text())
    content["models"].append(
        {
            "name": "torchvision",
            "file": "tiny.pth",
            "network": {key: TINY[key] for key in ("anchors", "rpn", "detection")},
            "preprocessing": {"resize": {"shortest_edge": 48, "longest_edge": 400}},
        }
    )
    return write_manifest(listing, content["models"], classes=list(CLASSES))


def test_all_families_vote_in_every_view(mixed: Path) -> None:
    """Boxes are the fused ones of each network alone in each view."""
    ensemble = load_ensemble(mixed, CPU).with_overrides(VIEWS)
    kinds = [type(member.network).__name__ for member in ensemble.members]
    assert kinds == ["Detectron2Network", "MmdetNetwork", "MmdetNetwork", "TorchvisionNetwork"]
    whole = seen(ensemble)
    single = []
    for index, spec in enumerate(ensemble.manifest.models):
        alone = Ensemble(
            ensemble.manifest.model_copy(update={"models": (spec,)}),
            ensemble.members[index : index + 1],
            CPU,
            ensemble.folder,
        )
        for view in VIEWS:
            (p,) = predict(alone.with_overrides([view]), [CellImage("image", picture(SIZE_HW))])
            single.append(Boxes(p.boxes, p.scores, p.labels))
    assert min(len(boxes.scores) for boxes in single) > 3
    fused = fuse(single, SIZE_HW, Fusion())
    assert set(whole.labels.tolist()) == {1, 2, 3}
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(getattr(whole, name), getattr(fused, name), rtol=0, atol=1e-4)


RULES: list[dict[str, Any]] = [
    {"per_class": {name: {"score": 0.03, "min_area": 5} for name in CLASSES}},
    {"per_class": {name: {"score": 0.03, "mask": 0.4} for name in CLASSES}},
    {"per_class": {name: {"score": 0.03, "edge": {"score": 0.1, "min_area": 30}} for name in CLASSES}},
    {"per_class": {name: {"score": 0.03} for name in CLASSES}, "edge": {"mode": "drop", "margin": 2}},
    {"per_class": {name: {"score": 0.02} for name in CLASSES}, "rescore_by_mask": True},
    *(
        {"per_class": {name: {"score": 0.03} for name in CLASSES}, "consensus": c}
        for c in ("count", "surest")
    ),
    {"per_class": {name: {"score": 0.03} for name in CLASSES}, "consensus": "score_sum"},
    {"per_class": {name: {"score": 0.03} for name in CLASSES}, "overlap_survival": 0.9},
    {"per_class": {name: {"score": 0.03} for name in CLASSES}, "fill_holes": True},
    {"per_class": {name: {"score": 0.03} for name in CLASSES}, "paste": "torchvision"},
]


def test_all_families_together_under_every_rule(mixed: Path) -> None:
    ensemble, image = load_ensemble(mixed, CPU).with_overrides(["identity", "hflip"]), picture(SIZE_HW)
    found = []
    for rules in RULES:
        chosen = Rules.model_validate_json(json.dumps(rules))
        cells = ensemble.with_overrides(rules=chosen).segment(image)
        found.append(cells)
        assert len(cells) > 0
        assert cells.class_names == CLASSES
        if chosen.consensus != "off":
            assert len(set(cells.labels.tolist())) == 1
    assert len({cells.label_map.tobytes() for cells in found}) > len(RULES) / 2


@pytest.mark.parametrize("kind", [{}, CASCADE, HTC], ids=["mask", "cascade", "htc"])
def test_faster_arithmetic_sees_nearly_the_same(kind: dict[str, Any], tmp_path: Path) -> None:
    ensemble = load_ensemble(write_run(tmp_path, 3, kind), CPU)
    before = seen(ensemble)
    norms = [m for m in ensemble.members[0].network.modules() if isinstance(m, nn.BatchNorm2d)]  # type: ignore[attr-defined]
    ensemble.quicken()
    left = [m for m in ensemble.members[0].network.modules() if isinstance(m, nn.BatchNorm2d)]  # type: ignore[attr-defined]
    assert len(norms) > 10
    assert not left
    after = seen(ensemble)
    assert len(after) == len(before)
    np.testing.assert_allclose(np.sort(after.scores), np.sort(before.scores), rtol=0, atol=1e-3)
