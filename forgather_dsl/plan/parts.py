"""What each part of a model costs on each rank: what splits into stages are weighed by.

In: an experiment, ranks, perhaps a profile. Out: `Parts`. Taken from the same model as `Costs`: every part is costed as
a stage of its own, so a split that is even in these numbers is even in those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..specs import Experiment
from ..specs.experiment import num_shards
from . import hardware as machines
from .memory import State
from .model_costs import model_costs
from .partition import Parts
from .resident import Resident, capacity, resident, room
from .sizes import model_size

__all__ = ["parts_of"]


def parts_of(experiment: Experiment, ranks: int, profile: Mapping[str, Any] | None = None) -> Parts:
    """Embedding, layers and head of an experiment, on `ranks` ranks of its hardware."""
    size = model_size(experiment.model, experiment.seq_len)
    num_layers = len(size.layers)
    ends = [range(0), range(num_layers, num_layers)]
    single = [range(index, index + 1) for index in range(num_layers)]
    stages = [ends[0], *single, *single[:1] * ranks, ends[1]]  # each rank holds a layer: one with nothing has no costs
    taken = [*range(num_layers + 1), len(stages) - 1]
    kept, owed, found = [], [], machines.for_ranks(machines.parse(experiment.hardware), ranks)
    seconds: dict[machines.Device, tuple[float, ...]] = {}
    for rank, device in enumerate(found.devices[:ranks]):
        if device not in seconds:
            placement = (*(rank,) * (num_layers + 1), *range(ranks), rank)
            costs = model_costs(experiment, placement, stages, profile)
            seconds[device] = tuple(sum(costs.seconds(kind, stage) for kind in "FIW") for stage in taken)
            kept, owed = [costs.kept[stage] for stage in taken], [costs.owed[stage] for stage in taken]
    on_gpu = found.devices[0].kind != "host"
    state = State(experiment, on_gpu)
    held = [resident(experiment, size, stages, (stage,), state) for stage in taken]
    stored = [float(one.weights + one.copies + one.gradients + one.optimizer) for one in held]
    shard = 0
    if num_shards(experiment):  # each rank's, which `resident` counts with whatever it holds
        shard = sum(state.bytes_of(size.head_shard(num_shards(experiment)), False))
    buffers = max(one.buffers for one in held)
    always = Resident(weights=shard, copies=0, gradients=0, optimizer=0, buffers=buffers, update=0)
    rooms = [capacity(room(experiment, device), always, on_gpu) for device in found.devices]
    return Parts(
        seconds=tuple(seconds[device] for device in found.devices[:ranks]),
        stored=tuple(one - shard for one in stored),
        kept=tuple(kept),
        owed=tuple(owed),
        room=tuple(map(float, rooms)),
    )
