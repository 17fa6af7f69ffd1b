"""Bodies as MMDetection 2.x and 3.x build them, slow and plain: ResNets of every kind, Swin, ConvNeXt.

Every function takes the body's own part of a config, with MMDetection's names, and gives the maps of its
`out_indices`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from mmdet_layers_oracle import BRANCH, DEFORMABLE_BRANCH, Config, Net, abbreviated
from torch import Tensor

BLOCKS = {
    **{18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)},
    **{152: (3, 8, 36, 3), 200: (3, 24, 36, 3)},
}
RESNET: Config = {
    "base_channels": 64,
    "strides": (1, 2, 2, 2),
    "dilations": (1, 1, 1, 1),
    "out_indices": (0, 1, 2, 3),
    "style": "pytorch",
    "deep_stem": False,
    "avg_down": False,
    "norm_cfg": {"type": "BN"},
    "dcn": None,
    "stage_with_dcn": (False, False, False, False),
    "groups": 1,
    "base_width": 4,
}
D_RESNET: Config = {"deep_stem": True, "avg_down": True}
RESNETS: dict[str, Config] = {
    "ResNet": RESNET,
    "ResNetV1d": RESNET | D_RESNET,
    "ResNeXt": RESNET,
    "Res2Net": RESNET | D_RESNET | {"scales": 4, "base_width": 26},
    "ResNeSt": RESNET | D_RESNET | {"radix": 2, "reduction_factor": 4, "avg_down_stride": True},
}


def body(net: Net, config: Config, x: Tensor) -> list[Tensor]:
    """Maps of a body with whatever name, from an image (1, 3, h, w)."""
    kind = config["type"].rpartition(".")[2]
    if kind in RESNETS:
        return resnet(net, RESNETS[kind] | config | {"type": kind}, x)
    others: dict[str, Callable[[Net, Config, Tensor], list[Tensor]]]
    others = {"SwinTransformer": swin, "ConvNeXt": convnext}
    return others[kind](net, config, x)


# ResNets.


def resnet(net: Net, c: Config, x: Tensor) -> list[Tensor]:
    x = stem(net, c, x)
    found = []
    for stage, blocks in enumerate(BLOCKS[c["depth"]]):
        for index in range(blocks):
            x = residual(net, c, stage, index, x)
        if stage in c["out_indices"]:
            found.append(x)
    return found


def stem(net: Net, c: Config, x: Tensor) -> Tensor:
    width, norm = c.get("stem_channels") or c["base_channels"], c["norm_cfg"]
    if c["deep_stem"]:
        outputs = (width // 2, width // 2, width)
        for index, (out, stride) in enumerate(zip(outputs, (2, 1, 1), strict=True)):
            x = net.conv(f"backbone.stem.{3 * index}", x, out, 3, stride)
            x = net.norm(f"backbone.stem.{3 * index + 1}", x, norm).relu()
    else:
        x = net.conv("backbone.conv1", x, width, 7, 2)
        x = net.norm(f"backbone.{abbreviated(norm)}1", x, norm).relu()
    return F.max_pool2d(x, 3, 2, 1)


def residual(net: Net, c: Config, stage: int, index: int, x: Tensor) -> Tensor:
    """A block and its shortcut."""
    key, norm = f"backbone.layer{stage + 1}.{index}", c["norm_cfg"]
    stride = c["strides"][stage] if index == 0 else 1
    planes = c["base_channels"] << stage
    outputs = planes if c["depth"] < 50 else 4 * planes
    if c["depth"] < 50:
        out = basic(net, c, key, x, planes, stride)
    else:
        out = bottleneck(net, c, stage, index, x, planes, stride)
    if index == 0 and (stride != 1 or x.shape[1] != outputs):
        if c["avg_down"]:
            x = F.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)
            x = net.conv(f"{key}.downsample.1", x, outputs, 1)
            x = net.norm(f"{key}.downsample.2", x, norm)
        else:
            x = net.conv(f"{key}.downsample.0", x, outputs, 1, stride)
            x = net.norm(f"{key}.downsample.1", x, norm)
    return (out + x).relu()


def basic(net: Net, c: Config, key: str, x: Tensor, planes: int, stride: int) -> Tensor:
    assert c["type"] in ("ResNet", "ResNetV1d") and c["dcn"] is None
    norm = c["norm_cfg"]
    x = net.norm(f"{key}.{abbreviated(norm)}1", net.conv(f"{key}.conv1", x, planes, 3, stride), norm).relu()
    return net.norm(f"{key}.{abbreviated(norm)}2", net.conv(f"{key}.conv2", x, planes, 3), norm, BRANCH)


def bottleneck(net: Net, c: Config, stage: int, index: int, x: Tensor, planes: int, stride: int) -> Tensor:
    """1 x 1, what the family does at 3 x 3, and 1 x 1."""
    key, norm = f"backbone.layer{stage + 1}.{index}", c["norm_cfg"]
    name = abbreviated(norm)
    first, second = (stride, 1) if c["style"] == "caffe" else (1, stride)
    x = net.conv(f"{key}.conv1", x, _width(c, planes), 1, first)
    x = net.norm(f"{key}.{name}1", x, norm).relu()
    dcn = c["dcn"] if c["stage_with_dcn"][stage] else None
    dilation = c["dilations"][stage]
    if c["type"] == "Res2Net":
        x = hierarchy(net, c, key, x, second, dilation, dcn, first=index == 0)
    elif c["type"] == "ResNeSt":
        pool = c["avg_down_stride"] and second > 1
        x = split_attention(net, c, f"{key}.conv2", x, 1 if pool else second, dilation, dcn)
        # The zeros around the map count as pixels.
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, second) if pool else x
    else:
        groups = c["groups"] if c["type"] == "ResNeXt" else 1
        x = net.spatial(f"{key}.conv2", x, x.shape[1], second, dilation=dilation, groups=groups, dcn=dcn)
        x = net.norm(f"{key}.{name}2", x, norm).relu()
    x = net.conv(f"{key}.conv3", x, 4 * planes, 1)
    return net.norm(f"{key}.{name}3", x, norm, BRANCH if c["dcn"] is None else DEFORMABLE_BRANCH)


def _width(c: Config, planes: int) -> int:
    if c["type"] == "Res2Net":
        return planes * c["base_width"] // c["base_channels"] * int(c["scales"])
    if c["type"] in ("ResNeXt", "ResNeSt") and c["groups"] > 1:
        return planes * c["base_width"] // c["base_channels"] * int(c["groups"])
    return planes


def hierarchy(
    net: Net, c: Config, key: str, x: Tensor, stride: int, dilation: int, dcn: Config | None, first: bool
) -> Tensor:
    """Res2Net's 3 x 3 convolutions: each sees its own channels and, but in a first block, the one before."""
    scales = c["scales"]
    width = x.shape[1] // scales
    parts = x.split(width, dim=1)
    found: list[Tensor] = []
    for index in range(scales - 1):
        here = parts[index] if first or not found else parts[index] + found[-1]
        here = net.spatial(f"{key}.convs.{index}", here, width, stride, dilation=dilation, dcn=dcn)
        found.append(net.norm(f"{key}.bns.{index}", here, c["norm_cfg"]).relu())
    last = parts[-1]
    # The authors' own network pools in the first stage, too, at stride 1; MMDetection's does not.
    if first and stride > 1:
        last = F.avg_pool2d(F.pad(last, (1, 1, 1, 1)), 3, stride)
    return torch.cat([*found, last], dim=1)


