"""How a step is applied: after the backward pass, in it, or on the host (`Experiment.update`)."""

from .applying import Applied, make_update

__all__ = ["Applied", "make_update"]
