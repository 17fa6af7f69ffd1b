"""Parts as settings: any subset of them, strictly, and the laws of laying one tree over another."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.manifest.settings import Settings, flatten, merge, partial_model
from sartorius_infer.manifest.torchvision import PRESETS, Anchors, NetworkParts, RoiPool

Tree = dict[str, Any]

SomeParts = partial_model(NetworkParts)
DEFAULTS: Tree = NetworkParts().model_dump()
LEAVES: Tree = flatten(DEFAULTS)
BRANCHES = sorted({name[: i + 1] for name in LEAVES for i, mark in enumerate(name) if mark == "."} | {""})


def planted(name: str, value: Any) -> Tree:
    """{"a": {"b": value}} of "a.b"."""
    head, _, rest = name.partition(".")
    return {head: planted(rest, value) if rest else value}


def grown(flat: Tree) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for name, value in flat.items():
        tree = merge(tree, planted(name, value))
    return tree


subsets = st.sets(st.sampled_from(sorted(LEAVES))).map(lambda names: {n: LEAVES[n] for n in sorted(names)})


def trees(depth: int = 2) -> st.SearchStrategy[Tree]:
    """Trees of one schema: "x" and "y" are always branches, "a" and "b" always leaves."""
    fields = {"a": st.integers(0, 9), "b": st.none() | st.tuples(st.integers(0, 9))}
    branches = {name: trees(depth - 1).filter(bool) for name in ("x", "y")} if depth else {}
    return st.fixed_dictionaries({}, optional={**fields, **branches})


# Subsets.


@given(subsets)
def test_any_subset_is_accepted_and_remembered(flat: Tree) -> None:
    some = SomeParts.model_validate(grown(flat))
    assert flatten(some.model_dump(exclude_unset=True)) == flat
    assert NetworkParts.model_validate(merge(DEFAULTS, grown(flat))) == NetworkParts()


@given(subsets)
def test_any_subset_comes_back_from_json(flat: Tree) -> None:
    some = SomeParts.model_validate_json(json.dumps(grown(flat)))
    assert flatten(some.model_dump(exclude_unset=True)) == flat


@pytest.mark.parametrize("model", [NetworkParts, Norm, RoiPool, Anchors])
def test_nothing_is_a_subset(model: type[BaseModel]) -> None:
    some = partial_model(model).model_validate({})
    assert some.model_dump(exclude_unset=True) == {}
    assert set(some.model_dump().values()) <= {None}


def described(schema: object) -> set[str]:
    """Every description in a JSON schema but those of whole classes."""
    if isinstance(schema, list):
        return set().union(*map(described, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["description"]} if "properties" not in schema and "description" in schema else set()
    return own.union(*map(described, schema.values()))


def test_subsets_keep_the_descriptions() -> None:
    found = described(SomeParts.model_json_schema())
    assert found == described(NetworkParts.model_json_schema()) and len(found) >= 5


@pytest.mark.parametrize("branch", BRANCHES)
def test_unknown_keys_are_refused_at_every_depth(branch: str) -> None:
    for model in (SomeParts, NetworkParts):
        with pytest.raises(ValidationError, match="extra_forbidden") as caught:
            model.model_validate(merge(DEFAULTS, planted(f"{branch}typo", 1)))
        assert len(caught.value.errors()) == 1


def wrong(value: Any) -> list[Any]:
    """Values near to `value` that strict settings must not convert."""
    if isinstance(value, bool | str):
        return [1, "", None.__class__, b"resnet50"]
    if isinstance(value, tuple):
        return [(), list(value), "12", {}, (*value, "x"), 1]
    return [str(value), True, float("nan"), float("inf"), -1, (1,), {}]


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_wrong_values_are_refused_at_every_depth(name: str) -> None:
    value = LEAVES[name]
    # Lists that may be empty are those of convolutions; null means "not said".
    faults = [w for w in wrong(value) if not (w == () and name.endswith(("conv_channels", "levels")))]
    for fault in faults if value is not None else ["1", True, -1, (-1,), float("nan")]:
        with pytest.raises(ValidationError):
            SomeParts.model_validate(planted(name, fault))


BOUNDS: list[tuple[str, Any]] = [
    ("rpn.nms", 1.5),
    ("rpn.nms", -0.1),
    ("rpn.score", 1.01),
    ("rpn.conv_depth", 0),
    ("rpn.pre_nms_top_n", 0),
    ("rpn.pre_nms_top_n", 1000.0),
    ("fpn.channels", 0),
    ("fpn.extra", "p6p7"),
    ("fpn.norm.kind", "instance"),
    ("fpn.norm.eps", -1e-9),
    ("body_norm.groups", 0),
    ("body", "resnet51"),
    ("stages", (0,)),
    ("stages", ()),
    ("anchors.sizes", ()),
    ("anchors.sizes", ((0.0,),)),
    ("anchors.sizes", (32.0,)),
    ("anchors.aspect_ratios", (-1.0,)),
    ("box_pool.size", 0),
    ("box_pool.sampling_ratio", -1),
    ("mask_pool.levels", (-1,)),
    ("box_head.fc_channels", ()),
    ("box_head.conv_channels", (0,)),
    ("mask_head.dilation", 0),
    ("mask_head.hidden", 0),
    ("detection.per_image", 0),
    ("detection.nms", float("nan")),
]


@pytest.mark.parametrize(("name", "value"), BOUNDS)
def test_bounds_hold_in_the_whole_and_in_subsets(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as some:
        SomeParts.model_validate(planted(name, value))
    with pytest.raises(ValidationError) as whole:
        NetworkParts.model_validate(merge(DEFAULTS, planted(name, value)))
    for caught in (some, whole):
        assert ".".join(str(step) for step in caught.value.errors()[0]["loc"]).startswith(name)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_null_means_not_said(name: str) -> None:
    some = SomeParts.model_validate(planted(name, None))
    assert flatten(some.model_dump(exclude_unset=True, exclude_none=True)) == {}


def test_a_union_of_settings_becomes_optional_in_every_arm() -> None:
    class Tree(Settings):
        """A field that may be settings or nothing."""

        pool: RoiPool | None = None

    some = partial_model(Tree).model_validate({"pool": {"sampling_ratio": 0}})
    assert some.model_dump(exclude_unset=True) == {"pool": {"sampling_ratio": 0}}
    with pytest.raises(ValidationError):
        partial_model(Tree).model_validate({"pool": {"sampling": 0}})


def test_subsets_are_frozen() -> None:
    with pytest.raises(ValidationError):
        SomeParts.model_validate({}).body = "resnet18"  # type: ignore[attr-defined]


@pytest.mark.parametrize("levels", [(0,), (0, 1), (1,), None])
def test_pools_take_levels_that_exist(levels: tuple[int, ...] | None) -> None:
    parts = NetworkParts(stages=(2, 3), box_pool=RoiPool(size=7, levels=levels))
    assert parts.levels == 3 and parts.box_pool.levels == levels


@pytest.mark.parametrize("pool", ["box_pool", "mask_pool"])
@pytest.mark.parametrize("levels", [(), (2,), (0, 1, 5)])
def test_pools_on_levels_that_do_not_exist(pool: str, levels: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=rf"{pool}.levels: expected levels 0..1"):
        NetworkParts.model_validate({"stages": (2, 3), pool: {"size": 7, "levels": levels}})


# Laws.


@given(trees(), trees(), trees())
def test_merge_is_associative_with_nothing_as_its_unit(a: Tree, b: Tree, c: Tree) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, {}) == merge({}, a) == merge(a, a) == a


@given(trees(), trees())
def test_merge_is_the_union_of_what_is_flat(a: Tree, b: Tree) -> None:
    assert flatten(merge(a, b)) == flatten(a) | flatten(b)


@given(trees())
def test_flatten_can_be_undone(tree: Tree) -> None:
    flat = flatten(tree)
    assert grown(flat) == tree and flatten(flat) == flat
    assert not any(isinstance(value, dict) for value in flat.values())


@given(trees(), trees())
def test_neither_changes_its_inputs(a: Tree, b: Tree) -> None:
    before = deepcopy((a, b))
    merge(a, b), flatten(a)
    assert (a, b) == before


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"b": 2}}, {"a": 1}, {"a": 1}),
        ({"a": {"b": 2}}, {"a": None}, {"a": None}),
        ({"a": (1, 2)}, {"a": (3,)}, {"a": (3,)}),
    ],
)
def test_leaves_replace_and_are_replaced(base: Tree, over: Tree, expected: Tree) -> None:
    assert merge(base, over) == expected


def test_flatten_names_the_path() -> None:
    assert flatten({"rpn": {"nms": 0.7, "deep": {"er": None}}, "body": "b"}) == {
        "rpn.nms": 0.7,
        "rpn.deep.er": None,
        "body": "b",
    }


# Presets.


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    parts = NetworkParts.model_validate(merge(DEFAULTS, PRESETS[name]))
    assert len(parts.anchors.sizes) == parts.levels
    some = SomeParts.model_validate(PRESETS[name])
    assert flatten(some.model_dump(exclude_unset=True)) == flatten(PRESETS[name])
