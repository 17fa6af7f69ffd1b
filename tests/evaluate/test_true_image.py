from __future__ import annotations

from pathlib import Path

import pytest
from truths import csv

from sartorius_infer.errors import TruthError
from sartorius_infer.evaluate.train_csv import read_train_csv
from sartorius_infer.evaluate.true_image import require_known


def test_unknown_images_are_named_a_few_of_them(tmp_path: Path) -> None:
    truth = read_train_csv(csv(tmp_path, "a,1 1,4,3,x"))
    require_known(truth, ["a"], tmp_path)
    require_known({}, [], tmp_path)
    said = "expected truth of every image, found none of b, c, d, e, f and 2 more$"
    with pytest.raises(TruthError, match=said):
        require_known(truth, list("abcdefgh"), tmp_path)
