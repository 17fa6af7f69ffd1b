"""The values that flow between rooms: frozen, checked where they are made and nowhere else.

Boxes are `xyxy` in image pixels, half-open: a box (0, 0, 4, 2) covers 4 columns and 2 rows.
Sizes are `_hw` (height, width). Labels count from 1 in the manifest's class order; 0 is background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

MAX_PIXELS = 1 << 30
"""Of one image: OpenCV's own limit, applied to every format."""


def expect(name: str, array: NDArray[np.generic], dtype: type, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `array` has `dtype` and `shape` (None: any length)."""
    fits = len(array.shape) == len(shape) and all(
        want is None or got == want for got, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name}: expected {np.dtype(dtype).name} ({wanted}), found {array.dtype} {array.shape}"
        )


@dataclass(frozen=True, eq=False)
class CellImage:
    """One image: `pixels` uint8, (H, W) gray or (H, W, 3) RGB; `id` is the file's stem."""

    id: str
    pixels: UInt8

    def __post_init__(self) -> None:
        shape = (None, None) if self.pixels.ndim == 2 else (None, None, 3)
        expect("pixels", self.pixels, np.uint8, shape)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the networks saw in one image, before any rule: N soft cells of K classes.

    boxes   float32 (N, 4), xyxy in image pixels
    scores  float32 (N,), in [0, 1]
    labels  int64 (N,), 1..K
    masks   float16 (N, M, M), probabilities in [0, 1] on a grid that spans each cell's box
    """

    image_id: str
    size_hw: tuple[int, int]
    boxes: Float32
    scores: Float32
    labels: Int64
    masks: Float16

    def __post_init__(self) -> None:
        n = len(self.scores)
        side = self.masks.shape[-1]
        expect("boxes", self.boxes, np.float32, (n, 4))
        expect("scores", self.scores, np.float32, (n,))
        expect("labels", self.labels, np.int64, (n,))
        expect("masks", self.masks, np.float16, (n, side, side))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: Bool | Int64) -> Prediction:
        """The cells that `keep` (boolean mask or indices) selects, all fields filtered as one."""
        return Prediction(
            self.image_id,
            self.size_hw,
            self.boxes[keep],
            self.scores[keep],
            self.labels[keep],
            self.masks[keep],
        )
