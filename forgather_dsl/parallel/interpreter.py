"""Runs one rank's actions of a schedule: training steps, evaluation and generation through one interpreter.

In: this rank's stages, a `Schedule`, the batch (the same on every rank of the pipeline). Out: gradients in `.grad`, the
sum of the loss on the rank of the last stage, and how long each action took. Losses and gradients do not depend on the
schedule or the number of stages: microbatches are summed in their order everywhere. At the end of every run nothing
may be left over: no live activation, no owed weight gradient, no message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn

from forgather_dsl.models.cache import KVCache, decoding
from forgather_dsl.parallel.arrivals import Listener
from forgather_dsl.parallel.execution import Execution, Forward, Guess, Ran, Timing
from forgather_dsl.parallel.group import PipelineGroup
from forgather_dsl.parallel.losses import LossFn, loss_at, takes_head
from forgather_dsl.parallel.messages import Messages, Route, Wire
from forgather_dsl.parallel.shard import HeadShard, Rows
from forgather_dsl.parallel.spread import Spread, SpreadExecution
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.tied import TiedHead
from forgather_dsl.plan.schedules import Schedule, check, forwards
from forgather_dsl.plan.warmup import warm_up

__all__ = ["LossFn", "Pipeline"]

_forwards = functools.cache(forwards)  # evaluation asks for the same few again and again


class Pipeline:
    """This rank's part of a pipeline.

    `stages` are the stages that `schedule` places on this rank, and its shard of the head if there are any; `group` is
    None when there is one rank. `seed` is dropout's; `replica` numbers data-parallel copies, so that each draws its own.
    With a spread head the loss is cross entropy in fp32, and `loss_fn` is not called. `wire` stands in for the group's.
    Raises ValueError when the schedule is not valid or the stages are not the ones it places here.
    """

    tells_of_arrivals = True  # whether its `listener` hears of gradients

    def __init__(
        self,
        stages: Sequence[Stage | HeadShard],
        schedule: Schedule,
        seed: int,
        group: PipelineGroup | None = None,
        replica: int = 0,
        wire: Wire | None = None,
    ) -> None:
        check(schedule)
        self.schedule, self.seed, self.replica = schedule, seed, replica
        self.wire = Wire(group) if wire is None else wire
        self.stages = {stage.index: stage for stage in stages if isinstance(stage, Stage)}
        self.shard = next((shard for shard in stages if isinstance(shard, HeadShard)), None)
        held = sorted(stage.index for stage in stages)
        placed = list(schedule.parts_of(self.wire.rank))
        if held != placed or schedule.num_ranks != self.wire.size:
            raise ValueError(
                f"rank {self.wire.rank} of {self.wire.size} holds stages {held}; schedule {schedule.name} "
                f"has {schedule.num_ranks} ranks and places {placed} there"
            )
        self.last_rank = schedule.placement[-1]
        self._last_step: Ran | None = None
        self.watch: Callable[[Stage, int, torch.Tensor], None] | None = None
        """Called with a stage, the microbatch and the stage's output after each forward of a training step."""
        self.listener: Listener | None = None
        """Told of gradients as they arrive in a training step."""
        self._routes: dict[int, tuple[Schedule, Route]] = {}  # by the id of the schedule
        one = next(iter(self.stages.values()))
        self._dim, self._dtype, self._device = one.dim, one.dtype, one.device
        self._tied = TiedHead(self.stages, schedule.placement, self.wire) if one.tied else None
        places = schedule.placement
        pairs = [*pairwise(places), *([(places[0], places[-1])] if one.tied else [])]
        self.wire.open([*pairs, *((places[-1], rank) for rank in range(schedule.num_shards))])

    @property
    def timing(self) -> Timing:
        """What this rank did in the last step. On a GPU, reading it waits for the step to finish."""
        return self._last_step.timing() if self._last_step else Timing({}, 0.0)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters to train, by full name; over all ranks each name occurs once, a spread head's apart."""
        for part in (*self.stages.values(), self.shard):
            if part is not None:
                yield from part.named_parameters()

    def rows(self) -> dict[str, Rows]:
        """Of every parameter that is cut by rows among ranks: the rows that this rank's part of it has."""
        shard = self.shard
        return {} if shard is None else {shard.name: Rows(shard.shape, shard.rows.start, len(shard.rows))}

    def counted(self) -> set[str]:
        """Names of the parameters of which this rank's numbers stand for all ranks that have them: the first replica's."""
        return {name for name, _ in self.named_parameters()} if self.replica == 0 else set()

    def summed_later(self) -> set[str]:
        """Names of the parameters whose gradients replicas still have to add up: of all of them."""
        return {name for name, _ in self.named_parameters()}

    def through(self, forward: Callable[..., torch.Tensor], *about: Any) -> torch.Tensor:
        """`forward(*about)`: every way through the stages comes by here."""
        return forward(*about)

    def step(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        documents: torch.Tensor | None,
        loss_fn: LossFn,
        step: int,
        num_valid: int,
        guess: Guess | None = None,
    ) -> float | None:
        """Forward and backward of one batch `[batch, seq]`; adds the gradient of loss sum / `num_valid` to `.grad`.

        `num_valid` counts the valid targets of the whole step, over all replicas. Returns the sum of the loss over
        this batch on the rank of the last stage, None on the others. Raises ValueError for a batch that does not
        divide into the schedule's microbatches. With a `guess` the weights may be wrong: it is asked before the first
        backward, and if they were, the forwards until then run again with the right ones.
        """
        count = self.schedule.num_microbatches
        if len(tokens) % count:
            raise ValueError(f"a batch of {len(tokens)} sequences does not divide into {count} microbatches")
        if num_valid < 1:
            raise ValueError(f"num_valid={num_valid}: a step needs at least one valid target")
        tokens, targets, documents = self._on_device(tokens, targets, documents)
        parts = tokens.split(len(tokens) // count)
        forward = self._to_loss(targets, documents, len(parts[0]), loss_fn, step)
        if guess is not None:
            with self._session(training=True), self._generator_kept():
                execution = self._speculate(parts, forward, 1.0 / num_valid, guess)
                if execution and self._tied:
                    self._tied.collect()
            if execution:
                self._last_step = execution
                return self._loss_sum(execution)
            guess.undo()
        with self._session(training=True), self._generator_kept():
            execution = self._train(parts, forward, targets.split(len(parts[0])), 1.0 / num_valid)
            if self._tied:
                self._tied.collect()
        self._last_step = execution
        return self._loss_sum(execution)

    def forward_only(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        documents: torch.Tensor | None,
        loss_fn: LossFn,
        microbatch_size: int,
    ) -> float | None:
        """The sum of the loss over a batch `[batch, seq]` of any size, without gradients or dropout.

        On the rank of the last stage; None on the others.
        """
        tokens, targets, documents = self._on_device(tokens, targets, documents)
        parts = tokens.split(microbatch_size)
        forward = self._to_loss(targets, documents, microbatch_size, loss_fn, step=0)
        schedule = _forwards(self.schedule.placement, len(parts), self.schedule.num_shards)
        with self._session(training=False), torch.no_grad():
            return self._loss_sum(self._run(schedule, parts, forward, targets.split(microbatch_size)))

    def sample(
        self, tokens: torch.Tensor, max_new_tokens: int, pick: Callable[[torch.Tensor], int], stop: int | None = None
    ) -> list[int]:
        """Continue the prompt `tokens [1, seq]`; returns the new tokens, on every rank.

        `pick(logits [vocab])` chooses a token, on the rank of the last stage only. Ends after `max_new_tokens` or with
        the token `stop`.
        """
        if tokens.dim() != 2 or tokens.shape[0] != 1 or tokens.shape[1] < 1:
            raise ValueError(f"a prompt is [1, seq] with at least one token, not {list(tokens.shape)}")
        caches = {index: KVCache() for index in self.stages}
        schedule = _forwards(self.schedule.placement, 1, self.schedule.num_shards)
        offset, chosen, tokens = 0, [], tokens.to(self._device)

        def forward(stage: Stage, x: torch.Tensor, _: int) -> torch.Tensor:
            return self.through(stage.decode, x, offset, caches[stage.index])

        with self._session(training=False), torch.no_grad(), decoding():
            while len(chosen) < max_new_tokens and (not chosen or chosen[-1] != stop):
                outputs = self._run(schedule, [tokens], forward).outputs
                token = pick(outputs[0][0, -1]) if outputs else 0
                chosen.append(self.wire.broadcast(token, self.last_rank))
                offset += tokens.shape[1]
                tokens = torch.tensor([chosen[-1:]], device=self._device)
        return chosen

    def _on_device(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A batch, copied as a whole: a copy from ordinary memory waits for the GPU, which must not happen once a microbatch.

        A spread head looks for its targets on the host.
        """
        documents = None if documents is None else documents.to(self._device)
        return tokens.to(self._device), targets if self.shard is not None else targets.to(self._device), documents

    def _to_loss(
        self, targets: torch.Tensor, documents: torch.Tensor | None, size: int, loss_fn: LossFn, step: int
    ) -> Forward:
        """How a microbatch of `size` sequences goes through a stage, on the last one to its loss."""
        first = self.replica * self.schedule.num_microbatches
        headless = takes_head(loss_fn)

        def forward(stage: Stage, x: torch.Tensor, k: int) -> torch.Tensor:
            rows = slice(k * size, (k + 1) * size)
            ids = None if documents is None else documents[rows]
            y = stage.forward(x, ids, (self.seed, step, first + k), headless)
            if self.watch is not None and torch.is_grad_enabled():
                self.watch(stage, k, y)
            return loss_at(loss_fn, stage.model, y, targets[rows]) if stage.last and self.shard is None else y

        return functools.partial(self.through, forward)

    def _train(
        self,
        tokens: Sequence[torch.Tensor],
        forward: Forward,
        targets: Sequence[torch.Tensor],
        loss_gradient: float,
    ) -> Ran:
        """Forward and backward of one step; another engine does it in its own way."""
        return self._run(self.schedule, tokens, forward, targets, loss_gradient)

    def _speculate(
        self, tokens: Sequence[torch.Tensor], forward: Forward, loss_gradient: float, guess: Guess
    ) -> Execution | None:
        """One step, if the weights are right; else None, with nothing left over."""
        until = warm_up(self.schedule)
        rows = [(part.shape[0], part.shape[1]) for part in tokens]
        messages = Messages(
            self.wire, self._route(self.schedule), rows, self._dim, self._dtype, self._device, until=until
        )
        execution = Execution(self.stages, messages, tokens, forward, loss_gradient)
        rank = self.wire.rank
        return execution if execution.run(self.schedule.actions[rank], until[rank], guess.holds) else None

    def _run(
        self,
        schedule: Schedule,
        tokens: Sequence[torch.Tensor],
        forward: Forward,
        targets: Sequence[torch.Tensor] | None = None,
        loss_gradient: float = 0.0,
    ) -> Execution:
        rows = [(part.shape[0], part.shape[1]) for part in tokens]
        about = (self.wire, self._route(schedule), rows, self._dim, self._dtype, self._device)
        if self.shard is None:
            execution = Execution(self.stages, Messages(*about), tokens, forward, loss_gradient, self.listener)
        else:
            spread = Spread(schedule, self.shard, targets, loss_gradient)
            messages = Messages(*about, spread.form)
            execution = SpreadExecution(self.stages, self.shard, messages, tokens, forward, spread, self.listener)
        execution.run(schedule.actions[self.wire.rank])
        return execution

    def _route(self, schedule: Schedule) -> Route:
        if id(schedule) not in self._routes:
            self._routes[id(schedule)] = schedule, Route(schedule, self.wire.rank)
        return self._routes[id(schedule)][1]

    def _loss_sum(self, execution: Ran) -> float | None:
        if self.wire.rank != self.last_rank:
            return None
        losses = torch.stack([loss for _, loss in sorted(execution.outputs.items())])
        return sum(losses.tolist())  # in the order of the microbatches, in double precision

    @contextmanager
    def _session(self, training: bool) -> Iterator[None]:
        """While weights do not change: modes set, the tied head fresh, weights cast once."""
        with ExitStack() as stack:
            for stage in self.stages.values():
                stage.model.train(training)
                stack.enter_context(stage.gradients.step())
            if self.shard is not None:
                stack.enter_context(self.shard.gradients.step())
            if self._tied:
                self._tied.refresh()
            yield
            if self._tied:
                self._tied.finish()

    @contextmanager
    def _generator_kept(self) -> Iterator[None]:
        """Leave the global generators as they were: layers with dropout reseed them, differently on each rank."""
        if any(stage.dropout > 0 for stage in self.stages.values()):
            with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
                yield
        else:
            yield
