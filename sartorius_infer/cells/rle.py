"""Label maps to run-length strings and back, in the competition's format and in COCO's.

Competition: "start length" pairs, starts counted from 1, row-major: left to right, then down.
COCO: column-major counts of background and mask in turn, packed in printable characters.
Labels count from 1; 0 is background. Whatever the number of cells, a map is read once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple, TypedDict

import numpy as np

from sartorius_infer.types import Bool, Int32, Int64

# So that the sum of a start and a length stays within int64.
_DIGITS = 18
_INTEGER = re.compile(rf"-?[0-9]{{1,{_DIGITS}}}")
_PAIRS_AT_ONCE = 1 << 20

Mask = tuple[Int64, Int64]
"""Starts and lengths of a cell's runs of pixels, as `decode` gives them."""


class CocoRle(TypedDict):
    """One mask as pycocotools writes it: `size` is [height, width]."""

    size: list[int]
    counts: str


@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs of labels 1..n in one flat map, by label, then by position.

    starts  int64 (R,), from 0
    lengths int64 (R,)
    bounds  int64 (n + 1,): label k has the runs bounds[k - 1]:bounds[k]
    """

    starts: Int64
    lengths: Int64
    bounds: Int64


def encode_label_map(label_map: Int32, n: int) -> list[str]:
    """The competition's string for each label 1..n of `label_map` (H, W); "" for an absent one.

    Raises ValueError if the map holds a label outside 0..n.
    """
    runs = _runs(label_map.ravel(), n)
    numbers = np.stack([runs.starts + 1, runs.lengths], axis=1).ravel()
    words = [str(number) for number in numbers.tolist()]
    bounds = (2 * runs.bounds).tolist()
    return [" ".join(words[first:last]) for first, last in pairwise(bounds)]


def split_label_map(label_map: Int32, n: int) -> list[tuple[Int64, Int64]]:
    """Starts (from 0) and lengths, as `decode` gives them, of each label 1..n of `label_map` (H, W).

    Raises ValueError if the map holds a label outside 0..n.
    """
    runs = _runs(label_map.ravel(), n)
    bounds = pairwise(runs.bounds.tolist())
    return [(runs.starts[first:last], runs.lengths[first:last]) for first, last in bounds]


def encode_coco(label_map: Int32, n: int) -> list[CocoRle]:
    """COCO's compressed RLE for each label 1..n of `label_map` (H, W).

    Equal to pycocotools.mask.encode on each label's mask; counts are differences to the count
    two before, in 5-bit groups (rleToString in cocoapi's maskApi.c).
    Raises ValueError if the map holds a label outside 0..n.
    """
    height, width = label_map.shape
    return _coco_texts(_runs(label_map.T.ravel(), n), (height, width))


def encode_coco_masks(masks: Sequence[Mask], size_hw: tuple[int, int]) -> list[CocoRle]:
    """As `encode_coco`, of masks that may share pixels, as `decode` gives them, in an image of `size_hw`."""
    height, width = size_hw
    return _coco_texts(_joined([_transposed(mask, height, width) for mask in masks]), size_hw)


def decode_coco(counts: str | Sequence[int], size_hw: tuple[int, int]) -> tuple[Int64, Int64]:
    """Starts (from 0) and lengths, as `decode` gives them, of COCO's RLE: its text, or its counts as numbers.

    What follows the last count is background. Raises ValueError where a count is negative or they are more
    than the pixels of `size_hw`: pycocotools itself writes past its memory then.
    """
    height, width = size_hw
    return _transposed(decode_coco_columns(counts, size_hw), width, height)


def decode_coco_columns(counts: str | Sequence[int], size_hw: tuple[int, int]) -> Mask:
    """As `decode_coco`, but column-major: nothing is drawn, however large the image is said to be."""
    numbers = _counts_of_text(counts) if isinstance(counts, str) else np.array(counts, np.int64).reshape(-1)
    height, width = size_hw
    if len(numbers) and (numbers.min() < 0 or numbers.max() > height * width):
        raise ValueError(f"expected counts from 0 to {height * width}, found {_outside(numbers)}")
    if numbers.sum() > height * width:
        raise ValueError(f"expected counts of {height} x {width} pixels, found {numbers.sum()}")
    starts, lengths = np.cumsum(numbers)[:-1:2], numbers[1::2]
    return starts[lengths > 0], lengths[lengths > 0]


def coco_pixels(counts: str) -> int:
    """How many pixels COCO's text tells of, background too. Raises ValueError for no such text."""
    return int(_counts_of_text(counts).sum())


def _outside(numbers: Int64) -> int:
    return int(numbers.min() if numbers.min() < 0 else numbers.max())


def _counts_of_text(text: str) -> Int64:
    """Counts of COCO's text (rleFrString in cocoapi's maskApi.c): what `_five_bit_text` writes, undone."""
    groups = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not len(groups):
        return groups
    follows = (groups & 32) > 0
    if groups.min() < 0 or groups.max() > 63 or follows[-1]:
        raise ValueError("expected COCO's RLE text, found other characters, or its end inside a number")
    lasts = np.flatnonzero(~follows)
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    if (lasts - firsts).max() > 6:
        raise ValueError("expected COCO's RLE text, found a number of more than 35 bits")
    places = 5 * (np.arange(len(groups)) - np.repeat(firsts, lasts - firsts + 1))
    values = np.add.reduceat((groups & 31) << places, firsts)
    values -= np.where(groups[lasts] & 16, np.int64(32) << places[lasts], 0)
    # From the fourth on, each is the difference to the count two before.
    for parity in (1, 2):
        values[parity::2] = np.cumsum(values[parity::2])
    return values


def areas_and_boxes(label_map: Int32, n: int) -> tuple[Int64, Int64]:
    """Area (n,) in pixels and box xywh (n, 4) of each label 1..n; zeros for an absent one.

    Raises ValueError if the map holds a label outside 0..n.
    """
    return _areas_and_boxes(_runs(label_map.ravel(), n), label_map.shape[1])


def mask_areas_and_boxes(masks: Sequence[Mask], width: int) -> tuple[Int64, Int64]:
    """As `areas_and_boxes`, of masks as `decode` gives them, in an image of `width`."""
    return _areas_and_boxes(_joined(masks), width)


def areas(masks: Sequence[Mask]) -> Int64:
    """Pixels of each mask as `decode` gives it, int64 (N,)."""
    lengths = [mask[1] for mask in masks]
    pixels = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
    return np.diff(pixels[_bounds(lengths)])


def crop_runs(crop: Bool, y0: int, x0: int, width: int) -> Mask:
    """The mask, as `decode` gives it, of a crop (h, w) that begins at (y0, x0) of an image of `width`."""
    rows, columns = crop.shape
    side = min(columns + 1, width)  # an empty column parts the rows, unless they go on in the image
    padded = np.zeros((rows, side), np.bool_)
    padded[:, :columns] = crop
    edges = np.flatnonzero(np.diff(padded.ravel(), prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    return (starts // side + y0) * width + starts % side + x0, ends - starts


def _areas_and_boxes(runs: _Runs, width: int) -> tuple[Int64, Int64]:
    n = len(runs.bounds) - 1
    areas, boxes = np.zeros(n, np.int64), np.zeros((n, 4), np.int64)
    there = np.flatnonzero(np.diff(runs.bounds))
    if len(there) == 0:
        return areas, boxes
    firsts = runs.bounds[there]
    last = runs.starts + runs.lengths - 1
    wraps = runs.starts // width != last // width
    areas[there] = np.add.reduceat(runs.lengths, firsts)
    left = np.minimum.reduceat(np.where(wraps, 0, runs.starts % width), firsts)
    right = np.maximum.reduceat(np.where(wraps, width - 1, last % width), firsts)
    top, bottom = runs.starts[firsts] // width, last[runs.bounds[there + 1] - 1] // width
    boxes[there] = np.stack([left, top, right - left + 1, bottom - top + 1], axis=1)
    return areas, boxes


def decode(rle: str, size_hw: tuple[int, int]) -> tuple[Int64, Int64]:
    """Starts (from 0) and lengths, int64 (R,) each, of the competition's string; "" has no runs.

    Raises ValueError with every reason, joined by "; ", if the string is not sorted, disjoint,
    positive pairs within an image of `size_hw`.
    """
    numbers = _integers(rle)
    if len(numbers) % 2:
        raise ValueError(f"expected start length pairs, found an odd number of values ({len(numbers)})")
    starts, lengths = numbers.reshape(-1, 2).T
    if len(starts) and not _sound(starts, lengths, size_hw):
        raise ValueError("; ".join(_faults(starts, lengths, size_hw)))
    return starts - 1, lengths


def _integers(text: str) -> Int64:
    """The integers of a text with spaces between them, int64 (N,). Raises ValueError for anything else."""
    together = text.replace(" ", "")
    if together.isascii() and together.isdecimal():
        # A tenth of the time of words one by one; what overflows comes out as the greatest of int64.
        numbers = np.fromstring(text, np.int64, sep=" ")
        if numbers.max() < 10**_DIGITS:
            return numbers
    words = text.split()
    if not all(map(_INTEGER.fullmatch, words)):
        wrong = next(word for word in words if not _INTEGER.fullmatch(word))
        raise ValueError(f"expected integers of at most {_DIGITS} digits, found {wrong[:30]!r}")
    return np.array(list(map(int, words)), np.int64)


def decode_mask(rle: str, size_hw: tuple[int, int]) -> Bool:
    """The mask (H, W) of the competition's string. Raises ValueError as `decode` does."""
    mask = np.zeros(size_hw, np.bool_)
    mask.ravel()[run_pixels(*decode(rle, size_hw))] = True
    return mask


def decode_label_map(rles: Sequence[str], size_hw: tuple[int, int]) -> Int32:
    """The label map (H, W) in which `rles[k - 1]` is label k.

    Raises ValueError as `decode` does, or if two masks share a pixel.
    """
    masks = [decode(rle, size_hw) for rle in rles]
    for first, second, pixels in shared_pixels(masks):
        raise ValueError(f"labels {first + 1} and {second + 1} share {pixels} pixel(s)")
    label_map = np.zeros(size_hw, np.int32)
    for label, runs in enumerate(masks, start=1):
        label_map.ravel()[run_pixels(*runs)] = label
    return label_map


def shared_pixels(masks: Sequence[Mask]) -> list[tuple[int, int, int]]:
    """(i, j, pixels) for each two masks i < j with pixels in common, sorted.

    A mask is `decode`'s starts and lengths. Memory grows with runs and results, not with pixels.
    """
    runs = _by_start(masks)
    met = _meetings(runs, runs, np.arange(1, len(runs.starts) + 1))
    summed = _summed((*np.sort((i, j), axis=0), pixels) for i, j, pixels in met)
    return list(zip(*(part.tolist() for part in summed), strict=True))


def cross_pixels(one: Sequence[Mask], other: Sequence[Mask]) -> tuple[Int64, Int64, Int64]:
    """i, j and pixels, int64 (R,) each, of each `one[i]` and `other[j]` with pixels in common, by i, then j.

    Masks of either list may share pixels among themselves. Memory as of `shared_pixels`.
    """
    first, second = _by_start(one), _by_start(other)
    # Of two runs that meet one begins within the other; where both begin together, that is the first's.
    within = np.searchsorted(second.starts, first.starts, side="left")
    around = np.searchsorted(first.starts, second.starts, side="right")
    back = ((i, j, pixels) for j, i, pixels in _meetings(second, first, around))
    return _summed(chain(_meetings(first, second, within), back))


class _Sorted(NamedTuple):
    """Runs of several masks by where they begin: their masks' numbers, starts and ends, int64 (R,) each."""

    owners: Int64
    starts: Int64
    ends: Int64


def _by_start(masks: Sequence[Mask]) -> _Sorted:
    runs = _joined(masks)
    order = _order(runs.starts)
    owners = np.repeat(np.arange(len(masks)), np.diff(runs.bounds))
    starts = runs.starts[order]
    return _Sorted(owners[order], starts, starts + runs.lengths[order])


_Pairs = tuple[Int64, Int64, Int64]
"""The numbers i and j of two masks, and pixels that they share, (R,) each."""


def _meetings(runs: _Sorted, others: _Sorted, first: Int64) -> Iterator[_Pairs]:
    """Owners of a run and of another that begins in it, and their shared pixels, in blocks.

    `first` (R,) is the first of the `others` that each run may meet; it meets them until its own end.
    """
    met = np.searchsorted(others.starts, runs.ends) - first
    for run in _blocks(met):
        counts = met[run]
        mine = np.repeat(run, counts)
        theirs = np.arange(len(mine)) + np.repeat(first[run] - np.cumsum(counts) + counts, counts)
        pixels = np.minimum(runs.ends[mine], others.ends[theirs]) - others.starts[theirs]
        yield runs.owners[mine], others.owners[theirs], pixels


def _summed(blocks: Iterable[_Pairs]) -> _Pairs:
    """Each pair (i, j) of all blocks once, sorted, with the sum of its pixels."""
    kept: list[_Pairs] = [(np.empty(0, np.int64),) * 3]
    for block in blocks:
        # Small ones wait for the last sum.
        kept.append(_each_once(*block) if len(block[0]) > _PAIRS_AT_ONCE // 2 else block)
    one, other, pixels = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return _each_once(one, other, pixels)


def _each_once(one: Int64, other: Int64, pixels: Int64) -> _Pairs:
    width = other.max(initial=0) + 1
    keys = one * width + other
    order = _order(keys)
    keys = keys[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    sums = np.add.reduceat(pixels[order], firsts) if len(firsts) else pixels
    return keys[firsts] // width, keys[firsts] % width, sums


def _order(keys: Int64) -> Int64:
    """As `np.argsort` of keys from 0; numbers are sorted in a third of the time of places."""
    count = len(keys)
    if keys.max(initial=0) >= np.iinfo(np.int64).max // max(count, 1):
        return np.argsort(keys, kind="stable")
    return np.sort(keys * count + np.arange(count)) % max(count, 1)


def _blocks(met: Int64) -> Iterator[Int64]:
    """Indices of the runs that meet any other, in blocks of about `_PAIRS_AT_ONCE` meetings."""
    busy = np.flatnonzero(met)
    if len(busy):
        block = np.cumsum(met[busy]) // _PAIRS_AT_ONCE
        yield from np.split(busy, np.flatnonzero(np.diff(block)) + 1)


def _runs(flat: Int32, n: int) -> _Runs:
    """The runs of labels 1..n in a flat map. Raises ValueError if a label is outside 0..n."""
    changed = np.ones(len(flat), np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=changed[1:])
    starts = np.flatnonzero(changed)
    lengths = np.diff(starts, append=len(flat))
    labels = flat[starts].astype(np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() <= n:
        raise ValueError(f"expected labels 0..{n}, found {labels.min()}..{labels.max()}")
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels, 1, sorter=order) :]
    bounds = np.searchsorted(labels[order], np.arange(1, n + 2)).astype(np.int64)
    return _Runs(starts[order], lengths[order], bounds)


def _joined(masks: Sequence[Mask]) -> _Runs:
    """The runs of several masks, each a label of its own, pixels shared or not."""
    none = np.empty(0, np.int64)
    starts, lengths = [none, *(m[0] for m in masks)], [none, *(m[1] for m in masks)]
    return _Runs(np.concatenate(starts), np.concatenate(lengths), _bounds(starts)[1:])


def _bounds(parts: Sequence[Int64]) -> Int64:
    """Where each of N arrays begins and ends among all of them, int64 (N + 1,)."""
    return np.cumsum([0, *map(len, parts)])


def _transposed(mask: Mask, height: int, width: int) -> Mask:
    """A row-major mask of an image (height, width) in column-major order, or the other way round.

    Of the image only the rows that the mask touches are drawn.
    """
    starts, lengths = mask
    if len(starts) == 0:
        return mask
    top, bottom = int(starts[0]) // width, int(starts[-1] + lengths[-1] - 1) // width
    band = np.zeros((bottom + 1 - top, width), np.bool_)
    band.ravel()[run_pixels(starts - top * width, lengths)] = True
    return crop_runs(band.T, 0, top, height)


def _coco_texts(runs: _Runs, size_hw: tuple[int, int]) -> list[CocoRle]:
    """COCO's compressed RLE of each label, from its column-major runs."""
    counts, bounds = _coco_counts(runs, size_hw[0] * size_hw[1])
    index = np.arange(len(counts))
    later = np.flatnonzero(index - np.repeat(bounds[:-1], np.diff(bounds)) > 2)
    deltas = counts.copy()
    deltas[later] -= counts[later - 2]
    text, ends = _five_bit_text(deltas)
    cuts = np.concatenate([[0], ends])[bounds].tolist()
    return [{"size": [*size_hw], "counts": text[first:last]} for first, last in pairwise(cuts)]


def _coco_counts(runs: _Runs, pixels: int) -> tuple[Int64, Int64]:
    """Counts of background and mask in turn for all labels, and each label's bounds (n + 1,).

    An empty run behind the last pixel closes each label, so that its trailing background is a
    gap like the others; of that run only a gap that is not empty, or stands alone, is kept.
    """
    n = len(runs.bounds) - 1
    closing = runs.bounds[1:] + np.arange(n)
    starts = np.insert(runs.starts, runs.bounds[1:], pixels)
    ends = np.insert(runs.starts + runs.lengths, runs.bounds[1:], pixels)
    before = np.concatenate([[0], ends[:-1]])
    before[runs.bounds[:-1] + np.arange(n)] = 0
    pairs = np.stack([starts - before, ends - starts], axis=1)
    kept = np.ones(pairs.shape, np.bool_)
    kept[closing, 1] = False
    kept[closing, 0] = (pairs[closing, 0] > 0) | (np.diff(runs.bounds) == 0)
    bounds = np.concatenate([[0], np.cumsum(kept.sum(axis=1))[closing]])
    return pairs[kept], bounds


def _five_bit_text(values: Int64) -> tuple[str, Int64]:
    """All values in signed 5-bit groups, low first, one character each; and each value's end.

    A character is 48 + the group, + 32 if more groups of its value follow.
    """
    rest = values.copy()
    follows = np.ones(len(values), np.bool_)
    characters, written = [], []
    while follows.any():
        group = rest & 31
        rest >>= 5
        written.append(follows)
        follows = follows & np.where(group & 16, rest != -1, rest != 0)
        characters.append((48 + group + 32 * follows).astype(np.uint8))
    if not written:
        return "", np.zeros(0, np.int64)
    chosen = np.stack(written, axis=1)
    text = np.stack(characters, axis=1)[chosen].tobytes().decode("ascii")
    return text, np.cumsum(chosen.sum(axis=1))


def _sound(starts: Int64, lengths: Int64, size_hw: tuple[int, int]) -> bool:
    """Whether `_faults` would find nothing, in a fraction of its time; needs at least one pair."""
    ends = starts + lengths
    inside = starts[0] >= 1 and ends[-1] <= size_hw[0] * size_hw[1] + 1
    return bool(inside and lengths.min() >= 1 and (starts[1:] >= ends[:-1]).all())


def _faults(starts: Int64, lengths: Int64, size_hw: tuple[int, int]) -> Iterator[str]:
    """What is wrong with pairs whose starts count from 1; of each kind the first pair is named."""
    height, width = size_hw
    last = starts + lengths - 1
    unsorted, inside = np.zeros((2, len(starts)), np.bool_)
    unsorted[1:] = starts[1:] < starts[:-1]
    inside[1:] = ~unsorted[1:] & (starts[1:] <= last[:-1])
    kinds = (
        (starts < 1, "the start is below 1"),
        (lengths < 1, "the length is below 1"),
        (unsorted, "the start is before the previous pair's"),
        (inside, "the start is inside the previous pair"),
        (last > height * width, f"it ends past pixel {height * width}, the last of {height} x {width}"),
    )
    for wrong, reason in kinds:
        if wrong.any():
            pair = int(wrong.argmax())
            yield f"pair {pair + 1} ({starts[pair]} {lengths[pair]}): {reason}"


def run_pixels(starts: Int64, lengths: Int64) -> Int64:
    """The flat index of every pixel of the runs."""
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
