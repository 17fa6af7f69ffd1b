"""A network of one's own: written from the documented contract alone, run by the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from commands import sartorius
from places import ROOT
from torch import Tensor

from sartorius_infer import register_network
from sartorius_infer.cells.rle import decode_mask
from sartorius_infer.cli.main import main
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import CheckpointError, SartoriusError
from sartorius_infer.manifest.manifest import ModelSpec
from sartorius_infer.networks import family_of, registry
from sartorius_infer.networks.plugins import load_plugin
from sartorius_infer.types import Bool, CellImage, UInt8

SAMPLE = ROOT / "samples" / "SkBr3_Phase_H3_2_02d16h00m_4.tif"

BLOBS = '''
"""Bright blobs are cells: one class for each threshold, nothing learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torchvision.ops import roi_align

from sartorius_infer import register_network
from sartorius_infer.networks import Detections, Features


@dataclass
class Blobs:
    thresholds: torch.Tensor

    @property
    def class_count(self):
        return len(self.thresholds)

    def to(self, device):
        return Blobs(self.thresholds.to(device))

    def features(self, images, view=None):
        gray = torch.stack([image.float().mean(0, keepdim=True) for image in images])
        sizes = ((gray.shape[2], gray.shape[3]),) * len(images)
        return Features({"gray": gray}, sizes, sizes, sizes[0])

    def propose(self, features):
        return [self.found(gray[0])[0] for gray in features.maps["gray"]]

    def detect(self, features, proposals):
        return [Detections(*self.found(gray[0])) for gray in features.maps["gray"]]

    def found(self, gray):
        boxes, scores, labels = [], [], []
        for label, threshold in enumerate(self.thresholds.tolist(), 1):
            blobs, _ = ndimage.label(gray.cpu().numpy() >= threshold)
            for rows, columns in ndimage.find_objects(blobs):
                if min(rows.stop - rows.start, columns.stop - columns.start) >= 5:
                    boxes.append([columns.start, rows.start, columns.stop, rows.stop])
                    scores.append(0.9)
                    labels.append(label)
        boxes = torch.tensor(boxes, dtype=torch.float32, device=gray.device).reshape(-1, 4)
        labels = torch.tensor(labels, dtype=torch.int64, device=gray.device)
        return boxes, torch.tensor(scores, device=gray.device), labels

    def mask_probabilities(self, features, boxes, labels):
        masks = []
        for gray, some, their in zip(features.maps["gray"], boxes, labels):
            bright = (gray[0] >= self.thresholds[:, None, None]).float()
            every = roi_align(bright[None], [some], 28, aligned=True)
            masks.append(every[torch.arange(len(some)), (their - 1).clamp(min=0)])
        return masks


