"""What one experiment is predicted to do on some hardware: who holds what, and how long a step takes. No torch, no GPU.

In: an experiment, cards, perhaps measured times. Out: `Run`. Every time is a prediction from `model_costs`, of the pipeline's part
of a step by simulation, of what ranks that share the batch send by `traffic`, of the optimizer's by memory traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..specs import Experiment, Muon, Pipeline
from ..specs.experiment import num_replicas, world_size
from . import hardware as machines
from .costs import Costs
from .estimate import Estimate, Site, estimate
from .hardware import Hardware
from .host_costs import HostSeconds, host_seconds
from .layout import Layout, lay_out
from .memory import State
from .model_costs import gather, model_costs
from .profile import Profile, own_profile
from .simulate import Simulation, simulate
from .sizes import model_size
from .traffic import Traffic, collectives

__all__ = ["Run", "predict"]


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
    sum_seconds: float  # that ranks wait for what those that share the batch send
    arriving_seconds: float  # that a host takes for gradients beside the microbatches, of the slowest rank
    fits: bool
    times_known: bool
    traffic: Traffic | None = None  # between ranks that share the batch, under DDP and FSDP2

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
    measured = None if profile is None else Profile.of(profile, experiment)
    traffic = collectives(experiment, costs, devices, measured)
    waited = _sum_seconds(experiment, memory, costs, layout, found)
    if traffic is not None:
        waited = traffic.seconds - traffic.hidden
    known = bool(experiment.model.num_layers) and not any("layers of" in text for text in memory.left_out)
    return Run(
        experiment=experiment,
        hardware=devices,
        layout=layout,
        costs=costs,
        memory=memory,
        simulation=simulate(schedule, costs),
        optimizer_seconds=_optimizer_seconds(experiment, memory, devices),
        sum_seconds=waited,
        arriving_seconds=max(host.arriving for host in _on_host(experiment, memory, devices)),
        fits=site.fits(memory),
        times_known=known or profile is not None,
        traffic=traffic,
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
        seconds.append(moved / speed.copies + products / speed.products)
    return tuple(seconds)


def _on_host(experiment: Experiment, memory: Estimate, devices: Hardware) -> list[HostSeconds]:
    """Of every rank; all are taken to be on one machine."""
    state, size = State(experiment, devices.devices[0].kind != "host"), model_size(experiment.model, experiment.seq_len)
    return [host_seconds(experiment, size, rank.stages, state, len(memory.ranks)) for rank in memory.ranks]


def _sum_seconds(experiment: Experiment, memory: Estimate, costs: Costs, layout: Layout, found: Hardware) -> float:
    """That replicas of a pipeline wait for one another. A ring sends each gradient 2 (n - 1) / n times over each link, while the
    last backward of a rank runs; shared states send gradients once and weights once, and nothing else runs meanwhile.
    """
    replicas, rate, waits = num_replicas(experiment), gather(found), [0.0]
    share, parallel = (replicas - 1) / replicas, experiment.parallel
    for place in range(layout.schedule.num_ranks if replicas > 1 else 0):
        held = memory.ranks[place]
        if isinstance(parallel, Pipeline) and parallel.shard_replicas:
            waits.append(share * (held.gradients + held.weights) / rate)
            continue
        window = sum(costs.seconds("B", stage) for stage in layout.schedule.stages_of(place))
        waits.append(max(0.0, 2 * share * held.gradients / rate - window))
    return max(waits)
