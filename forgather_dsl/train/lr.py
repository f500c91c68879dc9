"""Learning-rate schedules: a factor over the progress of the run, which is 0 before the first step and 1 at the end.

Progress may be measured in steps, tokens or seconds, so a run on a time budget is annealed as fully as one of fixed length.
"""

from __future__ import annotations

import math


class Constant:
    """Linear warm-up over a share of the run, then 1."""

    def __init__(self, warmup: float) -> None:
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        return _ramp(progress, self.warmup)


class WarmupCosine:
    """Linear warm-up, then half a cosine from 1 to `final`."""

    def __init__(self, warmup: float, final: float) -> None:
        self.warmup, self.final = warmup, final

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return _ramp(progress, self.warmup)
        part = (progress - self.warmup) / max(1e-12, 1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


class WarmupStableDecay:
    """Linear warm-up, a plateau at 1, then a straight line to `final` over the last `decay` of the run."""

    def __init__(self, warmup: float, decay: float, final: float) -> None:
        self.warmup, self.decay, self.final = warmup, decay, final

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return _ramp(progress, self.warmup)
        left = 1 - min(1.0, progress)
        if left >= self.decay:
            return 1.0
        return self.final + (1 - self.final) * left / self.decay


def _ramp(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup > 0 else 1.0