register_network(
    "blobs",
    lambda spec, state, precision: Blobs(state["blobs.thresholds"]),
    lambda state: "blobs.thresholds" in state,
)
'''


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plugins of one test are gone in the next."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("sartorius_infer_plugin_"):
            del sys.modules[name]


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """A folder of the plugin, a checkpoint of it and a manifest that names it."""
    (tmp_path / "blobs.py").write_text(BLOBS)
    torch.save({"model": {"blobs.thresholds": torch.tensor([160.0])}}, tmp_path / "blobs.pth")
    entry = {"name": "blobs", "file": "blobs.pth", "architecture": "blobs"}
    content = {"version": 1, "classes": ["cell"], "models": [entry], "rules": {"per_class": {"cell": {}}}}
    (tmp_path / "weights_manifest.json").write_text(json.dumps(content))
    return tmp_path


def sample() -> UInt8:
    gray = cv2.imread(str(SAMPLE), cv2.IMREAD_GRAYSCALE)
    assert gray is not None
    return np.asarray(gray, np.uint8)


def cells(submission: Path, size_hw: tuple[int, int]) -> list[Bool]:
    rows = submission.read_text().splitlines()[1:]
    return [decode_mask(row.partition(",")[2], size_hw) for row in rows]


@pytest.mark.slow
def test_from_the_command_line(blobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: list[str | Path] = ["--weights", blobs, "--plugin", "blobs.py", "--images", SAMPLE]
    code, out, _ = sartorius(*words, "--out", "s.csv", cwd=blobs)
    assert code == 0
    gray = sample()
    found = cells(blobs / "s.csv", (gray.shape[0], gray.shape[1]))
    assert f"cells     {len(found)} (cell {len(found)})" in out
    assert len(found) > 20
    assert np.sum(found, axis=0).max() == 1
    assert np.mean(gray[np.any(found, axis=0)] >= 160) > 0.9
    assert main(["check", "--submission", str(blobs / "s.csv"), "--images", str(SAMPLE)]) == 0
    assert capsys.readouterr().out.endswith("s.csv: no problems\n")


def test_models_describes_it(blobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--weights", str(blobs), "--plugin", str(blobs / "blobs.py")]) == 0
    out, err = capsys.readouterr()
    assert "  tensors       1, 1 parameters in float32\n" in out
    assert "  classes       background, cell\n  architecture  blobs (from a plugin)\n" in out
    assert err == ""


def test_without_the_plugin(blobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--weights", str(blobs)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: blobs.pth: expected an architecture of ")
    assert line.endswith("found 'blobs'; a network of your own is registered by --plugin FILE.py")


def test_a_bare_checkpoint_is_recognised(blobs: Path) -> None:
    torch.save({"module.blobs.thresholds": torch.tensor([1.0, 2.0])}, blobs / "two.pth")
    load_plugin(blobs / "blobs.py")
    assert load_ensemble([blobs / "blobs.pth"], torch.device("cpu")).classes == ("cell",)
    with pytest.raises(CheckpointError, match=r"two\.pth: no known Mask R-CNN"):
        load_ensemble([blobs / "two.pth"], torch.device("cpu"))


def test_networks_of_other_classes_vote_with_it_in_any_view(blobs: Path) -> None:
    """A class that one of them does not know is left to the other."""
    torch.save({"blobs.thresholds": torch.tensor([140.0, 180.0])}, blobs / "two.pth")
    content = json.loads((blobs / "weights_manifest.json").read_text())
    two = {"name": "two", "file": "two.pth", "architecture": "blobs", "classes": ["dim", "cell"]}
    content |= {"classes": ["cell", "dim"], "views": ["identity", "hflip", "rot90+scale:2"]}
    content["models"] = [content["models"][0] | {"classes": ["cell"]}, two]
    (blobs / "weights_manifest.json").write_text(json.dumps(content))
    load_plugin(blobs / "blobs.py")
    image = CellImage("a", sample()[100:260, 200:460])
    (seen,) = predict(load_ensemble([blobs], torch.device("cpu")), [image])
    assert set(seen.labels) == {1, 2}
    for label, threshold in ((1, 160), (2, 140)):
        x0, y0, x1, y1 = seen.boxes[seen.labels == label][0].round().astype(int)
        assert np.mean(image.pixels[y0:y1, x0:x1] >= threshold) > 0.2


def write(folder: Path, text: str, name: str = "own.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


REGISTER = "from sartorius_infer import register_network\nregister_network({name!r}, None)\n"


FAILURES = [
    ("def", "SyntaxError: "),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    (REGISTER.format(name="a") * 2, "CheckpointError: architecture 'a' is registered twice"),
    (REGISTER.format(name="resnet50_fpn"), "CheckpointError: architecture 'resnet50_fpn' is regis"),
]


@pytest.mark.parametrize(("text", "said"), FAILURES)
def test_a_plugin_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SartoriusError) as caught:
        load_plugin(path)
    assert str(caught.value).startswith(f"{path}: the plugin failed: {said}")
    registry._FAMILIES.pop("a", None)
    assert main(["models", "--plugin", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("name", ["absent.py", "folder.py", "own.txt"])
def test_what_is_no_python_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    write(tmp_path, "", "own.txt")
    with pytest.raises(CheckpointError) as caught:
        load_plugin(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: expected a Python file (.py) ")


def test_nothing_is_run_that_was_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "1 / 0", "blobs.py")
    monkeypatch.chdir(tmp_path)
    assert main(["models"]) == 0


def test_plugins_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        load_plugin(write(tmp_path / name, REGISTER.format(name=name), "my-plugin.v2.py"))
    assert {"a", "b"} <= set(registry._FAMILIES)


def test_later_registrations_are_asked_first() -> None:
    def build(*arguments: Any) -> Any:
        raise NotImplementedError("by its own build")

    def everything(state: Any) -> bool:
        return True

    state: dict[str, Tensor] = {"x": torch.ones(1)}
    register_network("first", build, everything)
    register_network("second", build, everything)
    register_network("shy", build)
    assert family_of(None, state, "a.pth").names == ("second",)
    assert family_of("first", state, "a.pth").names == ("first",)
    with pytest.raises(NotImplementedError, match="by its own build"):
        family_of("shy", state, "a.pth").build(ModelSpec(name="a", file="a.pth"), state, torch.float32)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(CheckpointError, match="architecture 'resnet50_fpn' is registered twice"):
        register_network("resnet50_fpn", lambda *_: None)  # type: ignore[arg-type]


def refuses(*_: object) -> object:
    raise ZeroDivisionError("no such luck")


@pytest.mark.parametrize(
    ("build", "reason"),
    [(refuses, "ZeroDivisionError: no such luck"), (lambda *_: object(), "AttributeError: ")],
)
def test_a_network_that_cannot_be_built(build: Any, reason: str, tmp_path: Path) -> None:
    register_network("own", build, lambda state: True)
    torch.save({"weight": torch.ones(2)}, tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=rf"own\.pth: own cannot be built: {reason}"):
        load_ensemble([tmp_path / "own.pth"], torch.device("cpu"))


def test_a_plugin_gets_what_lies_beside_a_mask_rcnn_s_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only it knows what belongs to its network."""
    seen: list[set[str]] = []

    class Own:
        class_count = 3

        def to(self, device: torch.device) -> Own:
            return self

    def build(spec: ModelSpec, state: dict[str, Tensor], precision: torch.dtype) -> Any:
        seen.append(set(state))
        return Own()

    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    register_network("own", build, lambda state: "refine.w" in state)
    keys = ("model.backbone.w", "model.rpn.w", "model.roi_heads.w", "refine.w", "model.criterion.w")
    torch.save({"state_dict": {key: torch.ones(2) for key in keys}}, tmp_path / "a.pth")
    load_ensemble(tmp_path / "a.pth", "cpu")
    assert seen == [{"backbone.w", "rpn.w", "roi_heads.w", "refine.w", "criterion.w"}]
    assert not caplog.messages
