"""What of a session goes into a checkpoint, and back: weights, optimizer state, place in the data, random state.

The learning rate is a function of the run's progress (step, tokens, seconds), so a schedule has no state of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from . import random_state
from .checkpoint import Contents, Keep, Saved, Saver, Slice, newest, open_checkpoint, problem
from .checkpoint.snapshot import Source, source
from .optim.states import state_columns

if TYPE_CHECKING:
    from ..specs import Experiment
    from .session import Session

__all__ = ["contents", "find", "make_saver", "restore", "set_weight", "slices"]


def make_saver(session: Session) -> Saver:
    """Writes the checkpoints of a run."""
    about = session.experiment.checkpoints
    keep = Keep(about.keep_last, about.keep_every, about.keep_best)
    device = session.world.device
    return Saver(os.path.join(session.path, "checkpoints"), session.ranks, keep, about.background, device)


def contents(session: Session) -> Contents:
    """What this rank saves now: the tensors that it stands for, and its random state."""
    loader = session.loader
    data = {**loader.state_dict(), "seq_len": loader.seq_len, "fingerprint": loader.fingerprint}
    data["sequences"] = loader.num_sequences
    kind = _kind(session.experiment)
    state = {"data": data, "optimizer": kind, "tokens": session.tokens, "seconds": session.elapsed()}
    state["guards"] = session.guards.state_dict()
    sources, scalars = _sources(session)
    return Contents(
        session.step,
        sources,
        state,
        scalars,
        random_state.capture(session.world.device),
        slices(session, [one.key for one in sources]),
        session.eval_loss,
    )


def find(session: Session, resume: str) -> Saved | None:
    """The checkpoint to go on from: for "auto" the newest whole one of the run, for a path that one.

    Raises UserError when that one cannot be used.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return newest(os.path.join(session.path, "checkpoints"), session.ranks)
    wrong = next((p for p in session.ranks.gather(problem(resume)) if p), None)
    if wrong:
        raise UserError(f"--resume {resume}: {wrong}; `checkpoints` lists those of its run")
    return open_checkpoint(resume)


@torch.no_grad()
def restore(session: Session, saved: Saved) -> None:
    """Go on from a verified checkpoint, whatever the number of stages that wrote it.

    Raises UserError, on all ranks and before any parameter has changed, when it is of another model.
    """
    session.saver.forget()
    optimizer, state = session.optimizer, saved.manifest["state"]
    if state.get("weights_only"):
        return _begin_with(session, saved)
    states = {name: (parameter, held) for name, parameter, held in optimizer.named_states()}
    same = state["optimizer"] == _kind(session.experiment)
    weights = [f"weights/{name}" for name in session.parameters]
    stored = saved.stored()
    ours = [k for k in stored if same and k.startswith("optimizer/") and _owner(k) in states]
    wanted = [*weights, *ours]
    _refuse_others(session, saved, wanted, list(stored))
    if same:
        for _, held in states.values():
            held.clear()
    for key, tensor in saved.tensors(wanted, slices(session, wanted)):
        if key.startswith("weights/"):
            set_weight(session, key.removeprefix("weights/"), tensor)
            continue
        parameter, held = states[_owner(key)]
        on_host = tensor.ndim == 0  # a step count
        # copied: what is read is a view of the file, which may be deleted or cut while training goes on
        held[key.rpartition("/")[2]] = tensor.to("cpu" if on_host else parameter.device, copy=True)
    for name, (_, held) in states.items() if same else ():
        held.update(saved.manifest["scalars"].get(name, {}))
    if not same and session.ranks.rank == 0:  # only with --allow-change, as below
        print("warning: the optimizer changed; its state starts anew", file=sys.stderr)
    session.step, session.tokens = saved.step, state["tokens"]
    session.guards.load_state_dict(state["guards"])
    session.count_seconds_from(state["seconds"])
    _restore_data(session, state["data"])
    rng = saved.manifest["rng"]  # another number of ranks: those that were not there go on as the first
    random_state.put_back(rng[session.ranks.rank if session.ranks.rank < len(rng) else 0], session.world.device)


def _begin_with(session: Session, saved: Saved) -> None:
    """The weights of an imported checkpoint, which has nothing else."""
    weights = [f"weights/{name}" for name in session.parameters]
    _refuse_others(session, saved, weights, list(saved.stored()))
    for key, tensor in saved.tensors(weights, slices(session, weights)):
        set_weight(session, key.removeprefix("weights/"), tensor)
    if session.ranks.rank == 0:
        print(f"{saved.path} has weights alone: optimizer, schedule and data begin at step 0", flush=True)


