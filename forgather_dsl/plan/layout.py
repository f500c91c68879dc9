"""How a pipeline is laid out: which rank holds which stages, which layers each stage has, and the order of every rank's actions.

In: an experiment. Out: `Layout`, which the planner costs, the run directory keeps as `plan.json`, and every rank builds from.
The class of the schedule settles stages per rank and their placement. Raises ConfigError for what cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ..dsl import ConfigError, build
from ..specs import Experiment, Pipeline
from ..specs.experiment import num_microbatches, num_shards
from ..specs.parallel import Searched
from . import partition
from .actions import Schedule, from_csv, to_csv
from .costs import Costs, without_shards
from .memory import State
from .model_costs import model_costs
from .profile import read_profile
from .schedules import accumulate
from .sizes import model_size
from .spread import spread_head

__all__ = ["Layout", "balanced", "from_dict", "lay_out", "to_dict"]


class Layout(NamedTuple):
    """The actions of every rank, and the layers of every stage."""

    schedule: Schedule
    layers: tuple[range, ...]


def lay_out(experiment: Experiment) -> Layout:
    """Stages, layers and actions. The same for the same experiment, whatever machine it is asked on."""
    microbatches, parallel = num_microbatches(experiment), experiment.parallel
    if not isinstance(parallel, Pipeline):
        return Layout(accumulate(microbatches), (range(experiment.model.num_layers),))
    schedule: Any = parallel.schedule
    placement = schedule.__placement__(parallel.stages)
    layers = _cut(parallel.cuts) if parallel.cuts is not None else balanced(experiment, len(placement))
    costs = None
    if isinstance(parallel.schedule, Searched):
        costs = model_costs(experiment, placement, layers, read_profile(parallel.schedule.profile))
        costs = without_shards(costs, len(placement))  # those are put into the order afterwards
    try:
        built = _ordered(schedule, parallel.stages, microbatches, costs)
    except ValueError as error:
        raise ConfigError(f"parallel.schedule: {error}") from error
    if num_shards(experiment):
        built = spread_head(built, model_costs(experiment, built.placement, layers))
    return Layout(built, layers)


@lru_cache(maxsize=64)  # advice tries many experiments that differ in other things
def _ordered(schedule: Any, ranks: int, microbatches: int, costs: Costs | None) -> Schedule:
    made_for: dict[str, Any] = {} if costs is None else {"costs": costs}
    return build(schedule, ranks=ranks, microbatches=microbatches, **made_for)


def _cut(cuts: Sequence[int]) -> tuple[range, ...]:
    stops = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    return tuple(range(start, stop) for start, stop in zip((0, *stops), stops))


def balanced(experiment: Experiment, stages: int, time_share: float = 0.5) -> tuple[range, ...]:
    """The most even split when `time_share` of a part's cost is its share of the model's floating point operations, and
    the rest its share of the bytes of weights, gradients and optimizer state. An embedding costs bytes and no time.
    """
    size = model_size(experiment.model, experiment.seq_len)
    if not any(layer.parameters for layer in size.layers):  # nothing is known of them but their number
        return partition.split([1.0] * len(size.layers), stages)
    state = State(experiment, on_gpu=False)
    parts = [*((layer, True) for layer in size.layers), (size.embedding, False), (size.head, False)]
    flops = [part.flops for part, _ in parts]
    stored = [sum(state.bytes_of(part, in_layer)) for part, in_layer in parts]
    all_flops, all_bytes = sum(flops) or 1.0, sum(stored) or 1
    if num_shards(experiment):
        flops[-1] = stored[-1] = 0  # every rank has its share
    costs = [time_share * f / all_flops + (1 - time_share) * b / all_bytes for f, b in zip(flops, stored)]
    return partition.split(costs[:-2], stages, embedding=costs[-2], head=costs[-1])


def to_dict(layout: Layout) -> dict[str, Any]:
    """As JSON can hold it."""
    schedule = layout.schedule
    return {
        "schedule": schedule.name,
        "layers": [[layers.start, layers.stop] for layers in layout.layers],
        "actions": to_csv(schedule).splitlines(),
        "shards": schedule.num_shards,
    }


def from_dict(data: Mapping[str, Any]) -> Layout:
    """The layout that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
    schedule = from_csv("\n".join(data["actions"]), data["schedule"], data.get("shards", 0))
    layers = tuple(range(start, stop) for start, stop in data["layers"])
    if len(layers) != schedule.num_stages:
        raise ValueError(f"{len(layers)} ranges of layers for {schedule.num_stages} stages")
    return Layout(schedule, layers)
