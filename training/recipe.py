"""A recipe: one TOML file that says everything about a training but where the data lies.

`[network]`, `[preprocessing]` and `[rules]` are the tables of a manifest, so that what was trained is
written down as a manifest entry without translation.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from sartorius_infer.checkpoints.storage import Store
from sartorius_infer.competition import COMPETITION_CLASSES, default_rules
from sartorius_infer.manifest.manifest import ClassName, SomeNetworkParts
from sartorius_infer.manifest.preprocessing import Preprocessing
from sartorius_infer.manifest.rules import Rules
from sartorius_infer.manifest.settings import Count, Fraction, Positive, Settings, merge
from sartorius_infer.manifest.torchvision import PRESETS, NetworkParts
from training.errors import TrainingError
from training.stages import Stage

Share = Annotated[float, Field(gt=0, lt=1)]
Range = Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]


class Loss(Settings):
    """Terms of the loss and their weights.

    `giou` compares boxes as wholes (Rezatofighi et al. 2019) where `smooth_l1` compares the four
    offsets.
    """

    box: Literal["smooth_l1", "giou"] = "smooth_l1"
    objectness_weight: Positive = 1.0
    rpn_box_weight: Positive = 1.0
    class_weight: Positive = 1.0
    box_weight: Positive = 1.0
    mask_weight: Positive = 1.0


class Sampling(Settings):
    """What torchvision's detector trains on: anchors and RoIs drawn from each crop, and IoU limits.

    `pre_nms_top_n` is per level, `post_nms_top_n` per image, both in training alone.
    """

    anchors: Count = Field(256, description="anchors drawn from each crop")
    anchor_positives: Fraction = 0.5
    rpn_iou: Annotated[tuple[Fraction, ...], Field(min_length=2, max_length=2)] = (0.3, 0.7)
    pre_nms_top_n: Count = 2000
    post_nms_top_n: Count = 2000
    rois: Count = Field(512, description="RoIs drawn from each crop")
    roi_positives: Fraction = 0.25
    roi_iou: Annotated[tuple[Fraction, ...], Field(min_length=2, max_length=2)] = (0.5, 0.5)
    mask_rois: Count | None = Field(None, description="most positive RoIs a crop with a mask; null: all")

    @model_validator(mode="after")
    def _limits(self) -> Sampling:
        for name in ("rpn_iou", "roi_iou"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected the lower limit first, found {low}, {high}")
        return self


class Augment(Settings):
    """What is varied, each by a draw for each crop.

    `crop` is the side in image pixels (null: the whole image), `crop_of` another one for some classes;
    `scale` the range of magnifications. `brightness` adds up to that many gray levels, `contrast` and
    `gamma` are ranges, `blur` and `noise` the greatest standard deviations in pixels and gray levels.
    """

    crop: Annotated[int, Field(ge=32)] | None = None
    crop_of: dict[str, Annotated[int, Field(ge=32)]] = Field(default_factory=dict)
    on_cells: Fraction = Field(0.8, description="share of crops that are laid around a cell")
    min_visible: Fraction = Field(0.2, description="cells with less of their area in the crop are left out")
    hflip: bool = True
    vflip: bool = False
    quarter_turns: bool = False
    scale: Range = (1.0, 1.0)
    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Range = (1.0, 1.0)
    gamma: Range = (1.0, 1.0)
    blur: Annotated[float, Field(ge=0)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0
    photometric: Fraction = Field(1.0, description="share of crops whose grays change at all")
    copy_paste: Fraction = Field(0.0, description="share of crops that get cells of another of their type")

    @model_validator(mode="after")
    def _ranges(self) -> Augment:
        for name in ("scale", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected two rising numbers above 0, found {low}, {high}")
        return self


class Split(Settings):
    """Which images are held out: a share of them, or one of several folds.

    Images that share `group` (the first of these columns that the annotations have) stay together.
    """

    share: Share = 0.2
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    group: tuple[str, ...] = ("plate", "plate_id", "well", "sample_id")
    sources: tuple[str, ...] | None = Field(None, description="those that are split; the rest only train")
    only_train: tuple[str, ...] = Field(
        (), description="patterns of source/annotation file/image id of images that are never held out"
    )

    @model_validator(mode="after")
    def _fold_exists(self) -> Split:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold: expected one below folds = {self.folds}, found {self.fold}")
        return self


class Validation(Settings):
    """How often, and on how many of the held-out images, the kit's own metric is taken."""

    every: Count = Field(500, description="iterations")
    images: Count | None = Field(None, description="at most so many, of all types alike; null: all")
    thresholds: tuple[Fraction, ...] = Field(
        (), description="score thresholds tried for each type, the best counts; none: those of the rules"
    )


