"""Running a schedule whose output head is spread over the ranks: what its shards and the last stage send one another.

In: as for `Execution`, and the targets of every microbatch, which all ranks know. Out: the loss of every microbatch on the
rank of the last stage; without targets, the logits. The last stage's forward sends its normed hidden states to every
shard, each shard's F answers with a `Partial`, the last stage's B or I combines them and tells the shards the
normaliser, which their W takes. In a run of forwards alone the parts are combined at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from forgather_dsl.parallel.arrivals import Listener
from forgather_dsl.parallel.execution import Execution, Forward
from forgather_dsl.parallel.messages import Message, Messages
from forgather_dsl.parallel.shard import Combined, HeadShard, Partial, Targets, combine, rows_of, valid_tokens
from forgather_dsl.parallel.stage import END, Stage
from forgather_dsl.plan.schedules import Action, Schedule

__all__ = ["Spread", "SpreadExecution"]


class Spread:
    """The head of one run: which rows each shard has, the targets, and so the sizes of all messages.

    `targets[k] [batch, seq]` are those of microbatch `k`, on the host; None to generate, where the last position alone
    counts. Raises ValueError for a target outside the vocabulary.
    """

    def __init__(
        self,
        schedule: Schedule,
        shard: HeadShard,
        targets: Sequence[torch.Tensor] | None,
        loss_gradient: float,
    ) -> None:
        self.last, self.shards = schedule.num_stages - 1, schedule.shards
        self.device, self.dtype = shard.device, shard.dtype
        self.rows = {s: rows_of(shard.vocab_size, s - schedule.num_stages, len(self.shards)) for s in self.shards}
        self.training, self.loss_gradient = torch.is_grad_enabled(), loss_gradient
        self.dim = shard.dim if self.training else 0
        self.whole_dim = shard.dim
        self.targets: list[dict[int, Targets]] = []
        self.valid: list[torch.Tensor] = []
        for part in targets or ():
            self.targets.append({s: Targets.of(part, rows, self.device) for s, rows in self.rows.items()})
            self.valid.append(valid_tokens(part, self.device))
            known = sum(len(found.positions) for found in self.targets[-1].values())
            if known != int(self.valid[-1].sum()):
                raise ValueError(f"a target is outside the {shard.vocab_size} rows of the head")

    def form(self, message: Message) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Shape and dtype of a message of the head's; None for the others."""
        k = message.microbatch
        if message.kind == "normaliser":
            return (len(self.valid[k]),), torch.float32
        if message.kind == "partial" and not self.targets:
            assert message.shard is not None  # every partial has one
            return (1, 1, len(self.rows[message.shard])), self.dtype
        if message.kind == "partial":
            assert message.shard is not None
            n = len(self.targets[k][message.shard].positions)
            return (Partial.num_bytes(len(self.valid[k]), n, self.dim, self.dtype),), torch.uint8
        if message.kind == "activation" and message.stage in self.shards and not self.targets:
            return (1, 1, self.whole_dim), self.dtype
        return None

    def part(self, shard: HeadShard, hidden: torch.Tensor, k: int) -> torch.Tensor:
        """A shard's F: its message to the last stage."""
        if not self.targets:
            return shard.logits(hidden)
        return shard.forward(hidden, self.targets[k][shard.index], k, self.training).buffer

    def combine(self, parts: Sequence[torch.Tensor], k: int) -> Combined:
        """The loss of a microbatch, from the messages of all shards in their order."""
        targets, tokens = list(self.targets[k].values()), len(self.valid[k])
        views = [Partial.view(b, tokens, len(t.positions), self.dim, self.dtype) for b, t in zip(parts, targets)]
        return combine(views, targets, self.valid[k], self.loss_gradient)


class SpreadExecution(Execution):
    """An `Execution` with a spread head; `outputs` are losses, or logits when `spread` has no targets."""

    def __init__(
        self,
        stages: Mapping[int, Stage],
        shard: HeadShard,
        messages: Messages,
        tokens: Sequence[torch.Tensor],
        forward: Forward,
        spread: Spread,
        listener: Listener | None = None,
    ) -> None:
        super().__init__(stages, messages, tokens, forward, spread.loss_gradient, listener)
        self.shard, self.spread, self.listener = shard, spread, listener
        self._uncombined: list[int] = []

    def _forward(self, action: Action) -> None:
        if action.stage in self.stages:
            super()._forward(action)
            return
        k = action.microbatch
        if self.shard.needed is not None:
            self.shard.needed(END)
        hidden = self.messages.receive(Message("activation", action.stage, k))
        self._started = self.clock.now()
        self.messages.send(
            Message("partial", self.spread.last, k, action.stage), self.spread.part(self.shard, hidden, k)
        )

    def _hand_on(self, stage: Stage, y: torch.Tensor, k: int) -> None:
        if not stage.last:
            super()._hand_on(stage, y, k)
            return
        self._uncombined.append(k)
        for shard in self.spread.shards:
            self.messages.send(Message("activation", shard, k), y.detach())

    def _gradient(self, stage: Stage, y: torch.Tensor, k: int) -> torch.Tensor:
        if not stage.last:
            return super()._gradient(stage, y, k)
        parts = self._parts(k)
        self._started = self.clock.now()
        self._uncombined.remove(k)
        self.outputs[k], normaliser, gradient = self.spread.combine(parts, k)
        for shard in self.spread.shards:
            self.messages.send(Message("normaliser", shard, k), normaliser)
        assert gradient is not None  # a backward pass is training
        return gradient.to(y.dtype).view_as(y)

    def _weights(self, action: Action) -> None:
        if action.stage in self.stages:
            super()._weights(action)
            return
        k = action.microbatch
        normaliser = self.messages.receive(Message("normaliser", action.stage, k))
        self._started = self.clock.now()
        self.shard.weights(normaliser, self.spread.valid[k], self.spread.loss_gradient, k)
        if self.listener is not None and self.shard.weight.requires_grad:
            last = k == len(self.tokens) - 1
            self.listener.arrived([self.shard.name], last)
            self.listener.arrived([], last)

    def _parts(self, k: int) -> list[torch.Tensor]:
        return [self.messages.receive(Message("partial", self.spread.last, k, shard)) for shard in self.spread.shards]

    def _part(self, stage: int) -> Stage | HeadShard:
        return self.shard if stage == self.shard.index else self.stages[stage]

    def _conclude(self) -> None:
        for k in () if self.spread.training else tuple(self._uncombined):
            parts = self._parts(k)
            self.outputs[k] = self.spread.combine(parts, k).loss if self.spread.targets else torch.cat(parts, -1)
            self._uncombined.remove(k)

    def _check_nothing_left(self) -> None:
        left = [str(Action(self.shard.index, "W", k)) for k in self.shard.left()]
        if left:
            raise RuntimeError(
                f"rank {self.messages.wire.rank} ends its actions with the weight gradients of {', '.join(left)} left over"
            )
        super()._check_nothing_left()
