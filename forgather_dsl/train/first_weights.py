"""`init_from`: a run begins with the weights of another run, of a checkpoint, or of a Hugging Face folder.

In: what the experiment names. `require_first_weights` looks at it before ranks start, without torch; `begin_with` reads, on each
rank, the tensors of its stages alone, after names, shapes and number formats of all of them were compared with the model.
A checkpoint of the run itself always wins: `init_from` is for its first start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..dsl import ConfigError
from ..dsl.check import said_at
from ..errors import UserError
from ..specs import Experiment
from .checkpoint import manifest
from .checkpoint.folder import listed

if TYPE_CHECKING:
    from torch import Tensor

    from .agreement import Ranks
    from .checkpoint import Slice
    from .session import Session
    from .weights import Stored

__all__ = ["CHECKPOINT", "FOLDER", "RUN", "begin_with", "kind_of", "open_weights", "require_first_weights"]

CHECKPOINT, RUN, FOLDER = "checkpoint", "run", "folder"


def kind_of(path: str) -> str:
    """What `path` is, by the files in it. Raises UserError: it is no folder."""
    if not os.path.isdir(path):
        raise UserError(f"{path!r} is no folder; write a run, a checkpoint or a Hugging Face folder")
    if os.path.isfile(os.path.join(path, manifest.NAME)):
        return CHECKPOINT
    return RUN if os.path.isdir(os.path.join(path, "checkpoints")) else FOLDER


def require_first_weights(experiment: Experiment) -> None:
    """Look at what `init_from` names: it is there, and a Hugging Face folder's configuration is that of the model. No torch.

    Raises UserError with every field that differs.
    """
    path = experiment.init_from
    if path is None:
        return
    try:
        kind = kind_of(path)
        if kind == RUN and not listed(os.path.join(path, "checkpoints")):
            raise UserError(f"{path} has no checkpoint to begin with; train it, or name another")
        if kind == FOLDER:
            _require_same_model(path, experiment)
    except UserError as error:
        raise UserError(f"init_from{said_at(experiment, 'init_from')}: {error}") from error


def _require_same_model(path: str, experiment: Experiment) -> None:
    from ..interop.families import differences, from_config
    from ..interop.place import read_config, require_weights

    require_weights(path)
    found = from_config(read_config(path), os.path.join(path, "config.json"))
    wrong = differences(found, experiment.model)
    if wrong:
        raise UserError(f"the experiment has another model than {path}:\n  " + "\n  ".join(wrong))


class Loading(Protocol):
    """What takes weights: a session, or a model that is evaluated."""

    experiment: Experiment
    ranks: Ranks


class _Source(NamedTuple):
    """Weights by parameter name."""

    where: str  # the checkpoint or folder
    stored: dict[str, Stored]  # of the whole model
    read: Callable[[list[str], Mapping[str, Slice]], Iterator[tuple[str, Tensor]]]


def begin_with(session: Session, path: str) -> None:
    """Set this rank's parameters to the weights that `path` holds; all ranks must call it.

    Raises UserError on all ranks, before any parameter has changed, when they are not those of the model.
    """
    import torch

    from . import saving

    source, problem = None, None
    try:
        source = open_weights(session, path)
    except (UserError, ConfigError, OSError) as error:
        problem = str(error)
    first = next((p for p in session.ranks.gather(problem) if p), None)
    if first is not None or source is None:
        raise UserError(f"init_from: {first}")
    names = list(session.parameters)
    with torch.no_grad():
        for name, tensor in source.read(names, saving.slices(session, names)):
            saving.set_weight(session, name, tensor)
    if session.ranks.rank == 0:
        print(f"begins with the weights of {path}", flush=True)


def open_weights(session: Loading, path: str) -> _Source:
    """Verified: a checkpoint's hashes, and of everything names, shapes and number formats. Raises UserError."""
    from .weights import expected, require_same

    source = _of_folder(session, path) if kind_of(path) == FOLDER else _of_checkpoint(session, path)
    try:
        require_same(path, source.stored, expected(session.experiment.model, len(source.stored)))
    except UserError as error:
        raise UserError(f"{error}\n  {_of_what_model(path)}") from error
    return source


def _of_what_model(path: str) -> str:
    """What to write instead."""
    if kind_of(path) == FOLDER:
        return f"`python -m forgather_dsl import {path} --out NEW` writes an experiment with the model of these weights"
    run = path if kind_of(path) == RUN else os.path.dirname(os.path.dirname(os.path.abspath(path)))
    return f"write the model that these weights are of: `python -m forgather_dsl show {run}` prints it"


def _of_folder(session: Loading, path: str) -> _Source:
    from ..interop.folder import open_folder

    folder = open_folder(path)
    tied = bool(getattr(session.experiment.model, "tie_embeddings", False))
    found = folder.without_copies(tied, compare=session.ranks.rank == 0)
    return _Source(path, found, folder.tensors)


def _of_checkpoint(session: Loading, path: str) -> _Source:
    from .checkpoint import newest, open_checkpoint, problem
    from .weights import read_weights, stored

    if kind_of(path) == RUN:
        saved: Any = newest(os.path.join(path, "checkpoints"), session.ranks)
        if saved is None:
            raise UserError(f"{path} has no checkpoint that can be read")
    else:
        if wrong := problem(path):
            raise UserError(f"{path}: {wrong}; `checkpoints` lists those of its run")
        saved = open_checkpoint(path)

    return _Source(saved.path, stored(saved), lambda names, slices: read_weights(saved, names, slices))
