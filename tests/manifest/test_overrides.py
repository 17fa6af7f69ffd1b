"""Rules from files and by class: what holds then, where it comes from, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartorius_infer.errors import ManifestError
from sartorius_infer.manifest.overrides import RulesInForce, override_rules, read_rules, rules_lines
from sartorius_infer.manifest.rules import ClassRule, Rules

CLASSES = ("shsy5y", "astro", "cort")
OWN = Rules.model_validate(
    {
        "per_class": {
            "shsy5y": {"score": 0.15, "min_area": 47},
            "astro": {"score": 0.35, "edge": {"score": 0.5, "min_area": 60}},
        },
        "consensus": "surest",
        "edge": {"mode": "rule"},
    }
)


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def manifest_of(rules: Any, **more: Any) -> dict[str, Any]:
    models = [{"name": "a", "file": "nowhere.pth"}]
    return {"version": 1, "classes": list(CLASSES), "models": models, "rules": rules} | more


def sources_of(found: RulesInForce, source: str) -> set[str]:
    return {name for name, known in found.sources.items() if known == source}


def test_nothing_given_changes_nothing_and_tells_who_wrote_what() -> None:
    found = override_rules(OWN, CLASSES)
    assert found.rules is OWN
    assert sources_of(found, "manifest") == {
        *("per_class.shsy5y.score", "per_class.shsy5y.min_area", "per_class.astro.score"),
        *("per_class.astro.edge", "consensus", "edge.mode"),
    }
    assert set(found.sources.values()) == {"manifest", "default"}
    assert len(found.sources) == len(CLASSES) * len(ClassRule.model_fields) + len(Rules.model_fields)


def test_what_is_given_by_class_is_laid_over_and_the_rest_stays() -> None:
    found = override_rules(OWN, CLASSES, score={"astro": 0.2, "cort": 1}, min_area={"cort": 5}, edge="drop")
    changed = {
        "per_class": {
            "shsy5y": OWN.of("shsy5y"),
            "astro": OWN.of("astro").model_copy(update={"score": 0.2}),
            "cort": ClassRule(score=1.0, min_area=5),
        },
        "edge": OWN.edge.model_copy(update={"mode": "drop"}),
    }
    assert found.rules == OWN.model_copy(update=changed)
    assert sources_of(found, "--score") == {"per_class.astro.score", "per_class.cort.score"}
    assert sources_of(found, "--min-area") == {"per_class.cort.min_area"}
    assert sources_of(found, "--edge") == {"edge.mode"}
    assert Rules.model_validate_json(found.rules.model_dump_json()) == found.rules


@given(
    st.dictionaries(st.sampled_from(CLASSES), st.floats(0, 1)),
    st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 10**6)),
    st.sampled_from([None, "rule", "keep", "drop"]),
)
def test_every_value_in_range_holds_and_another_time_changes_nothing(
    score: dict[str, float], min_area: dict[str, int], edge: Any
) -> None:
    found = override_rules(OWN, CLASSES, score=score, min_area=min_area, edge=edge).rules
    for name in CLASSES:
        assert found.of(name).score == score.get(name, OWN.of(name).score)
        assert found.of(name).min_area == min_area.get(name, OWN.of(name).min_area)
        assert (found.of(name).mask, found.of(name).edge) == (OWN.of(name).mask, OWN.of(name).edge)
    assert found.edge.mode == (edge or "rule")
    assert override_rules(found, CLASSES, score=score, min_area=min_area, edge=edge).rules == found


def test_numbers_of_numpy_are_numbers() -> None:
    found = override_rules(OWN, CLASSES, score={"cort": np.float32(0.5)}, min_area={"cort": np.int64(9)})
    assert found.rules.of("cort") == ClassRule(score=0.5, min_area=9)
    assert found.rules.model_dump_json()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"score": {"neuron": 0.2}}, "--score neuron=0.2: expected one of the classes shsy5y, astro, cort"),
    ({"min_area": {"": 3}}, "--min-area =3: expected one of the classes"),
    ({"score": {"cort": float("nan")}}, "--score cort=nan: expected a number from 0 to 1"),
    ({"score": {"cort": 1.0001}}, "--score cort=1.0001: expected a number from 0 to 1"),
    ({"score": {"cort": -0.1}}, "--score cort=-0.1: expected a number from 0 to 1"),
    ({"score": {"cort": True}}, "--score cort=True: expected"),
    ({"score": {"cort": "0.5"}}, "--score cort=0.5: expected"),
    ({"min_area": {"astro": -1}}, "--min-area astro=-1: expected a whole number of pixels from 0"),
    ({"min_area": {"astro": 4.0}}, "--min-area astro=4.0: expected a whole number"),
    ({"min_area": {"astro": False}}, "--min-area astro=False: expected a whole number"),
    ({"edge": "cut"}, "--edge cut: expected rule, keep, drop"),
    ({"file": Rules(per_class={"x": ClassRule()})}, "--rules: x: expected one of the classes shsy5y"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_cannot_be_names_class_and_value(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        override_rules(OWN, CLASSES, **given)
    assert str(caught.value).startswith(said)


def test_a_file_takes_the_place_of_all_and_what_is_given_by_itself_goes_before_it(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.json", {"per_class": {"cort": {"score": 0.4}}, "overlap_survival": 0.9})
    found = override_rules(OWN, CLASSES, file=str(path), score={"astro": 0.1})
    expected = {"cort": ClassRule(score=0.4), "astro": ClassRule(score=0.1)}
    assert found.rules == Rules(per_class=expected, overlap_survival=0.9)
    assert sources_of(found, "--rules mine.json") == {"per_class.cort.score", "overlap_survival"}
    assert sources_of(found, "--score") == {"per_class.astro.score"}
    assert sources_of(found, "manifest") == set()
    assert override_rules(OWN, CLASSES, file=read_rules(path), score={"astro": 0.1}).rules == found.rules


def test_a_manifest_gives_its_rules(tmp_path: Path) -> None:
    """Its checkpoints need not be there."""
    rules = OWN.model_dump(mode="json")
    assert read_rules(written(tmp_path / "m.json", manifest_of(rules))) == OWN
    assert read_rules(str(written(tmp_path / "r.json", rules))) == OWN
    assert read_rules(written(tmp_path / "none.json", {})) == Rules()


FAULTS: list[tuple[Any, str]] = [
    ({"per_class": {"a": {"score": 2}}}, r"$.per_class.a.score: "),
    ({"per_class": {"a": {"scores": 0.2}}}, r"$.per_class.a.scores: "),
    ({"consensus": "none"}, r"$.consensus: "),
    ({"overlap_survival": "0.5"}, r"$.overlap_survival: "),
    (manifest_of({"per_class": {"cort": {"min_area": -1}}}), r"$.rules.per_class.cort.min_area: "),
    (manifest_of({}, views=["sideways"]), r"$.views[0]: "),
    ({"version": 1, "rules": {}}, r"$.classes: "),
    ('{"per_class": {"a": {"score": NaN}}}', r"$.per_class.a.score: "),
    ('{"fill_holes": true, "fill_holes": false}', "expected JSON, found keys of one object"),
    ([], "$: "),
    ("{", "expected JSON, found "),
]


@pytest.mark.parametrize(("content", "said"), FAULTS)
def test_a_faulty_file_is_named_with_the_place_in_it(tmp_path: Path, content: Any, said: str) -> None:
    path = written(tmp_path / "rules.json", content)
    with pytest.raises(ManifestError) as caught:
        read_rules(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    with pytest.raises(ManifestError):
        override_rules(OWN, CLASSES, file=path)


def test_a_file_that_cannot_be_read_and_one_for_other_classes(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.json: expected a readable JSON file"):
        read_rules(tmp_path / "none.json")
    path = written(tmp_path / "r.json", {"per_class": {"cort": {}, "neuron": {}}})
    with pytest.raises(ManifestError, match=r"r\.json: neuron: expected one of the classes shsy5y, astro, c"):
        override_rules(OWN, CLASSES, file=path)


def test_lines_of_one_source_name_it_once() -> None:
    assert rules_lines(override_rules(Rules(), CLASSES), CLASSES) == [
        "rules     by default",
        "          score  min area  mask",
        "  shsy5y  0.5    0         0.5",
        "  astro   0.5    0         0.5",
        "  cort    0.5    0         0.5",
        "  all     consensus off, overlap survival 0.5, edge rule, paste exact",
    ]


def test_lines_of_several_sources_tell_which_is_from_where() -> None:
    whole = OWN.model_copy(update={"overlap_survival": 0.8, "fill_holes": True, "paste": "torchvision"})
    found = override_rules(whole, CLASSES, score=dict.fromkeys(CLASSES, 0.25), min_area={"cort": 3})
    assert rules_lines(found, CLASSES) == [
        "rules     from manifest, but for what is in brackets",
        "          score (--score)  min area        mask (default)  edge score/area",
        "  shsy5y  0.25             47              0.5             as inside (default)",
        "  astro   0.25             0 (default)     0.5             0.5/60",
        "  cort    0.25             3 (--min-area)  0.5             as inside (default)",
        "  all     consensus surest, overlap survival 0.8, edge rule, paste torchvision, fill holes yes",
    ]


def test_lines_leave_out_edge_thresholds_that_are_not_in_force() -> None:
    found = override_rules(OWN, CLASSES, edge="keep")
    said = "\n".join(rules_lines(found, CLASSES))
    assert "edge score" not in said
    assert "edge keep (--edge)" in said
    wide = OWN.model_copy(update={"edge": OWN.edge.model_copy(update={"margin": 2})})
    assert (
        "edge rule (manifest), edge margin 2 (manifest), "
        in rules_lines(override_rules(wide, CLASSES), CLASSES)[-1]
    )


def test_one_class_of_a_long_name() -> None:
    lines = rules_lines(override_rules(Rules(), ["neuroblastoma"]), ["neuroblastoma"])
    assert lines[1:3] == ["                 score  min area  mask", "  neuroblastoma  0.5    0         0.5"]


def test_no_torch() -> None:
    code = "import sys, sartorius_infer.manifest.overrides; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
