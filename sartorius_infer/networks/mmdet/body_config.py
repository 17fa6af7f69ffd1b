"""Reading `model.backbone` of an MMDetection config: every key that decides something at test time.

A class holds the keys of each kind of body, with MMDetection's own defaults. A key with one possible value
is a part that is not built otherwise. What is not there is a training setting, known by name in
`_TRAINING`, or unknown, and then refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from sartorius_infer.manifest.mmdet_bodies import MmdetBody
from sartorius_infer.manifest.settings import Count
from sartorius_infer.networks.wording import quoted, reason_of

_TRAINING = {
    *("init_cfg", "pretrained", "frozen_stages", "norm_eval", "with_cp", "zero_init_residual"),
    *("drop_path_rate", "drop_rate", "attn_drop_rate", "convert_weights"),
}
"""Keys that say nothing about a trained body."""


Settings = dict[str, Any]


def _pair(value: Any) -> Any:
    """One number stands for two."""
    return value if isinstance(value, tuple) else (value, value)


def _single(value: Any) -> Any:
    """One number is a tuple of one."""
    return value if isinstance(value, tuple) else (value,)


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Norm(_Keys):
    """What a `norm_cfg` may say; whether a norm was trained does not matter any more."""

    type: Literal["BN", "BN2d", "SyncBN", "MMSyncBN", "GN"] = "BN"
    eps: Annotated[float, Field(ge=0)] | None = None
    num_groups: Count | None = None
    requires_grad: Any = None
    momentum: Any = None

    def settings(self) -> Settings:
        """As `Norm` has them."""
        if self.type != "GN":
            return {"kind": "batch", "eps": self.eps}
        return {"kind": "group", "eps": self.eps, "groups": self.num_groups}


class _LayerNorm(_Keys):
    """The `norm_cfg` of a Swin or ConvNeXt."""

    type: Literal["LN", "LN2d"] = "LN"
    eps: Annotated[float, Field(ge=0)] = 1e-5
    requires_grad: Any = None


class _Gelu(_Keys):
    type: Literal["GELU"] = "GELU"


class _Convolution(_Keys):
    type: Literal["Conv2d", "Conv"] = "Conv2d"


class _Dcn(_Keys):
    """A `dcn`; with `fallback_on_stride` MMDetection deforms in more places than it says."""

    type: Literal["DCN", "DCNv2"]
    deform_groups: Count = 1
    deformable_groups: Count | None = None
    fallback_on_stride: Literal[False] = False


class _Body(_Keys):
    in_channels: Literal[3] = 3

    def settings(self) -> Settings:
        """As the kind's class in `manifest` has them."""
        raise NotImplementedError


class _Residual(_Body):
    depth: int
    base_channels: Count = 64
    stem_channels: Count | None = None
    num_stages: Annotated[int, Field(ge=1, le=4)] = 4
    strides: tuple[Count, ...] = (1, 2, 2, 2)
    dilations: tuple[Count, ...] = (1, 1, 1, 1)
    out_indices: tuple[int, ...] = (0, 1, 2, 3)
    style: Literal["pytorch", "caffe"] = "pytorch"
    conv_cfg: _Convolution | None = None
    norm_cfg: _Norm = _Norm()
    dcn: _Dcn | None = None
    stage_with_dcn: tuple[bool, ...] = (False, False, False, False)
    plugins: None = None

    @model_validator(mode="after")
    def _stages(self) -> Self:
        for name in ("strides", "dilations"):
            if len(getattr(self, name)) != self.num_stages:
                raise ValueError(f"{name}: expected {self.num_stages}, as num_stages says")
        return self

    def settings(self) -> Settings:
        return {
            "depth": self.depth,
            "base_channels": self.base_channels,
            "stem_channels": self.stem_channels or self.base_channels,
            "strides": self.strides,
            "dilations": self.dilations,
            "out_indices": self.out_indices,
            "stride_in_1x1": self.style == "caffe",
            "norm": self.norm_cfg.settings(),
            "deformable": self._deformable(),
        }

    def _deformable(self) -> Settings | None:
        stages = tuple(stage for stage, deforms in enumerate(self.stage_with_dcn) if deforms)
        if self.dcn is None or not stages:
            return None
        groups = self.dcn.deformable_groups or self.dcn.deform_groups
        return {"modulated": self.dcn.type == "DCNv2", "groups": groups, "stages": stages}


