"""`weights_manifest.json`: which checkpoints vote, how each sees an image, and the rules after them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from sartorius_infer.errors import ManifestError
from sartorius_infer.files import json_text
from sartorius_infer.manifest.cellpose import CellposeParts
from sartorius_infer.manifest.detectron2 import Detectron2Parts
from sartorius_infer.manifest.mmdet import MmdetParts
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.reading import ImageReading
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.manifest.settings import Count, Fraction, Positive, Settings, partial_model
from sartorius_infer.manifest.tiling import Magnification, TileRule, TileSize
from sartorius_infer.manifest.torchvision import NetworkParts
from sartorius_infer.manifest.views import View, parse_view

MANIFEST_NAME = "weights_manifest.json"

if TYPE_CHECKING:
    SomeNetworkParts = NetworkParts
else:
    SomeNetworkParts = partial_model(NetworkParts)

ClassName = Annotated[str, Field(min_length=1)]


class ModelSpec(Settings):
    """One checkpoint: where it is, what it is, how it wants its images, how much it counts."""

    name: Annotated[str, Field(min_length=1)]
    file: Annotated[str, Field(min_length=1)] = Field(description="path relative to the manifest")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    bytes: Count | None = None
    format: Literal["safetensors", "torch", "pickle"] | None = Field(
        None, description="null: by the file's content"
    )
    state: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="which network of a file of several: the name of its wrapper or prefix, such as ema; "
        '"." for the one under no name; null: the only one',
    )
    architecture: str | None = Field(
        None,
        description="torchvision_rcnn, a preset of it, detectron2_rcnn, mmdet_rcnn, cellpose, or a plugin's "
        "name; null: by the file's keys",
    )
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = Field(
        None,
        description="the network's own class order, without background; null: the manifest's; "
        "classes that the manifest does not list are ignored; where the network knows no classes, one is "
        "its cells', and null or several leave it to other networks",
    )
    preprocessing: Preprocessing = Preprocessing()
    network: SomeNetworkParts | None = Field(
        None, description="parts and settings that the checkpoint's keys do not tell"
    )
    detectron2: Detectron2Parts | None = Field(
        None, description="of a Detectron2 checkpoint: what its config said; `import` writes it"
    )
    mmdet: MmdetParts | None = Field(
        None, description="of an MMDetection checkpoint: what its config said; `import` writes it"
    )
    cellpose: CellposeParts | None = Field(None, description="of a Cellpose checkpoint: how it is run")
    weight: Positive = Field(1.0, description="its vote in the fusion of boxes and the mean of masks")
    holds_bf16: bool = Field(
        False,
        description="whether its score was measured to hold in bfloat16, which --precision auto then takes "
        "on a CPU with instructions for it",
    )
    provenance: str = ""
    licence: str = ""

    @model_validator(mode="after")
    def _one_family(self) -> ModelSpec:
        blocks = ("network", "detectron2", "mmdet", "cellpose")
        said = [name for name in blocks if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(
                "expected one of `network` (torchvision), `detectron2`, `mmdet` and `cellpose`, found "
                f"{' and '.join(f'`{name}`' for name in said)}"
            )
        return self

    def network_settings(self) -> dict[str, Any]:
        """The `network` fields that the manifest writes, as a nested dict; empty where it writes none."""
        return self.network.model_dump(exclude_unset=True, exclude_none=True) if self.network else {}


class Fusion(Settings):
    """How the boxes of several networks and views become one set."""

    method: Literal["wbf", "nms", "soft_nms", "nmw"] = "wbf"
    iou: Fraction = Field(0.6, description="boxes of one class that overlap more are the same cell")
    conf_type: Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"] = Field(
        "avg", description="of wbf: how the scores of a cluster become one"
    )
    skip_score: Fraction = Field(0.0, description="boxes under this score do not take part")
    sigma: Positive = Field(0.5, description="of soft_nms: width of its gaussian")
    soft_score: Fraction = Field(0.001, description="of soft_nms: decayed scores under this are dropped")
    max_boxes: Count = Field(3000, description="the best of one class in one image; the cost is quadratic")


class Evidence(Settings):
    """What speaks for tuned rules: scores on annotated images, each in [0, 1].

    start is the score of the rules before, seen that of the chosen ones on the images they were chosen
    on, unseen that of rules chosen without the image (cross-validation); low and high bound unseen
    minus start with 95 % confidence.
    """

    images: Count
    folds: Count
    seed: int
    start: Fraction
    seen: Fraction
    unseen: Fraction
    low: Annotated[float, Field(ge=-1, le=1)]
    high: Annotated[float, Field(ge=-1, le=1)]


class Manifest(Settings):
    """The whole file. `version` is 1; unknown keys are errors."""

    schema_: str | None = Field(None, alias="$schema")
    version: Annotated[int, Field(ge=1, le=1)]
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] = Field(
        description="in label order, from 1"
    )
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    images: ImageReading = Field(ImageReading(), description="how files are read, for all networks alike")
    learned_hw: TileSize | None = Field(
        None,
        description="size of the images that the networks learned on; null: the competition's, 520 x 704",
    )
    tile: TileRule = Field(
        "auto",
        description="images much larger than the tiles are seen in overlapping ones: auto, of the learned "
        "size, or of [height, width]; off: every image whole",
    )
    magnification: Magnification = Field(
        1.0,
        description="how many times as large as in the networks' images the cells are; images are resized by "
        "its inverse for the networks",
    )
    views: Annotated[tuple[str, ...], Field(min_length=1)] = ("identity",)
    fusion: Fusion = Fusion()
    rules: Rules = Rules()
    evidence: Evidence | None = Field(None, description="of the rules, where `tune` chose them")

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        _require_unique("$.classes", self.classes)
        _require_unique("$.models[*].name", [model.name for model in self.models])
        _require_unique("$.views", self.views)
        views: list[View] = []
        for index, name in enumerate(self.views):
            try:
                view = parse_view(name)
            except ManifestError as error:
                raise ValueError(f"$.views[{index}]: {error}") from None
            if view in views:
                raise ValueError(f"$.views[{index}]: expected each view once, found {name!r} again")
            views.append(view)
        for name in self.rules.per_class:
            if name not in self.classes:
                raise ValueError(f"$.rules.per_class.{name}: expected one of {self.classes}")
        for index, model in enumerate(self.models):
            where, own = f"$.models[{index}].classes", model.classes or self.classes
            _require_unique(where, own)
            if not set(own) & set(self.classes):
                raise ValueError(f"{where}: expected at least one of {self.classes}, found {own}")
        return self


@dataclass(frozen=True)
class Plan:
    """A manifest and the folder that its paths are relative to."""

    manifest: Manifest
    folder: Path

    def path(self, spec: ModelSpec) -> Path:
        """Where the checkpoint of `spec` lies."""
        return self.folder / spec.file


def _require_unique(what: str, values: Sequence[str]) -> None:
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{what}: expected each once, found {twice[0]!r} twice")


def load_manifest(path: Path) -> Plan:
    """Read and check a manifest; files are looked for, but read only by `verify_files`.

    Raises ManifestError naming the file and the JSON path of the first fault.
    """
    manifest = read_settings(path, lambda content: Manifest)
    for index, spec in enumerate(manifest.models):
        _require_inside(path, f"$.models[{index}].file", spec.file)
    return Plan(manifest, path.parent)


S = TypeVar("S", bound=Settings)


def read_settings(path: Path, kind: Callable[[Any], type[S]]) -> S:
    """A JSON file as the settings that `kind` chooses by its content.

    Raises ManifestError naming the file and the JSON path of the first fault.
    """
    try:
        text = json_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: expected a readable JSON file, found {error}") from None
    return _parse(text, path, kind)


def parse_manifest(text: str, path: Path) -> Manifest:
    """Check the text of a manifest that is, or will be, at `path`; no file is looked at.

    Raises ManifestError naming `path` and the JSON path of the first fault.
    """
    return _parse(text, path, lambda content: Manifest)


def _parse(text: str, path: Path, kind: Callable[[Any], type[S]]) -> S:
    try:
        content = json.loads(text, object_pairs_hook=_no_duplicates)
        return kind(content).model_validate_json(text)
    except ValidationError as error:
        raise ManifestError(f"{path}: {_describe_fault(error, content)}") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: expected JSON, found {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require_unique("keys of one object", [key for key, _ in pairs])
    return dict(pairs)


def _describe_fault(error: ValidationError, content: Any) -> str:
    """The first fault of a validation, as `$.json.path: what is wrong, found what`."""
    fault = error.errors()[0]
    message = fault["msg"].removeprefix("Value error, ")
    if message.startswith("$"):  # a check across fields, which names its place itself
        return message
    where = "$"
    last = len(fault["loc"]) - 1
    for depth, step in enumerate(fault["loc"]):
        if isinstance(content, list):
            known = isinstance(step, int) and step < len(content)
        else:
            known = isinstance(content, dict) and step in content
        # What is not there is what is missing, or else not a place but the branch of a union.
        if known or (fault["type"] == "missing" and depth == last):
            where += f"[{step}]" if isinstance(step, int) else f".{step}"
            content = content[step] if known else None
    found = repr(fault["input"])
    found = "" if fault["type"] == "missing" or len(found) > 100 else f", found {found}"
    return f"{where}: {message}{found}"


def _require_inside(manifest: Path, where: str, file: str) -> None:
    try:
        folder = manifest.parent.resolve()
        target = (folder / file).resolve()
        leaves = Path(file).is_absolute() or ".." in Path(file).parts or not target.is_relative_to(folder)
        missing = not target.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of links
        raise ManifestError(f"{manifest}: {where}: expected a path, found {file[:100]!r}: {error}") from None
    if leaves:
        raise ManifestError(
            f"{manifest}: {where}: expected a path inside the manifest's folder, found {file!r}"
        )
    if missing:
        raise ManifestError(f"{manifest}: {where}: expected a file, found none at {target}")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a manifest, as published beside the documentation."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **Manifest.model_json_schema(by_alias=True)}
