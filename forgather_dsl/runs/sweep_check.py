"""What can be known to be wrong with the members of a sweep before the first of them begins, all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..dsl import ConfigError, check
from ..errors import UserError
from ..plan.choosing import chosen
from ..plan.fit import gib, host_need, require_fit
from ..plan.hardware import gpus, host_memory
from ..plan.layout import schedule_problems
from ..specs import Experiment
from ..train.trainer import lost_elsewhere
from .members import Item, Member

__all__ = ["check_configurations", "check_here"]

SHOWN = 20  # of many


def check_configurations(items: Sequence[Item]) -> None:
    """Each is complete, free of contradictions, and can be handed to another process. Raises ConfigError."""

    def one(experiment: Experiment) -> None:
        check(experiment, schedule_problems(experiment))
        if lost := lost_elsewhere(experiment):
            raise ConfigError(
                f"{', '.join(lost)}: defined in a notebook or at the prompt, where the processes of a sweep cannot import it; "
                "put it into a .py file and import it from there"
            )

    names = [f"number {number} ({item.name})" for number, item in enumerate(items, start=1)]
    _raise_all(names, [item.experiment for item in items], one)


def check_here(members: Sequence[Member], jobs: int) -> None:
    """The data of each is there, and the machine can hold it; without GPUs, as many at once as `jobs`.

    Raises UserError: 2 for data, 3 for memory. Members that differ in their seed alone are looked at once.
    """
    from ..train.prepare import check_sources  # which imports numpy

    def one(experiment: Experiment) -> None:
        require_fit(chosen(experiment))
        check_sources(experiment)

    distinct = {member.group: member for member in reversed(members)}.values()
    _raise_all([member.group_label for member in distinct], [member.experiment for member in distinct], one)
    if jobs == 1 or gpus():
        return
    needs = sorted((host_need(chosen(member.experiment)) for member in members), reverse=True)
    there = host_memory()
    if (together := sum(needs[:jobs])) > there:
        fit = max(count for count in range(1, jobs + 1) if sum(needs[:count]) <= there or count == 1)
        raise UserError(
            f"{jobs} of these experiments side by side need {gib(together)} of memory, this machine has {gib(there)}; write "
            f"--jobs {fit} (jobs={fit})",
            exit_code=3,
        )


def _raise_all(names: Sequence[str], experiments: Sequence[Experiment], one: Callable[[Experiment], None]) -> None:
    """Raises what `one` raises; the same problem of several experiments is told once, with their names."""
    found: dict[str, list[str]] = {}
    codes = []
    for name, experiment in zip(names, experiments):
        try:
            one(experiment)
        except (ConfigError, UserError) as error:
            found.setdefault(str(error), []).append(name)
            codes.append(getattr(error, "exit_code", 2))
    if not found:
        return
    told = [f"{_joined(who)}: {text}" for text, who in found.items()]
    count = f"{len(codes)} of {len(names)} experiments cannot be trained; none was started"
    raise UserError("\n".join([f"{count}:", *(f"  {text}" for text in told[:SHOWN])]), exit_code=min(codes))


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
