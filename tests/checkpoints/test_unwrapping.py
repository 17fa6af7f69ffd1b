"""Which network of a file is meant: by wrappers, prefixes, copies and names, and what is left out."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factories import prefixed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sartorius_infer.checkpoints.reading import Checkpoint, read_checkpoint
from sartorius_infer.checkpoints.unwrapping import WRAPPERS
from sartorius_infer.errors import CheckpointError

State = dict[str, Tensor]

FAMILIES = {"torchvision": "rpn", "detectron2": "proposal_generator"}


def parts(seed: int = 0, rpn: str = "rpn") -> State:
    """The least that passes for a Mask R-CNN, with a norm of batches in its body."""
    draw = torch.Generator().manual_seed(seed)
    keys = [f"{rpn}.head.weight", "roi_heads.box_head.fc6.weight", "backbone.body.layer1.0.conv1.weight"]
    norm = [
        f"backbone.body.layer1.0.bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    ]
    state = {key: torch.randn(3, 2, generator=draw) for key in (*keys, *norm)}
    return state | {"backbone.body.layer1.0.bn1.num_batches_tracked": torch.tensor(seed)}


def average(state: Mapping[str, Tensor]) -> State:
    """As over `named_parameters()`: without buffers."""
    return {key: t * 0.9 for key, t in state.items() if not key.endswith(("_mean", "_var", "_tracked"))}


FORMS: dict[str, dict[str, Any]] = {
    "zip": {},
    "older": {"_use_new_zipfile_serialization": False},
}


def written(folder: Path, content: Any, form: str = "zip", name: str = "run.pth") -> Path:
    buffer = io.BytesIO()
    if form == "plain":
        pickle.dump(content, buffer)
    else:
        torch.save(content, buffer, **FORMS[form])
    (folder / name).write_bytes(buffer.getvalue())
    return folder / name


def reading(folder: Path, content: Any, state: str | None = None, form: str = "zip") -> Checkpoint:
    return read_checkpoint(written(folder, content, form), state)


def refused(folder: Path, content: Any, state: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        reading(folder, content, state)
    said = str(caught.value)
    assert said.startswith(f"{folder / 'run.pth'}: ")
    assert "\n" not in said
    assert len(said) < 600
    return said.removeprefix(f"{folder / 'run.pth'}: ")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# Wrappers that nobody listed.


@pytest.mark.parametrize("form", [*FORMS, "plain"])
@pytest.mark.parametrize("rpn", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    "trail", [["state_dict_ema"], ["teacher"], ["callbacks", "EMA", "weights"], ["folds", 0], [1, "net"]]
)
def test_the_only_whole_network_counts_under_any_name(
    tmp_path: Path, trail: list[Any], rpn: str, form: str
) -> None:
    content: Any = parts(rpn=rpn)
    for key in reversed(trail):
        content = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3, key: content}
    read = reading(tmp_path, content, form=form)
    assert same(read.state, parts(rpn=rpn))
    assert (read.wrapper, read.prefix, read.left_out) == (".".join(map(str, trail)), "", ())


@settings(max_examples=40)
@given(
    st.lists(st.text("abc_", min_size=1, max_size=5) | st.sampled_from(WRAPPERS), max_size=4),
    st.sampled_from(["", "module.", "model.", "net.0."]),
    st.sampled_from([dict, defaultdict, list]),
)
def test_any_way_to_the_only_network(
    tmp_path_factory: pytest.TempPathFactory, trail: list[str], prefix: str, kind: Any
) -> None:
    content: Any = prefixed(parts(), prefix)
    for name in reversed(trail):
        outer: Any = defaultdict(int, {name: content}) if kind is defaultdict else {name: content}
        content = [3, outer] if kind is list else outer
    read = reading(tmp_path_factory.getbasetemp(), content)
    assert same(read.state, parts())
    assert read.prefix == prefix


def test_parts_saved_each_by_itself(tmp_path: Path) -> None:
    by_part: dict[str, Any] = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "epoch": torch.ones(()),
    }
    for key, tensor in parts().items():
        part, _, rest = key.partition(".")
        by_part.setdefault(part, {})[rest] = tensor
    for content, wrapper in ((by_part, ""), ({"run": by_part}, "run")):
        read = reading(tmp_path, content)
        assert same(read.state, parts())
        assert (read.wrapper, read.prefix) == (wrapper, "")


def test_the_only_tensors_of_an_unknown_network(tmp_path: Path) -> None:
    """A plugin may know it; whatever belongs to going on with the run is none."""
    own = {"encoder.weight": torch.ones(2, 2), "decoder.weight": torch.ones(2)}
    run = {
        "teacher": own,
        "optimizer": {"state": {0: {"m": torch.ones(2)}}},
        "rng_state": {"cpu": torch.ones(2)},
    }
    read = reading(tmp_path, run)
    assert same(read.state, own)
    assert read.wrapper == "teacher"
    assert "found 'teacher', 'student'" in refused(
        tmp_path, {"teacher": own, "student": own | {"a.b": own["decoder.weight"]}}
    )


# Names of wrappers within keys.


def wrap(key: str, part: str, name: str) -> str:
    return key.replace(part, f"{part}{name}", 1)


INNER = (
    *("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.", "module."),
    *("_fsdp_wrapped_module._fpw_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module.", "_module."),
)
WITHIN = ("backbone.", "backbone.body.", "backbone.body.layer1.", "backbone.body.layer1.0.", "roi_heads.")


@pytest.mark.parametrize("rpn", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("part", [*WITHIN, "rpn."])
def test_names_of_wrappers_within_keys_come_off(tmp_path: Path, part: str, name: str, rpn: str) -> None:
    part = f"{rpn}." if part == "rpn." else part
    wrapped = {wrap(key, part, name): t for key, t in parts(rpn=rpn).items()}
    assert wrapped.keys() != parts(rpn=rpn).keys()
    for prefix in ("", "module.", "_fsdp_wrapped_module."):
        read = reading(tmp_path, {"model": prefixed(wrapped, prefix)})
        assert same(read.state, parts(rpn=rpn))
        assert read.prefix == ("module." if prefix == "module." else "")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(WITHIN), st.sampled_from(INNER)), max_size=4))
def test_any_wrapping_of_parts(
    tmp_path_factory: pytest.TempPathFactory, wraps: list[tuple[str, str]]
) -> None:
    state = parts()
    for part, name in wraps:
        state = {wrap(key, part, name): t for key, t in state.items()}
    assert same(reading(tmp_path_factory.getbasetemp(), state).state, parts())


def test_two_values_of_one_key_are_refused(tmp_path: Path) -> None:
    key = "backbone.body.layer1.0.conv1.weight"
    other = {wrap(key, "backbone.", "module."): torch.zeros(3, 2)}
    assert refused(tmp_path, parts() | other).startswith(
        f"expected one network, found two values of {key!r}; keep one"
    )
    assert same(reading(tmp_path, parts() | {wrap(key, "backbone.", "module."): parts()[key]}).state, parts())


# What lies beside the network.

BESIDE = {
    "criterion.pos_weight": torch.ones(3),
    "aux_head.weight": torch.ones(2, 4),
    "metrics.sum": torch.ones(()),
}


@pytest.mark.parametrize("form", [*FORMS, "plain"])
def test_what_lies_outside_the_prefix_is_left_out_and_said(tmp_path: Path, form: str) -> None:
    counters = {"n_averaged": torch.tensor(3), "aux_head.bn.num_batches_tracked": torch.tensor(1)}
    content = prefixed(parts(), "model.") | BESIDE | counters
    read = reading(tmp_path, content, form=form)
    assert same(read.state, parts())
    assert read.outside.keys() == BESIDE.keys() | counters.keys()
    assert read.left_out == (
        "criterion.pos_weight (3 values)",
        "aux_head.weight (8 values)",
        "metrics.sum (1 value)",
    )
    assert read.with_outside.state.keys() == parts().keys() | read.outside.keys()
    assert read.with_outside.left_out == ()


def test_many_are_counted(tmp_path: Path) -> None:
    heads = {f"side.{n}.weight": torch.ones(2) for n in range(9)}
    assert reading(tmp_path, prefixed(parts(), "net.") | heads).left_out[-1] == "6 more tensors"


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "name",
    ["criterion.pos_weight", "loss_fn.weight", "mask_loss.w", "losses.0.w", "train_metrics.m", "Loss.a"],
)
def test_losses_and_metrics_are_left_out_within_the_prefix_too(
    tmp_path: Path, prefix: str, name: str
) -> None:
    read = reading(tmp_path, prefixed(parts() | {name: torch.ones(3)}, prefix))
    assert same(read.state, parts())
    assert read.left_out == (f"{name} (3 values)",)


@pytest.mark.parametrize("name", ["attention.weight", "refine_head.w", "lossless.w", "backbone2.w"])
def test_what_may_be_part_of_the_network_stays(tmp_path: Path, name: str) -> None:
    for prefix in ("", "model."):
        more = parts() | {name: torch.ones(3)}
        read = reading(tmp_path, prefixed(more, prefix))
        assert same(read.state, more)
        assert read.left_out == ()


# Two networks.


def scaled(state: Mapping[str, Tensor]) -> State:
    return {key: t * 2 if t.is_floating_point() else t for key, t in state.items()}


TWO: dict[str, tuple[Any, list[str]]] = {
    "one known wrapper": (
        {"state_dict": parts(), "state_dict_ema": scaled(parts())},
        ["state_dict", "state_dict_ema"],
    ),
    "prefixes of known names": (
        prefixed(parts(), "model.") | prefixed(scaled(parts()), "ema."),
        ["model", "ema"],
    ),
    "under one wrapper": (
        {"state_dict": prefixed(parts(), "net.") | prefixed(scaled(parts()), "ema.")},
        ["state_dict.net", "state_dict.ema"],
    ),
    "other wrappers": ({"student": parts(), "teacher": scaled(parts())}, ["student", "teacher"]),
    "prefixes": (
        prefixed(parts(), "student.") | prefixed(scaled(parts()), "teacher."),
        ["student", "teacher"],
    ),
    "deeper": (
        {"run": scaled(parts()), "ema": {"module": prefixed(parts(), "module.")}},
        ["ema.module.module", "run"],
    ),
    "families": ({"a": parts(), "b": parts(rpn="proposal_generator")}, ["a", "b"]),
}


@pytest.mark.parametrize("kind", TWO)
def test_two_networks_are_refused_by_their_names(tmp_path: Path, kind: str) -> None:
    content, names = TWO[kind]
    assert refused(tmp_path, content) == (
        f"expected one network, found two that differ: {names[0]!r}, {names[1]!r}; choose one as in "
        f"run.pth::{names[1]}, or by `state` of a manifest entry"
    )


@pytest.mark.parametrize("kind", TWO)
@pytest.mark.parametrize("which", [0, 1])
def test_a_name_chooses_one_of_two(tmp_path: Path, kind: str, which: int) -> None:
    content, names = TWO[kind]
    read = reading(tmp_path, content, names[which])
    rpn = "proposal_generator" if kind == "families" and which else "rpn"
    expected = parts(rpn=rpn) if not which or kind == "families" else scaled(parts())
    assert same(read.state, expected)
    assert read.left_out == (f"{names[1 - which]} (another network)",)


def test_a_part_of_a_name_is_enough(tmp_path: Path) -> None:
    content, _ = TWO["deeper"]
    for name in ("ema", "ema.module", "module.module", "ema."):
        assert same(reading(tmp_path, content, name).state, parts())
    three = {"model": parts(), "ema": {"model": scaled(parts())}, "old": scaled(scaled(parts()))}
    assert same(reading(tmp_path, three, "model").state, parts())  # the whole name goes first
    assert refused(tmp_path, three).startswith("expected one network, found 3 that differ: 'model', ")


KNOWN: list[tuple[dict[str, Any], str]] = [
    ({"model": parts(), "model_ema": scaled(parts())}, "model_ema"),
    ({"ema": {"module": scaled(parts())}, "state_dict": parts()}, "ema.module"),
    ({"model_state_dict": parts(), "shadow": prefixed(scaled(parts()), "module.")}, "shadow.module"),
]


@pytest.mark.parametrize(("content", "other"), KNOWN, ids=range(len(KNOWN)))
def test_known_wrappers_have_an_order_which_is_said(tmp_path: Path, content: Any, other: str) -> None:
    read = reading(tmp_path, content)
    assert same(read.state, parts())
    assert read.left_out == (f"{other} (another network, which run.pth::{other} takes)",)
    assert same(reading(tmp_path, content, other).state, scaled(parts()))
    assert same(reading(tmp_path, content, other.partition(".")[0]).state, scaled(parts()))


@pytest.mark.parametrize(
    ("content", "other"),
    [
        ({"model": parts(), "teacher": scaled(parts())}, "teacher"),
        (
            {"teacher": {"module": scaled(parts())}, "state_dict": prefixed(parts(), "model.")},
            "teacher.module",
        ),
        ({"state_dict": prefixed(parts(), "net.") | prefixed(scaled(parts()), "ema_teacher.")}, ""),
        (prefixed(scaled(parts()), "teacher.") | parts(), "teacher"),
    ],
    ids=range(4),
)
def test_a_teacher_beside_the_network_is_left_out_and_said(tmp_path: Path, content: Any, other: str) -> None:
    read, other = reading(tmp_path, content), other or "state_dict.ema_teacher"
    assert same(read.state, parts())
    assert read.left_out == (f"{other} (another network, which run.pth::{other} takes)",)
    assert same(reading(tmp_path, content, other).state, scaled(parts()))


def test_a_word_of_an_average_s_name_is_enough(tmp_path: Path) -> None:
    for name in ("model_ema", "ema_state_dict", "MODEL_EMA"):
        content = {"model": parts(), name: scaled(parts())}
        for word in ("ema", "EMA"):
            assert same(reading(tmp_path, content, word).state, scaled(parts()))
        assert "expected a network under 'em'" in refused(tmp_path, content, "em")
    assert "expected a network under 'x'" in refused(
        tmp_path, {"model": parts(), "x_y": scaled(parts())}, "x"
    )


def test_the_network_under_no_name(tmp_path: Path) -> None:
    content = parts() | prefixed(scaled(parts()), "ema.")
    assert "found two that differ: '.', 'ema'; choose one as in run.pth::ema" in refused(tmp_path, content)
    assert same(reading(tmp_path, content, ".").state, parts())
    assert same(reading(tmp_path, content, "ema").state, scaled(parts()))


@pytest.mark.parametrize("name", ["swa", "mode", "model.backbone.body.conv9", "::", "e ma", "ema\n" * 200])
def test_a_name_of_nothing(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, {"model": parts(), "ema": scaled(parts())}, name[:200].replace("\n", " "))
    assert said.startswith("expected a network under ")
    assert said.endswith("found 'model', 'ema'")
    assert refused(tmp_path, {"model": {}}, "ema").endswith("found no tensors")


def test_a_name_chooses_among_networks_of_no_known_layout(tmp_path: Path) -> None:
    own = {"encoder.weight": torch.ones(2, 2)}
    read = reading(tmp_path, {"a": {"net": own}, "b": {"net": scaled(own)}}, "b.net")
    assert same(read.state, scaled(own))
    assert (read.wrapper, read.prefix) == ("b.net", "")


@pytest.mark.parametrize("names", [("model", "ema"), ("student", "teacher"), ("model_ema", "best")])
def test_copies_are_one_network(tmp_path: Path, names: tuple[str, str]) -> None:
    copy = {key: tensor.clone() for key, tensor in parts().items()}
    for content in ({names[0]: parts(), names[1]: copy}, dict.fromkeys(names, copy)):
        read = reading(tmp_path, content)
        assert same(read.state, parts())
        assert read.left_out == ()


LONG = "very" * 1000
LINES = "a\nWARNING: all is well\x1b[2J"


@pytest.mark.parametrize("name", [LONG, LINES], ids=["long", "lines"])
def test_names_of_a_file_stay_on_one_line_of_a_message(tmp_path: Path, name: str) -> None:
    two = {name: parts(), f"other {name}": scaled(parts())}
    refused(tmp_path, two)
    refused(tmp_path, two, "nothing")
    refused(tmp_path, {name: parts(), "ema": average(parts())}, "ema")
    refused(tmp_path, parts() | {f"backbone.{name}": torch.ones(2), f"backbone.module.{name}": torch.ones(3)})
    (said,) = reading(tmp_path, prefixed(parts(), "model.") | {name: torch.ones(3)}).left_out
    assert said.isprintable()
    assert len(said) < 120


# Averages over parameters.


@pytest.mark.parametrize(
    "names", [("model", "ema"), ("ema", "model"), ("student", "teacher"), ("module.", "avg.")]
)
def test_a_complete_network_goes_before_an_average_without_statistics(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    whole, less = names
    content: Any = {whole: parts(), less: average(parts())}
    if whole.endswith("."):
        content = prefixed(parts(), whole) | prefixed(average(parts()), less)
    read = reading(tmp_path, content)
    assert same(read.state, parts())
    assert read.left_out == (f"{less.strip('.')} (without the running statistics of norms)",)


def test_choosing_the_average_says_where_the_statistics_lie(tmp_path: Path) -> None:
    said = refused(tmp_path, {"model": parts(), "ema": average(parts())}, "ema")
    assert said == (
        "ema: expected the running statistics of norms, found none, as in an average over "
        "named_parameters(): backbone.body.layer1.0.bn1.running_mean and 1 more are in 'model'; choose "
        "run.pth::model, or save the average with its buffers"
    )


def test_a_frozen_norm_s_buffers_are_all_it_has(tmp_path: Path) -> None:
    less = {key: tensor for key, tensor in parts().items() if ".bn1." not in key}
    assert reading(tmp_path, {"model": parts(), "ema": less}).wrapper == "model"
    assert "in 'model'" in refused(tmp_path, {"model": parts(), "ema": less}, "ema")


CHANGES: dict[str, Callable[[State], State]] = {
    "deeper": lambda s: s | {"backbone.body.layer1.1.conv1.weight": torch.ones(2)},
    "more than statistics": lambda s: s | {"roi_heads.mask_predictor.weight": torch.ones(2)},
    "complete": scaled,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_smaller_network_is_no_average(tmp_path: Path, change: str) -> None:
    """A student has the keys of its teacher's first blocks."""
    content = {"student": parts(), "teacher": CHANGES[change](parts())}
    assert "found two that differ: 'student', 'teacher'" in refused(tmp_path, content)
    assert same(reading(tmp_path, content, "student").state, parts())
