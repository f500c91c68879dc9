"""Plans a run before it runs: who holds what, memory, time, bubble, and what other schedules would do. No torch, no GPU.

In: an experiment, perhaps other hardware, perhaps measured times. Out: `Plan`, which `contract` turns into JSON. Every time
is a prediction from `model_costs`, of the pipeline's part of a step by simulation, of the optimizer's by memory traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..dsl import ConfigError, replace
from ..specs import Experiment, Muon, Pipeline
from ..specs.experiment import num_replicas, world_size
from ..specs.parallel import Searched
from . import hardware as machines
from .advice import Option, advise, more_cards, written
from .changes import for_cards, schedules, with_schedule
from .costs import Costs
from .estimate import Estimate, Site, estimate, most_ranks_per_gpu
from .hardware import Hardware
from .host_costs import HostSeconds, host_seconds
from .layout import Layout, lay_out
from .memory import State
from .model_costs import BANDWIDTH_SUSTAINED, FLOPS_SUSTAINED, link, model_costs
from .profile import Profile, own_profile
from .simulate import Simulation, simulate
from .sizes import model_size

__all__ = ["Plan", "Row", "Run", "plan", "predict"]

LARGE_HEAD = 1.5  # layers' worth of arithmetic, from which on a head spread over the ranks is looked at


@dataclass(frozen=True)
class Run:
    """What one experiment is predicted to do on some hardware."""

    experiment: Experiment
    hardware: Hardware  # a device for each rank
    layout: Layout
    costs: Costs
    memory: Estimate
    simulation: Simulation
    optimizer_seconds: tuple[float, ...]  # per rank
    sum_seconds: float  # until the gradients of replicas are added up
    arriving_seconds: float  # that a host takes for gradients beside the microbatches, of the slowest rank
    fits: bool
    times_known: bool

    @property
    def bubble(self) -> float:
        """Share of the pipeline's part of a step that ranks wait, the mean over ranks."""
        shares = self.simulation.bubble
        return sum(shares) / len(shares)

    @property
    def step_seconds(self) -> float:
        """The pipeline, or what the host takes for its gradients; the sum over replicas; then the slowest rank's optimizer."""
        return max(self.simulation.makespan, self.arriving_seconds) + self.sum_seconds + max(self.optimizer_seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """None when nothing is known of the layers' arithmetic."""
        if not self.times_known or not self.step_seconds:
            return None
        return self.experiment.batch_size * self.experiment.seq_len / self.step_seconds

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: without recomputing, of the peak of all devices."""
        size = model_size(self.experiment.model, self.experiment.seq_len)
        bf16 = State(self.experiment, self.hardware.devices[0].kind != "host").number_bytes == 2
        peak = sum(machines.speed(device, bf16).flops for device in self.hardware.devices)
        per_token = 3 * (sum(layer.flops for layer in size.layers) + size.head.flops)
        rate = self.tokens_per_second
        return None if rate is None else rate * per_token / peak

    @cached_property
    def floor(self) -> tuple[float, float]:
        """The least that any order of actions could take with this placement, and its bubble: seconds, share.

        A rank's first microbatch passes the stages before its own first stage; then the rank has all its work to do. With
        stages alike that is (ranks - 1) * (forward + communication) of waiting (arXiv 2401.10241).
        """
        schedule, costs = self.layout.schedule, self.costs
        message, least = costs.latency + costs.transfer, 0.0
        for rank, busy in enumerate(self.simulation.busy):
            before = range(min(schedule.stages_of(rank)))
            crossed = sum(schedule.placement[stage] != schedule.placement[stage + 1] for stage in before)
            least = max(least, sum(costs.forward[stage] for stage in before) + crossed * message + busy)
        mean = sum(self.simulation.busy) / schedule.num_ranks
        return least, (1 - mean / least if least else 0.0)


@dataclass(frozen=True)
class Row:
    """One schedule in the comparison: what it would do, or why it is not possible."""

    schedule: str
    run: Run | None
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """The prediction, the comparison with other schedules, and what to change where it does not fit."""

    run: Run
    gpus: str
    notes: tuple[str, ...] = ()
    comparison: tuple[Row, ...] = ()
    options: tuple[Option, ...] = ()
    profile: Profile | None = None

    def _repr_html_(self) -> str:  # notebooks
        from .contract import to_dict
        from .page import fragment

        return fragment(self, to_dict(self))


def predict(experiment: Experiment, found: Hardware, profile: Mapping[str, Any] | None = None) -> Run:
    """Lay an experiment out, count its memory and simulate its step; the ranks are as many as it says.

    Raises:
        ConfigError: the layout is not possible, or the profile is of something else.
    """
    profile = profile or own_profile(experiment)
    site, layout = Site.of(found, experiment), lay_out(experiment)
    schedule, layers = layout.schedule, layout.layers
    memory = estimate(experiment, on_gpu=site.on_gpu, layout=layout)
    costs = model_costs(experiment, schedule.placement, layers, profile, found, layout.policies(experiment))
    devices = machines.for_ranks(found, world_size(experiment))
    known = bool(experiment.model.num_layers) and not any("layers of" in text for text in memory.left_out)
    return Run(
        experiment=experiment,
        hardware=devices,
        layout=layout,
        costs=costs,
        memory=memory,
        simulation=simulate(schedule, costs),
        optimizer_seconds=_optimizer_seconds(experiment, memory, devices),
        sum_seconds=_sum_seconds(experiment, memory, found),
        arriving_seconds=max(host.arriving for host in _on_host(experiment, memory, devices)),
        fits=site.fits(memory),
        times_known=known or profile is not None,
    )


def _optimizer_seconds(experiment: Experiment, memory: Estimate, devices: Hardware) -> tuple[float, ...]:
    """Weights, gradients and state are read and written once; Muon multiplies matrices besides: an iteration takes 4 (long
    matrices) to 6 (square ones) products of a matrix with its shorter side.
    """
    state, size = State(experiment, devices.devices[0].kind != "host"), model_size(experiment.model, experiment.seq_len)
    if state.on_host:
        return tuple(host.update for host in _on_host(experiment, memory, devices))
    iterations = experiment.optimizer.ns_steps if isinstance(experiment.optimizer, Muon) else 0
    seconds = []
    for rank, device in zip(memory.ranks, devices.devices):
        speed = machines.speed(device, bf16=state.number_bytes == 2)
        moved = 2 * (rank.weights + rank.gradients + rank.optimizer)
        matrices = sum(size.layers[index].matrices for _, layers in rank.stages for index in layers)
        products = 5 * iterations * size.dim * matrices
        seconds.append(moved / (speed.bandwidth * BANDWIDTH_SUSTAINED) + products / (speed.flops * FLOPS_SUSTAINED))
    return tuple(seconds)


def _on_host(experiment: Experiment, memory: Estimate, devices: Hardware) -> list[HostSeconds]:
    """Of every rank; all are taken to be on one machine."""
    state, size = State(experiment, devices.devices[0].kind != "host"), model_size(experiment.model, experiment.seq_len)
    return [host_seconds(experiment, size, rank.stages, state, len(memory.ranks)) for rank in memory.ranks]


def _sum_seconds(experiment: Experiment, memory: Estimate, found: Hardware) -> float:
    """A ring sends each gradient 2 (n - 1) / n times over each link, and all ranks of a replica send at the same time."""
    replicas = num_replicas(experiment)
    largest = max(rank.gradients for rank in memory.ranks)
    return 2 * (replicas - 1) / replicas * largest / link(found)[1]


def plan(experiment: Experiment, gpus: str | None = None, profile: Mapping[str, Any] | None = None) -> Plan:
    """The plan on `gpus`, or on the experiment's own hardware. Another number of cards than the experiment has ranks means
    as many ranks as cards.

    Raises:
        ConfigError: `gpus` or `hardware` is not understood, the experiment cannot be laid out, a profile of something else.
    """
    text = experiment.hardware if gpus is None else gpus
    wanted, experiment = experiment, replace(experiment, hardware=text)  # a searched order keeps within these cards
    profile = profile or own_profile(experiment)
    found, notes = machines.parse(text), []
    ranks, cards = world_size(experiment), len(found.devices)
    if cards and not cards <= ranks <= cards * most_ranks_per_gpu(experiment):
        experiment = _on_all(experiment, cards, text)
        number = f"{cards} card{'s' if cards > 1 else ''}"
        notes.append(f"{text} is {number}, so planned with parallel = {written(experiment.parallel)}")
    run = predict(experiment, found, profile)
    if run.layout.reason:
        notes.append(f"Auto: {run.layout.reason}")
    rows = _comparison(run, found, profile)
    options = [] if run.fits else _options(wanted, run.experiment, found, text)
    measured = None if profile is None else Profile.of(profile, experiment)
    return Plan(run, text, tuple(notes), tuple(rows), tuple(options), measured)


def _options(wanted: Experiment, planned: Experiment, found: Hardware, text: str) -> list[Option]:
    """What makes it fit on these cards, and how many cards would hold it; with modelled times throughout. An order that is
    searched depends on the cards, so with one the line that names them is part of it.
    """

    def rate(candidate: Experiment, hardware: Hardware = found) -> float | None:
        try:
            return predict(candidate, hardware).tokens_per_second
        except (ConfigError, ValueError):
            return None

    there = replace(wanted, hardware=text)
    searched = isinstance(planned.parallel, Pipeline) and isinstance(planned.parallel.schedule, Searched)
    options = advise(there, Site.of(found, wanted), rate, wanted if searched else there)
    more = more_cards(there, found, text, rate) if found.devices else None
    return options + ([more] if more is not None else [])


def _on_all(experiment: Experiment, cards: int, text: str) -> Experiment:
    if cards > experiment.model.num_layers:
        raise ConfigError(
            f"{text!r} names {cards} cards, the model has {experiment.model.num_layers} layers, and every rank of a "
            f"pipeline needs one; name {experiment.model.num_layers} cards or fewer"
        )
    return for_cards(experiment, cards)


def _comparison(own: Run, found: Hardware, profile: Mapping[str, Any] | None) -> list[Row]:
    """Every schedule on the same ranks, the experiment's own as it is written; cuts stay where the stages are as many. And
    the own one with a spread head, where the head is large.
    """
    parallel = own.experiment.parallel
    if not isinstance(parallel, Pipeline):
        return []

    def row(name: str, changed: Experiment) -> Row:
        try:
            return Row(name, predict(changed, found, profile))
        except (ConfigError, ValueError) as error:
            return Row(name, None, str(error).removeprefix("parallel.schedule: "))

    rows = [Row(written(parallel.schedule), own)]
    for schedule in schedules():
        if type(schedule) is not type(parallel.schedule):
            rows.append(row(written(schedule), with_schedule(own.experiment, schedule)))
    size = model_size(own.experiment.model, own.experiment.seq_len)
    head, layer = size.head.flops, max(part.flops for part in size.layers)
    if own.layout.schedule.num_ranks > 1 and not parallel.spread_head and layer and head >= LARGE_HEAD * layer:
        spread = replace(own.experiment, parallel=replace(parallel, spread_head=True))
        rows.append(row(f"{written(parallel.schedule)}, spread_head=True", spread))
    return rows
