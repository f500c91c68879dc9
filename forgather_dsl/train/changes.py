"""What may change when a run goes on, and what it means: a line for each change, or a refusal with all of them.

In: the experiment and the run directory of an earlier start. What changes nothing of what is learned is free, and a longer
stop, with its effect on the learning rate; anything else needs `--allow-change`. No torch.
"""

from __future__ import annotations

import math
import os
from typing import Any

from ..dsl import Difference, build, diff
from ..dsl.check import said_at
from ..errors import UserError
from ..specs import Experiment
from .checkpoint import manifest
from .checkpoint.folder import listed
from .directory import read_config

__all__ = ["FREE", "STOPS", "refuse_changes"]

FREE = (
    "parallel",
    "recompute",
    "deterministic",
    "hardware",
    "loggers",
    "checkpoints",
    "sampling",
    "eval_sets",
    "watchdog",
    "log_every",
    "eval_every",
    "save_every",
    "sample_every",
)
STOPS = ("steps", "tokens", "epochs", "seconds")


def refuse_changes(experiment: Experiment, path: str, allow_change: bool) -> list[str]:
    """Compare with the configuration of an earlier start. Returns one line for each allowed change.

    Raises:
        UserError: something changed that would make the run another one, and `allow_change` was not given.
    """
    before = read_config(path)
    lines, refused, begun = [], [], _reached(path) is not None
    for change in diff(before, experiment):
        may, why = _may_change(change, before, experiment, begun)
        text = f"{change.path}: {_value(change.left)} -> {_value(change.right)}{said_at(experiment, change.path)}"
        (lines if may or allow_change else refused).append(text + (f"; {why}" if why and not may else ""))
    if refused:
        also = ["these may change, and would:", *(f"  {text}" for text in lines)] if lines else []
        raise UserError(
            "\n".join(
                [
                    f"{path} holds a run of another configuration:",
                    *(f"  {text}" for text in refused),
                    *also,
                    "write --resume never to start a new run, --out for another directory, or --allow-change to go on with the change",
                ]
            )
        )
    return lines + _horizon(before, experiment, path)


def _value(text: str | None) -> str:
    return "-" if text is None else text


def _may_change(change: Difference, before: Experiment, experiment: Experiment, begun: bool) -> tuple[bool, str]:
    """Whether it may, and why not where that is not plain."""
    head = change.path.split(".")[0].split("[")[0]
    if head in STOPS:
        longer = change.right == "None" or (
            change.left not in (None, "None") and float(change.right or 0) >= float(change.left or 0)
        )
        return longer, "only a later stop is free"
    if head == "update":  # when and where alone change no more than the order of sums does
        return before.update.clip_rms == experiment.update.clip_rms, "another limit learns something else"
    if head == "init_from":
        return not begun, "a run that has a checkpoint goes on from that, and began with the other"
    if head == "guard" and change.path != "guard.max_skipped":
        free = not (_rolls_back(before) or _rolls_back(experiment))
        return free, "a run that goes back to a checkpoint learns from other data"
    return head in FREE or head == "guard", ""


def _rolls_back(experiment: Experiment) -> bool:
    spike = experiment.guard.spike
    return spike is not None and spike.rollback


def _horizon(before: Experiment, experiment: Experiment, path: str) -> list[str]:
    """What another stop does to the learning rate, in one line; none when nothing changes."""
    if all(getattr(before, name) == getattr(experiment, name) for name in STOPS):
        return []
    at = _reached(path)
    if at is None:
        return []
    then, now = (_progress(e, at) for e in (before, experiment))
    factor = build(experiment.lr_schedule)
    old, new = factor(then), factor(now)
    name = type(experiment.lr_schedule).__name__
    place = f"step {at['steps']} is {100 * then:.0f} % of the old run, {100 * now:.0f} % of the new one"
    if old == new:
        return [f"{name}: {place}; the learning rate there stays {new:.3g} of its peak"]
    return [
        f"{name} follows the new stop: {place}; the learning rate there goes from {old:.3g} to {new:.3g} of its peak"
    ]


def _progress(experiment: Experiment, at: dict[str, float]) -> float:
    """How far a run is, as the training loop counts it."""
    stops = {name: getattr(experiment, name) for name in STOPS}
    return min(1.0, max(at[name] / stop for name, stop in stops.items() if stop is not None))


def _reached(path: str) -> dict[str, Any] | None:
    """Steps, tokens, epochs and seconds of the newest checkpoint; None when there is none that can be read."""
    for checkpoint in listed(os.path.join(path, "checkpoints")):
        try:
            found = manifest.read(checkpoint)
            state = found["state"]
            data = state.get("data") or {"epoch": 0, "position": 0}  # an imported checkpoint has none
            epochs = data["epoch"] + data["position"] / data.get("sequences", math.inf)
            return {"steps": found["step"], "tokens": state["tokens"], "epochs": epochs, "seconds": state["seconds"]}
        except (OSError, ValueError, KeyError):
            continue
    return None
