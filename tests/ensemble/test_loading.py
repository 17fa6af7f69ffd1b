"""Checkpoints become networks that vote: what a bare one needs, what does not fit and why."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factories import resnet_pyramid, training_dict
from detectron2_runs import PARTS, SMALL, write_config, write_run
from detectron2_runs import small_state as detectron2_state
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from safetensors.torch import save_file
from small import manifest, saved, small, small_state
from torch import Tensor
from torchvision.models import resnet

from sartorius_infer.ensemble import loading
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.importing import import_checkpoint
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.member import make_member
from sartorius_infer.errors import CheckpointError, ManifestError, SartoriusError
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks import family_of
from sartorius_infer.networks.detectron2.rcnn import Detectron2Network
from sartorius_infer.networks.torchvision.rcnn import TorchvisionNetwork

CPU = torch.device("cpu")
State = dict[str, Tensor]


def load(*weights: Path) -> Ensemble:
    return load_ensemble(weights, CPU)


def error(*weights: Path, kind: type[SartoriusError] = CheckpointError) -> str:
    """Why weights do not load, in one line."""
    with pytest.raises(kind) as caught:
        load(*weights)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def weights_of(ensemble: Ensemble, member: int = 0) -> State:
    network = ensemble.members[member].network
    assert isinstance(network, TorchvisionNetwork)
    return dict(network.model.state_dict())


def same(one: State, other: State) -> bool:
    """Whether the values agree; batch counters are not read."""
    keys = {key for key in one if not key.endswith("num_batches_tracked")}
    assert {key for key in other if not key.endswith("num_batches_tracked")} == keys
    return all(torch.equal(one[key], other[key]) for key in keys)


# What is found.


def test_the_same_checkpoint_twice(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.pth", {})
    (tmp_path / "link.pth").symlink_to("a.pth")
    for weights in ([a, a], [a, tmp_path / "." / "a.pth"], [tmp_path], [a, tmp_path / "link.pth"]):
        assert error(*weights) == f"{a}: expected each checkpoint once, found it twice"


@pytest.mark.parametrize("name", ["absent", "absent.pth", "absent.safetensors"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    assert error(tmp_path / name) == f"{tmp_path / name}: expected a checkpoint file, found none"


def test_no_manifest_there(tmp_path: Path) -> None:
    assert error(tmp_path / "m.json", kind=ManifestError).startswith(f"{tmp_path / 'm.json'}: expected a ")


# The default.


def test_the_default_loads() -> None:
    loaded = load()
    assert loaded.classes == ("shsy5y", "astro", "cort")
    assert not any(p.requires_grad for m in loaded.members for p in m.network.parameters())  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_wheel_brings_the_default(tmp_path: Path) -> None:
    """Built, unpacked as pip does it and run from another folder, the package finds its own weights."""
    quiet: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, **quiet)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    command = [sys.executable, "-W", "error", "-m", "sartorius_infer", "models"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, **quiet)
    default = tmp_path / "site" / "sartorius_infer" / "default" / "weights_manifest.json"
    assert done.stdout.startswith(f"{default}: classes shsy5y, astro, cort; ")
    assert done.stderr == ""


# Bare checkpoints.


@pytest.mark.parametrize(
    ("foreground", "classes"), [(1, ("cell",)), (2, ("class1", "class2")), (3, ("shsy5y", "astro", "cort"))]
)
def test_a_bare_checkpoint(tmp_path: Path, foreground: int, classes: tuple[str, ...]) -> None:
    loaded = load(saved(tmp_path / "a.pth", training_dict(small(foreground))))
    assert loaded.classes == classes
    assert [member.name for member in loaded.members] == ["a"]
    assert same(weights_of(loaded), small_state(foreground))


def test_a_folder_of_bare_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path / "fold1.pth", {"ema": small_state()})
    save_file({key: t.clone() for key, t in small_state().items()}, tmp_path / "fold0.safetensors")
    loaded = load(tmp_path)
    assert [member.name for member in loaded.members] == ["fold0", "fold1"]
    assert same(weights_of(loaded, 0), weights_of(loaded, 1))


def test_bare_checkpoints_of_one_name(tmp_path: Path) -> None:
    files = saved(tmp_path / "fold0" / "best.pth"), saved(tmp_path / "fold1" / "best.pth")
    assert [member.name for member in load(*files).members] == [str(file) for file in files]


def test_bare_checkpoints_of_different_classes(tmp_path: Path) -> None:
    one, three = saved(tmp_path / "one.pth", small_state(1)), saved(tmp_path / "three.pth")
    said = error(one, three)
    assert f"{one} has 1, {three} has 3" in said
    assert said.endswith("write a manifest")


def test_a_checkpoint_of_background_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", small_state(0))
    assert error(path) == f"{path}: expected a class besides background, found none"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("counters", [False, True])
def test_weights_of_any_width_are_float32(tmp_path: Path, dtype: torch.dtype, counters: bool) -> None:
    narrow = {k: t.to(dtype) if counters or t.is_floating_point() else t for k, t in small_state().items()}
    loaded = weights_of(load(saved(tmp_path / "a.pth", narrow)))
    assert same(loaded, {key: tensor.float() for key, tensor in narrow.items()})
    assert all(t.dtype == torch.float32 for k, t in loaded.items() if not k.endswith("num_batches_tracked"))


def test_unusual_anchors_need_a_manifest_and_the_error_says_which_fields(tmp_path: Path) -> None:
    model = small(sizes=((8, 16), (32, 64), (128, 256)))
    path = saved(tmp_path / "a.pth", model.state_dict())
    said = error(path)
    assert "expected anchors for 3 levels with 6 a position, found 3 levels with [3]; " in said
    assert said.endswith("write network.anchors.sizes and network.anchors.aspect_ratios in a manifest")
    told = {"sizes": [[8, 16], [32, 64], [128, 256]], "aspect_ratios": [0.5, 1, 2]}
    assert same(weights_of(load(manifest(tmp_path, {"network": {"anchors": told}}))), model.state_dict())


# Detectron2's checkpoints, which tell less than their config.


def detectron2(ensemble: Ensemble, member: int = 0) -> Detectron2Network:
    network = ensemble.members[member].network
    assert isinstance(network, Detectron2Network)
    return network


def test_a_detectron2_checkpoint_takes_the_config_beside_it(tmp_path: Path) -> None:
    path = write_run(tmp_path, SMALL | {"MODEL.RPN.NMS_THRESH": 0.61})
    for weights in (path, tmp_path):
        loaded = load(weights)
        network = detectron2(loaded)
        assert (loaded.members[0].name, loaded.classes) == ("model_final", ("shsy5y", "astro", "cort"))
        assert network.parts.rpn.nms == 0.61
        assert network.preprocessing.channel_order == "bgr"
        assert loaded.manifest.models[0].provenance.startswith("settings of config.yaml")
        state = {k: t for k, t in network.model.state_dict().items() if "num_batches" not in k}
        assert same(state, detectron2_state())


def test_a_config_of_the_checkpoint_s_name_goes_first(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    write_config(tmp_path / "model_final.yaml", SMALL | {"MODEL.RPN.NMS_THRESH": 0.62})
    write_config(tmp_path / "other.yaml", SMALL | {"MODEL.RPN.NMS_THRESH": 0.63})
    assert detectron2(load(path)).parts.rpn.nms == 0.62
    (tmp_path / "model_final.yaml").unlink()
    assert detectron2(load(path)).parts.rpn.nms == 0.7


def test_checkpoints_of_one_folder_share_its_config(tmp_path: Path) -> None:
    first = write_run(tmp_path)
    first.with_name("model_0000999.pth").write_bytes(first.read_bytes())
    write_config(tmp_path / "model_0000999.yaml", SMALL | {"MODEL.RPN.NMS_THRESH": 0.62})
    saved(tmp_path / "torchvision.pth")
    loaded = load(tmp_path)
    assert [m.name for m in loaded.members] == ["model_0000999", "model_final", "torchvision"]
    assert [detectron2(loaded, i).parts.rpn.nms for i in (0, 1)] == [0.62, 0.7]
    assert same(weights_of(loaded, 2), small_state())


@pytest.mark.parametrize("folder", [False, True])
def test_a_detectron2_checkpoint_alone_says_what_to_do(tmp_path: Path, folder: bool) -> None:
    path = saved(tmp_path / "model_final.pth", detectron2_state())
    (tmp_path / "config.yml").touch()
    (tmp_path / "model_final.yaml").mkdir()
    assert error(tmp_path if folder else path) == (
        f"{path}: a Detectron2 checkpoint: expected config.yaml beside it, found none; Detectron2 writes one "
        "where it trains, and cfg.dump() gives its text"
    )


def test_a_detectron2_checkpoint_and_a_config_that_disagree(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    assert "of another shape: backbone.bottom_up." in error(write_run(tmp_path, {"MODEL.MASK_ON": True}))
    said = error(write_run(tmp_path, SMALL | {"TEST.AUG.ENABLED": True}))
    assert said == f"{config}: cannot honour TEST.AUG.ENABLED = True (expected False)"


def test_the_classifier_s_rows_decide_how_many_classes_there_are(tmp_path: Path) -> None:
    """Scripts set NUM_CLASSES in code, and leave the file as it was."""
    path = write_run(tmp_path, SMALL | {"MODEL.ROI_HEADS.NUM_CLASSES": 1})
    (member,) = load_ensemble(path, torch.device("cpu")).members
    assert member.network.class_count == 3
    spec = load(path).manifest.models[0]
    assert spec.provenance.endswith("(but for NUM_CLASSES: 1 there, 3 in the checkpoint)")


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_config_need_not_say_how_many_classes(tmp_path: Path, count: int) -> None:
    keys = {key: value for key, value in SMALL.items() if not key.endswith("NUM_CLASSES")}
    assert detectron2(load(write_run(tmp_path, keys, detectron2_state(count)))).class_count == count


def test_a_detectron2_entry_of_a_manifest(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth", detectron2_state())
    said = error(manifest(tmp_path, {}))
    assert said.startswith(
        "a.pth: a Detectron2 checkpoint: expected its settings as `detectron2` in the manifest"
    )
    network = detectron2(load(manifest(tmp_path, {"detectron2": PARTS})))
    assert network.parts.fpn.channels == 16
    assert network.preprocessing.channel_order == "rgb"  # as the manifest says, or leaves to its default
    both = {"detectron2": PARTS, "network": {"rpn": {"nms": 0.5}}}
    assert "found `network` and `detectron2`" in error(manifest(tmp_path, both), kind=ManifestError)
    assert "$.models[0].detectron2.rpn.nns" in error(
        manifest(tmp_path, {"detectron2": {"rpn": {"nns": 0.5}}}), kind=ManifestError
    )


def test_a_detectron2_checkpoint_without_masks(tmp_path: Path) -> None:
    """A Faster R-CNN, or a RetinaNet, is no network of this package."""
    write_config(tmp_path / "config.yaml")
    boxes = {k: t for k, t in detectron2_state().items() if "mask_head" not in k}
    assert "no known Mask R-CNN" in error(saved(tmp_path / "a.pth", boxes))


# Manifests.


def entry_of(path: Path, **more: Any) -> dict[str, Any]:
    content = path.read_bytes()
    said = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return said | more


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"bytes": 5}, {"format": "safetensors"}])
def test_a_file_unlike_its_entry_is_found_before_any_network_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    good = entry_of(saved(tmp_path / "a.pth"))
    path = manifest(tmp_path, good, good | wrong)
    opened: list[Path] = []
    monkeypatch.setattr(loading, "read_checkpoint", opened.append)
    said = error(path, kind=ManifestError)
    assert said.startswith(f"{tmp_path / 'a.pth'}: $.models[1].{next(iter(wrong))}: expected ")
    assert not opened


def test_members_follow_the_manifest(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    saved(tmp_path / "b.pth", small_state(2))
    told = {"name": "B", "file": "b.pth", "classes": ["other", "x"], "weight": 2.5}
    loaded = load(manifest(tmp_path, {"name": "A"}, told, views=["hflip"]))
    assert [(m.name, m.weight, m.network.class_count) for m in loaded.members] == [("A", 1, 3), ("B", 2.5, 2)]
    assert loaded.members[1].to_manifest.tolist() == [-1, -1, 1]
    assert loaded.members[1].from_manifest.tolist() == [0, 2, 0, 0]
    assert loaded.manifest.views == ("hflip",)


@settings(max_examples=20)
@given(own=st.permutations("wxyz"), theirs=st.lists(st.sampled_from("vwxyz"), min_size=1, unique=True))
def test_labels_there_and_back(own: list[str], theirs: list[str]) -> None:
    network = type("Network", (), {"class_count": len(own)})()
    member = make_member(theirs, ModelSpec(name="a", file="a", classes=tuple(own)), network, CPU)
    there, back = member.to_manifest.tolist(), member.from_manifest.tolist()
    named = [-1, *(theirs.index(name) + 1 if name in theirs else -1 for name in own)]
    assert there == named
    assert [there[label] for label in back] == [label if label in there else -1 for label in range(len(back))]
    assert [back[label] for label in there if label > 0] == [i for i, n in enumerate(there) if n > 0]


def test_class_names_must_be_as_many_as_the_network_s(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    said = error(manifest(tmp_path, {"classes": ["x", "y"]}), kind=ManifestError)
    assert said == (
        "a.pth: expected 3 class names, as the checkpoint has, found 2: x, y; "
        "write the network's own `classes` in its manifest entry"
    )


def test_an_unknown_architecture(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    said = error(manifest(tmp_path, {"architecture": "yolo"}))
    assert said.startswith("a.pth: expected an architecture of ")
    assert "found 'yolo'" in said
    assert said.endswith("--plugin FILE.py")


# Averages over parameters, which lack the statistics of norms.


def average(state: State) -> State:
    return {key: t for key, t in state.items() if not key.endswith(("_mean", "_var", "_tracked"))}


@pytest.mark.parametrize("name", ["ema", "model_ema", "swa_model", "shadow", "model.avg"])
def test_an_average_without_statistics_is_refused(tmp_path: Path, name: str) -> None:
    wrapped: Any = average(small_state())
    for part in reversed(name.split(".")):
        wrapped = {part: wrapped}
    said = error(saved(tmp_path / "a.pth", wrapped))
    assert f"a.pth: {name}: expected the running statistics of norms, found none, as in an average " in said
    assert said.endswith("(body_norm.kind)")


def test_a_group_norm_that_nothing_tells_is_an_assumption(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / "a.pth", average(small_state()))
    with caplog.at_level("WARNING"):
        load(path)
    (said,) = caplog.messages
    assert said.startswith(f"{path}: assumed group norm (body_norm.kind), since the file holds no running st")
    caplog.clear()
    told = {"network": {"body_norm": {"kind": "group"}}}
    with caplog.at_level("WARNING"):
        load(manifest(tmp_path, told))
        done = import_checkpoint(path, tmp_path / "w")
        caplog.clear()
        load(done.manifest)
    assert not caplog.messages


def test_an_average_whose_norms_a_manifest_says_are_batch_norms(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth", average(small_state()))
    for kind in ("batch", "frozen"):
        said = error(manifest(tmp_path, {"network": {"body_norm": {"kind": kind}}}))
        assert "missing: backbone.body.bn1.running_mean, " in said
        assert "An average over named_parameters() has no running statistics of norms" in said


def test_an_average_of_frozen_norms_has_none(tmp_path: Path) -> None:
    bare = {key: t for key, t in small_state().items() if ".bn" not in key and "downsample.1" not in key}
    said = error(saved(tmp_path / "a.pth", bare))
    assert "a.pth: expected the norms of the resnet18, found none, as in an average over named_para" in said


def test_an_average_of_a_detectron2_network(tmp_path: Path) -> None:
    state = {key: t for key, t in detectron2_state().items() if ".norm." not in key}
    said = error(write_run(tmp_path, content={"ema": state}))
    assert "An average over named_parameters() has no running statistics of norms" in said
    content = {"model": detectron2_state(), "ema": state}
    assert detectron2(load(write_run(tmp_path, content=content))).class_count == 3


# What does not fit.


def misfit(state: State) -> str:
    """Why no network is built from a state, in one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        family_of(None, state, "a.pth").build(ModelSpec(name="a", file="a.pth"), state, torch.float32)
    message = str(caught.value)
    assert message.startswith("a.pth: ")
    assert "\n" not in message
    assert len(message) < 1000
    return message


