"""Keeping a run inside its time: fewer views, then fewer networks, for the images that are left.

Costs are measured as the run goes: wall seconds an image, and what share of them each network takes in
each view. Where the projection passes the limit, the last view is dropped first, then the next to last,
and once one is left the network of the lowest weight. When the time is up what is left stays blank.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sartorius_infer.ensemble.ensemble import Ensemble

log = logging.getLogger(__name__)

RESERVE = 0.03
"""Part of the limit kept for what the projection does not see: writing, slower images at the end."""

Look = tuple[str, str]
"""A network's name and a view."""


@dataclass
class Budget:
    """Seconds that a run may take, and what it has learnt about its costs.

    seconds  the limit, from `start`
    start    when it began, by `clock`
    what     what is counted as images here, in the plural
    """

    seconds: float
    start: float
    clock: Callable[[], float] = time.monotonic
    what: str = "images"
    _shares: dict[Look, float] = field(default_factory=lambda: defaultdict(float))
    _looked: dict[Look, int] = field(default_factory=lambda: defaultdict(int))
    _images: int = 0
    _spent: float = 0.0
    _last: float | None = None
    _warm: bool = False

    def looked(self, network: str, view: str, seconds: float, images: int) -> None:
        """Take note that a network looked at some images in a view."""
        # The first batch pays for starting up, which no later one does.
        if self._warm:
            self._shares[network, view] += seconds
            self._looked[network, view] += images

    def finished(self, images: int) -> None:
        """Take note that some images are done, all by the ensemble that `choose` gave last."""
        if self._last is None:  # none of them entered a network yet
            return
        now = self.clock()
        if self._warm:
            self._images += images
            self._spent += now - self._last
        self._last, self._warm = now, True

    def choose(self, ensemble: Ensemble, remaining: int) -> Ensemble | None:
        """The ensemble for the next images, the given one or a lighter; None once the time is up."""
        now = self.clock()
        if self._last is None:
            self._last = now
        left = self.seconds * (1 - RESERVE) - (now - self.start)
        if left <= 0:
            return None
        chosen = ensemble
        while self._projected(ensemble, chosen, remaining) > left:
            lighter = _lighter(chosen)
            if lighter is None:
                break
            chosen = lighter
        if chosen is not ensemble:
            self._announce(ensemble, chosen, remaining)
            self._images, self._spent = 0, 0.0  # what is measured next is another ensemble
        return chosen

    def _projected(self, measured: Ensemble, other: Ensemble, remaining: int) -> float:
        """Seconds for the remaining images with `other`, from what `measured` took; 0 before any."""
        whole = self._cost(measured)
        if not self._images or not whole:
            return 0.0
        return remaining * self._cost(other) / whole * self._spent / self._images

    def _cost(self, ensemble: Ensemble) -> float:
        """Measured seconds of all networks in all views, an image."""
        looks = [(m.name, view) for m in ensemble.members for view in ensemble.manifest.views]
        return sum(self._shares[look] / self._looked[look] for look in looks if self._looked[look])

    def _announce(self, before: Ensemble, after: Ensemble, remaining: int) -> None:
        views, names = after.manifest.views, [m.name for m in after.members]
        dropped = [f"view {v}" for v in before.manifest.views if v not in views]
        dropped += [f"network {m.name}" for m in before.members if m.name not in names]
        log.warning(
            "the time limit: going on without %s for the last %d %s", ", ".join(dropped), remaining, self.what
        )


def _lighter(ensemble: Ensemble) -> Ensemble | None:
    """The same without its last view, or its least network; None where there is nothing to drop."""
    views, members = ensemble.manifest.views, ensemble.members
    if len(views) > 1:
        return ensemble.with_overrides(views=views[:-1])
    if len(members) > 1:
        # Of equal ones the last goes first.
        least = min(range(len(members)), key=lambda i: (members[i].weight, -i))
        return replace(ensemble, members=members[:least] + members[least + 1 :])
    return None
