"""Tells a jump of the training loss from its noise: how far it lies above the median of the last losses, in deviations.

In: the loss of every step. Out: a `Jump` at the last of so many high ones in a row. Median and median distance, so that a
few outliers move neither; high losses are no part of what is usual until they have been said. The state is a few floats,
kept in checkpoints: an interrupted run judges as an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any, NamedTuple

from ..specs import Spike

__all__ = ["Jump", "Losses"]

NORMAL = 1.4826  # the standard deviation of a normal distribution over the median distance from its median
LEAST_DEVIATION = 0.01  # of the median: a loss that hardly moves has spikes too, but not of a hundredth


class Jump(NamedTuple):
    """A spike: the last of the high losses, and what was usual before."""

    since: int  # the first step whose loss was high
    step: int
    loss: float  # nats
    usual: float  # nats; the median
    deviation: float  # nats

    @property
    def height(self) -> float:
        """In deviations."""
        return (self.loss - self.usual) / self.deviation


class Losses:
    """The losses of the last steps."""

    def __init__(self, spike: Spike) -> None:
        self.spike = spike
        self.recent: deque[float] = deque(maxlen=spike.window)
        self.high: list[float] = []  # in a row, up to the last step; not part of `recent` yet
        self.since: int | None = None  # the step of the first of them
        self.told = False  # the losses are still high after a jump that was said

    def add(self, step: int, loss: float) -> Jump | None:
        """Take the loss of a step; one that is not finite is the business of others."""
        if not math.isfinite(loss):
            return None
        usual, deviation = self._usual()
        if loss <= usual + self.spike.threshold * deviation:
            self.high, self.since, self.told = [], None, False
            self.recent.append(loss)
            return None
        if self.told:
            self.recent.append(loss)  # in time this is the usual loss
            return None
        self.since = step if self.since is None else self.since
        self.high.append(loss)
        if len(self.high) < self.spike.steps:
            return None
        jump = Jump(self.since, step, loss, usual, deviation)
        self.recent.extend(self.high)
        self.high, self.since, self.told = [], None, True
        return jump

    def _usual(self) -> tuple[float, float]:
        """Median and deviation; infinite while there are too few losses to tell."""
        if len(self.recent) < self.spike.window:
            return math.inf, 0.0
        middle = median(self.recent)
        distance = NORMAL * median(abs(loss - middle) for loss in self.recent)
        return middle, max(distance, LEAST_DEVIATION * abs(middle), 1e-12)

    def state_dict(self) -> dict[str, Any]:
        """As JSON can hold it; a copy, which a save may write while training goes on."""
        return {"recent": list(self.recent), "high": list(self.high), "since": self.since, "told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; with another window, from its end."""
        self.recent = deque(state["recent"], maxlen=self.spike.window)
        self.high, self.since, self.told = list(state["high"]), state["since"], state["told"]
