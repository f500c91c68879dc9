"""A training step on torch.distributed.pipelining's runtime: the oracle of our tests and the opponent of our benchmarks.

In: what `Pipeline` takes. Out: a `Pipeline` whose `step` hands the same stages, the same schedule (as CSV) and the same loss
to torch; evaluation, generation and the tied head stay ours. Shapes are given, never inferred: torch's inference runs a
real backward, which would queue weight gradients nobody asked for. Gradients are scaled through the loss, since torch's
own scaling divides what earlier steps have accumulated, and a shared Parameter twice. Private names: see `_NEEDS`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn as nn
from torch.distributed.pipelining import PipelineStage, schedules

from forgather_dsl.parallel.deferred import DeferredEmbedding, DeferredLinear
from forgather_dsl.parallel.execution import Forward, Timing
from forgather_dsl.parallel.failures import ActionFailed
from forgather_dsl.parallel.group import PipelineGroup
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.progress import PROGRESS
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.weight_gradients import WeightGradients
from forgather_dsl.plan.actions import Action, Kind, Schedule, to_csv

__all__ = ["TorchPipeline", "undefer"]

_NEEDS = ("_PipelineScheduleRuntime", "_Action")  # of torch.distributed.pipelining.schedules; seen in torch 2.13


class TorchPipeline(Pipeline):
    """`Pipeline` with torch's runtime for training steps.

    With `split="deferred"` torch calls our deferred layers through its `dw_builder`, and losses and gradients are those of
    our interpreter, bit for bit. With `split="torch"` the stages become plain again and torch splits their backward
    itself, once per group of parameters: slower, and equal up to rounding.
    Raises ValueError for what torch's runtime cannot do, and when this torch lacks the private names we need.
    """

    tells_of_arrivals = False

    def __init__(
        self,
        stages: Sequence[Stage],
        schedule: Schedule,
        seed: int,
        group: PipelineGroup | None = None,
        replica: int = 0,
        split: Literal["deferred", "torch"] = "deferred",
    ) -> None:
        super().__init__(stages, schedule, seed, group, replica)
        missing = [name for name in _NEEDS if not hasattr(schedules, name)]
        if missing:
            raise ValueError(f"engine='torch' needs {missing[0]}, which torch {torch.__version__} does not have")
        if group is None:
            raise ValueError("engine='torch' runs on two ranks or more: on one there is no pipeline; use engine='own'")
        self.split = split
        self._runtime: _Runtime | None = None

    def _train(
        self,
        tokens: Sequence[torch.Tensor],
        forward: Forward,
        targets: Sequence[torch.Tensor],
        loss_gradient: float,
    ) -> _Runtime:
        shape = tuple(tokens[0].shape)
        if self._runtime is None or self._runtime.shape != shape:  # torch's receive buffers have one shape
            self._runtime = _Runtime(self, shape)
        self._runtime.run(tokens, forward, loss_gradient)
        return self._runtime


class _Runtime:
    """torch's runtime for microbatches of one shape `(batch, seq)`."""

    def __init__(self, pipeline: Pipeline, shape: tuple[int, ...]) -> None:
        group = pipeline.wire.group
        assert group is not None
        self.shape, self.deferred = shape, getattr(pipeline, "split", None) == "deferred"
        self.outputs: dict[int, torch.Tensor] = {}
        self.seconds: dict[Action, float] = {}
        self.span, self.loss_gradient = 0.0, 0.0
        self.forward: Forward = lambda stage, x, k: x
        if 0 in pipeline.stages and not any(p.requires_grad for p in pipeline.stages[0].model.parameters()):
            raise ValueError("engine='torch' cannot train with all of stage 0 frozen: torch starts its backward there")
        self.stages = [_TimedStage(stage, self, group) for stage in pipeline.stages.values()]
        self.schedule: Any = schedules._PipelineScheduleRuntime(
            self.stages, pipeline.schedule.num_microbatches, loss_fn=self._loss, scale_grads=False
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "schedule.csv")
            with open(path, "w", encoding="utf-8") as file:
                file.write(to_csv(pipeline.schedule))
            self.schedule._load_csv(path)

    def run(self, tokens: Sequence[torch.Tensor], forward: Forward, loss_gradient: float) -> None:
        """One step."""
        self.outputs, self.seconds, self.forward, self.loss_gradient = {}, {}, forward, loss_gradient
        for stage in self.stages:
            stage.submod.microbatch = 0
            stage.stage.gradients.deferring = self.deferred  # a full backward queues too: torch runs it right after
        first, last = (any(getattr(s.stage, end) for s in self.stages) for end in ("first", "last"))
        start = time.perf_counter()
        targets = torch.zeros(len(tokens)) if last else None  # the loss knows its own
        PROGRESS.run = None
        self.schedule.step(*([torch.cat([*tokens])] if first else []), target=targets, return_outputs=False)
        self.span = time.perf_counter() - start

    def timing(self) -> Timing:
        """Seconds per action and of the whole, by the host's clock."""
        return Timing(self.seconds, self.span)

    def _loss(self, loss: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return loss * self.loss_gradient

    @contextmanager
    def acting(self, stage: Stage, kind: Kind, microbatch: int) -> Iterator[None]:
        """Time an action, and name it when it fails."""
        action, start = Action(stage.index, kind, microbatch), time.perf_counter()
        PROGRESS.mark(f"action {action} ({stage.described}, microbatch {microbatch})")
        try:
            yield
            PROGRESS.wait("another rank", "message in torch's runtime")
        except Exception as error:
            raise ActionFailed(
                stage, action, error.__cause__ if isinstance(error.__cause__, Exception) else error
            ) from error
        self.seconds[action] = time.perf_counter() - start


class _Module(nn.Module):
    """A stage as torch calls it: once per microbatch, in their order; the last one gives its loss."""

    def __init__(self, stage: Stage, runtime: _Runtime) -> None:
        super().__init__()
        self.model, self.stage, self.runtime, self.microbatch = stage.model, stage, runtime, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, self.microbatch = self.microbatch, self.microbatch + 1
        y = self.runtime.forward(self.stage, x.to(self.stage.device), k)
        if self.stage.last:
            self.runtime.outputs[k] = y.detach()  # not a copy: a chunked loss is known after its backward
        return y


class _TimedStage(PipelineStage):
    """torch's stage around ours: shapes given, actions timed, weight gradients deferred by our layers."""

    submod: _Module

    def __init__(self, stage: Stage, runtime: _Runtime, group: PipelineGroup) -> None:
        if not runtime.deferred:
            undefer(stage.model)
        self.stage, self.runtime = stage, runtime

        def like(*shape: int, dtype: torch.dtype = stage.dtype) -> torch.Tensor:
            # an input that does not say requires_grad would end the backward
            return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)

        x = like(*runtime.shape, dtype=torch.int64) if stage.first else like(*runtime.shape, stage.dim)
        y = like(dtype=torch.float32) if stage.last else like(*runtime.shape, stage.dim)
        super().__init__(
            _Module(stage, runtime), stage.index, stage.num_stages, stage.device, (x,), (y,), group=group.everyone,
            dw_builder=self._owed if runtime.deferred else None,
        )  # fmt: skip

    def _owed(self) -> Callable[..., None]:
        owed = self.stage.gradients.take()
        return lambda: WeightGradients.settle(owed)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """F."""
        with self.runtime.acting(self.stage, "F", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """B or I."""
        with self.runtime.acting(self.stage, "B" if full_backward else "I", bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """W."""
        with self.runtime.acting(self.stage, "W", bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)


def undefer(model: nn.Module) -> None:
    """Plain layers again, in place: what torch's own split of the backward is made for."""
    for layer in model.modules():
        if isinstance(layer, (DeferredLinear, DeferredEmbedding)):
            del layer.gradients
            plain = nn.Linear if isinstance(layer, DeferredLinear) else nn.Embedding
            layer.__class__ = plain  # type: ignore[assignment]  # a base of its class