def _restore_data(session: Session, data: dict[str, Any]) -> None:
    if data["fingerprint"] == session.loader.fingerprint and data["seq_len"] == session.loader.seq_len:
        session.loader.load_state_dict({key: data[key] for key in session.loader.state_dict()})
    elif session.ranks.rank == 0:
        print("warning: the data changed; it is read from its beginning", file=sys.stderr)


def _refuse_others(session: Session, saved: Saved, wanted: list[str], stored: list[str]) -> None:
    """Compare names and shapes of everything first."""
    cuts = slices(session, wanted)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for key in wanted:
        name = key.removeprefix("weights/") if key.startswith("weights/") else _owner(key)
        cut = cuts.get(key)
        shape = tuple(session.parameters[name].shape) if cut is None else cut.shape
        shapes[key] = shape if key.startswith("weights/") else None
    known = set(session.ranks.names)
    foreign = sorted(
        key
        for key in stored
        if (key.removeprefix("weights/") if key.startswith("weights/") else _owner(key)) not in known
    )
    wrong = saved.problem(shapes, cuts)
    if wrong is None and foreign:
        wrong = f"{saved.path} holds {len(foreign)} tensors of another model: {', '.join(foreign[:5])}"
    wrong = wrong or _odd_state(session, saved, wanted)
    first = next((p for p in session.ranks.gather(wrong) if p), None)
    if first is not None:
        raise UserError(first, exit_code=4)


def _odd_state(session: Session, saved: Saved, wanted: list[str]) -> str | None:
    """Optimizer state that has as many dimensions as its parameter, but another shape."""
    cuts = slices(session, wanted)
    for key, parts in saved.stored().items():
        if key not in wanted or not key.startswith("optimizer/"):
            continue
        parameter, cut, found = session.parameters[_owner(key)], cuts.get(key), parts[0][1].shape
        needed = tuple(parameter.shape) if cut is None else cut.shape
        if cut is None and len(needed) == 2:
            needed = needed[0], state_columns(key, needed[1])
        if len(found) == len(needed) and found != needed:
            return f"{saved.path}: {key} has shape {found}, its parameter {needed}"
    return None


def _sources(session: Session) -> tuple[list[Source], dict[str, dict[str, Any]]]:
    """Weights and the optimizer's tensors, its other state by parameter."""
    counted = session.ranks.counted
    sources = [_weight(session, name, p) for name, p in session.parameters.items() if name in counted and p.numel()]
    scalars: dict[str, dict[str, Any]] = {}
    for name, _, state in session.optimizer.named_states() if counted else ():
        if name not in counted:
            continue
        tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
        sources += [source(f"optimizer/{name}/{k}", tensor) for k, tensor in tensors.items() if tensor.numel()]
        scalars[name] = {k: v for k, v in state.items() if k not in tensors}
    return sources, scalars


def _weight(session: Session, name: str, parameter: torch.nn.Parameter) -> Source:
    key, optimizer = f"weights/{name}", session.optimizer
    if not optimizer.has_master(name):
        return source(key, parameter)

    # made when it is read, on the host: a GPU has no room for all, nor for one that is large
    def master() -> torch.Tensor:
        found = optimizer.master(name, torch.device("cpu"))
        assert found is not None
        return found

    return Source(key, tuple(parameter.shape), torch.float32, master)


def set_weight(session: Session, name: str, value: torch.Tensor) -> None:
    """Give one of this rank's parameters a value, of any format; narrower ones keep as much of it as they can."""
    parameter = session.parameters[name]
    if parameter.requires_grad:
        session.optimizer.set_master(name, value)
    else:
        parameter.copy_(value)


def slices(session: Session, keys: Iterable[str]) -> dict[str, Slice]:
    """Of which tensors this rank holds a slice: weights (by key or by name) and optimizer state of what is cut by rows."""
    cut, found = session.owner.rows(), {}
    for key in keys if cut else ():
        name = key.removeprefix("weights/") if key.startswith("weights/") else _owner(key) or key
        rows = cut.get(name)
        if rows is not None and not key.endswith("/step"):
            others = list(rows.shape[1:])
            if len(others) == 1:
                others = [state_columns(key, others[0])]
            start = (rows.start, *[0] * len(others))
            found[key] = Slice((rows.shape[0], *others), start, (rows.count, *others))
    return found


def _kind(experiment: Experiment) -> str:
    """What optimizer state is of: the optimizer, in what it is kept, and what is kept beside weights."""
    states = getattr(experiment.optimizer, "states", "fp32")
    rounding = getattr(experiment.precision, "rounding", "exact")
    told = [type(experiment.optimizer).__name__, *[states] * (states != "fp32"), *[rounding] * (rounding == "kahan")]
    return " ".join(told)


def _owner(key: str) -> str:
    """The parameter that `optimizer/NAME/STATE` belongs to."""
    return key.removeprefix("optimizer/").rpartition("/")[0]
