from __future__ import annotations

import csv
import logging
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import tiny_model, write_image, write_tiny
from torch import Tensor

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.rle import encode_label_map
from sartorius_infer.ensemble.ensemble import Ensemble
from sartorius_infer.ensemble.loading import load_ensemble
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import ImageError, PredictionError
from sartorius_infer.images.find import find_images
from sartorius_infer.images.read import read_image
from sartorius_infer.manifest.views import IDENTITY, View
from sartorius_infer.networks import Features
from sartorius_infer.output.check import check_submission
from sartorius_infer.output.predictions import load_prediction
from sartorius_infer.run.jobs import Job, Options, Summary, plan_jobs
from sartorius_infer.run.runs import Run, execute

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return load_ensemble([write_tiny(tmp_path_factory.mktemp("tiny"))], CPU)


def run_on(ensemble: Ensemble, folder: Path, out: Path, sample: Sequence[str] | None = None,
           **options: Any) -> Summary:  # fmt: skip
    jobs, _ = plan_jobs(find_images([folder]), sample)
    return run_jobs(ensemble, jobs, out, **options)


def run_jobs(
    ensemble: Ensemble, jobs: Sequence[Job], out: Path, batch_size: int = 1, **options: Any
) -> Summary:
    summary = execute(Run(tuple(jobs), out, options=Options(**options), batch_size=batch_size), ensemble)
    assert summary is not None
    return summary


def rows(path: Path) -> list[tuple[str, str]]:
    with path.open() as file:
        return [(row["id"], row["predicted"]) for row in csv.DictReader(file)]


def write_images(folder: Path, count: int, size_hw: tuple[int, int] = (64, 96)) -> Path:
    for i in range(count):
        write_image(folder / f"image{i}.png", size_hw, seed=i)
    return folder


def test_the_manifest_fixes_how_sixteen_bits_are_read(tmp_path: Path) -> None:
    ensemble = load_ensemble([write_tiny(tmp_path / "tiny", images={"range": [0, 510]})], CPU)
    write_images(tmp_path / "eight", 1)
    gray = read_image(tmp_path / "eight" / "image0.png").pixels
    (tmp_path / "sixteen").mkdir()
    assert cv2.imwrite(str(tmp_path / "sixteen" / "image0.png"), gray.astype(np.uint16) * 2)
    for name in ("eight", "sixteen"):
        run_on(ensemble, tmp_path / name, tmp_path / f"{name}.csv")
    assert len(rows(tmp_path / "eight.csv")) > 3
    assert rows(tmp_path / "eight.csv") == rows(tmp_path / "sixteen.csv")


def test_a_run_writes_what_the_steps_give_one_by_one(tiny: Ensemble, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    summary = run_on(tiny, folder, tmp_path / "s.csv")
    expected = []
    for file in find_images([folder]):
        (prediction,) = predict(tiny, [read_image(file)])
        cells = build_instances(prediction, tiny.manifest.rules, tiny.classes)
        expected += [(file.id, rle) for rle in encode_label_map(cells.label_map, len(cells)) or [""]]
    assert rows(tmp_path / "s.csv") == expected
    assert summary.images == 3
    assert summary.cells.total() == sum(bool(rle) for _, rle in expected) > 10


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"workers": 1}, {"workers": 8, "batch_size": 2}])
def test_batches_and_threads_change_nothing(tiny: Ensemble, tmp_path: Path, options: dict[str, int]) -> None:
    folder = write_images(tmp_path / "images", 4)
    write_image(folder / "image1b.png", (50, 120))
    run_on(tiny, folder, tmp_path / "one.csv", workers=1)
    run_on(tiny, folder, tmp_path / "other.csv", **options)
    one, other = rows(tmp_path / "one.csv"), rows(tmp_path / "other.csv")
    assert [i for i, _ in one] == [i for i, _ in other]
    # A convolution over a batch may round otherwise than over one image: pixels at a threshold.
    assert np.mean([a == b for a, b in zip(one, other, strict=True)]) > 0.9


