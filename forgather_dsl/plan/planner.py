"""Plans a run before it runs: who holds what, memory, time, bubble, and what other schedules would do. No torch, no GPU.

In: an experiment, perhaps other hardware, perhaps measured times. Out: `Plan`, which `contract` turns into JSON. Every time
is a prediction from `model_costs`, of the pipeline's part of a step by simulation, of the optimizer's by memory traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..dsl import ConfigError, replace
from ..specs import DDP, FSDP2, AutoParallel, Experiment, Pipeline
from ..specs.experiment import world_size
from ..specs.parallel import Searched
from . import hardware as machines
from .advice import Option, advise, more_cards, written
from .changes import for_cards, schedules, with_schedule
from .choosing import choose
from .estimate import Site, most_ranks_per_gpu
from .hardware import Hardware
from .prediction import Run, predict
from .profile import Profile, own_profile
from .sizes import model_size
from .strategies import Strategy, compared

__all__ = ["Plan", "Row", "plan"]

LARGE_HEAD = 1.5  # layers' worth of arithmetic, from which on a head spread over the ranks is looked at


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
    strategies: tuple[Strategy, ...] = ()
    choice: str = ""  # why AutoParallel came to this

    def _repr_html_(self) -> str:  # notebooks
        from .contract import to_dict
        from .page import fragment

        return fragment(self, to_dict(self))


def plan(
    experiment: Experiment,
    gpus: str | None = None,
    profile: Mapping[str, Any] | None = None,
    *,
    strategies: bool = False,
) -> Plan:
    """The plan on `gpus`, or on the experiment's own hardware. Another number of cards than the experiment has ranks means
    as many ranks as cards. With `strategies` compared, as they are for AutoParallel anyway.

    Raises:
        ConfigError: `gpus` or `hardware` is not understood, the experiment cannot be laid out, a profile of something else.
    """
    text = experiment.hardware if gpus is None else gpus
    wanted, experiment = experiment, replace(experiment, hardware=text)  # a searched order keeps within these cards
    profile = profile or own_profile(experiment)
    found, notes = machines.parse(text), []
    rows: tuple[Strategy, ...] = ()
    choice = choose(experiment, text, profile=profile) if isinstance(experiment.parallel, AutoParallel) else None
    ranks, cards = world_size(experiment), len(found.devices)
    if choice is not None:
        experiment, rows = choice.experiment, choice.rows
        notes.append(f"AutoParallel: {choice.reason}")
    elif cards and not cards <= ranks <= cards * most_ranks_per_gpu(experiment):
        experiment = _on_all(experiment, cards, text)
        number = f"{cards} card{'s' if cards > 1 else ''}"
        notes.append(f"{text} is {number}, so planned with parallel = {written(experiment.parallel)}")
    run = predict(experiment, found, profile)
    if run.layout.reason:
        notes.append(f"Auto: {run.layout.reason}")
    comparison = _comparison(run, found, profile)
    if choice is None and strategies:
        known = [run, *(row.run for row in comparison if row.run is not None)]
        rows = tuple(compared(experiment, world_size(experiment), found, profile, known))
    options = [] if run.fits else _options(wanted, run.experiment, found, text)
    measured = None if profile is None else Profile.of(profile, experiment)
    reason = "" if choice is None else choice.reason
    return Plan(run, text, tuple(notes), tuple(comparison), tuple(options), measured, rows, reason)


def _options(wanted: Experiment, planned: Experiment, found: Hardware, text: str) -> list[Option]:
    """What makes it fit on these cards, and how many cards would hold it; with modelled times throughout. An order that is
    searched depends on the cards, so with one the line that names them is part of it.
    """

    def rate(candidate: Experiment, hardware: Hardware = found) -> float | None:
        try:
            return predict(candidate, hardware).tokens_per_second
        except (ConfigError, ValueError):
            return None

    there = replace(planned if isinstance(wanted.parallel, AutoParallel) else wanted, hardware=text)
    searched = isinstance(planned.parallel, Pipeline) and isinstance(planned.parallel.schedule, Searched)
    lines_for = wanted if searched or isinstance(wanted.parallel, AutoParallel) else there
    options = advise(there, Site.of(found, planned), rate, lines_for)
    more = more_cards(there, found, text, rate) if found.devices else None
    return options + ([more] if more is not None else [])


def _on_all(experiment: Experiment, cards: int, text: str) -> Experiment:
    if isinstance(experiment.parallel, (DDP, FSDP2)):
        if experiment.batch_size % cards:
            raise ConfigError(
                f"{text!r} names {cards} cards, among which a batch_size of {experiment.batch_size} does not divide; name as "
                f"many as divide it, or write batch_size = {-(-experiment.batch_size // cards) * cards}"
            )
        changed = for_cards(experiment, cards)
        share = changed.batch_size // cards
        return changed if share % changed.microbatch_size == 0 else replace(changed, microbatch_size=1)
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
