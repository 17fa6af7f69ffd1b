"""The final cells of one image where they may share pixels, for measures that allow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sartorius_infer.cells.instances import Instances, coco_results, expect_range
from sartorius_infer.cells.rle import Mask, encode_coco_masks, mask_areas_and_boxes, run_pixels
from sartorius_infer.types import Float32, Int64, expect


@dataclass(frozen=True, eq=False)
class OverlappingCells:
    """N cells of one image, the surest first, each with all pixels that the networks gave it.

    size_hw      the image's height and width
    masks        of each cell its row-major runs of pixels, as `rle.decode` gives them
    scores       float32 (N,), in [0, 1]
    labels       int64 (N,), 1..K
    class_names  label k is `class_names[k - 1]`

    Runs, not pixels: cells in plenty and as large as the image take no more than their outlines do.
    """

    image_id: str
    size_hw: tuple[int, int]
    masks: tuple[Mask, ...]
    scores: Float32
    labels: Int64
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        expect("scores", self.scores, np.float32, (len(self.masks),))
        expect("labels", self.labels, np.int64, (len(self.masks),))
        expect_range("labels", self.labels, 1, len(self.class_names))

    def __len__(self) -> int:
        return len(self.masks)

    def to_coco(self, image_id: str | int | None = None) -> list[dict[str, Any]]:
        """COCO's results, as `Instances.to_coco` gives them."""
        extents = mask_areas_and_boxes(self.masks, self.size_hw[1])
        masks = encode_coco_masks(self.masks, self.size_hw)
        name = self.image_id if image_id is None else image_id
        return coco_results(name, masks, extents, self.scores, self.labels)

    def flattened(self) -> Instances:
        """The same cells seen from above, the surest on top; one that lies under others has no pixel."""
        label_map = np.zeros(self.size_hw, np.int32)
        for number in range(len(self), 0, -1):
            label_map.ravel()[run_pixels(*self.masks[number - 1])] = number
        return Instances(self.image_id, label_map, self.scores, self.labels, self.class_names)


Cells = Instances | OverlappingCells
"""What rules make of a prediction."""
