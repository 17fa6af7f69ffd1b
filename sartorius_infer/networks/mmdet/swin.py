"""Swin Transformer under MMDetection's names.

Source: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2021
(arXiv 2103.14030).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sartorius_infer.manifest.mmdet_bodies import MmdetSwin

APART = -100.0
"""Added to the attention between pixels that only the shift has brought into one window."""


class PatchEmbed(nn.Module):
    """A vector for each patch; images are filled up with zeros below and to the right."""

    def __init__(self, body: MmdetSwin) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, body.channels, body.patch_size, body.patch_size)
        self.norm = nn.LayerNorm(body.channels, body.eps) if body.patch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C)."""
        embedded = self.projection(_filled(images, self.projection.stride[0], (-2, -1)))
        normed: Tensor = self.norm(embedded.permute(0, 2, 3, 1))
        return normed


class PatchMerging(nn.Module):
    """2 x 2 vectors become one of twice the channels; their values stand channel by channel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, ceil(h / 2), ceil(w / 2), 2 C)."""
        x = _filled(x, 2, (1, 2))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 5, 2, 4).flatten(3)  # (B, h / 2, w / 2, C, dy, dx) -> (..., 4 C)
        merged: Tensor = self.reduction(self.norm(x))
        return merged


class WindowAttention(nn.Module):
    """Attention of each window's pixels to each other, with a bias for each distance between two."""

    relative_position_index: Tensor

    def __init__(self, body: MmdetSwin, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = body.qk_scale or (channels // heads) ** -0.5
        side = body.window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _distances(side))
        self.qkv = nn.Linear(channels, 3 * channels, bias=body.qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, apart: Tensor | None) -> Tensor:
        """(B, windows, P, C) -> the same; `apart` (windows, P, P) is added to the attention's logits."""
        batch, count, pixels, channels = windows.shape
        q, k, v = self.qkv(windows).view(batch, count, pixels, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        logits = (q * self.scale) @ k.transpose(-2, -1)  # (B, windows, heads, P, P)
        logits = logits + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if apart is not None:
            logits = logits + apart[:, None]
        seen = logits.softmax(dim=-1) @ v
        found: Tensor = self.proj(seen.transpose(2, 3).reshape(batch, count, pixels, channels))
        return found


class ShiftedWindows(nn.Module):
    """Attention in windows of the image, which is filled up with zeros; every other block shifts them."""

    def __init__(self, body: MmdetSwin, channels: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.side = body.window_size
        self.shift = self.side // 2 if shifted else 0
        self.w_msa = WindowAttention(body, channels, heads)

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C); `apart` as `_apart` gives it."""
        height, width = x.shape[1:3]
        x = _filled(x, self.side, (1, 2))
        if not self.shift:
            return self._attend(x, None)[:, :height, :width]
        x = self._attend(x.roll((-self.shift, -self.shift), (1, 2)), apart)
        return x.roll((self.shift, self.shift), (1, 2))[:, :height, :width]

    def _attend(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """Of x (B, h, w, C), whole windows."""
        batch, height, width, channels = x.shape
        down, across = height // self.side, width // self.side
        windows = x.reshape(batch, down, self.side, across, self.side, channels).transpose(2, 3)
        windows = self.w_msa(windows.reshape(batch, down * across, self.side**2, channels), apart)
        tiles = windows.view(batch, down, across, self.side, self.side, channels).transpose(2, 3)
        joined: Tensor = tiles.reshape(batch, height, width, channels)
        return joined


class FeedForward(nn.Module):
    """Two linear layers, under the names that MMCV gives them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(channels, inner), nn.GELU())
        self.layers = nn.Sequential(first, nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.layers(x)
        return out


class SwinBlock(nn.Module):
    """Attention and a feed-forward network, each with a norm before it and a shortcut."""

    def __init__(self, body: MmdetSwin, channels: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, body.eps)
        self.attn = ShiftedWindows(body, channels, heads, shifted)
        self.norm2 = nn.LayerNorm(channels, body.eps)
        self.ffn = FeedForward(channels, int(body.mlp_ratio * channels))

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        x = x + self.attn(self.norm1(x), apart)
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class Stage(nn.Module):
    """Blocks, of which every other shifts its windows, and the merging that leads to the next stage."""

    def __init__(self, body: MmdetSwin, index: int) -> None:
        super().__init__()
        channels, heads = body.channels << index, body.heads[index]
        self.blocks = nn.ModuleList(
            SwinBlock(body, channels, heads, shifted=block % 2 == 1) for block in range(body.depths[index])
        )
        last = index == len(body.depths) - 1
        self.downsample = None if last else PatchMerging(channels, body.eps)
        self.side = body.window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C), not merged yet."""
        apart = _apart((x.shape[1], x.shape[2]), self.side, x.device)
        for block in self.blocks:
            x = block(x, apart)
        return x


class Swin(nn.Module):
    """Patches, stages, and a norm for each map that it puts out.

    channels, strides  of each of those maps
    """

    def __init__(self, body: MmdetSwin) -> None:
        super().__init__()
        self.out_indices = body.out_indices
        self.patch_embed = PatchEmbed(body)
        positions = body.absolute_positions
        self.absolute_pos_embed = (
            None if positions is None else nn.Parameter(torch.zeros(1, body.channels, *positions))
        )
        self.stages = nn.ModuleList(Stage(body, index) for index in range(len(body.depths)))
        self.channels = tuple(body.channels << stage for stage in body.out_indices)
        self.strides = tuple(body.patch_size << stage for stage in body.out_indices)
        for stage, channels in zip(body.out_indices, self.channels, strict=True):
            self.add_module(f"norm{stage}", nn.LayerNorm(channels, body.eps))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w) of each stage in `out_indices`, finest first, of images (B, 3, H, W)."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + F.interpolate(
                self.absolute_pos_embed, tuple(x.shape[1:3]), mode="bicubic", align_corners=False
            ).permute(0, 2, 3, 1)
        maps = []
        for index in range(self.out_indices[-1] + 1):
            stage: Any = self.stages[index]
            x = stage(x)
            if index in self.out_indices:
                maps.append(self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps)


def _filled(x: Tensor, multiple: int, dims: tuple[int, int]) -> Tensor:
    """x with zeros at the end of two dimensions, so that each is a multiple."""
    for dim in dims:
        if missing := -x.shape[dim] % multiple:
            shape = list(x.shape)
            shape[dim] = missing
            x = torch.cat([x, x.new_zeros(shape)], dim)
    return x


def _distances(side: int) -> Tensor:
    """For each two pixels of a window, the row of the bias table for what lies between them."""
    ys, xs = np.indices((side, side)).reshape(2, -1)  # numpy's have storage in a skeleton too
    down, right = ys[:, None] - ys + side - 1, xs[:, None] - xs + side - 1
    return torch.from_numpy(down * (2 * side - 1) + right)


def _apart(size_hw: tuple[int, int], side: int, device: torch.device) -> Tensor:
    """(windows, P, P): what separates pixels of a shifted window that are no neighbours in the image."""
    rows, columns = (_regions(length, side, device) for length in size_hw)
    region = 3 * rows[:, None] + columns
    down, across = len(rows) // side, len(columns) // side
    windows = region.view(down, side, across, side).transpose(1, 2).reshape(down * across, side**2)
    return torch.where(windows[:, :, None] == windows[:, None], 0.0, APART)


def _regions(length: int, side: int, device: torch.device) -> Tensor:
    """Which of three runs each position of a shifted side belongs to; the last has come from the start."""
    whole = -(-length // side) * side
    places = torch.arange(whole, device=device)
    return (places >= whole - side).int() + (places >= whole - side // 2).int()
