"""Layers and bodies of Detectron2 0.6 and of its ResNeSt fork, slow and plain: no part of the package.

Deformable convolutions sample each tap by itself, split attention is spelled out step by step. What they
compute is told in the papers (Dai et al. 2017, Zhu et al. 2019, Zhang et al. 2020), their keys and switches
by Detectron2 and detectron2-ResNeSt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Settings = dict[str, Any]
Maps = dict[int, Tensor]

BLOCKS = {
    **{18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)},
    **{152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 269: (3, 30, 48, 8)},
}
EPS = 1e-5
LAYER_NORM_EPS = 1e-6
BODY = "backbone.bottom_up"

FORK: Settings = {
    "MODEL.RESNETS.RADIX": 1,
    "MODEL.RESNETS.BOTTLENECK_WIDTH": 64,
    "MODEL.RESNETS.DEEP_STEM": False,
    "MODEL.RESNETS.AVD": False,
    "MODEL.RESNETS.AVG_DOWN": False,
}
"""What only the ResNeSt fork has, and its defaults; a radix above 1 overrules the last three."""


def norm_key(key: str) -> str:
    """Where the norm after a convolution has its weights."""
    block, _, last = key.rpartition(".")
    of_attention = {"conv": "bn0", "fc1": "bn1"}
    return (
        f"{block}.{of_attention[last]}"
        if last in of_attention and block.endswith(".conv2")
        else f"{key}.norm"
    )


# Keys and shapes.


def conv_shapes(key: str, shape: Sequence[int], norm: str, bias: bool) -> Shapes:
    """A convolution: `bias` where no norm follows, and the norm."""
    found: Shapes = {f"{key}.weight": tuple(shape)}
    if bias and not norm:
        found[f"{key}.bias"] = (shape[0],)
    if norm:
        names = ["weight", "bias", *([] if norm in ("GN", "LN") else ["running_mean", "running_var"])]
        found |= {f"{norm_key(key)}.{name}": (shape[0],) for name in names}
    return found


def body_shapes(settings: Settings) -> Shapes:
    """Every key of the body, but for counters of batches."""
    c = {key.removeprefix("MODEL.RESNETS."): value for key, value in (FORK | settings).items()}
    found, width = _stem_shapes(c)
    for stage, blocks in enumerate(BLOCKS[c["DEPTH"]], 2):
        outer = c["RES2_OUT_CHANNELS"] << (stage - 2)
        for block in range(blocks):
            key = f"{BODY}.res{stage}.{block}"
            if c["DEPTH"] < 50:
                found |= conv_shapes(f"{key}.conv1", (outer, width, 3, 3), c["NORM"], False)
                found |= conv_shapes(f"{key}.conv2", (outer, outer, 3, 3), c["NORM"], False)
            else:
                found |= _bottleneck_shapes(c, key, stage, width, outer)
            if width != outer:
                found |= conv_shapes(f"{key}.shortcut", (outer, width, 1, 1), c["NORM"], False)
            width = outer
    return found


def _stem_shapes(c: Settings) -> tuple[Shapes, int]:
    """Of the stem, and its number of outputs."""
    if c["RADIX"] == 1:
        width = c["STEM_OUT_CHANNELS"]
        return conv_shapes(f"{BODY}.stem.conv1", (width, 3, 7, 7), c["NORM"], False), width
    width = 32 if c["DEPTH"] == 50 else 64
    found: Shapes = {}
    for index, (inputs, outputs) in enumerate([(3, width), (width, width), (width, 2 * width)], 1):
        found |= conv_shapes(f"{BODY}.stem.conv1_{index}", (outputs, inputs, 3, 3), c["NORM"], False)
    return found, 2 * width


def _bottleneck_shapes(c: Settings, key: str, stage: int, inputs: int, outer: int) -> Shapes:
    groups, radix, norm = c["NUM_GROUPS"], c["RADIX"], c["NORM"]
    inner = groups * c["WIDTH_PER_GROUP"] << (stage - 2)
    inner = inner if radix == 1 else inner * c["BOTTLENECK_WIDTH"] // 64
    found = conv_shapes(f"{key}.conv1", (inner, inputs, 1, 1), norm, False)
    if c["DEFORM_ON_PER_STAGE"][stage - 2]:
        outputs = (27 if c["DEFORM_MODULATED"] else 18) * c["DEFORM_NUM_GROUPS"]
        # The fork groups this convolution, too.
        of_group = inner if radix == 1 else inner // c["DEFORM_NUM_GROUPS"]
        found |= conv_shapes(f"{key}.conv2_offset", (outputs, of_group, 3, 3), "", True)
    if radix == 1:
        found |= conv_shapes(f"{key}.conv2", (inner, inner // groups, 3, 3), norm, False)
    else:
        weight = (radix * inner, inner // (radix * groups), 3, 3)
        found |= conv_shapes(f"{key}.conv2.conv", weight, norm, False)
        hidden = max(inner * radix // 4, 32)
        found |= conv_shapes(f"{key}.conv2.fc1", (hidden, inner // groups, 1, 1), norm, False)
        found[f"{key}.conv2.fc1.bias"] = (hidden,)
        found |= conv_shapes(f"{key}.conv2.fc2", (radix * inner, hidden // groups, 1, 1), "", True)
    return found | conv_shapes(f"{key}.conv3", (outer, inner, 1, 1), norm, False)


# Layers.


def _as_it_is(key: str, out: Tensor) -> Tensor:
    return out


@dataclass(frozen=True)
class Net:
    """Weights and settings; `settle` sees what each layer puts out, before its norm, and may change it."""

    state: State
    settings: Settings
    settle: Callable[[str, Tensor], Tensor] = field(default=_as_it_is)

    def __getitem__(self, key: str) -> Any:
        name = f"MODEL.{key}"
        return self.settings[name] if name in self.settings else FORK[name]

    def conv(
        self, key: str, x: Tensor, norm: str = "", stride: int = 1, groups: int = 1, dilation: int = 1
    ) -> Tensor:
        weight, bias = self.state[f"{key}.weight"], self.state.get(f"{key}.bias")
        padding = weight.shape[-1] // 2 * dilation
        out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return self.norm(norm_key(key), self.settle(key, out), norm)

    def norm(self, key: str, x: Tensor, kind: str) -> Tensor:
        if not kind:
            return x
        weight, bias = (self.state[f"{key}.{name}"] for name in ("weight", "bias"))
        if kind == "GN":
            return F.group_norm(x, 32, weight, bias, EPS)
        if kind == "LN":
            return layer_normed(x, weight, bias)
        mean, variance = (self.state[f"{key}.running_{name}"] for name in ("mean", "var"))
        return F.batch_norm(x, mean, variance, weight, bias, eps=EPS)

    def linear(self, key: str, x: Tensor) -> Tensor:
        return self.settle(key, x @ self.state[f"{key}.weight"].T + self.state[f"{key}.bias"])


def layer_normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every position of (N, C, h, w) normed over its channels."""
    away = x - x.mean(1, keepdim=True)
    variance = (away**2).mean(1, keepdim=True)
    return away / (variance + LAYER_NORM_EPS).sqrt() * weight[:, None, None] + bias[:, None, None]


