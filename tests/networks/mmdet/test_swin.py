"""Swin Transformers: torchvision's where maps are larger than a window, else written window by window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from mmdet_bodies import State, compare, images, settled, shapes, state_of
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from sartorius_infer.manifest.mmdet_bodies import MmdetSwin
from sartorius_infer.networks.mmdet.swin import Swin
from sartorius_infer.networks.skeleton import skeleton

SMALL: dict[str, Any] = {"channels": 12, "depths": (2, 2, 2, 2), "heads": (2, 2, 3, 4)}


def swin_shapes(**settings: Any) -> dict[str, tuple[int, ...]]:
    with skeleton():
        return shapes(Swin(MmdetSwin.model_validate(settings)))


# Torchvision's.

BLOCK = {"mlp.0": "ffn.layers.0.0", "mlp.3": "ffn.layers.1", "attn": "attn.w_msa"}


def from_torchvision(theirs: nn.Module, window: int) -> State:
    """A state dict of torchvision's under MMDetection's names, without the norms of what it puts out."""
    state = {}
    for key, tensor in theirs.state_dict().items():
        root, _, rest = key.partition(".")
        if root != "features":
            continue
        number, _, rest = rest.partition(".")
        stage, between = divmod(int(number) - 1, 2)
        if int(number) == 0:
            name = rest.replace("0.", "patch_embed.projection.").replace("2.", "patch_embed.norm.")
        elif between:
            name = f"stages.{stage}.downsample.{rest}"
            tensor = channel_by_channel(tensor)
        else:
            block, _, part = rest.partition(".")
            for old, new in BLOCK.items():
                part = new + part.removeprefix(old) if part.startswith(f"{old}.") else part
            name = f"stages.{stage}.blocks.{block}.{part}"
        if name.endswith("relative_position_index"):
            tensor = tensor.view(window**2, window**2)
        state[name] = tensor
    return state


def channel_by_channel(tensor: Tensor) -> Tensor:
    """The last dimension of whole vectors at (0, 0), (1, 0), (0, 1), (1, 1) as (channel, row, column)."""
    by_place = tensor.unflatten(-1, (2, 2, -1))  # column, row, channel
    return by_place.transpose(-1, -3).flatten(-3)


@pytest.mark.parametrize("window", [3, 4])
def test_torchvisions_weights_give_torchvisions_maps(window: int) -> None:
    theirs = settled(
        SwinTransformer([4, 4], 12, [2, 2, 4, 2], [2, 2, 3, 4], [window, window], num_classes=1)
    ).double()
    settings = {**SMALL, "depths": (2, 2, 4, 2), "window_size": window}
    ours = settled(Swin(MmdetSwin.model_validate(settings))).double()
    state = from_torchvision(theirs, window)
    assert state.keys() == {key for key in ours.state_dict() if not key.startswith("norm")}
    ours.load_state_dict(state | {k: t for k, t in ours.state_dict().items() if k.startswith("norm")})
    batch = images(2, 160, 192).double()
    with torch.inference_mode():
        found, expected, x = ours(batch), [], theirs.features[0](batch)
        for stage in range(4):
            x = theirs.features[2 * stage + 1](x)
            norm: Any = ours.get_submodule(f"norm{stage}")
            expected.append(norm(x).permute(0, 3, 1, 2))
            x = theirs.features[2 * stage + 2](x) if stage < 3 else x
    compare(found, expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("swin_t", {}),
        ("swin_s", {"depths": (2, 2, 18, 2)}),
        ("swin_b", {"channels": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}),
    ],
)
def test_keys_are_torchvisions(name: str, settings: dict[str, Any]) -> None:
    with skeleton():
        theirs = from_torchvision(getattr(torchvision.models, name)(weights=None), 7)
    found = swin_shapes(**settings)
    assert {k: s for k, s in found.items() if not k.startswith("norm")} == {
        key: tuple(tensor.shape) for key, tensor in theirs.items()
    }
    channels = settings.get("channels", 96)
    assert {k: s for k, s in found.items() if k.startswith("norm")} == {
        f"norm{stage}.{part}": (channels << stage,) for stage in range(4) for part in ("weight", "bias")
    }


def test_a_large_one_with_windows_of_12() -> None:
    found = swin_shapes(channels=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window_size=12)
    attention = "stages.3.blocks.1.attn.w_msa."
    assert found[f"{attention}relative_position_bias_table"] == (529, 48)
    assert found[f"{attention}relative_position_index"] == (144, 144)
    assert found[f"{attention}qkv.weight"] == (3 * 1536, 1536)
    assert found["stages.2.downsample.reduction.weight"] == (1536, 3072)
    assert "stages.3.downsample.norm.weight" not in found


# Written down: each window's pixels by where they are in the image.


def plain_swin(state: State, body: MmdetSwin, batch: Tensor) -> list[Tensor]:
    patch = body.patch_size
    batch = F.pad(batch, (0, -batch.shape[3] % patch, 0, -batch.shape[2] % patch))
    weight, bias = state["patch_embed.projection.weight"], state["patch_embed.projection.bias"]
    x = F.conv2d(batch, weight, bias, stride=patch).permute(0, 2, 3, 1)
    if body.patch_norm:
        x = plain_norm(state, "patch_embed.norm", body, x)
    if body.absolute_positions is not None:
        table = state["absolute_pos_embed"]
        table = F.interpolate(table, size=(x.shape[1], x.shape[2]), mode="bicubic", align_corners=False)
        x = x + table.permute(0, 2, 3, 1)
    maps = []
    for stage, depth in enumerate(body.depths):
        for block in range(depth):
            prefix, shift = f"stages.{stage}.blocks.{block}", block % 2 * (body.window_size // 2)
            x = plain_block(state, prefix, body, body.heads[stage], shift, x)
        if stage in body.out_indices:
            maps.append(plain_norm(state, f"norm{stage}", body, x).permute(0, 3, 1, 2))
        if stage + 1 < len(body.depths):
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            four = torch.stack([x[:, r::2, c::2] for r in (0, 1) for c in (0, 1)], dim=-1).flatten(3)
            four = plain_norm(state, f"stages.{stage}.downsample.norm", body, four)
            x = four @ state[f"stages.{stage}.downsample.reduction.weight"].T
    return maps


def plain_norm(state: State, name: str, body: MmdetSwin, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], body.eps)


def plain_block(state: State, prefix: str, body: MmdetSwin, heads: int, shift: int, x: Tensor) -> Tensor:
    seen = plain_norm(state, f"{prefix}.norm1", body, x)
    x = x + plain_windows(state, f"{prefix}.attn.w_msa", body, heads, shift, seen)
    seen = plain_norm(state, f"{prefix}.norm2", body, x)
    first, second = f"{prefix}.ffn.layers.0.0", f"{prefix}.ffn.layers.1"
    seen = F.gelu(seen @ state[f"{first}.weight"].T + state[f"{first}.bias"])
    return x + seen @ state[f"{second}.weight"].T + state[f"{second}.bias"]


def plain_windows(state: State, prefix: str, body: MmdetSwin, heads: int, shift: int, x: Tensor) -> Tensor:
    side, (height, width) = body.window_size, x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    down, across = x.shape[1], x.shape[2]
    out = torch.zeros_like(x)
    for top in range(0, down, side):
        for left in range(0, across, side):
            # Rows and columns of the shifted window, which may come from both ends of the image.
            rows = [(row + shift) % down for row in range(top, top + side)]
            columns = [(column + shift) % across for column in range(left, left + side)]
            places = [(row, column) for row in rows for column in columns]
            # A window beyond the end has begun anew there; its parts do not see each other.
            parts = [(row < rows[0], column < columns[0]) for row, column in places]
            ys, xs = [p[0] for p in places], [p[1] for p in places]
            out[:, ys, xs] = plain_attention(state, prefix, body, heads, parts, x[:, ys, xs])
    return out[:, :height, :width]


def plain_attention(
    state: State, prefix: str, body: MmdetSwin, heads: int, parts: list[tuple[bool, bool]], x: Tensor
) -> Tensor:
    """Of one window's pixels x (B, P, C), head by head; pixels of different parts are kept apart."""
    side, channels = body.window_size, x.shape[-1] // heads
    qkv = x @ state[f"{prefix}.qkv.weight"].T
    if body.qkv_bias:
        qkv = qkv + state[f"{prefix}.qkv.bias"]
    table = state[f"{prefix}.relative_position_bias_table"]
    pixels = [(row, column) for row in range(side) for column in range(side)]
    entries = [[(a - c + side - 1) * (2 * side - 1) + b - d + side - 1 for c, d in pixels] for a, b in pixels]
    apart = torch.tensor([[0.0 if one == other else -100.0 for other in parts] for one in parts])
    seen = []
    for head in range(heads):
        q, k, v = (qkv[..., i * x.shape[-1] + head * channels :][..., :channels] for i in range(3))
        scale = body.qk_scale if body.qk_scale is not None else channels**-0.5
        logits = scale * q @ k.transpose(1, 2) + table[entries, head] + apart
        seen.append(logits.softmax(dim=-1) @ v)
    return torch.cat(seen, dim=-1) @ state[f"{prefix}.proj.weight"].T + state[f"{prefix}.proj.bias"]