def split_attention(
    net: Net, c: Config, key: str, x: Tensor, stride: int, dilation: int, dcn: Config | None
) -> Tensor:
    """Splits of a convolution's channels, weighed against each other by what their means say."""
    channels, radix, groups, norm = x.shape[1], c["radix"], c["groups"], c["norm_cfg"]
    name = abbreviated(norm)
    x = net.spatial(
        f"{key}.conv", x, channels * radix, stride, dilation=dilation, groups=groups * radix, dcn=dcn
    )
    x = net.norm(f"{key}.{name}0", x, norm).relu()
    splits = x.chunk(radix, dim=1)
    means = torch.stack(list(splits)).sum(0).mean((2, 3), keepdim=True)
    hidden = max(channels * radix // c["reduction_factor"], 32)
    said = net.conv(f"{key}.fc1", means, hidden, 1, groups=groups, bias=True)
    said = net.norm(f"{key}.{name}1", said, norm).relu()
    said = net.conv(f"{key}.fc2", said, channels * radix, 1, groups=groups, bias=True)
    if radix == 1:
        return x * said.sigmoid()
    weights = said.view(len(x), groups, radix, -1).softmax(2)
    out = torch.zeros_like(splits[0])
    for index, split in enumerate(splits):
        out = out + split * weights[:, :, index].reshape(len(x), -1, 1, 1)
    return out


# Swin.

SWIN: Config = {
    "embed_dims": 96,
    "patch_size": 4,
    "window_size": 7,
    "mlp_ratio": 4,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "out_indices": (0, 1, 2, 3),
    "qkv_bias": True,
    "patch_norm": True,
    "use_abs_pos_embed": False,
}
SEEN_NOT = -100.0
"""Added to what a pixel says to one that was rolled in from the other side."""


def swin(net: Net, config: Config, x: Tensor) -> list[Tensor]:
    """MMDetection's SwinTransformer; between stages, maps are (h, w, C)."""
    c = SWIN | config
    assert not c["use_abs_pos_embed"]
    size = c["patch_size"]
    x = F.pad(x, (0, -x.shape[3] % size, 0, -x.shape[2] % size))
    x = net.conv("backbone.patch_embed.projection", x, c["embed_dims"], size, size, padding=0, bias=True)
    here = x[0].permute(1, 2, 0)
    if c["patch_norm"]:
        here = net.layer_norm("backbone.patch_embed.norm", here)
    found = []
    for stage, blocks in enumerate(c["depths"]):
        for index in range(blocks):
            key = f"backbone.stages.{stage}.blocks.{index}"
            here = swin_block(net, c, key, here, c["num_heads"][stage], shifted=index % 2 == 1)
        if stage in c["out_indices"]:
            found.append(net.layer_norm(f"backbone.norm{stage}", here).permute(2, 0, 1)[None])
        if stage + 1 < len(c["depths"]):
            here = patches_merged(net, f"backbone.stages.{stage}.downsample", here)
    return found


def swin_block(net: Net, c: Config, key: str, x: Tensor, heads: int, shifted: bool) -> Tensor:
    channels = x.shape[-1]
    attended = window_attention(
        net, c, f"{key}.attn.w_msa", net.layer_norm(f"{key}.norm1", x), heads, shifted
    )
    x = x + attended
    hidden = net.linear(f"{key}.ffn.layers.0.0", net.layer_norm(f"{key}.norm2", x), c["mlp_ratio"] * channels)
    return x + net.linear(f"{key}.ffn.layers.1", F.gelu(hidden), channels, spread=BRANCH)


def window_attention(net: Net, c: Config, key: str, x: Tensor, heads: int, shifted: bool) -> Tensor:
    """Attention within windows of x (h, w, C), window by window and head by head."""
    size, (height, width, channels) = c["window_size"], x.shape
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    shift = size // 2 if shifted else 0
    x = x.roll((-shift, -shift), (0, 1))
    came_from = _regions(x.shape[0], size, shift)[:, None] * 3 + _regions(x.shape[1], size, shift)[None, :]
    qkv = net.linear(f"{key}.qkv", x, 3 * channels, bias=c["qkv_bias"])
    offsets = _offsets(size)
    table = net.vector(f"{key}.relative_position_bias_table", (2 * size - 1) ** 2, heads, spread=0.5)
    if net.missing(f"{key}.relative_position_index"):
        net.state[f"{key}.relative_position_index"] = offsets
    assert torch.equal(net.state[f"{key}.relative_position_index"], offsets)
    out = torch.zeros_like(x)
    own = channels // heads
    for top in range(0, x.shape[0], size):
        for left in range(0, x.shape[1], size):
            window = slice(top, top + size), slice(left, left + size)
            sides = came_from[window].flatten()
            hidden = (sides[:, None] != sides[None, :]) * SEEN_NOT
            for head in range(heads):
                of_head = [
                    slice(part * channels + head * own, part * channels + (head + 1) * own)
                    for part in range(3)
                ]
                q, k, v = (qkv[(*window, one)].reshape(-1, own) for one in of_head)
                logits = (q * own**-0.5) @ k.T + table[offsets, head] + hidden
                values = logits.softmax(1) @ v
                out[(*window, slice(head * own, (head + 1) * own))] = values.view(size, size, own)
    out = net.linear(f"{key}.proj", out, channels, spread=BRANCH)
    return out.roll((shift, shift), (0, 1))[:height, :width]


def _regions(length: int, size: int, shift: int) -> Tensor:
    """Along one axis: 0 in the whole windows, 1 and 2 on both sides of the last one's seam."""
    region = torch.zeros(length, dtype=torch.long)
    if shift:
        region[length - size :] = 1
        region[length - shift :] = 2
    return region


def _offsets(size: int) -> Tensor:
    """(size^2, size^2): the row of the table that tells of this way from one pixel of a window to another."""
    pixels = [(y, x) for y in range(size) for x in range(size)]
    rows = [[(y - v + size - 1) * (2 * size - 1) + x - u + size - 1 for v, u in pixels] for y, x in pixels]
    return torch.tensor(rows)


def patches_merged(net: Net, key: str, x: Tensor) -> Tensor:
    """Half the size, twice the channels: of each channel its four pixels, row by row, stand together."""
    height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    four = torch.stack([x[0::2, 0::2], x[0::2, 1::2], x[1::2, 0::2], x[1::2, 1::2]], dim=-1).flatten(2)
    return net.linear(f"{key}.reduction", net.layer_norm(f"{key}.norm", four), 2 * channels, bias=False)


# ConvNeXt.

CONVNEXT: Config = {
    "arch": "tiny",
    "stem_patch_size": 4,
    "norm_cfg": {"type": "LN2d", "eps": 1e-6},
    "linear_pw_conv": True,
    "use_grn": False,
    "layer_scale_init_value": 1e-6,
    "out_indices": (-1,),
}
ARCHITECTURES = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}


