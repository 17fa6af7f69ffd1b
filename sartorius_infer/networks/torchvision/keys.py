"""What the keys and shapes of a torchvision Mask R-CNN checkpoint tell, and their spelling made one.

Canonical keys are those of torchvision 0.13 and later. `canonical_keys` rewrites older names and
bodies saved as an `nn.Sequential`; `infer_parts` reads the architecture off canonical keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sartorius_infer.errors import CheckpointError
from sartorius_infer.networks.layers import RESNET_LAYERS
from sartorius_infer.networks.torchvision.bodies import stage_channels

State = Mapping[str, Tensor]
Tree = dict[str, Any]

BODY = "backbone.body."
FPN = "backbone.fpn."

_OLD_NAMES = (
    # Before torchvision 0.13 these convolutions were not wrapped with their norm and activation.
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
)
_OLD_MASK = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$")
_SEQUENTIAL_RESNET = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}
_UNUSED = re.compile(r"^backbone\.body\.(fc|classifier|head|avgpool)\.")

_CONVNEXT: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "convnext_tiny",
    (96, (3, 3, 27, 3)): "convnext_small",
    (128, (3, 3, 27, 3)): "convnext_base",
    (192, (3, 3, 27, 3)): "convnext_large",
}
_SWIN: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "t",
    (96, (2, 2, 18, 2)): "s",
    (128, (2, 2, 18, 2)): "b",
}


def is_mask_rcnn(state: State) -> bool:
    """Whether the keys are those of torchvision's Mask R-CNN on a feature pyramid."""
    return all(
        any(key.startswith(part) for key in state)
        for part in (
            FPN,
            "rpn.head.cls_logits.",
            "roi_heads.box_predictor.",
            "roi_heads.mask_predictor.",
        )
    )


def canonical_keys(state: State) -> dict[str, Tensor]:
    """The same tensors under today's torchvision names; a classifier left on the body is dropped."""
    sequential = f"{BODY}4.0.conv1.weight" in state
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        new = _canonical(key.replace(f"{BODY}features.", BODY), sequential)
        if not _UNUSED.match(new):
            renamed[new] = tensor
    return renamed


def _canonical(key: str, sequential: bool) -> str:
    if sequential and key.startswith(BODY):
        child, _, rest = key.removeprefix(BODY).partition(".")
        return f"{BODY}{_SEQUENTIAL_RESNET.get(child, child)}.{rest}"
    if found := _OLD_MASK.match(key):
        return f"roi_heads.mask_head.{int(found[1]) - 1}.0.{found[2]}"
    for pattern, new in _OLD_NAMES:
        key = pattern.sub(new, key)
    return key


def foreground_classes(state: State) -> int:
    """Number of classes without background, from the classifier's rows."""
    return int(state["roi_heads.box_predictor.cls_score.weight"].shape[0]) - 1


def infer_parts(state: State, file: str) -> Tree:
    """The parts that canonical keys and shapes tell, as a partial tree of `NetworkParts`.

    Raises CheckpointError, naming `file`, for a body or a head of no known kind.
    """
    for key in ("rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight"):
        _rows(state, key, file)
    body = infer_body(state, file)
    tree: Tree = {
        "body": body,
        "stages": _stages(state, body, file),
        "fpn": {
            "channels": _rows(state, f"{FPN}layer_blocks.0.0.weight", file),
            "norm": _norm(state, f"{FPN}inner_blocks.0.1."),
        },
        "rpn": {"conv_depth": _count(state, r"rpn\.head\.conv\.(\d+)\.0\.weight")},
        **_box_parts(state, file),
        "mask_head": _mask_head(state, file),
    }
    if not body.startswith(("convnext", "swin")):
        first = f"{BODY}0.1." if body.startswith("mobilenet") else f"{BODY}bn1."
        tree["body_norm"] = _norm(state, first)
        if tree["body_norm"]["kind"] == "none":
            raise CheckpointError(
                f"{file}: expected the norms of the {body}, found none, as in an average over "
                "named_parameters() of a network with frozen norms: take the model that it averages, which "
                "usually lies beside it, or save the average with its buffers"
            )
    return tree


def assumed_norms(told: Mapping[str, Any], state: State) -> set[str]:
    """Which dotted fields of what keys told are only likely: group norm where no norm has statistics.

    An average over `named_parameters()` leaves statistics out, and then batch norm has the same keys.
    """
    if any(key.endswith(".running_mean") for key in state):
        return set()
    return {name for name, value in told.items() if name.endswith("norm.kind") and value == "group"}


def anchors_per_cell(state: State) -> int:
    """Anchors at each position, from the RPN's objectness rows."""
    return int(state["rpn.head.cls_logits.weight"].shape[0])


def infer_body(state: State, file: str) -> str:
    """The name of the body, from its keys and shapes."""
    if f"{BODY}conv1.weight" in state and f"{BODY}layer1.0.conv1.weight" in state:
        return _resnet_name(state, file)
    stem = f"{BODY}0.0.weight"
    if stem in state and f"{BODY}1.0.block.0.weight" in state:
        return _lookup(_CONVNEXT, (_rows(state, stem, file), _depths(state)), "a ConvNeXt", file)
    if stem in state and f"{BODY}1.0.attn.qkv.weight" in state:
        size = _lookup(_SWIN, (_rows(state, stem, file), _depths(state)), "a Swin", file)
        return f"swin_v2_{size}" if f"{BODY}1.0.attn.logit_scale" in state else f"swin_{size}"
    if stem in state and f"{BODY}1.block.0.0.weight" in state:
        return "mobilenet_v3_large"
    some = ", ".join(k for k in list(state) if k.startswith("backbone."))[:120]
    raise CheckpointError(
        f"{file}: expected a ResNet, ConvNeXt, Swin or MobileNetV3 body under {BODY!r}, found {some}...; "
        "a body of your own is registered by --plugin FILE.py"
    )