class _ResNet(_Residual):
    depth: Literal[18, 34, 50, 101, 152]
    deep_stem: bool = False
    avg_down: bool = False

    def settings(self) -> Settings:
        shape = {"kind": "resnet", "deep_stem": self.deep_stem, "avg_down": self.avg_down}
        return super().settings() | shape


class _ResNetV1d(_Residual):
    depth: Literal[18, 34, 50, 101, 152]

    def settings(self) -> Settings:
        return super().settings() | {"kind": "resnet", "deep_stem": True, "avg_down": True}


class _ResNeXt(_ResNet):
    depth: Literal[50, 101, 152]
    groups: Count = 1
    base_width: Count = 4

    def settings(self) -> Settings:
        return super().settings() | {"groups": self.groups, "base_width": self.base_width}


class _Res2Net(_Residual):
    """Stem, shortcuts and the place of the stride are always those of its base, ResNetV1d."""

    depth: Literal[50, 101, 152]
    scales: int = 4
    base_width: Count = 26
    style: Literal["pytorch"] = "pytorch"
    deep_stem: Literal[True] = True
    avg_down: Literal[True] = True

    def settings(self) -> Settings:
        return super().settings() | {"kind": "res2net", "scales": self.scales, "base_width": self.base_width}


class _ResNeSt(_Residual):
    depth: Literal[50, 101, 152, 200, 269]
    groups: Count = 1
    base_width: Count = 4
    radix: Count = 2
    reduction_factor: Literal[4] = 4
    avg_down_stride: bool = True

    def settings(self) -> Settings:
        attention = {"groups": self.groups, "base_width": self.base_width, "radix": self.radix}
        return super().settings() | attention | {"kind": "resnest", "avg_down_stride": self.avg_down_stride}