def test_saved_predictions_hold_all_and_give_the_same_cells(tiny: Ensemble, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 2)
    saved = tmp_path / "saved"
    saved.mkdir()
    strict = tiny.manifest.rules.model_copy(update={"per_class": {}})
    ensemble = replace(tiny, manifest=tiny.manifest.model_copy(update={"rules": strict}))
    run_on(ensemble, folder, tmp_path / "pushed.csv")
    run_on(ensemble, folder, tmp_path / "saved.csv", save_predictions=saved)
    assert (tmp_path / "pushed.csv").read_bytes() == (tmp_path / "saved.csv").read_bytes()
    prediction = load_prediction(saved / "image0.npz")
    assert prediction.scores.min() < 0.5 <= strict.of("a").score
    assert len(prediction) == 40


def test_the_sample_submission_sets_ids_and_order(tiny: Ensemble, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    jobs, ignored = plan_jobs(find_images([folder]), ("image2", "gone", "image0"))
    assert [job.id for job in jobs] == ["image2", "gone", "image0"]
    assert ignored == ["image1"]
    summary = run_on(tiny, folder, tmp_path / "s.csv", sample=("image2", "gone", "image0"))
    assert list(dict(rows(tmp_path / "s.csv"))) == ["image2", "gone", "image0"]
    assert ("gone", "") in rows(tmp_path / "s.csv")
    assert list(summary.failed) == ["gone"]


def test_failing_images_become_blank_rows_among_good_ones(tiny: Ensemble, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 2)
    (folder / "image0b.png").write_bytes((folder / "image0.png").read_bytes()[:100])
    (folder / "image9.png").write_bytes(b"")
    summary = run_on(tiny, folder, tmp_path / "s.csv", batch_size=4)
    assert sorted(summary.failed) == ["image0b", "image9"]
    assert "image0b.png" in summary.failed["image0b"]
    assert [r for r in rows(tmp_path / "s.csv") if r[0] in summary.failed] == [
        ("image0b", ""),
        ("image9", ""),
    ]
    assert check_submission(tmp_path / "s.csv", {f"image{i}": (64, 96) for i in ("0", "0b", "1", "9")}) == []


def test_stop_raises_and_leaves_the_earlier_file(tiny: Ensemble, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 2)
    (folder / "image1.png").write_bytes(b"not an image")
    out = tmp_path / "s.csv"
    out.write_text("earlier")
    with pytest.raises(ImageError, match=r"image1\.png"):
        run_on(tiny, folder, out, on_error="stop")
    assert out.read_text() == "earlier"
    assert {p.name for p in tmp_path.iterdir()} == {"images", "s.csv"}


def test_nan_outputs_fail_their_images(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1] = float("nan")
    ensemble = load_ensemble([write_tiny(tmp_path / "w", model)], CPU)
    folder = write_images(tmp_path / "images", 2)
    summary = run_on(ensemble, folder, tmp_path / "s.csv", batch_size=2)
    assert rows(tmp_path / "s.csv") == [("image0", ""), ("image1", "")]
    assert "NaN" in summary.failed["image0"]


def test_a_network_that_finds_nothing_leaves_blank_rows_and_no_failure(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = 100.0
    ensemble = load_ensemble([write_tiny(tmp_path / "w", model, views=["identity", "hflip"])], CPU)
    summary = run_on(ensemble, write_images(tmp_path / "images", 2), tmp_path / "s.csv")
    assert rows(tmp_path / "s.csv") == [("image0", ""), ("image1", "")]
    assert summary.blank == ["image0", "image1"]
    assert not summary.failed


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (700, 3)])
def test_extreme_sizes(tiny: Ensemble, tmp_path: Path, size_hw: tuple[int, int]) -> None:
    write_image(tmp_path / "images" / "odd.png", size_hw)
    summary = run_on(tiny, tmp_path / "images", tmp_path / "s.csv")
    assert not summary.failed
    assert check_submission(tmp_path / "s.csv", {"odd": size_hw}) == []