KEYS = [key for key in small_state() if not any(part in key for part in (".bn", ".layer1.1.", ".layer2."))]
TELLING = ("backbone.body.", "backbone.fpn.inner_blocks.1.", "rpn.head.conv.", "roi_heads.box_head.")
"""Without these the rest tells another network, whose misfit is what the error says."""

ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "scalar": lambda t: torch.tensor(0.0),
    "row": lambda t: torch.zeros(5),
    "nothing": lambda t: torch.zeros(0),
    "nothing in four dimensions": lambda t: torch.zeros(0, 0, 0, 0),
    "larger": lambda t: torch.zeros([n + 1 for n in t.shape]),
    "integers": lambda t: t.to(torch.int8),
    "complex": lambda t: t.to(torch.complex64),
}


@pytest.mark.parametrize("key", KEYS)
def test_any_missing_key_is_one_readable_error(key: str) -> None:
    said = misfit({k: t for k, t in small_state().items() if k != key})
    assert key.rpartition(".")[0] in said or key.startswith(TELLING)


@settings(max_examples=15)
@given(st.sampled_from(KEYS), st.sampled_from(list(ODD)))
def test_any_odd_tensor_is_one_readable_error(key: str, odd: str) -> None:
    misfit(small_state() | {key: ODD[odd](small_state()[key])})