def convnext(net: Net, config: Config, x: Tensor) -> list[Tensor]:
    """mmpretrain's and mmcls's ConvNeXt of the first version; `gap_before_final_norm` has to be False."""
    c = CONVNEXT | config
    assert not c["use_grn"] and not c["gap_before_final_norm"]
    arch, eps, size = c["arch"], c["norm_cfg"]["eps"], c["stem_patch_size"]
    depths, widths = ARCHITECTURES[arch] if isinstance(arch, str) else (arch["depths"], arch["channels"])
    found = []
    for stage, (blocks, width) in enumerate(zip(depths, widths, strict=True)):
        key = f"backbone.downsample_layers.{stage}"
        if stage == 0:
            x = net.conv(f"{key}.0", x, width, size, size, padding=0, bias=True)
            x = _normed(net, f"{key}.1", x, eps)
        else:
            x = net.conv(f"{key}.1", _normed(net, f"{key}.0", x, eps), width, 2, 2, padding=0, bias=True)
        for index in range(blocks):
            x = convnext_block(net, c, f"backbone.stages.{stage}.{index}", x)
        if stage in c["out_indices"]:
            found.append(_normed(net, f"backbone.norm{stage}", x, eps))
    return found


def convnext_block(net: Net, c: Config, key: str, x: Tensor) -> Tensor:
    channels = x.shape[1]
    out = net.conv(f"{key}.depthwise_conv", x, channels, 7, groups=channels, bias=True)
    out = _normed(net, f"{key}.norm", out, c["norm_cfg"]["eps"])
    if c["linear_pw_conv"]:
        out = net.linear(f"{key}.pointwise_conv1", out.permute(0, 2, 3, 1), 4 * channels)
        out = net.linear(f"{key}.pointwise_conv2", F.gelu(out), channels).permute(0, 3, 1, 2)
    else:
        out = net.conv(f"{key}.pointwise_conv1", out, 4 * channels, 1, bias=True)
        out = net.conv(f"{key}.pointwise_conv2", F.gelu(out), channels, 1, bias=True)
    if c["layer_scale_init_value"] > 0:
        out = out * net.vector(f"{key}.gamma", channels, mean=BRANCH, spread=BRANCH / 2)[:, None, None]
    return x + out


def _normed(net: Net, key: str, x: Tensor, eps: float) -> Tensor:
    """x (N, C, h, w) normed over its channels."""
    return net.layer_norm(key, x.permute(0, 2, 3, 1), eps).permute(0, 3, 1, 2)
