"""The bodies of MMDetection's networks as settings, one class a kind; `networks/mmdet/bodies` builds them.

Names are of what they mean; `networks/mmdet/body_config` tells which of a config's keys each comes from.
"""

from __future__ import annotations

from math import floor
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sartorius_infer.manifest.parts import Norm
from sartorius_infer.manifest.settings import Count, Settings

Index = Annotated[int, Field(ge=0)]
Stages = Annotated[tuple[Index, ...], Field(min_length=1)]
Depths = Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]


def _require_stages(stages: Stages, count: int, what: str) -> None:
    if list(stages) != sorted(set(stages)) or stages[-1] >= count:
        raise ValueError(f"{what}: expected stages of 0 to {count - 1} in order, found {stages}")


def _require_divisor(what: str, divisor: int, channels: int) -> None:
    if channels % divisor:
        raise ValueError(f"{what}: expected a divisor of {channels} channels, found {divisor}")


class Deformable(Settings):
    """Stages (from 0) whose 3 x 3 convolutions are deformable; modulated ones (v2) weigh their taps too."""

    modulated: bool = True
    groups: Count = Field(1, description="groups of channels whose taps move together")
    stages: Stages = (1, 2, 3)


class _Residual(Settings):
    """What all residual bodies have: a stem, then stages of bottleneck or basic blocks."""

    base_channels: Count = Field(64, description="of the first stage's inner convolutions")
    stem_channels: Annotated[int, Field(ge=2)] = 64
    stem_stride: Literal[1, 2] = Field(2, description="of the first convolution")
    strides: Counts = Field((1, 2, 2, 2), description="of each stage's first block")
    dilations: Counts = (1, 1, 1, 1)
    out_indices: Stages = Field((0, 1, 2, 3), description="stages that feed the pyramid")
    stride_in_1x1: bool = Field(False, description="halve in a block's first convolution, not in its 3 x 3")
    norm: Norm = Norm(kind="batch")
    deformable: Deformable | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        stages = len(self.strides)
        if stages > 4 or len(self.dilations) != stages:
            raise ValueError(
                f"strides: expected up to 4 and as many dilations, found {stages} and {len(self.dilations)}"
            )
        _require_stages(self.out_indices, stages, "out_indices")
        if self.deformable is not None:
            _require_stages(self.deformable.stages, stages, "deformable.stages")
        if self.norm.kind not in ("frozen", "batch", "group"):
            raise ValueError(f"norm.kind: expected 'frozen', 'batch' or 'group', found {self.norm.kind!r}")
        self._require_divisors()
        return self

    def width(self, planes: int) -> int:
        """Channels of a block's 3 x 3 convolution in a stage of so many inner channels."""
        raise NotImplementedError

    def _require_divisors(self) -> None:
        stages = range(len(self.strides))
        if self.norm.kind == "group":
            for channels in self._normed():
                _require_divisor("norm.groups", self.norm.groups, channels)
        if self.deformable is not None:
            for stage in set(self.deformable.stages) & set(stages):
                channels = self.width(self.base_channels << stage)
                _require_divisor("deformable.groups", self.deformable.groups, channels)

    def _normed(self) -> list[int]:
        """Channels of norms; those of others are multiples."""
        return [self.stem_channels // 2, self.width(self.base_channels), self.base_channels * 4]


def _grouped(body: MmdetResNet | MmdetResNeSt, planes: int) -> int:
    if body.groups == 1:
        return planes
    return floor(planes * (body.base_width / body.base_channels)) * body.groups


class MmdetResNet(_Residual):
    """A ResNet, ResNetV1d (`deep_stem`, `avg_down`) or ResNeXt (`groups`).

    `base_width` counts only with several groups: each has floor(channels * base_width / base_channels).
    """

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 50
    groups: Count = 1
    base_width: Count = 4
    deep_stem: bool = Field(False, description="three 3 x 3 convolutions instead of the 7 x 7")
    avg_down: bool = Field(False, description="shortcuts average first, then have no stride")

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        if self.depth < 50 and (self.groups > 1 or self.deformable is not None):
            raise ValueError("depth: expected groups 1 and no deformable with 18 and 34 layers")
        return self

    def width(self, planes: int) -> int:
        """As its base has it."""
        return _grouped(self, planes)

    def _normed(self) -> list[int]:
        stem, _, outputs = super()._normed()
        inner = self.width(self.base_channels)
        return [stem if self.deep_stem else self.stem_channels, inner, outputs if self.depth >= 50 else inner]


class MmdetRes2Net(_Residual):
    """A Res2Net: the 3 x 3 convolution is `scales` - 1 of them on parts of the channels, each fed the last.

    Its stem is deep and its shortcuts average, as in ResNetV1d.
    """

    kind: Literal["res2net"] = "res2net"
    depth: Literal[50, 101, 152] = 50
    scales: Annotated[int, Field(ge=2, le=32)] = 4
    base_width: Count = Field(26, description="channels of a part in the first stage")

    def width(self, planes: int) -> int:
        """Of each part."""
        return floor(planes * (self.base_width / self.base_channels))


class MmdetResNeSt(_Residual):
    """A ResNeSt: the 3 x 3 convolution is `radix` of them, weighed by split attention; else as ResNetV1d."""

    kind: Literal["resnest"] = "resnest"
    depth: Literal[50, 101, 152, 200, 269] = 50
    groups: Count = 1
    base_width: Count = 4
    radix: Count = 2
    avg_down_stride: bool = Field(True, description="a 3 x 3 average after the attention halves")

    def width(self, planes: int) -> int:
        """As its base has it."""
        return _grouped(self, planes)

    def _require_divisors(self) -> None:
        super()._require_divisors()
        _require_divisor("radix", self.groups * self.radix, self.width(self.base_channels))
        for hidden in self._hidden():
            _require_divisor("groups", self.groups, hidden)

    def _normed(self) -> list[int]:
        return [*super()._normed(), *self._hidden()]

    def _hidden(self) -> list[int]:
        """Channels between the layers that weigh, in each stage."""
        widths = (self.width(self.base_channels << stage) for stage in range(len(self.strides)))
        return [max(width * self.radix // 4, 32) for width in widths]


class MmdetSwin(Settings):
    """A Swin Transformer, whose channels double with each of its stages.

    `absolute_positions` (rows, columns) of patches have an embedding each; null for none. A null `qk_scale`
    is 1 / sqrt(channels of a head).
    """

    kind: Literal["swin"] = "swin"
    channels: Count = 96
    depths: Depths = (2, 2, 6, 2)
    heads: Counts = (3, 6, 12, 24)
    patch_size: Count = 4
    window_size: Annotated[int, Field(ge=2, le=128)] = 7
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    qkv_bias: bool = True
    qk_scale: Annotated[float, Field(gt=0)] | None = None
    patch_norm: bool = True
    absolute_positions: tuple[Count, Count] | None = None
    eps: Annotated[float, Field(ge=0)] = Field(1e-5, description="of its layer norms")
    out_indices: Stages = Field((0, 1, 2, 3), description="stages that feed the pyramid")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        stages = len(self.depths)
        if stages > 6 or len(self.heads) != stages:
            raise ValueError(
                f"depths: expected up to 6 and as many heads, found {stages} and {len(self.heads)}"
            )
        for stage, heads in enumerate(self.heads):
            if (self.channels << stage) % heads:
                raise ValueError(
                    f"heads: expected a divisor of {self.channels << stage} in stage {stage}, found {heads}"
                )
        _require_stages(self.out_indices, stages, "out_indices")
        return self


class MmdetConvNext(Settings):
    """A ConvNeXt. `layer_scale`: each block's output has a factor a channel; V2 has `global_norm` instead."""

    kind: Literal["convnext"] = "convnext"
    depths: Depths = (3, 3, 9, 3)
    channels: Counts = (96, 192, 384, 768)
    stem_patch_size: Count = 4
    linear_pointwise: bool = Field(True, description="1 x 1 convolutions are kept as linear layers")
    layer_scale: bool = True
    global_norm: bool = Field(False, description="global response normalisation after the activation")
    eps: Annotated[float, Field(ge=0)] = Field(1e-6, description="of its layer norms")
    out_indices: Stages = Field((0, 1, 2, 3), description="stages that feed the pyramid")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        stages = len(self.depths)
        if stages > 6 or len(self.channels) != stages:
            raise ValueError(
                f"depths: expected up to 6 and as many channels, found {stages} and {len(self.channels)}"
            )
        _require_stages(self.out_indices, stages, "out_indices")
        return self


MmdetBody = Annotated[
    MmdetResNet | MmdetRes2Net | MmdetResNeSt | MmdetSwin | MmdetConvNext, Field(discriminator="kind")
]
