"""One run of one rank's actions: what each letter of a schedule does, and what is alive meanwhile.

In: the actions, the stages, the messages, tokens per microbatch, and how a microbatch goes forward through a stage.
Out: outputs of the last stage per microbatch, seconds per action. An action's clock starts when its input is there,
so waiting counts as bubble. Raises RuntimeError naming what is left over at the end.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from forgather_dsl.parallel.arrivals import Arrivals, Listener
from forgather_dsl.parallel.failures import ActionFailed, PeerLost
from forgather_dsl.parallel.messages import Message, Messages
from forgather_dsl.parallel.progress import PROGRESS
from forgather_dsl.parallel.shard import HeadShard
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.weight_gradients import Owed, WeightGradients
from forgather_dsl.plan.schedules import Action

__all__ = ["Execution", "Forward", "Guess", "Ran", "Timing"]

Forward = Callable[[Stage, torch.Tensor, int], torch.Tensor]
"""(stage, input, microbatch) to the stage's output: an activation, or what the last stage makes of it."""


@dataclass(frozen=True)
class Timing:
    """What one rank did during a step: seconds per action, and of the whole."""

    actions: dict[Action, float]
    span: float
    """From entering the step to having nothing left to do."""

    @property
    def busy(self) -> float:
        """Seconds spent in actions."""
        return sum(self.actions.values())

    @property
    def bubble(self) -> float:
        """Share of the step in which this rank waited."""
        return max(0.0, 1 - self.busy / self.span) if self.span else 0.0


class Ran(Protocol):
    """A run that is over."""

    outputs: dict[int, torch.Tensor]
    """Of the last stage, by microbatch."""

    def timing(self) -> Timing:
        """Seconds per action and of the whole."""
        ...


class Guess(Protocol):
    """Weights updated before it was known how."""

    def holds(self) -> bool:
        """Waits until it is known; whether the weights are right. The same on all ranks."""
        ...

    def undo(self) -> None:
        """Make the weights right."""
        ...


class Clock:
    """Points in time: of the host, or on a GPU of its stream, which runs behind the host."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def now(self) -> Any:
        """A point in time, for `seconds`."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two points in time; waits for the GPU to reach the second."""
        if not self.cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3


