"""Regions as ImageJ reads them: by roifile, and by a second decoder after ImageJ's RoiDecoder."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
import pytest
import roifile
from factories import CLASSES, make_instances, random_prediction
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from rings import rasterised
from scipy import ndimage

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.colours import class_colours
from sartorius_infer.cells.instances import Instances
from sartorius_infer.errors import SubmissionError
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.types import Int32

TRACED, RECTANGLE = 8, 1
label_maps = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3))


class Region(NamedTuple):
    """A region of ImageJ: what it is, its box, rings of x, y, name, and its outline's ARGB."""

    kind: int
    box: tuple[int, ...]
    rings: list[NDArray[np.float64]]
    name: str
    colour: tuple[int, ...]


def decode(data: bytes) -> Region:
    """By the offsets of ij.io.RoiDecoder, all numbers with the high byte first."""
    assert data[:4] == b"Iout"
    kind, (top, left, bottom, right, count) = data[6], struct.unpack_from(">4hH", data, 8)
    path_length, header2 = struct.unpack_from(">i", data, 36)[0], struct.unpack_from(">i", data, 60)[0]
    at, length = struct.unpack_from(">2i", data, header2 + 16)
    name = data[at : at + 2 * length].decode("utf-16-be")
    if path_length:
        rings = path_of(struct.unpack_from(f">{path_length}f", data, 64))
    else:
        places = np.array(struct.unpack_from(f">{2 * count}h", data, 64), float).reshape(2, count)
        rings = [places.T + np.array([left, top])]
    return Region(kind, (left, top, right, bottom), rings, name, tuple(data[40:44]))


def path_of(numbers: tuple[float, ...]) -> list[NDArray[np.float64]]:
    """The rings of moves (0, x, y), lines (1, x, y) and closings (4)."""
    rings: list[list[tuple[float, float]]] = []
    at = 0
    while at < len(numbers):
        step = numbers[at]
        if step == 4:
            at += 1
            continue
        if step == 0:
            rings.append([])
        rings[-1].append((numbers[at + 1], numbers[at + 2]))
        at += 3
    return [np.array(ring) for ring in rings]


def regions(path: Path) -> dict[str, Region]:
    with ZipFile(path) as archive:
        assert archive.testzip() is None
        return {entry: decode(archive.read(entry)) for entry in archive.namelist()}


def crowd() -> Instances:
    """What the rules make of a crowded prediction: cells of one part."""
    loose = Rules(per_class={name: ClassRule(score=0.0, mask=0.3) for name in CLASSES})
    return build_instances(random_prediction(np.random.default_rng(1), 30, (40, 52)), loose, CLASSES)


def test_regions_are_cells_in_their_class_s_colour(tmp_path: Path) -> None:
    cells, path = crowd(), tmp_path / "a.zip"
    cells.write_rois(path)
    found = regions(path)
    assert list(found) == [f"{n}.roi" for n in range(1, len(cells) + 1)]
    palette = class_colours(len(CLASSES))
    for n, region in enumerate(found.values(), start=1):
        assert (region.name, region.kind) == (str(n), TRACED)
        assert region.box == tuple(cells.boxes[n - 1])
        assert region.colour == (255, *palette[cells.labels[n - 1] - 1])
        own = ndimage.binary_fill_holes(cells.mask(n - 1))
        np.testing.assert_array_equal(rasterised(region.rings, own.shape), own)
    read = roifile.roiread(path)
    assert isinstance(read, list)
    for roi, region in zip(read, found.values(), strict=True):
        assert roi.name == region.name
        np.testing.assert_array_equal(roi.coordinates(), region.rings[0])


@settings(max_examples=50)
@given(label_maps)
def test_cells_of_several_parts_are_composite(
    tmp_path_factory: pytest.TempPathFactory, label_map: Int32
) -> None:
    path = tmp_path_factory.mktemp("rois") / "a.zip"
    cells = make_instances(label_map, [0.9, 0.5, 0.4])
    cells.write_rois(path)
    found = regions(path)
    assert {int(region.name) for region in found.values()} == set(np.unique(label_map)) - {0}
    for region in found.values():
        n = int(region.name)
        assert region.kind == (TRACED if len(cells.polygons()[n - 1]) == 1 else RECTANGLE)
        np.testing.assert_array_equal(region.box, cells.boxes[n - 1])
        own = ndimage.binary_fill_holes(cells.mask(n - 1))
        np.testing.assert_array_equal(rasterised(region.rings, own.shape), own)


def test_without_cells_the_zip_is_empty_and_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    make_instances(np.zeros((5, 7), np.int32)).write_rois(tmp_path / "none.zip")
    assert regions(tmp_path / "none.zip") == {}
    for name in "ab":
        crowd().write_rois(tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_cell_far_out_in_a_large_image(tmp_path: Path) -> None:
    """ImageJ takes what is beyond 16 signed bits for negative, up to a point: so do coordinates here."""
    label_map = np.zeros((2, 40_000), np.int32)
    label_map[:, 39_990:39_995] = 1
    make_instances(label_map).write_rois(tmp_path / "a.zip")
    (roi,) = roifile.roiread(tmp_path / "a.zip")
    assert [roi.left, roi.top] == [39_990, 0]
    np.testing.assert_array_equal(roi.coordinates().min(axis=0), [39_990, 0])


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"absent/a\.zip: cannot be written: No such file"):
        crowd().write_rois(tmp_path / "absent" / "a.zip")
