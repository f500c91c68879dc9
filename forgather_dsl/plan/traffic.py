"""What ranks that share the batch send to one another in a step: bytes, seconds, and how much of that computing hides.

In: an experiment under `DDP` or `FSDP2`, what a microbatch costs, the link. Out: `Traffic`. Collectives are rings: of n ranks each
sends (n - 1) / n of what is gathered or scattered, twice that of what is added up on all. The three passes of FSDP2, two gathers
and a scatter, are then 3 (n - 1) / n of the parameters (arXiv 1910.02054, section 7), for every microbatch.
"""

from __future__ import annotations

from typing import NamedTuple

from ..specs import DDP, FSDP2, Experiment
from ..specs.experiment import num_microbatches, world_size
from .actions import Schedule
from .costs import Costs
from .hardware import Hardware
from .memory import State
from .model_costs import gather, link
from .profile import Profile
from .sizes import ModelSize

__all__ = ["Traffic", "collectives", "passed_on"]


class Traffic(NamedTuple):
    """Of one rank in one step."""

    bytes: float  # sent
    seconds: float  # that they take on the link, one after the other
    hidden: float = 0.0  # of those seconds, behind computing, as the engine overlaps them
    window: float = 0.0  # seconds of computing that could hide it, if the overlap were perfect

    @property
    def hideable(self) -> float:
        """Seconds that a perfect overlap would hide."""
        return min(self.window, self.seconds)


class _Ring(NamedTuple):
    """A collective's cost: over `ranks`, at `rate` bytes per second, `latency` for each hop."""

    ranks: int
    rate: float
    latency: float

    def seconds(self, size: float, passes: int = 1) -> float:
        """To gather or scatter `size` bytes; to add them up on all ranks takes two passes."""
        return passes * (self.sent(size) / self.rate + (self.ranks - 1) * self.latency)

    def sent(self, size: float) -> float:
        """Bytes by each rank, in one pass."""
        return size * (self.ranks - 1) / self.ranks


class _Unit(NamedTuple):
    """One layer under FSDP2, or the root: seconds and bytes of its collectives."""

    gather: float
    scatter: float
    gather_bytes: float
    scatter_bytes: float


def collectives(
    experiment: Experiment, costs: Costs, found: Hardware, measured: Profile | None = None
) -> Traffic | None:
    """Of `DDP` and `FSDP2`; None for anything else. `costs` are of the one stage that every rank has; `found` has a device
    for each rank.
    """
    parallel, device = experiment.parallel, found.devices[0]
    if not isinstance(parallel, (DDP, FSDP2)):
        return None
    if world_size(experiment) == 1:
        return Traffic(0.0, 0.0)
    state = State(experiment, device.kind != "host")
    size = state.size_of(experiment)
    rate, latency = gather(found, measured), link(found, measured)[0]
    if isinstance(parallel, DDP):
        ring = _Ring(parallel.replicas, rate, latency)
        return _added_up(ring, size, state, costs)
    across = _Ring(parallel.replicas, rate, latency)
    units = _units(_Ring(parallel.shards, rate, latency), across, size, state)
    return _sharded(experiment, parallel, units, costs, device.kind != "host")


def _added_up(ring: _Ring, size: ModelSize, state: State, costs: Costs) -> Traffic:
    """DDP: every gradient once a step, while the backward of the last microbatch runs."""
    gradients = float(state.gradient_bytes * size.parameters)
    seconds = ring.seconds(gradients, passes=2)
    window = costs.seconds("B", 0)
    return Traffic(2 * ring.sent(gradients), seconds, min(seconds, window), window)


def _units(ring: _Ring, across: _Ring, size: ModelSize, state: State) -> list[_Unit]:
    """What is gathered once a microbatch, in the format of weights (embedding, final norm, head); then the layers."""
    head = 0 if size.tied else size.head.parameters
    root = size.embedding.parameters + size.final_norm.parameters + head
    found = []
    parts = [(root, state.weight_bytes), *((layer.parameters, state.number_bytes) for layer in size.layers)]
    for parameters, each in parts:
        weights, gradients = float(each * parameters), float(state.gradient_bytes * parameters)
        own = gradients / ring.ranks  # of which replicas add up theirs
        again = across.seconds(own, passes=2) if across.ranks > 1 else 0.0
        sent = ring.sent(gradients) + 2 * across.sent(own)
        found.append(_Unit(ring.seconds(weights), ring.seconds(gradients) + again, ring.sent(weights), sent))
    return found


def _sharded(experiment: Experiment, parallel: FSDP2, units: list[_Unit], costs: Costs, streams: bool) -> Traffic:
    """FSDP2: the next layer is gathered while one runs, and the one before it in the backward; gradients leave behind it where
    there are streams, and are waited for on a host (parallel/shard_messages.py).
    """
    (root, *layers), count = units, num_microbatches(experiment)
    again = int(parallel.reshard_after_forward)
    sent = sum((1 + again) * unit.gather_bytes + unit.scatter_bytes for unit in layers)
    seconds = sum((1 + again) * unit.gather + unit.scatter for unit in layers) + root.gather + root.scatter
    forward, backward = (costs.seconds(kind, 0) / max(1, len(layers)) for kind in "FB")
    gathers = [*(unit.gather for unit in layers), 0.0]
    took = root.gather + gathers[0]  # nothing to hide them behind
    took += sum(max(forward, following) for following in gathers[1:])
    took += again * gathers[-2]
    scatters = [*(unit.scatter for unit in layers), 0.0]
    for index in reversed(range(len(layers))):
        before = again * gathers[index - 1] if index else 0.0
        took += max(backward, before + streams * scatters[index + 1]) + (not streams) * scatters[index + 1]
    took += scatters[0] + root.scatter
    compute = costs.seconds("F", 0) + costs.seconds("B", 0)
    hidden = max(0.0, compute + seconds - took)
    total = sent + root.gather_bytes + root.scatter_bytes
    return Traffic(count * total, count * seconds, count * hidden, count * compute)


def passed_on(schedule: Schedule, message: int, rate: float) -> Traffic:
    """What a pipeline's ranks pass on: `message` bytes forward and back, for each microbatch and each boundary between ranks.
    Of the rank that sends most; seconds of the fullest link in one direction. The simulation has them in its time.
    """
    sent: dict[tuple[int, int], int] = {}
    for here, there in zip(schedule.placement, schedule.placement[1:]):
        for pair in ((here, there), (there, here)) if here != there else ():
            sent[pair] = sent.get(pair, 0) + message * schedule.num_microbatches
    each = [sum(size for (source, _), size in sent.items() if source == rank) for rank in range(schedule.num_ranks)]
    return Traffic(float(max(each)), max(sent.values(), default=0) / rate)