class Execution:
    """State of one run. `loss_gradient` is what the backward of each microbatch's loss starts from; `listener` is told of
    gradients as they arrive."""

    def __init__(
        self,
        stages: Mapping[int, Stage],
        messages: Messages,
        tokens: Sequence[torch.Tensor],
        forward: Forward,
        loss_gradient: float,
        listener: Listener | None = None,
    ) -> None:
        self.stages, self.messages, self.tokens = stages, messages, tokens
        self.arrivals = {i: Arrivals(s, listener, len(tokens)) for i, s in stages.items()} if listener else {}
        for stage in stages.values():
            stage.tells = listener is not None and torch.is_grad_enabled()
        self.forward, self.loss_gradient = forward, loss_gradient
        self.outputs: dict[int, torch.Tensor] = {}
        self.alive: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}  # inputs and outputs, F to B or I
        self.owed: dict[tuple[int, int], Owed] = {}  # weight gradients, I to W
        self.clock = Clock(messages.device)
        self._marks: dict[Action, tuple[Any, Any]] = {}  # start and end
        self._started = self._begin = self._end = self.clock.now()

    def run(self, actions: Iterable[Action], warm_up: int = 0, holds: Callable[[], bool] | None = None) -> bool:
        """Run the actions in order, then see that nothing is left over.

        After `warm_up` of them, `holds` is asked whether the weights are right. If not, what was done is dropped, and
        False returned: nothing has gone backward yet.

        Raises ActionFailed for an action that raises, PeerLost when a message's other end is gone.
        """
        self._begin = self.clock.now()
        PROGRESS.run = weakref.ref(self)
        table = {"F": self._forward, "B": self._backward, "I": self._backward, "W": self._weights}
        for number, action in enumerate(actions):
            if holds is not None and number == warm_up and not self._go_on(holds):
                return False
            PROGRESS.mark(action)
            try:
                table[action.kind](action)
            except PeerLost as lost:
                raise lost.within(f"{lost.doing}, in action {action}") from lost.error
            except Exception as error:
                raise ActionFailed(self._part(action.stage), action, error) from error
            self._marks[action] = (self._started, self.clock.now())
        PROGRESS.mark("the end of the actions")
        self._conclude()
        self._check_nothing_left()
        self.messages.finish()
        self._end = self.clock.now()
        return True

    def _go_on(self, holds: Callable[[], bool]) -> bool:
        if holds():
            self.messages.release()
            return True
        self.alive.clear()
        self.outputs.clear()
        self.messages.discard()
        return False

    def timing(self) -> Timing:
        """Seconds per action and of the run. On a GPU this waits for it to finish."""
        seconds = {action: self.clock.seconds(*marks) for action, marks in self._marks.items()}
        return Timing(seconds, self.clock.seconds(self._begin, self._end))

    def described(self, action: Action) -> str:
        """For the watchdog's line."""
        return f"action {action} ({self._part(action.stage).described}, microbatch {action.microbatch})"

    def on_device(self) -> tuple[int, Action | None, bool]:
        """How many actions a GPU has finished, the one it is at, and whether that has begun or waits for its message."""
        marks = list(self._marks.items()) if self.clock.cuda else []
        for number, (action, (start, end)) in enumerate(marks):
            if not end.query():
                return number, action, start.query()
        return len(marks), None, False

    def awaits(self, action: Action) -> tuple[str, Message] | None:
        """The rank and the message that an action waits for; None when it takes none from another rank."""
        kind = "activation" if action.kind == "F" else "gradient"
        message = Message(kind, action.stage, action.microbatch)
        source = self.messages.route.sources.get(message)
        return None if source is None else (self.messages.wire.names[source[0]], message)

    def _forward(self, action: Action) -> None:
        stage, k = self.stages[action.stage], action.microbatch
        training = torch.is_grad_enabled()
        if stage.first:
            x = self.tokens[k]
        else:
            x = self.messages.receive(Message("activation", action.stage, k)).requires_grad_(training)
        self._started = self.clock.now()
        y = self.forward(stage, x, k)
        self._hand_on(stage, y, k)
        if training:
            self.alive[action.stage, k] = x, y

    def _hand_on(self, stage: Stage, y: torch.Tensor, k: int) -> None:
        """What becomes of a stage's output."""
        if stage.last:
            self.outputs[k] = y.detach()
        else:
            self.messages.send(Message("activation", stage.index + 1, k), y.detach())

    def _backward(self, action: Action) -> None:
        stage, k = self.stages[action.stage], action.microbatch
        x, y = self.alive.pop((action.stage, k))
        gradient = self._gradient(stage, y, k)
        stage.gradients.deferring = action.kind == "I"
        arrivals = self.arrivals.get(action.stage)
        with arrivals.backward(k, action.kind == "B") if arrivals else nullcontext():
            if y.requires_grad:  # not when all of the first stage is frozen
                torch.autograd.backward(y, gradient)
        if action.kind == "I":
            self.owed[action.stage, k] = stage.gradients.take()
        if not stage.first:
            assert x.grad is not None  # a stage's output depends on its input
            self.messages.send(Message("gradient", action.stage - 1, k), x.grad)

    def _gradient(self, stage: Stage, y: torch.Tensor, k: int) -> torch.Tensor:
        """The gradient of a stage's output; the clock starts when it is there."""
        gradient = None if stage.last else self.messages.receive(Message("gradient", stage.index, k))
        self._started = self.clock.now()
        return torch.full_like(y, self.loss_gradient) if gradient is None else gradient

    def _weights(self, action: Action) -> None:
        self._started = self.clock.now()
        owed, arrivals = self.owed.pop((action.stage, action.microbatch)), self.arrivals.get(action.stage)
        if arrivals is None:
            WeightGradients.settle(owed)
            return
        with arrivals.weights(action.microbatch) as settled:
            WeightGradients.settle(owed, settled)

    def _part(self, stage: int) -> Stage | HeadShard:
        return self.stages[stage]

    def _conclude(self) -> None:
        """What is to do after the last action: nothing here."""

    def _check_nothing_left(self) -> None:
        left = [f"the activations of {Action(stage, 'F', k)}" for stage, k in self.alive]
        left += [f"the weight gradients of {Action(stage, 'W', k)}" for stage, k in self.owed]
        left += [
            f"{len(s.gradients.owed)} weight gradients of no action" for s in self.stages.values() if s.gradients.owed
        ]
        left += self.messages.left()
        if left:
            raise RuntimeError(f"rank {self.messages.wire.rank} ends its actions with {', '.join(left)} left over")
