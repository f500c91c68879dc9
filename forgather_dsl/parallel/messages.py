"""The one place where messages are sent: activations to the next stage, gradients to the one before.

A `Schedule` fixes which messages each pair of ranks exchanges and in what order, so both ends number them alike: the
number is the tag, and receives are posted in the sender's order (NCCL has no tags and matches by order). A few receives
per pair are posted ahead of need, each into a tensor of its own, which then lives as long as the activation does.
Stages on one rank hand tensors over directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from forgather_dsl.parallel.group import PipelineGroup
from forgather_dsl.plan.schedules import Action, Schedule

__all__ = ["Message", "Messages", "Wire"]

LOOKAHEAD = 2  # receives posted per pair of ranks before they are asked for


class Message(NamedTuple):
    """An activation or gradient for `stage`."""

    kind: Literal["activation", "gradient"]
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind} of microbatch {self.microbatch} for stage {self.stage}"


class Transfer(NamedTuple):
    """A send or receive under way. `wire` is what is sent or filled: it must stay alive until then."""

    work: dist.Work
    wire: torch.Tensor
    target: torch.Tensor

    def wait(self) -> torch.Tensor:
        """Wait until it is done (under NCCL: make the current stream wait); the tensor on its device."""
        self.work.wait()
        if self.target is not self.wire:
            self.target.copy_(self.wire)
        return self.target


class Wire:
    """Point-to-point transfers between the ranks of a pipeline, and one broadcast. Alone: nothing to do."""

    def __init__(self, group: PipelineGroup | None) -> None:
        self.group = group
        self.rank = group.rank if group else 0

    def _between(self, source: int, target: int) -> dist.ProcessGroup:
        assert self.group is not None, "one rank has nobody to send to"
        return self.group.up if source < target else self.group.down

    def send(self, tensor: torch.Tensor, target: int, tag: int) -> Transfer:
        """Start sending `tensor` to a rank of the pipeline."""
        group = self._between(self.rank, target)
        wire = tensor.detach().to(self.group.wire).contiguous()  # type: ignore[union-attr]
        work = dist.isend(wire, group=group, group_dst=target, tag=tag)
        assert work is not None  # None is for callers outside the group
        return Transfer(work, wire, wire)

    def receive(self, into: torch.Tensor, source: int, tag: int) -> Transfer:
        """Start receiving from a rank of the pipeline into a contiguous tensor."""
        group = self._between(source, self.rank)
        wire = into if into.device == self.group.wire else torch.empty_like(into, device=self.group.wire)  # type: ignore[union-attr]
        work = dist.irecv(wire, group=group, group_src=source, tag=tag)
        assert work is not None
        return Transfer(work, wire, into)

    def broadcast(self, number: int, source: int) -> int:
        """The `number` of rank `source`, on every rank."""
        if self.group is None:
            return number
        tensor = torch.tensor([number], device=self.group.wire)
        dist.broadcast(tensor, group=self.group.everyone, group_src=source)
        return int(tensor.item())

    def open(self, pairs: Iterable[tuple[int, int]]) -> None:
        """One message each way between every pair: NCCL connects two ranks at their first message, and both have
        to be there, so all ranks do it in one order before any schedule does it in another."""
        for pair in sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}):
            if self.group is None or self.rank not in pair:
                continue
            peer = pair[0] + pair[1] - self.rank
            token = torch.zeros(1, device=self.group.wire)
            for source in pair:
                transfer = self.send(token, peer, 0) if source == self.rank else self.receive(token, peer, 0)
                transfer.wait()


def _messages(schedule: Schedule, source: int, target: int) -> list[Message]:
    """What rank `source` sends to rank `target`, in order; the position of a message is its tag."""
    sent = filter(None, (_result(action, schedule) for action in schedule.actions[source]))
    return [message for message in sent if schedule.placement[message.stage] == target]


def _result(action: Action, schedule: Schedule) -> Message | None:
    if action.kind == "F" and action.stage < schedule.num_stages - 1:
        return Message("activation", action.stage + 1, action.microbatch)
    if action.kind in "BI" and action.stage > 0:
        return Message("gradient", action.stage - 1, action.microbatch)
    return None


class _Incoming:
    """What one other rank will send us, and the receives posted for it so far."""

    def __init__(self, source: int, expected: list[Message]) -> None:
        self.source = source
        self.expected = expected
        self.num_posted = 0
        self.posted: dict[Message, Transfer] = {}


class Messages:
    """The messages of one rank during one run of `schedule`.

    `rows[microbatch]` is the `(batch, seq)` of a microbatch; a message is `[batch, seq, dim]` in `dtype` on `device`.
    """

    def __init__(
        self, wire: Wire, schedule: Schedule, rows: Sequence[tuple[int, int]], dim: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.wire, self.schedule, self.rows = wire, schedule, rows
        self.dim, self.dtype, self.device = dim, dtype, device
        others = [rank for rank in range(schedule.num_ranks) if rank != wire.rank]
        self.incoming = [_Incoming(rank, _messages(schedule, rank, wire.rank)) for rank in others]
        self.sources = {message: incoming for incoming in self.incoming for message in incoming.expected}
        self.tags = {
            message: tag for rank in others for tag, message in enumerate(_messages(schedule, wire.rank, rank))
        }
        self.local: dict[Message, torch.Tensor] = {}
        self.sends: list[Transfer] = []
        for incoming in self.incoming:
            self._post(incoming)

    def _post(self, incoming: _Incoming, wanted: Message | None = None) -> None:
        """Post receives, in the sender's order, until LOOKAHEAD are under way and `wanted` is among them."""
        while incoming.num_posted < len(incoming.expected):
            if len(incoming.posted) >= LOOKAHEAD and (wanted is None or wanted in incoming.posted):
                return
            message = incoming.expected[incoming.num_posted]
            into = torch.empty(*self.rows[message.microbatch], self.dim, dtype=self.dtype, device=self.device)
            incoming.posted[message] = self.wire.receive(into, incoming.source, incoming.num_posted)
            incoming.num_posted += 1

    def send(self, message: Message, tensor: torch.Tensor) -> None:
        """Hand `tensor` to the rank of the message's stage; does not wait."""
        target = self.schedule.placement[message.stage]
        if target == self.wire.rank:
            self.local[message] = tensor
            return
        # gloo says so only after wait(): there, what is sent lives until the end of the run
        self.sends = [send for send in self.sends if not send.work.is_completed()]
        self.sends.append(self.wire.send(tensor, target, self.tags[message]))

    def receive(self, message: Message) -> torch.Tensor:
        """The tensor of `message`; waits for it."""
        if message in self.local:
            return self.local.pop(message)
        incoming = self.sources[message]
        self._post(incoming, message)
        tensor = incoming.posted.pop(message).wait()
        self._post(incoming)
        return tensor

    def left(self) -> list[str]:
        """Messages received or awaited that nobody has asked for."""
        waiting = [message for incoming in self.incoming for message in incoming.posted]
        unposted = [message for incoming in self.incoming for message in incoming.expected[incoming.num_posted :]]
        return [f"the {message}" for message in (*self.local, *waiting, *unposted)]

    def finish(self) -> None:
        """Wait until every send has arrived."""
        for send in self.sends:
            send.wait()
        self.sends = []
