"""`import`: a run's checkpoint becomes lean weights and a manifest entry that decide the same, or nothing."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoint_factories import old_names, prefixed
from detectron2_runs import CASCADE, SMALL, run_of, small_state, write_config, write_run
from safetensors.torch import load_file, save_file
from small import small
from small import small_state as torchvision_state
from tiny import write_image
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from sartorius_infer.checkpoints.files import verify_files
from sartorius_infer.ensemble import importing
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.importing import import_checkpoint, import_checkpoints
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.errors import CheckpointError, ManifestError, SartoriusError
from sartorius_infer.manifest.manifest import load_manifest
from sartorius_infer.networks import Network, registry
from sartorius_infer.networks.detectron2.config import read_config
from sartorius_infer.networks.detectron2.rcnn import Detectron2Network
from sartorius_infer.networks.torchvision.rcnn import TorchvisionNetwork

State = dict[str, Tensor]
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's `model_final.pth` with its `config.yaml`."""
    return write_run(tmp_path_factory.mktemp("run"), content={"model": small_state(), "iteration": 1999})


@pytest.fixture(scope="module")
def imported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the run as "one", imported once for all that change a copy of it."""
    out = tmp_path_factory.mktemp("imported") / "weights"
    return import_checkpoint(run, out, classes=NAMES, name="one").manifest


@pytest.fixture
def listing(imported: Path, tmp_path: Path) -> Path:
    """A copy of `imported` in `weights`."""
    return shutil.copytree(imported.parent, tmp_path / "weights") / imported.name


def loaded(*weights: Path) -> Ensemble:
    return load_ensemble(weights, torch.device("cpu"))


def network_of(*weights: Path) -> Any:
    (member,) = loaded(*weights).members
    return member.network


def weights_of(network: Network) -> State:
    assert isinstance(network, Detectron2Network | TorchvisionNetwork)
    return dict(network.model.state_dict())


@torch.inference_mode()
def outputs(network: Network, folder: Path) -> list[Tensor]:
    """Boxes, scores, labels and masks of a picture."""
    pixels = cv2.imread(str(write_image(folder / "image.png")), cv2.IMREAD_GRAYSCALE)
    features = network.features([torch.from_numpy(np.asarray(pixels))[None]])
    (found,) = network.detect(features, network.propose(features))
    (masks,) = network.mask_probabilities(features, [found.boxes], [found.labels])
    assert len(found.boxes) > 5
    return [found.boxes, found.scores, found.labels, masks]


def same(one: Mapping[str, Tensor] | list[Tensor], other: Mapping[str, Tensor] | list[Tensor]) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and same(list(one.values()), [other[key] for key in one])
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(out: Path, checkpoint: Path, kind: type[Exception] = CheckpointError, **options: Any) -> str:
    """Why nothing is imported, in one line; nothing is written, changed or left behind."""
    root = out.parent
    before = {name: (root / name).read_bytes() for name in files(root)}
    with pytest.raises(kind) as caught:
        import_checkpoint(checkpoint, out, **options)
    assert {name: (root / name).read_bytes() for name in files(root)} == before
    message = str(caught.value)
    assert not issubclass(kind, SartoriusError) or "\n" not in message
    return message


# Round trips.


def test_what_is_written_is_the_network_that_was_trained(run: Path, tmp_path: Path) -> None:
    done = import_checkpoint(run, tmp_path / "weights")
    assert files(tmp_path / "weights") == {"model_final.safetensors", "weights_manifest.json"}
    before, after = network_of(run), network_of(done.manifest)
    assert same(weights_of(before), weights_of(after))
    assert after.parts == before.parts
    assert after.preprocessing == before.preprocessing
    assert same(outputs(before, tmp_path), outputs(after, tmp_path))


def test_only_the_network_s_own_tensors_stay(tmp_path: Path) -> None:
    """Not the optimizer's and scheduler's state, nor averages, which a run keeps for going on."""
    run = write_run(tmp_path, content=run_of(small_state()))
    done = import_checkpoint(run, tmp_path / "weights")
    kept = load_file(done.weights)
    assert kept.keys() == small_state().keys()
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert same(kept, small_state())
    assert (done.bytes_before, done.bytes_after) == (run.stat().st_size, done.weights.stat().st_size)
    assert done.bytes_after < done.bytes_before / 2.5


def test_half_is_nearly_the_same_in_half_the_bytes(run: Path, tmp_path: Path) -> None:
    whole = import_checkpoint(run, tmp_path / "whole")
    half = import_checkpoint(run, tmp_path / "half", half=True)
    kept = load_file(half.weights)
    assert kept.keys() == small_state().keys()
    for key, tensor in small_state().items():
        if tensor.ndim >= 2:
            assert torch.equal(kept[key], tensor.half())
        else:
            assert kept[key].dtype == torch.float32
            assert torch.equal(kept[key], tensor)
    assert half.bytes_after < 0.6 * whole.bytes_after
    narrow, exact = network_of(half.manifest), network_of(whole.manifest)
    widened = weights_of(narrow)
    assert {tensor.dtype for tensor in widened.values()} <= {torch.float32, torch.int64}
    for key, tensor in small_state().items():
        assert torch.allclose(widened[key], tensor, rtol=2**-11, atol=2**-24)
    with torch.inference_mode():
        images = [torch.full((1, 64, 96), 99, dtype=torch.uint8)]
        seen, expected = narrow.features(images).maps, exact.features(images).maps
    for name, level in expected.items():
        assert (seen[name] - level).abs().max() < 0.01 * level.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("half", [False, True])
def test_weights_of_any_width(tmp_path: Path, dtype: torch.dtype, half: bool) -> None:
    state = {key: tensor.to(dtype) for key, tensor in small_state().items()}
    done = import_checkpoint(write_run(tmp_path, content=state), tmp_path / "weights", half=half)
    kept = load_file(done.weights)
    assert {t.dtype for t in kept.values()} <= {torch.float32, torch.float16}
    narrow = {key: t.half() if half and t.ndim >= 2 else t for key, t in state.items()}
    assert same({key: t.float() for key, t in kept.items()}, {key: t.float() for key, t in narrow.items()})


def test_a_cascade(tmp_path: Path) -> None:
    weights = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    head = {"fc_channels": (32, 32), "cascade": True, "class_agnostic": True, "box_weights": weights}
    path = write_run(tmp_path, SMALL | CASCADE, small_state(box_head=head))
    done = import_checkpoint(path, tmp_path / "weights")
    assert same(outputs(network_of(path), tmp_path), outputs(network_of(done.manifest), tmp_path))


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
def test_other_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"zoo{suffix}"
    if suffix == ".pkl":
        arrays = {key: tensor.numpy() for key, tensor in small_state().items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    elif suffix == ".pt":
        torch.save(small_state(), path)
    else:
        save_file(small_state(), path)
    write_config(tmp_path / "zoo.yaml")
    done = import_checkpoint(path, tmp_path / "weights")
    assert same(load_file(done.weights), small_state())


def test_the_prefixes_and_leftovers_of_other_versions_come_off(tmp_path: Path) -> None:
    extra = {
        "pixel_mean": torch.zeros(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4),
        "backbone.bottom_up.linear.weight": torch.ones(10, 256),
        "backbone.bottom_up.stem.conv1.norm.num_batches_tracked": torch.tensor(5),
    }
    state = {f"module.{key}": tensor for key, tensor in (small_state() | extra).items()}
    done = import_checkpoint(write_run(tmp_path, content=state), tmp_path / "weights")
    assert same(load_file(done.weights), small_state())


def test_a_frozen_norm_of_2019_has_its_statistics_written(tmp_path: Path) -> None:
    state = {k: t for k, t in small_state().items() if ".running_" not in k}
    path = write_run(tmp_path, content=state)
    done = import_checkpoint(path, tmp_path / "weights")
    assert load_file(done.weights).keys() == small_state().keys()
    assert same(weights_of(network_of(path)), weights_of(network_of(done.manifest)))


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    """Heads of a cascade may be one module, and any tensor a view of another."""
    state = small_state()
    whole = torch.stack([state["backbone.fpn_output2.bias"]] * 4)
    state |= {f"backbone.fpn_output{n}.bias": whole[n - 2] for n in (2, 3, 4, 5)}
    path = write_run(tmp_path, content=state)
    assert same(load_file(import_checkpoint(path, tmp_path / "weights").weights), state)


# The manifest.


def test_the_manifest_is_sound_and_says_where_it_is_from(run: Path, tmp_path: Path) -> None:
    done = import_checkpoint(run, tmp_path / "weights", classes=NAMES)
    plan = load_manifest(done.manifest)
    verify_files(plan)
    (spec,) = plan.manifest.models
    assert spec == done.spec
    assert plan.manifest.classes == spec.classes == NAMES
    assert (spec.name, spec.file, spec.format) == ("model_final", "model_final.safetensors", "safetensors")
    assert (spec.architecture, spec.network) == ("detectron2_rcnn", None)
    assert (spec.bytes, spec.sha256) == (done.bytes_after, digest(done.weights))
    source = f"imported from model_final.pth, sha256 {digest(run)}; settings of config.yaml"
    assert spec.provenance.startswith(source)
    assert plan.manifest.views == ("identity",)


def test_everything_that_the_config_decides_is_written_out(run: Path, tmp_path: Path) -> None:
    """Whatever a later version's defaults are."""
    done = import_checkpoint(run, tmp_path / "weights")
    (entry,) = json.loads(done.manifest.read_text())["models"]
    config = read_config(run.with_name("config.yaml"))
    assert entry["detectron2"] == config.parts.model_dump(mode="json")
    seen = config.preprocessing.model_dump(mode="json", exclude_none=True)
    assert entry["preprocessing"] == seen
    assert seen["resize"]["rounding"] == "nearest"
    assert done.spec.detectron2 == config.parts
    assert done.spec.preprocessing == config.preprocessing


