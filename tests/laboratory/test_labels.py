"""Label maps as files, read again by Pillow, tifffile, OpenCV and our own reader of truths."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from sartorius_infer.errors import SubmissionError
from sartorius_infer.images.stored import stored_values
from sartorius_infer.laboratory.labels import write_label_map
from sartorius_infer.types import Int32


@settings(max_examples=30)
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2**16 - 1)))
def test_four_readers_see_the_map(tmp_path_factory: pytest.TempPathFactory, label_map: Int32) -> None:
    path = tmp_path_factory.mktemp("labels") / "a.tif"
    write_label_map(path, label_map)
    with Image.open(path) as picture:
        assert picture.mode == "I;16"
        np.testing.assert_array_equal(np.array(picture), label_map)
    for seen in (
        tifffile.imread(path),
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED),
        stored_values(path.read_bytes()),
    ):
        assert seen is not None and seen.dtype == np.uint16
        np.testing.assert_array_equal(seen, label_map)


def test_a_label_beyond_16_bits_takes_32(tmp_path: Path) -> None:
    label_map = np.array([[0, 2**16 - 1, 2**16, 2**31 - 1]], np.int32)
    write_label_map(tmp_path / "a.tif", label_map)
    seen = tifffile.imread(tmp_path / "a.tif")
    assert seen.dtype == np.uint32
    np.testing.assert_array_equal(seen, label_map)
    np.testing.assert_array_equal(stored_values((tmp_path / "a.tif").read_bytes()), label_map)


def test_it_is_deflated_one_page_and_always_the_same(tmp_path: Path) -> None:
    label_map = np.kron(np.arange(12, dtype=np.int32).reshape(3, 4), np.ones((100, 100), np.int32))
    for name in "ab":
        write_label_map(tmp_path / f"{name}.tif", label_map)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == 1
        assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert (tmp_path / "a.tif").stat().st_size < 3_000


def test_a_place_that_is_none_is_named_and_an_earlier_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "a.tif"
    with pytest.raises(SubmissionError, match="cannot be written: No such file or directory") as caught:
        write_label_map(path, np.zeros((2, 2), np.int32))
    assert str(caught.value).startswith(f"{path}: ")
    assert list(tmp_path.iterdir()) == []
