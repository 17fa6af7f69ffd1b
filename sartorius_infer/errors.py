"""Every error this package raises on purpose, as one tree with one base to catch.

A message names the file, what was expected and what was found, in one line: the command line
prints it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def first_line(error: BaseException) -> str:
    """The first line of what another library says, without the advice after it; else the error's type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_LONGEST = 1000
"""Characters of a line; of a longer one the middle goes."""


def one_line(text: object) -> str:
    """One line that any terminal takes: what does not print is spelled out, as in "\\x1b"."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def size_text(size_hw: Iterable[object]) -> str:
    """A size as every message prints it, height first: "520 x 704"."""
    return " x ".join(map(str, size_hw))


def some(names: Sequence[object], most: int = 5, between: str = ", ") -> str:
    """The first few, and how many more: "a, b, c and 7 more"."""
    more = len(names) - most
    return between.join(map(str, names[:most])) + f" and {more} more" * (more > 0)


class SartoriusError(Exception):
    """Base of every error raised on purpose by this package."""


class ManifestError(SartoriusError):
    """A manifest that cannot be read, or says something impossible."""


class CheckpointError(SartoriusError):
    """A checkpoint that cannot be read safely, or does not fit any network."""


class ImageError(SartoriusError):
    """An image, or a folder of images, that cannot be used."""


class PredictionError(SartoriusError):
    """A network produced something that is not a prediction, such as NaN."""


class SubmissionError(SartoriusError):
    """A submission or results file that cannot be read or written."""


class DeviceError(SartoriusError):
    """A device that was asked for and is not there."""


class JournalError(SartoriusError):
    """A journal that belongs to another run."""


class TruthError(SartoriusError):
    """Annotations that cannot be read, or do not belong to the images."""


class ExtraError(SartoriusError):
    """Packages of an extra that were asked for and are not there."""