class SmallMemory:
    """MOCK of a GPU with little memory: refuses large batches and large RoI sets as torch would."""

    def __init__(self, network: Any, most_images: int, most_rois: int) -> None:
        self.network, self.most_images, self.most_rois = network, most_images, most_rois
        self.class_count = network.class_count

    def features(self, images: Sequence[Tensor], view: View = IDENTITY) -> Features:
        self._allow(len(images) <= self.most_images)
        features: Features = self.network.features(images, view)
        return features

    def propose(self, features: Features) -> Any:
        return self.network.propose(features)

    def detect(self, features: Features, proposals: list[Tensor]) -> Any:
        return self.network.detect(features, proposals)

    def mask_probabilities(self, features: Features, boxes: list[Tensor], labels: list[Tensor]) -> Any:
        self._allow(sum(map(len, boxes)) <= self.most_rois)
        return self.network.mask_probabilities(features, boxes, labels)

    def _allow(self, fits: bool) -> None:
        if not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def with_memory(ensemble: Ensemble, most_images: int, most_rois: int) -> Ensemble:
    (member,) = ensemble.members
    return replace(
        ensemble, members=(replace(member, network=SmallMemory(member.network, most_images, most_rois)),)
    )


def test_out_of_memory_halves_the_batch_then_chunks_rois_and_says_so(
    tiny: Ensemble, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_images(tmp_path / "images", 5)
    run_on(tiny, folder, tmp_path / "plain.csv")
    with caplog.at_level(logging.WARNING):
        summary = run_on(with_memory(tiny, 1, 10), folder, tmp_path / "small.csv", batch_size=4)
    assert not summary.failed
    said = [record.message for record in caplog.records]
    assert said[:3] == [
        "out of memory: going on with batches of 2",
        "out of memory: going on with batches of 1",
        "out of memory: going on with mask heads on 256 RoIs at a time",
    ]
    assert said[-1] == "out of memory: going on with mask heads on 8 RoIs at a time"
    plain, small = rows(tmp_path / "plain.csv"), rows(tmp_path / "small.csv")
    assert np.mean([a == b for a, b in zip(plain, small, strict=True)]) > 0.9


def test_memory_that_never_suffices_fails_the_image(tiny: Ensemble, tmp_path: Path) -> None:
    summary = run_on(with_memory(tiny, 0, 0), write_images(tmp_path / "images", 2), tmp_path / "s.csv")
    assert list(summary.failed) == ["image0", "image1"]
    assert "out of memory" in summary.failed["image0"]


@pytest.mark.parametrize("error", [RuntimeError, IndexError, ZeroDivisionError])
def test_an_error_inside_a_network_names_the_image(
    tiny: Ensemble, tmp_path: Path, error: type[Exception]
) -> None:
    class Broken(SmallMemory):
        def propose(self, features: Features) -> Any:
            raise error("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED\nsecond line")

    (member,) = tiny.members
    broken = replace(tiny, members=(replace(member, network=Broken(member.network, 9, 999)),))
    folder = write_images(tmp_path / "images", 1)
    with pytest.raises(PredictionError, match=r"^image0: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED$"):
        run_on(broken, folder, tmp_path / "s.csv", on_error="stop")


def test_peak_memory_does_not_grow_with_the_number_of_images(tiny: Ensemble, tmp_path: Path) -> None:
    file = find_images([write_image(tmp_path / "big.png", (1500, 1500))])[0]

    def peak_after(count: int) -> int:
        run_jobs(tiny, [Job(f"{i}", file) for i in range(count)], tmp_path / "s.csv", workers=2)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

    before = peak_after(6)
    # 20 images of 2 MB of pixels and 9 MB of label map would be 220 MB if any were kept.
    assert peak_after(20) - before < 60_000
