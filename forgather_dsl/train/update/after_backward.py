"""One update at the end of a step, when all gradients are there: clipped by their global norm, or skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..agreement import Agreed
from ..gradients import clip, squares
from .limiting import Stepping

if TYPE_CHECKING:
    from ..session import Session

__all__ = ["AfterBackward"]


class AfterBackward:
    """Exact with everything, at the price of all gradients at once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stepping = Stepping(session.optimizer, session.parameters, session.experiment)

    def begin(self) -> None:
        """Nothing yet."""

    def squares(self) -> dict[str, Tensor]:
        """Of all gradients, by name."""
        counted = self.session.ranks.counted
        return squares({name: p for name, p in self.session.parameters.items() if name in counted})

    def end(self, agreed: Agreed) -> None:
        """Clip and update if the step is finite; free the gradients."""
        parameters = self.session.parameters.values()
        if agreed.finite:
            clip(parameters, agreed.grad_norm, self.session.experiment.clip_norm)
            self.step()
        for parameter in parameters:
            parameter.grad = None

    def step(self) -> None:
        """One step of the optimizer; a save under way first gets what it has not read yet."""
        self.session.saver.before_update()
        self.stepping.all()
