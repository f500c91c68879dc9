"""What an update does to a device's memory while a step runs, for exact runs: in the backward pass, or on the host.

In: an experiment and its pipeline on tensors of which only sizes count. Out: a listener that updates, or frees what would be
on its way to the host. Staging buffers, masters and sums are in the host's memory, so nothing of them is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..parallel.arrivals import Listener
from ..parallel.interpreter import Pipeline
from ..specs import Experiment, InBackward
from .assembly import leaves
from .live import LiveBytes

__all__ = ["listener"]


def listener(experiment: Experiment, pipeline: Pipeline, optimizer: Any, live: LiveBytes) -> Listener | None:
    """None where everything waits for the end of the step."""
    parameters = dict(pipeline.named_parameters())
    if leaves(experiment):
        for stage in pipeline.stages.values():
            if stage.first and not stage.tied:
                stage.gradients.add_rows = lambda *_: None
        return _Leaving(parameters)
    return _Updating(parameters, optimizer, live) if isinstance(experiment.update, InBackward) else None


class _Updating:
    """As train/update/in_backward.py."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: Any, live: LiveBytes) -> None:
        self.parameters, self.optimizer, self.live = parameters, optimizer, live

    def arrived(self, names: Sequence[str], last: bool) -> None:
        """Update and free."""
        with self.live.during("optimizer"):
            for name in names if last else ():
                if self.parameters[name].grad is not None:
                    self.optimizer.step_one(name)
                    self.parameters[name].grad = None


class _Leaving:
    """As train/update/on_host.py: what is on its way stays until the next part has arrived, or the action is over."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._before: list[Tensor] = []

    def arrived(self, names: Sequence[str], last: bool) -> None:
        """Let the ones before go."""
        gradients = [self.parameters[name].grad for name in names]
        self._before = [gradient for gradient in gradients if gradient is not None]
        for name in names:
            self.parameters[name].grad = None
