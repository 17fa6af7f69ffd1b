"""A label map as a TIFF file, as Fiji, napari, QuPath and CellProfiler open it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sartorius_infer.files import atomic_file
from sartorius_infer.laboratory import extra
from sartorius_infer.streams import writing
from sartorius_infer.types import Int32


def write_label_map(path: Path, label_map: Int32) -> None:
    """Write a label map, int32 (H, W) from 0, as one page of unsigned numbers, whole or not at all.

    16 bits, or 32 where a label needs them; deflate; the same map gives the same bytes. Raises ExtraError
    without tifffile, SubmissionError if the file cannot be written.
    """
    extra.require(extra.LABELS, "label maps")
    import tifffile

    dtype = np.uint16 if label_map.max(initial=0) < 2**16 else np.uint32
    with writing(path), atomic_file(path, "wb") as file:
        tifffile.imwrite(
            file, label_map.astype(dtype), compression="zlib", photometric="minisblack", metadata=None
        )
