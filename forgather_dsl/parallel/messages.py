"""The one place where messages are sent: activations to the next stage, gradients to the one before, and what the
shards of a spread head exchange with the last stage.

A `Schedule` fixes which messages each pair of ranks exchanges and in what order, so both ends number them alike: the
number is the tag, and receives are posted in the sender's order (NCCL has no tags and matches by order). A few receives
per pair are posted ahead of need (`lookahead`), each into a tensor of its own that lives as long as the activation does:
a ring of buffers would hold as much and copy. What was sent is let go when an answer shows that it has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from forgather_dsl.parallel.failures import PeerLost
from forgather_dsl.parallel.group import PipelineGroup
from forgather_dsl.parallel.progress import PROGRESS
from forgather_dsl.parallel.route import Message, Route
from forgather_dsl.parallel.staging import Staging, Waitable, copier
from forgather_dsl.plan.occupancy import lookahead

__all__ = ["Message", "Messages", "Route", "Wire"]


class Transfer(NamedTuple):
    """A send or receive under way. `wire` is what is sent or filled: it must stay alive until then."""

    work: Waitable
    wire: torch.Tensor
    target: torch.Tensor
    peer: str

    def wait(self) -> torch.Tensor:
        """Wait until it is done (under NCCL: make the current stream wait); the tensor on its device.

        Raises PeerLost when the other end is gone.
        """
        if PROGRESS.awaited is None:
            PROGRESS.wait(self.peer, "end of a message")
        try:
            self.work.wait()
        except RuntimeError as error:
            raise PeerLost(self.peer, "exchanging a message with it", error) from error
        PROGRESS.resume()
        if self.target is not self.wire:
            self.target.copy_(self.wire, non_blocking=True)  # on the current stream, from pinned memory
        return self.target


class Wire:
    """Point-to-point transfers between the ranks of a pipeline, and one broadcast. Alone: nothing to do."""

    def __init__(self, group: PipelineGroup | None) -> None:
        self.group = group
        self.rank, self.size = (group.rank, group.size) if group else (0, 1)
        self.staging: Staging | None = None  # where tensors are on a GPU and messages go through the host
        ranks = dist.get_process_group_ranks(group.everyone) if group else [0]
        self.names = [f"rank {rank}" for rank in ranks]  # as the launcher numbers them

    def _between(self, source: int, target: int) -> dist.ProcessGroup:
        assert self.group is not None, "one rank has nobody to send to"
        return self.group.up if source < target else self.group.down

    def send(self, tensor: torch.Tensor, target: int, tag: int) -> Transfer:
        """Start sending `tensor` to a rank of the pipeline. Raises PeerLost when that is gone."""
        group = self._between(self.rank, target)
        wire = tensor.detach().contiguous()

        def start(wire: torch.Tensor) -> Waitable:
            try:
                work = dist.isend(wire, group=group, group_dst=target, tag=tag)
            except RuntimeError as error:
                raise PeerLost(self.names[target], "sending to it", error) from error
            assert work is not None  # None is for callers outside the group
            return work

        if staging := self._staging(wire.device):
            send = staging.send(wire, start)
            return Transfer(send, send.host, send.host, self.names[target])
        return Transfer(start(wire), wire, wire, self.names[target])

    def _staging(self, device: torch.device) -> Staging | None:
        if self.staging is None and device != self.group.wire:  # type: ignore[union-attr]
            self.staging = Staging(copier(device))
        return self.staging

    def receive(self, into: torch.Tensor, source: int, tag: int) -> Transfer:
        """Start receiving from a rank of the pipeline into a contiguous tensor. Raises PeerLost when that is gone."""
        group = self._between(source, self.rank)
        staging, here = self._staging(into.device), self.group.wire  # type: ignore[union-attr]
        wire = into if into.device == here else torch.empty_like(into, device=here, pin_memory=True)
        try:
            work = dist.irecv(wire, group=group, group_src=source, tag=tag)
        except RuntimeError as error:
            raise PeerLost(self.names[source], "receiving from it", error) from error
        assert work is not None
        return Transfer(staging.receiving(work) if staging else work, wire, into, self.names[source])

    def broadcast(self, number: int, source: int) -> int:
        """The `number` of rank `source`, on every rank."""
        if self.group is None:
            return number
        if self.staging:
            self.staging.flush()
        tensor = torch.tensor([number], device=self.group.wire)
        PROGRESS.wait(self.names[source], "token")
        try:
            dist.broadcast(tensor, group=self.group.everyone, group_src=source)
        except RuntimeError as error:
            raise PeerLost(self.names[source], "waiting for the token it chose", error) from error
        number = int(tensor.item())
        PROGRESS.resume()
        return number

    def open(self, pairs: Iterable[tuple[int, int]]) -> None:
        """One message each way between every pair: NCCL connects two ranks at their first message in a group, and both
        have to be there (https://github.com/pytorch/pytorch/issues/132852), so all ranks do it in one order before any
        schedule does it in another. Whatever the pairs, a loop's or a V's too, this cannot deadlock: of the pairs that
        are not done the smallest is next for both of its ranks.
        """
        for pair in sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}):
            if self.group is None or self.rank not in pair:
                continue
            peer = pair[0] + pair[1] - self.rank
            token = torch.zeros(1, device=self.group.wire)
            for source in pair:
                transfer = self.send(token, peer, 0) if source == self.rank else self.receive(token, peer, 0)
                transfer.wait()


class _Incoming:
    """What one other rank will send us, and the receives posted for it so far."""

    def __init__(self, source: int, expected: list[Message]) -> None:
        self.source = source
        self.expected = expected
        self.num_posted = 0
        self.posted: dict[Message, Transfer] = {}


class Messages:
    """The messages of one rank during one run.

    `rows[microbatch]` is the `(batch, seq)` of a microbatch; a message is `[batch, seq, dim]` in `dtype` on `device`,
    unless `form` says otherwise. With `until`, actions per rank, only what others send in those is received, up to `release`.
    """

    def __init__(
        self,
        wire: Wire,
        route: Route,
        rows: Sequence[tuple[int, int]],
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        form: Callable[[Message], tuple[tuple[int, ...], torch.dtype] | None] | None = None,
        until: Sequence[int] | None = None,
    ) -> None:
        self.wire, self.route, self.rows, self.until = wire, route, rows, until
        self.dim, self.dtype, self.device, self.form = dim, dtype, device, form
        self.ahead = lookahead(max(batch * seq for batch, seq in rows) * dim * dtype.itemsize)
        self.incoming = {source: _Incoming(source, expected) for source, expected in route.expected.items()}
        self.local: dict[Message, torch.Tensor] = {}
        self.sends: dict[
            int, list[tuple[int, Transfer]]
        ] = {}  # per target, with the position of the action that needs it
        for incoming in self.incoming.values():
            self._post(incoming)

    def _post(self, incoming: _Incoming, wanted: Message | None = None) -> None:
        """Post receives, in the sender's order, until `ahead` are under way and `wanted` is among them."""
        while incoming.num_posted < len(incoming.expected):
            if len(incoming.posted) >= self.ahead and (wanted is None or wanted in incoming.posted):
                return
            message = incoming.expected[incoming.num_posted]
            if self.until is not None and self.route.sources[message][1] >= self.until[incoming.source]:
                return
            into = self._empty(message)
            incoming.posted[message] = self.wire.receive(into, incoming.source, incoming.num_posted)
            incoming.num_posted += 1

    def _empty(self, message: Message) -> torch.Tensor:
        form = self.form(message) if self.form else None
        shape, dtype = form or ((*self.rows[message.microbatch], self.dim), self.dtype)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def send(self, message: Message, tensor: torch.Tensor) -> None:
        """Hand `tensor` to the rank of the message's stage; does not wait."""
        if message not in self.route.targets:
            self.local[message] = tensor
            return
        target, tag, needed_at = self.route.targets[message]
        try:
            transfer = self.wire.send(tensor, target, tag)
        except PeerLost as lost:
            raise lost.within(f"sending it the {message}") from lost.error
        self.sends.setdefault(target, []).append((needed_at, transfer))

    def receive(self, message: Message) -> torch.Tensor:
        """The tensor of `message`; waits for it. Raises PeerLost when its sender is gone."""
        if message in self.local:
            return self.local.pop(message)
        source, sent_at = self.route.sources[message]
        incoming = self.incoming[source]
        try:
            self._post(incoming, message)
            PROGRESS.wait(self.wire.names[source], message)
            tensor = incoming.posted.pop(message).wait()
            self._post(incoming)
        except PeerLost as lost:
            raise lost.within(f"waiting for the {message}") from lost.error
        self._let_go(source, sent_at)
        return tensor

    def _let_go(self, target: int, position: int) -> None:
        """`target` has come to `position` of its actions: what we sent for actions up to there has arrived."""
        sends = self.sends.get(target, [])
        for needed_at, transfer in sends:
            if needed_at <= position:
                transfer.wait()  # does not wait: gloo wants to be asked, NCCL's stream has passed it
        self.sends[target] = [(needed_at, transfer) for needed_at, transfer in sends if needed_at > position]

    def release(self) -> None:
        """From here on everything is received."""
        self.until = None
        for incoming in self.incoming.values():
            self._post(incoming)

    def discard(self) -> None:
        """Receive what others have sent in their actions up to `until`, for nothing, and wait until our sends have arrived."""
        for incoming in self.incoming.values():
            self._post(incoming)
            while incoming.posted:
                incoming.posted.pop(next(iter(incoming.posted))).wait()
                self._post(incoming)
        self.finish()

    def left(self) -> list[str]:
        """Messages received or awaited that nobody has asked for."""
        waiting = [message for incoming in self.incoming.values() for message in incoming.posted]
        unposted = [m for incoming in self.incoming.values() for m in incoming.expected[incoming.num_posted :]]
        return [f"the {message}" for message in (*self.local, *waiting, *unposted)]

    def finish(self) -> None:
        """Wait until every send has arrived."""
        for sends in self.sends.values():
            for _, transfer in sends:
                transfer.wait()
        self.sends = {}
