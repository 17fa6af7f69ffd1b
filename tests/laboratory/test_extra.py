from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from places import ROOT

from sartorius_infer.errors import ExtraError
from sartorius_infer.laboratory import extra

PACKAGES = (extra.LABELS, extra.ROIS, extra.MEASUREMENTS)


def test_the_extra_of_the_project_has_these_packages() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["lab"]
    assert [requirement.partition(">")[0] for requirement in asked] == list(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_is_there_is_enough(package: str) -> None:
    extra.require(package, "--it")


@pytest.mark.parametrize("package", PACKAGES)
def test_one_that_is_not_is_named_with_what_to_do(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(ExtraError) as caught:
        extra.require(package, "--it")
    assert str(caught.value) == (
        f"--it: expected the package {package}, found none; pip install {package}, or "
        "tifffile roifile scikit-image for all of the extra [lab]"
    )


def test_asking_and_the_command_line_import_none_of_them() -> None:
    code = (
        "import sys\nfrom sartorius_infer.laboratory import extra, labels, measure, rois\n"
        "import sartorius_infer.cli.main, sartorius_infer.run.runs, sartorius_infer.output.tables\n"
        f"for package in {PACKAGES}: extra.require(package, '--it')\n"
        "assert not {'tifffile', 'roifile', 'skimage'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
