"""Which way of applying a step an experiment has asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ...specs import InBackward, OnHost
from ..agreement import Agreed
from .after_backward import AfterBackward
from .in_backward import InBackward as WhileBackward
from .on_host import OnHost as AtHost

if TYPE_CHECKING:
    from ..session import Session

__all__ = ["Applied", "make_update"]


class Applied(Protocol):
    """What the loop asks for in every step, in this order."""

    def begin(self) -> None:
        """A step begins: the learning rate is set, nothing has been computed."""
        ...

    def squares(self) -> dict[str, Tensor]:
        """After the last backward: the sum of squares of every gradient of this rank, by name."""
        ...

    def end(self, agreed: Agreed) -> None:
        """Update, unless that is done already or the step is not finite; nothing is left of the gradients."""
        ...

    def step(self) -> None:
        """Update with the gradients as they are."""
        ...


def make_update(session: Session) -> Applied:
    """For a session that has everything else."""
    if isinstance(session.experiment.update, InBackward):
        return WhileBackward(session)
    if isinstance(session.experiment.update, OnHost):
        return AtHost(session)
    return AfterBackward(session)
