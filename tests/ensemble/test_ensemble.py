"""The front door: an ensemble as people load it, and the cells of images however they are handed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import loose_rules, write_image, write_tiny

from sartorius_infer import Ensemble, find_images, load_ensemble, read_image
from sartorius_infer.cells.claim import build_instances
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.errors import DeviceError, ImageError, ManifestError
from sartorius_infer.manifest.rules import ClassRule, Rules


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"), rules=loose_rules())


@pytest.fixture(scope="module")
def ensemble(manifest: Path) -> Ensemble:
    return load_ensemble(manifest, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of two sizes."""
    folder = tmp_path_factory.mktemp("images")
    sizes = [(96, 128), (80, 96), (96, 128)]
    return [write_image(folder / f"{i}.png", size, seed=i) for i, size in enumerate(sizes)]


def test_cells_are_those_of_the_passes_and_the_rules(ensemble: Ensemble, files: list[Path]) -> None:
    """The slow, obvious way: every box gets a mask, and the rules decide afterwards."""
    for file in files:
        image = read_image(file)
        (prediction,) = predict(ensemble, [image])
        expected = build_instances(prediction, ensemble.rules, ensemble.classes)
        found = ensemble.segment(file)
        assert len(found) > 3
        assert found.image_id == file.stem
        np.testing.assert_array_equal(found.label_map, expected.label_map)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_several_at_once_are_as_each_alone(ensemble: Ensemble, files: list[Path]) -> None:
    together = ensemble.segment(files)
    assert [cells.image_id for cells in together] == [file.stem for file in files]
    for file, cells in zip(files, together, strict=True):
        np.testing.assert_array_equal(cells.label_map, ensemble.segment(file).label_map)
    assert ensemble.segment([]) == []


def test_one_image_in_every_form(ensemble: Ensemble, files: list[Path]) -> None:
    file = files[0]
    gray = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    assert gray is not None
    rgb = np.repeat(gray[..., None], 3, axis=2)
    forms: list[Any] = [
        *(str(file), file, read_image(file), find_images(file)[0], gray, gray.astype(np.uint16), rgb),
        *(
            np.dstack([rgb, np.zeros_like(gray)]),
            gray / 255,
            (gray / 255).astype(np.float32),
            gray[:, ::-1][:, ::-1],
        ),
    ]
    expected = ensemble.segment(file).label_map
    for form in forms:
        np.testing.assert_array_equal(ensemble.segment(form).label_map, expected)
    np.testing.assert_array_equal(ensemble.segment(find_images(file.parent))[0].label_map, expected)


