"""What people take of the cells: each way out agrees with the label map."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from factories import CLASSES, make_instances, random_prediction
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from scipy import ndimage

from sartorius_infer.cells.claim import build_instances
from sartorius_infer.cells.colours import class_colours
from sartorius_infer.cells.instances import Instances
from sartorius_infer.cells.rle import decode_mask
from sartorius_infer.errors import ImageError
from sartorius_infer.manifest.rules import ClassRule, Rules
from sartorius_infer.types import Bool, CellImage, Int32

# pycocotools' own decode does not know numpy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

matplotlib.use("Agg")

label_maps = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4))
"""Of cells in several parts, with holes, and some without any pixel."""

COLUMNS = ["id", "cell", "class", "score", "area", "x0", "y0", "x1", "y1", "centroid_x", "centroid_y"]
LOOSE = Rules(per_class={name: ClassRule(score=0.0, mask=0.3) for name in CLASSES}, consensus="off")


def four(label_map: Int32) -> Instances:
    """Four cells, whether the map has them or not."""
    return make_instances(label_map, [0.9, 0.1, 0.3, 1.0], [1, 3, 3, 2])


def nothing() -> Instances:
    return make_instances(np.zeros((5, 7), np.int32))


def crowd(seed: int = 0) -> Instances:
    """What the rules make of a crowded prediction."""
    return build_instances(random_prediction(np.random.default_rng(seed), 30, (40, 52)), LOOSE, CLASSES)


def truth_of(label_map: Int32, i: int) -> Bool:
    return np.asarray(label_map == i + 1)


# What is checked where they are made.


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label_map": np.zeros((2, 2), np.int64)}, r"label_map: expected int32 \(any, any\), found int64"),
        ({"label_map": np.zeros(4, np.int32)}, r"label_map: expected int32 .*, found int32 \(4,\)"),
        ({"label_map": np.array([[3]], np.int32)}, r"label_map: expected 0\.\.2, found 3\.\.3"),
        ({"label_map": np.array([[-1, 1]], np.int32)}, r"label_map: expected 0\.\.2, found -1\.\.1"),
        ({"scores": np.zeros(2)}, r"scores: expected float32 \(2\), found float64"),
        ({"labels": np.ones(3, np.int64)}, r"labels: expected int64 \(2\), found int64 \(3,\)"),
        ({"labels": np.array([0, 1])}, r"labels: expected 1\.\.3, found 0\.\.1"),
        ({"labels": np.array([4, 1])}, r"labels: expected 1\.\.3, found 1\.\.4"),
        ({"class_names": ()}, r"class_names: expected at least one name, found none"),
    ],
)
def test_cells_that_do_not_fit(changed: dict[str, Any], said: str) -> None:
    sound = {
        "image_id": "image",
        "label_map": np.array([[0, 1, 2]], np.int32),
        "scores": np.ones(2, np.float32),
        "labels": np.array([1, 3]),
        "class_names": CLASSES,
    }
    with pytest.raises(ValueError, match=said):
        Instances(**(sound | changed))
    cells = Instances(**sound)
    with pytest.raises(FrozenInstanceError):
        cells.image_id = "other"  # type: ignore[misc]


def test_the_rules_tell_the_classes() -> None:
    assert crowd().class_names == CLASSES and len(crowd()) > 5


def test_what_a_notebook_prints() -> None:
    assert (
        repr(four(np.eye(4, 5, dtype=np.int32)))
        == "Instances('image', 4 x 5 pixels, shsy5y 1, astro 1, cort 2)"
    )
    assert repr(nothing()) == "Instances('image', 5 x 7 pixels, shsy5y 0, astro 0, cort 0)"


# Numbers and masks.


@settings(max_examples=200, deadline=None)
@given(label_maps)
def test_areas_boxes_masks_and_strings_agree(label_map: Int32) -> None:
    cells = four(label_map)
    assert len(cells) == 4
    areas, boxes, strings = cells.areas, cells.boxes, cells.rle()
    assert (areas.dtype, areas.shape) == (np.int64, (4,))
    assert (boxes.dtype, boxes.shape) == (np.float32, (4, 4))
    for i in range(4):
        mask = cells.mask(i)
        assert mask.dtype == np.bool_ and np.array_equal(mask, truth_of(label_map, i))
        assert areas[i] == mask.sum()
        rows, columns = np.nonzero(mask)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        assert boxes[i].tolist() == edges
        assert np.array_equal(decode_mask(strings[i], label_map.shape), mask)


def test_what_is_given_may_be_changed() -> None:
    cells = four(np.eye(4, dtype=np.int32))
    cells.areas[:], cells.boxes[:] = 0, 0
    assert cells.areas[0] == 4 and cells.boxes[0].tolist() == [0, 0, 4, 4]


@pytest.mark.parametrize("i", [-1, 4, 99])
def test_a_cell_that_is_not_there(i: int) -> None:
    with pytest.raises(IndexError, match=rf"image: expected one of 4 cells, from 0, found {i}"):
        four(np.eye(4, dtype=np.int32)).mask(i)
    with pytest.raises(IndexError, match="expected one of 0 cells"):
        nothing().mask(i)


# Filtering.


@settings(max_examples=100, deadline=None)
@given(label_maps, st.lists(st.integers(0, 3), unique=True))
def test_cells_are_filtered_as_one(label_map: Int32, chosen: list[int]) -> None:
    cells = four(label_map)
    some = cells[np.array(chosen, np.int64)]
    assert (some.image_id, some.class_names, len(some)) == ("image", CLASSES, len(chosen))
    for place, i in enumerate(chosen):
        assert np.array_equal(some.mask(place), cells.mask(i))
        assert (some.scores[place], some.labels[place]) == (cells.scores[i], cells.labels[i])


def test_by_condition_and_one_by_one() -> None:
    cells = crowd()
    sure = cells[cells.scores > 0.5]
    assert 0 < len(sure) < len(cells)
    assert np.array_equal(
        sure.label_map > 0, np.isin(cells.label_map, np.flatnonzero(cells.scores > 0.5) + 1)
    )
    each = list(cells)  # type: ignore[call-overload]
    assert [len(one) for one in each] == [1] * len(cells)
    assert np.array_equal(each[3].mask(0), cells.mask(3))
    assert len(cells[cells.labels > 3]) == 0 and len(nothing()[np.zeros(0, np.bool_)]) == 0


# Polygons.


@settings(max_examples=100, deadline=None)
@given(label_maps)
def test_pycocotools_makes_the_cells_of_their_polygons(label_map: Int32) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    cells = four(label_map)
    for i, rings in enumerate(cells.polygons()):
        made = np.zeros(label_map.shape, np.bool_)
        for ring in rings:
            made |= coco.decode(coco.frPyObjects([ring.ravel().tolist()], *label_map.shape))[..., 0] > 0
        assert np.array_equal(made, ndimage.binary_fill_holes(cells.mask(i)))
        if rings:
            corners = np.concatenate(rings)
            assert [*corners.min(axis=0), *corners.max(axis=0)] == cells.boxes[i].tolist()


def test_cells_of_the_rules_have_one_ring_each() -> None:
    cells = crowd()
    assert [len(rings) for rings in cells.polygons()] == [1] * len(cells)


# COCO.


@settings(max_examples=100, deadline=None)
@given(label_maps)
def test_pycocotools_reads_the_same_masks(label_map: Int32) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    cells = four(label_map)
    entries = json.loads(json.dumps(cells.to_coco(7)))
    there = np.flatnonzero(cells.areas).tolist()
    assert len(entries) == len(there)
    for i, entry in zip(there, entries, strict=True):
        assert np.array_equal(coco.decode(entry["segmentation"]), cells.mask(i))
        assert entry["bbox"] == coco.toBbox(entry["segmentation"]).tolist()
        assert entry["area"] == cells.areas[i]
        assert entry["category_id"] == cells.labels[i]
        assert entry["score"] == pytest.approx(float(cells.scores[i]))


def test_coco_results_name_the_image() -> None:
    cells = four(np.eye(4, dtype=np.int32))
    assert cells.to_coco()[0] == {
        "image_id": "image",
        "category_id": 1,
        "segmentation": {"size": [4, 4], "counts": "01400000"},
        "bbox": [0, 0, 4, 4],
        "area": 4,
        "score": 0.9,
    }
    assert {entry["image_id"] for entry in cells.to_coco(0)} == {0}


# Tables.


@settings(max_examples=100, deadline=None)
@given(label_maps)
def test_a_table_has_a_row_for_each_cell(label_map: Int32) -> None:
    cells = four(label_map)
    table = cells.to_dataframe()
    assert list(table.columns) == COLUMNS
    assert table["id"].tolist() == ["image"] * 4 and table["cell"].tolist() == [1, 2, 3, 4]
    assert table["class"].tolist() == ["shsy5y", "cort", "cort", "astro"]
    assert np.array_equal(table["score"], cells.scores) and np.array_equal(table["area"], cells.areas)
    assert np.array_equal(table[["x0", "y0", "x1", "y1"]], cells.boxes)
    for i, (x, y) in enumerate(table[["centroid_x", "centroid_y"]].to_numpy()):
        if cells.areas[i]:
            rows, columns = np.nonzero(cells.mask(i))
            np.testing.assert_allclose((x, y), (columns.mean() + 0.5, rows.mean() + 0.5))
        else:
            assert np.isnan(x) and np.isnan(y)


def test_tables_of_several_images_are_one() -> None:
    whole = pd.concat([nothing().to_dataframe(), crowd().to_dataframe()], ignore_index=True)
    assert list(whole.columns) == COLUMNS and len(whole) == len(crowd())
    assert (whole.dtypes == crowd().to_dataframe().dtypes).all()


# Pictures.


def test_a_plot_outlines_each_class_in_its_colour() -> None:
    label_map = np.zeros((20, 30), np.int32)
    label_map[2:5, 3:9], label_map[10:14, 20:30] = 1, 2
    cells = make_instances(label_map, labels=[3, 3])
    axes = cells.plot()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["shsy5y 0", "astro 0", "cort 2"]
    assert (axes.get_xlim(), axes.get_ylim(), axes.get_title()) == ((0, 30), (20, 0), "image")
    drawn = axes.collections[2]
    assert to_rgb(drawn.get_edgecolor()[0]) == pytest.approx(np.array(class_colours(3)[2]) / 255)  # type: ignore[index]
    extents = [path.get_extents().extents.tolist() for path in drawn.get_paths()]
    assert extents == [[3, 2, 9, 5], [20, 10, 30, 14]]
    pyplot.close("all")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plot_over_an_image_on_axes_of_ones_own(shape: tuple[int, ...], wrapped: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    figure, own = pyplot.subplots()
    axes = nothing().plot(CellImage("image", pixels) if wrapped else pixels, ax=own)
    assert axes is own
    (shown,) = axes.images
    assert list(shown.get_extent()) == [0, 7, 5, 0] and np.array_equal(shown.get_array(), pixels)
    figure.canvas.draw()
    pyplot.close("all")


def test_a_plot_over_another_image() -> None:
    with pytest.raises(ImageError, match=r"^image: expected an image of 5 x 7 pixels, found 7 x 5$"):
        nothing().plot(np.zeros((7, 5), np.uint8), ax=pyplot.figure().add_subplot())
    pyplot.close("all")


@settings(max_examples=30)
@given(label_maps)
def test_measurements_are_of_cells_with_pixels_and_agree_with_the_table(label_map: Int32) -> None:
    cells = four(label_map)
    plain = cells.to_dataframe()
    plain = plain[plain["area"] > 0]
    found = cells.measurements(label_map, pixel_size_um=2.0)
    assert found["label"].tolist() == plain["cell"].tolist()
    assert found["class"].tolist() == plain["class"].tolist()
    assert found["score"].tolist() == plain["score"].tolist()
    assert set(found["image"]) <= {"image"}
    for ours, theirs, scale in (
        ("area_um2", "area", 4), ("x1_um", "x1", 2), ("y0_um", "y0", 2), ("centroid_x_um", "centroid_x", 2),
    ):  # fmt: skip
        np.testing.assert_allclose(found[ours], plain[theirs] * scale)
    np.testing.assert_allclose(found["mean_intensity"], found["label"])
    summary = cells.summary(2.0)
    assert summary["cells"] == len(found) == sum(summary[f"cells_{name}"] for name in CLASSES)
    assert summary["area_um2"] == found["area_um2"].sum()
    for name in CLASSES:
        assert summary[f"area_um2_{name}"] == found.loc[found["class"] == name, "area_um2"].sum()
    assert summary["confluence"] == pytest.approx(float((label_map > 0).mean()))


def test_measurements_of_another_image_are_refused() -> None:
    with pytest.raises(ImageError, match=r"^image: expected an image of 5 x 7 pixels, found 7 x 5$"):
        nothing().measurements(np.zeros((7, 5, 3), np.uint8))
    for tell in (nothing().measurements, nothing().summary):
        with pytest.raises(ValueError, match="pixel_size_um: expected a number over 0, found -1"):
            tell(pixel_size_um=-1)


# Nothing found.


def test_no_cells() -> None:
    cells = nothing()
    assert len(cells) == 0
    assert cells.areas.shape == (0,) and cells.boxes.shape == (0, 4) and cells.boxes.dtype == np.float32
    assert (cells.polygons(), cells.rle(), cells.to_coco()) == ([], [], [])
    assert list(cells.to_dataframe().columns) == COLUMNS and len(cells.to_dataframe()) == 0
    assert len(cells.measurements()) == 0
    assert cells.summary() == {
        "image": "image", "height_px": 5, "width_px": 7, "cells": 0, "area_px2": 0, "confluence": 0.0,
        **{f"{what}_{name}": 0 for name in CLASSES for what in ("cells", "area_px2")},
    }  # fmt: skip
    cells.plot()
    pyplot.close("all")
