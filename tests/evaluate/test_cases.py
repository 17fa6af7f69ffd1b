"""Files as people have them, one of each kind, scored by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import CASES

from sartorius_infer.cli.main import main

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")


def scored(out: Path, truth: str, submission: str, *words: str) -> tuple[int, dict[str, object]]:
    paths = ["--truth", str(CASES / truth), "--submission", str(CASES / submission), "--json", str(out)]
    code = main(["score", *paths, *words])
    return code, json.loads(out.read_text()) if code == 0 else {}


@pytest.mark.parametrize(
    ("truth", "submission"),
    [
        ("coco/base.json", "coco/results/int_image_id.json"),
        ("coco/base.json", "coco/results/stem_image_id.json"),
        ("coco/annotations_dict.json", "coco/sub.csv"),
        ("coco/poly_2points.json", "coco/sub.csv"),
        ("coco/bom.json", "coco/sub.csv"),
        ("coco/win_file_name.json", "coco/sub.csv"),
        ("truth/tif_bool_one", "truth/sub1.csv"),
        ("truth/tif_float64", "truth/sub.csv"),
        ("truth/tif_uint16", "truth/sub.csv"),
        ("truth/hw3_rgb", "truth/sub.csv"),
        ("truth/hidden", "truth/sub.csv"),
    ],
)
def test_a_perfect_submission_scores_one(tmp_path: Path, truth: str, submission: str) -> None:
    code, content = scored(tmp_path / "s.json", truth, submission)
    assert (code, content["score"]) == (0, 1.0)


@pytest.mark.parametrize(("name", "ap"), [("same", 1.0), ("classes_swapped", 0.0)])
def test_coco_s_number_regards_the_class(
    tmp_path: Path, name: str, ap: float, capsys: pytest.CaptureFixture[str]
) -> None:
    files = f"coco_ap/{name}.json", f"coco_ap/{name}_results.json"
    code, content = scored(tmp_path / "s.json", *files, "--coco")
    assert code == 0
    coco = content["coco"]
    assert isinstance(coco, dict)
    assert [coco["AP"], coco["AP50"], coco["by_class"]["class1"]["AP"]] == pytest.approx([ap] * 3)
    assert coco["class_blind"]["AP"] == pytest.approx(1)
    said = capsys.readouterr().out
    assert f"\ncoco      AP {ap:.3f}, AP50 {ap:.3f}" in said
    assert "at most 100 cells" in said
    assert f"\n  class1  {ap:.4f}, 1 images, 1 true, 1 found" in said


def test_a_hand_in_scores_against_its_truth(tmp_path: Path) -> None:
    code, _ = scored(tmp_path / "s.json", "hw3_out/gt.json", "hw3_out/test-results.json", "--coco")
    assert code == 0


def test_a_stack_in_one_directory_is_no_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "img.tif").write_bytes((CASES / "tiff" / "imagej_one_ifd.tif").read_bytes())
    words = ["--truth", str(tmp_path), "--submission", str(CASES / "truth" / "sub.csv")]
    assert main(["score", *words]) == 1
    error = capsys.readouterr().err
    assert "img.tif: expected one picture, found a stack of 3" in error
    assert len(error.splitlines()) == 1
