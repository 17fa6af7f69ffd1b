"""From a Cellpose network's flows to cells: seeds, the flow check, holes, sizes, and how sure each is.

Source: Stringer et al., Nature Methods 18 (2021), and the package's behaviour (version 3.1.1, with its
numbering mended as it was in 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.networks.cellpose.dynamics import flow_errors, follow, grown_seeds
from sartorius_infer.networks.cellpose.tiles import resized
from sartorius_infer.types import Bool, Float32, Int32

STEPS = 200
"""Steps along the flow, in the network's pixels."""

FAINTEST_LOGIT = -2.0
"""Pixels with a higher logit can be of a cell, for a mask that others have a say in.

Measured on four images that the network had not seen: averaged so with the masks of a Mask R-CNN, those lost
least.
"""


_UNDER_HALF = np.float32(np.nextafter(np.float16(0.5), np.float16(0)))


@dataclass(frozen=True, eq=False)
class Cells:
    """What a Cellpose network sees in an image (H, W).

    label_map      int32 (H, W): the cells, 1 to N
    reach          int32 (H, W): the cell to which a pixel that could be one's flows, its own pixels too
    probabilities  float32 (H, W): that a pixel is a cell's, over 0.5 where the threshold is passed
    scores         float32 (N,): the mean of that before any threshold, times exp(-flow error)
    """

    label_map: Int32
    reach: Int32
    probabilities: Float32
    scores: Float32

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.label_map.nbytes + self.reach.nbytes + self.probabilities.nbytes


def cells_of(maps: Float32, parts: CellposeParts, size_hw: tuple[int, int], rescale: float) -> Cells:
    """The cells of an image of `size_hw` by flows and logit (3, h, w) of it at `rescale` times its size."""
    at_size = resized(maps, size_hw)
    if parts.resample:
        maps = at_size
    steps = parts.steps or (max(1, int(STEPS / np.float32(rescale))) if parts.resample else STEPS)
    seeds, seeds_reach = _seeded(maps, parts.cellprob_threshold, steps)
    _drop(seeds, np.bincount(seeds.ravel()) > parts.max_size_fraction * seeds.size)
    errors = flow_errors(seeds, maps)
    if parts.flow_threshold > 0:
        _drop(seeds, errors > parts.flow_threshold)
    label_map = cleaned(_nearest(seeds, size_hw), parts.min_size)
    numbers = np.unique(label_map)
    numbers = numbers[numbers > 0]
    renumbered = np.zeros(int(max(seeds_reach.max(), label_map.max())) + 1, np.int32)
    renumbered[numbers] = np.arange(1, len(numbers) + 1)
    label_map = renumbered[label_map]
    reach = np.where(label_map > 0, label_map, renumbered[_nearest(seeds_reach, size_hw)])
    pixels = np.bincount(label_map.ravel())
    means = np.bincount(label_map.ravel(), weights=_sigmoid(at_size[2]).ravel())[1:] / pixels[1:]
    scores = (means * np.exp(-errors[numbers])).astype(np.float32)
    probabilities = _sigmoid(at_size[2] - np.float32(parts.cellprob_threshold))
    # Filled holes are the cell's, and of what flows to it no more than it has, in half precision too.
    np.maximum(probabilities, 0.5, out=probabilities, where=label_map > 0)
    np.minimum(probabilities, _UNDER_HALF, out=probabilities, where=(reach > 0) & (label_map == 0))
    return Cells(label_map, reach, probabilities, scores)


def _seeded(maps: Float32, threshold: float, steps: int) -> tuple[Int32, Int32]:
    """The seed of each pixel over the threshold, int32 (h, w), and of each that could be a cell's."""
    size_hw, logit = (maps.shape[1], maps.shape[2]), maps[2]
    inside, near = logit > threshold, logit > min(threshold, FAINTEST_LOGIT)
    seeds, reach = np.zeros(size_hw, np.int32), np.zeros(size_hw, np.int32)
    points = np.argwhere(inside)
    ends = follow(maps, inside, points, steps)
    bins = grown_seeds(ends, size_hw)
    seeds[inside] = reach[inside] = bins[tuple(ends.T)]
    faint = near & ~inside
    reach[faint] = bins[tuple(follow(maps, near, np.argwhere(faint), steps).T)]
    return seeds, reach


def _drop(label_map: Int32, which: Bool) -> None:
    """Take the numbers out of a label map that `which` (N + 1,) names."""
    which[0] = False
    label_map[which[label_map]] = 0


def _nearest(label_map: Int32, size_hw: tuple[int, int]) -> Int32:
    if label_map.shape == size_hw:
        return label_map
    return np.asarray(cv2.resize(label_map, size_hw[::-1], interpolation=cv2.INTER_NEAREST), np.int32)


def cleaned(label_map: Int32, min_size: int) -> Int32:
    """Without cells of fewer pixels, and without holes in cells: they belong to it, whoever had them.

    A hole is what no path through pixels side by side leads out of. Numbers stay.
    """
    label_map = label_map.copy()
    _drop(label_map, np.bincount(label_map.ravel()) < min_size)
    for number, place in enumerate(ndimage.find_objects(label_map), start=1):
        if place is not None:
            region = label_map[place]
            region[ndimage.binary_fill_holes(region == number)] = number
    _drop(label_map, np.bincount(label_map.ravel()) < min_size)
    return label_map


def _sigmoid(logit: Float32) -> Float32:
    result: Float32 = (1 / (1 + np.exp(-logit.clip(-80, 80)))).astype(np.float32)
    return result