def test_the_manifest_fixes_how_sixteen_bits_are_read(files: list[Path], tmp_path: Path) -> None:
    """In files and arrays alike: 12 bits that use the lowest eight, which would be brighter by themselves."""
    plain = load_ensemble(write_tiny(tmp_path / "plain", rules=loose_rules()), device="cpu")
    fixed = load_ensemble(
        write_tiny(tmp_path / "fixed", rules=loose_rules(), images={"bits": 12}), device="cpu"
    )
    gray = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    assert gray is not None
    stored = (gray // 2).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), stored)
    dark = np.floor(stored * (255 / 4095) + 0.5).astype(np.uint8)
    for form in (stored, tmp_path / "a.png"):
        np.testing.assert_array_equal(fixed.segment(form).label_map, plain.segment(dark).label_map)
        np.testing.assert_array_equal(plain.segment(form).label_map, plain.segment(gray // 2).label_map)
    assert not np.array_equal(plain.segment(stored).label_map, fixed.segment(stored).label_map)


def test_an_image_in_which_nothing_is_found(ensemble: Ensemble, files: list[Path]) -> None:
    nothing = ensemble.with_overrides(score=dict.fromkeys(ensemble.classes, 1.0)).segment(files[0])
    assert len(nothing) == 0
    assert nothing.label_map.max() == 0


SHAPES = "expected an array (H, W), (H, W, 3) or (H, W, 4), found "
BAD_IMAGES = [
    (np.zeros((4, 4), np.int64), ImageError, "expected uint8, uint16 or fractions in [0, 1], found int64"),
    (np.zeros((4, 4), np.bool_), ImageError, "expected uint8, uint16 or fractions in [0, 1], found bool"),
    (np.full((4, 4), 255.0), ImageError, "expected fractions in [0, 1], found 255 to 255"),
    (np.full((4, 4), np.nan), ImageError, "expected fractions in [0, 1], found nan to nan"),
    (
        np.zeros((4, 4, 2), np.uint8),
        ImageError,
        f"{SHAPES}(4, 4, 2)",
    ),
    (
        np.zeros((2, 4, 4, 3), np.uint8),
        ImageError,
        f"{SHAPES}(2, 4, 4, 3)",
    ),
    (
        np.zeros((0, 4), np.uint8),
        ImageError,
        f"{SHAPES}(0, 4)",
    ),
    (torch.zeros((4, 4)), TypeError, "or a list of them, found Tensor"),
    (
        None,
        TypeError,
        "expected a path, an array (H, W), (H, W, 3) or (H, W, 4), or a list",
    ),
    (7, TypeError, "found int"),
]


@pytest.mark.parametrize(("image", "kind", "said"), BAD_IMAGES, ids=range(len(BAD_IMAGES)))
def test_what_is_no_image(ensemble: Ensemble, image: Any, kind: type[Exception], said: str) -> None:
    for form in (image, [image]):
        with pytest.raises(kind) as caught:
            ensemble.segment(form)
        assert said in str(caught.value)
        assert str(caught.value).startswith("image: ")


def test_files_that_are_no_images_are_named(ensemble: Ensemble, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.png"):
        with pytest.raises(ImageError, match=f"^{path}: "):
            ensemble.segment(path)


def test_parameters_of_a_run_are_keywords(manifest: Path, files: list[Path], tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('{"per_class": {"a": {"score": 0.9}}}', encoding="utf-8")
    loaded = load_ensemble(
        str(manifest),
        device="cpu",
        precision="fp32",
        views=["hflip"],
        rules=rules,
        min_area={"a": 9},
        edge="drop",
    )
    assert loaded.manifest.views == ("hflip",)
    assert loaded.rules.of("a") == ClassRule(score=0.9, min_area=9)
    assert loaded.rules.edge.mode == "drop"
    own = Rules(per_class={"b": ClassRule(score=0.1)})
    assert load_ensemble([manifest], "cpu", rules=own, score={"b": 0.2}).rules.of("b").score == 0.2


BAD_SETTINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"views": ["sideways"]}, ManifestError, "view 'sideways': expected "),
    ({"views": ["hflip", "hflip"]}, ManifestError, "view 'hflip': expected each view once, found it again"),
    ({"views": []}, ManifestError, "views: expected a list of one or more names"),
    ({"views": "hflip"}, ManifestError, "views: expected a list of one or more names"),
    ({"edge": "keeps"}, ManifestError, "expected rule, keep, drop"),
    (
        {"score": {"x": 0.5}},
        ManifestError,
        "x=0.5: expected one of the classes a, b, c",
    ),
    ({"score": {"a": float("nan")}}, ManifestError, "a=nan: expected a number from 0 to 1"),
    ({"min_area": {"a": -1}}, ManifestError, "a=-1: expected a whole number of pixels from 0"),
    ({"device": "tpu"}, DeviceError, "device: expected auto, cpu, cuda or cuda:N, found 'tpu'"),
    ({"precision": "fp8"}, DeviceError, "precision: expected auto, "),
]


@pytest.mark.parametrize(("settings", "kind", "said"), BAD_SETTINGS, ids=range(len(BAD_SETTINGS)))
def test_nonsense_is_refused(
    manifest: Path, settings: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        load_ensemble(manifest, **({"device": "cpu"} | settings))
    assert said in str(caught.value)


def test_overrides_leave_the_ensemble_as_it_is(ensemble: Ensemble) -> None:
    other = ensemble.with_overrides(["hflip", "scale:2"], edge="drop")
    assert (other.manifest.views, other.rules.edge.mode) == (("hflip", "scale:2"), "drop")
    assert (ensemble.manifest.views, ensemble.rules.edge.mode) == (("identity",), "rule")
    assert other.members is ensemble.members


def test_nothing_means_the_included_checkpoint() -> None:
    loaded = load_ensemble(device="cpu")
    assert loaded.classes == ("shsy5y", "astro", "cort")
    assert load_ensemble(None, "cpu").manifest == loaded.manifest  # type: ignore[arg-type]


def test_as_one_class_finds_what_any_class_finds(ensemble: Ensemble, files: list[Path]) -> None:
    """The same boxes and masks as before, under one rule and one name; the slow way relabels at the end."""
    one = ensemble.as_one_class("cell")
    assert (one.classes, one.rules.consensus, ensemble.classes) == (("cell",), "off", ("a", "b", "c"))
    image = read_image(files[0])
    (prediction,) = predict(ensemble, [image])
    assert len(set(prediction.labels.tolist())) > 1
    relabelled = replace(prediction, labels=np.ones_like(prediction.labels))
    expected = build_instances(relabelled, one.rules, ("cell",))
    found = one.segment(files[0])
    assert found.class_names == ("cell",) and len(found) > 3
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    np.testing.assert_array_equal(found.scores, expected.scores)
    stricter = one.with_overrides(score={"cell": 0.3})
    assert stricter.one_class and (stricter.segment(files[0]).scores >= 0.3).all()
