"""Updates on the host, part by part in the order of a forward pass, while the next step begins.

In: gradients, which stay on the device to the end of the step ("device") or come as each microbatch's backward makes them
("host") and are added in fp32, in the order of microbatches. Out: weights on the device, each part before it is needed. A
worker thread adds, limits and steps; this one computes, and waits where it is ahead. The arithmetic is that of
`AfterBackward` with exact masters, with `BF16(gradients="fp32")` where gradients come early, operation by operation.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...parallel.progress import PROGRESS
from ...parallel.stage import EMBED, END
from ..agreement import Agreed
from ..assembly import leaves
from ..gradients import clip, squares, sum_of_squares
from ..optim.elementwise import AdamWRule
from .host_optimizer import HostOptimizer
from .limiting import Stepping
from .travel import Lane, round_to
from .worker import PIECE, Worker

if TYPE_CHECKING:
    from ..session import Session

__all__ = ["OnHost"]

DOWN, UP = 8, 4  # buffers of each direction
Part = tuple[int, int]  # stage, and part of it


class OnHost:
    """A listener of the pipeline where gradients leave early."""

    def __init__(self, session: Session) -> None:
        assert isinstance(session.optimizer, HostOptimizer)
        self.session, self.optimizer = session, session.optimizer
        device = session.world.device
        self.worker, self.lane_down, self.lane_up = Worker(device), Lane(device, DOWN), Lane(device, UP)
        self.optimizer.settle = self.settle
        self.stepping = Stepping(self.optimizer.inner, self.optimizer.hosts, session.experiment)
        if device.type == "cuda":  # as the device would step: a third of the time, other roundings than the plain one
            for group in self.optimizer.inner.param_groups:
                if isinstance(group.get("rule"), AdamWRule):
                    group["rule"].fused = True
        self.early = leaves(session.experiment)
        hosts = self.optimizer.hosts
        self.sums = {name: torch.empty_like(p, requires_grad=False) for name, p in hosts.items()} if self.early else {}
        largest = 0 if self.early else max((p.numel() for p in hosts.values()), default=0)
        self._gradient = torch.empty(largest)  # of one parameter at a time
        self._embedding = ""
        self._begun: set[tuple[str, int]] = set()  # sums, by name and first number, that this step has something in
        self._squares: dict[str, Tensor] = {}
        self._before: list[tuple[Tensor, Any]] = []  # gradients on their way, and when they have left
        self._updated: dict[Part, tuple[threading.Event, list[Any]]] = {}
        self.order = self._listen()
        if self.early:
            session.pipeline.listener = self

    def _listen(self) -> dict[Part, list[str]]:
        """Names by part, in the order of a forward; stages ask for their weights from here on."""
        order: dict[Part, list[str]] = {}
        pipeline = self.session.pipeline
        for index, stage in sorted(pipeline.stages.items()):
            stage.needed = partial(self._needed, index)
            for part, parameters in stage.parts().items():
                order[index, part] = [name for name, _ in parameters]
            if stage.tied and stage.first:
                named = {name for names in order.values() for name in names}
                order[index, EMBED] = [name for name, _ in stage.named_parameters() if name not in named]
            elif self.early and stage.first:
                stage.gradients.add_rows = self._rows
                self._embedding = order[index, EMBED][0]
        if pipeline.shard is not None:
            pipeline.shard.needed = partial(self._needed, pipeline.shard.index)
            order[pipeline.shard.index, END] = [pipeline.shard.name]
        return {part: [name for name in names if name in self.optimizer.hosts] for part, names in order.items()}

    def begin(self) -> None:
        """Nothing of the last step's gradients counts any more."""
        self.worker.check()

    def arrived(self, names: Sequence[str], last: bool) -> None:
        """One microbatch's gradients of a part start for the host; those of the part before have left by the next kernel."""
        self._left(wait=bool(names))
        after = self.lane_down.mark()
        for name in names:
            gradient, self.session.parameters[name].grad = self.session.parameters[name].grad, None
            if gradient is not None:
                self._leave(name, gradient, after)
            if last and name in self.optimizer.hosts and self.session.ranks.first:
                self.worker.put(partial(self._square, name))

    def _left(self, wait: bool) -> None:
        """Let go of gradients on their way: the next kernels wait for them, or their memory does."""
        for gradient, done in self._before:
            if wait and done is not None:
                torch.cuda.current_stream(gradient.device).wait_event(done)
            else:
                self.lane_down.let_go(gradient)
        self._before.clear()

    def _leave(self, name: str, gradient: Tensor, after: Any) -> None:
        done = None
        for start, piece in self.lane_down.pieces(gradient):
            buffer, there, done = self.lane_down.down(piece, after)
            self.worker.put(partial(_when, done, self._add, name, start, there), partial(self._give, buffer))
        self._before.append((gradient, done))

    def _rows(self, weight: nn.Parameter, ids: Tensor, rows: Tensor) -> None:
        """An embedding's gradient is its rows: `ids [...]`, `rows [..., dim]`. The host adds them as the device would."""
        name = self._embedding
        ids, rows, after = ids.flatten(), rows.flatten(0, -2), self.lane_down.mark()
        each = max(1, 4 * PIECE // (rows.shape[1] * max(rows.element_size(), 8)))
        for start in range(0, len(ids), each):
            part = slice(start, start + each)
            first, where, _ = self.lane_down.down(ids[part], after)
            second, what, done = self.lane_down.down(rows[part].reshape(-1), after)
            self.worker.put(partial(_when, done, self._add_rows, name, where, what), partial(self._give, first, second))
            self._before.append((rows, done))

    def _give(self, *buffers: Tensor) -> None:
        for buffer in buffers:
            self.lane_down.buffers.give(buffer)

    def _add(self, name: str, start: int, piece: Tensor) -> None:
        total = self.sums[name].view(-1)[start : start + len(piece)]
        if (name, start) in self._begun:
            total.add_(piece)
        else:
            total.copy_(piece)
            self._begun.add((name, start))
            self.optimizer.hosts[name].grad = self.sums[name]

    def _add_rows(self, name: str, ids: Tensor, rows: Tensor) -> None:
        total = self.sums[name]
        if (name, 0) not in self._begun:
            total.zero_()
            self._begun.add((name, 0))
            self.optimizer.hosts[name].grad = total
        total.index_add_(0, ids, rows.view(len(ids), -1).to(total.dtype))

    def squares(self) -> dict[str, Tensor]:
        """Of all gradients, by name, when the last has come; a tied embedding's comes now."""
        if not self.early:
            return squares(self.session.parameters) if self.session.ranks.first else {}
        self.arrived(list(self.session.parameters), last=True)
        self.arrived([], last=True)
        PROGRESS.mark("waiting for gradients to be added on the host")
        self.worker.wait()
        return self._squares

    def _square(self, name: str) -> None:
        gradient = self.optimizer.hosts[name].grad
        if gradient is not None and name not in self._squares:
            self._squares[name] = sum_of_squares(gradient)

    def end(self, agreed: Agreed) -> None:
        """Have the worker update if the step is finite; the gradients are its own then."""
        if agreed.finite:
            self.session.saver.before_update()
            self._begin_update(agreed.grad_norm)
        elif self.early:
            for host in self.optimizer.hosts.values():
                host.grad = None
        for parameter in self.session.parameters.values():
            parameter.grad = None
        self._begun.clear()
        self._squares = {}

    def step(self) -> None:
        """Not apart from the end of a step. Raises RuntimeError."""
        raise RuntimeError("OnHost updates at the end of a step, with what all ranks agree on")

    def _begin_update(self, norm: float) -> None:
        limit = self.session.experiment.clip_norm
        scale, gradients = None, dict[str, Tensor]()
        if self.early:
            scale = limit / norm if limit is not None and norm > limit else None
        else:  # in the format that they have there, as without a host
            clip(self.session.parameters.values(), norm, limit)
            gradients = {name: p.grad for name, p in self.session.parameters.items() if p.grad is not None}
        self.worker.wait()
        self.optimizer.take_rates()
        after = self.lane_up.mark()
        for part, names in self.order.items():
            there, events = threading.Event(), []
            self._updated[part] = there, events
            given = {name: gradients.pop(name) for name in names if name in gradients}
            self.worker.put(partial(self._update, names, given, scale, after, events), there.set)

    def _update(
        self, names: Sequence[str], gradients: dict[str, Tensor], scale: float | None, after: Any, events: list[Any]
    ) -> None:
        """The worker's: one part, to its weights on the device; `events` gets those of their arrival."""
        for name in names:
            host = self.optimizer.hosts[name]
            if name in gradients:
                host.grad = self._bring(gradients.pop(name), after).view_as(host)
            if host.grad is None:
                continue
            if scale is not None:
                host.grad.mul_(scale)
            self.stepping.one(name)
            host.grad = None
            master = host.detach().view(-1)
            for start, piece in self.lane_up.pieces(self.optimizer.parameters[name]):
                done = self.lane_up.up(piece, after, partial(round_to, master[start : start + len(piece)]))
                events[:] = [done]

    def _bring(self, gradient: Tensor, after: Any) -> Tensor:
        """A gradient in fp32 on the host, in memory that serves the next one too; a few pieces are on their way at a time."""
        into = self._gradient[: gradient.numel()]
        flying: deque[tuple[int, tuple[Tensor, Tensor, Any]]] = deque()
        for start, piece in self.lane_down.pieces(gradient):
            if len(flying) == DOWN - 1:
                self._land(into, *flying.popleft())
            flying.append((start, self.lane_down.down(piece, after)))
        while flying:
            self._land(into, *flying.popleft())
        return into

    def _land(self, into: Tensor, start: int, piece: tuple[Tensor, Tensor, Any]) -> None:
        buffer, there, done = piece
        _when(done, into[start : start + len(there)].copy_, there)
        self.lane_down.buffers.give(buffer)

    def _needed(self, stage: int, part: int) -> None:
        """Before a part's forward: wait until its weights are there, on the device itself where it is a GPU."""
        there, events = self._updated.pop((stage, part), (None, []))
        if there is None:
            return
        if not there.is_set():
            PROGRESS.mark("waiting for the host to update")
            there.wait()
        self.worker.check()
        for done in events:
            if done is not None:
                torch.cuda.current_stream(self.session.world.device).wait_event(done)

    def settle(self) -> None:
        """Wait until nothing is under way, on the host or on the device."""
        self.worker.wait()
        self.lane_up.wait()


def _when(event: Any, job: Callable[..., Any], *arguments: Any) -> None:
    """Do a job once an event has passed, if there is one."""
    if event is not None:
        event.synchronize()
    job(*arguments)
