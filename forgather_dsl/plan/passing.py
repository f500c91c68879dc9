"""Whether gradients stay to the end of a step, or pass: applied or sent to the host as soon as they are complete."""

from __future__ import annotations

from ..specs import Experiment, InBackward
from ..specs.experiment import num_microbatches
from .memory import State

__all__ = ["passes"]


def passes(experiment: Experiment, state: State) -> bool:
    """Whether every backward frees its gradients: they leave for the host, or the one microbatch of a step updates."""
    return state.leaving or (isinstance(experiment.update, InBackward) and num_microbatches(experiment) == 1)
