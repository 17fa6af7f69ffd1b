"""Jobs and batches from lists of images, and what a summary counts."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sartorius_infer.images.find import ImageFile
from sartorius_infer.run.jobs import Job, Summary, plan_batches, plan_jobs
from sartorius_infer.run.journal import Result


@given(st.integers(0, 40), st.integers(1, 50))
def test_batches_are_the_list_cut_into_pieces(count: int, size: int) -> None:
    jobs = [Job(f"{i}", None) for i in range(count)]
    batches = plan_batches(jobs, size)
    assert [job for batch in batches for job in batch.jobs] == jobs
    assert [batch.number for batch in batches] == list(range(len(batches)))
    assert all(len(batch.jobs) == size for batch in batches[:-1])
    assert all(0 < len(batch.jobs) <= size for batch in batches)


def test_jobs_are_the_images_or_what_the_sample_names() -> None:
    files = [ImageFile(name, Path(f"{name}.png")) for name in "abc"]
    assert plan_jobs(files, None) == ([Job(file.id, file) for file in files], [])
    expected = [Job("c", files[2]), Job("gone", None), Job("a", files[0])]
    assert plan_jobs(files, ("c", "gone", "a")) == (expected, ["b"])
    assert plan_jobs([], ()) == ([], [])


def test_the_sample_may_spell_ids_in_its_own_way() -> None:
    """It is found however its letters are composed, and written as the sample writes it."""
    composed = ImageFile("caf\N{LATIN SMALL LETTER E WITH ACUTE}", Path("1.png"))
    inner = ImageFile("a_image", Path("a/image.png"))
    decomposed = "cafe\N{COMBINING ACUTE ACCENT}"
    expected = [
        Job(decomposed, ImageFile(decomposed, composed.path)),
        Job("a/image", ImageFile("a/image", inner.path)),
    ]
    assert plan_jobs([inner, composed], (decomposed, "a/image")) == (expected, [])


def test_what_a_name_tells_is_known_before_anything_is_opened() -> None:
    odd = ImageFile(r"caf\udce9", Path("x/caf\udce9.png"))
    assert Job("a", ImageFile("a", Path("caf\udce9/a.png"))).fault is None
    assert str(Job("b", None).fault) == "b: expected an image of this id, found none"
    assert (
        str(Job(odd.id, odd).fault)
        == r"x/caf\udce9.png: expected a file name in UTF-8, found other bytes; rename the file"
    )


def test_a_summary_tells_failed_images_from_blank_ones() -> None:
    summary = Summary(cells=Counter({"x": 0, "y": 0}))
    for result in (Result("a", [], {"y": 2}), Result("b", []), Result("c", [], error="broken")):
        summary.add(result)
    assert (summary.images, summary.blank, summary.failed) == (3, ["b"], {"c": "broken"})
    assert [*summary.cells.items()] == [("x", 0), ("y", 2)]


def test_a_run_is_planned_without_torch() -> None:
    code = "import sys, sartorius_infer.run.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
