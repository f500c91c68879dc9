"""Every rank of a pipeline in turn, alone on the card: its real stages, schedule and optimizer, with nobody at the other end.

In: an experiment. Out: seconds of each kind of action on each stage, of each rank's update, and the peak of its allocator;
then the schedule of all ranks replayed with them in the planner's simulator, as fast as the card at hand and as a slower one.
What is received is noise, so losses mean nothing and are not told.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections import defaultdict
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from capped import seen
from torch import Tensor

from forgather_dsl import Experiment
from forgather_dsl.dsl import build
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.messages import Transfer, Wire
from forgather_dsl.plan import hardware as machines
from forgather_dsl.plan.hardware import Hardware
from forgather_dsl.plan.layout import Layout
from forgather_dsl.plan.prediction import Run, predict
from forgather_dsl.plan.simulate import simulate
from forgather_dsl.train.assembly import make_model, make_optimizer, make_stage
from forgather_dsl.train.gradients import clip, sum_of_squares

__all__ = ["Alone", "Times", "replayed", "run_alone"]

STEPS = 3  # of each rank; the first warms up
STD = 0.02  # of weights and messages


class Times(NamedTuple):
    """Seconds of one microbatch on one stage; `whole` where B was run, which is I and W in one."""

    forward: float
    input_grad: float
    weight_grad: float


class Alone(NamedTuple):
    """What one rank took."""

    stages: dict[int, Times]
    update: float  # seconds of norm, clipping and optimizer
    actions: int
    memory: dict[str, Any]  # as `capped.seen`


class _Noise(Wire):
    """Sends to nobody; what it receives is drawn at random, so that no kernel meets numbers that are not finite."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(None)
        self.rank, self.size, self.names = rank, size, ["nobody"] * size

    def send(self, tensor: Tensor, target: int, tag: int) -> Transfer:
        """Done at once."""
        return Transfer(cast(dist.Work, _Over()), tensor, tensor, "nobody")

    def receive(self, into: Tensor, source: int, tag: int) -> Transfer:
        """There at once."""
        with torch.no_grad():
            into.normal_(0, STD)
        return self.send(into, source, tag)

    def broadcast(self, number: int, source: int) -> int:
        """Ours."""
        return number

    def open(self, pairs: Any) -> None:
        """Nothing."""


class _Over:
    """A transfer that is over."""

    def is_completed(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """Nothing to wait for."""


def run_alone(experiment: Experiment, layout: Layout, rank: int, device: torch.device) -> Alone:
    """A few steps of one rank; medians over its microbatches and all steps but the first."""
    autocast = build(experiment.precision).autocast(device)
    own = layout.schedule.stages_of(rank)
    stages = [make_stage(experiment, make_model(experiment), layout, index, device, autocast) for index in own]
    with torch.no_grad():
        for parameter in (p for stage in stages for p in stage.model.parameters()):
            parameter.fill_(1.0) if parameter.ndim < 2 else parameter.normal_(0, STD)
    pipeline = Pipeline(stages, layout.schedule, experiment.seed, wire=_Noise(rank, layout.schedule.num_ranks))
    trained = dict(pipeline.named_parameters())
    optimizer: Any = make_optimizer(experiment, trained)
    ids = torch.randint(experiment.model.vocab_size, (experiment.batch_size, experiment.seq_len + 1))
    tokens, targets, loss = ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), build(experiment.loss)
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    updates = []
    for step in range(STEPS):
        pipeline.step(tokens, targets, None, loss, step, tokens.numel())
        measured = pipeline.timing.actions
        updates.append(_updated(experiment, trained, optimizer, device))
        for action, took in measured.items() if step else ():
            seconds[action.stage, action.kind].append(took)
    found = Alone(
        {index: _times({kind: statistics.median(seconds[index, kind]) for kind in "FBIW" if seconds[index, kind]})
         for index in own},
        statistics.median(updates[1:]),
        len(layout.schedule.actions[rank]),
        seen(),
    )  # fmt: skip
    del pipeline, trained, optimizer, stages
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def _times(medians: dict[str, float]) -> Times:
    """B counts as I where a schedule has no split backward."""
    if "I" in medians:
        return Times(medians["F"], medians["I"], medians["W"])
    return Times(medians["F"], medians["B"], 0.0)


def _updated(experiment: Experiment, trained: dict[str, Any], optimizer: Any, device: torch.device) -> float:
    """Seconds of what follows the last action, as train/loop.py does it; the norm is taken to exceed the limit."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.stack([sum_of_squares(p.grad) for p in trained.values() if p.grad is not None]).sum().item()
    if experiment.clip_norm is not None:
        clip(list(trained.values()), 2 * experiment.clip_norm, experiment.clip_norm)
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    for parameter in trained.values():
        parameter.grad = None
    return took


def replayed(experiment: Experiment, ranks: list[Alone], cards: Hardware, slower: float = 1.0) -> Run:
    """The step of all ranks on `cards`, as the planner simulates it, with the seconds measured, `slower` times as long; the
    link is the planner's.
    """
    planned = predict(experiment, machines.parse(experiment.hardware))
    times = [next(rank.stages[s] for rank in ranks if s in rank.stages) for s in range(len(planned.layout.layers))]
    costs = dataclasses.replace(
        planned.costs,
        forward=tuple(slower * t.forward for t in times),
        input_grad=tuple(slower * t.input_grad for t in times),
        weight_grad=tuple(slower * t.weight_grad for t in times),
    )
    return dataclasses.replace(
        planned,
        hardware=machines.for_ranks(cards, len(ranks)),
        costs=costs,
        simulation=simulate(planned.layout.schedule, costs),
        optimizer_seconds=tuple(slower * rank.update for rank in ranks),
    )
