"""The ensemble: networks on their device, the manifest that says how they vote, and cells of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch

from sartorius_infer.cells.claim import Selector, build_instances
from sartorius_infer.cells.instances import Instances
from sartorius_infer.ensemble.member import Member
from sartorius_infer.ensemble.passes import predict
from sartorius_infer.images.read import AnyImage, as_image
from sartorius_infer.manifest.manifest import Manifest
from sartorius_infer.manifest.one_class import with_one_class
from sartorius_infer.manifest.overrides import override_rules
from sartorius_infer.manifest.rules import EdgeMode, Rules
from sartorius_infer.manifest.tiling import TileRule, require_magnification, require_tile
from sartorius_infer.manifest.views import require_views
from sartorius_infer.networks.base import Quickens


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The members, on their device, and the manifest that says how they vote.

    `folder` is what the manifest's files are relative to. With `one_class` the members vote for the classes
    that they were loaded with, and every cell is of the manifest's only class.
    """

    manifest: Manifest
    members: tuple[Member, ...]
    device: torch.device
    folder: Path = Path()
    one_class: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order, from 1."""
        return self.manifest.classes

    @property
    def rules(self) -> Rules:
        """The rules that turn predictions into cells."""
        return self.manifest.rules

    @overload
    def segment(self, image: AnyImage) -> Instances: ...
    @overload
    def segment(self, image: list[AnyImage] | tuple[AnyImage, ...]) -> list[Instances]: ...
    def segment(self, image: AnyImage | list[AnyImage] | tuple[AnyImage, ...]) -> Instances | list[Instances]:
        """The cells of an image, or of each of several images of any sizes, as the command line finds them.

        An image is a path, what `find_images` gives, a `CellImage`, or an array (H, W), (H, W, 3) RGB or
        (H, W, 4) RGBA of uint8, uint16, or fractions in [0, 1]; 16-bit values are read as the manifest's
        `images` say, else as `read_image` does. A large one is seen in tiles as its `tile` says. Raises
        ImageError for an image that cannot be used, TypeError for what is none, and PredictionError, naming
        the network, where one puts out NaN or infinity.
        """
        if isinstance(image, list | tuple):
            return [self.segment(each) for each in image]
        (prediction,) = predict(
            self, [as_image(image, self.manifest.images.limits)], Selector(self.rules, self.classes)
        )
        return build_instances(prediction, self.rules, self.classes)

    def quicken(self) -> None:
        """Let float32 networks on a CPU take faster arithmetic throughout, in place.

        It differs from their authors' in the last bits, which can decide between boxes that are all
        but equal. Networks that know no other arithmetic, and those elsewhere, stay as they are.
        """
        for member in self.members:
            if isinstance(member.network, Quickens):
                member.network.quicken()

    def as_one_class(self, name: str) -> Ensemble:
        """The same networks for cells of any kind, each called `name`, under the rules of `with_one_class`.

        Each network finds and outlines cells as those of its own classes. Where one cell is found as two of
        them, the surer claims its pixels.
        """
        return replace(self, manifest=with_one_class(self.manifest, name), one_class=True)

    def with_overrides(
        self,
        views: Sequence[str] | None = None,
        *,
        rules: Rules | str | Path | None = None,
        score: Mapping[str, float] | None = None,
        min_area: Mapping[str, int] | None = None,
        edge: EdgeMode | None = None,
        tile: TileRule | str | None = None,
        magnification: float | None = None,
    ) -> Ensemble:
        """The same networks with other views (as `parse_view` reads them), rules (as `override_rules`), tiles
        (as the manifest has them, or "520x704") or magnification.

        Raises ManifestError for a view that is none or is there twice, a class that is not the ensemble's,
        and a value that a rule, tiles or magnification cannot have.
        """
        changes: dict[str, Any] = {}
        if views is not None:
            require_views(views)
            changes["views"] = tuple(views)
        if tile is not None:
            changes["tile"] = require_tile(tile)
        if magnification is not None:
            changes["magnification"] = require_magnification(magnification)
        manifest = self.manifest.model_copy(update=changes)
        found = override_rules(
            manifest.rules, manifest.classes, file=rules, score=score, min_area=min_area, edge=edge
        )
        return replace(self, manifest=manifest.model_copy(update={"rules": found.rules}))
