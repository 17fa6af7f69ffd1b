"""The network that learns: built by the kit, started from a checkpoint, frozen where a stage says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from sartorius_infer.checkpoints.files import named_network
from sartorius_infer.checkpoints.reading import read_checkpoint
from sartorius_infer.networks.torchvision.keys import canonical_keys, is_mask_rcnn
from sartorius_infer.networks.torchvision.rcnn import build_model
from training.batches import Batch
from training.errors import TrainingError
from training.heads import Losses, with_losses
from training.recipe import Recipe
from training.stages import Stage

BODY = "backbone.body."
PER_CLASS = {
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}
"""Layers with so many rows for each class, the background first."""


class Learner(nn.Module):
    """A Mask R-CNN whose forward gives the losses of a batch; `model` is torchvision's own."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, batch: Batch) -> Losses:
        """The weighted terms: objectness, rpn_box, class, box and mask."""
        features = self.model.backbone(batch.images)
        features = {name: level.float() for name, level in features.items()}
        sizes = list(batch.sizes_hw)
        told = [{"boxes": target.boxes, "unsure": target.unsure} for target in batch.targets]
        proposals, rpn = self.model.rpn(ImageList(batch.images, sizes), features, told)
        # Torchvision guesses the levels' strides from features and image size; padded ones fit exactly.
        padded = [(int(batch.images.shape[2]), int(batch.images.shape[3]))] * len(sizes)
        losses: Losses = self.model.roi_heads.losses(features, proposals, padded, batch.targets)
        return {"objectness": rpn["loss_objectness"], "rpn_box": rpn["loss_rpn_box_reg"], **losses}


def build_learner(recipe: Recipe, folder: Path) -> Learner:
    """A fresh network by the recipe, with the weights that its `init` names; paths count from `folder`."""
    torch.manual_seed(recipe.seed)
    model = with_losses(build_model(recipe.parts, len(recipe.all_classes)), recipe.sampling, recipe.loss)
    if recipe.init is not None:
        start_from(model, read_init(recipe, folder), recipe.init)
    return Learner(model)


def read_init(recipe: Recipe, folder: Path) -> Mapping[str, Tensor]:
    """The tensors of `init` under a detector's keys."""
    init, body = str(recipe.init), recipe.parts.body
    if init == "imagenet":
        return _of_body(_downloaded(body))
    if init == "coco":
        name = "maskrcnn_resnet50_fpn_v2" if "v2" in recipe.architecture else "maskrcnn_resnet50_fpn"
        # COCO's classes are none of ours.
        state = canonical_keys(_downloaded(name))
        return {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] not in PER_CLASS}
    path, which = named_network(folder / init)
    if not path.is_file():
        raise TrainingError(f"{path}: expected a checkpoint to start from (init), found none")
    state = read_checkpoint(path, which).state
    return canonical_keys(state) if is_mask_rcnn(state) else _of_body(state)


def _downloaded(name: str) -> Mapping[str, Tensor]:
    """Torchvision's best weights of a model, from its cache or the internet."""
    try:
        state: Mapping[str, Tensor] = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(
            progress=True, check_hash=True
        )
    except Exception as error:  # a name without weights, no network, a broken cache
        raise TrainingError(f"init: expected weights of {name} from torchvision, found {error}") from None
    return state


def _of_body(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's tensors as those of a body; its own head fits nothing and is left behind."""
    return {BODY + key.removeprefix("features."): tensor for key, tensor in state.items()}


def start_from(model: nn.Module, state: Mapping[str, Tensor], name: str) -> list[str]:
    """Copy the tensors that fit; layers of other class counts take the rows of the classes both have.

    Gives the keys that keep their fresh values. Raises TrainingError if not even the body fits.
    """
    own, fresh = model.state_dict(), []
    for key, tensor in own.items():
        given = state.get(key)
        if given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
        elif (
            given is not None and key.rpartition(".")[0] in PER_CLASS and given.shape[1:] == tensor.shape[1:]
        ):
            rows = min(len(given), len(tensor))
            tensor[:rows].copy_(given[:rows])
        elif not key.endswith("num_batches_tracked"):
            fresh.append(key)
    if missing := [key for key in fresh if key.startswith(BODY)]:
        raise TrainingError(
            f"{name}: expected weights of the recipe's body, found none that fit {len(missing)} tensors, "
            f"the first {missing[0]}"
        )
    return fresh


def exported_state(state: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """The tensors of a network of the first `classes` classes; the rows of the others are cut off."""
    cut = dict(state)
    for layer, rows in PER_CLASS.items():
        for kind in ("weight", "bias"):
            cut[f"{layer}.{kind}"] = cut[f"{layer}.{kind}"][: rows * (classes + 1)].clone()
    return cut


def freeze(learner: Learner, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """Let learn what the stage says; gives these parameters by name."""
    frozen = _frozen_prefixes(learner.model, stage)
    trained = []
    for name, parameter in learner.model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
        if parameter.requires_grad:
            trained.append((name, parameter))
    return trained


def set_modes(learner: Learner, stage: Stage) -> None:
    """Training mode, but for frozen modules and norms: they must keep their statistics."""
    learner.train()
    frozen = _frozen_prefixes(learner.model, stage)
    for name, module in learner.model.named_modules():
        held = stage.norms == "frozen" and isinstance(module, nn.BatchNorm2d)
        if held or (frozen and f"{name}.".startswith(frozen)):
            module.eval()


def _frozen_prefixes(model: Any, stage: Stage) -> tuple[str, ...]:
    if stage.trains == "heads":
        return (BODY,)
    names = list(model.backbone.body)
    if "layer1" in names:
        first = names.index("layer1")
        count = first + stage.freeze_at - 1 if stage.freeze_at else 0
    else:  # ConvNeXt and Swin: the stem, then blocks and downsampling in turn
        count = min(stage.freeze_at, 1) + max(0, 2 * stage.freeze_at - 3)
    return tuple(f"{BODY}{name}." for name in names[:count])
