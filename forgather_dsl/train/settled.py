"""`AutoParallel` made into a class before anything is written or started, and the same one when a run goes on. Imports no torch.

In: an experiment, its run directory, how many ranks were started elsewhere. Out: the experiment that runs, and the record that
`plan.json` keeps of the choice. A run that goes on keeps its strategy while there are as many ranks to run on; on other cards
it is chosen anew, with the microbatch size of the run, which what is learned depends on.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ..dsl import ConfigError, replace
from ..errors import UserError
from ..plan.advice import written
from ..plan.choosing import Choice, choose, ranks_of
from ..plan.planner import plan
from ..plan.verdicts import strategies_of
from ..specs import AutoParallel, Experiment
from ..specs.experiment import world_size
from .directory import read_config

__all__ = ["RECORD", "settled"]

RECORD = "auto_parallel"  # in plan.json

Record = dict[str, Any]


def settled(experiment: Experiment, path: str, ranks: int | None) -> tuple[Experiment, Record | None]:
    """The experiment with its strategy, and why it is that one; None where its class says it and no choice stands behind it.

    Raises:
        UserError: (exit code 3) no strategy fits, with what to change. ConfigError: `hardware` is not understood.
    """
    before, record = _before(path)
    if not isinstance(experiment.parallel, AutoParallel):
        same = before is not None and before.parallel == experiment.parallel
        return experiment, record if same else None
    if before is not None and record is not None:
        if world_size(before) == ranks_of(experiment, ranks):
            return replace(experiment, parallel=before.parallel, microbatch_size=before.microbatch_size), record
        experiment = replace(experiment, microbatch_size=before.microbatch_size)
    choice = choose(experiment, ranks=ranks)
    if not choice.fits:
        raise UserError(_refusal(experiment, choice, ranks), exit_code=3)
    return choice.experiment, {
        "chosen": written(choice.experiment.parallel),
        "microbatch_size": choice.experiment.microbatch_size,
        "ranks": world_size(choice.experiment),
        "hardware": experiment.hardware,
        "reason": choice.reason,
        "strategies": strategies_of(choice.rows),
    }


def _before(path: str) -> tuple[Experiment | None, Record | None]:
    """What a run directory holds of an earlier start."""
    try:
        before = read_config(path)
        with open(os.path.join(path, "plan.json"), encoding="utf-8") as file:
            record = json.load(file).get(RECORD)
    except (UserError, ConfigError, OSError, ValueError):  # none there; or told when the run goes on
        return None, None
    return before, record if isinstance(record, dict) else None


def _refusal(experiment: Experiment, choice: Choice, ranks: int | None) -> str:
    lines = [f"{type(experiment).__qualname__}: AutoParallel() finds nothing that fits: {choice.reason}"]
    lines += [f"  {', '.join(row['lines'])}: {row['verdict']}" for row in strategies_of(choice.rows)]
    options = plan(experiment).options if ranks is None else ()
    for option in options[:1]:
        lines += ["try, in the class body:", *(f"  {line}" for line in option.lines)]
    if not options:
        lines.append("a smaller model (dim, num_layers, vocab_size), a shorter seq_len or more cards would do")
    return "\n".join(lines)