SETTINGS: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.FUSE_TYPE": "avg",
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.RPN.NMS_THRESH": 0.9,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [1.0, 2.0, 3.0, 4.0],
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
    "TEST.DETECTIONS_PER_IMAGE": -1,
}


def test_settings_far_from_any_default_survive(tmp_path: Path) -> None:
    path = write_run(tmp_path, SMALL | SETTINGS)
    done = import_checkpoint(path, tmp_path / "weights")
    config = read_config(path.with_name("config.yaml"))
    network = network_of(done.manifest)
    for found in (done.spec.detectron2, network.parts):
        assert found == config.parts
    for seen in (done.spec.preprocessing, network.preprocessing):
        assert seen == config.preprocessing
    assert same(weights_of(network), weights_of(network_of(path)))


def test_no_resizing_survives(tmp_path: Path) -> None:
    path = write_run(tmp_path, SMALL | {"INPUT.MIN_SIZE_TEST": 0})
    done = import_checkpoint(path, tmp_path / "weights")
    assert done.spec.preprocessing.resize is None
    features = network_of(done.manifest).features([torch.zeros((1, 50, 70), dtype=torch.uint8)])
    assert features.input_hws == ((50, 70),)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_classes_that_nobody_named(tmp_path: Path, count: int) -> None:
    keys = SMALL | {"MODEL.ROI_HEADS.NUM_CLASSES": count}
    done = import_checkpoint(write_run(tmp_path, keys, small_state(count)), tmp_path / "weights")
    expected = {1: ("cell",), 2: ("class1", "class2"), 3: ("shsy5y", "astro", "cort")}[count]
    assert done.spec.classes == load_manifest(done.manifest).manifest.classes == expected
    rules = load_manifest(done.manifest).manifest.rules.per_class
    assert set(rules) == (set(expected) if count == 3 else set())


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c", "d")])
def test_as_many_class_names_as_the_checkpoint_has(run: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    said = refused(tmp_path / "weights", run, ManifestError, classes=names)
    assert said == (
        f"{run}: expected 3 class names, as the checkpoint has, found {len(names)}: {', '.join(names)}"
    )


@pytest.mark.parametrize(
    ("names", "where"),
    [(("a", "a", "b"), "$.classes: expected each once"), (("a", "", "b"), "$.classes[1]: ")],
)
def test_class_names_that_no_manifest_takes(
    run: Path, tmp_path: Path, names: tuple[str, ...], where: str
) -> None:
    said = refused(tmp_path / "weights", run, ManifestError, classes=names)
    assert said.startswith(f"{tmp_path / 'weights' / 'weights_manifest.json'}: {where}")


@pytest.mark.parametrize("names", [("µ", "b\u2028c", "\x85"), ("[", "]\n", '"{'), ("\x0b", "  a ", "b\rc")])
def test_odd_class_names_come_back(run: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    done = import_checkpoint(run, tmp_path / "weights", classes=names)
    assert load_manifest(done.manifest).manifest.classes == done.spec.classes == names


def test_short_lists_stand_in_one_line(run: Path, tmp_path: Path) -> None:
    done = import_checkpoint(run, tmp_path / "weights", classes=NAMES)
    lines = done.manifest.read_text().splitlines()
    assert '  "classes": ["a", "b", "c"],' in lines
    assert len(lines) < 150


# Adding to a manifest.


def second(run: Path, listing: Path, **options: Any) -> importing.Imported:
    return import_checkpoint(run, listing.parent, manifest=listing, **options)


def test_an_entry_is_added_and_the_others_stay(run: Path, tmp_path: Path, listing: Path) -> None:
    content = json.loads(listing.read_text())
    content |= {
        "views": ["identity", "hflip"],
        "fusion": {"iou": 0.55},
        "learned_hw": [300, 400],
        "$schema": "x",
    }
    content["models"][0] |= {"weight": 2.5, "licence": "µ [\n] {", "classes": ["b", "c", "a"]}
    listing.write_text(json.dumps(content))
    done = second(run, listing, name="two", classes=("c", "x", "a"))
    after = json.loads(done.manifest.read_text())
    new = after["models"].pop()
    assert after == content
    assert (new["name"], new["classes"]) == ("two", ["c", "x", "a"])
    plan = load_manifest(done.manifest)
    verify_files(plan)
    ensemble = loaded(done.manifest)
    assert [member.name for member in ensemble.members] == ["one", "two"]
    assert ensemble.members[1].to_manifest.tolist() == [-1, 3, -1, 1]
    assert done.spec == plan.manifest.models[1]
    assert files(tmp_path / "weights") == {"one.safetensors", "two.safetensors", "weights_manifest.json"}


def test_torchvision_and_detectron2_vote_together(run: Path, tmp_path: Path) -> None:
    torch.save(torchvision_state(), tmp_path / "tv.pth")
    first = import_checkpoint(tmp_path / "tv.pth", tmp_path / "weights")
    second(run, first.manifest)
    kinds = [type(member.network) for member in loaded(tmp_path / "weights").members]
    assert kinds == [TorchvisionNetwork, Detectron2Network]


def test_weights_may_lie_deeper_than_their_manifest(run: Path, tmp_path: Path, listing: Path) -> None:
    deep = tmp_path / "weights" / "more" / "deep"
    done = import_checkpoint(run, deep, manifest=listing, name="two", classes=NAMES)
    assert done.spec.file == "more/deep/two.safetensors"
    assert done.weights == deep / "two.safetensors"
    assert len(loaded(listing).members) == 2


def test_relative_paths_and_links(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = import_checkpoint(run, Path("weights"), name="one")
    (tmp_path / "link").symlink_to("weights")
    import_checkpoint(run, Path("link"), manifest=first.manifest, name="two")
    around, listing = Path("weights/../weights"), tmp_path / "weights" / "weights_manifest.json"
    import_checkpoint(run, around, manifest=listing, name="three")
    assert [member.name for member in loaded(Path("weights")).members] == ["one", "two", "three"]


def test_a_name_that_is_taken(run: Path, tmp_path: Path, listing: Path) -> None:
    more = tmp_path / "weights" / "more"
    said = refused(more, run, ManifestError, manifest=listing, name="one", classes=NAMES)
    assert said.startswith(f"{listing}: $.models[*].name: expected each once, found 'one' twice")
    assert "$.models[*].name: expected each once, found 'one' twice" in said


def test_classes_that_the_manifest_does_not_know(run: Path, listing: Path) -> None:
    said = refused(listing.parent, run, ManifestError, manifest=listing, classes=("x", "y", "z"))
    assert "$.models[1].classes: expected at least one of ('a', 'b', 'c'), found ('x', 'y', 'z')" in said


@pytest.mark.slow
def test_weights_outside_the_manifest_s_folder(run: Path, tmp_path: Path, listing: Path) -> None:
    (tmp_path / "weights" / "link").symlink_to(tmp_path)
    for out in (tmp_path / "other", tmp_path, tmp_path / "weights" / "link", tmp_path / "weights2"):
        said = refused(out, run, ManifestError, manifest=listing, name="two")
        assert said == f"{listing}: expected --out inside its folder, found {out}"


def test_no_manifest_to_add_to(run: Path, tmp_path: Path) -> None:
    absent = tmp_path / "weights" / "weights_manifest.json"
    said = refused(tmp_path / "weights", run, ManifestError, manifest=absent)
    assert said == f"{absent}: expected a manifest to add to, found none; leave out --manifest"


@pytest.mark.parametrize("text", ["", "{}", '{"version": 7}', "nonsense", '{"a": 1, "a": 2}', "[]"])
def test_a_broken_manifest_to_add_to(run: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "weights" / "m.json"
    path.parent.mkdir()
    path.write_text(text)
    assert refused(path.parent, run, ManifestError, manifest=path).startswith(f"{path}: ")


# Nothing is written over, and nothing is left half done.


def test_an_import_that_was_killed_before_its_manifest_goes_on(run: Path, tmp_path: Path) -> None:
    done = import_checkpoint(run, tmp_path / "weights")
    before, listing = done.weights.stat().st_mtime_ns, done.manifest.read_text()
    done.manifest.unlink()
    assert import_checkpoint(run, tmp_path / "weights").weights.stat().st_mtime_ns == before
    assert done.manifest.read_text() == listing
    done.manifest.unlink()
    refused_for = refused(tmp_path / "weights", run, CheckpointError, half=True)
    assert refused_for.startswith(f"{done.weights}: expected no file yet")


@pytest.mark.parametrize("name", ["model_final.safetensors", "weights_manifest.json"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_exists_is_never_written_over(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "weights" / name
    path.parent.mkdir()
    path.write_text("precious") if kind == "file" else path.mkdir()
    wrong = ManifestError if name.endswith(".json") else CheckpointError
    assert refused(tmp_path / "weights", run, wrong).startswith(f"{path}: expected no file yet, found one; ")


def test_a_second_import_needs_a_manifest_or_a_folder_of_its_own(run: Path, listing: Path) -> None:
    assert "add to it with --manifest" in refused(listing.parent, run, ManifestError, name="two")
    said = refused(listing.parent, run, CheckpointError, manifest=listing, name="one")
    assert "choose another --name or --out" in said


@pytest.mark.parametrize("name", ["a/b", "../a", "/a", ".", "a/"])
def test_a_name_is_no_path(run: Path, tmp_path: Path, name: str) -> None:
    assert refused(tmp_path / "weights", run, name=name) == f"{name}: expected a name without folders"


def test_a_name_of_its_own(run: Path, tmp_path: Path) -> None:
    done = import_checkpoint(run, tmp_path / "weights", name="fold 1.best")
    assert (done.weights.name, done.spec.name) == ("fold 1.best.safetensors", "fold 1.best")
    assert network_of(done.manifest).class_count == 3


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fails_leaves_nothing(
    run: Path, listing: Path, monkeypatch: pytest.MonkeyPatch, add: bool, failing: int
) -> None:
    """At the weights or at the manifest, a new one or one that is added to."""
    replace, calls = Path.replace, []

    def full(path: Path, target: Path) -> Path:
        calls.append(target.name)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    out = listing.parent if add else listing.parent / "new"
    options = {"manifest": listing} if add else {}
    assert "No space left" in refused(out, run, OSError, name="two", classes=NAMES, **options)
    assert calls == ["two.safetensors", "weights_manifest.json"][:failing]


def test_an_interrupt_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = importing.atomic_file

    def interrupted(path: Path, mode: Any) -> Any:
        if mode == "w":
            raise KeyboardInterrupt
        return writing(path, mode)

    monkeypatch.setattr(importing, "atomic_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(run, tmp_path / "weights")
    assert not files(tmp_path)


def test_out_that_is_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("precious")
    refused(tmp_path / "weights", run, OSError)


def test_the_run_s_own_files_stay_as_they_were(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    import_checkpoint(path, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


# What is not imported.


def test_a_config_is_needed_and_must_agree(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "model_final.pth"
    alone.parent.mkdir()
    alone.write_bytes(run.read_bytes())
    said = refused(tmp_path / "w", alone)
    assert said.startswith(f"{alone}: a Detectron2 checkpoint: expected config.yaml beside it")
    other = write_config(tmp_path / "other.yaml", SMALL | {"MODEL.ROI_BOX_HEAD.FC_DIM": 64})
    said = refused(tmp_path / "w", alone, config=other)
    assert "roi_heads.box_head.fc1.weight (expected (64, 784), found (32, 784))" in said
    deformable = SMALL | {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True]}
    odd = write_config(tmp_path / "odd.yaml", deformable)
    assert "6 missing: backbone.bottom_up.res5.0.conv2_offset" in refused(tmp_path / "w", alone, config=odd)
    wrong = write_config(tmp_path / "wrong.yaml", SMALL | {"MODEL.RESNETS.RES5_DILATION": 2})
    assert "cannot honour MODEL.RESNETS.RES5_DILATION = 2" in refused(tmp_path / "w", alone, config=wrong)
    absent = tmp_path / "none.yaml"
    assert f"{absent}: expected a Detectron2 config" in refused(tmp_path / "w", alone, config=absent)
    right = write_config(tmp_path / "right.yaml")
    assert network_of(import_checkpoint(alone, tmp_path / "w", config=right).manifest).class_count == 3


def test_the_config_that_is_named_goes_before_the_one_beside(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    named = write_config(tmp_path / "named.yaml", SMALL | {"MODEL.RPN.NMS_THRESH": 0.33})
    done = import_checkpoint(path, tmp_path / "w", config=named)
    assert done.spec.detectron2 is not None
    assert done.spec.detectron2.rpn.nms == 0.33
    assert "settings of named.yaml" in done.spec.provenance


def test_a_config_for_a_torchvision_checkpoint(tmp_path: Path) -> None:
    torch.save(torchvision_state(), tmp_path / "a.pth")
    config = write_config(tmp_path / "config.yaml")
    said = refused(tmp_path / "w", tmp_path / "a.pth", config=config)
    assert said.endswith(f"a.pth: expected a checkpoint that goes with {config}, found another")
    assert import_checkpoint(tmp_path / "a.pth", tmp_path / "w").spec.detectron2 is None


def test_values_past_half_precision(tmp_path: Path) -> None:
    key = "roi_heads.box_head.fc1.weight"
    state = small_state()
    state[key][0, 0] = 70000.0
    path = write_run(tmp_path, content=state)
    said = refused(tmp_path / "w", path, half=True)
    assert said.startswith(f"{path}: {key}: expected values within +-65504")
    assert same(load_file(import_checkpoint(path, tmp_path / "w").weights), state)


def test_large_statistics_stay_whole_in_half(tmp_path: Path) -> None:
    """They are not narrowed, so they cannot overflow."""
    key = "backbone.bottom_up.res5.0.conv1.norm.running_var"
    state = small_state()
    state[key][0] = 1e6
    done = import_checkpoint(write_run(tmp_path, content=state), tmp_path / "w", half=True)
    assert load_file(done.weights)[key][0] == 1e6


class Own(torch.nn.Module):
    """A plugin's network."""

    class_count = 3


@pytest.mark.parametrize("named", [True, False])
def test_a_plugin_s_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    """Also one with the keys of a Mask R-CNN, which would come back as another network."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    registry.register_network("own", lambda *arguments: Own(), lambda state: "attention.w" in state)  # type: ignore[arg-type,return-value]
    state = {"attention.w": torch.ones(2)} | (torchvision_state() if named else {})
    torch.save(state, tmp_path / "a.pth")
    said = refused(tmp_path / "w", tmp_path / "a.pth")
    assert said == f"{tmp_path / 'a.pth'}: expected a network that comes with the kit, found a plugin's"


def test_other_networks_and_files(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    assert "no known Mask R-CNN" in refused(tmp_path / "w", tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"hello")
    assert "expected a whole torch checkpoint" in refused(tmp_path / "w", tmp_path / "b.pth")
    assert "expected a checkpoint file, found none" in refused(tmp_path / "w", tmp_path / "c.pth")
    lost = {k: t for k, t in small_state().items() if "fpn_lateral3" not in k}
    said = refused(tmp_path / "w", write_run(tmp_path, content=lost))
    assert "2 missing: backbone.fpn_lateral3.weight, backbone.fpn_lateral3.bias." in said


# Torchvision.


@pytest.mark.parametrize("half", [False, True])
def test_a_torchvision_checkpoint_predicts_the_same(tmp_path: Path, half: bool) -> None:
    model = small()
    run = {"model": model.state_dict(), "optimizer": {"momentum": torch.ones(10**6)}}
    torch.save(run, tmp_path / "tv.pth")
    done = import_checkpoint(tmp_path / "tv.pth", tmp_path / "w", half=half)
    assert done.bytes_after < (0.6 if half else 1.01) * model_bytes(model)
    before, after = network_of(tmp_path / "tv.pth"), network_of(done.manifest)
    if not half:
        assert same(weights_of(before), weights_of(after))
        assert same(outputs(before, tmp_path), outputs(after, tmp_path))
    assert after.preprocessing == before.preprocessing
    verify_files(load_manifest(done.manifest))
    assert done.spec.architecture == "torchvision_rcnn"
    assert "detectron2" not in json.loads(done.manifest.read_text())["models"][0]


def model_bytes(model: MaskRCNN) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def test_what_a_torchvision_checkpoint_does_not_tell_is_written_out(tmp_path: Path) -> None:
    torch.save(torchvision_state(), tmp_path / "tv.pth")
    done = import_checkpoint(tmp_path / "tv.pth", tmp_path / "w")
    said = done.spec.network_settings()
    assert said["anchors"] == {"sizes": ((32.0,), (64.0,), (128.0,)), "aspect_ratios": (0.5, 1.0, 2.0)}
    assert said["detection"] == {"score": 0.05, "nms": 0.5, "per_image": 100}
    assert said["rpn"]["pre_nms_top_n"] == 1000
    assert said["body_norm"]["kind"] == "batch"
    assert done.spec.preprocessing == network_of(tmp_path / "tv.pth").preprocessing


def test_old_torchvision_names_are_renewed(tmp_path: Path) -> None:
    torch.save({"net": prefixed(old_names(small().state_dict()), "module.")}, tmp_path / "tv.pth")
    done = import_checkpoint(tmp_path / "tv.pth", tmp_path / "w")
    assert same(load_file(done.weights), dict(small().state_dict()))


# Several at once.


def test_several_become_one_manifest_in_one_go(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.pth" for name in "ab"]
    for file in files:
        torch.save(torchvision_state(), file)
    done = import_checkpoints([str(file) for file in files], tmp_path / "w", classes=NAMES)
    plan = load_manifest(tmp_path / "w" / "weights_manifest.json")
    assert [spec.name for spec in plan.manifest.models] == [one.spec.name for one in done] == ["a", "b"]
    assert plan.manifest.classes == NAMES
    verify_files(plan)
    torch.save(torchvision_state(), tmp_path / "c.pth")
    import_checkpoints([tmp_path / "c.pth"], tmp_path / "w", classes=NAMES, manifest=done[0].manifest)
    assert len(loaded(done[0].manifest).members) == 3


@pytest.mark.parametrize("second", [b"no checkpoint", None])
def test_of_several_all_are_written_or_none(tmp_path: Path, second: bytes | None) -> None:
    torch.save(torchvision_state(), tmp_path / "a.pth")
    if second is not None:
        (tmp_path / "b.pth").write_bytes(second)
    with pytest.raises(CheckpointError, match=r"b\.pth: expected "):
        import_checkpoints([tmp_path / "a.pth", tmp_path / "b.pth"], tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_several_of_one_name(tmp_path: Path) -> None:
    files = [tmp_path / fold / "best.pth" for fold in ("0", "1")]
    for file in files:
        file.parent.mkdir()
        torch.save(torchvision_state(), file)
    with pytest.raises(CheckpointError, match="expected names that differ, found 'best' twice"):
        import_checkpoints(files, tmp_path / "w")