def deformed(
    x: Tensor, weight: Tensor, offsets: Tensor, masks: Tensor | None, stride: int, dilation: int = 1
) -> Tensor:
    """A deformable convolution without bias of x (N, C, h, w), each tap sampled by itself.

    weight (O, C / groups, k, k), its middle tap above the position; offsets (N, 2 G k k, h', w') in pixels:
    of each of G deformable groups and of each tap, row by row, y and x; masks (N, G k k, h', w').
    """
    (images, channels, *_), (outputs, of_group, size, _) = x.shape, weight.shape
    out_hw, taps = offsets.shape[2:], size * size
    deformable = offsets.shape[1] // (2 * taps)
    own = channels // deformable
    ys = (torch.arange(out_hw[0]) * stride)[:, None].expand(out_hw)
    xs = (torch.arange(out_hw[1]) * stride)[None, :].expand(out_hw)
    result = x.new_zeros(images, outputs, *out_hw)
    for image in range(images):
        sampled = x.new_zeros(channels, taps, *out_hw)
        for group in range(deformable):
            inputs = slice(group * own, (group + 1) * own)
            for tap in range(taps):
                at = group * taps + tap
                y = ys + (tap // size - size // 2) * dilation + offsets[image, 2 * at]
                x_ = xs + (tap % size - size // 2) * dilation + offsets[image, 2 * at + 1]
                values = bilinear(x[image, inputs], y, x_)
                sampled[inputs, tap] = values if masks is None else values * masks[image, at]
        for group in range(channels // of_group):
            inputs = slice(group * of_group, (group + 1) * of_group)
            here = slice(group * of_group * outputs // channels, (group + 1) * of_group * outputs // channels)
            columns = sampled[inputs].flatten(0, 1).flatten(1)
            result[image, here] = (weight[here].flatten(1) @ columns).view(-1, *out_hw)
    return result


def bilinear(planes: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values (C, *) of planes (C, h, w) at fractional positions (*): nothing but zeros lies outside."""
    height, width = planes.shape[1:]
    found = planes.new_zeros(len(planes), *y.shape)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            share = (1 - (y - row).abs()) * (1 - (x - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            places = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
            found = found + planes[:, places[0], places[1]] * (share * inside)
    return found


# Bodies.


def body(net: Net, x: Tensor) -> Maps:
    """Stage -> what it puts out."""
    x = stem(net, x)
    out = {}
    for stage, blocks in enumerate(BLOCKS[net["RESNETS.DEPTH"]], 2):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            # What the last stage's taps gain in distance, its maps keep in size.
            stride = 1 if stage == 5 and net["RESNETS.RES5_DILATION"] == 2 else stride
            x = residual(net, f"{BODY}.res{stage}.{block}", stage, x, stride)
        out[stage] = x
    return out


def stem(net: Net, x: Tensor) -> Tensor:
    norm = net["RESNETS.NORM"]
    if net["RESNETS.RADIX"] == 1:
        x = net.conv(f"{BODY}.stem.conv1", x, norm, 2).relu()
    else:
        for index, stride in ((1, 2), (2, 1), (3, 1)):
            x = net.conv(f"{BODY}.stem.conv1_{index}", x, norm, stride).relu()
    return F.max_pool2d(x, 3, 2, 1)


def residual(net: Net, key: str, stage: int, x: Tensor, stride: int) -> Tensor:
    """A block of two 3 x 3, or of 1 x 1, 3 x 3 and 1 x 1 convolutions, and its shortcut."""
    norm = net["RESNETS.NORM"]
    if net["RESNETS.DEPTH"] < 50:
        out = net.conv(f"{key}.conv1", x, norm, stride).relu()
        out = net.conv(f"{key}.conv2", out, norm)
    else:
        first, second = (stride, 1) if net["RESNETS.STRIDE_IN_1X1"] else (1, stride)
        out = net.conv(f"{key}.conv1", x, norm, first).relu()
        if net["RESNETS.RADIX"] == 1:
            out = spatial(net, key, "conv2", stage, out, second, net["RESNETS.NUM_GROUPS"])
            out = net.norm(f"{key}.conv2.norm", out, norm).relu()
        else:
            out = split_attention(net, key, stage, out)
            # The zeros around the map count as pixels.
            out = out if second == 1 else F.avg_pool2d(F.pad(out, (1, 1, 1, 1)), 3, 2)
        out = net.conv(f"{key}.conv3", out, norm)
    return (out + shortcut(net, key, x, stride)).relu()


def shortcut(net: Net, key: str, x: Tensor, stride: int) -> Tensor:
    if f"{key}.shortcut.weight" not in net.state:
        return x
    if net["RESNETS.RADIX"] > 1:
        x = F.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)
        stride = 1
    return net.conv(f"{key}.shortcut", x, net["RESNETS.NORM"], stride)


def spatial(net: Net, block: str, name: str, stage: int, x: Tensor, stride: int, groups: int) -> Tensor:
    """A block's 3 x 3 convolution, deformable or not, before its norm."""
    key = f"{block}.{name}"
    dilation = net["RESNETS.RES5_DILATION"] if stage == 5 else 1
    if not net["RESNETS.DEFORM_ON_PER_STAGE"][stage - 2]:
        return net.conv(key, x, "", stride, groups, dilation)
    of_group = net.state[f"{block}.conv2_offset.weight"].shape[1]
    said = net.conv(f"{block}.conv2_offset", x, "", stride, x.shape[1] // of_group, dilation)
    offsets, masks = said, None
    if net["RESNETS.DEFORM_MODULATED"]:
        pairs = 18 * net["RESNETS.DEFORM_NUM_GROUPS"]
        offsets, masks = said[:, :pairs], said[:, pairs:].sigmoid()
    out = deformed(x, net.state[f"{key}.weight"], offsets, masks, stride, dilation)
    return net.settle(key, out)


def split_attention(net: Net, block: str, stage: int, x: Tensor) -> Tensor:
    """Splits of a convolution's channels, weighed against each other by what their means say."""
    radix, cardinality, norm = net["RESNETS.RADIX"], net["RESNETS.NUM_GROUPS"], net["RESNETS.NORM"]
    u = spatial(net, block, "conv2.conv", stage, x, 1, radix * cardinality)
    u = net.norm(f"{block}.conv2.bn0", u, norm).relu()
    splits = u.chunk(radix, dim=1)
    means = torch.stack(list(splits)).sum(0).mean((2, 3), keepdim=True)
    hidden = net.conv(f"{block}.conv2.fc1", means, norm, groups=cardinality).relu()
    logits = net.conv(f"{block}.conv2.fc2", hidden, groups=cardinality)
    logits = logits.view(len(x), cardinality, radix, -1)
    weights = logits.softmax(2)
    out = torch.zeros_like(splits[0])
    for index, split in enumerate(splits):
        out = out + split * weights[:, :, index].reshape(len(x), -1, 1, 1)
    return out
