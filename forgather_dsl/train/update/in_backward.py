"""Updates a layer as soon as its last gradient of a step is there, and frees that gradient.

In: arrivals of gradients (`parallel.arrivals`): in the last microbatch of a step, when nothing reads the weights any more.
Out: the bits of one update at the end. A stage's forwards and backwards each run in the order of microbatches (validity.py
checks it), so all its forwards come before its last backward whatever the schedule. A tied embedding is updated at the end.
What cannot be taken back cannot be skipped: a step that is not finite ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...errors import UserError
from ..agreement import Agreed
from ..gradients import sum_of_squares
from .limiting import Stepping

if TYPE_CHECKING:
    from ..session import Session

__all__ = ["InBackward"]


class InBackward:
    """A listener of the pipeline."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stepping = Stepping(session.optimizer, session.parameters, session.experiment)
        self._squares: dict[str, Tensor] = {}
        session.pipeline.listener = self

    def begin(self) -> None:
        """A save under way first gets what it has not read yet: the first update may come before the step's end."""
        self._squares = {}
        self.session.saver.before_update()

    def arrived(self, names: Sequence[str], last: bool) -> None:
        """Update them, if nothing will follow."""
        if not last:
            return
        for name in names:
            self._apply(name, self.session.parameters[name])

    def _apply(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._squares[name] = sum_of_squares(parameter.grad)
            self.stepping.one(name)
            parameter.grad = None

    def squares(self) -> dict[str, Tensor]:
        """Of all gradients, by name; what has not been updated yet, a tied embedding, is now."""
        self.step()
        return self._squares

    def step(self) -> None:
        """Update what is left."""
        for name, parameter in self.session.parameters.items():
            self._apply(name, parameter)

    def end(self, agreed: Agreed) -> None:
        """Nothing is left to update.

        Raises:
            UserError: the step was not finite (exit code 4).
        """
        if not agreed.finite:
            raise UserError(
                f"step {self.session.step + 1} is not finite (loss sum {agreed.loss_sum:.4g}, grad norm "
                f"{agreed.grad_norm:.4g}; first: {self.session.guards.first_bad(agreed)}), and update = InBackward() has "
                "changed weights with it already, so it cannot be skipped; go on from the last checkpoint with "
                "update = AfterBackward(), which skips such steps, or with a lower optimizer.lr",
                exit_code=4,
            )
