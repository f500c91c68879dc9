"""What rounding weights to nearest loses, measured and told: in the first update, and in the first at the full learning rate.

A weight in bfloat16 has steps of a 128th to a 256th of itself, and an update of less than half a step is lost.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .optim import Engine

if TYPE_CHECKING:
    from .session import Session

__all__ = ["LostUpdates"]

FULL = 0.99  # of the peak learning rate


class LostUpdates:
    """Of one run, the same on every rank; does nothing where weights are not rounded to nearest."""

    def __init__(self, session: Session) -> None:
        self.session = session
        rounds = getattr(session.experiment.precision, "rounding", "exact") == "nearest"
        self._left = ["first", "full"] if rounds and isinstance(session.optimizer, Engine) else []
        self.pending = False
        self._factor = 0.0

    def watch(self, factor: float) -> None:
        """Measure the next update, if it is one to be told of; `factor` of the peak learning rate."""
        if self._left and not self.pending and (self._left[0] == "first" or factor >= FULL):
            self.pending, self._factor = True, factor
            self.session.optimizer.watch()  # type: ignore[union-attr]

    def tell(self) -> None:
        """Say what was measured since. All ranks must call it."""
        if not self.pending:
            return
        session, self.pending = self.session, False
        mine = session.optimizer.moved() if session.ranks.first else None  # type: ignore[union-attr]
        everyone = [counts for counts in session.ranks.gather(mine) if counts is not None]
        total, moved, wanted, applied = (sum(column) for column in zip(*everyone))
        if not wanted:  # a step that was skipped: the next one, then
            return
        self._left = [] if self._factor >= FULL else ["full"]
        lr = session.experiment.optimizer.lr * self._factor
        if session.ranks.rank == 0:
            print(
                f"warning: weights are rounded to nearest: the update of step {session.step}, at a learning rate of {lr:.3g}, "
                f"moved {moved / total:.1%} of them, and {applied / wanted:.1%} of the movement was applied, the rest is lost; "
                'BF16() keeps all of it, BF16(rounding="stochastic") does on average and takes no more memory',
                file=sys.stderr,
                flush=True,
            )
