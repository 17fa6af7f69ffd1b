"""How images are prepared: what each transform of a test pipeline means, and which are refused."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2_factories import picture
from hypothesis import given
from hypothesis import strategies as st
from mmdet_runs import MEAN, STD, Values, changed, values_of

from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.views import IDENTITY
from sartorius_infer.networks.inputs import network_input
from sartorius_infer.networks.mmdet.config_pipeline import PipelineError, read_inputs
from sartorius_infer.types import UInt8

NEW = "test_dataloader.dataset.pipeline"
OLD = "data.test.pipeline"
INNER = f"{OLD}.1.transforms"
SEEN = "model.data_preprocessor"


def inputs(dialect: int, changes: Values | None = None) -> Preprocessing:
    return read_inputs(values_of(dialect, changes), dialect)


def refused(dialect: int, changes: Values) -> str:
    with pytest.raises(PipelineError) as caught:
        inputs(dialect, changes)
    return str(caught.value)


def prepared(pixels: UInt8, scale: tuple[int, int], divisor: int) -> np.ndarray[Any, Any]:
    """What MMDetection makes of RGB or gray pixels, step by step: (3, H, W)."""
    bgr = np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])
    height, width = bgr.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    rgb = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_LINEAR))[..., ::-1].astype(np.float32)
    rgb = (rgb - np.float32(MEAN)) / np.float32(STD)
    whole = np.zeros([-(-side // divisor) * divisor for side in size[::-1]] + [3], np.float32)
    whole[: size[1], : size[0]] = rgb
    return whole.transpose(2, 0, 1)


@pytest.mark.parametrize("dialect", [2, 3])
@pytest.mark.parametrize("size", [(70, 110), (110, 70), (53, 64, 3), (33, 200, 3)])
def test_images_are_what_mmdetection_makes_of_them(dialect: int, size: tuple[int, ...]) -> None:
    image = picture(size)
    tensor = torch.from_numpy(image[None] if image.ndim == 2 else image.transpose(2, 0, 1).copy())
    batch, _ = network_input([tensor], inputs(dialect), IDENTITY)
    np.testing.assert_array_equal(batch[0].numpy(), prepared(image, (160, 96), 32))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 2000), st.integers(1, 2000))
def test_sides_are_the_nearest_of_one_factor(height: int, width: int, a: int, b: int) -> None:
    rule = inputs(3, {f"{NEW}.1.scale": (a, b)}).resize
    assert rule is not None
    factor = min(max(a, b) / max(height, width), min(a, b) / min(height, width))
    expected = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    assert rule.target_hw((height, width), IDENTITY) == expected


@pytest.mark.parametrize(
    ("dialect", "changes", "expected"),
    [
        (3, {f"{NEW}.1.scale": (96, 160)}, {}),
        (3, {f"{NEW}.1.keep_ratio": False}, {"resize": {"exact_hw": (96, 160), "interpolation": "opencv"}}),
        (3, {f"{NEW}.1.keep_ratio": None}, {"resize": {"exact_hw": (96, 160), "interpolation": "opencv"}}),
        (2, {f"{INNER}.0.keep_ratio": None}, {}),
        (2, {f"{INNER}.0.keep_ratio": False}, {"resize": {"exact_hw": (96, 160), "interpolation": "opencv"}}),
        (2, {f"{OLD}.1.img_scale": [(96, 160)]}, {}),
        (3, {f"{NEW}.1.backend": "pillow"}, {"resize.interpolation": "pil"}),
        (3, {f"{NEW}.0.to_float32": True}, {"resize.interpolation": "torch"}),
        (3, {f"{SEEN}.bgr_to_rgb": False}, {"channel_order": "bgr"}),
        (2, {f"{INNER}.2.to_rgb": False}, {"channel_order": "bgr"}),
        (3, {f"{SEEN}.pad_size_divisor": None}, {"pad_multiple": 1}),
        (3, {f"{SEEN}.pad_size_divisor": 64}, {"pad_multiple": 64}),
        (2, {f"{INNER}.3.size_divisor": 16}, {"pad_multiple": 16}),
        (2, {f"{INNER}.1": {"type": "RandomFlip", "flip_ratio": 0.5}}, {}),
        (3, {f"{SEEN}.mean": None, f"{SEEN}.std": None}, {"normalise": ()}),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_changes_what_it_should(dialect: int, changes: Values, expected: Values) -> None:
    found, before = (inputs(dialect, some).model_dump(exclude_unset=True) for some in (changes, {}))
    for key, value in expected.items():
        *above, last = key.split(".")
        node = before
        for name in above:
            node = node[name]
        node[last] = value
    assert found == before


def test_no_resize_is_none() -> None:
    values = values_of(3)
    del values["test_dataloader"]["dataset"]["pipeline"][1]
    assert read_inputs(values, 3).resize is None


def test_the_pipeline_by_its_name_where_the_data_set_has_none() -> None:
    values = values_of(3)
    expected = read_inputs(values, 3)
    values["test_pipeline"] = values["test_dataloader"]["dataset"].pop("pipeline")
    assert read_inputs(values, 3) == expected


AUGMENTED = "expected none: test-time augmentation is asked for by --views"


@pytest.mark.parametrize(
    ("dialect", "changes", "expected"),
    [
        (2, {f"{OLD}.1.flip": True}, f"data.test.pipeline.1.flip = True ({AUGMENTED})"),
        (2, {f"{OLD}.1.img_scale": [(1, 2), (3, 4)]}, f"{OLD}.1.img_scale = [(1, 2), (3, 4)] ({AUGMENTED})"),
        (2, {f"{OLD}.1.scale_factor": 1.5}, f"{OLD}.1.scale_factor = 1.5"),
        (3, {f"{NEW}.1": {"type": "TestTimeAug"}}, f"{NEW}.1.type = 'TestTimeAug' ({AUGMENTED})"),
        (3, {f"{NEW}.2": {"type": "RandomFlip", "prob": 0.5}}, f"{NEW}.2.prob = 0.5 ({AUGMENTED})"),
        (3, {"tta_pipeline": [1]}, f"tta_pipeline = [1] ({AUGMENTED})"),
        (3, {f"{NEW}.2": {"type": "Albu", "p": 1}}, f"{NEW}.2.type = 'Albu' (expected one of "),
        (3, {f"{NEW}.2": 7}, f"{NEW}.2 = 7"),
        (3, {f"{NEW}.1.scale": None}, f"{NEW}.1.scale = None"),
        (3, {f"{NEW}.1.interpolation": "area"}, f"{NEW}.1.interpolation = 'area'"),
        (3, {f"{NEW}.0.color_type": "grayscale"}, f"{NEW}.0.color_type = 'grayscale'"),
        (3, {f"{SEEN}.pad_value": 114}, f"{SEEN}.pad_value = 114"),
        (3, {f"{SEEN}.type": "BatchFixedSizePad"}, f"{SEEN}.type = 'BatchFixedSizePad'"),
        (2, {f"{INNER}.3": {"type": "Pad", "size": (640, 640)}}, f"{INNER}.3.size = (640, 640)"),
        (2, {f"{INNER}.3.pad_val": 114}, f"{INNER}.3.pad_val = 114 (expected 0)"),
        (2, {f"{INNER}.2.std": [1, 0, 1]}, f"{INNER}.2.std"),
        (2, {f"{INNER}.1": {"type": "Pad", "size_divisor": 32}}, "before padding"),
        (3, {"test_dataloader": None}, f"{NEW} (expected the test pipeline"),
        (2, {"data": None}, f"{OLD} (expected the test pipeline"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(dialect: int, changes: Values, expected: str) -> None:
    assert expected in refused(dialect, changes)


def test_changed_is_what_it_says() -> None:
    assert changed({"a": [{"b": 1}]}, {"a.0.b": 2, "c.d": 3}) == {"a": [{"b": 2}], "c": {"d": 3}}
