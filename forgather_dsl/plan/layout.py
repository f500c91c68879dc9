"""How a pipeline is laid out: which rank holds which stages, which layers each stage has, and the order of every rank's actions.

In: an experiment. Out: `Layout`, which the planner costs, the run directory keeps as `plan.json`, and every rank builds from.
The class of the schedule settles stages per rank and their placement. Raises ConfigError for what cannot be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ..dsl import ConfigError, build, problems
from ..dsl.check import said_at
from ..specs import Auto, AutoParallel, Experiment, Pipeline, ScheduleFile
from ..specs.experiment import num_microbatches, num_replicas, num_shards
from ..specs.parallel import Searched, placement
from ..specs.recompute import policy
from . import partition, validity
from .actions import Schedule, from_csv, to_csv
from .auto import at_peak
from .automatic import automatic
from .costs import Costs, without_shards
from .model_costs import model_costs
from .parts import parts_of
from .profile import read_profile
from .recompute import least_recomputing
from .schedules import accumulate
from .schedules.searched import drawn
from .spread import spread_head

__all__ = ["Layout", "from_dict", "lay_out", "schedule_problems", "to_dict"]


class Layout(NamedTuple):
    """The actions of every rank, the layers of every stage, and why, where that was not said but chosen."""

    schedule: Schedule
    layers: tuple[range, ...]
    reason: str = ""
    recompute: tuple[str, ...] = ()  # the policy of every stage (specs.recompute.POLICIES); empty: the experiment's

    def policies(self, experiment: Experiment) -> tuple[str, ...]:
        """Of every stage. Raises ConfigError where the planner should have chosen and has not."""
        if self.recompute:
            return self.recompute
        name = policy(experiment.recompute)
        if name is None:
            raise ConfigError("recompute: AutoRecompute() is chosen by lay_out(), and this layout was made without it")
        return (name,) * len(self.layers)


def lay_out(experiment: Experiment) -> Layout:
    """Stages, layers and actions, for the experiment's `hardware`; `auto` is the machine this is asked on.

    Raises ConfigError, with every problem, for a schedule that cannot be run or does not go with the experiment.
    """
    if policy(experiment.recompute) is None:
        return least_recomputing(experiment, _lay_out)
    return _lay_out(experiment)


def _lay_out(experiment: Experiment) -> Layout:
    """With a recompute policy that is the same everywhere."""
    parallel = experiment.parallel
    if isinstance(parallel, AutoParallel):
        raise ConfigError("parallel: AutoParallel() is chosen before anything is laid out, by plan.choosing.choose()")
    if not isinstance(parallel, Pipeline):
        return Layout(accumulate(num_microbatches(experiment)), (range(experiment.model.num_layers),))
    spec, places, reason = parallel.schedule, placement(parallel), ""
    profile = read_profile(spec.profile) if isinstance(spec, Searched) else None
    if isinstance(spec, Auto):
        schedule, layers, reason = automatic(
            experiment, parallel, None if parallel.cuts is None else _cut(parallel.cuts)
        )
    elif isinstance(spec, Searched) and places is not None:
        layers = _layers(
            experiment, parallel, places, [(1.0, 0.0)] * len(places), profile
        )  # its order makes do with that
        costs = model_costs(experiment, places, layers, profile)
        costs = without_shards(costs, len(places))  # those are put into the order afterwards
        schedule = _schedule(experiment, parallel, costs)
    else:
        schedule = _schedule(experiment, parallel, None)
        layers = _layers(experiment, parallel, schedule.placement, at_peak(schedule))
    if num_shards(experiment):
        with_head = model_costs(experiment, schedule.placement, layers, profile)
        others = drawn(schedule.placement, schedule.num_microbatches) if isinstance(spec, Searched) else ()
        schedule = spread_head(schedule, with_head, tuple(others))
    return Layout(schedule, layers, reason)


def _layers(
    experiment: Experiment,
    parallel: Pipeline,
    places: tuple[int, ...],
    live: partition.Live,
    profile: Mapping[str, Any] | None = None,
) -> tuple[range, ...]:
    """The layers of each stage: as the user cuts them, else the split by cost."""
    cuts, layers = parallel.cuts, experiment.model.num_layers
    if cuts is None:
        if len(places) > layers:
            raise ConfigError(f"parallel.stages: {len(places)} stages for {layers} layers; every stage needs one")
        return partition.divide(parts_of(experiment, parallel.stages, profile), places, live)
    if len(cuts) != len(places) or sum(cuts) != layers:
        raise ConfigError(f"parallel.cuts: {cuts} does not cut {layers} layers into {len(places)} stages")
    return _cut(cuts)


def schedule_problems(experiment: Experiment) -> list[ConfigError]:
    """What is wrong with a schedule that comes from a file or from the user's own function, to be told together with what
    `dsl.check` finds; ours are right by their tests, and a search takes its time. Nothing where that cannot be said yet.
    """
    try:
        parallel = experiment.parallel
        if not isinstance(parallel, Pipeline) or experiment.batch_size % (
            num_replicas(experiment) * experiment.microbatch_size
        ):
            return []
        ours = str(type(parallel.schedule).__target__).startswith("forgather_dsl.")
        wrong_values = problems(parallel.schedule)
    except ConfigError:
        return []
    if (
        wrong_values
        or (ours and not isinstance(parallel.schedule, ScheduleFile))
        or isinstance(parallel.schedule, Searched)
    ):
        return []
    try:
        _schedule(experiment, parallel, None)
    except ConfigError as error:
        return [ConfigError(text) for text in error.problems]
    return []


def _schedule(experiment: Experiment, parallel: Pipeline, costs: Costs | None) -> Schedule:
    """The schedule, valid, for as many ranks and microbatches as there are."""
    spec: Any = parallel.schedule
    path, made = "parallel.schedule", _made
    if isinstance(parallel.schedule, ScheduleFile):
        path, made = "parallel.schedule.path", _made.__wrapped__  # a file may change
    try:
        schedule, invalid = made(spec, parallel.stages, num_microbatches(experiment), costs)
        found = [f"{schedule.name} {text}" for text in _mismatches(experiment, parallel, schedule)]
        found += [f"{schedule.name}: {text}" for text in invalid]
        if not found:
            return schedule
    except ValueError as error:
        found = [str(error)]
    texts = [f"{path}: {text}{said_at(experiment, path)}" for text in found]
    raise ConfigError("\n".join(texts), texts)


@lru_cache(maxsize=64)  # advice tries many experiments that differ in other things
def _made(spec: Any, ranks: int, microbatches: int, costs: Costs | None) -> tuple[Schedule, list[str]]:
    """The schedule, and what is wrong with it in itself. Raises ValueError when there is none."""
    known: dict[str, Any] = {"ranks": ranks, "microbatches": microbatches, "costs": costs}
    made = build(spec, **{name: known[name] for name in type(spec).__runtime__})  # a file has sizes of its own
    if not isinstance(made, Schedule):
        raise ValueError(f"{type(spec).__name__} makes {made!r}, not a Schedule")
    return made, validity.problems(made)


def _mismatches(experiment: Experiment, parallel: Pipeline, schedule: Schedule) -> Iterator[str]:
    """Where a schedule does not go with its experiment or its class."""
    wanted, made = num_microbatches(experiment), schedule.num_microbatches
    if schedule.num_ranks != parallel.stages:
        yield f"is for {schedule.num_ranks} ranks, the pipeline has {parallel.stages}: write stages={schedule.num_ranks}"
    elif schedule.placement != placement(parallel):
        yield (
            f"places stages 0 to {schedule.num_stages - 1} on ranks {list(schedule.placement)}, its class says "
            f"{list(placement(parallel) or ())}: write def __placement__(self, ranks) in {type(parallel.schedule).__name__}"
        )
    if made != wanted:
        replicas, size = num_replicas(experiment), experiment.microbatch_size
        share = experiment.batch_size // replicas
        better = f"microbatch_size={share // made}" if share % made == 0 else f"batch_size={made * size * replicas}"
        yield f"is for {made} microbatches, the experiment has {wanted}: write {better}"


def _cut(cuts: Sequence[int]) -> tuple[range, ...]:
    stops = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    return tuple(range(start, stop) for start, stop in zip((0, *stops), stops))


def to_dict(layout: Layout) -> dict[str, Any]:
    """As JSON can hold it."""
    schedule = layout.schedule
    return {
        "schedule": schedule.name,
        "layers": [[layers.start, layers.stop] for layers in layout.layers],
        "actions": to_csv(schedule).splitlines(),
        "shards": schedule.num_shards,
        "reason": layout.reason,
        "recompute": list(layout.recompute),
    }


def from_dict(data: Mapping[str, Any]) -> Layout:
    """The layout that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
    schedule = from_csv("\n".join(data["actions"]), data["schedule"], data.get("shards", 0))
    layers = tuple(range(start, stop) for start, stop in data["layers"])
    if len(layers) != schedule.num_stages:
        raise ValueError(f"{len(layers)} ranges of layers for {schedule.num_stages} stages")
    policies = tuple(map(str, data.get("recompute", ())))
    if len(policies) not in (0, len(layers)):
        raise ValueError(f"{len(policies)} recompute policies for {len(layers)} stages")
    return Layout(schedule, layers, str(data.get("reason", "")), policies)
