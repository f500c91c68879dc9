"""When the gradients of a stage's parameters are there, part by part, while a backward pass goes on.

In: a stage and somebody who listens. Out: the names of parameters, each once per microbatch, as soon as nothing of this
microbatch will read their weights again or add to their gradients: after B of the layer they are in, after W for the
weights of deferred layers, else after I. A tied weight never arrives: its two gradients meet after the last backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch.nn as nn

from forgather_dsl.parallel.deferred import DeferredEmbedding, DeferredLinear
from forgather_dsl.parallel.stage import Stage

__all__ = ["Arrivals", "Listener"]


class Listener(Protocol):
    """Somebody who does something with gradients before the step is over."""

    def arrived(self, names: Sequence[str], last: bool) -> None:
        """These parameters' gradients of one microbatch are in `.grad`, where they have one; `last`: no other will follow.
        No names: an action is over.
        """
        ...


class Arrivals:
    """What arrives on one stage. Microbatches go backward in order, so the last of `count` is the last to arrive."""

    def __init__(self, stage: Stage, listener: Listener, count: int) -> None:
        self.stage, self.listener, self.count = stage, listener, count
        late = {
            id(layer.weight)
            for layer in stage.model.modules()
            if isinstance(layer, (DeferredLinear, DeferredEmbedding))
        }
        self.parts = stage.parts()
        self.late = {p: name for part in self.parts.values() for name, p in part if id(p) in late}
        self.at_once = [name for part in self.parts.values() for name, p in part if id(p) not in late]

    @contextmanager
    def backward(self, microbatch: int, whole: bool) -> Iterator[None]:
        """Around B (`whole`) or I of a microbatch."""
        last = microbatch == self.count - 1
        waiting = dict(self.parts)

        def passed(part: int) -> None:
            self.listener.arrived([name for name, _ in waiting.pop(part)], last)

        self.stage.passed = passed if whole else None
        try:
            yield
        finally:
            self.stage.passed = None
        if not whole:
            self.listener.arrived(self.at_once, last)
            self.listener.arrived(list(self.late.values()), last=False)  # a loss may add to its head's before W
        for part in reversed(waiting) if whole else ():  # the embedding, and what a frozen part hides
            self.listener.arrived([name for name, _ in self.parts[part]], last)
        self.listener.arrived([], last)

    @contextmanager
    def weights(self, microbatch: int) -> Iterator[Callable[[nn.Parameter], None]]:
        """Around W of a microbatch: what to call with each parameter that is done."""
        last = microbatch == self.count - 1
        waiting = dict(self.late)

        def settled(parameter: nn.Parameter) -> None:
            name = waiting.pop(parameter, None)
            if name is not None:
                self.listener.arrived([name], last)

        yield settled
        if waiting:
            self.listener.arrived(list(waiting.values()), last)
        self.listener.arrived([], last)