def test_missing_keys_are_counted_and_the_first_listed() -> None:
    lost = [key for key in small_state() if ".layer2." in key and key.endswith("bias")]
    said = misfit({key: t for key, t in small_state().items() if key not in lost})
    assert f"{len(lost)} missing: {', '.join(lost[:3])}." in said
    assert lost[3] not in said
    assert "Likely another backbone" in said


def test_another_backbone() -> None:
    deeper = resnet_pyramid(resnet.resnet34(), stages=(1, 2), channels=8).state_dict()
    block = {f"backbone.{k}": t for k, t in deeper.items() if ".layer1.2." in k}
    assert "expected a ResNet of " in misfit(small_state() | block)


def test_heads_of_another_class_count() -> None:
    masks = {key: t for key, t in small_state(1).items() if "mask_predictor.mask_fcn_logits" in key}
    said = misfit(small_state() | masks)
    assert "mask_fcn_logits.weight (expected (4, 8, 1, 1), found (2, 8, 1, 1))" in said
    assert said.endswith("Likely another class count.")


STRANGE = {
    "attention": "backbone.body.layer1.0.attention.fc.weight",
    "squeeze": "backbone.body.layer2.1.se.0.weight",
    "keypoints": "roi_heads.keypoint_predictor.kps_score_lowres.weight",
    "cascade": "roi_heads.box_head.stage2.fc6.bias",
    "top": "uncertainty.log_vars",
}


