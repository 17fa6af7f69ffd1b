"""Images whose cells are larger or smaller than those that the networks learned, at the networks' size."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from sartorius_infer.types import CellImage, Float32


def shown(image: CellImage, magnification: float) -> CellImage:
    """The image at 1 / `magnification` of its size, at least one pixel: by areas where it shrinks."""
    if magnification == 1:
        return image
    height, width = (max(1, round(side / magnification)) for side in image.size_hw)
    how = cv2.INTER_AREA if magnification > 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image.pixels, (width, height), interpolation=how)
    return replace(image, pixels=resized.astype(np.uint8, copy=False))


def boxes_back(boxes: Float32, shown_hw: tuple[int, int], size_hw: tuple[int, int]) -> Float32:
    """Boxes (N, 4) xyxy of an image shown at `shown_hw`, in the pixels of its own `size_hw`."""
    if shown_hw == size_hw:
        return boxes
    grown = np.array([size_hw[1] / shown_hw[1], size_hw[0] / shown_hw[0]] * 2, np.float32)
    return boxes * grown
