"""What a run does when training goes wrong: steps that are not finite, and a loss that jumps."""

from __future__ import annotations

from typing import Any

import attrs

from ..dsl import Lazy
from .validators import at_least, positive


class Spike(Lazy[Any]):
    """When a loss counts as a spike: `steps` in a row that lie `threshold` deviations above the median of the last `window`
    losses (deviation: the median distance from the median, scaled as a normal distribution's). With `rollback` the run
    goes back to the last checkpoint and leaves out the data since (as PaLM did, https://arxiv.org/abs/2204.02311, 5.1).
    """

    threshold: float = attrs.field(default=5.0, validator=positive)  # deviations
    steps: int = attrs.field(default=3, validator=at_least(1))  # in a row
    window: int = attrs.field(default=100, validator=at_least(2))  # losses; nothing is judged before there are so many
    rollback: bool = False  # False: it is only said
    max_rollbacks: int = attrs.field(default=3, validator=at_least(1))  # in a run; from then on it is only said


class Guard(Lazy[Any]):
    """A step whose loss or gradient is not finite on any rank is skipped on all; a loss that jumps is said."""

    max_skipped: int = attrs.field(default=3, validator=at_least(1))  # steps in a row; then the run stops
    spike: Spike | None = Spike()
