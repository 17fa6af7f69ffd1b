"""`models`: what keys told, what was assumed, and nothing said of weights that would not load."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factories import group_norm, prefixed, resnet_pyramid, tiny
from detectron2_runs import CASCADE, PARTS, SMALL, write_run
from detectron2_runs import small_state as detectron2_state
from small import manifest, saved, small, small_state
from torchvision.models import resnet

from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.describe import describe_weights as describe
from sartorius_infer.ensemble.describe import told_and_assumed
from sartorius_infer.ensemble.importing import import_checkpoint
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.weights import find_weights
from sartorius_infer.errors import CheckpointError, ManifestError
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.manifest.settings import flatten
from sartorius_infer.networks import registry
from sartorius_infer.networks.torchvision.family import SOURCES


def describe_weights(weights: Sequence[Path]) -> str:
    return describe(find_weights(weights))


def sections(report: str) -> dict[str, list[str]]:
    """Indented lines under each title of one report; the rest under ""."""
    found: dict[str, list[str]] = {"": []}
    title = ""
    for line in report.splitlines():
        if line.endswith(":"):
            title = line.strip()[:-1]
        else:
            title = title if line.startswith("    ") else ""
            found.setdefault(title, []).append(line.strip())
    return found


def fields(*weights: Path) -> dict[str, list[str]]:
    return sections(describe_weights(weights))


TOLD, SAID, PRESET, ASSUMED = SOURCES.values()


def test_a_bare_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"ema": {"module": prefixed(small_state(), "module.")}})
    found = fields(path)
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    parameters = sum(p.numel() for p in small().parameters())
    assert found[""] == [
        "a",
        f"file          {path}",
        f"bytes         {size:,}",
        f"sha256        {digest}",
        f"tensors       {len(small_state())}, {parameters:,} parameters in float32",
        "found under   ema.module, prefix module.",
        "classes       background, shsy5y, astro, cort (assumed)",
        "architecture  Mask R-CNN, resnet18, 3 levels of 8 channels",
    ]
    assert {"body = resnet18", "stages = (1, 2)", "fpn.channels = 8", "box_pool.size = 2"} <= set(found[TOLD])
    assert {"anchors.sizes = ((32), (64), (128))", "detection.per_image = 100"} <= set(found[ASSUMED])
    assert SAID not in found
    assert "resize.shortest_edge = 800 (assumed)" in found["preprocessing"]


def test_group_norm_is_told_where_other_norms_have_statistics_else_assumed(tmp_path: Path) -> None:
    model = tiny(resnet_pyramid(resnet.resnet18(), channels=64, norm_layer=group_norm))
    whole = dict(model.state_dict())
    found = fields(saved(tmp_path / "a.pth", whole))
    assert {"fpn.norm.kind = group", "body_norm.kind = batch"} <= set(found[TOLD])
    bare = {key: t for key, t in whole.items() if not key.endswith(("_mean", "_var", "_tracked"))}
    found = fields(saved(tmp_path / "a.pth", bare))
    assert {"fpn.norm.kind = group", "body_norm.kind = group"} <= set(found[ASSUMED])
    assert not [line for line in found[TOLD] if "group" in line]


def test_every_part_is_told_or_assumed_once(tmp_path: Path) -> None:
    found = fields(saved(tmp_path / "a.pth"))
    names = [line.partition(" = ")[0] for title in (TOLD, ASSUMED) for line in found[title]]
    assert len(set(names)) == len(names)
    assert not [line for line in found[TOLD] + found[ASSUMED] if "None" in line]


def test_a_manifest(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    told = {
        "network": {"detection": {"per_image": 700}, "body_norm": {"kind": "frozen", "eps": 0.0}},
        "preprocessing": {"normalise": [], "resize": None},
        "classes": ["y", "z", "other"],
    }
    path = manifest(tmp_path, told, views=["identity", "hflip"], classes=["y", "z"])
    head, report = describe_weights([path]).split("\n\n")
    assert head == f"{path}: classes y, z; views identity, hflip"
    found = sections(report)
    assert "classes       background, y, z, other" in found[""]
    assert found[SAID] == ["body_norm.kind = frozen", "body_norm.eps = 0", "detection.per_image = 700"]
    assert found["preprocessing"] == [
        "resize = none",
        "colour = keep (assumed)",
        "channel_order = rgb (assumed)",
        "input_range = 0-1 (assumed)",
        "normalise = ()",
        "pad_multiple = 32 (assumed)",
    ]


def test_one_report_for_each_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    saved(tmp_path / "b.pth", {key: t.half() for key, t in small_state().items()})
    a, b = describe_weights([tmp_path]).split("\n\n")
    assert (a.splitlines()[0], b.splitlines()[0]) == ("a", "b")
    assert "parameters in float16" in b


def test_the_default_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    assert "  classes       background, shsy5y, astro, cort\n" in out
    assert "body = resnet18" in out
    assert err == ""


def test_broken_values_are_counted(tmp_path: Path) -> None:
    broken = {key: t * torch.nan if "cls_score" in key else t for key, t in small_state().items()}
    tensors = next(line for line in fields(saved(tmp_path / "a.pth", broken))[""] if "tensors" in line)
    assert tensors.endswith("; 2 hold NaN or infinity")


def test_it_raises_what_loading_would(tmp_path: Path) -> None:
    lost = {key: t for key, t in small_state().items() if not key.endswith("bn1.weight")}
    with pytest.raises(CheckpointError, match="missing: backbone"):
        describe_weights([saved(tmp_path / "a.pth", lost)])
    with pytest.raises(CheckpointError, match="unexpected: attention"):
        describe_weights([saved(tmp_path / "a.pth", small_state() | {"attention.w": torch.ones(2)})])
    saved(tmp_path / "a.pth")
    with pytest.raises(ManifestError, match="expected 3 class names"):
        describe_weights([manifest(tmp_path, {"classes": ["x"]})])


def test_a_plugin_s_network_with_the_keys_of_a_mask_rcnn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(torch.nn.Module):
        class_count = 3

    def build(*arguments: Any) -> Any:
        return Own()

    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    registry.register_network("own", build)
    saved(tmp_path / "a.pth", small_state() | {"attention.w": torch.ones(2)})
    found = sections(describe_weights([manifest(tmp_path, {"architecture": "own"})]).split("\n\n")[1])
    assert found[""][-1] == "architecture  own (from a plugin)"
    assert TOLD not in found


# Detectron2's.


def test_a_detectron2_checkpoint_lists_what_its_config_decides(tmp_path: Path) -> None:
    path = write_run(tmp_path, content={"model": detectron2_state(), "iteration": 7})
    found = fields(path)
    parameters = sum(t.numel() for key, t in detectron2_state().items() if "running_" not in key)
    expected = {
        "model_final",
        f"tensors       {len(detectron2_state())}, {parameters:,} parameters in float32",
        "found under   model, prefix none",
        "classes       background, shsy5y, astro, cort (assumed)",
        "architecture  Detectron2 Mask R-CNN, R50-FPN of 16 channels",
    }
    assert expected <= set(found[""])
    assert any(line.startswith("provenance    settings of config.yaml") for line in found[""])
    seen = {"channel_order = bgr", "input_range = 0-255", "resize.rounding = nearest"}
    assert seen | {"resize.shortest_edge = 96"} <= set(found["preprocessing"])
    assert not {TOLD, SAID, PRESET, ASSUMED} & found.keys()


def listed(settings: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(" = ") for line in settings)}


def test_every_setting_of_a_detectron2_network_is_listed_once(tmp_path: Path) -> None:
    settings = fields(write_run(tmp_path))["settings"]
    names = flatten(Detectron2Parts().model_dump())
    silent = {name for name in names if ".norm." in name and not name.endswith(".kind")}
    silent |= {f"body.{name}" for name in ("radix", "deformable", "modulated", "deformable_groups")}
    assert listed(settings).keys() | {"body.groups"} == names.keys() - silent | {"body.groups"}
    assert len(listed(settings)) == len(settings)
    expected = {
        "rpn.pre_nms_top_n": "100",
        "anchors.sizes": "((24), (36), (48), (64), (96))",
        "rpn.nms": "0.7",
    }
    assert listed(settings).items() >= expected.items()


def test_groups_of_norms_and_of_a_resnext_are_listed(tmp_path: Path) -> None:
    body = PARTS["body"] | {
        "groups": 2,
        "norm": {"kind": "group"},
        "stem_channels": 32,
        "width_per_group": 16,
    }
    keys = {
        "MODEL.RESNETS.NUM_GROUPS": 2,
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    }
    found = fields(write_run(tmp_path, SMALL | keys, detectron2_state(body=body)))
    assert "architecture  Detectron2 Mask R-CNN, X50 2x16d-FPN of 16 channels" in found[""]
    settings = listed(found["settings"])
    assert (settings["body.norm.kind"], settings["body.norm.groups"]) == ("group", "32")
    assert settings["body.groups"] == "2"


def test_a_resnest_and_its_deformable_convolutions_are_named(tmp_path: Path) -> None:
    body = PARTS["body"] | {"radix": 2, "stride_in_1x1": False, "deformable": (4, 5), "modulated": True}
    keys = {
        "MODEL.RESNETS.RADIX": 2,
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True],
        "MODEL.RESNETS.DEFORM_MODULATED": True,
    }
    found = fields(write_run(tmp_path, SMALL | keys, detectron2_state(body=body)))
    name = "ResNeSt-50-FPN of 16 channels with deformable convolutions"
    assert f"architecture  Detectron2 Mask R-CNN, {name}" in found[""]
    settings = listed(found["settings"])
    assert (settings["body.radix"], settings["body.deformable"]) == ("2", "(4, 5)")
    assert settings["body.modulated"] == "True"
    assert "body.stem_channels" not in settings
    plain = listed(fields(write_run(tmp_path))["settings"])
    assert not {f"body.{name}" for name in ("radix", "deformable", "modulated")} & plain.keys()


def test_no_limit_of_detections_is_listed(tmp_path: Path) -> None:
    settings = fields(write_run(tmp_path, SMALL | {"TEST.DETECTIONS_PER_IMAGE": -1}))["settings"]
    assert "detection.per_image" in listed(settings)


def test_a_cascade_is_named_and_its_stages_listed(tmp_path: Path) -> None:
    head = {
        "fc_channels": (32, 32),
        "cascade": True,
        "class_agnostic": True,
        "box_weights": ((1.0,) * 4,) * 3,
    }
    found = fields(write_run(tmp_path, SMALL | CASCADE, detectron2_state(box_head=head)))
    assert "architecture  Detectron2 Cascade Mask R-CNN, R50-FPN of 16 channels" in found[""]
    stages = "((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))"
    assert {"box_head.cascade = True", f"box_head.box_weights = {stages}"} <= set(found["settings"])


def test_no_resizing_is_said(tmp_path: Path) -> None:
    found = fields(write_run(tmp_path, SMALL | {"INPUT.MIN_SIZE_TEST": 0}))["preprocessing"]
    assert "resize = none" in found
    assert not any(line.startswith("resize.") for line in found)


def test_an_imported_detectron2_network_is_listed_as_it_was(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    done = import_checkpoint(path, tmp_path / "weights")
    head, report = describe_weights([done.manifest]).split("\n\n")
    assert head == f"{done.manifest}: classes shsy5y, astro, cort; views identity"
    before, after = fields(path), sections(report)
    assert after["settings"] == before["settings"]
    assert after["preprocessing"] == [line.removesuffix(" (assumed)") for line in before["preprocessing"]]
    assert any("imported from model_final.pth, sha256 " in line for line in after[""])


def test_a_detectron2_checkpoint_without_its_config_is_not_described(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected config\.yaml beside it, found none"):
        describe_weights([saved(tmp_path / "a.pth", detectron2_state())])


def test_what_a_bare_detectron2_checkpoint_assumes_is_one_line(tmp_path: Path) -> None:
    ensemble = load_ensemble([write_run(tmp_path)], torch.device("cpu"))
    (line,) = told_and_assumed(ensemble.manifest.models[0]).splitlines()
    assert line.startswith(f"{tmp_path / 'model_final.pth'}: Detectron2, settings of config.yaml and, for ")


def test_assumptions_are_the_defaults() -> None:
    (line,) = told_and_assumed(
        ModelSpec(name="a", file="a.pth", architecture="torchvision_rcnn")
    ).splitlines()
    assert line.startswith("a.pth: assumed ImageNet normalisation, resize 800/1333, torchvision's anchors, ")
    assert "at most 100 detections an image" in line