@pytest.mark.parametrize("key", STRANGE.values(), ids=STRANGE)
def test_what_cannot_be_built_is_named_with_the_way_out(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path / "a.pth", small_state() | {key: torch.ones(2)})
    said = error(path)
    assert f"1 unexpected: {key}." in said
    assert said.endswith("register it by --plugin FILE.py.")


NO_MASK_RCNN: dict[str, Callable[[str], bool]] = {
    "no masks": lambda key: "mask" not in key,
    "no pyramid": lambda key: "fpn" not in key,
    "a body": lambda key: key.startswith("backbone."),
}


@pytest.mark.parametrize("kept", NO_MASK_RCNN.values(), ids=NO_MASK_RCNN)
def test_other_networks(tmp_path: Path, kept: Callable[[str], bool]) -> None:
    said = error(saved(tmp_path / "a.pth", {k: t for k, t in small_state().items() if kept(k)}))
    assert "no known Mask R-CNN: expected keys of backbone, rpn and roi_heads, found " in said
    assert "--plugin FILE.py" in said


CONTRADICTIONS = [
    ({"architecture": "resnet50_fpn_v2"}, "body = resnet50, the checkpoint's keys tell resnet18"),
    ({"network": {"fpn": {"channels": 256}}}, "fpn.channels = 256, the checkpoint's keys tell 8"),
    ({"network": {"rpn": {"conv_depth": 2}}}, "rpn.conv_depth = 2, the checkpoint's keys tell 1"),
    ({"network": {"stages": [2, 3]}}, "stages = (2, 3), the checkpoint's keys tell (1, 2)"),
]


@pytest.mark.parametrize(("told", "said"), CONTRADICTIONS)
def test_a_manifest_that_contradicts_the_keys(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    saved(tmp_path / "a.pth")
    assert error(manifest(tmp_path, told)).endswith(said)


def test_a_manifest_is_json_that_others_can_write(tmp_path: Path) -> None:
    path = manifest(tmp_path, entry_of(saved(tmp_path / "a.pth")))
    assert same(weights_of(load(path.parent)), small_state())
    assert json.loads(path.read_text())["version"] == 1