class Ema(Settings):
    """The exponential mean of weights that is validated and exported; decay 0 means the last weights."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999


class Recipe(Settings):
    """A whole training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    about: str = ""
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] = COMPETITION_CLASSES
    extra_classes: tuple[ClassName, ...] = Field((), description="trained as well, cut off at export")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="patterns of source/type/image id -> a class; the first match counts",
    )
    init: str | None = Field(
        None, description="a checkpoint (path from the recipe), imagenet, coco, or null: from scratch"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    architecture: str = "torchvision_rcnn"
    network: SomeNetworkParts | None = None
    preprocessing: Preprocessing = Preprocessing()
    sampling: Sampling = Sampling()
    loss: Loss = Loss()
    augment: Augment = Augment()
    split: Split = Split()
    validation: Validation = Validation()
    ema: Ema = Ema()
    rules: Rules | None = None
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    save_every: Count = Field(200, description="iterations between two writings of the state")
    store: Store = "float16"
    licence: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if len(set(self.all_classes)) < len(self.all_classes):
            raise ValueError(f"classes: expected each once, found {self.all_classes}")
        for name in [
            *self.labels.values(),
            *self.augment.crop_of,
            *(w for s in self.stages for w in s.named),
        ]:
            if name not in self.all_classes:
                raise ValueError(f"expected a class of {self.all_classes}, found {name!r}")
        for name in self.rules.per_class if self.rules else ():
            if name not in self.classes:
                raise ValueError(f"rules.per_class.{name}: expected a class of {self.classes}")
        if self.architecture not in PRESETS:
            raise ValueError(f"architecture: expected one of {', '.join(PRESETS)}, found {self.architecture}")
        sizes = self.parts.anchors.sizes
        if len(sizes) != self.parts.levels or len({len(level) for level in sizes}) > 1:
            raise ValueError(
                f"network.anchors.sizes: expected lists of one length for {self.parts.levels} levels, "
                f"found {len(sizes)} of lengths {sorted({len(level) for level in sizes})}"
            )
        return self

    @property
    def all_classes(self) -> tuple[str, ...]:
        """Classes in label order, from 1, those that are cut off at export last."""
        return self.classes + self.extra_classes

    @property
    def parts(self) -> NetworkParts:
        """The network's parts: the defaults, the preset's, the recipe's own."""
        said = self.network.model_dump(exclude_unset=True, exclude_none=True) if self.network else {}
        return NetworkParts.model_validate(
            merge(merge(NetworkParts().model_dump(), PRESETS[self.architecture]), said)
        )

    @property
    def final_rules(self) -> Rules:
        """The rules by which it is validated, and which its manifest says."""
        return self.rules or default_rules(self.classes)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; raises TrainingError naming the file and the first fault's place."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: expected a readable TOML file, found {error}") from None
    preprocessing = content.get("preprocessing")
    if isinstance(preprocessing, dict) and preprocessing.get("resize") == "none":
        preprocessing["resize"] = None  # which TOML cannot say, and a manifest does
    try:
        # Through JSON, whose lists strict settings take for tuples.
        recipe = Recipe.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise TrainingError(f"{path}: {_fault(error)}") from None
    return recipe


def _fault(error: ValidationError) -> str:
    """The first fault, as `stages.0.optimiser.lr: what is wrong, found what`."""
    first: Any = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(step) for step in first["loc"])
    # A check across fields names what it found itself.
    told = first["type"] in ("missing", "value_error") or len(repr(first["input"])) > 100
    found = "" if told else f", found {first['input']!r}"
    return f"{where}: {message}{found}" if where else f"{message}{found}"


RUN_SETTINGS = {"about", "licence", "init", "validation", "save_every", "rules", "store"}
"""What may change while a run lasts: none of it changes the weights, or does so no more."""


def fingerprint(recipe: Recipe) -> str:
    """Everything that the weights depend on, as text; a run goes on under an equal one alone."""
    return recipe.model_dump_json(exclude=RUN_SETTINGS)


def renewed(text: str | None) -> str | None:
    """A fingerprint of before as it is written today: settings that it does not know have their defaults."""
    try:
        return text and fingerprint(Recipe.model_validate_json(text))
    except ValidationError:
        return text