CASES: dict[str, dict[str, Any]] = {
    "maps down to less than a window": {},
    "even windows": {"window_size": 4},
    "windows of 12": {"window_size": 12, "depths": (2, 2), "heads": (2, 2), "out_indices": (0, 1)},
    "some maps": {"out_indices": (1, 2)},
    "positions": {"absolute_positions": (5, 6)},
    "no norm of patches": {"patch_norm": False},
    "a scale of its own, no biases": {"qk_scale": 0.4, "qkv_bias": False},
    "other patches": {"patch_size": 3, "mlp_ratio": 2.5, "eps": 1e-3},
    "odd depths": {"depths": (1, 3, 1, 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_plain_arithmetic(case: str) -> None:
    body = MmdetSwin.model_validate({**SMALL, **CASES[case]})
    module, batch = settled(Swin(body)).double(), images(2, 51, 90).double()
    with torch.inference_mode():
        found, expected = module(batch), plain_swin(state_of(module), body, batch)
    assert len(found) == len(body.out_indices)
    compare(found, expected)
    assert module.channels == tuple(level.shape[1] for level in found)
    assert [-(-51 // s) for s in module.strides] == [level.shape[2] for level in found]


@pytest.mark.parametrize("side", [2, 7])
def test_positions_index_the_table_as_torchvisions_do(side: int) -> None:
    ours = Swin(MmdetSwin.model_validate({**SMALL, "window_size": side})).state_dict()
    theirs = SwinTransformer([4, 4], 12, [1, 1], [2, 2], [side, side], num_classes=1).state_dict()
    index = theirs["features.1.0.attn.relative_position_index"].view(side**2, side**2)
    assert torch.equal(ours["stages.0.blocks.0.attn.w_msa.relative_position_index"], index)


def test_in_a_skeleton_it_still_knows_its_positions() -> None:
    with skeleton():
        module = Swin(MmdetSwin.model_validate(SMALL))
    index = module.get_buffer("stages.0.blocks.0.attn.w_msa.relative_position_index")
    assert index.device.type == "cpu" and index.dtype == torch.int64


def test_half_precision_is_the_same_but_for_rounding() -> None:
    module, batch = settled(Swin(MmdetSwin.model_validate(SMALL))), images(1, 51, 90)
    with torch.inference_mode():
        expected = module(batch)
        with torch.autocast("cpu", torch.bfloat16):
            found = module(batch)
    for level, other in zip(found, expected, strict=True):
        assert float((level.float() - other).abs().mean() / other.abs().mean()) < 0.05