class _Swin(_Body):
    pretrain_img_size: Annotated[tuple[Count, Count], BeforeValidator(_pair)] = (224, 224)
    embed_dims: Count = 96
    patch_size: Count = 4
    window_size: int = 7
    mlp_ratio: float = 4.0
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[Count, ...] = (3, 6, 12, 24)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    out_indices: tuple[int, ...] = (0, 1, 2, 3)
    qkv_bias: bool = True
    qk_scale: float | None = None
    patch_norm: bool = True
    use_abs_pos_embed: bool = False
    act_cfg: _Gelu = _Gelu()
    norm_cfg: _LayerNorm = _LayerNorm()

    @model_validator(mode="after")
    def _halves(self) -> Self:
        expected = (self.patch_size, *(2 for _ in self.depths[1:]))
        if self.strides[: len(self.depths)] != expected:
            raise ValueError(f"strides: expected {expected}")
        return self

    def settings(self) -> Settings:
        rows, columns = (side // self.patch_size for side in self.pretrain_img_size)
        return {
            "kind": "swin",
            "channels": self.embed_dims,
            "depths": self.depths,
            "heads": self.num_heads,
            "patch_size": self.patch_size,
            "window_size": self.window_size,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "qk_scale": self.qk_scale or None,
            "patch_norm": self.patch_norm,
            "absolute_positions": (rows, columns) if self.use_abs_pos_embed else None,
            "eps": self.norm_cfg.eps,
            "out_indices": self.out_indices,
        }


class _Arch(_Keys):
    depths: tuple[int, ...]
    channels: tuple[Count, ...]


def _arch(depths: tuple[int, ...], first: int) -> _Arch:
    return _Arch(depths=depths, channels=tuple(first << stage for stage in range(4)))


_ARCHS = {
    "atto": _arch((2, 2, 6, 2), 40),
    "femto": _arch((2, 2, 6, 2), 48),
    "pico": _arch((2, 2, 6, 2), 64),
    "nano": _arch((2, 2, 8, 2), 80),
    "tiny": _arch((3, 3, 9, 3), 96),
    "small": _arch((3, 3, 27, 3), 96),
    "base": _arch((3, 3, 27, 3), 128),
    "large": _arch((3, 3, 27, 3), 192),
    "xlarge": _arch((3, 3, 27, 3), 256),
    "huge": _arch((3, 3, 27, 3), 352),
}


def _named_arch(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in _ARCHS:
        raise ValueError(f"expected one of {', '.join(_ARCHS)}, or depths and channels")
    return _ARCHS[value]


def _ungapped(value: Any) -> Any:
    if value is not False:
        raise ValueError("expected False: otherwise it puts out no maps")
    return value


class _ConvNext(_Body):
    arch: Annotated[_Arch, BeforeValidator(_named_arch)] = _ARCHS["tiny"]
    stem_patch_size: Count = 4
    norm_cfg: _LayerNorm = _LayerNorm(type="LN2d", eps=1e-6)
    act_cfg: _Gelu = _Gelu()
    linear_pw_conv: bool = True
    use_grn: bool = False
    layer_scale_init_value: float = 1e-6
    out_indices: Annotated[tuple[int, ...], BeforeValidator(_single)] = (-1,)
    gap_before_final_norm: Annotated[bool, BeforeValidator(_ungapped), Field(validate_default=True)] = True

    def settings(self) -> Settings:
        stages = len(self.arch.depths)
        return {
            "kind": "convnext",
            "depths": self.arch.depths,
            "channels": self.arch.channels,
            "stem_patch_size": self.stem_patch_size,
            "linear_pointwise": self.linear_pw_conv,
            "layer_scale": self.layer_scale_init_value > 0,
            "global_norm": self.use_grn,
            "eps": self.norm_cfg.eps,
            "out_indices": tuple(index + stages if index < 0 else index for index in self.out_indices),
        }


_TYPES: dict[str, type[_Body]] = {
    "ResNet": _ResNet,
    "ResNetV1d": _ResNetV1d,
    "ResNeXt": _ResNeXt,
    "Res2Net": _Res2Net,
    "ResNeSt": _ResNeSt,
    "SwinTransformer": _Swin,
    "mmpretrain.ConvNeXt": _ConvNext,
    "mmcls.ConvNeXt": _ConvNext,
}
_KEYS_OF = {
    "norm.groups": "norm_cfg.num_groups",
    "deformable.groups": "dcn.deform_groups",
    "deformable.stages": "stage_with_dcn",
    "heads": "num_heads",
}
"""The keys behind settings of other names."""

_KINDS = ("resnet", "res2net", "resnest", "swin", "convnext")

_BODY: TypeAdapter[MmdetBody] = TypeAdapter(MmdetBody)


def read_body(backbone: Mapping[str, Any], dialect: str) -> MmdetBody:
    """The settings in a config's `model.backbone`, of Python literals; `dialect` is its version in words.

    Raises ValueError that names each key that cannot be honoured, its value and what is possible.
    """
    other = {*_TRAINING, "type", "_scope_"}
    said = {key: _tuples(value) for key, value in backbone.items() if key not in other}
    kind, scope = backbone.get("type"), backbone.get("_scope_")
    kind = kind if scope is None or "." in str(kind) else f"{scope}.{kind}"
    keys = _TYPES.get(str(kind).removeprefix("mmdet."))
    if keys is None:
        raise ValueError(quoted("model.backbone.type", kind, f"expected {', '.join(_TYPES)}"))
    try:
        return _BODY.validate_python(keys.model_validate(said).settings())
    except ValidationError as error:
        raise ValueError(_faults(error, backbone, f"MMDetection {dialect}'s {kind}")) from None


def _tuples(value: Any) -> Any:
    """Lists and tuples mean the same in a config."""
    if isinstance(value, Mapping):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _faults(error: ValidationError, backbone: Mapping[str, Any], whose: str) -> str:
    """What pydantic found, by the config's own keys, the first thing about each."""
    faults: dict[str, str] = {}
    for fault in error.errors():
        reason = reason_of(fault)
        if fault["type"] == "extra_forbidden":
            reason = f"no key of {whose}; delete it if it says nothing at test time"
        path = [part for part in fault["loc"] if isinstance(part, str) and part not in _KINDS]
        name = ".".join(path)
        if not name:  # keys that contradict each other
            name, _, reason = reason.partition(": ")
        key = _KEYS_OF.get(name, name)
        value: Any = backbone
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        faults.setdefault(key, quoted(f"model.backbone.{key}", value, reason))
    return "; ".join(faults.values())
