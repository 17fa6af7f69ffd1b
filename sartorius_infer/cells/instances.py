"""The final cells of one image, and what people take of them: masks, polygons, tables, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sartorius_infer.cells.colours import class_colours
from sartorius_infer.cells.contours import outer_rings
from sartorius_infer.cells.rle import CocoRle, areas_and_boxes, encode_coco, encode_label_map
from sartorius_infer.errors import ImageError, size_text
from sartorius_infer.files import as_path
from sartorius_infer.types import Bool, CellImage, Float32, Float64, Int32, Int64, UInt8, expect

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """N cells of one image, disjoint by construction. Cell i, counted from 0, is the map's label i + 1.

    label_map    int32 (H, W): 0 is background, n is the cell `scores[n - 1]`, `labels[n - 1]`
    scores       float32 (N,), in [0, 1]
    labels       int64 (N,), 1..K
    class_names  label k is `class_names[k - 1]`

    Coordinates are x, y in pixels and half-open: the centre of the top left pixel is (0.5, 0.5).
    """

    image_id: str
    label_map: Int32
    scores: Float32
    labels: Int64
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.scores)
        expect("label_map", self.label_map, np.int32, (None, None))
        expect("scores", self.scores, np.float32, (n,))
        expect("labels", self.labels, np.int64, (n,))
        if not self.class_names:
            raise ValueError("class_names: expected at least one name, found none")
        expect_range("label_map", self.label_map, 0, n)
        expect_range("labels", self.labels, 1, len(self.class_names))

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = np.bincount(self.labels, minlength=len(self.class_names) + 1)[1:].tolist()
        told = ", ".join(f"{name} {n}" for name, n in zip(self.class_names, counts, strict=True))
        return f"Instances({self.image_id!r}, {size_text(self.label_map.shape)} pixels, {told})"

    def __getitem__(self, keep: Bool | Int64 | int) -> Instances:
        """The cells that `keep` (boolean mask, or indices without repeats) selects, numbered anew."""
        kept = np.atleast_1d(np.arange(len(self))[keep])
        numbers = np.zeros(len(self) + 1, np.int32)
        numbers[kept + 1] = np.arange(len(kept)) + 1
        label_map: Int32 = numbers[self.label_map]
        return Instances(self.image_id, label_map, self.scores[kept], self.labels[kept], self.class_names)

    @cached_property
    def _extents(self) -> tuple[Int64, Int64]:
        return areas_and_boxes(self.label_map, len(self))

    @property
    def areas(self) -> Int64:
        """Pixels of each cell, int64 (N,)."""
        return self._extents[0].copy()

    @property
    def boxes(self) -> Float32:
        """The box around each cell, float32 (N, 4) xyxy; zeros for a cell without pixels."""
        corner, size = np.hsplit(self._extents[1], 2)
        boxes: Float32 = np.hstack([corner, corner + size]).astype(np.float32)
        return boxes

    def mask(self, i: int) -> Bool:
        """Cell i's pixels, bool (H, W). Raises IndexError unless i is in 0..N - 1."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.image_id}: expected one of {len(self)} cells, from 0, found {i}")
        return np.asarray(self.label_map == i + 1)

    def polygons(self) -> list[list[Float32]]:
        """The outline of each cell: its rings of corners x, y, float32 (V, 2), as `outer_rings` draws them.

        One ring for each part of a cell: cells that the rules made are of one part, and one without pixels
        has no ring. pycocotools makes of the rings the cell's pixels with its holes filled.
        """
        polygons = []
        for i, (x0, y0, x1, y1) in enumerate(self.boxes.astype(np.int64).tolist()):
            rings = outer_rings(self.label_map[y0:y1, x0:x1] == i + 1)
            polygons.append([ring + np.array([x0, y0], np.float32) for ring in rings])
        return polygons

    def rle(self) -> list[str]:
        """The competition's string for each cell, in label order; "" for a cell without pixels."""
        return encode_label_map(self.label_map, len(self))

    def to_coco(self, image_id: str | int | None = None) -> list[dict[str, Any]]:
        """COCO's result of each cell that has pixels, as `json.dump` and pycocotools' `loadRes` take it.

        `category_id` is the label, `bbox` xywh in pixels, `segmentation` a compressed RLE. `image_id` is
        this image's id, unless another is given, such as the number that an annotation file gives it.
        """
        masks = encode_coco(self.label_map, len(self))
        name = self.image_id if image_id is None else image_id
        return coco_results(name, masks, self._extents, self.scores, self.labels)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each cell; tables of several images may be concatenated.

        Columns: id (the image's), cell (its number in the label map), class, score, area, the corners
        x0, y0, x1, y1 of its box, and centroid_x, centroid_y, NaN for a cell without pixels. Shapes and
        intensities are in `measurements`.
        """
        import pandas as pd

        named = [self.class_names[label - 1] for label in self.labels]
        columns: dict[str, Any] = {
            "id": pd.Series([self.image_id] * len(self), dtype="str"),
            "cell": np.arange(1, len(self) + 1),
            "class": pd.Series(named, dtype="str"),
            "score": self.scores,
            "area": self.areas,
        }
        columns |= zip(("x0", "y0", "x1", "y1"), self.boxes.astype(np.int64).T, strict=True)
        columns |= zip(("centroid_x", "centroid_y"), self._centroids().T, strict=True)
        return pd.DataFrame(columns)

    def measurements(
        self, image: CellImage | NDArray[Any] | None = None, pixel_size_um: float | None = None
    ) -> pd.DataFrame:
        """A row for each cell that has pixels: image, label, class, score, and what `measure` tells of it.

        `image` is (H, W) or (H, W, C) of any numbers, for mean_intensity, a column that is left out without
        one; `pixel_size_um` the side of a pixel, for lengths in micrometres. Raises ExtraError without
        scikit-image, ImageError for an image of another size, ValueError unless the pixel size is over 0.
        """
        import pandas as pd

        from sartorius_infer.laboratory.measure import measure

        values = None if image is None else self._own(image)
        columns = measure(self.label_map, values, pixel_size_um)
        order = columns.pop("label") - 1
        named = [self.class_names[label - 1] for label in self.labels[order]]
        table: dict[str, Any] = {
            "image": pd.Series([self.image_id] * len(order), dtype="str"),
            "label": order + 1,
            "class": pd.Series(named, dtype="str"),
            "score": self.scores[order],
        }
        return pd.DataFrame(table | columns)

    def summary(self, pixel_size_um: float | None = None) -> dict[str, Any]:
        """The image in numbers: its size, cells and their area in all and by class.

        Keys: image, height_px, width_px, cells, area_px2 (or area_um2), confluence (the share of the image
        that is of cells, 0 to 1), then cells_<class> and area_px2_<class> of each class.
        """
        from sartorius_infer.laboratory.measure import area_name, require_size

        require_size(pixel_size_um)
        areas = self.areas * (pixel_size_um or 1) ** 2
        counts = np.bincount(self.labels[self.areas > 0], minlength=len(self.class_names) + 1)
        sums = [areas[self.labels == label].sum().item() for label in range(len(self.class_names) + 1)]
        (height, width), area = self.label_map.shape, area_name(pixel_size_um)
        told: dict[str, Any] = {"image": self.image_id, "height_px": height, "width_px": width}
        told |= {"cells": int(counts.sum()), area: areas.sum().item()}
        told["confluence"] = float((self.label_map > 0).mean())
        for label, name in enumerate(self.class_names, start=1):
            told |= {f"cells_{name}": int(counts[label]), f"{area}_{name}": sums[label]}
        return told

    def write_labels(self, path: str | Path) -> None:
        """Write the label map as a TIFF, by `write_label_map`: label n is cell n of every table."""
        from sartorius_infer.laboratory.labels import write_label_map

        write_label_map(as_path(path, "label map"), self.label_map)

    def write_rois(self, path: str | Path) -> None:
        """Write the outlines as a zip of ImageJ's regions, by `write_rois`, each in its class's colour."""
        from sartorius_infer.laboratory.rois import write_rois

        palette = class_colours(len(self.class_names))
        write_rois(as_path(path, "ROIs"), self.polygons(), [palette[label - 1] for label in self.labels])

    def _centroids(self) -> Float64:
        """The mean x, y of each cell's pixels' centres, float64 (N, 2)."""
        places = np.nonzero(self.label_map)
        cells = self.label_map[places] - 1
        sums = [np.bincount(cells, axis + 0.5, len(self)) for axis in reversed(places)]
        areas = self.areas[:, None]
        means = np.full((len(self), 2), np.nan)
        np.divide(np.stack(sums, axis=1), areas, out=means, where=areas > 0)
        return means

    def plot(self, image: CellImage | UInt8 | None = None, ax: Axes | None = None) -> Axes:
        """Outline the cells by class on `ax`, a new one unless given, over the image if given.

        The image is pixels, (H, W) gray or (H, W, 3), whose contrast is stretched where gray. Axes are in
        pixels, as boxes and polygons are. Raises ImageError for an image of another size.
        """
        from matplotlib import pyplot
        from matplotlib.collections import PolyCollection

        if ax is None:
            _, ax = pyplot.subplots()
        if image is not None:
            self._show(self._own(image), ax)
        polygons, colours = self.polygons(), np.array(class_colours(len(self.class_names))) / 255
        for label, (name, colour) in enumerate(zip(self.class_names, colours, strict=True), start=1):
            own = np.flatnonzero(self.labels == label).tolist()
            rings = [ring for i in own for ring in polygons[i]]
            told = f"{name} {len(own)}"
            ax.add_collection(PolyCollection(rings, facecolors="none", edgecolors=colour, label=told))
        height, width = self.label_map.shape
        ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", title=self.image_id)
        ax.legend()
        return ax

    def _own(self, image: CellImage | NDArray[Any]) -> NDArray[Any]:
        """The pixels of an image; raises ImageError where they cannot be those of this one."""
        pixels = image.pixels if isinstance(image, CellImage) else np.asarray(image)
        if pixels.shape[:2] != self.label_map.shape:
            expected, found = size_text(self.label_map.shape), size_text(pixels.shape[:2])
            raise ImageError(f"{self.image_id}: expected an image of {expected} pixels, found {found}")
        return pixels

    def _show(self, pixels: UInt8, ax: Axes) -> None:
        """Draw pixels under the cells."""
        height, width = self.label_map.shape
        low, high = np.percentile(pixels, (1, 99)) if pixels.ndim == 2 else (None, None)
        ax.imshow(pixels, cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0))


def no_cells(image_id: str, size_hw: tuple[int, int], class_names: Sequence[str]) -> Instances:
    """An image in which nothing was found."""
    nothing = np.zeros(0)
    label_map = np.zeros(size_hw, np.int32)
    return Instances(
        image_id, label_map, nothing.astype(np.float32), nothing.astype(np.int64), tuple(class_names)
    )


def coco_results(
    image_id: str | int,
    masks: Sequence[CocoRle],
    extents: tuple[Int64, Int64],
    scores: Float32,
    labels: Int64,
) -> list[dict[str, Any]]:
    """COCO's result of each cell that has pixels; `extents` are areas (N,) and boxes xywh (N, 4)."""
    areas, boxes = extents
    return [
        {
            "image_id": image_id,
            "category_id": int(labels[i]),
            "segmentation": masks[i],
            "bbox": boxes[i].tolist(),
            "area": int(areas[i]),
            # The shortest decimal that is this float32, not its sixteen-digit double.
            "score": float(str(scores[i])),
        }
        for i in areas.nonzero()[0].tolist()
    ]


def expect_range(name: str, values: Int32 | Int64, low: int, high: int) -> None:
    """Raise ValueError unless all values are in low..high."""
    if values.size and not low <= values.min() <= values.max() <= high:
        raise ValueError(f"{name}: expected {low}..{high}, found {values.min()}..{values.max()}")