def _resnet_name(state: State, file: str) -> str:
    layers = tuple(_count(state, rf"backbone\.body\.layer{i}\.(\d+)\.conv1\.weight") for i in (1, 2, 3, 4))
    present = tuple(n for n in layers if n)
    bottleneck = f"{BODY}layer1.0.conv3.weight" in state
    depths = [
        depth
        for depth, expected in RESNET_LAYERS.items()
        if expected[: len(present)] == present and (depth >= 50) == bottleneck
    ]
    if not depths:
        raise CheckpointError(f"{file}: expected a ResNet of {RESNET_LAYERS}, found blocks {layers}")
    if not bottleneck:
        return f"resnet{depths[0]}"
    rows, per_group = (_rows(state, f"{BODY}layer1.0.conv2.weight", file, axis) for axis in (0, 1))
    groups = rows // per_group
    if groups > 1:
        return f"resnext{depths[0]}_{groups}x{rows // groups}d"
    return f"resnet{depths[0]}" if rows == 64 else f"wide_resnet{depths[0]}_{rows // 64}"


def _depths(state: State) -> tuple[int, ...]:
    return tuple(_count(state, rf"backbone\.body\.{i}\.(\d+)\..*") for i in (1, 3, 5, 7))


def _lookup(table: Mapping[tuple[int, tuple[int, ...]], str], found: tuple[int, tuple[int, ...]],
            what: str, file: str) -> str:  # fmt: skip
    """The entry whose width and first depths match; a body cut after its last used stage has fewer."""
    width, depths = found
    present = tuple(d for d in depths if d)
    for (known_width, known_depths), name in table.items():
        if known_width == width and known_depths[: len(present)] == present:
            return name
    raise CheckpointError(f"{file}: expected {what} of (width, depths) {sorted(table)}, found {found}")


def _stages(state: State, body: str, file: str) -> tuple[int, ...]:
    """Stages that feed the pyramid, matched by channels in order."""
    levels = _count(state, r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.weight")
    wanted = [_rows(state, f"{FPN}inner_blocks.{i}.0.weight", file, axis=1) for i in range(levels)]
    channels = stage_channels(body)
    stages = tuple(channels.index(w) + 1 for w in wanted if w in channels)
    if len(stages) != len(wanted) or list(stages) != sorted(set(stages)) or not stages:
        raise CheckpointError(f"{file}: expected a pyramid on stages {channels} of {body}, found {wanted}")
    return stages


def _box_parts(state: State, file: str) -> Tree:
    """Box head and box pool; the pool's size is what remains of the first linear layer's columns."""
    head = "roi_heads.box_head."
    convs = _channels(state, r"roi_heads\.box_head\.(\d+)\.0\.weight", head, file)
    linear = sorted(
        (int(m[1]), key)
        for key in state
        if (m := re.match(r"roi_heads\.box_head\.(?:fc)?(\d+)\.weight", key)) and state[key].ndim == 2
    )
    if not linear:
        raise CheckpointError(f"{file}: expected fully connected layers in {head}, found none")
    fcs = [state[key] for _, key in linear]
    pooled = int(fcs[0].shape[1]) / (
        convs[-1] if convs else _rows(state, f"{FPN}layer_blocks.0.0.weight", file)
    )
    size = math.isqrt(int(pooled))
    if size * size != pooled:
        raise CheckpointError(
            f"{file}: {linear[0][1]}: expected columns of channels x size x size, found {pooled}"
        )
    return {
        "box_pool": {"size": size},
        "box_head": {
            "conv_channels": convs,
            "fc_channels": tuple(int(fc.shape[0]) for fc in fcs),
            "norm": _norm(state, f"{head}0.1."),
        },
    }


def _mask_head(state: State, file: str) -> Tree:
    head = "roi_heads.mask_head."
    return {
        "conv_channels": _channels(state, r"roi_heads\.mask_head\.(\d+)\.0\.weight", head, file),
        "norm": _norm(state, f"{head}0.1."),
        "hidden": _rows(state, "roi_heads.mask_predictor.mask_fcn_logits.weight", file, axis=1),
    }


def _norm(state: State, prefix: str) -> Tree:
    """The kind under `prefix`: counters mean batch, statistics alone frozen, weights alone likely group."""
    if f"{prefix}num_batches_tracked" in state:
        return {"kind": "batch"}
    if f"{prefix}running_mean" in state:
        return {"kind": "frozen"}
    return {"kind": "group" if f"{prefix}weight" in state else "none"}


def _count(state: State, pattern: str) -> int:
    """How many different indices the first group of `pattern` takes."""
    regex = re.compile(pattern)
    return len({m[1] for key in state if (m := regex.fullmatch(key))})


def _channels(state: State, pattern: str, prefix: str, file: str) -> tuple[int, ...]:
    """Output channels of the convolutions `<prefix><i>.0.weight`, in order."""
    return tuple(_rows(state, f"{prefix}{i}.0.weight", file) for i in range(_count(state, pattern)))


def _rows(state: State, key: str, file: str, axis: int = 0) -> int:
    if key not in state:
        raise CheckpointError(f"{file}: expected the key {key!r}, found none of that name")
    shape = tuple(state[key].shape)
    if len(shape) <= axis or 0 in shape:
        raise CheckpointError(f"{file}: {key}: expected {axis + 1} or more dimensions, found shape {shape}")
    return int(shape[axis])
